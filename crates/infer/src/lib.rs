#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`generate`] takes a left-padded [`Batch`](glm4v_model::Batch) and [`GenerationConfig`], and returns what every
//! row produced and why it ended. [`TextStream`] turns tokens into text as they come; a [`Pipeline`] makes batches.

mod config;
mod generate;
mod pipeline;
mod rules;
mod sampling;
mod stream;

pub use config::{GenerationConfig, GenerationConfigError};
pub use generate::{Finish, GenerateError, Generated, generate};
pub use pipeline::{Embedded, Pipeline, PipelineError};
pub use rules::Rules;
pub use sampling::{Sampler, Sampling};
pub use stream::TextStream;

use glm4v_model::Sample;
use glm4v_processor::Encoded;

/// A prompt as the network takes it.
pub fn prompt_sample(encoded: Encoded) -> Sample {
    Sample::from_parts(
        encoded.input_ids,
        &encoded.mm_token_type_ids,
        encoded.loss_mask,
        (encoded.pixel_values, &encoded.image_grid_thw),
        (encoded.pixel_values_videos, &encoded.video_grid_thw),
    )
}
