//! Multimodal embeddings, and their merge into the token embeddings of a prompt.
//!
//! Images and videos share one placeholder token, so positions are distinguished by modality, not by id. (transformers looks
//! at the id alone and refuses a prompt with both; `image_video_mix` in the golden tests shows our reading.)
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size, `N` embeddings of one modality.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::TensorData;
use glm4v_inputs::{Batch, Modality, Patches};

use crate::config::Glm4vConfig;
use crate::nn::positions::PositionError;

/// Why a batch does not fit the network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelInputError {
    /// Prompt and images disagree on how many tokens the images take.
    #[error(
        "the prompts have {found} {modality} placeholders, but the {modality}s of the batch take {needed} tokens"
    )]
    TokenCount {
        /// Images or videos.
        modality: Modality,
        /// Placeholders in the prompts.
        found: usize,
        /// Tokens that the grids call for.
        needed: usize,
    },
    /// Features that were made earlier do not fit the grids, or the model.
    #[error(
        "{modality} features have shape {found:?}; needed: {needed:?}, a row for each token that the grids call for"
    )]
    EmbeddingShape {
        /// Images or videos.
        modality: Modality,
        /// Shape of the features.
        found: [usize; 2],
        /// Tokens that the grids call for, and the hidden size.
        needed: [usize; 2],
    },
    /// Patches and grids disagree.
    #[error(
        "{modality} values: found {found}, but the grids call for {needed} ({patches} patches of {values})"
    )]
    PatchCount {
        /// Images or videos.
        modality: Modality,
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
    #[error("{modality} grid {t}x{h}x{w}: height and width must be positive multiples of {merge}")]
    Grid {
        /// Images or videos.
        modality: Modality,
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

/// What the vision tower makes of a batch's images and videos: the embeddings of their placeholder tokens.
///
/// Made by [`Glm4v::embed_multimodal`](crate::Glm4v::embed_multimodal), or earlier and elsewhere: vLLM's `image_embeds` and
/// `video_embeds`.
#[derive(Debug, Clone, Default)]
pub struct MultimodalEmbeddings {
    by_modality: BTreeMap<Modality, Tensor<2>>,
}

impl FromIterator<(Modality, Tensor<2>)> for MultimodalEmbeddings {
    fn from_iter<I: IntoIterator<Item = (Modality, Tensor<2>)>>(embeddings: I) -> Self {
        Self { by_modality: embeddings.into_iter().collect() }
    }
}

impl MultimodalEmbeddings {
    /// The embeddings of a modality, item after item, `[N, D]`; none without items.
    pub fn get(&self, modality: Modality) -> Option<&Tensor<2>> {
        self.by_modality.get(&modality)
    }

    /// The modalities that have embeddings, images first.
    pub fn iter(&self) -> impl Iterator<Item = (Modality, &Tensor<2>)> {
        self.by_modality.iter().map(|(modality, embeddings)| (*modality, embeddings))
    }

    /// Checks that there is an embedding for every token of the batch's grids.
    pub(crate) fn check(&self, batch: &Batch, config: &Glm4vConfig) -> Result<(), ModelInputError> {
        let hidden = config.text.hidden_size;
        for modality in [Modality::Image, Modality::Video] {
            let needed = [placeholder_tokens(batch.media.patches(modality), config), hidden];
            let found = self.get(modality).map_or([0, hidden], Tensor::dims);
            if found != needed {
                return Err(ModelInputError::EmbeddingShape { modality, found, needed });
            }
        }
        Ok(())
    }
}

/// Tokens that the grids call for.
fn placeholder_tokens(patches: &Patches, config: &Glm4vConfig) -> usize {
    patches.grids.iter().map(|grid| grid.tokens(config.vision.spatial_merge_size)).sum()
}

/// Checks the prompts of a batch, its grids, and that there are as many placeholders as the grids call for.
pub(crate) fn check_prompts(batch: &Batch, config: &Glm4vConfig) -> Result<(), ModelInputError> {
    let [rows, length] = batch.shape;
    for row in 0..rows {
        let own = row * length..(row + 1) * length;
        let ids = &batch.input_ids[own.clone()];
        if let Some(token) = ids.iter().position(|id| *id as usize >= config.text.vocab_size) {
            let (id, vocab_size) = (ids[token], config.text.vocab_size);
            return Err(ModelInputError::TokenId { row, token, id, vocab_size });
        }
        // Softmax over no key at all has no meaning.
        if batch.segment_ids[own].iter().all(|segment| *segment == 0) {
            return Err(ModelInputError::EmptyRow { row });
        }
    }
    for modality in [Modality::Image, Modality::Video] {
        let patches = batch.media.patches(modality);
        check_grids(modality, patches, config)?;
        let found = batch.modalities.iter().filter(|other| **other == Some(modality)).count();
        let needed = placeholder_tokens(patches, config);
        if found != needed {
            return Err(ModelInputError::TokenCount { modality, found, needed });
        }
    }
    Ok(())
}

/// Checks the grids of a batch, and that there are as many patches as they call for.
pub(crate) fn check_patches(batch: &Batch, config: &Glm4vConfig) -> Result<(), ModelInputError> {
    for (modality, patches) in batch.media.iter() {
        check_grids(modality, patches, config)?;
        check_values(modality, patches, config)?;
    }
    Ok(())
}

/// Checks that there are as many pixel values as the grids call for.
pub(crate) fn check_values(
    modality: Modality,
    patches: &Patches,
    config: &Glm4vConfig,
) -> Result<(), ModelInputError> {
    let (count, values) = (patches.count(), config.vision.patch_values());
    let (found, needed) = (patches.values.len(), count * values);
    if found == needed {
        return Ok(());
    }
    Err(ModelInputError::PatchCount { modality, found, needed, patches: count, values })
}

fn check_grids(modality: Modality, patches: &Patches, config: &Glm4vConfig) -> Result<(), ModelInputError> {
    let merge = config.vision.spatial_merge_size;
    let fits = |size: usize| size > 0 && size.is_multiple_of(merge);
    match patches.grids.iter().find(|grid| grid.t == 0 || !fits(grid.h) || !fits(grid.w)) {
        Some(grid) => Err(ModelInputError::Grid { modality, t: grid.t, h: grid.h, w: grid.w, merge }),
        None => Ok(()),
    }
}

/// Replaces the token embeddings of placeholders, in order, by the embeddings of their modality (`masked_scatter`).
///
/// # Shapes
///
/// - inputs_embeds, output: `[B, S, D]`
/// - modalities: `[B, S]`, row-major
pub fn merge_multimodal_embeddings(
    inputs_embeds: Tensor<3>,
    embeddings: MultimodalEmbeddings,
    modalities: &[Option<Modality>],
) -> Tensor<3> {
    if embeddings.by_modality.is_empty() {
        return inputs_embeds;
    }
    let [rows, length, hidden] = inputs_embeds.dims();
    let (dtype, device) = (inputs_embeds.dtype(), inputs_embeds.device());
    // One table of everything, read by row: text from the token embeddings, the rest from those after them.
    let mut table = vec![inputs_embeds.reshape([rows * length, hidden])];
    let mut next_row = BTreeMap::new();
    let mut end = rows * length;
    for (modality, embeddings) in embeddings.by_modality {
        next_row.insert(modality, end);
        end += embeddings.dims()[0];
        table.push(embeddings.cast(dtype));
    }
    let mut row_of = |at: usize, modality: &Option<Modality>| {
        let Some(next) = modality.and_then(|modality| next_row.get_mut(&modality)) else { return at as i32 };
        *next += 1;
        *next as i32 - 1
    };
    let index: Vec<i32> = modalities.iter().enumerate().map(|(at, modality)| row_of(at, modality)).collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(index, [rows * length]), &device);
    Tensor::cat(table, 0).select(0, index).reshape([rows, length, hidden])
}
