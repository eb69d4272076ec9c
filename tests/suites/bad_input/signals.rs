//! SIGINT, SIGTERM, SIGHUP and SIGKILL.

use glm4v_tests::{interrupt, metrics, signal_when, walk};

use super::*;

#[test]
fn ctrl_c_writes_a_checkpoint_that_can_be_resumed() {
    let dir = tempdir().unwrap();

    let output = interrupt(&mut train(dir.path(), &["schedule.max_steps=5000"]), dir.path(), 3);

    // Ctrl-C is acknowledged first, even with --quiet.
    let message =
        output.stderr.trim_start().strip_prefix("stopping after this step and writing a checkpoint");
    let (_, error) = message.expect(&output.stderr).split_once('\n').unwrap();
    let error = CommandOutput { stderr: error.to_owned(), ..output };
    let steps = losses(dir.path()).len();
    error.exit_code(130, &[&format!("stopped after step {steps}"), "--resume goes on from there"]);
    let checkpoint = dir.path().join(format!("checkpoints/step-{steps}"));
    for file in
        ["config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors", "trainer.json"]
    {
        assert!(checkpoint.join(file).exists(), "{file}");
    }
    assert_no_partial_files(dir.path());

    let end = format!("schedule.max_steps={}", steps + 2);
    CommandOutput::run(train(dir.path(), &[&end]).arg("--resume")).success();

    assert_eq!(losses(dir.path()).len(), steps + 2);
    generate(&dir.path().join("final"), &["--prompt", "hi"]).success();
}

#[test]
fn an_evaluation_interrupted_by_ctrl_c_is_not_reported() {
    let dir = tempdir().unwrap();
    let long = ["eval.data=digits:train", "schedule.max_steps=2", "eval.batch_size=4"];

    let output = interrupt(&mut train(dir.path(), &long), dir.path(), 2);

    assert_eq!((output.code, output.stdout.as_str()), (Some(130), ""));
    assert!(output.stderr.contains("stopped after step 2"), "{output:?}");
    assert_eq!(metrics(dir.path()).len(), 2, "two steps and no evaluation");
    let weights = || fs::read(dir.path().join("final/model.safetensors")).unwrap();
    let before = weights();

    let short = ["eval.data=digits:test", "schedule.max_steps=2"];
    CommandOutput::run(train(dir.path(), &short).arg("--resume")).success();

    assert_eq!(metrics(dir.path())[2]["samples"], 360);
    assert!(weights() == before);
}

#[cfg(target_os = "linux")]
#[test]
fn signals_end_generate_and_eval_with_128_plus_their_number() {
    let dir = tempdir().unwrap();
    let model = random_model(dir.path());
    // Room for an answer that takes minutes: a signal may arrive late on a busy machine.
    let config = model.join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["text_config"]["max_position_embeddings"] = json!(200_000);
    fs::write(&config, json.to_string()).unwrap();
    let path_text = model.to_str().unwrap();
    let endless =
        ["generate", "--model", path_text, "--prompt", "hi", "--greedy", "--max-new-tokens", "150000"];
    let long = ["eval", "--model", path_text, "--data", "digits:train", "--batch-size", "4"];
    let incomplete = "stopped before the answer was complete";
    for (args, signal, code, words) in [
        (&endless[..], "INT", 130, incomplete),
        (&endless, "TERM", 143, incomplete),
        (&endless, "HUP", 129, incomplete),
        (&long, "INT", 130, "stopped; no result"),
    ] {
        // Under nohup the program must ignore SIGHUP, as any other.
        if signal == "HUP" && ignores_sighup() {
            continue;
        }
        let output = signal_when(command().args(args), signal, is_computing);

        assert_eq!(output.code, Some(code), "{output:?}");
        // A signal before the model is loaded ends the program at once.
        assert!(output.stderr.is_empty() || output.stderr.contains(words), "{output:?}");
    }
}

/// Whether a process has used 0.3 s of CPU time: its signal handler is installed by then.
#[cfg(target_os = "linux")]
fn is_computing(process: u32) -> bool {
    const TICKS: u64 = 30; // of a hundredth of a second
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let used = after_name.split_whitespace().nth(11).and_then(|ticks| ticks.parse().ok());
    used.is_some_and(|used: u64| used >= TICKS)
}

/// Whether this process ignores SIGHUP, which its children inherit.
fn ignores_sighup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
}

#[test]
fn signals_remove_a_partially_written_model() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let dir = tempdir().unwrap();
        let out = dir.path().join("out");

        let output = signal_when(&mut slow_init(&out), signal, |_| is_partially_written(&out));

        assert_eq!((output.code, output.stderr.as_str(), output.stdout.as_str()), (Some(code), "", ""));
        assert_eq!(walk(dir.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn leftovers_of_a_killed_command_are_removed_by_the_next() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("model");
    signal_when(&mut slow_init(&out), "KILL", |_| is_partially_written(&out));
    assert!(!walk(dir.path()).is_empty());

    random_model(dir.path());

    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [out]);
}
