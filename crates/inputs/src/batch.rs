//! Samples side by side: padded, or packed several to a row.
//!
//! Dimensions: `B` rows, `S` sequence length, `N` labels.

use std::borrow::Borrow;

use crate::media::{Modality, MultimodalInputs};
use crate::sample::Sample;

/// The side on which short rows are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaddingSide {
    /// For generation: every row ends with its last token.
    Left,
    /// For training.
    Right,
}

/// Rows of equal length with the media of all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[B, S]`
    pub shape: [usize; 2],
    /// Token ids, `[B, S]` row-major.
    pub input_ids: Vec<u32>,
    /// What fills each position, none for text and padding, `[B, S]`.
    pub modalities: Vec<Option<Modality>>,
    /// 0 for padding; 1, 2, … for the samples of a row, `[B, S]`.
    ///
    /// Positions attend to their own segment only, and count from its start.
    pub segment_ids: Vec<u32>,
    /// Whether a token is a label, `[B, S]`.
    pub loss_mask: Vec<bool>,
    /// Factor of each label's loss, `[B, S]`; `None` if all are 1. Without meaning where there is no label.
    pub loss_weights: Option<Vec<f32>>,
    /// Media of all rows, in the order of their placeholders.
    pub media: MultimodalInputs,
}

/// The labels of a batch with the positions whose logits predict them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    /// Indices into the `[B, S]` positions: the one before each label, `[N]`.
    pub positions: Vec<usize>,
    /// Token ids, `[N]`.
    pub ids: Vec<u32>,
    /// Factor of each label's loss, `[N]`; `None` if all are 1.
    pub weights: Option<Vec<f32>>,
}

impl Batch {
    /// One sample a row, padded with `pad_token_id` to the longest.
    pub fn collate<S: Borrow<Sample>>(samples: &[S], pad_token_id: u32, side: PaddingSide) -> Self {
        let length = samples.iter().map(|sample| sample.borrow().len()).max().unwrap_or(0);
        let mut batch = Self::padding([samples.len(), length], pad_token_id);
        batch.media.reserve(samples.iter().map(|sample| &sample.borrow().media));
        for (row, sample) in samples.iter().map(Borrow::borrow).enumerate() {
            let first = match side {
                PaddingSide::Left => length - sample.len(),
                PaddingSide::Right => 0,
            };
            batch.place(sample, row * length + first, 1);
        }
        batch
    }

    /// Several samples a row, one segment each, padded on the right with `pad_token_id` to the longest row.
    ///
    /// Each sample gets the logits that it has alone.
    pub fn pack<S: Borrow<Sample>>(rows: &[Vec<S>], pad_token_id: u32) -> Self {
        let row_length = |row: &Vec<S>| row.iter().map(|sample| sample.borrow().len()).sum::<usize>();
        let length = rows.iter().map(row_length).max().unwrap_or(0);
        let mut batch = Self::padding([rows.len(), length], pad_token_id);
        batch.media.reserve(rows.iter().flatten().map(|sample| &sample.borrow().media));
        for (row, samples) in rows.iter().enumerate() {
            let mut first = row * length;
            for (sample, segment) in samples.iter().map(Borrow::borrow).zip(1..) {
                batch.place(sample, first, segment);
                first += sample.len();
            }
        }
        batch
    }

    fn padding(shape: [usize; 2], pad_token_id: u32) -> Self {
        let size = shape[0] * shape[1];
        Self {
            shape,
            input_ids: vec![pad_token_id; size],
            modalities: vec![None; size],
            segment_ids: vec![0; size],
            loss_mask: vec![false; size],
            loss_weights: None,
            media: MultimodalInputs::default(),
        }
    }

    fn place(&mut self, sample: &Sample, first: usize, segment: u32) {
        let range = first..first + sample.len();
        self.input_ids[range.clone()].copy_from_slice(&sample.input_ids);
        self.modalities[range.clone()].copy_from_slice(&sample.modalities);
        self.loss_mask[range.clone()].copy_from_slice(&sample.loss_mask);
        if let Some(weights) = &sample.loss_weights {
            let size = self.input_ids.len();
            self.loss_weights.get_or_insert_with(|| vec![1.0; size])[range.clone()].copy_from_slice(weights);
        }
        self.segment_ids[range].fill(segment);
        // Sample by sample, row by row: the order in which placeholders are counted.
        self.media.extend(&sample.media);
    }

    /// True for tokens, false for padding, `[B, S]`.
    pub fn attention_mask(&self) -> Vec<bool> {
        self.segment_ids.iter().map(|segment| *segment != 0).collect()
    }

    /// Number of tokens, without padding.
    pub fn num_tokens(&self) -> usize {
        self.segment_ids.iter().filter(|segment| **segment != 0).count()
    }

    /// The labels, in the order of their positions.
    ///
    /// The first token of a segment is never one: nothing comes before it.
    pub fn labels(&self) -> Labels {
        let length = self.shape[1].max(1);
        let follows =
            |at: usize| !at.is_multiple_of(length) && self.segment_ids[at - 1] == self.segment_ids[at];
        let labels: Vec<usize> =
            (0..self.loss_mask.len()).filter(|at| self.loss_mask[*at] && follows(*at)).collect();
        let (positions, ids) = labels.iter().map(|at| (at - 1, self.input_ids[*at])).unzip();
        let weights = self.loss_weights.as_ref();
        Labels {
            positions,
            ids,
            weights: weights.map(|weights| labels.iter().map(|at| weights[*at]).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grid, Patches};

    fn sample(ids: &[u32], patches: usize) -> Sample {
        let loss_mask = ids.iter().map(|id| id % 2 == 1).collect();
        let image =
            Patches { values: vec![ids[0] as f32; patches * 3], grids: vec![Grid::new(1, 1, patches)] };
        let media = MultimodalInputs::from_iter([(Modality::Image, image)]);
        Sample { media, ..Sample::from_text(ids.to_vec()).with_loss_mask(loss_mask) }
    }

    #[test]
    fn left_and_right_padding_keep_every_row_whole() {
        let samples = [sample(&[1, 2, 3], 2), sample(&[4, 5], 4)];

        let right = Batch::collate(&samples, 9, PaddingSide::Right);
        let left = Batch::collate(&samples, 9, PaddingSide::Left);

        assert_eq!(right.input_ids, [1, 2, 3, 4, 5, 9]);
        assert_eq!(left.input_ids, [1, 2, 3, 9, 4, 5]);
        assert_eq!(left.attention_mask(), [true, true, true, false, true, true]);
        assert_eq!(left.loss_mask, [true, false, true, false, false, true]);
        assert_eq!(left.media.patches(Modality::Image).values.len(), 6 * 3);
        assert_eq!(left.media.grids(Modality::Image), [Grid::new(1, 1, 2), Grid::new(1, 1, 4)]);
        assert_eq!(left.media.grids(Modality::Video), []);
    }

    #[test]
    fn packed_samples_are_segments_of_a_row() {
        let rows = [vec![sample(&[1, 2, 3], 1), sample(&[4, 5], 2)], vec![sample(&[7, 8], 3)]];

        let batch = Batch::pack(&rows, 9);

        assert_eq!(batch.shape, [2, 5]);
        assert_eq!(batch.input_ids, [1, 2, 3, 4, 5, 7, 8, 9, 9, 9]);
        assert_eq!(batch.segment_ids, [1, 1, 1, 2, 2, 1, 1, 0, 0, 0]);
        assert_eq!(
            batch.media.grids(Modality::Image).iter().map(|grid| grid.w).collect::<Vec<_>>(),
            [1, 2, 3]
        );
    }

    #[test]
    fn a_label_keeps_its_weight_beside_samples_without_weights() {
        let mut weighted = sample(&[1, 3, 5], 1);
        weighted.loss_weights = Some(vec![0.0, 0.5, 2.0]);
        let samples = [sample(&[7, 9], 1), weighted];

        let padded = Batch::collate(&samples, 8, PaddingSide::Right).labels();
        let packed = Batch::pack(&[samples.to_vec()], 8).labels();

        assert_eq!((padded.ids, padded.weights), (vec![9, 3, 5], Some(vec![1.0, 0.5, 2.0])));
        assert_eq!((packed.ids, packed.weights), (vec![9, 3, 5], Some(vec![1.0, 0.5, 2.0])));
    }

    #[test]
    fn the_first_token_of_a_segment_is_no_label() {
        let batch = Batch::collate(&[sample(&[1, 2, 3], 1), sample(&[5, 7], 1)], 9, PaddingSide::Right);

        assert_eq!(batch.labels(), Labels { positions: vec![1, 3], ids: vec![3, 7], weights: None }); // 1 and 5 open their rows
        assert_eq!(batch.num_tokens(), 5);

        let packed = Batch::pack(&[vec![sample(&[1, 2, 3], 1), sample(&[5, 7], 1)]], 9);
        assert_eq!(packed.labels(), Labels { positions: vec![1, 3], ids: vec![3, 7], weights: None });
    }
}
