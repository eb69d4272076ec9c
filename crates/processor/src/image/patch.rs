//! A picture cut into the rows that the vision tower reads.
//!
//! A row is one patch in the order (channel, frame, y, x). Rows go block by block: a block is the
//! `merge` x `merge` patches that become one token, so its rows are neighbours. A still picture is
//! shown twice, to fill the temporal patch.

use super::Rgb;

/// The values that 8-bit pixels become, for each channel.
///
/// torchvision's backend does rescaling and normalising in one step, in f32:
/// `(x - mean / rescale) / (std / rescale)`. A table of 256 entries a channel is the same to the bit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Levels([[f32; 256]; 3]);

impl Levels {
    pub(super) fn new(mean: [f64; 3], std: [f64; 3], rescale: f64) -> Self {
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
pub(super) struct Geometry {
    /// Side of a patch in pixels.
    pub(super) patch: usize,
    /// Frames in a patch.
    pub(super) temporal: usize,
    /// Side of a block in patches.
    pub(super) merge: usize,
}

impl Geometry {
    /// Length of a row.
    pub(super) fn row_len(&self) -> usize {
        3 * self.temporal * self.patch * self.patch
    }

    /// Cuts a picture whose sides are multiples of a block into `[P, row_len]`.
    pub(super) fn cut(&self, picture: &Rgb, levels: &Levels) -> Vec<f32> {
        let (patch, merge) = (self.patch, self.merge);
        let (rows, columns) = (picture.height() / patch, picture.width() / patch);
        let mut out = Vec::with_capacity(rows * columns * self.row_len());
        for block_y in (0..rows).step_by(merge) {
            for block_x in (0..columns).step_by(merge) {
                for y in block_y..block_y + merge {
                    for x in block_x..block_x + merge {
                        self.push(&mut out, picture, levels, y * patch, x * patch);
                    }
                }
            }
        }
        out
    }

    /// Appends the patch whose first pixel is at `(top, left)`.
    fn push(&self, out: &mut Vec<f32>, picture: &Rgb, levels: &Levels, top: usize, left: usize) {
        let stride = picture.width() * 3;
        for (channel, table) in levels.0.iter().enumerate() {
            let frame = out.len();
            for y in top..top + self.patch {
                let start = y * stride + left * 3;
                let line = &picture.pixels()[start..start + self.patch * 3];
                out.extend(line[channel..].iter().step_by(3).map(|&v| table[usize::from(v)]));
            }
            for _ in 1..self.temporal {
                out.extend_from_within(frame..frame + self.patch * self.patch);
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
        let picture = Rgb::new(4, 6, pixels).unwrap();
        let geometry = Geometry { patch: 1, temporal: 2, merge: 2 };
        let levels = Levels::new([0.0; 3], [1.0; 3], 1.0);

        let rows = geometry.cut(&picture, &levels);

        let reds: Vec<f32> = rows.iter().step_by(6).copied().collect();
        let blocks = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11].map(|i| i as f32);
        assert_eq!(reds[..12], blocks);
        let lower = blocks.map(|i| i + 12.0);
        assert_eq!(reds[12..], lower);
        // The second frame repeats the first.
        assert!(rows.iter().skip(1).step_by(6).eq(&reds));
    }
}
