//! Puts the features of images and videos where the prompt has their placeholders.
//!
//! Images and videos share one placeholder token, so positions are told apart by kind, not by id. (transformers looks
//! at the id alone and refuses a prompt with both; `image_video_mix` in the golden tests shows our reading.)
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width, `N` features of images, `M` of videos.

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::batch::{Batch, Patches, TokenKind};
use crate::config::Glm4vConfig;
use crate::positions::PositionError;

/// Why a batch does not fit the network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FusionError {
    /// Prompt and pictures disagree on how many tokens the pictures take.
    #[error(
        "the prompts have {found} {kind} placeholders, but the {kind}s of the batch take {needed} tokens"
    )]
    TokenCount {
        /// "image" or "video".
        kind: &'static str,
        /// Placeholders in the prompts.
        found: usize,
        /// Tokens that the grids call for.
        needed: usize,
    },
    /// Patches and grids disagree.
    #[error("{kind} values: found {found}, but the grids call for {needed} ({patches} patches of {values})")]
    PatchCount {
        /// "image" or "video".
        kind: &'static str,
        /// Values in the batch.
        found: usize,
        /// Values that the grids call for.
        needed: usize,
        /// Patches that the grids call for.
        patches: usize,
        /// Values a patch.
        values: usize,
    },
    /// A grid that does not divide into blocks.
    #[error("{kind} grid {t}x{h}x{w}: height and width must be positive multiples of {merge}")]
    Grid {
        /// "image" or "video".
        kind: &'static str,
        /// Frames.
        t: usize,
        /// Patch rows.
        h: usize,
        /// Patch columns.
        w: usize,
        /// Side of a block.
        merge: usize,
    },
    /// A token that the embedding table does not have.
    #[error("row {row}, token {token}: id {id}, but the vocabulary has {vocab_size} entries")]
    TokenId {
        /// Row of the batch.
        row: usize,
        /// Position in the row.
        token: usize,
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },
    /// A row without a single token.
    #[error("row {row} of the batch has no tokens")]
    EmptyRow {
        /// Row of the batch.
        row: usize,
    },
    /// Placeholders that do not follow the grids.
    #[error(transparent)]
    Position(#[from] PositionError),
}

/// Checks everything that the forward pass relies on.
pub(crate) fn check(batch: &Batch, config: &Glm4vConfig) -> Result<(), FusionError> {
    let [rows, width] = batch.shape;
    for row in 0..rows {
        let ids = &batch.input_ids[row * width..(row + 1) * width];
        if let Some(token) = ids.iter().position(|id| *id as usize >= config.text.vocab_size) {
            let (id, vocab_size) = (ids[token], config.text.vocab_size);
            return Err(FusionError::TokenId { row, token, id, vocab_size });
        }
        if !batch.attention_mask[row * width..(row + 1) * width].contains(&true) {
            return Err(FusionError::EmptyRow { row });
        }
    }
    check_patches(batch, &batch.images, TokenKind::Image, config)?;
    check_patches(batch, &batch.videos, TokenKind::Video, config)
}

fn check_patches(
    batch: &Batch,
    patches: &Patches,
    of: TokenKind,
    config: &Glm4vConfig,
) -> Result<(), FusionError> {
    let kind = match of {
        TokenKind::Video => "video",
        _ => "image",
    };
    let merge = config.vision.spatial_merge_size;
    let fits = |size: usize| size > 0 && size.is_multiple_of(merge);
    if let Some(bad) = patches.grids.iter().find(|g| g.t == 0 || !fits(g.h) || !fits(g.w)) {
        return Err(FusionError::Grid { kind, t: bad.t, h: bad.h, w: bad.w, merge });
    }
    let values = config.vision.patch_values();
    let (found, needed) = (patches.values.len(), patches.count() * values);
    if found != needed {
        let patches = patches.count();
        return Err(FusionError::PatchCount { kind, found, needed, patches, values });
    }
    let found = batch.kinds.iter().filter(|k| **k == of).count();
    let needed = patches.grids.iter().map(|grid| grid.tokens(merge)).sum();
    if found != needed {
        return Err(FusionError::TokenCount { kind, found, needed });
    }
    Ok(())
}

/// Replaces the embeddings of placeholders, in order, by the features of their kind.
///
/// # Shapes
///
/// - embeds, output: `[B, S, D]`
/// - images: `[N, D]`, one for each position of kind image
/// - videos: `[M, D]`, one for each position of kind video
pub fn fuse(
    embeds: Tensor<3>,
    images: Option<Tensor<2>>,
    videos: Option<Tensor<2>>,
    kinds: &[TokenKind],
) -> Tensor<3> {
    if images.is_none() && videos.is_none() {
        return embeds;
    }
    let [rows, width, hidden] = embeds.dims();
    let dtype = embeds.dtype();
    let device = embeds.device();
    // One table of everything, read by row: text from the embeddings, the rest from the features behind them.
    let mut next_image = rows * width;
    let mut next_video = next_image + images.as_ref().map_or(0, |images| images.dims()[0]);
    let index: Vec<i32> = kinds
        .iter()
        .enumerate()
        .map(|(slot, kind)| {
            let next = match kind {
                TokenKind::Text => return slot as i32,
                TokenKind::Image => &mut next_image,
                TokenKind::Video => &mut next_video,
            };
            *next += 1;
            *next as i32 - 1
        })
        .collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(index, [rows * width]), &device);
    let mut table = vec![embeds.reshape([rows * width, hidden])];
    table.extend([images, videos].into_iter().flatten().map(|features| features.cast(dtype)));
    Tensor::cat(table, 0).select(0, index).reshape([rows, width, hidden])
}
