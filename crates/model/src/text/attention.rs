//! Attention of the text decoder: grouped queries, rotary positions, causal.
//!
//! Checkpoint names: `model.language_model.layers.{i}.self_attn.*`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the stream, `H` query heads, `Hk` key heads, `Dh` width of
//! a head.

use burn::prelude::*;

use crate::attention::{CausalMask, attend_causal};
use crate::cache::LayerCache;
use crate::config::{TextConfig, TextRopeConfig};
use crate::linear::{Linear, LinearConfig};
use crate::probe::Probe;
use crate::rope::{RotaryTable, rotate_text};
use crate::site::Site;

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
    /// `Dh`
    pub head_dim: usize,
    /// How positions turn queries and keys.
    #[module(skip)]
    pub rope: TextRopeConfig,
}

impl TextAttention {
    /// Builds the layer.
    pub(crate) fn init(config: &TextConfig, site: &Site) -> Self {
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let bias = config.attention_bias;
        let inward = |d_output| LinearConfig::new(config.hidden_size, d_output).with_bias(bias).init(site);
        Self {
            q_proj: inward(queries),
            k_proj: inward(keys),
            v_proj: inward(keys),
            o_proj: LinearConfig::new(queries, config.hidden_size).init(site),
            head_dim: config.head_dim,
            rope: config.rope.clone(),
        }
    }

    /// Mixes every position with those before it, and with those in the cache.
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
        let [rows, width, _] = x.dims();
        let q = self.q_proj.forward(x.clone()); // [B, S, H·Dh]
        let k = self.k_proj.forward(x.clone()); // [B, S, Hk·Dh]
        let v = self.v_proj.forward(x);
        probe.keep_inside("self_attn.q_proj", &q);
        probe.keep_inside("self_attn.k_proj", &k);
        probe.keep_inside("self_attn.v_proj", &v);
        let heads = |x: Tensor<3>| {
            let count = x.dims()[2] / self.head_dim;
            x.reshape([rows, width, count, self.head_dim])
        };
        let q = rotate_text(heads(q), rotary, &self.rope).swap_dims(1, 2); // [B, H, S, Dh]
        let k = rotate_text(heads(k), rotary, &self.rope).swap_dims(1, 2); // [B, Hk, S, Dh]
        let v = heads(v).swap_dims(1, 2);
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v),
        };
        let mixed = attend_causal(q, k, v, mask).swap_dims(1, 2); // [B, S, H, Dh]
        let queries = self.o_proj.weight.dims()[1];
        let out = self.o_proj.forward(mixed.reshape([rows, width, queries]));
        probe.keep_inside("self_attn.o_proj", &out);
        out
    }
}
