//! A training run and its final model on a GPU; numbers are compared with transformers by `parity` on the same backend. Left out
//! of an ordinary run:
//!
//!     GLM4V_TEST_BACKEND=wgpu cargo test --release --workspace --features gpu --test gpu -- --ignored --test-threads 1
//!     GLM4V_TEST_BACKEND=cuda cargo test --release --workspace --features gpu --test gpu -- --ignored --test-threads 1
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests fail and print as tests do")]

use std::path::Path;

use burn::tensor::DType;
use glm4v_tests::{CommandOutput, backend, command, glm4v, losses, random_model, train};
use glm4v_weights::TensorFile;

#[test]
#[ignore = "needs a GPU: see the head of tests/suites/gpu.rs"]
fn a_short_run_lowers_the_loss_and_its_model_generates() {
    let scratch = tempfile::tempdir().unwrap();
    let run = scratch.path().join("run");

    let short = ["schedule.max_steps=12", "schedule.warmup_steps=2"];
    CommandOutput::run(train(&run, &short).args(["--dtype", "f32"])).success();
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

/// The logits of one prompt with an image, `[1, S, V]` row-major; none where the device does not compute in `dtype`.
fn logits(model: &Path, dtype: &str) -> Option<Vec<f32>> {
    let out = model.join(format!("{dtype}.safetensors"));
    let image = "datasets/digits/images/1081.png";
    let mut trace = command();
    trace.args(["trace", "--dtype", dtype, "--image", image, "--prompt", "What digit is this?", "--model"]);
    let output = CommandOutput::run(trace.arg(model).arg("--out").arg(&out));
    if output.code == Some(1) {
        output.failure(&[&format!("dtype {dtype} is not supported"), "--dtype f32"]);
        eprintln!("SKIPPED: {} has no {dtype}", backend());
        return None;
    }
    output.success();
    let logits = TensorFile::open(&out).unwrap().float("logits", DType::F32).unwrap();
    Some(logits.try_to_vec().unwrap())
}

// A weight of 16 bits has a relative error of at most 2^-9 (bf16) or 2^-12 (f16), and independent errors of a few layers add up to a few
// times that; a cast in the wrong place costs more.
#[test]
#[ignore = "needs a GPU: see the head of tests/suites/gpu.rs"]
fn sixteen_bits_have_the_logits_of_f32_within_their_precision() {
    let dir = tempfile::tempdir().unwrap();
    let model = random_model(dir.path());
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let exact = logits(&model, "f32").unwrap();

    for (dtype, most) in [("f16", 0.004), ("bf16", 0.03)] {
        let Some(found) = logits(&model, dtype) else { continue };
        let error: Vec<f32> = exact.iter().zip(&found).map(|(exact, found)| found - exact).collect();
        let relative = norm(&error) / norm(&exact);
        println!("{dtype} on {}: relative error of the logits {relative:.5}", backend());
        assert!(relative < most, "{dtype}: {relative}");
        assert!(relative > 0.0, "{dtype} is computed in f32");
    }
}
