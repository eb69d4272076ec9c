//! Attention of the vision tower: within a frame, every patch looks at every other.
//!
//! Checkpoint names: `model.visual.blocks.{i}.attn.*`.
//!
//! Dimensions: `P` patches of all frames, `N` patches of one frame, `H` heads, `Dh` head dimension, `D = H · Dh`.

use burn::prelude::*;

use super::forward_context::{FrameGroup, VisionForwardContext};
use crate::config::VisionConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::attention::bidirectional_attention;
use crate::nn::linear::{Linear, LinearConfig};
use crate::nn::norm::RmsNorm;
use crate::nn::rope::apply_vision_rotary;

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
        // One rotation for queries and keys: they share the table.
        let rotated = apply_vision_rotary(self.queries_and_keys(&qkv), &pass.shared.rotary); // [P, 2H, Dh]
        let values = qkv.narrow(1, 2 * heads, heads); // [P, H, Dh]
        let mut first = 0;
        let mut outputs = Vec::with_capacity(pass.shared.frames.len());
        for group in &pass.shared.frames {
            let q = group.heads(rotated.clone(), first, [0, heads]); // [frames, H, N, Dh]
            let k = group.heads(rotated.clone(), first, [heads, heads]);
            let v = group.heads(values.clone(), first, [0, heads]);
            let attended = bidirectional_attention(q, k, v);
            outputs.push(attended.swap_dims(1, 2).reshape([group.patches(), hidden]));
            first += group.patches();
        }
        pass.record("proj", self.proj.forward(Tensor::cat(outputs, 0)))
    }

    /// Queries and keys side by side, normalized where the layer has norms for them.
    ///
    /// # Shapes
    ///
    /// - qkv: `[P, 3H, Dh]`
    /// - output: `[P, 2H, Dh]`
    fn queries_and_keys(&self, qkv: &Tensor<3>) -> Tensor<3> {
        let heads = self.num_heads;
        let both = qkv.clone().narrow(1, 0, 2 * heads);
        match (&self.q_norm, &self.k_norm) {
            (Some(q_norm), Some(k_norm)) => {
                let q = q_norm.forward(both.clone().narrow(1, 0, heads));
                let k = k_norm.forward(both.narrow(1, heads, heads));
                Tensor::cat(vec![q, k], 1)
            }
            _ => both,
        }
    }
}

impl FrameGroup {
    /// Heads `first_head` to `first_head + heads` of this group's frames, which begin at patch `first`.
    ///
    /// # Shapes
    ///
    /// - x: `[P, _, Dh]`
    /// - output: `[frames, heads, N, Dh]`
    fn heads(&self, x: Tensor<3>, first: usize, [first_head, heads]: [usize; 2]) -> Tensor<4> {
        let head_dim = x.dims()[2];
        x.narrow(0, first, self.patches())
            .narrow(1, first_head, heads)
            .reshape([self.frames, self.patches_per_frame, heads, head_dim])
            .swap_dims(1, 2)
    }
}
