//! Loss and gradients.

use glm4v_inputs::PaddingSide;
use glm4v_model::Glm4v;
use glm4v_train::{NamedGradients, causal_lm_loss};

use super::read;
use crate::comparison::{Comparison, Deviation};
use crate::error::CheckError;
use crate::family::Family;
use crate::setup::Setup;

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let mut rows = Vec::new();
    for family in &setup.families {
        let model = family.trainable(&setup.device_spec, setup.precision)?;
        rows.extend(compare(setup, family, "gradients", &model)?);
    }
    Ok(rows)
}

/// Loss and gradients of one family; the loss where the part has one.
pub(super) fn compare(
    setup: &Setup,
    family: &Family,
    part: &str,
    model: &Glm4v,
) -> Result<Vec<Comparison>, CheckError> {
    let batch = family.batch(PaddingSide::Right);
    let loss = causal_lm_loss(model, &batch)?.mean();
    let mut gradients = NamedGradients::backward(model, &loss);
    let mut rows = Vec::new();
    if family.names(part).any(|name| name == "loss") {
        let loss = family.deviation(part, "loss", &read(loss.inner())?, setup.precision);
        rows.push(Comparison::worst(format!("{} loss", family.name), [loss]));
    }
    let mut deviations = Vec::new();
    for name in family.names(part).filter(|name| *name != "loss") {
        let found = match gradients.remove(name) {
            Some(gradient) => read(gradient)?,
            None => Vec::new(),
        };
        deviations.push(family.deviation(part, name, &found, setup.precision));
    }
    // Of a parameter that has none in the reference.
    let more = gradients.names().map(|name| Deviation {
        tensor: name.to_owned(),
        deviation: f64::INFINITY,
        tolerance: 0.0,
    });
    deviations.extend(more);
    rows.push(Comparison::worst(format!("{} gradients", family.name), deviations));
    Ok(rows)
}
