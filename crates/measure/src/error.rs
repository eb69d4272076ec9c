//! Errors of measurements.

use glm4v_model::{ComputeError, DeviceError, ModelInputError};
use glm4v_plan::MemoryEstimate;
use glm4v_processor::ImageError;
use glm4v_train::StepError;
use glm4v_weights::WeightsError;

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The workload takes more memory than there is.
    #[error(
        "{workload}: needs about {} GB ({} GB of weights, {} GB of optimizer state and gradients, {} GB of the rest), and {place} has \
         {} GB free",
        gigabytes(needed.total()), gigabytes(needed.weights), gigabytes(needed.optimizer + needed.gradients),
        gigabytes(needed.kv_cache + needed.saved_activations + needed.workspace), gigabytes(*free)
    )]
    DoesNotFit {
        /// What was to be measured.
        workload: String,
        /// Estimated peak.
        needed: Box<MemoryEstimate>,
        /// "the device" or "this machine".
        place: &'static str,
        /// Bytes free.
        free: u64,
    },
    /// The sequence is longer than the model's positions.
    #[error("{workload}: takes {tokens} positions, and the model has {longest} (max_position_embeddings)")]
    TooLong {
        /// What was to be measured.
        workload: &'static str,
        /// Positions needed.
        tokens: usize,
        /// Positions of the model.
        longest: usize,
    },
    /// The system gives no memory.
    #[error("no memory for a block of {bytes} bytes to copy")]
    NoMemory {
        /// Bytes of the block.
        bytes: usize,
        /// Error of the system.
        source: std::io::Error,
    },
    /// Nothing is left to train.
    #[error("training: every part of the network is frozen; needed: one that is trained")]
    NothingToTrain,
    /// Batch and model do not fit.
    #[error(transparent)]
    Input(#[from] ModelInputError),
    /// A training step failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Weights cannot be read, or adapters not be added.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// An image cannot be read or resized.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The device cannot hold the network.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The computation failed on the device.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e9)
}
