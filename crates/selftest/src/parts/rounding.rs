//! Operations that are rounded at their ends alone, on 16-bit inputs: norms, router, loss.
//!
//! transformers computes them in f32, and so their results in 16 bits are known to the last bit but for sums in another order.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::text::FeedForward;
use glm4v_model::{Glm4v, Precision};
use glm4v_train::cross_entropy;

use super::read;
use crate::comparison::{Comparison, Deviation, relative_l2};
use crate::error::CheckError;
use crate::family::Family;
use crate::setup::Setup;
use crate::tolerance::{ACTIVATIONS, SAME_ROUNDING};

/// Rows of the inputs, which are their width times as many values.
const ROWS: usize = 24;

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let mut rows = Vec::new();
    for family in &setup.families {
        let model = family.model(&setup.device_spec, setup.precision)?;
        let deviations = operations(setup, family, &model)?
            .into_iter()
            .map(|(name, found)| deviation(setup, family, name, &found));
        let deviations: Vec<Deviation> = deviations.collect();
        rows.push(Comparison::worst(format!("{} norms, router, loss", family.name), deviations));
    }
    Ok(rows)
}

/// Results by name.
type Results = Vec<(&'static str, Vec<f32>)>;

fn operations(setup: &Setup, family: &Family, model: &Glm4v) -> Result<Results, CheckError> {
    let x = || input(setup, family, "rounding.x", family.config.text.hidden_size, 0.5, 2.0);
    let logits = input(setup, family, "rounding.logits", family.config.text.vocab_size, 0.0, 3.0);
    let labels: Vec<u32> = (0..ROWS as u32).collect();
    let layers = &model.model.language_model.layers;
    let mut results = vec![
        ("rms_norm", read(layers[0].input_layernorm.forward(x()))?),
        ("layer_norm", read(model.model.visual.merger.post_projection_norm.forward(x()))?),
        ("loss", read(cross_entropy(logits, &labels).sum)?),
    ];
    if let FeedForward::Experts(experts) = &layers[1].mlp {
        let output = experts.gate.forward(x());
        results.push(("router_logits", read(output.logits)?));
        results.push(("router_weights", read(output.weights)?));
    }
    Ok(results)
}

fn input(setup: &Setup, family: &Family, name: &str, width: usize, center: f64, deviation: f64) -> Tensor<2> {
    let data = TensorData::new(family.values(name, ROWS * width, center, deviation), [ROWS, width]);
    // bf16 numbers: f32 and bf16 have the same inputs, and f16 rounds them here and in the reference.
    let x = Tensor::<2>::from_data(data, (&setup.device_spec.device, DType::F32));
    x.cast(setup.precision.dtype())
}

fn deviation(setup: &Setup, family: &Family, name: &'static str, found: &[f32]) -> Deviation {
    let kind = if setup.precision == Precision::F16 { "f16" } else { "bf16" };
    let stored = |side: &str| format!("rounding.{kind}.{side}.{name}");
    let exact = &family.expected[&stored("f32")];
    let reference = if setup.precision == Precision::F32 { exact } else { &family.expected[&stored("own")] };
    let found: Vec<f32> = found.iter().step_by(family.stride(&stored("f32"))).copied().collect();
    Deviation {
        tensor: name.to_owned(),
        deviation: relative_l2(&found, reference),
        tolerance: (SAME_ROUNDING * relative_l2(reference, exact)).max(ACTIVATIONS),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::sigmoid;

    use super::*;
    use crate::comparison::Comparison;
    use crate::setup::tests::on_cpu;

    /// Whether a result passes for that of the operation `name` of the family with experts.
    fn passes(setup: &Setup, name: &'static str, found: Tensor<2>) -> bool {
        let deviation = deviation(setup, &setup.families[1], name, &read(found).unwrap());
        Comparison::worst(String::new(), [deviation]).ok()
    }

    /// As the network has it, and with everything in the type of the inputs.
    #[test]
    fn a_norm_router_or_loss_in_16_bits_is_wrong() {
        for precision in [Precision::Bf16, Precision::F16] {
            let setup = on_cpu(precision);
            let family = &setup.families[1];
            let model = family.model(&setup.device_spec, precision).unwrap();
            let layers = &model.model.language_model.layers;
            let x = || input(&setup, family, "rounding.x", 64, 0.5, 2.0);

            let norm = &layers[0].input_layernorm;
            let scale = (x() * x()).mean_dim(1).add_scalar(norm.eps).sqrt().recip();
            assert!(passes(&setup, "rms_norm", norm.forward(x())));
            assert!(!passes(&setup, "rms_norm", x() * scale * norm.weight.val().unsqueeze()));

            let norm = &model.model.visual.merger.post_projection_norm;
            let centered = x() - x().mean_dim(1);
            let scale = (centered.clone() * centered.clone()).mean_dim(1).add_scalar(norm.eps).sqrt().recip();
            let scaled = centered * scale * norm.weight.val().unsqueeze() + norm.bias.val().unsqueeze();
            assert!(passes(&setup, "layer_norm", norm.forward(x())));
            assert!(!passes(&setup, "layer_norm", scaled));

            let FeedForward::Experts(experts) = &layers[1].mlp else { unreachable!() };
            let gate = &experts.gate;
            let scores = x().matmul(gate.weight.val().transpose());
            assert!(passes(&setup, "router_logits", gate.forward(x()).logits));
            assert!(!passes(&setup, "router_logits", scores.clone()));
            let weights = sigmoid(scores).gather(1, gate.forward(x()).top_k_index);
            let weights = weights.clone() / weights.sum_dim(1) * gate.config.routed_scaling_factor;
            assert!(passes(&setup, "router_weights", gate.forward(x()).weights));
            assert!(!passes(&setup, "router_weights", weights));

            let logits = input(&setup, family, "rounding.logits", family.config.text.vocab_size, 0.0, 3.0);
            let loss = |logits| cross_entropy(logits, &(0..ROWS as u32).collect::<Vec<_>>()).sum.unsqueeze();
            let rounded = loss(logits.clone()).cast(precision.dtype());
            assert!(passes(&setup, "loss", loss(logits)));
            assert!(!passes(&setup, "loss", rounded));
        }
    }
}
