//! Peak memory of generation and of a training step.
//!
//! Memory rises and falls within a step. Each candidate peak is a [`MemoryEstimate`]; the largest is the answer.

use crate::cost_model::{CostModel, F32_BYTES};
use crate::tuning::{TrainableParams, TuningMode};

/// Bytes allocated at the peak, by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters, adapters included.
    pub weights: u64,
    /// Keys and values of all positions.
    pub kv_cache: u64,
    /// AdamW's two moments, and f32 master copies of trainable 16-bit weights.
    pub optimizer: u64,
    /// Gradients of the trainable parameters.
    pub gradients: u64,
    /// Tensors that the forward pass saves for the backward pass.
    pub saved_activations: u64,
    /// Tensors that live within one operation or block.
    pub workspace: u64,
}

impl MemoryEstimate {
    /// Sum over all purposes.
    pub fn total(&self) -> u64 {
        self.weights
            + self.kv_cache
            + self.optimizer
            + self.gradients
            + self.saved_activations
            + self.workspace
    }
}

impl CostModel<'_> {
    /// Peak memory of generating the completions of a batch of prompts.
    pub fn generation_memory(&self) -> MemoryEstimate {
        let weights =
            MemoryEstimate { weights: self.params.total() * self.dtype_bytes, ..MemoryEstimate::default() };
        let workspaces =
            [self.vision_forward_workspace(self.cpu), self.prefill_workspace(), self.sampling_workspace()];
        let generating = MemoryEstimate {
            kv_cache: self.workload.tokens() * self.kv_cache_bytes_per_token(),
            workspace: workspaces.into_iter().fold(0, u64::max),
            ..weights
        };
        // Before there is a cache.
        let loading = MemoryEstimate { workspace: self.loading_workspace(), ..weights };
        if loading.total() > generating.total() { loading } else { generating }
    }

    /// Peak memory of training, from the second step on: AdamW allocates its state in the first.
    pub fn training_memory(&self, tuning: TuningMode) -> MemoryEstimate {
        let trainable = tuning.trainable_params(self.params, self.workload.patches() > 0);
        let base = self.training_state(&trainable);
        let vision = self.vision_saved_activations(tuning);
        let saved_activations = vision + self.text_saved_activations(tuning);
        let vision_backward =
            if trainable.vision > 0 { self.attention_gradient(self.vision_scores()) } else { 0 };
        let gradients = |params: u64| params * self.dtype_bytes;
        let layers = self.config.text.num_hidden_layers as u64;
        let peaks = [
            // Forward pass of a frozen vision tower: only our attention is tiled on a device that tracks gradients.
            MemoryEstimate { workspace: self.vision_forward_workspace(self.has_own_kernels()), ..base },
            // Weights are loaded before the optimizer exists.
            MemoryEstimate { optimizer: 0, workspace: self.loading_workspace(), ..base },
            // Cross-entropy.
            MemoryEstimate {
                saved_activations,
                workspace: self.logits_gradient(self.logits()) + self.head_copies(),
                ..base
            },
            // Backward pass, in the attention of the last decoder layer.
            MemoryEstimate {
                saved_activations,
                gradients: gradients(trainable.head),
                workspace: self.attention_gradient(self.text_scores()),
                ..base
            },
            // Backward pass, in a feed-forward below: the last decoder layer is done. Those further below hold less.
            MemoryEstimate {
                saved_activations: saved_activations - self.last_layer_saved_activations(tuning),
                gradients: gradients(trainable.head + trainable.decoder / layers),
                workspace: if layers > 1 { self.mlp_gradients() } else { 0 },
                ..base
            },
            // Backward pass, in the attention of the last vision block: the decoder is done.
            MemoryEstimate {
                saved_activations: vision,
                gradients: gradients(trainable.text),
                workspace: vision_backward,
                ..base
            },
            // Optimizer step.
            MemoryEstimate {
                gradients: gradients(trainable.total()),
                workspace: self.optimizer_workspace(trainable.largest_tensor),
                ..base
            },
        ];
        peaks.into_iter().max_by_key(MemoryEstimate::total).unwrap_or_default()
    }

    /// Bytes of the tensors that a forward pass saves for the backward pass.
    pub fn saved_activation_bytes(&self, tuning: TuningMode) -> u64 {
        self.vision_saved_activations(tuning) + self.text_saved_activations(tuning)
    }

    /// What is allocated throughout a training step: weights and optimizer state.
    fn training_state(&self, trainable: &TrainableParams) -> MemoryEstimate {
        let moments = 2 * trainable.total() * F32_BYTES;
        let masters = if self.dtype_bytes < F32_BYTES { trainable.total() * F32_BYTES } else { 0 };
        MemoryEstimate {
            weights: (self.params.total() + trainable.adapters) * self.dtype_bytes,
            optimizer: moments + masters,
            ..MemoryEstimate::default()
        }
    }

    /// Softmax over so many logits and its gradient, both in f32; our kernel writes the gradient over the logits.
    fn logits_gradient(&self, elements: u64) -> u64 {
        if self.has_own_kernels() { 0 } else { 2 * elements * F32_BYTES }
    }

    /// Softmax over so many scores and its gradient, both in f32; our kernel holds a few rows of them.
    fn attention_gradient(&self, elements: u64) -> u64 {
        if self.has_own_kernels() { 0 } else { 2 * elements * F32_BYTES }
    }

    /// On the CPU the largest tensor exists twice while it is loaded: as bytes of the file and as tensor.
    fn loading_workspace(&self) -> u64 {
        if self.cpu { self.params.largest_tensor * self.dtype_bytes } else { 0 }
    }

    /// AdamW updates one tensor at a time in f32; of 16-bit weights the gradient is converted too. Our kernel changes f32 in place.
    fn optimizer_workspace(&self, largest_tensor: u64) -> u64 {
        let copies = match self.dtype_bytes {
            F32_BYTES if self.has_own_kernels() => 0,
            F32_BYTES => 1,
            _ => 2,
        };
        copies * largest_tensor * F32_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;
    use glm4v_model::{Backend, Glm4vConfig, Grid, ParamCounts};

    const TEXT: Workload = Workload { batch_size: 2, seq_len: 24, completion_tokens: 6, image: None };

    fn tiny() -> (Glm4vConfig, ParamCounts, TuningMode) {
        let device = Backend::Cpu.open().unwrap();
        let config = Glm4vConfig::tiny();
        let lora = TuningMode::lora(&mut config.init(&device), 4, false);
        let params = config.param_counts(&device);
        (config, params, lora)
    }

    #[test]
    fn a_frozen_vision_tower_saves_nothing_for_the_backward_pass() {
        let (config, params, lora) = tiny();
        let workload = Workload { image: Some(Grid::new(1, 8, 8)), ..TEXT };
        let cost = CostModel { config: &config, params: &params, dtype_bytes: 4, cpu: true, workload };
        let text_only = CostModel { workload: TEXT, ..cost };

        assert_eq!(cost.saved_activation_bytes(lora), text_only.saved_activation_bytes(lora));
        assert!(
            cost.saved_activation_bytes(TuningMode::Full)
                > text_only.saved_activation_bytes(TuningMode::Full)
        );
    }

    #[test]
    fn saved_activations_are_proportional_to_the_batch_size() {
        let (config, params, lora) = tiny();
        let cost = CostModel { config: &config, params: &params, dtype_bytes: 2, cpu: true, workload: TEXT };
        let doubled = CostModel { workload: Workload { batch_size: 4, ..TEXT }, ..cost };

        for tuning in [TuningMode::Full, lora] {
            assert_eq!(doubled.saved_activation_bytes(tuning), 2 * cost.saved_activation_bytes(tuning));
        }
    }

    #[test]
    fn masters_in_f32_exist_for_16_bit_weights_only() {
        let (config, params, _) = tiny();
        let cost = CostModel { config: &config, params: &params, dtype_bytes: 4, cpu: true, workload: TEXT };
        let trained = params.total() - params.vision_tower - params.merger; // no image, no gradient

        let optimizer = |cost: CostModel| cost.training_memory(TuningMode::Full).optimizer;

        assert_eq!(optimizer(cost), trained * 8);
        assert_eq!(optimizer(CostModel { dtype_bytes: 2, ..cost }), trained * 12);
    }

    #[test]
    fn generation_holds_weights_and_the_cache_of_every_position() {
        let (config, params, _) = tiny();
        let cost = CostModel { config: &config, params: &params, dtype_bytes: 2, cpu: true, workload: TEXT };

        let memory = cost.generation_memory();

        assert_eq!(memory.weights, params.total() * 2);
        assert_eq!(memory.kv_cache, 2 * 24 * (2 * 2 * 2 * 12) * 2); // batch, length, (k and v, layers, heads, width), bytes
        assert_eq!(memory.total(), memory.weights + memory.kv_cache + memory.workspace);
    }
}
