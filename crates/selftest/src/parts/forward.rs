//! Logits and activations.

use glm4v_inputs::PaddingSide;
use glm4v_model::{ActivationRecorder, Batch, CausalLm, DecoderOptions, Glm4v};

use super::{at_tokens, read, to_f32};
use crate::comparison::{Comparison, Deviation};
use crate::error::CheckError;
use crate::family::Family;
use crate::setup::Setup;

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let mut rows = Vec::new();
    for family in &setup.families {
        let model = family.model(&setup.device_spec, setup.precision)?;
        rows.extend(compare(setup, family, &model)?);
    }
    Ok(rows)
}

/// The rows of one family.
pub(super) fn compare(setup: &Setup, family: &Family, model: &Glm4v) -> Result<Vec<Comparison>, CheckError> {
    let (images, video) = (family.batch(PaddingSide::Left), family.video());
    Ok(vec![
        Comparison::worst(
            format!("{} logits", family.name),
            [logits(setup, family, "forward", model, &images)?],
        ),
        Comparison::worst(
            format!("{} activations", family.name),
            activations(setup, family, model, &images)?,
        ),
        Comparison::worst(
            format!("{} logits, video", family.name),
            [logits(setup, family, "video", model, &video)?],
        ),
    ])
}

/// The logits of a batch at its tokens.
pub(super) fn logits(
    setup: &Setup,
    family: &Family,
    part: &str,
    model: &impl CausalLm,
    batch: &Batch,
) -> Result<Deviation, CheckError> {
    let logits = at_tokens(&read(model.forward(batch)?)?, &batch.attention_mask());
    Ok(family.deviation(part, "logits", &logits, setup.precision))
}

fn activations(
    setup: &Setup,
    family: &Family,
    model: &Glm4v,
    batch: &Batch,
) -> Result<Vec<Deviation>, CheckError> {
    let mut recorder = ActivationRecorder::new();
    let input = model.embed_with_recorder(batch, Some(&mut recorder))?;
    model.decoder_forward(input, DecoderOptions { recorder: Some(&mut recorder), ..Default::default() });
    let records = recorder.into_activations();
    let mask = batch.attention_mask();
    let found = |name: &str| {
        let data = records.iter().find(|(other, _)| other == name).map(|(_, data)| to_f32(data.clone()));
        let values = data.unwrap_or_default();
        if name.starts_with("text.") { at_tokens(&values, &mask) } else { values }
    };
    let names = family.names("forward").filter(|name| *name != "logits");
    Ok(names.map(|name| family.deviation("forward", name, &found(name), setup.precision)).collect())
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::prelude::*;
    use glm4v_model::{NamedMapper, Precision, map_named};

    use super::*;
    use crate::setup::tests::on_cpu;

    /// Replaces one parameter.
    struct Mutation<'a>(&'a str, fn(f32) -> f32, bool);

    impl NamedMapper for Mutation<'_> {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if name != self.0 {
                return param;
            }
            self.2 = true;
            let factor = (self.1)(1.0);
            param.map(|weight| weight * factor)
        }
    }

    fn right(precision: Precision, name: &str, mutation: fn(f32) -> f32) -> bool {
        let setup = on_cpu(precision);
        let family = &setup.families[0];
        let mut mutation = Mutation(name, mutation, false);
        let model = map_named(family.model(&setup.device_spec, precision).unwrap(), &mut mutation);
        assert!(mutation.2, "{name}");
        compare(&setup, family, &model).unwrap().iter().all(Comparison::ok)
    }

    #[test]
    fn a_mutated_weight_shows_in_every_type() {
        let names = [
            "model.visual.patch_embed.proj.weight",
            "model.visual.blocks.1.norm2.weight",
            "model.visual.merger.post_projection_norm.weight",
            "model.language_model.layers.0.self_attn.v_proj.weight",
            "model.language_model.layers.1.post_mlp_layernorm.weight",
            "lm_head.weight",
        ];
        for name in names {
            assert!(!right(Precision::F32, name, |weight| weight * 1.001), "{name}");
            assert!(!right(Precision::Bf16, name, |weight| weight * 1.25), "{name}");
            assert!(!right(Precision::F16, name, |weight| weight * 1.05), "{name}");
        }
        assert!(right(Precision::Bf16, names[0], |weight| weight));
    }
}
