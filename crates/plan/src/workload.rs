//! The shape of a batch.

use glm4v_model::Grid;

/// Shape of the batch that goes through a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Sequences per batch.
    pub batch_size: usize,
    /// Tokens per sequence, those of the image and of the completion included.
    pub seq_len: usize,
    /// Tokens at the end of each sequence that carry loss in training, or are generated.
    pub completion_tokens: usize,
    /// Patch grid of the image in every sequence; `None` for text alone.
    pub image: Option<Grid>,
}

impl Workload {
    /// Tokens of the batch.
    pub(crate) fn tokens(&self) -> u64 {
        (self.batch_size * self.seq_len) as u64
    }

    /// Completion tokens of the batch.
    pub(crate) fn completions(&self) -> u64 {
        (self.batch_size * self.completion_tokens.min(self.seq_len)) as u64
    }

    /// Patches of the batch.
    pub(crate) fn patches(&self) -> u64 {
        self.batch_size as u64 * self.image.map_or(0, |grid| grid.patches() as u64)
    }

    /// Patches of one frame. Attention in the vision tower does not cross frames.
    pub(crate) fn patches_per_frame(&self) -> u64 {
        self.image.map_or(0, |grid| (grid.h * grid.w) as u64)
    }
}
