#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! - A [`Registry`] finds a dataset by name; its [`Source`] reads [`Record`]s, and refuses with file and
//!   line what would otherwise be learned wrong in silence.
//! - A [`Dataset`] joins records with the processor of a model. [`segments`] says which words are taught.
//! - A [`Sampler`] says which records make up which batch, and [`Prefetch`] has the batches ready in time.
//!
//! Records come in the two forms that `datasets/README.md` shows: OpenAI `messages`, and sharegpt
//! `conversations` with `<image>` in the text.

mod cache;
mod dataset;
mod eval;
mod fingerprint;
#[cfg(test)]
mod fixture;
mod labels;
mod layout;
mod location;
mod media;
mod prefetch;
mod reader;
mod record;
mod registry;
mod sample;
mod sampler;
mod shuffle;
mod suggest;

pub use dataset::{Collated, Dataset, DatasetOptions, Overlong};
pub use eval::EvalItem;
pub use fingerprint::fingerprint;
pub use labels::{LabelError, segments};
pub use layout::{Columns, Formatting, Layout, Tags};
pub use location::Location;
pub use media::MediaCount;
pub use prefetch::{LoadError, LoadedBatch, Prefetch};
pub use reader::{ReadError, RecordReader, read_records};
pub use record::{Record, RecordError};
pub use registry::{REGISTRY_FILE, Registry, RegistryError, Source};
pub use sample::{SampleError, encode};
pub use sampler::{Order, Sampler, SamplerError, SamplerState};
