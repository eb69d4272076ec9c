//! Datasets and records that cannot be used.

use super::*;

#[test]
fn a_record_without_labels_or_with_bad_turns_is_named_with_its_line() {
    let turns = |turns: Value| json!({ "messages": turns }).to_string();
    let user = json!({"role": "user", "content": "What?"});
    let two = json!({"images": [digit_image()], "messages": [
        {"role": "user", "content": "<image><image>Which is larger?"}, {"role": "assistant", "content": "both"}]});
    for (line, words) in [
        (two.to_string(), &["found 2 <image>", "1 in \"images\"", "one entry for each place"][..]),
        (turns(json!([user, {"role": "assistant", "content": ""}])), &["message 1: the answer is empty"]),
        (r#"{"messages": [{"role": "user", "#.into(), &["not valid json", "write each record on one line"]),
        ("[1, 2]".into(), &["the record is a list, needed an object"]),
        (json!({"say": "x"}).to_string(), &["has no \"messages\"", "its keys are say"]),
        (json!({"text": "x"}).to_string(), &["\"text\" is plain text", "needed: a conversation as"]),
        (turns(json!([user])), &["has no turn of the assistant"]),
        (
            turns(json!([user, {"role": "assistant", "content": "x", "loss": false}])),
            &["masks everything", "\"loss\": false"],
        ),
        (
            turns(json!([user, {"role": "assistant", "content": "x"}, user])),
            &["message 2: the last message must be the assistant's"],
        ),
        (
            turns(json!([user, {"role": "wizard", "content": "x"}])),
            &["unknown role \"wizard\"; known are user"],
        ),
        (
            turns(json!([{"role": "user", "content": "<|image|>?"}, {"role": "assistant", "content": "x"}])),
            &["its text spells <|image|>", "remove it"],
        ),
    ] {
        let dir = tempdir().unwrap();
        let data = data_with_last_record(dir.path(), &line);

        let output = train_on(dir.path(), &data, &[]);

        output.failure(&[words, &["data.jsonl: line 17: "]].concat());
        assert_no_partial_files(dir.path());
    }
}

#[test]
fn a_dataset_without_a_full_batch_is_refused() {
    let dir = tempdir().unwrap();
    let empty = dir.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let data = data_with_last_record(dir.path(), &record(digit_image().to_str().unwrap(), "x").to_string());

    train_on(dir.path(), &empty, &[]).failure(&["empty.jsonl: holds no records"]);
    train_on(dir.path(), &data, &["data.batch_size=18"])
        .failure(&["dataset has 17 records", "lower the batch size to 17"]);
    train_on(dir.path(), &data, &["data.max_length=5"])
        .failure(&["data.jsonl: line ", "takes more than 5 tokens, the most that max_length"]);
    train_on(dir.path(), &data, &["data.max_length=5", "data.on_long=drop"])
        .failure(&["records in a row as longer than max_length"]);
    assert_no_partial_files(dir.path());
}

#[test]
fn an_unknown_dataset_is_refused_with_the_nearest_name() {
    let dir = tempdir().unwrap();
    for (name, words) in [
        ("digit:train", &["no dataset \"digit\"", "did you mean \"digits\"?"][..]),
        ("digits:tran", &["no split \"tran\"", "did you mean \"train\"?"]),
        ("digits", &["has the splits train, test; name one, as in \"digits:train\""]),
    ] {
        let data = Path::new(name);

        train_on(dir.path(), data, &[]).failure(words);
        let model = checkpoint();
        let args = ["eval", "--model", model.to_str().unwrap(), "--data", name];
        glm4v(args).failure(words);
    }
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_record_longer_than_max_position_embeddings_is_refused_early() {
    let dir = tempdir().unwrap();
    let user = |content: &str| json!({"role": "user", "content": content});
    let assistant = |content: &str| json!({"role": "assistant", "content": content});
    let images = vec![digit_image(); 10_000];
    let cases = [
        ("answer", json!({"messages": [user("?"), assistant(&"x ".repeat(6_000))]})),
        ("images", json!({"messages": [user(&"<image>".repeat(10_000)), assistant("x")], "images": images})),
        ("prompt", json!({"messages": [user(&"a word ".repeat(3_000_000)), assistant("x")]})),
        ("word", json!({"messages": [user(&"a".repeat(20_000_000)), assistant("x")]})),
    ];
    for (name, record) in cases {
        let path = dir.path().join(format!("{name}.jsonl"));
        fs::write(&path, format!("{record}\n")).unwrap();
        let data = path.display().to_string();

        let model = checkpoint().display().to_string();
        let eval = glm4v(["eval", "--model", &model, "--data", &data, "--max-new-tokens", "2"]);

        eval.failure(&[&format!("{name}.jsonl: line 1: takes "), " tokens"]);
    }
}

#[test]
fn dropped_records_of_an_evaluation_are_counted() {
    let dir = tempdir().unwrap();
    let long = record(digit_image().to_str().unwrap(), &"zero ".repeat(40)).to_string();
    let data = format!("eval.data={}", data_with_last_record(dir.path(), &long).display());
    let settings = ["schedule.max_steps=1", "data.max_length=40", "data.on_long=drop", &data];

    let output = CommandOutput::run(&mut train(&dir.path().join("run"), &settings)).success();

    assert!(
        output.stdout.contains("of 16 (") && output.stdout.contains("1 record left out"),
        "{}",
        output.stdout
    );
}

#[test]
fn an_evaluation_batch_with_all_records_dropped_is_skipped_and_counted() {
    let dir = tempdir().unwrap();
    let long = record(digit_image().to_str().unwrap(), &"zero ".repeat(40)).to_string();
    let all_long = dir.path().join("long.jsonl");
    fs::write(&all_long, format!("{long}\n{long}\n")).unwrap();
    let one_long = data_with_last_record(dir.path(), &long);
    for (data, words) in [
        (one_long, ["of 16 (", "; 1 record left out as too long"]),
        (all_long, ["exact match: none, as no record was evaluated", "; 2 records left out as too long"]),
    ] {
        let run = dir.path().join(data.file_stem().unwrap());
        let data = format!("eval.data={}", data.display());
        let small = ["schedule.max_steps=2", "data.max_length=40", "data.on_long=drop", "eval.batch_size=1"];
        let settings = [&small[..], &["eval.steps=1", &data]].concat();

        let output = CommandOutput::run(&mut train(&run, &settings)).success();

        assert!(words.iter().all(|word| output.stdout.contains(word)), "{}", output.stdout);
        let evaluations = glm4v_tests::metrics(&run).into_iter().filter(|entry| entry["samples"].is_u64());
        assert_eq!(evaluations.map(|entry| entry["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
        assert!(run.join("final/model.safetensors").exists());
    }
}

/// A data file of good records with three bad ones among them: not JSON, without its image, without an answer.
fn data_with_bad_records(dir: &Path) -> PathBuf {
    let path = dir.join("data.jsonl");
    let good = record(digit_image().to_str().unwrap(), "zero").to_string();
    let missing = record("missing.png", "x").to_string();
    let mut lines = vec![good.as_str(); 19];
    (lines[4], lines[9], lines[18]) =
        ("{\"messages\"", &missing, "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}");
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn bad_records_of_train_and_eval_data_are_listed_before_the_first_step() {
    let dir = tempdir().unwrap();
    let bad = data_with_bad_records(dir.path());
    let words = [
        "3 of 19 records cannot be used",
        "line 5: not valid json",
        "line 10: ",
        "missing.png: cannot read",
        "line 19: has no turn of the assistant",
        "data.on_bad=skip",
    ];
    let eval = format!("eval.data={}", bad.display());

    train_on(dir.path(), &bad, &[]).failure(&words);
    CommandOutput::run(&mut train(&dir.path().join("run"), &[&eval, "schedule.max_steps=1"])).failure(&words);
    let model = checkpoint();
    let args = ["eval", "--model", model.to_str().unwrap(), "--data", bad.to_str().unwrap()];
    glm4v(args).failure(&words[..5]);

    assert!(!dir.path().join("run/metrics.jsonl").exists(), "no step was made");
    let many: Vec<String> = (0..40).map(|i| record(&format!("{i}.png"), "x").to_string()).collect();
    fs::write(&bad, many.join("\n")).unwrap();
    let output = train_on(dir.path(), &bad, &["data.on_bad=skip"]);
    output.failure(&["none of 40 records can be used", "9.png", "and 30 more"]);
    assert!(!output.stderr.contains("/10.png"), "{output:?}");
}

#[test]
fn skipped_bad_records_do_not_change_the_losses_of_the_others() {
    let dir = tempdir().unwrap();
    let bad = data_with_bad_records(dir.path());
    let good = dir.path().join("good.jsonl");
    let text = fs::read_to_string(&bad).unwrap();
    let lines = text.lines().enumerate().filter(|(i, _)| ![4, 9, 18].contains(i)).map(|(_, line)| line);
    fs::write(&good, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let run = |name: &str, data: &Path, settings: &[&str]| {
        let data = format!("data.train={}", data.display());
        let all = [&[data.as_str(), "data.batch_size=3", "data.on_bad=skip"], settings].concat();
        train(&dir.path().join(name), &all)
    };

    let skipping = with_warnings(&mut run("skipping", &bad, &["schedule.max_steps=8"])).success();
    CommandOutput::run(&mut run("without", &good, &["schedule.max_steps=8"])).success();
    let first = ["schedule.max_steps=4", "schedule.type=constant", "run.save_steps=2"];
    let rest = ["schedule.max_steps=8", "schedule.type=constant", "run.save_steps=2"];
    CommandOutput::run(&mut run("straight", &bad, &rest)).success();
    CommandOutput::run(&mut run("resumed", &bad, &first)).success();
    CommandOutput::run(run("resumed", &bad, &rest).arg("--resume")).success();

    let losses = |name: &str| losses(&dir.path().join(name));
    assert_eq!(losses("skipping").len(), 8);
    assert_eq!(losses("skipping"), losses("without"));
    assert_eq!(losses("straight"), losses("resumed"));
    let order = dir.path().join("order.json");
    fs::write(&order, "[[0, 1]]").unwrap();
    let order = format!("data.batch_order={}", order.display());
    CommandOutput::run(&mut run("ordered", &bad, &["schedule.max_steps=1", &order]))
        .failure(&["data.batch_order numbers every record, and 3 are left out as bad"]);
    let eval = format!("eval.data={}", bad.display());
    let output = CommandOutput::run(&mut run("evaluated", &bad, &["schedule.max_steps=1", &eval])).success();
    assert!(
        output.stdout.contains(" of 16 (") && output.stdout.contains("3 records left out as bad"),
        "{output:?}"
    );
    for word in ["3 of 19 records cannot be used", "line 10: "] {
        assert!(skipping.stderr.contains(word), "{skipping:?}");
    }
}

#[test]
fn an_image_that_fails_to_decode_is_skipped_and_named_once() {
    let dir = tempdir().unwrap();
    let mut damaged = fs::read(digit_image()).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    fs::write(dir.path().join("damaged.png"), damaged).unwrap();
    let data = data_with_last_record(dir.path(), &record("damaged.png", "x").to_string());

    let settings = ["data.on_bad=skip", "schedule.max_steps=3"];
    let output = with_warnings(&mut train_command_on(dir.path(), &data, &settings)).success();
    assert_eq!(output.stderr.matches("line 17: ").count(), 1, "{output:?}");

    fs::write(&data, format!("{}\n", record("damaged.png", "x")).repeat(17)).unwrap();
    let run = dir.path().join("none");
    let data = format!("data.train={}", data.display());
    let all = [data.as_str(), "data.batch_size=17", "data.on_bad=skip", "schedule.max_steps=1"];
    CommandOutput::run(&mut train(&run, &all)).failure(&["records in a row that cannot be used"]);
}

#[test]
fn an_unsupported_data_file_is_named_by_its_format() {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.parquet"), "PAR1....").unwrap();
    fs::write(path("a.csv"), "question,answer\n").unwrap();
    fs::write(path("a.jsonl.gz"), b"\x1f\x8b\x08....").unwrap();
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("folder/b.jsonl"), "{}").unwrap();
    let mut cases = vec![
        ("a.parquet", &["is a parquet file, which is not read yet", "read_parquet("][..]),
        ("a.csv", &["is a csv file, which is not read yet", "read_csv("]),
        ("a.jsonl.gz", &["is compressed with gzip", "gunzip -k"]),
        ("folder", &["is a directory", "folder/b.jsonl"]),
        ("none.jsonl", &["no such file", "dataset_info.json does not exist"]),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
        cases.push(("loop", &["loop: cannot read: ", "symbolic links"]));
        cases.push(("pipe", &["is a pipe or device", "write the records to a .jsonl file"]));
    }
    for (name, words) in cases {
        let file = path(name);
        let model = checkpoint();
        let args = ["eval", "--model", model.to_str().unwrap(), "--data-dir", dir.path().to_str().unwrap()];
        let output = CommandOutput::run(command().args(args).arg("--data").arg(&file));

        output.failure(&[words, &[name]].concat());
        assert!(!output.stderr.contains("known are"), "{output:?}");
    }
}

#[test]
fn an_unknown_record_key_is_reported_once_and_a_message_weight_is_refused() {
    let dir = tempdir().unwrap();
    let mut odd = record(digit_image().to_str().unwrap(), "x");
    odd["reward"] = json!(1);
    let data = dir.path().join("data.jsonl");
    fs::write(&data, format!("{odd}\n").repeat(17)).unwrap();

    let output = with_warnings(&mut train_command_on(dir.path(), &data, &[])).success();
    assert_eq!(output.stderr.matches("\"reward\" is not known").count(), 1, "{output:?}");
    assert!(
        output.stderr.contains("data.jsonl: line 1: ") && output.stderr.contains("17 records"),
        "{output:?}"
    );

    odd["messages"][1]["weight"] = json!(-0.5);
    let dir = tempdir().unwrap();
    let data = data_with_last_record(dir.path(), &odd.to_string());
    train_on(dir.path(), &data, &[]).failure(&["data.jsonl: line 17: message 1: \"weight\" is -0.5"]);
}

#[test]
fn data_check_names_every_bad_record_and_data_show_shows_labels() {
    let dir = tempdir().unwrap();
    let good = record(digit_image().to_str().unwrap(), "six");
    let cut = dir.path().join("cut.png");
    let bytes = fs::read(repository().join("datasets/digits/images/0004.png")).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let lines = [good.clone(), record("none.png", "a"), record(cut.to_str().unwrap(), "a"), good.clone()];
    let [data, clean] = ["data.jsonl", "clean.jsonl"].map(|name| dir.path().join(name));
    fs::write(&data, lines.map(|line| line.to_string()).join("\n")).unwrap();
    fs::write(&clean, format!("{good}\n{good}\n")).unwrap();
    let page = dir.path().join("page.html");
    let run = |what: &str, data: &Path, more: &[&str]| {
        let args = ["data", what, data.to_str().unwrap(), "--model", "configs/models/digits"];
        glm4v(args.iter().chain(more))
    };

    let checked = run("check", &data, &[]);
    checked.failure(&["2 of 4 records failed"]);
    for expected in ["data.jsonl: line 2: ", "none.png", "data.jsonl: line 3: ", "cut.png", "line 4 as "] {
        assert!(checked.stdout.contains(expected), "{expected}: {checked:?}");
    }
    let object: Value = serde_json::from_str(&run("check", &data, &["--json"]).stdout).unwrap();
    assert_eq!((&object["usable"], &object["duplicates"]["count"]), (&json!(2), &json!(1)));
    run("check", &clean, &[]).success();
    run("check", &clean, &["--strict"]).failure(&["0 of 2 records failed, and there are warnings"]);

    let shown = run("show", &clean, &["0", "--html", page.to_str().unwrap()]).success();
    assert!(shown.stdout.contains("⟦six<|endoftext|>⟧") && !shown.stdout.contains('\u{1b}'), "{shown:?}");
    assert!(shown.stdout.contains("<|image|> x 4 [grid 1x4x4, 56x56 px, from 56x56]"), "{shown:?}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("src=\"data:image/png;base64,") && page.contains("six&lt;|endoftext|&gt;</mark>"));
    run("show", &clean, &["2"]).failure(&["has no record 2, needed 0 to 1"]);
    run("show", &data, &["1"]).failure(&["data.jsonl: line 2: cannot be encoded", "none.png"]);
}
