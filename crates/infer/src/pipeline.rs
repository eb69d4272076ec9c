//! Everything before the text model: conversations to embeddings and positions.
//!
//! A [`Pipeline`] goes all the way with [`run`](Pipeline::run); each step is there alone: [`process`](Pipeline::process)
//! inputs, encode [`features`](Pipeline::features), [`embed`](Pipeline::embed) and fuse. Features made earlier and elsewhere
//! (what vLLM calls `image_embeds` and `video_embeds`) enter through [`process_ready`](Pipeline::process_ready). The result
//! feeds this crate's text model or any other.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the text stream.

use burn::prelude::*;
use glm4v_model::{Batch, Features, FusionError, Glm4v, PaddingSide, Positions, Probe, TextInput};
use glm4v_processor::{Message, Processor, ProcessorError, ReadyMedia, RenderOptions};

use crate::prompt_sample;

/// Why a conversation could not be embedded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The conversation, its images or its videos cannot be used.
    #[error("conversation {conversation}: {source}")]
    Processor {
        /// Its index.
        conversation: usize,
        /// What is wrong.
        source: ProcessorError,
    },
    /// Prompts and features do not belong together.
    #[error(transparent)]
    Fusion(#[from] FusionError),
}

/// A processor and the model whose inputs it makes.
#[derive(Debug, Clone, Copy)]
pub struct Pipeline<'a> {
    processor: &'a Processor,
    model: &'a Glm4v,
}

/// What enters the text model.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// Embeddings with the features of images in place, `[B, S, D]`.
    pub inputs_embeds: Tensor<3>,
    /// Time, row and column of every token, and what decoding adds later (`rope_deltas`).
    pub positions: Positions,
    /// What images and videos became; none without any.
    pub features: Features,
    /// Token ids, kinds, mask and grids.
    pub batch: Batch,
}

impl<'a> Pipeline<'a> {
    /// Joins a processor and a model of the same checkpoint.
    pub fn new(processor: &'a Processor, model: &'a Glm4v) -> Self {
        Self { processor, model }
    }

    /// Renders, loads, cuts and tokenises conversations: one row each, padded on the left.
    ///
    /// # Errors
    ///
    /// When a conversation, an image or a video cannot be used: with its index.
    pub fn process(
        &self,
        conversations: &[Vec<Message>],
        options: &RenderOptions,
    ) -> Result<Batch, PipelineError> {
        let encoded = |messages: &Vec<Message>| self.processor.encode(messages, options);
        self.collate(conversations.iter().map(encoded))
    }

    /// As [`process`](Self::process), for one conversation whose images and videos were encoded before: of their parts in
    /// the conversation only the places count, `media` says how many tokens each takes.
    ///
    /// # Errors
    ///
    /// As [`process`](Self::process), and when parts and `media` differ in number.
    pub fn process_ready(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        media: &ReadyMedia,
    ) -> Result<Batch, PipelineError> {
        self.collate([self.processor.encode_ready(messages, options, media)].into_iter())
    }

    fn collate(
        &self,
        encoded: impl Iterator<Item = Result<glm4v_processor::Encoded, ProcessorError>>,
    ) -> Result<Batch, PipelineError> {
        let mut samples = Vec::new();
        for (conversation, encoded) in encoded.enumerate() {
            let encoded = encoded.map_err(|source| PipelineError::Processor { conversation, source })?;
            samples.push(prompt_sample(encoded));
        }
        Ok(Batch::collate(&samples, self.processor.tokenizer().special().end_of_text, PaddingSide::Left))
    }

    /// Runs the vision tower alone.
    ///
    /// # Errors
    ///
    /// When values and grids of the batch disagree.
    pub fn features(&self, batch: &Batch) -> Result<Features, PipelineError> {
        Ok(self.model.encode(batch, &mut Probe::off())?)
    }

    /// Looks tokens up and puts features in their places.
    ///
    /// # Errors
    ///
    /// When prompts and features do not belong together: with both counts.
    pub fn embed(&self, batch: Batch, features: Features) -> Result<Embedded, PipelineError> {
        let input = self.model.embed_features(&batch, features.clone())?;
        Ok(Embedded { inputs_embeds: input.embeds, positions: input.positions, features, batch })
    }

    /// All steps.
    ///
    /// # Errors
    ///
    /// As those of the steps.
    pub fn run(
        &self,
        conversations: &[Vec<Message>],
        options: &RenderOptions,
    ) -> Result<Embedded, PipelineError> {
        let batch = self.process(conversations, options)?;
        let features = self.features(&batch)?;
        self.embed(batch, features)
    }
}

impl Embedded {
    /// The same as our text model takes it ([`Glm4v::decode`]).
    pub fn into_text_input(self) -> TextInput {
        TextInput { embeds: self.inputs_embeds, positions: self.positions, real: self.batch.attention_mask }
    }
}
