//! The training step: accumulate the gradients of batches, then update the weights. No files, no schedule.

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_model::{Batch, CausalLm, ComputeError, Glm4v, ModelInputError};

use crate::adamw::AdamW;
use crate::gradients::NamedGradients;
use crate::loss::{LossSum, causal_lm_loss_with_router};

/// Settings of a [`Trainer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainerConfig {
    /// Maximum global norm of the gradients, by scaling; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Coefficient of the load-balancing loss of the experts; 0 leaves it out.
    pub router_aux_loss_coef: f64,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self { max_grad_norm: 1.0, router_aux_loss_coef: 0.0 }
    }
}

/// A model and its optimizer.
///
/// [`accumulate`](Self::accumulate) adds the gradients of a batch, [`step`](Self::step) applies what was accumulated. In
/// between, gradients are in [`accumulated`](Self::accumulated): replicas average them there, and another loss enters through
/// [`accumulate_loss`](Self::accumulate_loss).
///
/// # Examples
///
/// See the [crate's example](crate#examples).
#[derive(Debug)]
pub struct Trainer<M = Glm4v> {
    /// None only during an optimizer step, which consumes the model.
    model: Option<M>,
    optimizer: AdamW,
    config: TrainerConfig,
    accumulated: Option<AccumulatedGradients>,
}

/// Gradients and loss of the batches since the last step.
#[derive(Debug)]
pub struct AccumulatedGradients {
    /// Gradients of the weighted mean loss over all label tokens.
    pub gradients: NamedGradients,
    /// Mean loss over all label tokens, `[1]`, without gradient.
    pub loss: Tensor<1>,
    /// Sum of the weights of all label tokens; their number where all weights are 1.
    pub weight: f64,
}

impl AccumulatedGradients {
    /// Mean of both, by the weights of their label tokens.
    fn join(self, other: Self) -> Self {
        let weight = self.weight + other.weight;
        let share = |part: f64| if weight > 0.0 { part / weight } else { 0.0 };
        let (own, others) = (share(self.weight), share(other.weight));
        Self {
            gradients: self.gradients.weighted_sum(own, other.gradients, others),
            loss: self.loss * own + other.loss * others,
            weight,
        }
    }
}

/// Loss and gradient norm of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutput {
    /// Mean loss over the label tokens of all batches, before the step.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
}

/// Why a step failed. The weights are unchanged, and the accumulated gradients are discarded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The loss or a gradient overflowed.
    #[error("loss is {}, gradient norm {}; needed: a lower learning rate or a longer warmup", .0.loss, .0.grad_norm)]
    NotFinite(StepOutput),
    /// [`Trainer::accumulate`] was not called since the last step.
    #[error("no batch since the last step; needed: one at least")]
    NoBatch,
    /// The device failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

const PRESENT: &str = "the model is there between two steps";

impl<M: CausalLm + Module> Trainer<M> {
    /// A trainer for a model on an autodiff device.
    pub fn new(model: M, optimizer: AdamW, config: TrainerConfig) -> Self {
        Self { model: Some(model), optimizer, config, accumulated: None }
    }

    /// The model with its current weights, on the autodiff device.
    pub fn model(&self) -> &M {
        self.model.as_ref().expect(PRESENT)
    }

    /// The optimizer, to save its state.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// A copy of the model without gradients, for evaluation.
    pub fn eval_model(&self) -> M {
        self.model().valid()
    }

    /// Adds the cross-entropy gradients of a batch.
    ///
    /// # Errors
    ///
    /// When the batch does not fit the model.
    pub fn accumulate(&mut self, batch: &Batch) -> Result<(), ModelInputError> {
        let loss = causal_lm_loss_with_router(self.model(), batch, self.config.router_aux_loss_coef)?;
        self.accumulate_loss(loss);
        Ok(())
    }

    /// Adds the gradients of a loss that was computed with [`model`](Self::model).
    pub fn accumulate_loss(&mut self, loss: LossSum) {
        let weight = loss.weight;
        // The mean, not the sum: in f16 the gradient of a sum over thousands of labels overflows.
        let mean = loss.mean();
        let gradients = NamedGradients::backward(self.model(), &mean);
        // Without its graph, which would hold every activation of the batch until the step.
        let batch = AccumulatedGradients { gradients, loss: mean.inner(), weight };
        self.accumulated = Some(match self.accumulated.take() {
            Some(earlier) => earlier.join(batch),
            None => batch,
        });
    }

    /// Gradients and loss accumulated since the last step.
    pub fn accumulated(&mut self) -> Option<&mut AccumulatedGradients> {
        self.accumulated.as_mut()
    }

    /// Clips the accumulated gradients and updates the weights with learning rate `lr`.
    ///
    /// # Errors
    ///
    /// When loss or gradient norm is not finite; the weights are unchanged then.
    pub fn step(&mut self, lr: f64) -> Result<StepOutput, StepError> {
        let AccumulatedGradients { gradients, loss, .. } =
            self.accumulated.take().ok_or(StepError::NoBatch)?;
        // A batch without images has no gradient where the vision tower alone is trained.
        let norm = gradients.norm().unwrap_or_else(|| Tensor::zeros([1], &loss.device()));
        // One read for both: each makes the device wait.
        let numbers = Tensor::cat(vec![loss, norm.inner()], 0).cast(DType::F32).try_into_data();
        let numbers = numbers.map_err(ComputeError::from)?;
        let numbers: Vec<f32> = numbers.try_to_vec().map_err(ComputeError::from)?;
        let output = StepOutput { loss: f64::from(numbers[0]), grad_norm: f64::from(numbers[1]) };
        if !output.loss.is_finite() || !output.grad_norm.is_finite() {
            return Err(StepError::NotFinite(output));
        }
        // Applied by the optimizer, tensor by tensor: scaled copies of all gradients would double their memory.
        let scale = clip_coef(output.grad_norm, self.config.max_grad_norm);
        // Taken out, so that old and new weights need not both be whole in memory.
        let model = self.model.take().expect(PRESENT);
        self.model = Some(self.optimizer.step(model, gradients, lr, scale));
        Ok(output)
    }

    /// The trained model.
    pub fn into_model(self) -> M {
        self.model.expect(PRESENT)
    }
}

/// The factor that scales gradients of norm `grad_norm` down to `max_grad_norm` (`torch.nn.utils.clip_grad_norm_`); 1 if they
/// are not larger, or if there is no bound.
pub fn clip_coef(grad_norm: f64, max_grad_norm: f64) -> f64 {
    if max_grad_norm == 0.0 { 1.0 } else { (max_grad_norm / (grad_norm + 1e-6)).min(1.0) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tolerance;
    use glm4v_model::{
        Backend, Glm4vConfig, NamedMapper, PaddingSide, Precision, Sample, initialize, map_named,
    };

    use super::*;
    use crate::adamw::AdamWConfig;

    fn trainer() -> Trainer {
        let device = Backend::Cpu.open().unwrap().autodiff();
        let model = initialize(Glm4vConfig::tiny().init(&device), 0, Precision::F32.dtype());
        let config = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
        Trainer::new(model, AdamW::new(config), TrainerConfig::default())
    }

    /// Two samples with different numbers of labels.
    fn samples() -> [Sample; 2] {
        let sample = |ids: &[u32], labels: usize| {
            let first = ids.len() - labels;
            let loss_mask = (0..ids.len()).map(|at| at >= first).collect();
            Sample::from_text(ids.to_vec()).with_loss_mask(loss_mask)
        };
        [sample(&[3, 4, 5, 6, 7], 3), sample(&[8, 9, 10], 1)]
    }

    #[test]
    fn two_batches_accumulated_are_one_batch_of_both() {
        let samples = samples();
        let mut whole = trainer();
        whole.accumulate(&Batch::collate(&samples, 0, PaddingSide::Right)).unwrap();
        let mut parts = trainer();
        for sample in &samples {
            parts.accumulate(&Batch::collate(&[sample], 0, PaddingSide::Right)).unwrap();
        }

        let [mut one, mut two] = [whole.accumulated.take().unwrap(), parts.accumulated.take().unwrap()];

        assert_eq!((one.weight, two.weight), (4.0, 4.0));
        let loss = |part: &AccumulatedGradients| part.loss.clone().into_data();
        loss(&one).assert_approx_eq::<f32>(&loss(&two), Tolerance::absolute(1e-6));
        let names: Vec<String> = one.gradients.names().map(str::to_owned).collect();
        assert_eq!(names, two.gradients.names().map(str::to_owned).collect::<Vec<_>>());
        for name in names {
            let [one, two] =
                [&mut one, &mut two].map(|part| part.gradients.remove(&name).unwrap().into_data());
            one.assert_approx_eq::<f32>(&two, Tolerance::absolute(1e-6));
        }
    }

    #[test]
    fn a_step_without_a_batch_is_an_error() {
        assert!(matches!(trainer().step(1e-3), Err(StepError::NoBatch)));
    }

    #[test]
    fn a_step_that_overflows_leaves_the_weights_alone() {
        struct Overflow;
        impl NamedMapper for Overflow {
            fn map<const D: usize>(
                &mut self,
                name: &str,
                param: burn::module::Param<Tensor<D>>,
            ) -> burn::module::Param<Tensor<D>> {
                if name == "lm_head.weight" { param.map(|weight| weight * f32::MAX) } else { param }
            }
        }
        let mut trainer = trainer();
        trainer.model = trainer.model.map(|model| map_named(model, &mut Overflow));
        let embeddings =
            |trainer: &Trainer| trainer.model().model.language_model.norm.weight.val().into_data();
        let before = embeddings(&trainer);
        trainer.accumulate(&Batch::collate(&samples(), 0, PaddingSide::Right)).unwrap();

        let error = trainer.step(1e-3).unwrap_err();

        assert!(matches!(error, StepError::NotFinite(_)), "{error}");
        assert_eq!(embeddings(&trainer), before);
        assert!(matches!(trainer.step(1e-3), Err(StepError::NoBatch)), "the gradients are gone");
    }
}
