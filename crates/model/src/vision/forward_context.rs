//! What the blocks of the vision tower share in one forward pass.

use glm4v_inputs::Grid;

use crate::nn::forward_context::ForwardContext;
use crate::nn::rope::RotaryTable;

/// A [`ForwardContext`] through the vision tower.
pub type VisionForwardContext<'a> = ForwardContext<'a, VisionLayerInputs>;

/// Inputs that all blocks of the vision tower share.
#[derive(Debug)]
pub struct VisionLayerInputs {
    /// `[P, 1, Dh]`
    pub rotary: RotaryTable<3>,
    /// The frames that attention stays within, in order.
    pub frames: Vec<FrameGroup>,
}

/// Consecutive frames of the same number of patches, which one call of attention takes as its batch (what varlen kernels
/// take as `cu_seqlens`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameGroup {
    /// Number of frames.
    pub frames: usize,
    /// Patches of each.
    pub patches_per_frame: usize,
}

impl FrameGroup {
    /// The groups of a list of grids, in order.
    pub fn from_grids(grids: &[Grid]) -> Vec<Self> {
        // Frames of one video, or images of one size, next to each other: one call of attention instead of one each.
        let group = |grids: &[Grid]| Self {
            frames: grids.iter().map(|grid| grid.t).sum(),
            patches_per_frame: grids[0].h * grids[0].w,
        };
        grids.chunk_by(|a, b| a.h * a.w == b.h * b.w).map(group).collect()
    }

    /// Patches of the whole group.
    pub fn patches(&self) -> usize {
        self.frames * self.patches_per_frame
    }
}
