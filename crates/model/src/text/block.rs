//! One layer of the text decoder.
//!
//! Checkpoint names: `model.language_model.layers.{i}.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the stream.

use burn::prelude::*;

use super::attention::TextAttention;
use super::mlp::FeedForward;
use crate::attention::CausalMask;
use crate::cache::LayerCache;
use crate::config::TextConfig;
use crate::norm::RmsNorm;
use crate::probe::Probe;
use crate::rope::RotaryTable;
use crate::site::Site;

/// Pre-norm decoder layer. All but `glm4v_moe` also normalize each branch before the residual addition (sandwich norms).
#[derive(Module, Debug)]
pub struct TextLayer {
    /// Before the attention.
    pub input_layernorm: RmsNorm,
    /// Causal attention.
    pub self_attn: TextAttention,
    /// After the attention, before its sum with the stream.
    pub post_self_attn_layernorm: Option<RmsNorm>,
    /// Before the feed-forward, whatever its name says.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward.
    pub mlp: FeedForward,
    /// After the feed-forward, before its sum with the stream.
    pub post_mlp_layernorm: Option<RmsNorm>,
}

impl TextLayer {
    /// Builds layer `index`.
    pub(crate) fn init(config: &TextConfig, index: usize, site: &Site) -> Self {
        let norm = || RmsNorm::init(config.hidden_size, config.rms_norm_eps, &site.device);
        Self {
            input_layernorm: norm(),
            self_attn: TextAttention::init(config, site),
            post_self_attn_layernorm: config.sandwich_norms.then(norm),
            post_attention_layernorm: norm(),
            mlp: FeedForward::init(config, index, site),
            post_mlp_layernorm: config.sandwich_norms.then(norm),
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
        x + again(&self.post_self_attn_layernorm, mixed, "post_self_attn_layernorm", probe)
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
        x + again(&self.post_mlp_layernorm, fed, "post_mlp_layernorm", probe)
    }
}

/// Normalises what is added, where the layer has a norm for it.
fn again(norm: &Option<RmsNorm>, x: Tensor<3>, name: &str, probe: &mut Probe) -> Tensor<3> {
    let Some(norm) = norm else { return x };
    let x = norm.forward(x);
    probe.keep_inside(name, &x);
    x
}
