//! Bytes of the tensors that autodiff saves for the backward pass of one operation.
//!
//! A product saves its factors, each only if the other one is trainable or depends on something that is; sums save nothing.
//! Norms, softmax, router and loss compute in f32 whatever the dtype of the weights.

use glm4v_model::ModelPart;

use crate::cost_model::{CostModel, F32_BYTES};
use crate::tuning::{AdapterPlace, TuningMode};

/// Bytes saved per token or patch, or per attention score, by the operations that blocks consist of.
#[derive(Clone, Copy)]
pub(crate) struct SavedTensors {
    /// Bytes per element of activations.
    pub(crate) dtype_bytes: u64,
    /// Whether the weights are trainable, so that their factors are saved too. With LoRA only the adapters' are.
    pub(crate) trainable: bool,
    /// Whether operations save their inputs alone.
    pub(crate) own_kernels: bool,
    /// What is trained.
    tuning: TuningMode,
}

impl SavedTensors {
    pub(crate) fn new(cost: &CostModel<'_>, tuning: TuningMode, part: ModelPart) -> Self {
        Self {
            dtype_bytes: cost.dtype_bytes,
            trainable: tuning.trains(part),
            own_kernels: cost.has_own_kernels(),
            tuning,
        }
    }

    /// A tensor of `width` in the dtype of the model.
    pub(crate) fn tensor(self, width: u64) -> u64 {
        width * self.dtype_bytes
    }

    /// A tensor that only the gradient of a weight needs.
    pub(crate) fn weight_factor(self, width: u64) -> u64 {
        if self.trainable { self.tensor(width) } else { 0 }
    }

    /// RMSNorm: its input in f32, and the normalized values that the weight is multiplied with; our kernel computes these anew.
    pub(crate) fn rms_norm(self, width: u64) -> u64 {
        F32_BYTES * width + if self.own_kernels { 0 } else { self.weight_factor(width) }
    }

    /// LayerNorm, whose normalized values are in f32 as well.
    pub(crate) fn layer_norm(self, width: u64) -> u64 {
        width * if self.trainable { 2 * F32_BYTES } else { F32_BYTES }
    }

    /// Pre-norm of a branch: the RMSNorm, and its output as input of the linear layers that follow.
    pub(crate) fn pre_norm(self, width: u64) -> u64 {
        self.rms_norm(width) + self.tensor(width)
    }

    /// SwiGLU between its linear layers: gate, up, and their product as input of `down_proj`; without our kernel also the gate's
    /// sigmoid, and SiLU.
    pub(crate) fn swiglu(self, intermediate_size: u64) -> u64 {
        self.tensor(intermediate_size * if self.own_kernels { 3 } else { 5 })
    }

    /// Outputs of `lora_A`, which `lora_B` is multiplied with, of `layers` linear layers.
    pub(crate) fn lora(self, place: AdapterPlace, layers: u64) -> u64 {
        self.tensor(layers * self.tuning.rank_at(place))
    }

    /// Attention of `rows` queries in all heads with `keys` keys each: of every score the values before and after the exponential in
    /// f32, and the probability; with our kernel maximum and sum of each row.
    pub(crate) fn attention(self, rows: u64, keys: u64) -> u64 {
        rows * if self.own_kernels { 2 * F32_BYTES } else { keys * (2 * F32_BYTES + self.dtype_bytes) }
    }
}
