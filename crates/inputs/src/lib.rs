#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! A [`Sample`] is one sequence: ids, which of them carry loss, and the [`MultimodalInputs`] that fills its placeholders. A [`Batch`] is
//! several of them, padded ([`Batch::collate`]) or packed ([`Batch::pack`]). Names are those of transformers' processors
//! (`input_ids`, `mm_token_type_ids`, `image_grid_thw`, `pixel_values`) where they have one. [`SplitMix64`] is the random generator of all
//! crates.

mod batch;
mod grid;
mod media;
mod random;
mod sample;

pub use batch::{Batch, Labels, PaddingSide};
pub use grid::Grid;
pub use media::{Modality, MultimodalInputs, Patches};
pub use random::SplitMix64;
pub use sample::Sample;
