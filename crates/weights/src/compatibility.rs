//! Agreement of a model's config with the processor that prepares its inputs.

use crate::error::WeightsError;
use crate::folder::ModelFolder;

/// The properties of a processor that must agree with the network.
///
/// Plain numbers, so that this crate does not depend on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessorProperties {
    /// Id of `<|image|>` in `tokenizer.json`.
    pub image_token_id: u32,
    /// Values in a patch, by `preprocessor_config.json`.
    pub patch_values: usize,
    /// Patches merged into one token, by `preprocessor_config.json`.
    pub patches_per_token: usize,
}

impl ModelFolder {
    /// Checks that a processor prepares inputs for this network, which files of different checkpoints may not.
    ///
    /// # Errors
    ///
    /// When a property of the processor differs from `config.json`.
    pub fn check_processor(&self, processor: &ProcessorProperties) -> Result<(), WeightsError> {
        let config = self.config();
        if config.image_token_id != processor.image_token_id {
            return Err(WeightsError::ImageToken {
                dir: self.path().to_owned(),
                config: config.image_token_id,
                tokenizer: processor.image_token_id,
            });
        }
        let patch = "patch_size and temporal_patch_size";
        for (quantity, key, config, processor) in [
            ("values in a patch", patch, config.vision.patch_values(), processor.patch_values),
            ("patches in a token", "merge_size", config.vision.merged_patches(), processor.patches_per_token),
        ] {
            if config != processor {
                let dir = self.path().to_owned();
                return Err(WeightsError::PatchSize { dir, quantity, key, config, processor });
            }
        }
        Ok(())
    }
}
