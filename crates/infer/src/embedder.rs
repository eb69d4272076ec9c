//! From conversations to the input of the text decoder.
//!
//! A [`MultimodalEmbedder`] goes all the way with [`embed`](MultimodalEmbedder::embed); each step is there alone: [`process`](MultimodalEmbedder::process) to a
//! batch, [`embed_multimodal`](MultimodalEmbedder::embed_multimodal), [`merge_embeddings`](MultimodalEmbedder::merge_embeddings). Embeddings that were computed earlier
//! and elsewhere (vLLM's `image_embeds` and `video_embeds`) enter through
//! [`process_with_grids`](MultimodalEmbedder::process_with_grids). The result feeds this crate's text decoder or any other.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size.

use glm4v_model::{Batch, DecoderInput, Glm4v, ModelInputError, MultimodalEmbeddings, PaddingSide, Sample};
use glm4v_processor::{ChatTemplateOptions, MediaGrids, Message, Processor, ProcessorError};

/// Error of a pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// A conversation, an image or a video cannot be used.
    #[error("conversation {conversation}: {source}")]
    Processor {
        /// Index of the conversation.
        conversation: usize,
        /// The cause.
        source: ProcessorError,
    },
    /// Prompts and embeddings do not match.
    #[error(transparent)]
    Input(#[from] ModelInputError),
}

/// A processor and a model of the same checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct MultimodalEmbedder<'a> {
    processor: &'a Processor,
    model: &'a Glm4v,
}

/// A batch with the input of the text decoder that was made of it.
#[derive(Debug, Clone)]
pub struct EmbeddedBatch {
    /// Embeddings, positions and segments.
    pub input: DecoderInput,
    /// Embeddings of images and videos, as they are in `input`.
    pub embeddings: MultimodalEmbeddings,
    /// Token ids, modalities and grids.
    pub batch: Batch,
}

impl<'a> MultimodalEmbedder<'a> {
    /// Joins a processor and a model of the same checkpoint.
    pub fn new(processor: &'a Processor, model: &'a Glm4v) -> Self {
        Self { processor, model }
    }

    /// Renders, loads, patches and tokenizes conversations: one row each, padded on the left.
    ///
    /// # Errors
    ///
    /// When a conversation, an image or a video cannot be used.
    pub fn process(
        &self,
        conversations: &[Vec<Message>],
        options: &ChatTemplateOptions,
    ) -> Result<Batch, EmbedError> {
        let mut samples = Vec::with_capacity(conversations.len());
        for (conversation, messages) in conversations.iter().enumerate() {
            let sample = self.processor.encode(messages, options);
            samples.push(sample.map_err(|source| EmbedError::Processor { conversation, source })?);
        }
        Ok(self.collate(&samples))
    }

    /// As [`process`](Self::process), for one conversation whose images and videos are embedded already: of their parts in
    /// the conversation only the places count, and `media` gives the tokens of each.
    ///
    /// # Errors
    ///
    /// As [`process`](Self::process), and when parts and `media` differ in number.
    pub fn process_with_grids(
        &self,
        messages: &[Message],
        options: &ChatTemplateOptions,
        media: &MediaGrids,
    ) -> Result<Batch, EmbedError> {
        let sample = self.processor.encode_with_grids(messages, options, media);
        let sample = sample.map_err(|source| EmbedError::Processor { conversation: 0, source })?;
        Ok(self.collate(&[sample]))
    }

    fn collate(&self, samples: &[Sample]) -> Batch {
        Batch::collate(samples, self.processor.tokenizer().special().end_of_text, PaddingSide::Left)
    }

    /// Runs the vision tower alone.
    ///
    /// # Errors
    ///
    /// When values and grids of the batch disagree.
    pub fn embed_multimodal(&self, batch: &Batch) -> Result<MultimodalEmbeddings, EmbedError> {
        Ok(self.model.embed_multimodal(batch)?)
    }

    /// Looks tokens up and merges multimodal embeddings into them.
    ///
    /// # Errors
    ///
    /// When prompts and embeddings do not match.
    pub fn merge_embeddings(
        &self,
        batch: Batch,
        embeddings: MultimodalEmbeddings,
    ) -> Result<EmbeddedBatch, EmbedError> {
        // A clone of handles: callers compare and store the embeddings.
        let input = self.model.merge_embeddings(&batch, embeddings.clone())?;
        Ok(EmbeddedBatch { input, embeddings, batch })
    }

    /// All steps.
    ///
    /// # Errors
    ///
    /// As those of the steps.
    pub fn embed(
        &self,
        conversations: &[Vec<Message>],
        options: &ChatTemplateOptions,
    ) -> Result<EmbeddedBatch, EmbedError> {
        let batch = self.process(conversations, options)?;
        let embeddings = self.embed_multimodal(&batch)?;
        self.merge_embeddings(batch, embeddings)
    }
}
