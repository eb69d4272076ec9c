#![cfg_attr(feature = "cpu", doc = include_str!("../README.md"))]
//!
//! # Where to start
//!
//! [`Glm4vConfig`] → [`Glm4v`]; [`Sample`]s → [`Batch`] → [`Glm4v::forward`]. The fields of the modules are named as the
//! published checkpoints name their tensors, and have their shapes. No files are read here but the text of `config.json`,
//! and no tokenizer is known.

mod causal_lm;
mod config;
mod device;
mod glm4v;
mod multimodal;
pub mod nn;
mod params;
pub mod text;
pub mod vision;

pub use causal_lm::CausalLm;
pub use config::{
    Architecture, ConfigError, Glm4vConfig, MoeConfig, OneOrMany, RotaryLayout, TextConfig, TextRopeConfig,
    VisionConfig,
};
#[cfg(feature = "kernel-cache")]
pub use device::kernel_cache;
pub use device::{Backend, ComputeError, DeviceError, DeviceFault, DeviceSpec, Precision, fault, is_cpu};
pub use glm4v::{Glm4v, Glm4vModel};
pub use glm4v_inputs::{Batch, Grid, Labels, Modality, MultimodalInputs, PaddingSide, Patches, Sample};
pub use multimodal::{ModelInputError, MultimodalEmbeddings, merge_multimodal_embeddings};
pub use nn::{
    ActivationRecorder, ForwardContext, Linear, LinearConfig, Lora, LoraLayerConfig, PositionError,
    PositionIds, RotaryTable, WeightMatrix, copy_tensor_data,
};
pub use params::{
    ExpertParamName, ModelPart, NamedMapper, NamedVisitor, ParamCounts, ParamInfo, ParamInit, ParamName,
    initialize, initialize_lora, map_named, param_infos, visit_named,
};
pub use text::{DecoderInput, DecoderOptions, DecoderOutput, KvCache};
