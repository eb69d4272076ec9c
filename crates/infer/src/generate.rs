//! The generation loop: prefill, then one token a step for every row until all have finished.

use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor};
use glm4v_model::{Batch, CausalLm, ComputeError, DecoderOptions, ModelInputError};

use crate::config::GenerationConfig;
use crate::logits_processors::RowState;
use crate::sampling::TokenSampler;

/// Error of generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// Prompt and images do not match.
    #[error(transparent)]
    Input(#[from] ModelInputError),
    /// A row is padded on the right, so that new tokens would follow padding.
    #[error("row {row} is padded on the right; needed: padding on the left")]
    RightPadded {
        /// Index of the row.
        row: usize,
    },
    /// A row holds several samples, of which only the last could go on.
    #[error("row {row} holds several packed samples; needed: one prompt a row")]
    Packed {
        /// Index of the row.
        row: usize,
    },
    /// The prompt leaves no room for new tokens.
    #[error(
        "the prompt takes {tokens} tokens, the model's longest sequence is {longest} (max_position_embeddings); \
         shorten the prompt or make its images smaller"
    )]
    PromptTooLong {
        /// Tokens of the longest row.
        tokens: usize,
        /// `max_position_embeddings` of the model.
        longest: usize,
    },
    /// A logit is NaN: the weights are broken, or the dtype overflowed.
    #[error("row {row}, new token {token}: the model's scores are not numbers; the weights may be broken")]
    NanLogits {
        /// Index of the row.
        row: usize,
        /// Number of tokens generated before.
        token: usize,
    },
    /// The computation failed on the device.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// Reason why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// It generated an EOS token.
    Stop,
    /// It reached the maximum number of tokens.
    Length,
    /// `on_token` ended it, at a stop string for example.
    Cancelled,
}

/// Generated tokens of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedTokens {
    /// New tokens, the EOS token included.
    pub ids: Vec<u32>,
    /// Reason why the row ended.
    pub finish_reason: FinishReason,
}

/// Continues every row of a left-padded batch, up to `max_new_tokens` or the model's longest sequence.
///
/// `on_token` is called with the row and each new token, and may end the row; pass `|_, _| ControlFlow::Continue(())` to let all
/// rows run.
///
/// # Errors
///
/// When the batch does not fit the model, or a logit is NaN.
pub fn generate(
    model: &impl CausalLm,
    batch: &Batch,
    config: &GenerationConfig,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<GeneratedTokens>, GenerateError> {
    let [rows, width] = batch.shape;
    if rows == 0 {
        return Ok(Vec::new());
    }
    let max_new_tokens = check_prompts(model, batch, config)?;
    // Allocated in full: growing would copy it at every step.
    let mut cache = model.kv_cache(rows, width + max_new_tokens);
    let input = model.embed(batch)?;
    let rope_deltas = input.positions.rope_deltas.clone();
    let last: Vec<usize> = (1..=rows).map(|row| row * width - 1).collect();
    // Logits of the last position alone: for a long prompt all of them would take gigabytes.
    let prefill =
        DecoderOptions { cache: Some(&mut cache), positions: Some(&last), ..DecoderOptions::default() };
    let mut logits = model.logits(model.decoder_forward(input, prefill).hidden_states); // [B, V]

    let mut rows: Vec<Row> = (0..rows).map(|row| Row::new(batch, row, config)).collect();
    for token in 0..max_new_tokens {
        let mut values = read_logits(logits).map_err(|error| error.with_memory(&model.device()))?;
        let vocab_size = values.len() / rows.len();
        for (index, (row, scores)) in rows.iter_mut().zip(values.chunks_exact_mut(vocab_size)).enumerate() {
            if row.finish_reason.is_some() {
                continue;
            }
            let id = row.sample(scores, config, max_new_tokens);
            let id = id.ok_or(GenerateError::NanLogits { row: index, token })?;
            if on_token(index, id).is_break() {
                row.finish_reason = Some(FinishReason::Cancelled);
            } else if config.eos_token_ids.contains(&id) {
                row.finish_reason = Some(FinishReason::Stop);
            }
        }
        if rows.iter().all(|row| row.finish_reason.is_some()) || token + 1 == max_new_tokens {
            break;
        }
        // Finished rows repeat their last token; the result is ignored.
        let last: Vec<u32> = rows.iter().map(Row::last_token).collect();
        logits = model.decode_step(&last, &rope_deltas, &mut cache);
    }
    Ok(rows.into_iter().map(Row::into_generated).collect())
}

/// Checks that every row can be continued; returns how many tokens fit, `max_new_tokens` at most.
///
/// The cache is allocated in full for them, so they are limited to what the model supports.
fn check_prompts(
    model: &impl CausalLm,
    batch: &Batch,
    config: &GenerationConfig,
) -> Result<usize, GenerateError> {
    let width = batch.shape[1];
    let longest = model.text_config().max_position_embeddings;
    if width == 0 {
        return Err(ModelInputError::EmptyRow { row: 0 }.into());
    }
    if width >= longest {
        return Err(GenerateError::PromptTooLong { tokens: width, longest });
    }
    for (row, segments) in batch.segment_ids.chunks(width).enumerate() {
        if segments[width - 1] == 0 {
            return Err(GenerateError::RightPadded { row });
        }
        if segments.iter().any(|segment| *segment > 1) {
            return Err(GenerateError::Packed { row });
        }
    }
    Ok(config.max_new_tokens.min(longest - width))
}

/// A row during generation.
struct Row {
    /// Prompt without padding, and generated tokens.
    history: Vec<u32>,
    /// Number of tokens in the prompt.
    prompt_tokens: usize,
    sampler: TokenSampler,
    /// None while the row runs.
    finish_reason: Option<FinishReason>,
}

impl Row {
    fn new(batch: &Batch, row: usize, config: &GenerationConfig) -> Self {
        let width = batch.shape[1];
        let range = row * width..(row + 1) * width;
        let tokens = batch.input_ids[range.clone()].iter().zip(&batch.segment_ids[range]);
        let history: Vec<u32> = tokens.filter(|(_, segment)| **segment != 0).map(|(id, _)| *id).collect();
        let sampler = TokenSampler::new(config.sampling, config.seed, row);
        Self { prompt_tokens: history.len(), history, sampler, finish_reason: None }
    }

    /// Appends the next token and returns it; none if a logit is NaN.
    fn sample(
        &mut self,
        scores: &mut [f32],
        config: &GenerationConfig,
        max_new_tokens: usize,
    ) -> Option<u32> {
        let state = RowState {
            history: &self.history,
            prompt_tokens: self.prompt_tokens,
            max_new_tokens,
            eos_token_ids: &config.eos_token_ids,
        };
        config.logits_processors.apply(scores, state);
        let id = self.sampler.next(scores, &self.history)?;
        self.history.push(id);
        Some(id)
    }

    fn last_token(&self) -> u32 {
        self.history.last().copied().unwrap_or(0)
    }

    fn into_generated(mut self) -> GeneratedTokens {
        let ids = self.history.split_off(self.prompt_tokens);
        GeneratedTokens { ids, finish_reason: self.finish_reason.unwrap_or(FinishReason::Length) }
    }
}

fn read_logits(logits: Tensor<2>) -> Result<Vec<f32>, ComputeError> {
    Ok(logits.cast(DType::F32).try_into_data()?.try_to_vec()?)
}
