//! The same numbers on a GPU. Left out of an ordinary run, and each test says so:
//!
//!     GLM4V_TEST_BACKEND=wgpu cargo test --release --workspace --features gpu --test gpu -- --ignored --test-threads 1
//!     GLM4V_TEST_BACKEND=cuda cargo test --release --workspace --features gpu --test gpu -- --ignored --test-threads 1
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::ops::ControlFlow;

use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::Precision;
use glm4v_tests::{Case, Said, backend, glm4v, golden, losses, max_difference, train, values_of};
use glm4v_train::{NamedGradients, Targets, loss};
use glm4v_weights::ModelFolder;

fn folder() -> ModelFolder {
    ModelFolder::open(&golden().join("checkpoints/glm4v")).unwrap()
}

#[test]
#[ignore = "needs a GPU: see the head of tests/suites/gpu.rs"]
fn logits_of_an_image_prompt_are_those_of_transformers() {
    let model = folder().load(&backend().open().unwrap(), Precision::F32).unwrap();
    for name in ["image_single", "text_left_pad"] {
        let case = Case::open(&format!("forward/glm4v/{name}"));
        let batch = case.batch();

        let logits = values_of(&model.forward(&batch).unwrap().into_data());

        let expected = values_of(&case.float("out.logits"));
        let width = logits.len() / batch.attention_mask.len();
        let mut worst = 0.0f32;
        for (slot, _) in batch.attention_mask.iter().enumerate().filter(|(_, real)| **real) {
            let place = slot * width..(slot + 1) * width;
            worst = worst.max(max_difference(&logits[place.clone()], &expected[place]));
        }
        println!("{name} on {}: logits differ by {worst:.1e}", backend());
        assert!(worst < 5e-4, "{name}: {worst}");
    }
}

#[test]
#[ignore = "needs a GPU: see the head of tests/suites/gpu.rs"]
fn greedy_answers_are_those_of_transformers() {
    let model = folder().load(&backend().open().unwrap(), Precision::F32).unwrap();
    let case = Case::open("generate/glm4v/greedy_image");
    let batch = case.batch();
    let mut config = GenerationConfig::greedy(&model.config, 8);
    config.stop_ids.clear();

    let answers = generate(&model, &batch, &config, |_, _| ControlFlow::Continue(())).unwrap();

    let (expected, _) = case.integers("out.sequences").unwrap();
    let found: Vec<i64> = answers[0].ids.iter().map(|id| i64::from(*id)).collect();
    assert_eq!(found, expected[batch.shape[1]..batch.shape[1] + 8]);
}

#[test]
#[ignore = "needs a GPU: see the head of tests/suites/gpu.rs"]
fn loss_and_gradient_norm_are_those_of_torch() {
    let model = folder().load(&backend().open().unwrap().autodiff(), Precision::F32).unwrap();
    let case = Case::open("train/glm4v/loss_and_grads");
    let batch = case.batch();

    let loss = loss(&model, &batch, &Targets::of(&batch)).unwrap();
    let norm = NamedGradients::take(&model, loss.backward()).norm().unwrap().into_scalar::<f32>();

    let number = |key: &str| case.meta[key].as_f64().unwrap();
    let found = f64::from(loss.into_scalar::<f32>());
    assert!((found - number("loss")).abs() < 1e-4, "loss {found}");
    assert!((f64::from(norm) / number("grad_total_norm") - 1.0).abs() < 1e-4, "norm {norm}");
}

#[test]
#[ignore = "needs a GPU: see the head of tests/suites/gpu.rs"]
fn a_short_run_learns_and_its_model_answers() {
    let scratch = tempfile::tempdir().unwrap();
    let run = scratch.path().join("run");

    let short = ["schedule.max_steps=12", "schedule.warmup_steps=2"];
    Said::by(train(&run, &short).args(["--dtype", "f32"])).success();
    let model = run.join("final");
    let image = "datasets/digits/images/1081.png";
    let question = ["--image", image, "--prompt", "What digit is this?", "--max-new-tokens", "4", "--greedy"];
    glm4v([&["generate", "--dtype", "f32", "--model", model.to_str().unwrap()], &question[..]].concat())
        .success();

    let losses = losses(&run);
    println!("losses on {}: {losses:.3?}", backend());
    assert_eq!(losses.len(), 12);
    assert!(losses[11] < losses[0] - 1.0, "{losses:?}");
}
