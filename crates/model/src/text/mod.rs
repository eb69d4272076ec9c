//! The text decoder.
//!
//! Checkpoint names: `model.language_model.*`. Source: transformers 5.23, `modeling_glm4v.py`, `Glm4vTextModel`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the stream, `V` vocabulary.

mod attention;
mod block;
mod experts;
mod mlp;

pub use attention::TextAttention;
pub use block::TextLayer;
pub use experts::{Experts, Router, load_balancing_loss};
pub use mlp::{FeedForward, FusedMlp};

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::attention::CausalMask;
use crate::cache::Cache;
use crate::config::{TextConfig, TextRopeConfig};
use crate::matrix::Matrix;
use crate::norm::RmsNorm;
use crate::positions::Positions;
use crate::probe::Probe;
use crate::rope::{RotaryTable, unsigned_sines};
use crate::site::Site;

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
    pub weight: Matrix,
}

impl TokenEmbedding {
    /// Looks tokens up.
    ///
    /// # Shapes
    ///
    /// - ids: `[B · S]`, row-major
    /// - output: `[B, S, D]`
    pub fn forward(&self, ids: &[u32], [rows, width]: [usize; 2]) -> Tensor<3> {
        let found = self.weight.rows(ids);
        let size = found.dims()[1];
        found.reshape([rows, width, size])
    }
}

impl TextModel {
    /// Builds the decoder.
    pub(crate) fn init(config: &TextConfig, site: &Site) -> Self {
        Self {
            embed_tokens: TokenEmbedding {
                weight: Matrix::init([config.vocab_size, config.hidden_size], site),
            },
            layers: (0..config.num_hidden_layers).map(|index| TextLayer::init(config, index, site)).collect(),
            norm: RmsNorm::init(config.hidden_size, config.rms_norm_eps, &site.device),
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
        cache: Option<&mut Cache>,
        probe: &mut Probe,
    ) -> Tensor<3> {
        self.run(embeds, positions, real, None, cache, probe)
    }

    /// As [`forward`](Self::forward), but gives the hidden states of chosen positions alone, and leaves out whatever
    /// only the others would need: the second half of the last layer, and the last norm.
    ///
    /// `slots` are indices into the `[B, S]` positions, row-major.
    ///
    /// # Shapes
    ///
    /// - embeds: `[B, S, D]`
    /// - output: `[N, D]`, one row a slot
    pub fn forward_at(
        &self,
        embeds: Tensor<3>,
        positions: &Positions,
        real: &[bool],
        slots: &[usize],
        cache: Option<&mut Cache>,
        probe: &mut Probe,
    ) -> Tensor<2> {
        self.run(embeds, positions, real, Some(slots), cache, probe).squeeze_dim(0)
    }

    fn run(
        &self,
        embeds: Tensor<3>,
        positions: &Positions,
        real: &[bool],
        slots: Option<&[usize]>,
        mut cache: Option<&mut Cache>,
        probe: &mut Probe,
    ) -> Tensor<3> {
        let [rows, width, _] = embeds.dims();
        let device = embeds.device();
        let real = match &mut cache {
            Some(cache) => cache.extend(real),
            None => real.to_vec(),
        };
        let first = &self.layers.first().expect("a config has at least one layer").self_attn;
        let head_dim = first.head_dim;
        let tracked = embeds.is_autodiff();
        let mask = CausalMask::new(&real, [rows, real.len() / rows], width, tracked, &device);
        let rotary = RotaryTable::text(&self.rope, head_dim, positions, &device, embeds.dtype());
        probe.enter("text");
        probe.keep("inputs_embeds", &embeds);
        if probe.is_on() {
            let cosines = rotary.cos.clone().squeeze_dim::<3>(2).narrow(2, 0, self.rope.rotary_dim); // [B, S, R]
            probe.keep("rotary.cos", &cosines);
            probe.keep("rotary.sin", &unsigned_sines(&rotary, &self.rope));
        }
        let mut x = embeds;
        for (index, layer) in self.layers.iter().enumerate() {
            probe.enter_block("layers", index);
            let cache = cache.as_deref_mut().map(|cache| &mut cache.layers[index]);
            x = match slots {
                Some(slots) if index + 1 == self.layers.len() => {
                    let mixed = layer.mix(x, &rotary, &mask, cache, probe);
                    layer.feed(pick(mixed, slots), probe)
                }
                _ => layer.forward(x, &rotary, &mask, cache, probe),
            };
            probe.output(&x);
            probe.leave();
        }
        let x = self.norm.forward(x);
        probe.keep("norm", &x);
        probe.leave();
        x
    }
}

/// The states of chosen positions, as one row: `[B, S, D]` to `[1, N, D]`.
fn pick(states: Tensor<3>, slots: &[usize]) -> Tensor<3> {
    let [rows, width, size] = states.dims();
    let index: Vec<i32> = slots.iter().map(|slot| *slot as i32).collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(index, [slots.len()]), &states.device());
    states.reshape([1, rows * width, size]).select(1, index)
}
