//! A network together with its workload, and the costs that both directions share.

use glm4v_model::{Glm4vConfig, ParamCounts};

use crate::workload::Workload;

/// Bytes of an f32.
pub(crate) const F32_BYTES: u64 = 4;

/// Analytic cost of a workload on a network, computed from sizes alone.
#[derive(Debug, Clone, Copy)]
pub struct CostModel<'a> {
    /// Config of the network.
    pub config: &'a Glm4vConfig,
    /// Its parameter counts.
    pub params: &'a ParamCounts,
    /// Bytes per weight and activation: 4 for f32, 2 for bf16 and f16.
    pub dtype_bytes: u64,
    /// Whether the CPU backend computes. It tiles the attention scores where no gradient is needed, and multiplies 16-bit
    /// matrices through copies in f32. Other backends are assumed to materialize all scores and to copy nothing.
    pub cpu: bool,
    /// Shape of the batch.
    pub workload: Workload,
}

impl CostModel<'_> {
    /// Bytes that one token adds to the KV cache.
    pub fn kv_cache_bytes_per_token(&self) -> u64 {
        let text = &self.config.text;
        2 * (text.num_hidden_layers * text.num_key_value_heads * text.head_dim) as u64 * self.dtype_bytes
    }

    /// Attention scores of one vision block: `heads · patches_per_frame²` a frame.
    pub(crate) fn vision_scores(&self) -> u64 {
        self.workload.patches() * self.workload.patches_per_frame() * self.config.vision.num_heads as u64
    }

    /// Attention scores of one decoder layer: `batch · heads · seq_len²`.
    pub(crate) fn text_scores(&self) -> u64 {
        self.workload.tokens() * (self.workload.seq_len * self.config.text.num_attention_heads) as u64
    }

    /// Whether operations have the kernels of `glm4v-kernels`, which save their inputs alone: those of the CPU compute in f32.
    pub(crate) fn has_own_kernels(&self) -> bool {
        self.cpu && self.dtype_bytes == F32_BYTES
    }

    /// Logits that training needs: `completions · vocab_size`, as the LM head runs at the positions that carry loss only.
    pub(crate) fn logits(&self) -> u64 {
        self.workload.completions() * self.config.text.vocab_size as u64
    }

    /// Copies that the CPU makes of the LM head's weight to multiply with it.
    pub(crate) fn head_copies(&self) -> u64 {
        self.weight_copies((self.config.text.vocab_size * self.config.text.hidden_size) as u64)
    }

    /// Copies that the CPU makes of a 16-bit weight: one transposed for the product, and that one in f32.
    pub(crate) fn weight_copies(&self, elements: u64) -> u64 {
        if self.copies_to_f32() { elements * (self.dtype_bytes + F32_BYTES) } else { 0 }
    }

    /// Copy in f32 that the CPU makes of a 16-bit activation to multiply it.
    pub(crate) fn activation_copy(&self, elements: u64) -> u64 {
        if self.copies_to_f32() { elements * F32_BYTES } else { 0 }
    }

    fn copies_to_f32(&self) -> bool {
        self.cpu && self.dtype_bytes < F32_BYTES
    }
}
