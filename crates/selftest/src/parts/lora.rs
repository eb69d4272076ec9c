//! Adapters: application, gradients, training, merge.

use glm4v_inputs::PaddingSide;
use glm4v_model::{DeviceSpec, Glm4v};
use glm4v_train::mark_only_adapters_as_trainable;
use glm4v_weights::{AdapterConfig, TargetModules, add_adapter};

use super::{forward, gradients, training};
use crate::comparison::Comparison;
use crate::error::CheckError;
use crate::family::Family;
use crate::setup::Setup;

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let mut rows = Vec::new();
    for family in &setup.families {
        let model = adapted(setup, family, &setup.device_spec)?;
        let batch = family.batch(PaddingSide::Left);
        let applied = forward::logits(setup, family, "lora", &model, &batch)?;
        rows.push(Comparison::worst(format!("{} logits with an adapter", family.name), [applied]));
        let merged = forward::logits(setup, family, "merged", &model.merge_adapters(), &batch)?;
        rows.push(Comparison::worst(format!("{} logits, adapter merged", family.name), [merged]));
        let model = adapted(setup, family, &setup.device_spec.clone().autodiff())?;
        let (model, _) = mark_only_adapters_as_trainable(model, &config(family));
        rows.extend(gradients::compare(setup, family, "lora_gradients", &model)?);
        let lr = family.meta.optimizer.lora_lr;
        rows.push(training::compare(setup, family, "lora_training", model, lr)?);
    }
    Ok(rows)
}

fn config(family: &Family) -> AdapterConfig {
    let adapter = &family.meta.adapter;
    let targets = TargetModules::List(adapter.target_modules.clone());
    AdapterConfig { target_modules: Some(targets), ..AdapterConfig::new(adapter.r, adapter.lora_alpha) }
}

/// The network with an adapter that changes its logits: `B` is not zero, as it is before training.
fn adapted(setup: &Setup, family: &Family, device_spec: &DeviceSpec) -> Result<Glm4v, CheckError> {
    let model = family.model(device_spec, setup.precision)?;
    let (model, _) = add_adapter(model, &config(family), 0, setup.precision)?;
    Ok(family.fill(model, setup.precision, |name| name.contains(".lora.")))
}
