//! Runs that cannot be resumed, and checkpoints that are damaged.

use super::*;

#[test]
fn resume_in_an_empty_directory_is_refused() {
    let dir = tempdir().unwrap();

    CommandOutput::run(train(dir.path(), &[]).arg("--resume"))
        .failure(&["holds no run to resume; start it without --resume"]);

    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn resume_with_other_data_or_seed_is_refused() {
    let dir = tempdir().unwrap();
    CommandOutput::run(&mut train(dir.path(), &["schedule.max_steps=2", "run.save_steps=1"])).success();

    let resume =
        |setting| CommandOutput::run(train(dir.path(), &["schedule.max_steps=3", setting]).arg("--resume"));

    resume("run.seed=1").failure(&["step-2: was made with run.seed 0, this run has 1; needed: 0, as"]);
    resume("data.train=digits:test").failure(&["data.train, digits:test, holds other records"]);
}

#[test]
fn a_bad_record_found_late_writes_a_checkpoint_first() {
    let dir = tempdir().unwrap();
    // Found when its pixels are decoded, and not before.
    let whole = fs::read(digit_image()).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0xff;
    fs::write(dir.path().join("damaged.png"), damaged).unwrap();
    let data = data_with_last_record(dir.path(), &record("damaged.png", "one").to_string());
    let order = dir.path().join("order.json");
    fs::write(&order, "[[0, 1], [2, 3], [4, 16]]").unwrap();
    let run = dir.path().join("run");
    let settings = [
        format!("data.train={}", data.display()),
        format!("data.batch_order={}", order.display()),
        "schedule.max_steps=3".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();

    CommandOutput::run(&mut train(&run, &settings))
        .failure(&["line 17", "damaged.png: damaged or unsupported png"]);

    assert!(run.join("checkpoints/step-2/optimizer.safetensors").exists());
    assert_no_partial_files(&run);
    fs::copy(digit_image(), dir.path().join("damaged.png")).unwrap();
    CommandOutput::run(train(&run, &settings).arg("--resume")).success();
}

#[test]
fn a_finished_run_can_be_extended_but_not_repeated() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let saving = ["schedule.max_steps=3", "run.save_steps=2"];
    CommandOutput::run(&mut train(&run, &saving)).success();

    CommandOutput::run(train(&run, &saving).arg("--resume")).failure(&[
        "the run is finished after 3 steps",
        "needed: more than 3 steps",
        "go on from",
        "step-3",
    ]);
    CommandOutput::run(&mut train(&run, &saving))
        .failure(&["weights in final and a checkpoint after step 3", "run.output_dir"]);
    CommandOutput::run(train(&run, &["schedule.max_steps=2", "run.save_steps=2"]).arg("--resume"))
        .failure(&["3 steps are done, and the schedule has 2"]);
    CommandOutput::run(train(&run, &["schedule.max_steps=4", "run.save_steps=2"]).arg("--resume")).success();
}

#[test]
fn resume_with_another_model_or_a_damaged_optimizer_is_refused() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let steps = ["schedule.max_steps=2", "run.save_steps=1"];
    CommandOutput::run(&mut train(&run, &steps)).success();
    fs::remove_dir_all(run.join("final")).unwrap();
    let resume =
        |settings: &[&str]| CommandOutput::run(train(&run, &[&steps, settings].concat()).arg("--resume"));

    let other = format!("model.path={}", checkpoint().display());
    resume(&[&other]).failure(&["holds another network than model.path"]);

    let optimizer = run.join("checkpoints/step-2/optimizer.safetensors");
    let whole = fs::read(&optimizer).unwrap();
    write_tensors(&optimizer, vec![], &[]).unwrap();
    resume(&[]).failure(&[
        "optimizer.safetensors: not an optimizer's state",
        "checkpoints/step-2 cannot be resumed from",
        "remove it, and --resume goes on from",
        "checkpoints/step-1",
    ]);
    let short = TensorData::new(vec![0.0f32; 5], [5]);
    let state = vec![("exp_avg.lm_head.weight".to_owned(), short)];
    write_tensors(&optimizer, state, &[("steps", r#"{"lm_head.weight": 2}"#.to_owned())]).unwrap();
    resume(&[])
        .failure(&["optimizer.safetensors: 1 tensor has another shape: exp_avg.lm_head.weight is [5]"]);

    fs::write(&optimizer, whole).unwrap();
    resume(&[]).success();
}

#[test]
fn a_damaged_checkpoint_names_the_previous_one() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    let steps = ["schedule.max_steps=3", "run.save_steps=1", "run.save_total_limit=3"];
    CommandOutput::run(&mut train(&run, &steps)).success();
    let more = ["schedule.max_steps=4", "run.save_steps=1", "run.save_total_limit=3"];
    let resume = || CommandOutput::run(train(&run, &more).arg("--resume"));
    let newest = run.join("checkpoints/step-3");
    type Damage = fn(Vec<u8>) -> Option<Vec<u8>>;
    let damages: [(&str, Damage); 6] = [
        ("model.safetensors", |bytes| Some(bytes[..bytes.len() / 2].to_vec())),
        ("model.safetensors", |_| None),
        ("config.json", |_| None),
        ("optimizer.safetensors", |bytes| Some(bytes[..bytes.len() / 2].to_vec())),
        ("optimizer.safetensors", |_| None),
        ("trainer.json", |bytes| Some(bytes[..bytes.len() / 2].to_vec())),
    ];
    for (file, damage) in damages {
        let path = newest.join(file);
        let whole = fs::read(&path).unwrap();
        match damage(whole.clone()) {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }

        resume().failure(&[
            "checkpoints/step-3 cannot be resumed from",
            file.split('.').next().unwrap(),
            "remove it, and --resume goes on from",
            "checkpoints/step-2",
        ]);

        fs::write(&path, whole).unwrap();
    }
    fs::remove_file(newest.join("trainer.json")).unwrap();
    fs::remove_dir_all(&newest).unwrap(); // as was advised
    resume().success();
    assert_eq!(glm4v_tests::losses(&run).len(), 4);
}

#[test]
fn settings_that_a_checkpoint_depends_on_cannot_be_changed() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    let answers = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
    let write = |answers: &[&str]| {
        let lines =
            answers.iter().map(|answer| record(digit_image().to_str().unwrap(), answer).to_string() + "\n");
        fs::write(&data, lines.collect::<String>()).unwrap();
    };
    write(&answers);
    let run = dir.path().join("run");
    let own = format!("data.train={}", data.display());
    let resumed = |more: &[&str], flags: &[&str]| {
        let settings = [&[own.as_str(), "data.batch_size=4", "schedule.max_steps=4"], more].concat();
        CommandOutput::run(train(&run, &settings).args(flags))
    };
    let first = ["schedule.max_steps=2", "run.save_steps=1"];
    resumed(&first, &[]).success();
    for (more, flags, words) in [
        (&["model.freeze=['vision']"][..], &["--resume"][..], "model.freeze [], this run has [\"vision\"]"),
        (&["lora.r=8"], &["--resume"], "was made with lora absent, this run has present"),
        (&[], &["--resume", "--dtype", "bf16"], "was made with dtype f32, this run has bf16"),
        (
            &["schedule.max_steps=1"],
            &["--resume"],
            "2 steps are done, and the schedule has 1; needed: at least 2",
        ),
    ] {
        resumed(more, flags).failure(&[words]);
    }
    let mut other = answers;
    other.swap(1, 6);
    write(&other);
    resumed(&[], &["--resume"]).failure(&["holds other records", "in another order", "step-2"]);

    write(&answers);
    resumed(&["optim.lr=1e-5", "run.save_total_limit=5"], &["--resume"]).success();
}

#[test]
fn a_locked_run_directory_is_not_resumed() {
    let dir = tempdir().unwrap();
    let run = dir.path().join("run");
    CommandOutput::run(&mut train(&run, &["schedule.max_steps=2", "run.save_steps=1"])).success();
    let lock = fs::File::open(run.join(".lock")).unwrap();
    lock.lock().unwrap();
    let resume =
        || CommandOutput::run(train(&run, &["schedule.max_steps=3", "run.save_steps=1"]).arg("--resume"));

    resume().failure(&[
        "in use by another run, process ",
        "needed: the end of that run, or another run.output_dir",
    ]);

    drop(lock);
    resume().success();
}
