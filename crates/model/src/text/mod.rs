//! The text decoder.
//!
//! Checkpoint names: `model.language_model.*`. Source: transformers 5.23, `modeling_glm4v.py`, `Glm4vTextModel`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the stream, `V` vocabulary.

mod attention;
mod block;
mod mlp;

pub use attention::TextAttention;
pub use block::TextLayer;
pub use mlp::TextMlp;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;

use crate::attention::CausalMask;
use crate::cache::Cache;
use crate::config::{TextConfig, TextRopeConfig};
use crate::linear::empty;
use crate::norm::RmsNorm;
use crate::positions::Positions;
use crate::probe::Probe;
use crate::rope::RotaryTable;

/// Embeddings to hidden states.
#[derive(Module, Debug)]
pub struct TextModel {
    /// Token vectors.
    pub embed_tokens: TokenEmbedding,
    /// The layers.
    pub layers: Vec<TextLayer>,
    /// After the layers.
    pub norm: RmsNorm,
    /// How positions turn queries and keys.
    #[module(skip)]
    pub rope: TextRopeConfig,
}

/// The table of token vectors.
#[derive(Module, Debug)]
pub struct TokenEmbedding {
    /// `[V, D]`
    pub weight: Param<Tensor<2>>,
}

impl TokenEmbedding {
    /// Looks tokens up.
    ///
    /// # Shapes
    ///
    /// - ids: `[B · S]`, row-major
    /// - output: `[B, S, D]`
    pub fn forward(&self, ids: &[u32], [rows, width]: [usize; 2]) -> Tensor<3> {
        let weight = self.weight.val();
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, width]), &weight.device());
        burn::tensor::module::embedding(weight, ids)
    }
}

impl TextModel {
    /// Builds the decoder.
    pub(crate) fn init(config: &TextConfig, device: &Device) -> Self {
        Self {
            embed_tokens: TokenEmbedding { weight: empty([config.vocab_size, config.hidden_size], device) },
            layers: (0..config.num_hidden_layers).map(|_| TextLayer::init(config, device)).collect(),
            norm: RmsNorm::init(config.hidden_size, config.rms_norm_eps, device),
            rope: config.rope.clone(),
        }
    }

    /// Runs the layers over embeddings, after those that the cache remembers.
    ///
    /// `real` is false where a position is padding, `[B, S]` row-major.
    ///
    /// # Shapes
    ///
    /// - embeds, output: `[B, S, D]`
    pub fn forward(
        &self,
        embeds: Tensor<3>,
        positions: &Positions,
        real: &[bool],
        mut cache: Option<&mut Cache>,
        probe: &mut Probe,
    ) -> Tensor<3> {
        let [rows, width, _] = embeds.dims();
        let device = embeds.device();
        let real = match &mut cache {
            Some(cache) => cache.extend(real),
            None => real.to_vec(),
        };
        let groups = self.layers.first().map_or(1, |layer| {
            layer.self_attn.q_proj.weight.dims()[0] / layer.self_attn.k_proj.weight.dims()[0]
        });
        let tracked = embeds.is_autodiff();
        let mask = CausalMask::new(&real, [rows, real.len() / rows], width, groups, tracked, &device);
        let rotary = RotaryTable::text(&self.rope, positions, &device, embeds.dtype());
        probe.enter("text");
        probe.keep("inputs_embeds", &embeds);
        probe.keep("rotary.cos", &each_twice(&rotary.cos));
        probe.keep("rotary.sin", &each_twice(&rotary.sin));
        let mut x = embeds;
        for (index, layer) in self.layers.iter().enumerate() {
            probe.enter_block("layers", index);
            let cache = cache.as_deref_mut().map(|cache| &mut cache.layers[index]);
            x = layer.forward(x, &rotary, &mask, cache, probe);
            probe.output(&x);
            probe.leave();
        }
        let x = self.norm.forward(x);
        probe.keep("norm", &x);
        probe.leave();
        x
    }
}

/// A rotary table as the reference keeps it: one value a rotated dimension, pair after pair, `[B, S, R]`.
fn each_twice(table: &Tensor<4>) -> Tensor<3> {
    let [rows, width, _, pairs] = table.dims();
    table.clone().reshape([rows, width, pairs, 1]).expand([rows, width, pairs, 2]).reshape([
        rows,
        width,
        2 * pairs,
    ])
}
