//! Sizes of images and videos in patches.

/// One row of `image_grid_thw` or `video_grid_thw`: temporal patches, patch rows, patch columns.
///
/// Rows and columns are multiples of the merge size; an image has one temporal patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Temporal patches; 1 for an image.
    pub t: usize,
    /// Patch rows.
    pub h: usize,
    /// Patch columns.
    pub w: usize,
}

impl Grid {
    /// Builds a grid from its three sizes, in the order of `grid_thw`.
    pub fn new(t: usize, h: usize, w: usize) -> Self {
        Self { t, h, w }
    }

    /// Number of patches: rows of `pixel_values`.
    pub fn patches(&self) -> usize {
        self.t * self.h * self.w
    }

    /// Number of placeholder tokens in a prompt, with `merge` x `merge` patches a token.
    pub fn tokens(&self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }

    /// The sizes as transformers stores them, `[t, h, w]`.
    pub fn thw(&self) -> [usize; 3] {
        [self.t, self.h, self.w]
    }
}

impl From<[usize; 3]> for Grid {
    fn from([t, h, w]: [usize; 3]) -> Self {
        Self { t, h, w }
    }
}
