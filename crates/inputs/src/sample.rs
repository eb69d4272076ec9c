//! One sequence before padding.

use crate::media::{Modality, MultimodalInputs};

/// A tokenized conversation with its images and videos.
///
/// Dimensions: `S` sequence length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Token ids with every placeholder expanded, `[S]`.
    pub input_ids: Vec<u32>,
    /// What fills each position, none for text (`mm_token_type_ids`), `[S]`.
    pub modalities: Vec<Option<Modality>>,
    /// Whether a token is a label, `[S]`; all false for a prompt.
    pub loss_mask: Vec<bool>,
    /// Factor of each label's loss, `[S]`; `None` if all are 1. Without meaning where there is no label.
    pub loss_weights: Option<Vec<f32>>,
    /// Patches in the order of their placeholders.
    pub media: MultimodalInputs,
}

impl Sample {
    /// A prompt of text alone.
    pub fn from_text(input_ids: Vec<u32>) -> Self {
        let length = input_ids.len();
        Self {
            input_ids,
            modalities: vec![None; length],
            loss_mask: vec![false; length],
            loss_weights: None,
            media: MultimodalInputs::default(),
        }
    }

    /// The same sample with these labels, `[S]`.
    #[must_use]
    pub fn with_loss_mask(self, loss_mask: Vec<bool>) -> Self {
        Self { loss_mask, ..self }
    }

    /// Sequence length, `S`.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// The positions as transformers counts them: 0 text, 1 image, 2 video, `[S]`.
    pub fn mm_token_type_ids(&self) -> Vec<u8> {
        self.modalities.iter().map(|modality| modality.map_or(0, Modality::token_type_id)).collect()
    }
}
