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
    /// Prompt and images disagree on how many tokens the images take.
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
    /// Features that were made earlier do not fit the grids, or the model.
    #[error(
        "{kind} features have shape {found:?}; needed: {needed:?}, a row for each token that the grids call for"
    )]
    FeatureShape {
        /// "image" or "video".
        kind: &'static str,
        /// Rows and width of the features.
        found: [usize; 2],
        /// Tokens that the grids call for, and the model's width.
        needed: [usize; 2],
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

/// What a batch's images are to the text decoder, images and videos apart, in the order of the batch's grids.
///
/// Made by [`Glm4v::encode`](crate::Glm4v::encode), or earlier and elsewhere: these are what vLLM calls `image_embeds` and
/// `video_embeds`.
#[derive(Debug, Clone, Default)]
pub struct Features {
    /// `[N, D]`; none without images.
    pub images: Option<Tensor<2>>,
    /// `[M, D]`; none without videos.
    pub videos: Option<Tensor<2>>,
}

impl Features {
    /// Makes sure that there is a feature for every token that the grids call for.
    pub(crate) fn check(&self, batch: &Batch, config: &Glm4vConfig) -> Result<(), FusionError> {
        let width = config.text.hidden_size;
        for (kind, features, patches) in
            [("image", &self.images, &batch.images), ("video", &self.videos, &batch.videos)]
        {
            let needed = tokens(patches, config);
            let found = features.as_ref().map_or([0, width], Tensor::dims);
            if found != [needed, width] {
                return Err(FusionError::FeatureShape { kind, found, needed: [needed, width] });
            }
        }
        Ok(())
    }
}

/// Tokens that grids call for.
fn tokens(patches: &Patches, config: &Glm4vConfig) -> usize {
    patches.grids.iter().map(|grid| grid.tokens(config.vision.spatial_merge_size)).sum()
}

/// Checks the prompts of a batch, and that their placeholders are as many as its grids call for.
pub(crate) fn check_prompts(batch: &Batch, config: &Glm4vConfig) -> Result<(), FusionError> {
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
    for (kind, name, patches) in
        [(TokenKind::Image, "image", &batch.images), (TokenKind::Video, "video", &batch.videos)]
    {
        check_grids(name, patches, config)?;
        let found = batch.kinds.iter().filter(|other| **other == kind).count();
        let needed = tokens(patches, config);
        if found != needed {
            return Err(FusionError::TokenCount { kind: name, found, needed });
        }
    }
    Ok(())
}

/// Checks that the images of a batch have the patches that their grids call for.
pub(crate) fn check_patches(batch: &Batch, config: &Glm4vConfig) -> Result<(), FusionError> {
    let values = config.vision.patch_values();
    for (kind, patches) in [("image", &batch.images), ("video", &batch.videos)] {
        check_grids(kind, patches, config)?;
        let (found, needed) = (patches.values.len(), patches.count() * values);
        if found != needed {
            let patches = patches.count();
            return Err(FusionError::PatchCount { kind, found, needed, patches, values });
        }
    }
    Ok(())
}

fn check_grids(kind: &'static str, patches: &Patches, config: &Glm4vConfig) -> Result<(), FusionError> {
    let merge = config.vision.spatial_merge_size;
    let fits = |size: usize| size > 0 && size.is_multiple_of(merge);
    match patches.grids.iter().find(|g| g.t == 0 || !fits(g.h) || !fits(g.w)) {
        Some(bad) => Err(FusionError::Grid { kind, t: bad.t, h: bad.h, w: bad.w, merge }),
        None => Ok(()),
    }
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
