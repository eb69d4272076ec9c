//! The text decoder: embeddings to hidden states.
//!
//! Checkpoint names: `model.language_model.*`. Source: transformers 5.23, `modeling_glm4v.py`, `Glm4vTextModel`.
//!
//! What differs between decoders is a value of [`TextConfig`]; a Qwen3- or Llama-class decoder is such a config too.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size, `V` vocabulary size, `N` chosen positions.

pub(crate) mod attention;
pub(crate) mod experts;
pub(crate) mod feed_forward;
pub(crate) mod forward_context;
pub(crate) mod kv_cache;
pub(crate) mod layer;

pub use attention::TextAttention;
pub use experts::{Experts, Router, load_balancing_loss};
pub use feed_forward::FeedForward;
pub use forward_context::{TextForwardContext, TextLayerInputs};
pub use kv_cache::KvCache;
pub use layer::TextLayer;

use burn::prelude::*;
use burn::tensor::TensorData;
use glm4v_kernels as kernels;

use crate::config::{TextConfig, TextRopeConfig};
use crate::device::device_spec::DeviceSpec;
use crate::nn::attention::{AttentionImplementation, CausalMask};
use crate::nn::forward_context::ForwardContext;
use crate::nn::norm::RmsNorm;
use crate::nn::positions::PositionIds;
use crate::nn::recorder::ActivationRecorder;
use crate::nn::rope::{RotaryTable, text_sines};
use crate::nn::weight::WeightMatrix;

/// Everything that enters the text decoder.
#[derive(Debug, Clone)]
pub struct DecoderInput {
    /// Token embeddings with multimodal embeddings in place, `[B, S, D]`.
    pub inputs_embeds: Tensor<3>,
    /// Position of every token.
    pub positions: PositionIds,
    /// 0 for padding; 1, 2, … for the samples of a row, `[B, S]` row-major.
    pub segment_ids: Vec<u32>,
}

/// How the text decoder runs.
#[derive(Debug, Default)]
pub struct DecoderOptions<'a> {
    /// Earlier positions to attend to; the new ones are appended.
    pub cache: Option<&'a mut KvCache>,
    /// Indices into the `[B, S]` positions whose hidden states are wanted (`logits_to_keep`); none for all.
    ///
    /// What only the others would need is left out: the feed-forward of the last layer, and the last norm.
    pub positions: Option<&'a [usize]>,
    /// Whether router logits are kept.
    pub output_router_logits: bool,
    /// Sees activations.
    pub recorder: Option<&'a mut ActivationRecorder>,
}

/// What the text decoder computes.
#[derive(Debug, Clone)]
pub struct DecoderOutput {
    /// Hidden states after the last norm, `[N, D]`; `N = B · S` if no positions were chosen.
    pub hidden_states: Tensor<2>,
    /// Logits of the routers, one `[B · S, E]` a layer with experts; empty unless asked for.
    pub router_logits: Vec<Tensor<2>>,
}

/// The text decoder without its head.
#[derive(Module, Debug)]
pub struct TextModel {
    /// `V -> D`
    pub embed_tokens: TokenEmbedding,
    /// `num_hidden_layers` of them.
    pub layers: Vec<TextLayer>,
    /// After the layers.
    pub norm: RmsNorm,
    /// `Dh`
    pub head_dim: usize,
    /// Rotary positions.
    #[module(skip)]
    pub rope: TextRopeConfig,
}

/// The table of token embeddings.
#[derive(Module, Debug)]
pub struct TokenEmbedding {
    /// `[V, D]`
    pub weight: WeightMatrix,
}

impl TokenEmbedding {
    /// Looks tokens up.
    ///
    /// # Shapes
    ///
    /// - ids: `[B · S]`, row-major
    /// - output: `[B, S, D]`
    pub fn forward(&self, ids: &[u32], [rows, length]: [usize; 2]) -> Tensor<3> {
        let embeds = self.weight.embedding(ids);
        let hidden = embeds.dims()[1];
        embeds.reshape([rows, length, hidden])
    }
}

impl TextModel {
    /// Builds the decoder with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &TextConfig, device_spec: &DeviceSpec) -> Self {
        let layer = |index| TextLayer::init(config, index, device_spec);
        Self {
            embed_tokens: TokenEmbedding {
                weight: WeightMatrix::init([config.vocab_size, config.hidden_size], device_spec),
            },
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            norm: RmsNorm::init(config.hidden_size, config.rms_norm_eps, &device_spec.device),
            head_dim: config.head_dim,
            rope: config.rope.clone(),
        }
    }

    /// Runs the layers over embeddings.
    pub fn forward(&self, input: DecoderInput, options: DecoderOptions<'_>) -> DecoderOutput {
        let DecoderInput { inputs_embeds, positions, segment_ids } = input;
        let [rows, length, _] = inputs_embeds.dims();
        let device = inputs_embeds.device();
        let mut cache = options.cache;
        // Queries attend to cached positions too, so the mask needs the segments of all of them.
        let segment_ids = match &mut cache {
            Some(cache) => cache.extend_segments(&segment_ids),
            None => segment_ids,
        };
        let dtype = inputs_embeds.dtype();
        let output_attentions =
            options.recorder.as_ref().is_some_and(|recorder| recorder.output_attentions());
        let implementation = if output_attentions {
            AttentionImplementation::Eager
        } else if !inputs_embeds.is_autodiff() {
            AttentionImplementation::Fused
        } else if kernels::has_own_kernel(&device, dtype) {
            AttentionImplementation::OwnKernel
        } else {
            AttentionImplementation::Eager
        };
        let context = TextLayerInputs {
            rotary: RotaryTable::for_text(&self.rope, self.head_dim, &positions, &device, dtype),
            mask: CausalMask::new(
                &segment_ids,
                [rows, segment_ids.len() / rows],
                length,
                implementation,
                &device,
            ),
            cache,
            layer: 0,
            router_logits: options.output_router_logits.then(Vec::new),
        };
        let mut pass = ForwardContext::with_recorder(context, options.recorder);
        let x = pass.prefix("text", |pass| self.layers(inputs_embeds, options.positions, pass));
        let hidden = x.dims()[2];
        let hidden_states = x.reshape([-1, hidden as i32]);
        DecoderOutput { hidden_states, router_logits: pass.shared.router_logits.unwrap_or_default() }
    }

    /// All layers and the last norm: `[B, S, D]`, or `[1, N, D]` of chosen positions.
    fn layers(
        &self,
        x: Tensor<3>,
        positions: Option<&[usize]>,
        pass: &mut TextForwardContext<'_>,
    ) -> Tensor<3> {
        let mut x = pass.record("inputs_embeds", x);
        pass.if_recording(|context, recorder| {
            let cosines = context.rotary.cos.clone().squeeze_dim::<3>(2); // [B, S, Dh]
            recorder.record("rotary.cos", &cosines.narrow(2, 0, self.rope.rotary_dim));
            recorder.record("rotary.sin", &text_sines(&context.rotary, &self.rope));
        });
        let last = self.layers.len() - 1;
        for (index, layer) in self.layers.iter().enumerate() {
            pass.shared.layer = index;
            // The attention of the last layer needs every position as key; its feed-forward needs the chosen ones alone.
            x = pass.block("layers", index, |pass| match positions {
                Some(positions) if index == last => {
                    let x = layer.attention_sublayer(x, pass);
                    layer.mlp_sublayer(gather_positions(x, positions), pass)
                }
                _ => layer.forward(x, pass),
            });
        }
        pass.record("norm", self.norm.forward(x))
    }
}

/// The states of chosen positions as one row: `[B, S, D]` to `[1, N, D]`.
fn gather_positions(states: Tensor<3>, positions: &[usize]) -> Tensor<3> {
    let [rows, length, hidden] = states.dims();
    let index: Vec<i32> = positions.iter().map(|at| *at as i32).collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(index, [positions.len()]), &states.device());
    states.reshape([1, rows * length, hidden]).select(1, index)
}
