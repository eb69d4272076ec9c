//! One block of the vision tower.
//!
//! Checkpoint names: `model.visual.blocks.{i}.*`.
//!
//! Dimensions: `P` patches, `D` hidden size.

use burn::prelude::*;

use super::attention::VisionAttention;
use super::forward_context::VisionForwardContext;
use crate::config::VisionConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::mlp::GatedMlp;
use crate::nn::norm::RmsNorm;

/// Pre-norm transformer block: attention within frames, then a gated feed-forward.
#[derive(Module, Debug)]
pub struct VisionBlock {
    /// Before the attention.
    pub norm1: RmsNorm,
    /// Attention within frames.
    pub attn: VisionAttention,
    /// Before the feed-forward.
    pub norm2: RmsNorm,
    /// Feed-forward.
    pub mlp: GatedMlp,
}

impl VisionBlock {
    /// Builds the block with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &VisionConfig, device_spec: &DeviceSpec) -> Self {
        let hidden = config.hidden_size;
        let norm = || RmsNorm::init(hidden, config.rms_norm_eps, &device_spec.device);
        Self {
            norm1: norm(),
            attn: VisionAttention::init(config, device_spec),
            norm2: norm(),
            mlp: GatedMlp::init(hidden, config.block_intermediate_size, config.block_bias, device_spec),
        }
    }

    /// Transforms the residual stream.
    ///
    /// # Shapes
    ///
    /// - x, output: `[P, D]`
    pub fn forward(&self, x: Tensor<2>, pass: &mut VisionForwardContext<'_>) -> Tensor<2> {
        let branch = pass.record("norm1", self.norm1.forward(x.clone()));
        let x = x + pass.child("attn", |pass| self.attn.forward(branch, pass));
        let branch = pass.record("norm2", self.norm2.forward(x.clone()));
        x + pass.child("mlp", |pass| self.mlp.forward(branch, pass))
    }
}
