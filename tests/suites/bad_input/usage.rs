//! Wrong usage: flags, values and targets of a command.

use super::*;

#[test]
fn parse_only_checks_the_command_line_and_runs_nothing() {
    let parsed = |args: &[&str]| glm4v(["--parse-only"].iter().chain(args));
    let config = "configs/finetune/digits-full-cpu.toml";

    assert_eq!(parsed(&["generate", "--model", "/nowhere", "--prompt", "hi"]).success().stdout, "");
    assert_eq!(parsed(&["train", config, "--set", "run.output_dir=/nowhere/a"]).success().stdout, "");

    parsed(&["generate", "--modle", "/nowhere", "--prompt", "hi"]).usage_error(&["--modle"]);
    parsed(&["train", config, "--set", "optim.rl=1"]).failure(&["unknown key \"optim.rl\"; did you mean"]);
    parsed(&["train", "/nowhere.toml"]).failure(&["/nowhere.toml: cannot read"]);
}

#[test]
fn wrong_usage_has_exit_code_2() {
    glm4v(["generate", "--prompt", "hi"]).usage_error(&["--model <DIR>"]);
    glm4v(["generate", "--model", "x"]).usage_error(&["--prompt <TEXT>"]);
    glm4v(["generate", "--model", "x", "--image", "a.png"])
        .usage_error(&["<--prompt <TEXT>|--messages <FILE>>"]);
    let usage = glm4v(["generate", "--help"]).success().stdout;
    assert!(usage.contains("--model <DIR> <--prompt <TEXT>|--messages <FILE>>\n"), "{usage}");
    glm4v(["generate", "--model", "x", "--messages", "m.json", "--image", "a.png"])
        .usage_error(&["'--messages <FILE>' cannot be used with '--image <FILE>'"]);
    glm4v(["generate", "--model", "x", "--prompt", "hi", "--greedy", "--temperature", "1"])
        .usage_error(&["cannot be used with"]);
    glm4v(["eval", "--model", "x", "--data", "y", "--batch-size", "0"]).usage_error(&["needed: at least 1"]);
    glm4v(["trian"]).usage_error(&["'trian'", "train"]);
    glm4v(["--threads", "0", "info"]).usage_error(&["0 is not in 1..=1024"]);
    let info = ["info", "--model", "configs/models/digits"];
    glm4v([&info[..], &["--image-size", "1024"]].concat()).usage_error(&["WIDTHxHEIGHT"]);
    glm4v([&info[..], &["--seq-len", "1000"]].concat()).failure(&["--seq-len 1000", "1369 tokens", "256"]);
}

#[test]
fn an_unknown_dtype_or_shard_size_is_refused() {
    let model = checkpoint();
    let dir = tempdir().unwrap();
    let out = dir.path().join("out");
    let convert = ["convert", "--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];

    generate(&model, &["--prompt", "hi", "--dtype", "keep"])
        .failure(&["--dtype keep is for glm4v convert and merge", "needed here: f32, bf16 or f16"]);
    for (flag, value, words) in [
        ("--shard-size", "0GB", "size \"0GB\" is unknown; needed: a positive number with a unit"),
        ("--shard-size", "5", "as 5GB, 500MB or 4GiB"),
        ("--dtype", "f8", "dtype \"f8\" is unknown"),
    ] {
        glm4v(convert.iter().chain(&[flag, value])).usage_error(&[words]);
    }
}

#[test]
fn an_unavailable_backend_is_refused_with_the_build_command() {
    let model = checkpoint();
    let ask = |flags: &[&str]| {
        let mut command = std::process::Command::new(glm4v_tests::binary());
        command.args(flags).args(["generate", "--prompt", "hi", "--max-new-tokens", "1", "--model"]);
        CommandOutput::run(command.arg(&model))
    };

    ask(&["--backend", "rocm"]).usage_error(&["backend \"rocm\" is unknown; needed: auto, cpu, wgpu, cuda"]);
    ask(&["--dtype", "f8"]).usage_error(&["dtype \"f8\" is unknown; needed: f32, bf16 or f16"]);
    for name in ["cuda", "wgpu"] {
        let output = ask(&["--backend", name]);
        // A build with the backend succeeds, or finds no device.
        if !output.stderr.contains("finds no device") && output.code != Some(0) {
            output.failure(&[
                name,
                "is not compiled into this binary",
                "cargo build --release --features gpu",
            ]);
        }
    }
}

#[test]
fn sampling_parameters_out_of_range_are_refused() {
    for (flag, value, words) in [
        ("--top-p", "7", "top_p is 7; needed: more than 0, at most 1"),
        ("--temperature", "-1", "temperature is -1; needed: 0 (greedy), or 1e-6 and more"),
        ("--min-p", "2", "min_p is 2; needed: 0 to 1"),
        ("--repetition-penalty", "0", "repetition_penalty is 0; needed: more than 0"),
    ] {
        generate(&checkpoint(), &["--prompt", "hi", flag, value]).failure(&[words]);
    }
    let none = ["generate", "--prompt", "hi", "--max-new-tokens", "0", "--model"];
    CommandOutput::run(command().args(none).arg(checkpoint()))
        .failure(&["max_new_tokens is 0; needed: at least 1"]);
}

#[cfg(unix)]
#[test]
fn too_many_rayon_threads_are_refused_with_the_flag() {
    CommandOutput::run(command().env("RAYON_NUM_THREADS", "100000").arg("info"))
        .failure(&["RAYON_NUM_THREADS is 100000; needed: 1 to 1024", "--threads"]);
}

#[test]
fn an_unwritable_trace_output_is_refused_before_the_forward_pass() {
    let dir = tempdir().unwrap();
    let messages = dir.path().join("messages.json");
    fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();

    trace(&messages, &dir.path().join("no/such/out.safetensors")).failure(&[
        "--out ",
        "no/such/out.safetensors: no directory",
        "make it first",
    ]);
    trace(&messages, dir.path()).failure(&["is not a file; needed: the path of a file"]);

    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn init_does_not_overwrite_an_existing_directory() {
    let dir = tempdir().unwrap();
    let model = random_model(dir.path());
    let before = fs::read(model.join("model.safetensors")).unwrap();
    let args = ["init", "--config", "configs/models/digits", "--seed", "7", "--out", model.to_str().unwrap()];

    glm4v(args).failure(&["model: exists already; choose another --out"]);

    assert_eq!(fs::read(model.join("model.safetensors")).unwrap(), before);
    assert_no_partial_files(dir.path());
}
