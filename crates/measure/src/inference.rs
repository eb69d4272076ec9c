//! The parts of generation: vision tower, prefill, and decoding.

use burn::tensor::{DType, Tensor};
use glm4v_model::{CausalLm, ComputeError, DecoderOptions, Glm4v, KvCache};

use crate::error::MeasureError;
use crate::shape::{InputShape, check_length};
use crate::stopwatch::{Measurement, Stopwatch};

/// The vision tower and the merger over the images of a batch.
///
/// # Errors
///
/// When the device fails.
pub fn vision(
    model: &Glm4v,
    shape: &InputShape,
    seed: u64,
    stopwatch: &Stopwatch,
) -> Result<Measurement, MeasureError> {
    let batch = shape.batch(&model.config, seed);
    stopwatch.measure(|| {
        model.embed_multimodal(&batch)?;
        Ok(())
    })
}

/// From the tokens and image embeddings of prompts to the logits of their next tokens, on the host. The vision tower has run
/// before.
///
/// # Errors
///
/// When the prompts are longer than the model's positions, or the device fails.
pub fn prefill(
    model: &Glm4v,
    shape: &InputShape,
    seed: u64,
    stopwatch: &Stopwatch,
) -> Result<Measurement, MeasureError> {
    check_length(&model.config, "prefill", shape.seq_len(&model.config))?;
    let batch = shape.batch(&model.config, seed);
    let embeddings = model.embed_multimodal(&batch)?;
    let [rows, length] = batch.shape;
    let last: Vec<usize> = (1..=rows).map(|row| row * length - 1).collect();
    stopwatch.measure(|| {
        let mut cache = model.kv_cache(rows, length);
        let input = model.merge_embeddings(&batch, embeddings.clone())?;
        let options =
            DecoderOptions { cache: Some(&mut cache), positions: Some(&last), ..DecoderOptions::default() };
        read(model.logits(model.decoder_forward(input, options).hidden_states)).map(drop)
    })
}

/// One more token for every row after `depth` positions: a round is a token, and each is one position deeper than the one
/// before. Logits are read and the largest is the next token, as in greedy generation.
///
/// # Errors
///
/// When the positions are more than the model has, or the device fails.
pub fn decode(
    model: &Glm4v,
    batch_size: usize,
    depth: usize,
    seed: u64,
    stopwatch: &Stopwatch,
) -> Result<Measurement, MeasureError> {
    let capacity = depth + stopwatch.all_rounds();
    check_length(&model.config, "decode", capacity)?;
    let mut state = Decoding::start(model, batch_size, depth, capacity, seed)?;
    stopwatch.measure(|| state.step(model))
}

/// Sequences in the middle of their generation.
struct Decoding {
    cache: KvCache,
    last: Vec<u32>,
    rope_deltas: Vec<i64>,
}

impl Decoding {
    fn start(
        model: &Glm4v,
        batch_size: usize,
        depth: usize,
        capacity: usize,
        seed: u64,
    ) -> Result<Self, MeasureError> {
        let shape = InputShape { batch_size, image: None, text_tokens: depth, labels: 0 };
        let batch = shape.batch(&model.config, seed);
        let mut cache = model.kv_cache(batch_size, capacity);
        let input = model.embed(&batch)?;
        let rope_deltas = input.positions.rope_deltas.clone();
        let last: Vec<usize> = (1..=batch_size).map(|row| row * depth - 1).collect();
        let options =
            DecoderOptions { cache: Some(&mut cache), positions: Some(&last), ..DecoderOptions::default() };
        let logits = read(model.logits(model.decoder_forward(input, options).hidden_states))?;
        Ok(Self { last: largest(&logits, batch_size), cache, rope_deltas })
    }

    fn step(&mut self, model: &Glm4v) -> Result<(), MeasureError> {
        let logits = read(model.decode_step(&self.last, &self.rope_deltas, &mut self.cache))?;
        self.last = largest(&logits, self.last.len());
        Ok(())
    }
}

fn read(logits: Tensor<2>) -> Result<Vec<f32>, MeasureError> {
    let data = logits.cast(DType::F32).try_into_data().map_err(ComputeError::from)?;
    Ok(data.try_to_vec().map_err(ComputeError::from)?)
}

/// The token with the largest logit of each row.
fn largest(logits: &[f32], rows: usize) -> Vec<u32> {
    let best = |row: &[f32]| {
        row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).map_or(0, |(id, _)| id as u32)
    };
    logits.chunks_exact(logits.len() / rows).map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_model::{Backend, Glm4vConfig, Precision};

    use crate::random_weights;
    use crate::stopwatch::Rounds;

    fn tiny() -> (Glm4v, Stopwatch) {
        let device = Backend::Cpu.open().unwrap();
        let model = random_weights(Glm4vConfig::tiny().init(&device), Precision::F32, 0);
        (model, Stopwatch::new(&device, Rounds { warmup: 1, rounds: 2 }))
    }

    #[test]
    fn decoding_goes_on_where_the_prompt_ends() {
        let (model, _) = tiny();
        let mut state = Decoding::start(&model, 2, 7, 20, 0).unwrap();
        let first = state.last.clone();

        state.step(&model).unwrap();

        // The same sequences in one pass.
        let shape = InputShape { batch_size: 2, image: None, text_tokens: 7, labels: 0 };
        let mut batch = shape.batch(&model.config, 0);
        for (row, id) in first.iter().enumerate() {
            batch.input_ids.insert(row * 8 + 7, *id);
        }
        batch.shape = [2, 8];
        batch.modalities = vec![None; 16];
        batch.segment_ids = vec![1; 16];
        batch.loss_mask = vec![false; 16];
        let logits = read(model.forward_at(&batch, &[7, 15]).unwrap()).unwrap();
        assert_eq!(state.last, largest(&logits, 2));
        assert_eq!(state.cache.len(), 8);
    }

    #[test]
    fn more_positions_than_the_model_has_are_refused() {
        let (model, stopwatch) = tiny();

        let error = decode(&model, 1, 509, 0, &stopwatch).unwrap_err().to_string();

        assert_eq!(error, "decode: takes 514 positions, and the model has 512 (max_position_embeddings)");
        assert!(decode(&model, 1, 507, 0, &stopwatch).is_ok());
    }
}
