//! Three-dimensional positions of every token, on the host as integers (`get_rope_index`).
//!
//! A text token advances time, row and column together. The tokens of an image share one time and count rows and
//! columns; each frame of a video is an image of its own, because timestamps separate the frames. After an image
//! of `h` x `w` tokens the count goes on at `max(h, w)`, not at the number of tokens.
//!
//! Source: transformers 5.23, `modeling_glm4v.py`, `Glm4vModel.get_rope_index`.
//!
//! Dimensions: `B` rows, `S` sequence length.

use crate::batch::{Batch, Grid, TokenKind};

/// Why positions cannot be counted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionError {
    /// A run of placeholders is not as long as its image.
    #[error("row {row}: {found} {kind} placeholders from token {token} on, but their image takes {needed}")]
    RunLength {
        /// Row of the batch.
        row: usize,
        /// First placeholder of the run.
        token: usize,
        /// "image" or "video".
        kind: &'static str,
        /// Placeholders in the run.
        found: usize,
        /// Tokens that the next grid takes.
        needed: usize,
    },
    /// More runs of placeholders than images.
    #[error("row {row}: {kind} placeholders at token {token}, but the batch brings only {given} of them")]
    TooFewGrids {
        /// Row of the batch.
        row: usize,
        /// First placeholder of the run.
        token: usize,
        /// "image" or "video frame".
        kind: &'static str,
        /// Grids in the batch.
        given: usize,
    },
}

/// Positions of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// `[B, S]`
    pub shape: [usize; 2],
    /// Time, row and column position of every token, each `[B, S]` row-major; 0 where a row is padded.
    pub axes: [Vec<i64>; 3],
    /// What to add to the number of real tokens before it to get the position of a token decoded later
    /// (`rope_deltas`), `[B]`.
    pub deltas: Vec<i64>,
}

impl Positions {
    /// Counts the positions of a batch whose images are merged `merge` x `merge` patches a token.
    ///
    /// # Errors
    ///
    /// When the runs of placeholders do not fit the grids.
    pub fn of(batch: &Batch, merge: usize) -> Result<Self, PositionError> {
        let [rows, width] = batch.shape;
        let frames = |grid: &Grid| std::iter::repeat_n(Grid::new(1, grid.h, grid.w), grid.t);
        let mut images = batch.images.grids.iter().copied();
        let mut video_frames = batch.videos.grids.iter().flat_map(frames);
        let mut axes = [vec![0; rows * width], vec![0; rows * width], vec![0; rows * width]];
        let mut deltas = Vec::with_capacity(rows);
        for row in 0..rows {
            let real: Vec<usize> =
                (row * width..(row + 1) * width).filter(|i| batch.attention_mask[*i]).collect();
            let mut next = 0;
            for run in real.chunk_by(|a, b| batch.kinds[*a] == batch.kinds[*b]) {
                let kind = batch.kinds[run[0]];
                let (grid, name, given) = match kind {
                    TokenKind::Text => {
                        for (step, &slot) in run.iter().enumerate() {
                            axes.iter_mut().for_each(|axis| axis[slot] = next + step as i64);
                        }
                        next += run.len() as i64;
                        continue;
                    }
                    TokenKind::Image => (images.next(), "image", batch.images.grids.len()),
                    TokenKind::Video => (
                        video_frames.next(),
                        "video frame",
                        batch.videos.grids.iter().map(|grid| grid.t).sum(),
                    ),
                };
                let token = run[0] - row * width;
                let grid = grid.ok_or(PositionError::TooFewGrids { row, token, kind: name, given })?;
                let (height, breadth) = (grid.h / merge, grid.w / merge);
                if run.len() != grid.t * height * breadth {
                    return Err(PositionError::RunLength {
                        row,
                        token,
                        kind: name,
                        found: run.len(),
                        needed: grid.t * height * breadth,
                    });
                }
                for (step, &slot) in run.iter().enumerate() {
                    axes[0][slot] = next + (step / (height * breadth)) as i64;
                    axes[1][slot] = next + (step / breadth % height) as i64;
                    axes[2][slot] = next + (step % breadth) as i64;
                }
                next += height.max(breadth) as i64;
            }
            deltas.push(next - real.len() as i64);
        }
        Ok(Self { shape: [rows, width], axes, deltas })
    }

    /// Positions of text tokens that follow a prompt: the same on all three axes.
    ///
    /// `before[row]` real tokens precede the token of that row.
    pub fn following(before: &[usize], deltas: &[i64]) -> Self {
        let axis: Vec<i64> = before.iter().zip(deltas).map(|(n, delta)| *n as i64 + delta).collect();
        Self { shape: [before.len(), 1], axes: [axis.clone(), axis.clone(), axis], deltas: deltas.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{PaddingSide, Sample};

    fn prompt(kinds: &[(u8, usize)], images: &[[usize; 3]], videos: &[[usize; 3]]) -> Sample {
        let kinds: Vec<u8> = kinds.iter().flat_map(|&(kind, n)| std::iter::repeat_n(kind, n)).collect();
        Sample::from_parts(vec![1; kinds.len()], &kinds, vec![], (vec![], images), (vec![], videos))
    }

    #[test]
    fn an_image_advances_the_count_by_its_longer_side() {
        let sample = prompt(&[(0, 5), (1, 6), (0, 3)], &[[1, 4, 6]], &[]);

        let positions = Positions::of(&Batch::collate(&[sample], 0, PaddingSide::Left), 2).unwrap();

        assert_eq!(positions.axes[0], [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 8, 9, 10]);
        assert_eq!(positions.axes[1], [0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 6, 8, 9, 10]);
        assert_eq!(positions.axes[2], [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10]);
        assert_eq!(positions.deltas, [-3]);
    }

    #[test]
    fn every_frame_of_a_video_is_an_image_of_its_own() {
        let sample = prompt(&[(0, 5), (2, 6), (0, 3), (2, 6), (0, 4)], &[], &[[2, 4, 6]]);

        let positions = Positions::of(&Batch::collate(&[sample], 0, PaddingSide::Left), 2).unwrap();

        assert_eq!(positions.axes[0][14], 11);
        assert_eq!(positions.axes[2][20..], [14, 15, 16, 17]);
        assert_eq!(positions.deltas, [-6]);
    }

    #[test]
    fn padding_moves_no_position() {
        let long = prompt(&[(0, 9)], &[], &[]);
        let short = prompt(&[(0, 1), (1, 4), (0, 2)], &[[1, 4, 4]], &[]);
        let pair = [long, short.clone()];

        let left = Positions::of(&Batch::collate(&pair, 0, PaddingSide::Left), 2).unwrap();
        let right = Positions::of(&Batch::collate(&pair, 0, PaddingSide::Right), 2).unwrap();
        let alone = Positions::of(&Batch::collate(&[short], 0, PaddingSide::Right), 2).unwrap();

        for axis in 0..3 {
            assert_eq!(left.axes[axis][11..18], alone.axes[axis][..]);
            assert_eq!(right.axes[axis][9..16], alone.axes[axis][..]);
        }
        assert_eq!((left.deltas[1], right.deltas[1]), (alone.deltas[0], alone.deltas[0]));
    }

    #[test]
    fn a_run_that_does_not_fit_its_image_is_an_error_with_both_counts() {
        let sample = prompt(&[(0, 2), (1, 5), (0, 1)], &[[1, 4, 6]], &[]);

        let error = Positions::of(&Batch::collate(&[sample], 0, PaddingSide::Left), 2).unwrap_err();

        assert_eq!(error.to_string(), "row 0: 5 image placeholders from token 2 on, but their image takes 6");
    }
}
