//! One layer of the text decoder.
//!
//! Checkpoint names: `model.language_model.layers.{i}.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size.

use burn::prelude::*;

use super::attention::TextAttention;
use super::feed_forward::FeedForward;
use super::forward_context::TextForwardContext;
use crate::config::TextConfig;
use crate::device::device_spec::DeviceSpec;
use crate::nn::norm::RmsNorm;

/// Pre-norm decoder layer; with sandwich norms, each branch is normalized once more before the residual addition.
#[derive(Module, Debug)]
pub struct TextLayer {
    /// Before the attention.
    pub input_layernorm: RmsNorm,
    /// Causal self-attention.
    pub self_attn: TextAttention,
    /// After the attention, before the residual addition.
    pub post_self_attn_layernorm: Option<RmsNorm>,
    /// Before the feed-forward: the name is the checkpoint's.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward, dense or with experts.
    pub mlp: FeedForward,
    /// After the feed-forward, before the residual addition.
    pub post_mlp_layernorm: Option<RmsNorm>,
}

impl TextLayer {
    /// Builds layer `index` with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &TextConfig, index: usize, device_spec: &DeviceSpec) -> Self {
        let norm = || RmsNorm::init(config.hidden_size, config.rms_norm_eps, &device_spec.device);
        Self {
            input_layernorm: norm(),
            self_attn: TextAttention::init(config, device_spec),
            post_self_attn_layernorm: config.sandwich_norms.then(norm),
            post_attention_layernorm: norm(),
            mlp: FeedForward::init(config, index, device_spec),
            post_mlp_layernorm: config.sandwich_norms.then(norm),
        }
    }

    /// Transforms the residual stream.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    pub fn forward(&self, x: Tensor<3>, pass: &mut TextForwardContext<'_>) -> Tensor<3> {
        let x = self.attention_sublayer(x, pass);
        self.mlp_sublayer(x, pass)
    }

    /// The attention branch and its residual addition: the half in which positions see each other.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    pub(super) fn attention_sublayer(&self, x: Tensor<3>, pass: &mut TextForwardContext<'_>) -> Tensor<3> {
        let branch = pass.record("input_layernorm", self.input_layernorm.forward(x.clone()));
        let branch = pass.child("self_attn", |pass| self.self_attn.forward(branch, pass));
        match &self.post_self_attn_layernorm {
            Some(norm) => x + pass.record("post_self_attn_layernorm", norm.forward(branch)),
            None => x + branch,
        }
    }

    /// The feed-forward branch and its residual addition: each position on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    pub(super) fn mlp_sublayer(&self, x: Tensor<3>, pass: &mut TextForwardContext<'_>) -> Tensor<3> {
        let branch =
            pass.record("post_attention_layernorm", self.post_attention_layernorm.forward(x.clone()));
        let branch = pass.child("mlp", |pass| self.mlp.forward(branch, pass));
        match &self.post_mlp_layernorm {
            Some(norm) => x + pass.record("post_mlp_layernorm", norm.forward(branch)),
            None => x + branch,
        }
    }
}
