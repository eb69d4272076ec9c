//! PEFT adapters.
//!
//! An adapter directory contains `adapter_config.json` and `adapter_model.safetensors`. [`add_adapter`] adds new adapters to the
//! linear layers that a config targets, [`AdapterFolder::apply`] those of a directory, and [`save_adapter`] writes a directory
//! that PEFT loads.
//!
//! Experts: transformers 5 stacks the experts of a layer, and PEFT stacks their factors under `….mlp.experts`. With adapters on
//! both projections, `base_layer.lora_A` belongs to `gate_up_proj` and `lora_A` to `down_proj`; with one, `lora_A` belongs to that
//! one. `lora_A` is `[E · r, in]`, expert after expert; `lora_B` is `[out, r · E]`, with the expert as the fastest index.

mod apply;
mod base_model;
pub(crate) mod config;
pub(crate) mod error;
mod factors;
mod inject;
mod module_regex;
mod modules_to_save;
mod peft_names;
pub(crate) mod read;
mod targets;
mod write;

pub use config::{AdapterConfig, TargetModules};
pub use error::AdapterError;
pub use inject::add_adapter;
pub use read::AdapterFolder;
pub use write::save_adapter;
