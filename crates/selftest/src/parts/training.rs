//! Losses of a few steps of AdamW.

use glm4v_inputs::PaddingSide;
use glm4v_model::Glm4v;
use glm4v_train::{AdamW, AdamWConfig, Trainer, TrainerConfig, causal_lm_loss};

use super::read;
use crate::comparison::Comparison;
use crate::error::CheckError;
use crate::family::Family;
use crate::setup::Setup;

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let mut rows = Vec::new();
    for family in &setup.families {
        let model = family.trainable(&setup.device_spec, setup.precision)?;
        rows.push(compare(setup, family, "training", model, family.meta.optimizer.full_lr)?);
    }
    Ok(rows)
}

/// The losses before each step and after the last one.
pub(super) fn compare(
    setup: &Setup,
    family: &Family,
    part: &str,
    model: Glm4v,
    lr: f64,
) -> Result<Comparison, CheckError> {
    let batch = family.batch(PaddingSide::Right);
    let settings = &family.meta.optimizer;
    let optimizer =
        AdamW::new(AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: settings.weight_decay });
    let config = TrainerConfig { max_grad_norm: settings.max_grad_norm, ..TrainerConfig::default() };
    let mut trainer = Trainer::new(model, optimizer, config);
    let mut losses = Vec::new();
    for _ in 0..settings.steps {
        trainer.accumulate(&batch)?;
        losses.push(trainer.step(lr)?.loss as f32);
    }
    losses.extend(read(causal_lm_loss(trainer.model(), &batch)?.mean().inner())?);
    let deviation = family.deviation(part, "losses", &losses, setup.precision);
    Ok(Comparison::worst(format!("{} losses of {} steps", family.name, settings.steps), [deviation]))
}
