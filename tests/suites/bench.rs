//! `glm4v bench` of the built binary: what it reports, and that its counts are those of `glm4v-plan`. No time is asserted.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::PathBuf;

use glm4v_model::{Backend, Grid};
use glm4v_plan::{CostModel, TuningMode, Workload};
use glm4v_tests::{CommandOutput, command, glm4v, golden};
use glm4v_weights::ModelFolder;
use serde_json::Value;

/// A model of three layers with weights.
fn checkpoint(family: &str) -> PathBuf {
    golden().join("checkpoints").join(family)
}

/// Shapes that take no time: an image of 2x2 tokens, one round.
const SHORT: [&str; 11] = [
    "--image-size",
    "56x56",
    "--text-tokens",
    "8",
    "--decode-depth",
    "6",
    "--decode-tokens",
    "3",
    "--rounds",
    "2",
    "--no-ceilings",
];

fn bench(args: &[&str]) -> CommandOutput {
    CommandOutput::run(command().arg("bench").args(args))
}

fn report(args: &[&str]) -> Value {
    let output = bench(&[args, &["--json"]].concat()).success();
    serde_json::from_str(&output.stdout).unwrap()
}

fn short_report(model: &str, args: &[&str]) -> Value {
    report(&[&["--model", model], &SHORT[..], &["--warmup", "1"], args].concat())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn names(report: &Value) -> Vec<&str> {
    report["workloads"].as_array().unwrap().iter().map(|entry| entry["workload"].as_str().unwrap()).collect()
}

#[test]
fn every_workload_of_a_model_is_measured() {
    for family in ["glm4v", "glm4v_moe", "glm_ocr"] {
        let report = short_report(checkpoint(family).to_str().unwrap(), &["--batch-size", "2"]);

        assert_eq!(
            names(&report),
            ["load", "preprocess", "vision", "prefill", "decode", "train", "train"],
            "{family}"
        );
        assert_eq!(report["skipped"], Value::Array(vec![]));
        assert_eq!(report["ceilings"], Value::Null);
        for entry in report["workloads"].as_array().unwrap() {
            let rounds = entry["seconds"]["rounds"].as_array().unwrap();
            assert_eq!(rounds.len(), if entry["workload"] == "decode" { 3 } else { 2 }, "{entry}");
            let [min, median, max] = ["min", "median", "max"].map(|key| number(&entry["seconds"][key]));
            assert!(0.0 < min && min <= median && median <= max, "{entry}");
            assert!(number(&entry["rate"]["value"]) > 0.0, "{entry}");
            assert_eq!(entry["warmup"], 1);
        }
    }
}

#[test]
fn counts_are_those_of_the_formulas() {
    let path = checkpoint("glm4v");
    let folder = ModelFolder::open(&path).unwrap();
    let config = folder.config();
    let device = Backend::Cpu.open().unwrap();
    let params = config.param_counts(&device);
    let workload =
        Workload { batch_size: 2, seq_len: 12, completion_tokens: 5, image: Some(Grid::new(1, 4, 4)) };
    let cpu = glm4v_tests::backend() == Backend::Cpu;
    let cost = CostModel { config, params: &params, dtype_bytes: 4, cpu, workload };
    let lora = TuningMode::lora(&mut config.init(&device), 4, false);

    let report = short_report(
        path.to_str().unwrap(),
        &["--batch-size", "2", "--labels", "5", "--lora-rank", "4", "--dtype", "f32"],
    );

    let found = |index: usize| {
        let entry = &report["workloads"][index];
        (entry["flops"].as_u64(), entry["bytes"].as_u64())
    };
    let expected = |work: glm4v_plan::Work| (Some(work.flops), Some(work.bytes));
    let stored = folder.summary().unwrap().total_bytes;
    assert_eq!(found(0), (Some(0), Some(stored + 4 * params.total())));
    assert_eq!(found(1), (None, None));
    assert_eq!(found(2), expected(cost.vision_work()));
    assert_eq!(found(3), expected(cost.prefill_work()));
    assert_eq!(found(4), expected(cost.decode_work(8))); // from 6 on, one to warm up, three measured
    assert_eq!(found(5), expected(cost.training_work(TuningMode::Full)));
    assert_eq!(found(6), expected(cost.training_work(lora)));
    assert_eq!(report["model"]["parameters"], params.total());
    assert_eq!(report["workloads"][3]["shape"]["seq_len"], 12);
    assert_eq!(report["workloads"][2]["shape"]["image_grid_thw"], serde_json::json!([1, 4, 4]));
}

#[test]
fn a_share_is_the_time_of_the_least_work_at_the_ceilings() {
    let config = ["--config", "configs/models/digits"];

    let report =
        report(&[&config[..], &SHORT[..10], &["--warmup", "0", "--workload", "prefill,vision"]].concat());

    assert_eq!(names(&report), ["vision", "prefill"]);
    let ceiling = |key: &str| number(&report["ceilings"][key]["median"]);
    for entry in report["workloads"].as_array().unwrap() {
        let matmul = number(&entry["flops"]) / ceiling("matmul_flops_per_s");
        let copy = number(&entry["bytes"]) / ceiling("copy_bytes_per_s");
        let share = matmul.max(copy) / number(&entry["seconds"]["median"]);
        assert!((number(&entry["share_of_ceiling"]) / share - 1.0).abs() < 1e-6, "{entry}");
        assert_eq!(entry["ceiling"], if matmul > copy { "matmul" } else { "copy" });
    }
    assert_eq!(report["model"]["weights"], "random, made on the device");
}

#[test]
fn without_a_model_the_device_alone_is_measured() {
    let report = report(&["--rounds", "2", "--warmup", "0"]);

    assert_eq!(report["workloads"], Value::Array(vec![]));
    for key in ["copy_bytes_per_s", "matmul_flops_per_s"] {
        assert_eq!(report["ceilings"][key]["rounds"].as_array().unwrap().len(), 2);
    }
    assert!(report["machine"]["memory_bytes"].as_u64().unwrap() > 0);
    assert_eq!(report["model"], Value::Null);
}

#[test]
fn lists_measure_every_combination_once() {
    let digits = "configs/models/digits/config.json";
    let lists = ["--text-tokens", "4,6", "--batch-size", "1,2", "--decode-depth", "3,5"];
    let workload = ["--workload", "decode,prefill,vision", "--image-size", "none,28x28,56x28"];
    let short = ["--decode-tokens", "1", "--rounds", "1", "--warmup", "0", "--no-ceilings"];

    let report = report(&[&["--config", digits], &lists[..], &workload, &short].concat());

    let count = |name: &str| names(&report).iter().filter(|found| **found == name).count();
    assert_eq!((count("vision"), count("prefill"), count("decode")), (2 * 2, 3 * 2 * 2, 2 * 2));
    let mut seen: Vec<String> = report["workloads"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| format!("{}{}", entry["workload"], entry["shape"]))
        .collect();
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[test]
fn frozen_parts_take_less_work() {
    let flops = |args: &[&str]| {
        let model = checkpoint("glm4v");
        let only = ["--workload", "train", "--method", "full", "--labels", "4"];
        let report = short_report(model.to_str().unwrap(), &[&only[..], args].concat());
        let entry = &report["workloads"][0];
        (entry["flops"].as_u64().unwrap(), entry["shape"]["frozen"].clone())
    };

    let (full, none) = flops(&[]);
    let (frozen, parts) = flops(&["--freeze", "vision,merger"]);

    assert_eq!(none, serde_json::json!([]));
    assert_eq!(parts, serde_json::json!(["vision", "merger"]));
    assert!(frozen < full, "{frozen} {full}");
}

#[test]
fn the_table_has_a_row_for_each_workload() {
    let output = bench(
        &[&["--config", "configs/models/digits"], &SHORT[..10], &["--workload", "all", "--warmup", "0"]]
            .concat(),
    )
    .success()
    .stdout;

    for text in ["processor", "backend", "copy", "matmul", "of ceiling", "load: not measured"] {
        assert!(output.contains(text), "{text}: {output}");
    }
    for row in [
        "preprocess, 56x56",
        "vision, 56x56",
        "prefill, 56x56, 8 text tokens",
        "decode at 6",
        "train full",
        "train lora, rank 16",
    ] {
        assert!(output.lines().any(|line| line.starts_with(row)), "{row}: {output}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_computed() {
    let digits = ["--config", "configs/models/digits"];
    let failure = |args: &[&str], texts: &[&str]| bench(&[&digits[..], args].concat()).failure(texts);

    failure(
        &["--batch-size", "1000000000"],
        &[
            "vision, 448x448, batch 1000000000: needs about ",
            " GB free; use --dtype bf16, a smaller --batch-size",
        ],
    );
    failure(
        &["--text-tokens", "4000"],
        &["prefill: takes 4256 positions, and the model has 4096", "use a smaller --image-size"],
    );
    failure(&["--decode-depth", "4080"], &["decode: takes 4116 positions, and the model has 4096"]);
    failure(&["--workload", "load"], &["load: needs weights to read, given by --model DIR"]);
    failure(&["--workload", "vision", "--image-size", "none"], &["vision: needs an image"]);
    failure(&["--image", "README.md"], &["README.md"]);
    failure(
        &["--workload", "train", "--freeze", "vision,merger,text"],
        &["every part of the network is frozen"],
    );
    glm4v(["bench", "--model", "configs/models/digits", "--workload", "vision"]).failure(&["glm4v init"]);
    glm4v(["bench", "--config", "Cargo.toml"]).failure(&["Cargo.toml"]);
}

#[test]
fn wrong_flags_are_wrong_usage() {
    let usage = |args: &[&str], text: &str| bench(args).usage_error(&[text]);

    usage(&["--workload", "vision"], "--model");
    usage(&["--config", "x", "--workload", "sight"], "sight");
    usage(&["--config", "x", "--freeze", "eyes"], "needed: one of vision, merger, text, embeddings, head");
    usage(&["--config", "x", "--batch-size", "0"], "at least 1");
    usage(&["--config", "x", "--model", "y"], "cannot be used with");
}
