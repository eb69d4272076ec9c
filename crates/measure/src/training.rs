//! A training step.

use glm4v_model::{Glm4v, Glm4vConfig, Precision};
use glm4v_plan::{FrozenParts, TuningMode};
use glm4v_train::{
    AdamW, AdamWConfig, FreezeTarget, LoraSection, Trainer, TrainerConfig, freeze,
    mark_only_adapters_as_trainable,
};
use glm4v_weights::add_adapter;

use crate::error::MeasureError;
use crate::shape::{InputShape, check_length};
use crate::stopwatch::{Measurement, Stopwatch};

/// What is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainingMethod {
    /// All weights outside of the frozen parts.
    Full {
        /// Parts that are not trained.
        frozen: Vec<FreezeTarget>,
    },
    /// LoRA on the layers that are adapted by default.
    Lora {
        /// LoRA rank.
        rank: usize,
    },
}

impl TrainingMethod {
    /// The same for estimates; `model` is counted, not computed with.
    pub fn tuning_mode(&self, model: &mut Glm4v) -> TuningMode {
        match self {
            Self::Full { frozen } => TuningMode::Frozen(frozen_parts(frozen, &model.config)),
            Self::Lora { rank } if model.config.text.moe.is_some() => {
                TuningMode::attention_lora(model, *rank)
            }
            Self::Lora { rank } => TuningMode::lora(model, *rank, false),
        }
    }

    /// Marks what is trained, and adds adapters.
    fn apply(&self, model: Glm4v, precision: Precision, seed: u64) -> Result<Glm4v, MeasureError> {
        let (model, trainable) = match self {
            Self::Full { frozen } => freeze(model, frozen),
            Self::Lora { rank } => {
                let section = LoraSection { r: *rank, ..LoraSection::default() };
                let mut config = section.to_adapter_config(model.config.architecture);
                config.ensure_weight_tying = model.config.text.tie_word_embeddings;
                let (model, _) = add_adapter(model, &config, seed, precision)?;
                mark_only_adapters_as_trainable(model, &config)
            }
        };
        if trainable == 0 { Err(MeasureError::NothingToTrain) } else { Ok(model) }
    }
}

fn frozen_parts(frozen: &[FreezeTarget], config: &Glm4vConfig) -> FrozenParts {
    let has = |target| frozen.contains(&target);
    let text = has(FreezeTarget::Text);
    let embeddings = text || has(FreezeTarget::Embeddings);
    FrozenParts {
        vision_tower: has(FreezeTarget::Vision),
        merger: has(FreezeTarget::Merger),
        embeddings,
        layers: text,
        head: text || has(FreezeTarget::Head) || config.text.tie_word_embeddings && embeddings,
    }
}

/// How a step is trained.
#[derive(Debug, Clone)]
pub struct TrainingSetup {
    /// What is trained.
    pub method: TrainingMethod,
    /// Type of the weights.
    pub precision: Precision,
    /// Seed of the inputs and of adapters.
    pub seed: u64,
}

/// The learning rate: too small to lead anywhere, as the inputs are noise.
const LEARNING_RATE: f64 = 1e-6;

/// A step: forward pass, backward pass and update with AdamW, loss and gradient norm read. `model` is on an autodiff device.
///
/// The optimizer's state is allocated in the first step, so that at least one is needed to warm up.
///
/// # Errors
///
/// When nothing is left to train, the rows are longer than the model's positions, or the device fails.
pub fn training(
    model: Glm4v,
    setup: &TrainingSetup,
    shape: &InputShape,
    stopwatch: &Stopwatch,
) -> Result<Measurement, MeasureError> {
    check_length(&model.config, "train", shape.seq_len(&model.config))?;
    let batch = shape.batch(&model.config, setup.seed);
    let model = setup.method.apply(model, setup.precision, setup.seed)?;
    let optimizer = AdamW::new(AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 });
    let mut trainer = Trainer::new(model, optimizer, TrainerConfig::default());
    stopwatch.measure(|| {
        trainer.accumulate(&batch)?;
        trainer.step(LEARNING_RATE)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_model::{Backend, DeviceSpec, Grid, initialize};

    use crate::stopwatch::Rounds;

    const SHAPE: InputShape =
        InputShape { batch_size: 2, image: Some(Grid { t: 1, h: 4, w: 4 }), text_tokens: 9, labels: 3 };

    fn model() -> Glm4v {
        let device = DeviceSpec::unbounded(&Backend::Cpu.open().unwrap()).autodiff();
        initialize(Glm4vConfig::tiny().init_on(&device).unwrap(), 0, Precision::F32.dtype())
    }

    fn run(method: TrainingMethod) -> Result<Measurement, MeasureError> {
        let setup = TrainingSetup { method, precision: Precision::F32, seed: 0 };
        let stopwatch = Stopwatch::new(&Backend::Cpu.open().unwrap(), Rounds { warmup: 1, rounds: 2 });
        training(model(), &setup, &SHAPE, &stopwatch)
    }

    #[test]
    fn every_method_trains() {
        for method in [
            TrainingMethod::Full { frozen: vec![] },
            TrainingMethod::Full { frozen: vec![FreezeTarget::Vision, FreezeTarget::Head] },
            TrainingMethod::Lora { rank: 4 },
        ] {
            assert_eq!(run(method.clone()).unwrap().seconds.all().len(), 2, "{method:?}");
        }
    }

    #[test]
    fn a_network_that_is_frozen_whole_cannot_be_trained() {
        let frozen = vec![FreezeTarget::Vision, FreezeTarget::Merger, FreezeTarget::Text];

        let error = run(TrainingMethod::Full { frozen });

        assert!(matches!(error, Err(MeasureError::NothingToTrain)));
    }

    #[test]
    fn estimates_count_the_parameters_that_are_trained() {
        let parameters = |method: &TrainingMethod| {
            let model = method.apply(model(), Precision::F32, 0).unwrap();
            let mut counter = Trainable(0);
            glm4v_model::visit_named(&model, &mut counter);
            counter.0
        };
        for method in [
            TrainingMethod::Full { frozen: vec![] },
            TrainingMethod::Full { frozen: vec![FreezeTarget::Merger, FreezeTarget::Embeddings] },
            TrainingMethod::Full { frozen: vec![FreezeTarget::Text] },
            TrainingMethod::Lora { rank: 4 },
        ] {
            let tuning = method.tuning_mode(&mut model());
            let config = Glm4vConfig::tiny();
            let params = config.param_counts(&Backend::Cpu.open().unwrap());
            let cost = glm4v_plan::CostModel {
                config: &config,
                params: &params,
                dtype_bytes: 4,
                cpu: true,
                workload: SHAPE.workload(&config),
            };
            // Two moments of four bytes.
            let estimated = cost.training_memory(tuning).optimizer / 8;
            assert_eq!(estimated, parameters(&method) as u64, "{method:?}");
        }
    }

    struct Trainable(usize);

    impl glm4v_model::NamedVisitor for Trainable {
        fn visit<const D: usize>(
            &mut self,
            _name: &str,
            param: &burn::module::Param<burn::tensor::Tensor<D>>,
        ) {
            if param.is_require_grad() {
                self.0 += param.lazy_shape().num_elements();
            }
        }
    }
}
