//! A training run and its final model on a GPU; numbers are compared with transformers by `parity` on the same backend. Left out
//! of an ordinary run:
//!
//!     GLM4V_TEST_BACKEND=wgpu cargo test --release --workspace --features gpu --test gpu -- --ignored --test-threads 1
//!     GLM4V_TEST_BACKEND=cuda cargo test --release --workspace --features gpu --test gpu -- --ignored --test-threads 1

use glm4v_tests::{CommandOutput, backend, glm4v, losses, train};

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
