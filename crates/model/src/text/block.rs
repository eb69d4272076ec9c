//! One layer of the text decoder.
//!
//! Checkpoint names: `model.language_model.layers.{i}.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the stream.

use burn::prelude::*;

use super::attention::TextAttention;
use super::mlp::TextMlp;
use crate::attention::CausalMask;
use crate::cache::LayerCache;
use crate::config::TextConfig;
use crate::norm::RmsNorm;
use crate::probe::Probe;
use crate::rope::RotaryTable;

/// Sandwich-norm layer: what attention and feed-forward add is normalised before and after.
#[derive(Module, Debug)]
pub struct TextLayer {
    /// Before the attention.
    pub input_layernorm: RmsNorm,
    /// Causal attention.
    pub self_attn: TextAttention,
    /// After the attention, before its sum with the stream.
    pub post_self_attn_layernorm: RmsNorm,
    /// Before the feed-forward, whatever its name says.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward.
    pub mlp: TextMlp,
    /// After the feed-forward, before its sum with the stream.
    pub post_mlp_layernorm: RmsNorm,
}

impl TextLayer {
    /// Builds the layer.
    pub(crate) fn init(config: &TextConfig, device: &Device) -> Self {
        let norm = || RmsNorm::init(config.hidden_size, config.rms_norm_eps, device);
        Self {
            input_layernorm: norm(),
            self_attn: TextAttention::init(config, device),
            post_self_attn_layernorm: norm(),
            post_attention_layernorm: norm(),
            mlp: TextMlp::init(config, device),
            post_mlp_layernorm: norm(),
        }
    }

    /// Transforms the stream.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    /// - rotary: `[B, S, 1, Dh]`
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        rotary: &RotaryTable<4>,
        mask: &CausalMask,
        cache: Option<&mut LayerCache>,
        probe: &mut Probe,
    ) -> Tensor<3> {
        let x = self.mix(x, rotary, mask, cache, probe);
        self.feed(x, probe)
    }

    /// The first half: attention, which looks at other positions.
    ///
    /// # Shapes
    ///
    /// As [`forward`](Self::forward).
    pub(crate) fn mix(
        &self,
        x: Tensor<3>,
        rotary: &RotaryTable<4>,
        mask: &CausalMask,
        cache: Option<&mut LayerCache>,
        probe: &mut Probe,
    ) -> Tensor<3> {
        let normal = self.input_layernorm.forward(x.clone());
        probe.keep_inside("input_layernorm", &normal);
        let mixed = self.self_attn.forward(normal, rotary, mask, cache, probe);
        probe.keep_inside("self_attn", &mixed);
        let mixed = self.post_self_attn_layernorm.forward(mixed);
        probe.keep_inside("post_self_attn_layernorm", &mixed);
        x + mixed
    }

    /// The second half: feed-forward, each position on its own.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, S, D]`
    pub(crate) fn feed(&self, x: Tensor<3>, probe: &mut Probe) -> Tensor<3> {
        let normal = self.post_attention_layernorm.forward(x.clone());
        probe.keep_inside("post_attention_layernorm", &normal);
        let fed = self.mlp.forward(normal, probe);
        probe.keep_inside("mlp", &fed);
        let fed = self.post_mlp_layernorm.forward(fed);
        probe.keep_inside("post_mlp_layernorm", &fed);
        x + fed
    }
}
