//! AdamW and learning rate schedules.

use super::*;

/// Gradients with one value everywhere, for the parameters that `of` selects.
fn gradients(model: &Glm4v, value: f32, of: impl Fn(&str) -> bool) -> NamedGradients {
    let device = model.device().inner();
    let gradient = |(name, values): (String, Vec<f32>)| {
        (name, Tensor::from_data(TensorData::new(vec![value; values.len()], [values.len()]), &device))
    };
    parameters(model).into_iter().filter(|(name, _)| of(name)).map(gradient).collect()
}

/// In torch each parameter counts its own steps: its first update has the size of the learning rate at any time.
#[test]
fn adamw_counts_steps_per_parameter() {
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let (mut model, mut optimizer) = (trainable("glm4v"), AdamW::new(settings));
    let vision = |name: &str| name.starts_with("model.visual.");
    for _ in 0..3 {
        let of_text = gradients(&model, 0.5, |name| !vision(name));
        model = optimizer.step(model, of_text, 1e-3, 1.0);
    }
    let before = parameters(&model);
    // The file keeps the count of each parameter.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    optimizer.save(&path).unwrap();
    let mut optimizer = AdamW::load(settings, &path, &model).unwrap();

    let of_all = gradients(&model, 0.5, |_| true);
    let model = optimizer.step(model, of_all, 1e-3, 1.0);

    for (name, after) in parameters(&model) {
        let moved = before[&name].iter().zip(&after).map(|(before, after)| before - after);
        let (least, most) = moved.fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(x), b.max(x)));
        // With equal gradients, the first moment divided by the root of the second is 1 at every step.
        assert!(least > 0.99e-3 && most < 1.01e-3, "{name} moved by {least} to {most}");
    }
}

/// transformers keeps the experts of a layer in one tensor, whose gradient is zero for those that no token chose.
#[test]
fn an_expert_without_tokens_is_updated_with_a_zero_gradient() {
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 };
    let second = |name: &str| name.contains(".mlp.experts.1.");
    let stepped = |explicit: bool| {
        let (mut model, mut optimizer) = (trainable("glm4v_moe"), AdamW::new(settings));
        let all = gradients(&model, 0.5, |_| true);
        model = optimizer.step(model, all, 1e-3, 1.0);
        let mut names = gradients(&model, 0.25, |name| !second(name));
        if explicit {
            let zero = gradients(&model, 0.0, second);
            names = names.into_iter().chain(zero).collect();
        }
        optimizer.step(model, names, 1e-3, 1.0)
    };
    let (idle, zero) = (parameters(&stepped(false)), parameters(&stepped(true)));
    assert_eq!(idle, zero);
    assert!(idle.keys().any(|name| second(name)));

    // If no expert of the layer has a gradient, as with a frozen text decoder, none is updated.
    let model = trainable("glm4v_moe");
    let before = parameters(&model);
    let of_vision = gradients(&model, 0.5, |name| name.starts_with("model.visual."));
    let after = parameters(&AdamW::new(settings).step(model, of_vision, 1e-3, 1.0));
    assert!(before.iter().filter(|(name, _)| second(name)).all(|(name, values)| after[name] == *values));
}

#[test]
fn five_adamw_steps_equal_torch_with_and_without_clipping() {
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    for name in ["adamw", "adamw_clip"] {
        let case = Case::open(&format!("train/glm4v/{name}"));
        let settings = &case.meta["optimizer"];
        let number = |key: &str| settings[key].as_f64();
        let optimizer = AdamW::new(AdamWConfig {
            betas: [0.9, 0.999],
            eps: number("eps").unwrap(),
            weight_decay: number("weight_decay").unwrap(),
        });
        let config =
            TrainerConfig { max_grad_norm: number("clip_norm").unwrap_or(0.0), ..Default::default() };
        let mut trainer = Trainer::new(trainable("glm4v"), optimizer, config);
        let losses: Vec<f64> = serde_json::from_value(case.meta["losses"].clone()).unwrap();
        let totals: Vec<f64> =
            serde_json::from_value(case.meta["grad_total_norms_before_clip"].clone()).unwrap();
        for step in 1..=5 {
            trainer.accumulate(&batch).unwrap();
            let output = trainer.step(number("lr").unwrap()).unwrap();
            let (loss, norm) = (output.loss, output.grad_norm);
            assert!((loss - losses[step - 1]).abs() < 2e-3, "{name}, step {step}: {loss}");
            if number("clip_norm").is_some() {
                let expected = totals[step - 1];
                // Early moves where a gradient is rounding alone (below) grow: torch itself, from weights that differ by 6e-8,
                // is off by up to 8e-5 in the first three steps and by up to 3e-3 in the fourth.
                let tolerance = if step < 4 { 1e-3 } else { 1e-2 };
                assert!(
                    (norm / expected - 1.0).abs() < tolerance,
                    "{name}, step {step}: {norm}, not {expected}"
                );
            }
            if step == 1 {
                // One step moves a weight by about the rate, whichever way its gradient points: compare the
                // moves, where gradients are not so small that their sign is noise.
                for (name, found) in parameters(trainer.model()) {
                    let stored = format!("step1.{name}");
                    // A key's bias shifts all scores of a query alike wherever it is not rotated: no gradient but
                    // rounding, whose sign decides the first step.
                    if case.names(&stored).contains(&stored) && !name.ends_with("k_proj.bias") {
                        let difference = relative_l2(&found, &values_of(&case.float(&stored)));
                        assert!(difference < 1e-4, "{name} after step 1 differs by {difference:.1e}");
                    }
                }
            }
        }
        let norms = case.meta["param_norms"]["5"].as_object().unwrap();
        for (name, found) in parameters(trainer.model()) {
            let norm = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let expected = norms[&name]["l2"].as_f64().unwrap();
            // The noise in a key's bias, see above, has moved it by up to five steps.
            let tolerance = if name.ends_with("k_proj.bias") { 1e-2 } else { 1e-3 };
            assert!(
                (norm / expected - 1.0).abs() < tolerance,
                "{name} after step 5: norm {norm}, not {expected}"
            );
        }
    }
}

#[test]
fn learning_rates_equal_transformers() {
    let text = std::fs::read_to_string(golden().join("train/glm4v/schedules.json")).unwrap();
    let table: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, kind) in [
        ("cosine", ScheduleKind::Cosine),
        ("linear", ScheduleKind::Linear),
        ("constant_with_warmup", ScheduleKind::Constant),
    ] {
        let schedule = Schedule { kind, lr: 3e-4, warmup_steps: 5, steps: 40 };
        let rates: Vec<f64> = serde_json::from_value(table["rates"][name].clone()).unwrap();
        // Beyond the last step a cosine would rise again; no run goes there.
        for (step, expected) in rates.iter().enumerate().take(41) {
            let found = schedule.lr_at(step);
            assert!((found - expected).abs() < 1e-12, "{name}, step {step}: {found}, not {expected}");
        }
    }
}
