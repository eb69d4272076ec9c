//! Where in the network a parameter lies, read off its name.

use burn::tensor::DType;

/// A part of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelPart {
    /// Patch embedding, learned positions, vision blocks and their last norm.
    VisionTower,
    /// Downsampling and merger, from patches to tokens.
    Merger,
    /// Token embeddings.
    Embeddings,
    /// A layer of the text decoder.
    Layer(usize),
    /// The norm after the decoder layers.
    FinalNorm,
    /// The output head; a head that is tied to the embeddings is no parameter of its own.
    Head,
}

/// The name of a parameter as [`visit_named`](crate::visit_named) gives it, `model.language_model.layers.0.mlp.down_proj.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamName<'a>(pub &'a str);

/// A parameter of a routed expert, `{experts}.{index}.{parameter}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertParamName<'a> {
    /// The experts of the layer, `model.language_model.layers.1.mlp.experts`.
    pub experts: &'a str,
    /// Which of them.
    pub index: usize,
    /// The parameter in the expert, `down_proj.weight`.
    pub parameter: &'a str,
}

impl<'a> ParamName<'a> {
    /// The part of the network that the parameter belongs to.
    pub fn part(self) -> ModelPart {
        let mut names = self.0.split('.').skip_while(|name| *name == "model");
        match (names.next(), names.next()) {
            (Some("visual"), Some("merger" | "downsample")) => ModelPart::Merger,
            (Some("visual"), _) => ModelPart::VisionTower,
            (Some("language_model"), Some("embed_tokens")) => ModelPart::Embeddings,
            (Some("language_model"), Some("layers")) => names
                .next()
                .and_then(|index| index.parse().ok())
                .map_or(ModelPart::FinalNorm, ModelPart::Layer),
            (Some("language_model"), _) => ModelPart::FinalNorm,
            _ => ModelPart::Head,
        }
    }

    /// Whether the parameter belongs to vision tower or merger.
    pub fn is_visual(self) -> bool {
        matches!(self.part(), ModelPart::VisionTower | ModelPart::Merger)
    }

    /// The routed expert that the parameter belongs to.
    pub fn expert(self) -> Option<ExpertParamName<'a>> {
        const EXPERTS: &str = ".mlp.experts.";
        let at = self.0.find(EXPERTS)? + EXPERTS.len();
        let (index, parameter) = self.0[at..].split_once('.')?;
        is_number(index).then_some(())?;
        Some(ExpertParamName { experts: &self.0[..at - 1], index: index.parse().ok()?, parameter })
    }

    /// Whether it is the scale of a norm.
    pub fn is_norm_weight(self) -> bool {
        ["norm.weight", "norm1.weight", "norm2.weight"].iter().any(|end| self.0.ends_with(end))
    }

    /// Whether it is a bias, the router's correction included.
    pub fn is_bias(self) -> bool {
        self.0.ends_with("bias")
    }

    /// Whether it is the router's correction, which only steers the top-k: a buffer in the reference, always f32, without
    /// gradient.
    pub fn is_e_score_correction_bias(self) -> bool {
        self.0.ends_with("e_score_correction_bias")
    }

    /// The type it is held and written in where those of the model have `dtype`: the router's correction stays f32.
    pub fn dtype(self, dtype: DType) -> DType {
        if self.is_e_score_correction_bias() { DType::F32 } else { dtype }
    }

    /// The name of the tensor in a checkpoint, and the index of the shard if the parameter is one of its row shards.
    pub fn shard(self) -> (&'a str, Option<usize>) {
        match self.0.rsplit_once('.') {
            Some((name, index)) if name.ends_with(".weight") && is_number(index) => {
                (name, index.parse().ok())
            }
            _ => (self.0, None),
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_part() {
        for (name, part) in [
            ("model.visual.patch_embed.proj.weight", ModelPart::VisionTower),
            ("model.visual.blocks.1.norm1.weight", ModelPart::VisionTower),
            ("model.visual.downsample.bias", ModelPart::Merger),
            ("model.visual.merger.gate_proj.lora.a", ModelPart::Merger),
            ("model.language_model.embed_tokens.weight.2", ModelPart::Embeddings),
            ("model.language_model.layers.11.mlp.experts.7.down_proj.weight", ModelPart::Layer(11)),
            ("model.language_model.norm.weight", ModelPart::FinalNorm),
            ("lm_head.weight", ModelPart::Head),
        ] {
            assert_eq!(ParamName(name).part(), part, "{name}");
        }
    }

    #[test]
    fn experts_and_shards_are_read_off_the_name() {
        let expert = ParamName("model.language_model.layers.1.mlp.experts.7.down_proj.weight");
        let shared = ParamName("model.language_model.layers.1.mlp.shared_experts.down_proj.weight");

        let path = expert.expert().unwrap();
        assert_eq!((path.index, path.parameter), (7, "down_proj.weight"));
        assert_eq!(path.experts, "model.language_model.layers.1.mlp.experts");
        assert_eq!(shared.expert(), None);
        assert_eq!(ParamName("lm_head.weight.13").shard(), ("lm_head.weight", Some(13)));
        for name in [expert.0, "lm_head.weight", "x.blocks.1", "x.weight.a", "x.weight."] {
            assert_eq!(ParamName(name).shard(), (name, None), "{name}");
        }
        assert!(ParamName("x.mlp.gate.e_score_correction_bias").is_e_score_correction_bias());
        assert!(!ParamName("x.mlp.gate.weight").is_e_score_correction_bias());
    }
}
