//! Attention of the text decoder: grouped queries, rotary positions, causal.
//!
//! Checkpoint names: `model.language_model.layers.{i}.self_attn.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size, `H` query heads, `Hk` key heads, `Dh` head dimension.

use burn::prelude::*;

use super::forward_context::TextForwardContext;
use crate::config::{TextConfig, TextRopeConfig};
use crate::device::device_spec::DeviceSpec;
use crate::nn::attention::{causal_attention, causal_attention_with_weights};
use crate::nn::linear::{Linear, LinearConfig};
use crate::nn::norm::RmsNorm;
use crate::nn::rope::apply_text_rotary;

/// Causal self-attention.
#[derive(Module, Debug)]
pub struct TextAttention {
    /// `D -> H · Dh`
    pub q_proj: Linear,
    /// `D -> Hk · Dh`
    pub k_proj: Linear,
    /// `D -> Hk · Dh`
    pub v_proj: Linear,
    /// `H · Dh -> D`
    pub o_proj: Linear,
    /// Over each head's queries, before the rotation; none in GLM-4V.
    pub q_norm: Option<RmsNorm>,
    /// Over each head's keys, before the rotation; none in GLM-4V.
    pub k_norm: Option<RmsNorm>,
    /// `H`
    pub num_heads: usize,
    /// `Hk`
    pub num_key_value_heads: usize,
    /// `Dh`
    pub head_dim: usize,
    /// Layout of the rotated pairs.
    #[module(skip)]
    pub rope: TextRopeConfig,
}

impl TextAttention {
    /// Builds the layer with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &TextConfig, device_spec: &DeviceSpec) -> Self {
        let (heads, key_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let input = |heads| {
            let linear = LinearConfig::new(config.hidden_size, heads * config.head_dim);
            linear.with_bias(config.attention_bias).init(device_spec)
        };
        let norm = || RmsNorm::init(config.head_dim, config.rms_norm_eps, &device_spec.device);
        Self {
            q_proj: input(heads),
            k_proj: input(key_heads),
            v_proj: input(key_heads),
            o_proj: LinearConfig::new(heads * config.head_dim, config.hidden_size)
                .with_bias(config.o_proj_bias)
                .init(device_spec),
            q_norm: config.qk_norm.then(norm),
            k_norm: config.qk_norm.then(norm),
            num_heads: heads,
            num_key_value_heads: key_heads,
            head_dim: config.head_dim,
            rope: config.rope.clone(),
        }
    }

    /// Attends to the positions before each position, and to those in the cache.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    pub fn forward(&self, x: Tensor<3>, pass: &mut TextForwardContext<'_>) -> Tensor<3> {
        let [rows, length, _] = x.dims();
        let q = pass.record("q_proj", self.q_proj.forward(x.clone())); // [B, S, H·Dh]
        let k = pass.record("k_proj", self.k_proj.forward(x.clone())); // [B, S, Hk·Dh]
        let v = pass.record("v_proj", self.v_proj.forward(x));
        let q = self.rotated(q, self.num_heads, &self.q_norm, pass); // [B, H, S, Dh]
        let k = self.rotated(k, self.num_key_value_heads, &self.k_norm, pass); // [B, Hk, S, Dh]
        let v = v.reshape([rows, length, self.num_key_value_heads, self.head_dim]).swap_dims(1, 2);
        // Keys are cached after their rotation: a position never changes, so no step rotates it again.
        let layer = pass.shared.layer;
        let (k, v) = match &mut pass.shared.cache {
            Some(cache) => cache.append(layer, k, v), // [B, Hk, T, Dh]
            None => (k, v),
        };
        let attended = attend(q, k, v, pass).swap_dims(1, 2); // [B, S, H, Dh]
        let attended = attended.reshape([rows, length, self.num_heads * self.head_dim]);
        pass.record("o_proj", self.o_proj.forward(attended))
    }

    /// Splits a projection into heads, normalizes them where the layer has a norm, and rotates them.
    ///
    /// # Shapes
    ///
    /// - x: `[B, S, heads · Dh]`
    /// - output: `[B, heads, S, Dh]`
    fn rotated(
        &self,
        x: Tensor<3>,
        heads: usize,
        norm: &Option<RmsNorm>,
        pass: &TextForwardContext<'_>,
    ) -> Tensor<4> {
        let [rows, length, _] = x.dims();
        let x = x.reshape([rows, length, heads, self.head_dim]);
        let x = match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        // Rotated before the swap: the projection is contiguous as [B, S, heads, Dh], so that pairs are taken by reshape, without a copy.
        apply_text_rotary(x, &pass.shared.rotary, &self.rope).swap_dims(1, 2)
    }
}

/// Attention with the mask of the pass; its weights go to the recorder that asks for them.
fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, pass: &mut TextForwardContext<'_>) -> Tensor<4> {
    if !pass.output_attentions() {
        return causal_attention(q, k, v, &pass.shared.mask);
    }
    let (output, weights) = causal_attention_with_weights(q, k, v, &pass.shared.mask);
    pass.if_recording(|_, recorder| recorder.record_attentions(&weights));
    output
}
