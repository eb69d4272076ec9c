//! Inputs of any shape, made from a seed.

use glm4v_inputs::SplitMix64;
use glm4v_model::{
    Batch, Glm4vConfig, Grid, Modality, MultimodalInputs, PaddingSide, Patches, Sample, VisionConfig,
};
use glm4v_plan::Workload;

use crate::error::MeasureError;

/// Shape of a batch: in every row a text, with an image in its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputShape {
    /// Rows.
    pub batch_size: usize,
    /// Patch grid of the image in every row; none for text alone.
    pub image: Option<Grid>,
    /// Tokens of text in every row.
    pub text_tokens: usize,
    /// Tokens at the end of every row that carry loss in training.
    pub labels: usize,
}

/// The grid of an image of about so many pixels: both sides are rounded to whole tokens, at least one.
///
/// The limits of a processor do not apply.
pub fn grid_for(vision: &VisionConfig, [width, height]: [usize; 2]) -> Grid {
    let merge = vision.spatial_merge_size;
    let token = vision.patch_size * merge;
    let patches = |pixels: usize| merge * ((pixels + token / 2) / token).max(1);
    Grid::new(1, patches(height), patches(width))
}

/// Refuses sequences that are longer than the model's positions.
///
/// # Errors
///
/// With both numbers.
pub fn check_length(config: &Glm4vConfig, workload: &'static str, tokens: usize) -> Result<(), MeasureError> {
    let longest = config.text.max_position_embeddings;
    if tokens > longest { Err(MeasureError::TooLong { workload, tokens, longest }) } else { Ok(()) }
}

impl InputShape {
    /// Tokens of a row, those of the image included.
    pub fn seq_len(&self, config: &Glm4vConfig) -> usize {
        self.text_tokens + self.image_tokens(config)
    }

    /// The same shape for estimates.
    pub fn workload(&self, config: &Glm4vConfig) -> Workload {
        Workload {
            batch_size: self.batch_size,
            seq_len: self.seq_len(config),
            completion_tokens: self.labels,
            image: self.image,
        }
    }

    /// A batch of this shape with random pixels and tokens.
    pub fn batch(&self, config: &Glm4vConfig, seed: u64) -> Batch {
        let mut random = SplitMix64::new(seed);
        let samples: Vec<Sample> = (0..self.batch_size).map(|_| self.sample(config, &mut random)).collect();
        Batch::collate(&samples, config.text.pad_token_id.unwrap_or(0), PaddingSide::Left)
    }

    fn image_tokens(&self, config: &Glm4vConfig) -> usize {
        self.image.map_or(0, |grid| grid.tokens(config.vision.spatial_merge_size))
    }

    fn sample(&self, config: &Glm4vConfig, random: &mut SplitMix64) -> Sample {
        let tokens = self.image_tokens(config);
        let before = self.text_tokens / 2;
        let mut input_ids: Vec<u32> = (0..self.text_tokens).map(|_| text_token(config, random)).collect();
        input_ids.splice(before..before, std::iter::repeat_n(config.image_token_id, tokens));
        let mut sample = Sample::from_text(input_ids);
        sample.modalities[before..before + tokens].fill(Some(Modality::Image));
        let unlabeled = sample.len().saturating_sub(self.labels);
        sample.loss_mask[unlabeled..].fill(true);
        if let Some(grid) = self.image {
            let count = grid.patches() * config.vision.patch_values();
            // The range of normalized pixels.
            let values = (0..count).map(|_| 4.0 * random.uniform() as f32 - 2.0).collect();
            sample.media =
                MultimodalInputs::from_iter([(Modality::Image, Patches { values, grids: vec![grid] })]);
        }
        sample
    }
}

/// A token that stands for itself: neither a placeholder nor padding.
fn text_token(config: &Glm4vConfig, random: &mut SplitMix64) -> u32 {
    let special = [Some(config.image_token_id), Some(config.video_token_id), config.text.pad_token_id];
    loop {
        let id = random.below(config.text.vocab_size as u64) as u32;
        if !special.contains(&Some(id)) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_model::{Backend, CausalLm};

    use crate::random_weights;

    const SHAPE: InputShape =
        InputShape { batch_size: 2, image: Some(Grid { t: 1, h: 4, w: 6 }), text_tokens: 9, labels: 3 };

    #[test]
    fn a_batch_has_the_shape_and_fits_the_network() {
        let config = Glm4vConfig::tiny();
        let device = Backend::Cpu.open().unwrap();
        let model = random_weights(config.init(&device), glm4v_model::Precision::F32, 0);

        let batch = SHAPE.batch(&config, 1);

        assert_eq!(batch.shape, [2, 9 + 6]);
        assert_eq!(batch.num_tokens(), 2 * 15);
        assert_eq!(batch.labels().ids.len(), 2 * 3);
        assert_eq!(batch.media.grids(Modality::Image).len(), 2);
        assert_eq!(model.forward(&batch).unwrap().dims(), [2, 15, 50]);
        assert_eq!(batch, SHAPE.batch(&config, 1));
        assert_ne!(batch, SHAPE.batch(&config, 2));
    }

    #[test]
    fn images_are_rounded_to_whole_tokens() {
        let vision = Glm4vConfig::tiny().vision; // tokens of 8 x 8 pixels

        assert_eq!(grid_for(&vision, [48, 32]), Grid::new(1, 8, 12));
        assert_eq!(grid_for(&vision, [51, 35]), Grid::new(1, 8, 12));
        assert_eq!(grid_for(&vision, [52, 1]), Grid::new(1, 2, 14));
    }
}
