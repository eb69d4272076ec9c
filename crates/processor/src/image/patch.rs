//! Images and frames to normalized patches, the rows of `pixel_values`.
//!
//! A row is one patch in the order (channel, frame, y, x). Rows go block by block: a block is the `merge_size` x `merge_size`
//! patches that become one token, so its rows are neighbors. Where frames are missing in a temporal patch, the last one is
//! repeated: a still image fills it alone.

use crate::media::Rgb;

/// Normalized values of all 8-bit pixels, for each channel.
///
/// torchvision's backend rescales and normalizes in one step, in f32:
/// `(x - mean / rescale) / (std / rescale)`. A table of 256 entries a channel is the same to the bit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NormalizationTable([[f32; 256]; 3]);

impl NormalizationTable {
    pub(crate) fn new(mean: [f64; 3], std: [f64; 3], rescale: f64) -> Self {
        let whole = (1.0 / rescale) as f32;
        let channel = |c: usize| {
            let (mean, std) = (mean[c] as f32 * whole, std[c] as f32 * whole);
            std::array::from_fn(|level| (level as f32 - mean) / std)
        };
        Self([channel(0), channel(1), channel(2)])
    }
}

/// Sizes of patches and blocks, under the names of `preprocessor_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PatchGeometry {
    /// Side of a patch in pixels.
    pub(crate) patch_size: usize,
    /// Frames in a patch.
    pub(crate) temporal_patch_size: usize,
    /// Side of a block in patches.
    pub(crate) merge_size: usize,
}

impl PatchGeometry {
    /// Values in a row: `3 * temporal_patch_size * patch_size^2`.
    pub(crate) fn row_len(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Appends the patches of 1 to `temporal_patch_size` frames as `[P, row_len]`.
    ///
    /// All frames have one size, whose sides are multiples of a block.
    pub(crate) fn patchify(&self, frames: &[&Rgb], table: &NormalizationTable, out: &mut Vec<f32>) {
        let (patch, merge) = (self.patch_size, self.merge_size);
        let (rows, columns) = (frames[0].height() / patch, frames[0].width() / patch);
        out.reserve(rows * columns * self.row_len());
        for block_y in (0..rows).step_by(merge) {
            for block_x in (0..columns).step_by(merge) {
                for y in block_y..block_y + merge {
                    for x in block_x..block_x + merge {
                        self.push_patch(out, frames, table, y * patch, x * patch);
                    }
                }
            }
        }
    }

    /// Appends the patch whose first pixel is at `(top, left)`.
    fn push_patch(
        &self,
        out: &mut Vec<f32>,
        frames: &[&Rgb],
        table: &NormalizationTable,
        top: usize,
        left: usize,
    ) {
        let stride = frames[0].width() * 3;
        for (channel, values) in table.0.iter().enumerate() {
            let mut last = out.len();
            for frame in frames {
                last = out.len();
                for y in top..top + self.patch_size {
                    let start = y * stride + left * 3;
                    let line = &frame.pixels()[start..start + self.patch_size * 3];
                    out.extend(line[channel..].iter().step_by(3).map(|&v| values[usize::from(v)]));
                }
            }
            for _ in frames.len()..self.temporal_patch_size {
                out.extend_from_within(last..last + self.patch_size * self.patch_size);
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
        let geometry = PatchGeometry { patch_size: 1, temporal_patch_size: 2, merge_size: 2 };
        let table = NormalizationTable::new([0.0; 3], [1.0; 3], 1.0);

        let mut rows = Vec::new();
        geometry.patchify(&[&image], &table, &mut rows);

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
        let geometry = PatchGeometry { patch_size: 1, temporal_patch_size: 2, merge_size: 2 };
        let table = NormalizationTable::new([0.0; 3], [1.0; 3], 1.0);

        let mut rows = Vec::new();
        geometry.patchify(&[&frame(3), &frame(7)], &table, &mut rows);

        assert_eq!(rows, [3.0, 7.0].repeat(3 * 4));
    }
}
