#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`generate`] takes a left-padded [`Batch`](glm4v_model::Batch) and [`GenerationConfig`], and returns what every
//! row produced and why it ended. [`TextStreamer`] turns tokens into text as they come; a [`MultimodalEmbedder`] makes batches.

mod config;
mod embedder;
mod generate;
mod logits_processors;
mod sampling;
mod stop_strings;
mod stream;

pub use config::{GenerationConfig, GenerationConfigError};
pub use embedder::{EmbedError, EmbeddedBatch, MultimodalEmbedder};
pub use generate::{FinishReason, GenerateError, GeneratedTokens, generate};
pub use logits_processors::LogitsProcessors;
pub use sampling::{SamplingParams, TokenSampler};
pub use stop_strings::StopStrings;
pub use stream::TextStreamer;
