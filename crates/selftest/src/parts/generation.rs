//! Prefill, cached decoding and greedy generation.

use std::ops::ControlFlow;

use burn::prelude::*;
use glm4v_infer::{GenerationConfig, generate};
use glm4v_inputs::PaddingSide;
use glm4v_model::{CausalLm, DecoderOptions, Glm4v};

use super::read;
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
    let logits = family.deviation("generation", "logits", &decoded(family, model)?, setup.precision);
    let batch = family.batch(PaddingSide::Left);
    let settings = GenerationConfig {
        eos_token_ids: Vec::new(), // the reference goes on, too
        ..GenerationConfig::greedy(&model.config, family.meta.generated[0].len())
    };
    let rows = generate(model, &batch, &settings, |_, _| ControlFlow::Continue(()))?;
    let ids: Vec<Vec<u32>> = rows.into_iter().map(|row| row.ids).collect();
    let tokens = Deviation {
        tensor: "logit of the reference's token above that of ours".to_owned(),
        deviation: shortfall(family, &ids),
        tolerance: 2.0 * logits.tolerance,
    };
    Ok(vec![
        Comparison::worst(format!("{} logits of decoding", family.name), [logits]),
        Comparison::worst(format!("{} greedy tokens", family.name), [tokens]),
    ])
}

/// Logits of prefill and decoding with a cache, fed with the reference's tokens: `[B, N, V]`.
fn decoded(family: &Family, model: &Glm4v) -> Result<Vec<f32>, CheckError> {
    let batch = family.batch(PaddingSide::Left);
    let [rows, width] = batch.shape;
    let tokens = &family.meta.generated;
    let count = tokens[0].len();
    let mut cache = model.kv_cache(rows, width + count);
    let input = model.embed(&batch)?;
    let rope_deltas = input.positions.rope_deltas.clone();
    let last: Vec<usize> = (1..=rows).map(|row| row * width - 1).collect();
    let options = DecoderOptions { cache: Some(&mut cache), positions: Some(&last), ..Default::default() };
    let mut steps = vec![model.logits(model.decoder_forward(input, options).hidden_states)]; // [B, V]
    for step in 0..count - 1 {
        let ids: Vec<u32> = tokens.iter().map(|row| row[step]).collect();
        steps.push(model.decode_step(&ids, &rope_deltas, &mut cache));
    }
    Ok(read(Tensor::stack::<3>(steps, 1))?)
}

/// By how much, at most, the reference's own logits prefer its tokens to ours: 0 if all are equal.
///
/// After a token that differs the prompts do too, so each row is looked at up to its first one.
fn shortfall(family: &Family, ids: &[Vec<u32>]) -> f64 {
    let expected = &family.expected["generation.logits"];
    let count = family.meta.generated[0].len();
    let vocab = family.config.text.vocab_size;
    let rows = ids.iter().zip(&family.meta.generated).enumerate();
    let of_row = |(row, (found, reference)): (usize, (&Vec<u32>, &Vec<u32>))| {
        if found.len() != reference.len() {
            return f64::INFINITY;
        }
        let Some(step) = (0..count).find(|step| found[*step] != reference[*step]) else { return 0.0 };
        let logits = &expected[(row * count + step) * vocab..][..vocab];
        f64::from(logits[reference[step] as usize] - logits[found[step] as usize])
    };
    rows.map(of_row).fold(0.0, f64::max)
}
