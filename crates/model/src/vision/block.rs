//! One block of the vision tower.
//!
//! Checkpoint names: `model.visual.blocks.{i}.*`.
//!
//! Dimensions: `P` patches, `D` width of the stream, `F` width inside the gate.

use burn::prelude::*;
use burn::tensor::activation::silu;

use super::attention::{FrameRun, VisionAttention};
use crate::config::VisionConfig;
use crate::linear::{Linear, LinearConfig};
use crate::norm::RmsNorm;
use crate::probe::Probe;
use crate::rope::RotaryTable;

/// Pre-norm block: attention within frames, then a gated feed-forward.
#[derive(Module, Debug)]
pub struct VisionBlock {
    /// Before the attention.
    pub norm1: RmsNorm,
    /// Attention within frames.
    pub attn: VisionAttention,
    /// Before the feed-forward.
    pub norm2: RmsNorm,
    /// Feed-forward.
    pub mlp: VisionMlp,
}

/// SwiGLU feed-forward: `down_proj(silu(gate_proj(x)) · up_proj(x))`.
#[derive(Module, Debug)]
pub struct VisionMlp {
    /// `D -> F`
    pub gate_proj: Linear,
    /// `D -> F`
    pub up_proj: Linear,
    /// `F -> D`
    pub down_proj: Linear,
}

impl VisionBlock {
    /// Builds the block.
    pub(crate) fn init(config: &VisionConfig, device: &Device) -> Self {
        let norm = || RmsNorm::init(config.hidden_size, config.rms_norm_eps, device);
        Self {
            norm1: norm(),
            attn: VisionAttention::init(config, device),
            norm2: norm(),
            // The gate is as wide as the tower's output, not `intermediate_size`: modeling_glm4v.py, Glm4VisionMlp.
            mlp: VisionMlp::init(config.hidden_size, config.out_hidden_size, device),
        }
    }

    /// Transforms the stream.
    ///
    /// # Shapes
    ///
    /// - x, output: `[P, D]`
    /// - rotary: `[P, 1, Dh]`
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        rotary: &RotaryTable<3>,
        runs: &[FrameRun],
        probe: &mut Probe,
    ) -> Tensor<2> {
        let normal = self.norm1.forward(x.clone());
        probe.keep_inside("norm1", &normal);
        let mixed = self.attn.forward(normal, rotary, runs, probe);
        probe.keep_inside("attn", &mixed);
        let x = x + mixed;
        let normal = self.norm2.forward(x.clone());
        probe.keep_inside("norm2", &normal);
        let fed = self.mlp.forward(normal, probe);
        probe.keep_inside("mlp", &fed);
        x + fed
    }
}

impl VisionMlp {
    fn init(width: usize, inner: usize, device: &Device) -> Self {
        Self {
            gate_proj: LinearConfig::new(width, inner).init(device),
            up_proj: LinearConfig::new(width, inner).init(device),
            down_proj: LinearConfig::new(inner, width).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>, probe: &mut Probe) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone()); // [P, F]
        probe.keep_inside("mlp.gate_proj", &gate);
        let up = self.up_proj.forward(x);
        probe.keep_inside("mlp.up_proj", &up);
        let out = self.down_proj.forward(silu(gate) * up);
        probe.keep_inside("mlp.down_proj", &out);
        out
    }
}
