#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! - A [`DatasetRegistry`] finds a dataset by name. Its [`DatasetSource`] reads [`Record`]s, and refuses with file and line those that would
//!   train the model on something else than they seem to.
//! - A [`Dataset`] encodes records with the processor of a model; [`label_spans`] finds the text that carries loss.
//! - A [`BatchSampler`] draws the records of each batch, and a [`DataLoader`] encodes batches ahead of time.
//!
//! Styles of records, with examples in `datasets/README.md`: OpenAI `messages`, sharegpt `conversations` with `<image>` in the text,
//! and prompts with responses (alpaca and others).

mod audit;
mod cache;
mod check;
mod data_loader;
mod dataset;
mod eval;
mod fit;
#[cfg(test)]
mod fixture;
mod labels;
mod length_groups;
mod location;
mod mixture;
mod names;
mod options;
mod outcomes;
mod packing;
mod pixel_cache;
mod proof;
mod reader;
mod record;
mod records;
mod registry;
mod sample;
mod sampler;
mod schema;
mod shuffle;
mod unsupported_file;
mod view;

pub use audit::{Audit, AuditReport, Bucket, CommonAnswer, Histogram, LongRecords, SameRecords};
pub use check::{BadRecordError, BadRecordsError};
pub use data_loader::{DataLoader, DataLoaderBatch, DataLoaderError, DataLoaderOptions};
pub use dataset::{CollatedBatch, Dataset, DatasetError};
pub use eval::EvalExample;
pub use labels::{LabelError, label_spans};
pub use location::{RecordLocation, RecordPosition};
pub use mixture::{Mixture, Share};
pub use options::{BadRecordPolicy, DatasetOptions, LabelOptions, LengthPolicy, LossPolicy, TruncateFrom};
pub use outcomes::RecordCounts;
pub use pixel_cache::{PixelCache, PixelCacheCounts, PixelCacheError};
pub use proof::ProofError;
#[cfg(feature = "parquet")]
pub use reader::TableError;
pub use reader::{ReadError, ShardError};
pub use record::{KeyLocation, MediaListMismatch, Record, RecordError};
pub use records::Records;
pub use registry::{DatasetRegistry, DatasetRegistryError, DatasetSource, REGISTRY_FILE};
pub use sample::{SampleError, encode};
pub use sampler::{BatchSampler, BatchSamplerError, BatchSamplerState, Order};
pub use schema::{Columns, Formatting, RecordSchema, Tags};
pub use unsupported_file::UnsupportedFile;
pub use view::{MediaView, Piece, RecordView};
