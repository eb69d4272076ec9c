//! The host-side batch: what the processor and the data loader hand to the network.
//!
//! Plain vectors, no tensors: a batch is made on any thread and becomes tensors where the model lives.
//!
//! Dimensions: `B` rows, `S` sequence length, `P` patches of all images together, `C·T·ph·pw` values a patch.

use std::borrow::Borrow;

/// Sizes of one image or video in patches: frames (temporal patches), rows, columns.
///
/// Rows and columns are multiples of the merge size; an image has one frame.
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
    /// Builds a grid from the `[t, h, w]` row of `image_grid_thw` or `video_grid_thw`.
    pub fn new(t: usize, h: usize, w: usize) -> Self {
        Self { t, h, w }
    }

    /// Patches in the grid: rows of `pixel_values`.
    pub fn patches(&self) -> usize {
        self.t * self.h * self.w
    }

    /// Placeholder tokens that the grid takes in a prompt, with `merge` x `merge` patches a token.
    pub fn tokens(&self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }
}

/// Patches of images or videos, one item after another, in 2x2 block order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Patches {
    /// `[P, C·T·ph·pw]`, row-major; normalised values.
    pub values: Vec<f32>,
    /// One grid an item, in the order of the placeholders over the whole batch.
    pub grids: Vec<Grid>,
}

impl Patches {
    /// Rows of `values` that the grids call for.
    pub fn count(&self) -> usize {
        self.grids.iter().map(Grid::patches).sum()
    }
}

/// What kind of feature a token position takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum TokenKind {
    /// A word of the text.
    #[default]
    Text = 0,
    /// Filled by an image feature.
    Image = 1,
    /// Filled by a feature of a video frame.
    Video = 2,
}

/// One row of a batch before padding: a prompt, with its answer when it is for training.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Token ids with every placeholder expanded, `[S]`.
    pub input_ids: Vec<u32>,
    /// Kind of each position (`mm_token_type_ids`), `[S]`.
    pub kinds: Vec<TokenKind>,
    /// Whether the model carries loss to produce this token, `[S]`; empty for a prompt.
    pub loss_mask: Vec<bool>,
    /// Patches of the images, in the order of their placeholders.
    pub images: Patches,
    /// Patches of the videos, in the order of their placeholders.
    pub videos: Patches,
}

impl Sample {
    /// Builds a sample from what a processor returns: ids, `mm_token_type_ids` (0 text, 1 image, 2 video), and
    /// the patches and `[t, h, w]` grids of images and videos.
    pub fn from_parts(
        input_ids: Vec<u32>,
        mm_token_type_ids: &[u8],
        loss_mask: Vec<bool>,
        images: (Vec<f32>, &[[usize; 3]]),
        videos: (Vec<f32>, &[[usize; 3]]),
    ) -> Self {
        let patches = |(values, grids): (Vec<f32>, &[[usize; 3]])| Patches {
            values,
            grids: grids.iter().map(|&[t, h, w]| Grid::new(t, h, w)).collect(),
        };
        let kinds = mm_token_type_ids.iter().map(|kind| match kind {
            1 => TokenKind::Image,
            2 => TokenKind::Video,
            _ => TokenKind::Text,
        });
        Self {
            input_ids,
            kinds: kinds.collect(),
            loss_mask,
            images: patches(images),
            videos: patches(videos),
        }
    }
}

/// On which side short rows are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaddingSide {
    /// For generation: every row ends with its last real token.
    Left,
    /// For training.
    Right,
}

/// Padded rows of equal length with the patches of all their images and videos.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// `[B, S]`
    pub shape: [usize; 2],
    /// Token ids, `[B, S]` row-major.
    pub input_ids: Vec<u32>,
    /// Kind of each position, `[B, S]`.
    pub kinds: Vec<TokenKind>,
    /// False where a row is padded, `[B, S]`.
    pub attention_mask: Vec<bool>,
    /// True where the token is to be learned, `[B, S]`.
    pub loss_mask: Vec<bool>,
    /// Images of all rows.
    pub images: Patches,
    /// Videos of all rows.
    pub videos: Patches,
}

impl Batch {
    /// Pads `samples` with `pad_token_id` to the longest of them and joins their patches.
    pub fn collate<S: Borrow<Sample>>(samples: &[S], pad_token_id: u32, side: PaddingSide) -> Self {
        let samples: Vec<&Sample> = samples.iter().map(Borrow::borrow).collect();
        let width = samples.iter().map(|s| s.input_ids.len()).max().unwrap_or(0);
        let size = samples.len() * width;
        let mut batch = Self {
            shape: [samples.len(), width],
            input_ids: vec![pad_token_id; size],
            kinds: vec![TokenKind::Text; size],
            attention_mask: vec![false; size],
            loss_mask: vec![false; size],
            images: Patches::default(),
            videos: Patches::default(),
        };
        for (row, sample) in samples.iter().enumerate() {
            let length = sample.input_ids.len();
            let start = row * width
                + match side {
                    PaddingSide::Left => width - length,
                    PaddingSide::Right => 0,
                };
            let place = start..start + length;
            batch.input_ids[place.clone()].copy_from_slice(&sample.input_ids);
            batch.kinds[place.clone()].copy_from_slice(&sample.kinds);
            batch.attention_mask[place.clone()].fill(true);
            if !sample.loss_mask.is_empty() {
                batch.loss_mask[place].copy_from_slice(&sample.loss_mask);
            }
            for (all, own) in [(&mut batch.images, &sample.images), (&mut batch.videos, &sample.videos)] {
                all.values.extend_from_slice(&own.values);
                all.grids.extend_from_slice(&own.grids);
            }
        }
        batch
    }

    /// Positions that the model learns to produce. The first position of a row is never among them: nothing comes before it.
    pub fn num_label_tokens(&self) -> usize {
        let width = self.shape[1];
        self.loss_mask.iter().enumerate().filter(|(i, label)| **label && i % width != 0).count()
    }

    /// Real tokens, without padding.
    pub fn tokens(&self) -> usize {
        self.attention_mask.iter().filter(|real| **real).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ids: &[u32], patches: usize) -> Sample {
        Sample {
            input_ids: ids.to_vec(),
            kinds: vec![TokenKind::Text; ids.len()],
            loss_mask: ids.iter().map(|i| i % 2 == 1).collect(),
            images: Patches {
                values: vec![ids[0] as f32; patches * 3],
                grids: vec![Grid::new(1, 1, patches)],
            },
            videos: Patches::default(),
        }
    }

    #[test]
    fn left_and_right_padding_keep_every_row_whole() {
        let samples = [sample(&[1, 2, 3], 2), sample(&[4, 5], 4)];

        let right = Batch::collate(&samples, 9, PaddingSide::Right);
        let left = Batch::collate(&samples, 9, PaddingSide::Left);

        assert_eq!(right.input_ids, [1, 2, 3, 4, 5, 9]);
        assert_eq!(left.input_ids, [1, 2, 3, 9, 4, 5]);
        assert_eq!(left.attention_mask, [true, true, true, false, true, true]);
        assert_eq!(left.loss_mask, [true, false, true, false, false, true]);
        assert_eq!(left.images.values.len(), 6 * 3);
        assert_eq!(left.images.grids, [Grid::new(1, 1, 2), Grid::new(1, 1, 4)]);
    }

    #[test]
    fn the_first_token_of_a_row_cannot_carry_loss() {
        let batch = Batch::collate(&[sample(&[1, 2, 3], 1), sample(&[5, 7], 1)], 9, PaddingSide::Right);

        assert_eq!(batch.num_label_tokens(), 2); // 3 and 7: 1 and 5 open their rows
        assert_eq!(batch.tokens(), 5);
    }
}
