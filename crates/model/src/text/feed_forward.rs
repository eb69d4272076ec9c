//! Feed-forward of a decoder layer.
//!
//! Checkpoint names: `model.language_model.layers.{i}.mlp.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size.

use burn::prelude::*;

use super::experts::Experts;
use super::forward_context::TextForwardContext;
use crate::config::TextConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::mlp::{GateUpMlp, GatedMlp};

/// The feed-forward of one layer, in the form that its checkpoint has.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few dozen of them, next to weights of megabytes; a module cannot be boxed"
)]
pub enum FeedForward {
    /// Gate and up projection in one: `glm4v`, `glm_ocr`.
    GateUp(GateUpMlp),
    /// Gate and up projection apart: the first layers of `glm4v_moe`.
    Gated(GatedMlp),
    /// Mixture of experts: the other layers of `glm4v_moe`.
    Experts(Experts),
}

impl FeedForward {
    /// Builds the feed-forward of layer `index` with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &TextConfig, index: usize, device_spec: &DeviceSpec) -> Self {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        match &config.moe {
            Some(moe) if config.has_experts(index) => Self::Experts(Experts::init(hidden, moe, device_spec)),
            _ if config.fused_gate_up => Self::GateUp(GateUpMlp::init(hidden, intermediate, device_spec)),
            _ => Self::Gated(GatedMlp::init(hidden, intermediate, false, device_spec)),
        }
    }

    /// Transforms every position on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    pub fn forward(&self, x: Tensor<3>, pass: &mut TextForwardContext<'_>) -> Tensor<3> {
        match self {
            Self::GateUp(mlp) => mlp.forward(x, pass),
            Self::Gated(mlp) => mlp.forward(x, pass),
            Self::Experts(experts) => experts.forward(x, pass),
        }
    }
}
