#![cfg_attr(feature = "cpu", doc = include_str!("../README.md"))]
//!
//! # Where to start
//!
//! [`Glm4vConfig`] → [`Glm4v`]; [`Sample`]s → [`Batch`] → [`Glm4v::forward`]. The fields of the modules are named as the
//! published checkpoints name their tensors, and have their shapes. No files are read here but the text of `config.json`,
//! and no tokenizer is known.

mod attention;
mod batch;
mod cache;
mod config;
mod device;
mod fusion;
mod glm4v;
mod init;
mod linear;
mod linears;
mod lora;
mod matrix;
mod memory;
mod mlp;
mod named;
mod norm;
mod positions;
mod probe;
mod rope;
mod site;
mod size;
pub mod text;
pub mod vision;

pub use batch::{Batch, Grid, PaddingSide, Patches, Sample, TokenKind};
pub use cache::Cache;
pub use config::{
    Architecture, ConfigError, Glm4vConfig, MoeConfig, RotaryPairs, TextConfig, TextRopeConfig, VisionConfig,
};
pub use device::{Backend, ComputeError, DeviceError, Precision, is_cpu};
pub use fusion::{Features, FusionError, fuse};
pub use glm4v::{Glm4v, Glm4vModel, TextInput};
pub use init::{Fresh, initialize, initialize_lora};
pub use linear::{Linear, LinearConfig};
pub use lora::{Lora, LoraConfig};
pub use matrix::Matrix;
pub use memory::{Estimate, Learning, Memory, Workload};
pub use mlp::GatedMlp;
pub use named::{NamedMapper, NamedVisitor, map_named, visit_named};
pub use norm::{LayerNorm, RmsNorm};
pub use positions::{PositionError, Positions};
pub use probe::{Probe, owned};
pub use rope::RotaryTable;
pub use site::Site;
pub use size::Sizes;
