//! Loss and gradients.

use super::*;

#[test]
fn loss_and_all_gradients_equal_torch() {
    for family in families("train") {
        let differences = gradient_differences(family);
        println!("{family}: worst gradient {:.1e} {}", differences.whole.0, differences.whole.1);
        differences.check();
    }
}

/// Name of a parameter in transformers, which stacks the experts of a layer in one tensor.
fn stacked_name(name: &str) -> String {
    let Some((before, after)) = name.split_once(".mlp.experts.") else { return name.to_owned() };
    let kind = after.split('.').nth(1).unwrap();
    format!("{before}.mlp.experts.{kind}")
}

/// Differences of loss and gradients from torch.
pub(crate) struct GradientDifferences {
    loss: f64,
    /// Relative difference of the global norm.
    total: f64,
    /// Largest relative difference of the norm of one gradient, with its name.
    norm: (f64, String),
    /// Largest relative L2 difference of one gradient, with its name.
    pub(crate) whole: (f64, String),
}

impl GradientDifferences {
    fn check(&self) {
        assert!(self.loss < 1e-4, "loss differs by {:.1e}", self.loss);
        assert!(self.total < 2e-5, "norm of all gradients differs by {:.1e}", self.total);
        for (difference, name) in [&self.norm, &self.whole] {
            assert!(*difference < GRADIENTS, "{name}: gradient differs by {difference:.1e}");
        }
    }
}

pub(crate) fn gradient_differences(family: &str) -> GradientDifferences {
    let case = Case::open(&format!("train/{family}/loss_and_grads"));
    let model = trainable(family);
    let batch = Case::open("train/glm4v/loss_and_grads").batch(); // the same for every family

    let loss = causal_lm_loss(&model, &batch).unwrap().mean();
    let gradients = loss.backward();

    let expected = |key: &str| case.meta[key].as_f64().unwrap();
    let found = f64::from(loss.into_scalar::<f32>());
    let mut gradients = NamedGradients::from_gradients(&model, gradients);
    let total = f64::from(gradients.norm().unwrap().into_scalar::<f32>());
    let mut out = GradientDifferences {
        loss: (found - expected("loss")).abs(),
        total: (total / expected("grad_total_norm") - 1.0).abs(),
        norm: (0.0, String::new()),
        whole: (0.0, String::new()),
    };
    let norms = case.meta["grad_norms"].as_object().unwrap();
    let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for name in gradients.names().map(str::to_owned).collect::<Vec<_>>() {
        let values = gradients.remove(&name).unwrap().into_data().try_to_vec::<f32>().unwrap();
        found.entry(stacked_name(&name)).or_default().extend(values);
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), norms.keys().collect::<Vec<_>>());
    let keep = |worst: &mut (f64, String), difference: f64, name: &str| {
        if difference.is_nan() || difference > worst.0 {
            *worst = (difference, name.to_owned());
        }
    };
    for (name, found) in found {
        let norm = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        keep(&mut out.norm, (norm / norms[&name]["l2"].as_f64().unwrap() - 1.0).abs(), &name);
        let whole = format!("grad.{name}");
        if !case.names(&whole).is_empty() {
            keep(&mut out.whole, relative_l2(&found, &values_of(&case.float(&whole))), &name);
        }
    }
    out
}

#[test]
fn the_loss_at_label_positions_equals_that_of_all_logits() {
    let model = trainable("glm4v");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let labels = batch.labels();

    let chosen = causal_lm_loss(&model, &batch).unwrap().mean().into_scalar::<f32>();
    let logits = model.forward(&batch).unwrap();
    let [rows, width, vocabulary] = logits.dims();
    let all = logits.reshape([rows * width, vocabulary]);
    let picked = Tensor::cat(labels.positions.iter().map(|at| all.clone().narrow(0, *at, 1)).collect(), 0);
    let whole = cross_entropy(picked, &labels.ids).mean().into_scalar::<f32>();

    assert!((chosen - whole).abs() < 1e-5, "{chosen}, {whole}");
}

#[test]
fn the_load_balancing_loss_equals_transformers() {
    let case = Case::open("train/glm4v_moe/loss_and_grads");
    let model = trainable("glm4v_moe");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();

    let options = DecoderOptions { output_router_logits: true, ..Default::default() };
    let output = model.decoder_forward(model.embed(&batch).unwrap(), options);
    let chosen = model.config.text.moe.as_ref().unwrap().num_experts_per_tok;
    let loss = load_balancing_loss(&output.router_logits, &batch.attention_mask(), chosen).unwrap();

    let expected = case.meta["aux_loss"].as_f64().unwrap();
    let found = f64::from(loss.clone().into_scalar::<f32>());
    // A token with two nearly equal experts may be routed to the other on a GPU, which changes a count.
    let allowed = if matches!(backend(), Backend::Cpu) { 1e-5 } else { 5e-3 };
    assert!((found - expected).abs() < allowed, "{found}, not {expected}");
    let gradients = NamedGradients::from_gradients(&model, loss.backward());
    let names: Vec<&str> = gradients.names().filter(|name| name.ends_with("mlp.gate.weight")).collect();
    assert_eq!(names.len(), 2, "the loss reaches the routers of both layers with experts");
}
