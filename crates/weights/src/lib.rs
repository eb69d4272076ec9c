#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`ModelFolder::load`] builds the network from a directory, [`save_model`] writes one that transformers and this crate load
//! alike; [`ModelFolder::init`] and [`ModelFolder::convert`] write one without building a network. [`TensorFile`] and
//! [`write_tensors`] read and write single safetensors files, for optimizer state and traces.

mod adapter;
mod atomic;
mod auxiliary_files;
mod checkpoint;
mod compatibility;
mod convert;
mod diagnose;
mod dtype;
mod error;
mod export;
mod folder;
mod fp8;
mod hub;
mod layout;
mod load;
mod merge;
mod name_list;
mod names;
mod progress;
mod random;
mod save;
mod shard_index;
mod shards;
mod slices;
mod summary;
mod tensor_file;
mod weight_format;
mod write;

pub use adapter::{AdapterConfig, AdapterError, AdapterFolder, TargetModules, add_adapter, save_adapter};
pub use atomic::{AtomicDir, remove_leftovers, remove_unpublished, write_file};
pub use compatibility::ProcessorProperties;
pub use dtype::cast_floats;
pub use error::{SafetensorsError, WeightsError};
pub use export::ExportOptions;
pub use folder::ModelFolder;
pub use hub::{HubCache, HubError, RepoId, Snapshot};
pub use progress::ProgressFn;
pub use save::{save_model, save_model_sharded};
pub use shards::{ShardSize, ShardSizeError};
pub use summary::CheckpointSummary;
pub use tensor_file::TensorFile;
pub use weight_format::WeightFormat;
pub use write::write_tensors;
