//! Why a part has no result.

use glm4v_infer::GenerateError;
use glm4v_model::{ComputeError, ConfigError, DeviceError, ModelInputError};
use glm4v_train::StepError;
use glm4v_weights::WeightsError;

/// Why a check could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The device failed while it computed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The device cannot hold a tensor.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Generation failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The network refused a batch.
    #[error(transparent)]
    Input(#[from] ModelInputError),
    /// A training step failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// An adapter could not be added.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The config of a network of this crate is refused.
    #[error("the network {family} of this binary")]
    Config {
        /// "glm4v", "glm4v_moe" or "glm_ocr".
        family: &'static str,
        /// The error.
        source: ConfigError,
    },
}
