//! An image cut into the rows that the vision tower reads.
//!
//! A row is one patch in the order (channel, frame, y, x). Rows go block by block: a block is the
//! `merge` x `merge` patches that become one token, so its rows are neighbours. Where a temporal patch
//! has fewer frames than it takes, the last is shown again: a still image fills it alone.

use super::Rgb;

/// The values that 8-bit pixels become, for each channel.
///
/// torchvision's backend does rescaling and normalising in one step, in f32:
/// `(x - mean / rescale) / (std / rescale)`. A table of 256 entries a channel is the same to the bit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Levels([[f32; 256]; 3]);

impl Levels {
    pub(crate) fn new(mean: [f64; 3], std: [f64; 3], rescale: f64) -> Self {
        let whole = (1.0 / rescale) as f32;
        let channel = |c: usize| {
            let (mean, std) = (mean[c] as f32 * whole, std[c] as f32 * whole);
            std::array::from_fn(|level| (level as f32 - mean) / std)
        };
        Self([channel(0), channel(1), channel(2)])
    }
}

/// Patch geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Side of a patch in pixels.
    pub(crate) patch: usize,
    /// Frames in a patch.
    pub(crate) temporal: usize,
    /// Side of a block in patches.
    pub(crate) merge: usize,
}

impl Geometry {
    /// Length of a row.
    pub(crate) fn row_len(&self) -> usize {
        3 * self.temporal * self.patch * self.patch
    }

    /// Appends a temporal patch as `[P, row_len]`: at least one frame, at most as many as it takes, all of
    /// one size whose sides are multiples of a block.
    pub(crate) fn cut(&self, frames: &[&Rgb], levels: &Levels, out: &mut Vec<f32>) {
        let (patch, merge) = (self.patch, self.merge);
        let (rows, columns) = (frames[0].height() / patch, frames[0].width() / patch);
        out.reserve(rows * columns * self.row_len());
        for block_y in (0..rows).step_by(merge) {
            for block_x in (0..columns).step_by(merge) {
                for y in block_y..block_y + merge {
                    for x in block_x..block_x + merge {
                        self.push(out, frames, levels, y * patch, x * patch);
                    }
                }
            }
        }
    }

    /// Appends the patch whose first pixel is at `(top, left)`.
    fn push(&self, out: &mut Vec<f32>, frames: &[&Rgb], levels: &Levels, top: usize, left: usize) {
        let stride = frames[0].width() * 3;
        for (channel, table) in levels.0.iter().enumerate() {
            let mut last = out.len();
            for frame in frames {
                last = out.len();
                for y in top..top + self.patch {
                    let start = y * stride + left * 3;
                    let line = &frame.pixels()[start..start + self.patch * 3];
                    out.extend(line[channel..].iter().step_by(3).map(|&v| table[usize::from(v)]));
                }
            }
            for _ in frames.len()..self.temporal {
                out.extend_from_within(last..last + self.patch * self.patch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_block_by_block() {
        // 4x6 patches of one pixel; the red channel numbers the pixels, row by row.
        let pixels = (0..24u8).flat_map(|i| [i, 0, 0]).collect();
        let image = Rgb::new(4, 6, pixels).unwrap();
        let geometry = Geometry { patch: 1, temporal: 2, merge: 2 };
        let levels = Levels::new([0.0; 3], [1.0; 3], 1.0);

        let mut rows = Vec::new();
        geometry.cut(&[&image], &levels, &mut rows);

        let reds: Vec<f32> = rows.iter().step_by(6).copied().collect();
        let blocks = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11].map(|i| i as f32);
        assert_eq!(reds[..12], blocks);
        let lower = blocks.map(|i| i + 12.0);
        assert_eq!(reds[12..], lower);
        // The second frame repeats the first.
        assert!(rows.iter().skip(1).step_by(6).eq(&reds));
    }

    #[test]
    fn a_patch_of_two_frames_holds_both_in_order() {
        let frame = |level: u8| Rgb::new(2, 2, vec![level; 12]).unwrap();
        let geometry = Geometry { patch: 1, temporal: 2, merge: 2 };
        let levels = Levels::new([0.0; 3], [1.0; 3], 1.0);

        let mut rows = Vec::new();
        geometry.cut(&[&frame(3), &frame(7)], &levels, &mut rows);

        assert_eq!(rows, [3.0, 7.0].repeat(3 * 4));
    }
}
