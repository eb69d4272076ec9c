//! Configs of runs, run directories, and training that diverges.

use super::*;

#[test]
fn an_invalid_run_config_is_refused_with_its_key() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.toml");
    let good = "[model]\npath = \"configs/models/digits\"\n[data]\ntrain = \"digits:train\"\n[optim]\n";
    for (more, setting, words) in [
        (
            "wieght_decay = 1",
            "run.seed=0",
            "x.toml: unknown key \"optim.wieght_decay\"; did you mean \"weight_decay\"?",
        ),
        ("", "optm.lr=1", "unknown key \"optm\"; did you mean \"optim\"?"),
        ("", "optim.lr=0", "x.toml: optim.lr is 0; needed: a positive number"),
        ("", "optim.lr=fast", "expected f64 in `optim.lr`"),
        (
            "",
            "model.freeze=['txt']",
            "unknown variant `txt`, expected one of `vision`, `merger`, `text`, `embeddings`, `head` in `model.freeze`",
        ),
        ("", "run.folder=x", "x.toml: unknown key \"run.folder\"; its name is \"run.output_dir\" now"),
        ("", "optim", "setting \"optim\": needed: section.key=value; as in --set "),
        ("", "schedule.epochs=1e300", "schedule.epochs is"),
        ("= 3", "run.seed=0", "x.toml: TOML parse error at line 6"),
    ] {
        fs::write(&path, format!("{good}{more}")).unwrap();
        let mut command = command();

        let output = CommandOutput::run(command.arg("train").arg(&path).args(["--set", setting]));

        output.failure(&[words]);
    }
    CommandOutput::run(command().arg("train").arg(dir.path().join("y.toml")))
        .failure(&["y.toml: cannot read"]);
    CommandOutput::run(command().arg("train").arg(dir.path()))
        .failure(&["is a directory; needed: a regular file"]);
}

#[test]
fn a_run_without_trainable_parameters_is_refused() {
    let dir = tempdir().unwrap();

    let output = CommandOutput::run(&mut train(dir.path(), &["model.freeze=['vision', 'merger', 'text']"]));

    output.failure(&["model.freeze leaves no trainable parameters", "at least one of vision, merger, text"]);
}

#[test]
fn an_invalid_batch_order_is_refused_before_the_first_step() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("order.json");
    let run = dir.path().join("run");
    let order = format!("data.batch_order={}", path.display());
    for (text, words) in [
        ("[[1, 2], [3, -4]]", "order.json: invalid value: integer `-4`"),
        ("[[1, 2], [3, 5000]]", "order.json: batch 1: record 5000 does not exist, the dataset has 1437"),
        ("[[1, 2], []]", "order.json: batch size is 0"),
        (
            "[[1, 2], [3, 5]]",
            "order.json: data.batch_order has 2 batches; needed: one for each of the 3 steps",
        ),
    ] {
        fs::write(&path, text).unwrap();

        CommandOutput::run(&mut train(&run, &[&order, "schedule.max_steps=3"])).failure(&[words]);

        assert!(!run.exists(), "{text}");
    }
}

#[test]
fn a_run_that_fails_before_its_first_step_can_be_restarted() {
    let dir = tempdir().unwrap();
    let bad = data_with_last_record(dir.path(), &record("gone.png", "x").to_string());

    train_on(dir.path(), &bad, &[]).failure(&["gone.png"]);
    let good = data_with_last_record(dir.path(), &record(digit_image().to_str().unwrap(), "x").to_string());

    train_on(dir.path(), &good, &[]).success();
}

#[test]
fn an_unwritable_run_directory_is_refused_before_the_first_step() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();

    // Inside a file, as root may write to any directory.
    let output = CommandOutput::run(&mut train(&file.join("run"), &[]));

    output.failure(&["file/run: cannot write the run directory", "--set run.output_dir=PATH"]);
    assert_eq!(fs::read_to_string(file).unwrap(), "");
}

#[test]
fn a_run_directory_with_a_run_is_not_overwritten() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let short = ["schedule.max_steps=2", "run.save_steps=1"];
    CommandOutput::run(&mut train(&run, &["schedule.max_steps=2"])).success();
    let before = fs::read(run.join("metrics.jsonl")).unwrap();

    CommandOutput::run(&mut train(&run, &short)).failure(&[
        "holds a finished run, its weights are in final; --set run.output_dir=PATH starts another",
    ]);
    CommandOutput::run(train(&run, &short).arg("--resume")).failure(&[
        "the run is finished and has no checkpoint",
        "start a run in another run.output_dir with model.path = \"",
        "run/final\"",
    ]);
    let other = dir.path().join("other");
    CommandOutput::run(&mut train(&other, &short)).success();
    fs::remove_dir_all(other.join("final")).unwrap(); // as if the run had stopped before
    CommandOutput::run(&mut train(&other, &short))
        .failure(&["holds a run with a checkpoint after step 2; --resume goes on with it"]);

    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_nan_loss_ends_the_run_and_names_the_checkpoint() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let diverging = ["optim.lr=1e30", "optim.max_grad_norm=0", "schedule.max_steps=9"];

    let without = CommandOutput::run(&mut train(&run, &diverging));
    let again = CommandOutput::run(&mut train(&run, &diverging));
    let resumed = CommandOutput::run(train(&run, &diverging).arg("--resume"));
    let other = dir.path().join("other");
    let with = CommandOutput::run(&mut train(&other, &[&diverging[..], &["run.save_steps=1"]].concat()));

    without.failure(&["step 2: loss is NaN", "lr", "start again with --set run.output_dir=PATH"]);
    again.failure(&["ended before its first checkpoint; remove the directory, or --set run.output_dir=PATH"]);
    resumed.failure(&[
        "the run ended before its first checkpoint",
        "remove the directory and start without --resume",
    ]);
    with.failure(&["step 2: loss is NaN", "go on from", "checkpoints/step-1 with --resume"]);
    assert_eq!(glm4v_tests::losses(&run).len(), 1, "the step that failed is not among the metrics");
    assert_no_partial_files(dir.path());
}

#[test]
fn non_finite_weights_are_never_saved() {
    let dir = tempdir().unwrap();
    for (name, setting) in [("rate", "optim.lr=1e300"), ("decay", "optim.weight_decay=1e300")] {
        let run = dir.path().join(name);
        let settings = ["schedule.max_steps=1", "run.save_steps=1", setting];

        CommandOutput::run(&mut train(&run, &settings)).failure(&[
            "step 1: ",
            "no longer finite",
            "optim.lr",
            "start again with --set run.output_dir=PATH, as there is no checkpoint yet",
        ]);

        assert!(!run.join("checkpoints").exists() && !run.join("final").exists(), "{name}");
    }
    // During warm-up the first step has a rate of 0, the second overflows.
    let run = dir.path().join("late");
    let settings = ["schedule.max_steps=2", "schedule.warmup_steps=1", "run.save_steps=1", "optim.lr=1e300"];
    CommandOutput::run(&mut train(&run, &settings)).failure(&[
        "step 2: ",
        "no longer finite",
        "late/checkpoints/step-1",
    ]);
    assert!(!run.join("checkpoints/step-2").exists() && !run.join("final").exists());
}

#[test]
fn partial_checkpoints_of_a_killed_run_are_removed_by_the_next() {
    let dir = tempdir().unwrap();
    let half = dir.path().join("checkpoints/.step-500.17.partial");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("model.safetensors"), "half").unwrap();

    CommandOutput::run(&mut train(dir.path(), &["schedule.max_steps=1"])).success();

    assert!(!half.exists());
}

#[test]
fn concurrent_runs_do_not_share_a_run_directory() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let start = || {
        let mut command = train(&run, &["schedule.max_steps=60"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };

    let started = [start(), start(), start()];
    let output = started.map(|child| CommandOutput::from(child.wait_with_output().unwrap()));

    let (one, refused): (Vec<_>, Vec<_>) = output.iter().partition(|output| output.code == Some(0));
    assert_eq!((one.len(), refused.len()), (1, 2), "{output:?}");
    for output in refused {
        // A run that started after the end of the first found its results.
        let late = output.stderr.contains("holds a");
        output.failure(&[if late {
            "--set run.output_dir=PATH starts another"
        } else {
            "in use by another run, process "
        }]);
    }
    assert_eq!(glm4v_tests::losses(&run).len(), 60);
}
