//! What generation and training need of a model, whatever it encodes its inputs with.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size, `V` vocabulary size, `N` chosen positions.

use burn::prelude::*;
use burn::tensor::DType;
use glm4v_inputs::Batch;

use crate::config::TextConfig;
use crate::multimodal::ModelInputError;
use crate::nn::linear::Linear;
use crate::nn::positions::PositionIds;
use crate::text::{DecoderInput, DecoderOptions, DecoderOutput, KvCache, TextModel};

/// A causal language model over a text decoder: batches to logits of the next token.
///
/// A model brings its decoder, its head, and the way from a batch to embeddings; everything else follows.
pub trait CausalLm {
    /// The config of the decoder.
    fn text_config(&self) -> &TextConfig;

    /// The decoder.
    fn text_model(&self) -> &TextModel;

    /// `D -> V`; none if the token embeddings serve as head.
    fn lm_head(&self) -> Option<&Linear>;

    /// Embeds a batch: tokens, and whatever fills its placeholders.
    ///
    /// # Errors
    ///
    /// When prompts and media of the batch do not match.
    fn embed(&self, batch: &Batch) -> Result<DecoderInput, ModelInputError>;

    /// The device of the weights.
    fn device(&self) -> Device {
        self.text_model().norm.weight.device()
    }

    /// Type of the weights, and so of the activations.
    fn dtype(&self) -> DType {
        self.text_model().norm.weight.val().dtype()
    }

    /// An empty cache for `capacity` positions of `rows` sequences.
    fn kv_cache(&self, rows: usize, capacity: usize) -> KvCache {
        KvCache::new(self.text_config(), rows, capacity, &self.device(), self.dtype())
    }

    /// Runs the text decoder.
    fn decoder_forward(&self, input: DecoderInput, options: DecoderOptions<'_>) -> DecoderOutput {
        self.text_model().forward(input, options)
    }

    /// Logits of the next token for hidden states.
    ///
    /// # Shapes
    ///
    /// - hidden_states: `[N, D]`
    /// - output: `[N, V]`
    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        match self.lm_head() {
            Some(head) => head.forward(hidden_states),
            None => self.text_model().embed_tokens.weight.linear(hidden_states, None),
        }
    }

    /// Logits of the next token at every position of a batch.
    ///
    /// # Shapes
    ///
    /// - output: `[B, S, V]`; undefined at padding
    ///
    /// # Errors
    ///
    /// When prompts and media of the batch do not match.
    fn forward(&self, batch: &Batch) -> Result<Tensor<3>, ModelInputError> {
        let output = self.decoder_forward(self.embed(batch)?, DecoderOptions::default());
        let [rows, length] = batch.shape;
        // Rows all the way: the head is the same product whether positions were chosen or not.
        let logits = self.logits(output.hidden_states);
        let vocab = logits.dims()[1];
        Ok(logits.reshape([rows, length, vocab]))
    }

    /// Logits at chosen positions only: the head is the widest layer, and most positions of a training batch have no label.
    ///
    /// `positions` are indices into the `[B, S]` positions, row-major.
    ///
    /// # Shapes
    ///
    /// - output: `[N, V]`
    ///
    /// # Errors
    ///
    /// When prompts and media of the batch do not match.
    fn forward_at(&self, batch: &Batch, positions: &[usize]) -> Result<Tensor<2>, ModelInputError> {
        let options = DecoderOptions { positions: Some(positions), ..DecoderOptions::default() };
        Ok(self.logits(self.decoder_forward(self.embed(batch)?, options).hidden_states))
    }

    /// Logits of the token after `ids`, one new token a row, decoded after a prompt.
    ///
    /// `rope_deltas` are those of the prompt's [`PositionIds`].
    ///
    /// # Shapes
    ///
    /// - output: `[B, V]`
    fn decode_step(&self, ids: &[u32], rope_deltas: &[i64], cache: &mut KvCache) -> Tensor<2> {
        let rows = ids.len();
        // One segment: a packed row has no single next token, and generation refuses it.
        let input = DecoderInput {
            inputs_embeds: self.text_model().embed_tokens.forward(ids, [rows, 1]),
            positions: PositionIds::for_decode_step(&cache.num_tokens(), rope_deltas),
            segment_ids: vec![1; rows],
        };
        let options = DecoderOptions { cache: Some(cache), ..DecoderOptions::default() };
        self.logits(self.decoder_forward(input, options).hidden_states)
    }
}
