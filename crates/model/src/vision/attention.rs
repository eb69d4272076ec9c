//! Attention of the vision tower: within a frame, every patch looks at every other.
//!
//! Checkpoint names: `model.visual.blocks.{i}.attn.*`.
//!
//! Dimensions: `P` patches of all frames, `N` patches of one frame, `H` heads, `Dh` head dimension, `D = H · Dh`.

use burn::prelude::*;
use glm4v_kernels::{self as kernels, RotaryPairs};

use super::forward_context::VisionForwardContext;
use crate::config::VisionConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::linear::{Linear, LinearConfig};
use crate::nn::norm::RmsNorm;

/// Self-attention within frames.
#[derive(Module, Debug)]
pub struct VisionAttention {
    /// `D -> 3D`: queries, keys, values.
    pub qkv: Linear,
    /// `D -> D`
    pub proj: Linear,
    /// Over each head's queries.
    pub q_norm: Option<RmsNorm>,
    /// Over each head's keys.
    pub k_norm: Option<RmsNorm>,
    /// `H`
    pub num_heads: usize,
}

impl VisionAttention {
    /// Builds the layer with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &VisionConfig, device_spec: &DeviceSpec) -> Self {
        let hidden = config.hidden_size;
        let norm = || RmsNorm::init(hidden / config.num_heads, config.rms_norm_eps, &device_spec.device);
        Self {
            qkv: LinearConfig::new(hidden, 3 * hidden).with_bias(config.qkv_bias).init(device_spec),
            proj: LinearConfig::new(hidden, hidden).with_bias(config.block_bias).init(device_spec),
            q_norm: config.qk_norm.then(norm),
            k_norm: config.qk_norm.then(norm),
            num_heads: config.num_heads,
        }
    }

    /// Attends to all patches of the same frame.
    ///
    /// # Shapes
    ///
    /// - x, output: `[P, D]`
    pub fn forward(&self, x: Tensor<2>, pass: &mut VisionForwardContext<'_>) -> Tensor<2> {
        let [patches, hidden] = x.dims();
        let heads = self.num_heads;
        let head_dim = hidden / heads;
        let qkv = pass.record("qkv", self.qkv.forward(x)); // [P, 3D]
        let qkv = qkv.reshape([patches, 3 * heads, head_dim]); // queries, keys, values
        let table = &pass.shared.rotary;
        let tables = [table.cos.clone(), table.sin.clone()];
        let pairs = RotaryPairs { distance: head_dim / 2, rotary_dim: head_dim };
        let qkv = self.normalized(qkv);
        let attended = kernels::packed_attention(qkv, tables, pairs, &pass.shared.frame_lengths); // [P, D]
        pass.record("proj", self.proj.forward(attended))
    }

    /// Queries, keys and values, the first two normalized where the layer has norms for them.
    ///
    /// # Shapes
    ///
    /// - qkv, output: `[P, 3H, Dh]`
    fn normalized(&self, qkv: Tensor<3>) -> Tensor<3> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else {
            return qkv;
        };
        let heads = self.num_heads;
        let part = |index: usize| qkv.clone().narrow(1, index * heads, heads);
        Tensor::cat(vec![q_norm.forward(part(0)), k_norm.forward(part(1)), part(2)], 1)
    }
}
