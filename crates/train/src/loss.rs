//! Cross-entropy loss, averaged over the label tokens.
//!
//! Dimensions: `N` label tokens, `V` vocabulary.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::text::load_balancing_loss;
use glm4v_model::{Batch, FusionError, Glm4v, Probe};

/// Which scores the loss looks at, and which token each of them should have predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// Indices into the `[B, S]` positions: one before each trained on token.
    pub slots: Vec<usize>,
    /// The label tokens.
    pub ids: Vec<u32>,
}

impl Targets {
    /// Finds what a batch trains. The first token of a row is never trained on: nothing comes before it.
    pub fn of(batch: &Batch) -> Self {
        let width = batch.shape[1];
        let loss_mask = (0..batch.loss_mask.len()).filter(|i| batch.loss_mask[*i] && i % width != 0);
        let (slots, ids) = loss_mask.map(|i| (i - 1, batch.input_ids[i])).unzip();
        Self { slots, ids }
    }
}

/// Mean cross entropy in f32 over the label tokens of a batch.
///
/// The head runs at these positions alone: the logits of all others are never made.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn loss(model: &Glm4v, batch: &Batch, targets: &Targets) -> Result<Tensor<1>, FusionError> {
    Ok(cross_entropy(model.forward_at(batch, &targets.slots)?, &targets.ids))
}

/// As [`loss`], plus `coefficient` times the [`load_balancing_loss`] of the experts.
///
/// Routing is judged over all positions, so the last layer runs for all of them.
///
/// # Errors
///
/// When the batch does not fit the model.
pub fn balanced_loss(
    model: &Glm4v,
    batch: &Batch,
    targets: &Targets,
    coefficient: f64,
) -> Result<Tensor<1>, FusionError> {
    let Some(moe) = model.config.text.moe.as_ref().filter(|_| coefficient > 0.0) else {
        return loss(model, batch, targets);
    };
    let mut probe = Probe::of_routers();
    let input = model.embed(batch, &mut probe)?;
    let hidden = model.decode(input, None, &mut probe);
    let [rows, width, size] = hidden.dims();
    let slots: Vec<i32> = targets.slots.iter().map(|slot| *slot as i32).collect();
    let slots = Tensor::<1, Int>::from_data(TensorData::new(slots, [targets.slots.len()]), &hidden.device());
    let logits = model.head(hidden.reshape([rows * width, size]).select(0, slots));
    let loss = cross_entropy(logits, &targets.ids);
    let uneven = load_balancing_loss(&probe.into_routers(), &batch.attention_mask, moe.num_experts_per_tok);
    Ok(match uneven {
        Some(uneven) => loss + uneven * coefficient,
        None => loss,
    })
}

/// Mean cross entropy of `[N, V]` scores, in f32 whatever their type.
pub fn cross_entropy(logits: Tensor<2>, ids: &[u32]) -> Tensor<1> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let count = ids.len();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [count, 1]), &logits.device());
    let logits = logits.cast(DType::F32);
    let top = logits.clone().detach().max_dim(1); // [N, 1]
    let total = (logits.clone() - top.clone()).exp().sum_dim(1).log() + top;
    (total - logits.gather(1, ids)).mean()
}
