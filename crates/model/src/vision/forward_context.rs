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
    /// Patches of each frame, in order: attention stays within a frame (what varlen kernels take as `cu_seqlens`).
    pub frame_lengths: Vec<usize>,
}

impl VisionLayerInputs {
    /// Patches of each frame of a list of grids.
    pub fn frame_lengths(grids: &[Grid]) -> Vec<usize> {
        grids.iter().flat_map(|grid| std::iter::repeat_n(grid.h * grid.w, grid.t)).collect()
    }
}
