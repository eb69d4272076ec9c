//! Cross-entropy loss over the label tokens.
//!
//! Dimensions: `N` label tokens, `V` vocabulary size.

use burn::prelude::*;
use burn::tensor::TensorData;
use glm4v_kernels as kernels;
use glm4v_model::text::load_balancing_loss;
use glm4v_model::{Batch, CausalLm, DecoderOptions, Labels, ModelInputError};

/// A loss as sum and weight, so that batches of any size count by their labels.
#[derive(Debug, Clone)]
pub struct LossSum {
    /// Sum over the label tokens, `[1]`, f32.
    pub sum: Tensor<1>,
    /// Sum of the weights of the label tokens; their number where all weights are 1.
    pub weight: f64,
    /// Added to the mean: a loss of the batch as a whole, already multiplied by its coefficient, `[1]`.
    pub aux_loss: Option<Tensor<1>>,
}

impl LossSum {
    /// Weighted mean over the label tokens, plus the auxiliary loss, `[1]`.
    pub fn mean(self) -> Tensor<1> {
        let mean = self.sum / if self.weight > 0.0 { self.weight } else { 1.0 };
        match self.aux_loss {
            Some(aux_loss) => mean + aux_loss,
            None => mean,
        }
    }
}

/// Cross entropy in f32 over the label tokens of a batch.
///
/// The head runs at their positions alone: the logits of all others are never made.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn causal_lm_loss(model: &impl CausalLm, batch: &Batch) -> Result<LossSum, ModelInputError> {
    let labels = batch.labels();
    Ok(labels_loss(model.forward_at(batch, &labels.positions)?, &labels))
}

/// As [`causal_lm_loss`], plus `coefficient` times the [`load_balancing_loss`] of the experts (`router_aux_loss_coef`).
///
/// Routing is judged over all positions, so the last layer runs for all of them.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn causal_lm_loss_with_router(
    model: &impl CausalLm,
    batch: &Batch,
    coefficient: f64,
) -> Result<LossSum, ModelInputError> {
    let Some(moe) = model.text_config().moe.as_ref().filter(|_| coefficient > 0.0) else {
        return causal_lm_loss(model, batch);
    };
    // All positions: the balance is one of the whole batch, and padding is masked below.
    let options = DecoderOptions { output_router_logits: true, ..DecoderOptions::default() };
    let output = model.decoder_forward(model.embed(batch)?, options);
    let labels = batch.labels();
    let positions: Vec<i32> = labels.positions.iter().map(|at| *at as i32).collect();
    let positions = TensorData::new(positions, [labels.positions.len()]);
    let positions = Tensor::<1, Int>::from_data(positions, &output.hidden_states.device());
    let loss = labels_loss(model.logits(output.hidden_states.select(0, positions)), &labels);
    let routers = (&output.router_logits, &batch.attention_mask(), moe.num_experts_per_tok);
    let aux_loss = load_balancing_loss(routers.0, routers.1, routers.2).map(|balance| balance * coefficient);
    Ok(LossSum { aux_loss, ..loss })
}

/// Cross entropy of `[N, V]` logits, in f32 whatever their type.
pub fn cross_entropy(logits: Tensor<2>, labels: &[u32]) -> LossSum {
    LossSum { sum: kernels::cross_entropy(logits, labels), weight: labels.len() as f64, aux_loss: None }
}

/// [`cross_entropy`] of the logits of a batch's labels, `[N, V]`, with their weights.
fn labels_loss(logits: Tensor<2>, labels: &Labels) -> LossSum {
    let Some(weights) = &labels.weights else { return cross_entropy(logits, &labels.ids) };
    let sum = kernels::weighted_cross_entropy(logits, &labels.ids, Some(weights));
    LossSum { sum, weight: weights.iter().copied().map(f64::from).sum(), aux_loss: None }
}
