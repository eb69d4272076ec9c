//! A computation captured and replayed, against the same run eagerly.

use glm4v_inputs::PaddingSide;
use glm4v_kernels::replay;
use glm4v_model::{CausalLm, ComputeError, Precision};

use super::read;
use crate::comparison::{Comparison, Deviation, relative_l2};
use crate::error::CheckError;
use crate::setup::Setup;
use crate::tolerance::{ACTIVATIONS, tolerance};

/// Replays that are compared: the first, and one that finds the buffers as another left them.
const REPLAYS: [usize; 2] = [1, 3];

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let family = &setup.families[0];
    let batch = family.batch(PaddingSide::Left);
    let layers = |precision: Precision| -> Result<_, CheckError> {
        let model = family.model(&setup.device_spec, precision)?;
        let x = model.embed(&batch)?.inputs_embeds; // [B, S, D]
        // No value goes to or comes from the host in between, which capture does not allow.
        Ok(move || {
            let layer = &model.model.language_model.layers[0];
            let x = layer.input_layernorm.forward(x.clone());
            let q = layer.self_attn.q_proj.forward(x.clone());
            model.model.language_model.norm.forward(q * x)
        })
    };
    let exact = read(layers(Precision::F32)?())?;
    let computation = layers(setup.precision)?;
    let eager = read(computation())?;
    let noise = relative_l2(&eager, &exact);
    let mut is_graph = false;
    let mut deviation = |count: usize| -> Result<Deviation, ComputeError> {
        let replayed = replay(&setup.device_spec.device, &computation, count);
        is_graph = replayed.is_graph;
        let found = read(replayed.output)?;
        Ok(Deviation {
            tensor: format!("replay {count}"),
            deviation: relative_l2(&found, &eager),
            tolerance: tolerance(setup.precision, ACTIVATIONS, noise),
        })
    };
    let deviations: Vec<Deviation> = REPLAYS.into_iter().map(&mut deviation).collect::<Result<_, _>>()?;
    let kind = if is_graph { "replay of a graph" } else { "replay, without graphs here" };
    Ok(vec![Comparison::worst(kind.to_owned(), deviations)])
}
