//! The loop: prefill, then one token a step for every row until all have ended.

use std::ops::ControlFlow;

use burn::tensor::{DType, Tensor};
use glm4v_model::{Batch, ComputeError, FusionError, Glm4v, Probe};

use crate::config::GenerationConfig;
use crate::rules::Place;
use crate::sampling::Sampler;

/// Why no text could be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// Prompt and images do not belong together.
    #[error(transparent)]
    Fusion(#[from] FusionError),
    /// Rows must end with their last token, or what follows them would come after padding.
    #[error("row {row} is padded on the right; needed: padding on the left")]
    RightPadded {
        /// Row of the batch.
        row: usize,
    },
    /// No room for an answer.
    #[error(
        "the prompt takes {tokens} tokens, the model's longest sequence is {longest} (max_position_embeddings); \
         shorten the prompt or make its images smaller"
    )]
    PromptTooLong {
        /// Tokens of the longest row.
        tokens: usize,
        /// Tokens that the model was made for.
        longest: usize,
    },
    /// The weights are broken, or a type overflowed.
    #[error("row {row}, new token {token}: the model's scores are not numbers; the weights may be broken")]
    NotANumber {
        /// Row of the batch.
        row: usize,
        /// Tokens generated before.
        token: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It produced a stop token.
    Stop,
    /// It reached the most tokens allowed.
    Length,
    /// The caller ended it.
    Caller,
}

/// What a row produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, the stop token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Continues every row of a left-padded batch, up to the most tokens of `config` or the model's longest sequence.
///
/// `on_token` sees each new token of each row and may end that row; pass `|_, _| ControlFlow::Continue(())` to let
/// all run.
///
/// # Errors
///
/// When the batch does not fit the model, or the model computes what is not a number.
pub fn generate(
    model: &Glm4v,
    batch: &Batch,
    config: &GenerationConfig,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Generated>, GenerateError> {
    let [rows, width] = batch.shape;
    let longest = model.config.text.max_position_embeddings;
    if rows == 0 {
        return Ok(Vec::new());
    }
    if width == 0 {
        return Err(FusionError::EmptyRow { row: 0 }.into());
    }
    if width >= longest {
        return Err(GenerateError::PromptTooLong { tokens: width, longest });
    }
    // The cache is allocated whole: no more than the model could use, whatever was asked for.
    let max_new_tokens = config.max_new_tokens.min(longest - width);
    if let Some(row) = (0..rows).find(|row| !batch.attention_mask[(row + 1) * width - 1]) {
        return Err(GenerateError::RightPadded { row });
    }
    let mut probe = Probe::off();
    let mut cache = model.cache(rows, width + max_new_tokens);
    let input = model.embed(batch, &mut probe)?;
    let deltas = input.positions.deltas.clone();
    let last: Vec<usize> = (1..=rows).map(|row| row * width - 1).collect();
    let mut scores = model.head(model.decode_at(input, &last, Some(&mut cache), &mut probe)); // [B, V]

    let mut history: Vec<Vec<u32>> = (0..rows)
        .map(|row| {
            let place = row * width..(row + 1) * width;
            let real = batch.attention_mask[place.clone()].iter();
            batch.input_ids[place].iter().zip(real).filter(|(_, real)| **real).map(|(id, _)| *id).collect()
        })
        .collect();
    let prompts: Vec<usize> = history.iter().map(Vec::len).collect();
    let mut samplers: Vec<Sampler> =
        (0..rows).map(|row| Sampler::new(config.sampling, config.seed, row)).collect();
    let mut ended: Vec<Option<Finish>> = vec![None; rows];
    for token in 0..max_new_tokens {
        let mut values = read(scores)?;
        let vocabulary = values.len() / rows;
        for row in (0..rows).filter(|row| ended[*row].is_none()).collect::<Vec<_>>() {
            let scores = &mut values[row * vocabulary..(row + 1) * vocabulary];
            let (history_of_row, prompt) = (&history[row], prompts[row]);
            let place = Place { history: history_of_row, prompt, max_new_tokens, stop_ids: &config.stop_ids };
            config.rules.apply(scores, place);
            let id =
                samplers[row].next(scores, history_of_row).ok_or(GenerateError::NotANumber { row, token })?;
            history[row].push(id);
            if on_token(row, id).is_break() {
                ended[row] = Some(Finish::Caller);
            } else if config.stop_ids.contains(&id) {
                ended[row] = Some(Finish::Stop);
            }
        }
        if ended.iter().all(Option::is_some) || token + 1 == max_new_tokens {
            break;
        }
        // Rows that have ended go on with their last token; nobody looks at what they produce.
        let last: Vec<u32> = history.iter().map(|row| row.last().copied().unwrap_or(0)).collect();
        scores = model.step(&last, &deltas, &mut cache);
    }
    let rows = history.into_iter().zip(prompts).zip(ended);
    Ok(rows
        .map(|((ids, prompt), finish)| Generated {
            ids: ids[prompt..].to_vec(),
            finish: finish.unwrap_or(Finish::Length),
        })
        .collect())
}

fn read(scores: Tensor<2>) -> Result<Vec<f32>, GenerateError> {
    let data = scores.cast(DType::F32).try_into_data().map_err(ComputeError::from)?;
    Ok(data.try_to_vec().map_err(ComputeError::from)?)
}
