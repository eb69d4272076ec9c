//! Walking over linear layers, which adapters are attached to.
//!
//! Burn walks over parameters; an adapter belongs to a whole layer. So the linear layers of each block are listed here by the
//! names that checkpoints give them.

use crate::glm4v::Glm4v;
use crate::nn::linear::Linear;
use crate::nn::mlp::{GateUpMlp, GatedMlp};
use crate::text::{FeedForward, TextLayer};
use crate::vision::{PatchMerger, VisionBlock};

impl Glm4v {
    /// Calls `visit` with the name and the place of every linear layer, as `model.language_model.layers.0.self_attn.q_proj`:
    /// those of vision tower, merger and text decoder, then the head.
    ///
    /// Experts are numbered, `….mlp.experts.3.gate_up_proj`. Routers and convolutions are no linear layers.
    pub fn for_each_linear(&mut self, mut visit: impl FnMut(&str, &mut Linear)) {
        let mut visit = Scope { path: String::new(), visit: &mut visit };
        let mut model = visit.within("model");
        let mut visual = model.within("visual");
        for (index, block) in self.model.visual.blocks.iter_mut().enumerate() {
            vision_block(block, &mut visual.within(&format!("blocks.{index}")));
        }
        merger(&mut self.model.visual.merger, &mut visual.within("merger"));
        let mut text = model.within("language_model");
        for (index, layer) in self.model.language_model.layers.iter_mut().enumerate() {
            text_layer(layer, &mut text.within(&format!("layers.{index}")));
        }
        if let Some(head) = &mut self.lm_head {
            visit.linear("lm_head", head);
        }
    }

    /// Folds every adapter into the weights it belongs to: the same function without adapters.
    ///
    /// The sums are formed in f32 and rounded once.
    pub fn merge_adapters(mut self) -> Self {
        self.for_each_linear(|_, linear| {
            if let Some(lora) = linear.lora.take() {
                linear.merge(&lora);
            }
        });
        self
    }
}

/// A visitor and the name of the part that it is in.
struct Scope<'a> {
    path: String,
    visit: &'a mut dyn FnMut(&str, &mut Linear),
}

impl Scope<'_> {
    fn within(&mut self, name: &str) -> Scope<'_> {
        Scope { path: self.join(name), visit: &mut *self.visit }
    }

    fn linear(&mut self, name: &str, linear: &mut Linear) {
        let name = self.join(name);
        (self.visit)(&name, linear);
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

fn vision_block(block: &mut VisionBlock, scope: &mut Scope<'_>) {
    scope.linear("attn.qkv", &mut block.attn.qkv);
    scope.linear("attn.proj", &mut block.attn.proj);
    gated(&mut block.mlp, &mut scope.within("mlp"));
}

fn merger(merger: &mut PatchMerger, scope: &mut Scope<'_>) {
    scope.linear("proj", &mut merger.proj);
    scope.linear("gate_proj", &mut merger.gate_proj);
    scope.linear("up_proj", &mut merger.up_proj);
    scope.linear("down_proj", &mut merger.down_proj);
}

fn text_layer(layer: &mut TextLayer, scope: &mut Scope<'_>) {
    let attention = &mut layer.self_attn;
    scope.linear("self_attn.q_proj", &mut attention.q_proj);
    scope.linear("self_attn.k_proj", &mut attention.k_proj);
    scope.linear("self_attn.v_proj", &mut attention.v_proj);
    scope.linear("self_attn.o_proj", &mut attention.o_proj);
    let mut scope = scope.within("mlp");
    match &mut layer.mlp {
        FeedForward::GateUp(mlp) => fused(mlp, &mut scope),
        FeedForward::Gated(mlp) => gated(mlp, &mut scope),
        FeedForward::Experts(mlp) => {
            for (index, expert) in mlp.experts.iter_mut().enumerate() {
                fused(expert, &mut scope.within(&format!("experts.{index}")));
            }
            gated(&mut mlp.shared_experts, &mut scope.within("shared_experts"));
        }
    }
}

fn fused(mlp: &mut GateUpMlp, scope: &mut Scope<'_>) {
    scope.linear("gate_up_proj", &mut mlp.gate_up_proj);
    scope.linear("down_proj", &mut mlp.down_proj);
}

fn gated(mlp: &mut GatedMlp, scope: &mut Scope<'_>) {
    scope.linear("gate_proj", &mut mlp.gate_proj);
    scope.linear("up_proj", &mut mlp.up_proj);
    scope.linear("down_proj", &mut mlp.down_proj);
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::{CausalLm, Glm4vConfig, LoraLayerConfig, initialize, initialize_lora};
    use burn::prelude::*;
    use burn::tensor::{DType, Tolerance};

    fn adapted() -> Glm4v {
        let device = Device::flex();
        let mut model = initialize(Glm4vConfig::tiny().init(&device), 0, DType::F32);
        let config = LoraLayerConfig { rank: 2, alpha: 4.0, rslora: true, dropout: 0.0 };
        model.for_each_linear(|_, linear| {
            linear.lora = Some(config.init(linear.d_input(), linear.d_output(), &device))
        });
        let mut model = initialize_lora(model, 1, DType::F32);
        // Not the zeros that training starts from.
        model.for_each_linear(|_, linear| {
            let lora = linear.lora.as_mut().unwrap();
            let values = lora.b.val().random_like(burn::tensor::Distribution::Normal(0.0, 0.3));
            lora.b = burn::module::Param::from_tensor(values);
        });
        model
    }

    #[test]
    fn names_are_those_of_the_parameters() {
        let parameters: Vec<String> =
            crate::param_infos(&adapted()).into_iter().map(|param| param.name).collect();
        let mut linears = Vec::new();

        adapted().for_each_linear(|name, _| linears.push(format!("{name}.lora.a")));

        let mut adapters: Vec<&String> = parameters.iter().filter(|name| name.ends_with(".lora.a")).collect();
        adapters.sort();
        linears.sort();
        assert_eq!(adapters, linears.iter().collect::<Vec<_>>());
        assert_eq!(linears.len(), 2 * 5 + 4 + 2 * 6 + 1);
    }

    #[test]
    fn a_merged_model_computes_what_the_adapted_one_does() {
        let model = adapted();
        let sample = crate::Sample::from_text(vec![1, 2, 3]);
        let batch = crate::Batch::collate(&[sample], 0, crate::PaddingSide::Left);
        let apart = model.forward(&batch).unwrap().into_data();
        let plain = initialize(Glm4vConfig::tiny().init(&Device::flex()), 0, DType::F32);

        let merged = model.merge_adapters();

        let together = merged.forward(&batch).unwrap().into_data();
        together.assert_approx_eq::<f32>(&apart, Tolerance::absolute(1e-5));
        let without = plain.forward(&batch).unwrap().into_data();
        let moved = (Tensor::<3>::from_data(without, &Device::flex())
            - Tensor::from_data(together, &Device::flex()))
        .abs()
        .max();
        assert!(moved.into_scalar::<f32>() > 0.01, "the adapters do something");
    }
}
