#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! - A [`Registry`] finds a dataset by name; its [`Source`] reads [`Record`]s, and refuses with file and
//!   line what would otherwise be learned wrong in silence.
//! - A [`Dataset`] joins records with the processor of a model. [`segments`] says which words carry loss.
//! - A [`Sampler`] says which records make up which batch, and [`Prefetch`] has the batches ready in time.
//!
//! Records come in the forms that `datasets/README.md` shows: OpenAI `messages`, sharegpt `conversations` with
//! `<image>` in the text, and questions with answers (alpaca and others).

mod cache;
mod check;
mod dataset;
mod eval;
mod file_kind;
mod fingerprint;
#[cfg(test)]
mod fixture;
mod forms;
mod keys;
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
mod turn;

pub use check::{BadRecord, BadRecords};
pub use dataset::{Collated, Dataset, DatasetError, DatasetOptions, OnBad, Overlong};
pub use eval::EvalItem;
pub use file_kind::FileKind;
pub use fingerprint::fingerprint;
pub use keys::Place;
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
