//! `glm4v selftest` of the built binary. That wrong numbers, wrong casts and panics are found is tested in `crates/selftest`.

use std::collections::BTreeSet;

use glm4v_tests::{CommandOutput, command, glm4v};
use serde_json::Value;

fn objects(args: &[&str]) -> Vec<Value> {
    let output = glm4v([&["selftest", "--json"], args].concat()).success();
    output.stdout.lines().map(|line| serde_json::from_str(line).expect("lines are JSON")).collect()
}

#[test]
fn every_part_is_right_here_in_f32() {
    let output = glm4v(["selftest", "--dtype", "f32"]).success();

    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(lines[0].starts_with("glm4v ") && lines[0].ends_with(", dtype f32"), "{output:?}");
    assert_eq!(
        lines[2].split_whitespace().collect::<Vec<_>>(),
        ["part", "quantity", "deviation", "tolerance", "seconds"]
    );
    let (rows, end) = lines[3..].split_at(lines.len() - 5);
    assert!(rows.len() > 30 && rows.iter().all(|row| row.ends_with("  ok")), "{output:?}");
    assert!(end[1].starts_with("all ") && end[1].ends_with(" parts ok"), "{output:?}");
    assert_eq!(output.stderr, "");
}

#[test]
fn json_has_a_line_for_the_device_one_for_each_comparison_and_one_for_the_result() {
    let objects = objects(&["--dtype", "f32", "--part", "rounding", "--part", "forward"]);

    let [device, comparisons @ .., result] = objects.as_slice() else { panic!("{objects:?}") };
    assert_eq!((&device["dtype"], device["backend"].is_string()), (&"f32".into(), true));
    assert_eq!((&result["ok"], &result["parts"]), (&true.into(), &2.into()));
    assert_eq!(result["failed"].as_array().expect("a list").len(), 0);
    let parts: BTreeSet<&str> = comparisons.iter().filter_map(|row| row["part"].as_str()).collect();
    assert_eq!(parts, BTreeSet::from(["forward", "rounding"]));
    for row in comparisons {
        let [deviation, tolerance] =
            ["deviation", "tolerance"].map(|key| row[key].as_f64().expect("a number"));
        assert!(deviation <= tolerance && row["ok"] == true && row["quantity"].is_string(), "{row}");
    }
}

#[test]
fn types_of_16_bits_have_tolerances_of_their_own() {
    let run = |dtype: &str| {
        CommandOutput::run(command().args(["selftest", "--dtype", dtype, "--part", "forward", "--json"]))
    };
    // Where the device has them: the CPU has both.
    for dtype in ["bf16", "f16"] {
        let output = run(dtype);
        if output.code == Some(1) && output.stderr.contains(&format!("dtype {dtype} is not supported")) {
            assert!(!matches!(glm4v_tests::backend(), glm4v_model::Backend::Cpu));
            continue;
        }
        let output = output.success();
        let rows: Vec<Value> =
            output.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert!(rows[1]["tolerance"].as_f64().expect("a number") > 1e-2, "{}", rows[1]);
    }
}

#[test]
fn an_unknown_part_is_wrong_usage() {
    let output = glm4v(["selftest", "--part", "vision"]);

    output.usage_error(&["vision", "forward", "gradients", "lora"]);
}

#[test]
fn nothing_is_read_or_written() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    let mut command = command();
    command.current_dir(empty.path()).env("HOME", empty.path()).args(["selftest", "--part", "products"]);

    CommandOutput::run(&mut command).success();

    assert_eq!(glm4v_tests::walk(empty.path()).len(), 0);
}
