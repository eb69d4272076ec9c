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
            let rotated = |table: Tensor<3>| table.narrow(2, 0, self.rope.rotary_dim); // [B, S, R]
            probe.keep("rotary.cos", &rotated(rotary.cos.clone().squeeze_dim(2)));
            probe.keep("rotary.sin", &rotated(unsigned_sines(&rotary.sin)));
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

/// The sines as the reference keeps them, `[B, S, Dh]`: our table has the sign of the rotation in it.
fn unsigned_sines(table: &Tensor<4>) -> Tensor<3> {
    let [rows, width, _, head_dim] = table.dims();
    let pairs = table.clone().reshape([rows, width, head_dim / 2, 2]);
    pairs.narrow(3, 1, 1).expand([rows, width, head_dim / 2, 2]).reshape([rows, width, head_dim])
}
