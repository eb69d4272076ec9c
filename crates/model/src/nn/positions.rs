//! Three-dimensional positions of every token, on the host as integers (`get_rope_index`).
//!
//! A text token advances time, row and column together. The tokens of an image share one time and count rows and
//! columns; each frame of a video is an image of its own, because timestamps separate the frames. After an image
//! of `h` x `w` tokens the count goes on at `max(h, w)`, not at the number of tokens.
//!
//! Source: transformers 5.23, `modeling_glm4v.py`, `Glm4vModel.get_rope_index`.
//!
//! Dimensions: `B` rows, `S` sequence length.

use std::collections::BTreeMap;

use glm4v_inputs::{Batch, Grid, Modality};

/// Why positions cannot be counted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PositionError {
    /// A run of placeholders is not as long as its image.
    #[error("row {row}: {found} {item} placeholders from token {token} on, but their image takes {needed}")]
    RunLength {
        /// Row of the batch.
        row: usize,
        /// First placeholder of the run.
        token: usize,
        /// "image" or "video frame".
        item: &'static str,
        /// Placeholders in the run.
        found: usize,
        /// Tokens that the next grid takes.
        needed: usize,
    },
    /// More runs of placeholders than images.
    #[error("row {row}: {item} placeholders at token {token}, but the batch brings only {given} of them")]
    TooFewGrids {
        /// Row of the batch.
        row: usize,
        /// First placeholder of the run.
        token: usize,
        /// "image" or "video frame".
        item: &'static str,
        /// Grids in the batch.
        given: usize,
    },
}

/// Positions of a batch (`position_ids`, `rope_deltas`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionIds {
    /// `[B, S]`
    pub shape: [usize; 2],
    /// Time, row and column of every token, each `[B, S]` row-major; 0 for padding.
    pub position_ids: [Vec<i64>; 3],
    /// Position of the next token minus the tokens so far, of each row's last segment, `[B]`.
    pub rope_deltas: Vec<i64>,
}

impl PositionIds {
    /// Counts the positions of a batch with `merge` x `merge` patches a token.
    ///
    /// # Errors
    ///
    /// When the runs of placeholders do not fit the grids.
    pub fn from_batch(batch: &Batch, merge: usize) -> Result<Self, PositionError> {
        let [rows, length] = batch.shape;
        let mut items = PlacedItems::new(batch, merge);
        let mut position_ids = [vec![0; rows * length], vec![0; rows * length], vec![0; rows * length]];
        let mut rope_deltas = Vec::with_capacity(rows);
        for row in 0..rows {
            let tokens: Vec<usize> =
                (row * length..(row + 1) * length).filter(|at| batch.segment_ids[*at] != 0).collect();
            let mut delta = 0;
            for segment in tokens.chunk_by(|a, b| batch.segment_ids[*a] == batch.segment_ids[*b]) {
                let mut next = 0;
                for run in segment.chunk_by(|a, b| batch.modalities[*a] == batch.modalities[*b]) {
                    let size = match batch.modalities[run[0]] {
                        None => [run.len(), 1, 1],
                        Some(modality) => items.next(modality, run.len(), [row, run[0] - row * length])?,
                    };
                    // Text advances all three axes at once; an item fills a box of them.
                    let is_text = batch.modalities[run[0]].is_none();
                    for (step, &at) in run.iter().enumerate() {
                        let offsets = if is_text { [step; 3] } else { unravel(step, size) };
                        for (axis, offset) in position_ids.iter_mut().zip(offsets) {
                            axis[at] = next + offset as i64;
                        }
                    }
                    // After an item the count continues at its longer side, not at its number of tokens.
                    next += if is_text { run.len() } else { size[1].max(size[2]) } as i64;
                }
                delta = next - segment.len() as i64;
            }
            rope_deltas.push(delta);
        }
        Ok(Self { shape: [rows, length], position_ids, rope_deltas })
    }

    /// Positions of one text token a row after a prompt: the same on all three axes.
    ///
    /// `lengths[row]` tokens precede the token of that row.
    pub fn for_decode_step(lengths: &[usize], rope_deltas: &[i64]) -> Self {
        let axis: Vec<i64> = lengths.iter().zip(rope_deltas).map(|(n, delta)| *n as i64 + delta).collect();
        Self {
            shape: [lengths.len(), 1],
            position_ids: [axis.clone(), axis.clone(), axis],
            rope_deltas: rope_deltas.to_vec(),
        }
    }
}

/// Time, row and column of token `step` of an item of `[_, height, width]` tokens.
fn unravel(step: usize, [_, height, width]: [usize; 3]) -> [usize; 3] {
    [step / (height * width), step / width % height, step % width]
}

/// The images and video frames of a batch, in the order of their placeholders.
struct PlacedItems {
    merge: usize,
    by_modality: BTreeMap<Modality, (std::vec::IntoIter<Grid>, usize)>,
}

impl PlacedItems {
    fn new(batch: &Batch, merge: usize) -> Self {
        let by_modality = batch.media.iter().map(|(modality, patches)| {
            let items: Vec<Grid> = match modality {
                // Timestamps separate the frames.
                Modality::Video => patches.grids.iter().flat_map(frames).collect(),
                _ => patches.grids.clone(),
            };
            let count = items.len();
            (modality, (items.into_iter(), count))
        });
        Self { merge, by_modality: by_modality.collect() }
    }

    /// Tokens along time, height and width of the item whose `found` placeholders begin at `[row, token]`.
    fn next(
        &mut self,
        modality: Modality,
        found: usize,
        [row, token]: [usize; 2],
    ) -> Result<[usize; 3], PositionError> {
        let item = match modality {
            Modality::Video => "video frame",
            _ => "image",
        };
        let (grid, given) = match self.by_modality.get_mut(&modality) {
            Some((grids, count)) => (grids.next(), *count),
            None => (None, 0),
        };
        let grid = grid.ok_or(PositionError::TooFewGrids { row, token, item, given })?;
        let size = [grid.t, grid.h / self.merge, grid.w / self.merge];
        let needed = size.iter().product();
        if found != needed {
            return Err(PositionError::RunLength { row, token, item, found, needed });
        }
        Ok(size)
    }
}

/// Each temporal patch of a video as an item of its own.
fn frames(video: &Grid) -> impl Iterator<Item = Grid> + use<> {
    std::iter::repeat_n(Grid::new(1, video.h, video.w), video.t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_inputs::{MultimodalInputs, PaddingSide, Patches, Sample};

    fn prompt(kinds: &[(u8, usize)], images: &[[usize; 3]], videos: &[[usize; 3]]) -> Sample {
        let kinds = kinds.iter().flat_map(|&(kind, n)| std::iter::repeat_n(kind, n));
        let modalities: Vec<_> = kinds.map(Modality::from_token_type_id).collect();
        let grids = |grids: &[[usize; 3]]| grids.iter().map(|grid| Grid::from(*grid)).collect();
        let patches = |all| Patches { values: Vec::new(), grids: grids(all) };
        let media = MultimodalInputs::from_iter([
            (Modality::Image, patches(images)),
            (Modality::Video, patches(videos)),
        ]);
        let text = Sample::from_text(vec![1; modalities.len()]);
        Sample { media, modalities, ..text }
    }

    #[test]
    fn an_image_advances_the_count_by_its_longer_side() {
        let sample = prompt(&[(0, 5), (1, 6), (0, 3)], &[[1, 4, 6]], &[]);

        let positions = PositionIds::from_batch(&Batch::collate(&[sample], 0, PaddingSide::Left), 2).unwrap();

        assert_eq!(positions.position_ids[0], [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 8, 9, 10]);
        assert_eq!(positions.position_ids[1], [0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 6, 8, 9, 10]);
        assert_eq!(positions.position_ids[2], [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10]);
        assert_eq!(positions.rope_deltas, [-3]);
    }

    #[test]
    fn every_frame_of_a_video_is_an_image_of_its_own() {
        let sample = prompt(&[(0, 5), (2, 6), (0, 3), (2, 6), (0, 4)], &[], &[[2, 4, 6]]);

        let positions = PositionIds::from_batch(&Batch::collate(&[sample], 0, PaddingSide::Left), 2).unwrap();

        assert_eq!(positions.position_ids[0][14], 11);
        assert_eq!(positions.position_ids[2][20..], [14, 15, 16, 17]);
        assert_eq!(positions.rope_deltas, [-6]);
    }

    #[test]
    fn padding_moves_no_position() {
        let long = prompt(&[(0, 9)], &[], &[]);
        let short = prompt(&[(0, 1), (1, 4), (0, 2)], &[[1, 4, 4]], &[]);
        let pair = [long, short.clone()];

        let left = PositionIds::from_batch(&Batch::collate(&pair, 0, PaddingSide::Left), 2).unwrap();
        let right = PositionIds::from_batch(&Batch::collate(&pair, 0, PaddingSide::Right), 2).unwrap();
        let alone = PositionIds::from_batch(&Batch::collate(&[short], 0, PaddingSide::Right), 2).unwrap();

        for axis in 0..3 {
            assert_eq!(left.position_ids[axis][11..18], alone.position_ids[axis][..]);
            assert_eq!(right.position_ids[axis][9..16], alone.position_ids[axis][..]);
        }
        assert_eq!((left.rope_deltas[1], right.rope_deltas[1]), (alone.rope_deltas[0], alone.rope_deltas[0]));
    }

    #[test]
    fn every_packed_sample_counts_from_zero() {
        let image = prompt(&[(0, 1), (1, 4), (0, 2)], &[[1, 4, 4]], &[]);
        let video = prompt(&[(0, 2), (2, 6), (0, 1)], &[], &[[1, 4, 6]]);
        let alone = [&image, &video].map(|sample| {
            PositionIds::from_batch(&Batch::collate(&[sample], 0, PaddingSide::Right), 2).unwrap()
        });

        let packed = PositionIds::from_batch(&Batch::pack(&[vec![&image, &video]], 0), 2).unwrap();

        for axis in 0..3 {
            let both = [&alone[0].position_ids[axis][..], &alone[1].position_ids[axis][..]].concat();
            assert_eq!(packed.position_ids[axis], both);
        }
        assert_eq!(packed.rope_deltas, alone[1].rope_deltas);
    }

    #[test]
    fn a_run_that_does_not_fit_its_image_is_an_error_with_both_counts() {
        let sample = prompt(&[(0, 2), (1, 5), (0, 1)], &[[1, 4, 6]], &[]);

        let error = PositionIds::from_batch(&Batch::collate(&[sample], 0, PaddingSide::Left), 2).unwrap_err();

        assert_eq!(error.to_string(), "row 0: 5 image placeholders from token 2 on, but their image takes 6");
    }
}
