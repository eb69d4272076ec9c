//! Whole training runs with the built binary: falling loss, exact resume, frozen parts, adapters, and agreement between the
//! commands about the same model.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::DType;
use glm4v_processor::Processor;
use glm4v_tests::{CommandOutput, command, glm4v, losses, metrics, random_model, repository, train, walk};
use glm4v_weights::{ModelFolder, TensorFile};
use serde_json::{Value, json};
use tempfile::tempdir;

/// Trains to the last step.
fn trained(folder: &Path, settings: &[&str]) {
    CommandOutput::run(&mut train(folder, settings)).success();
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("final/model.safetensors")).unwrap()
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// The metrics of a run without those that depend on its speed.
fn numbers(run: &Path) -> Vec<Value> {
    let mut metrics = metrics(run);
    for entry in metrics.iter_mut().filter_map(Value::as_object_mut) {
        for timed in ["tokens_per_second", "step_time", "data_time"] {
            entry.remove(timed);
        }
    }
    metrics
}

#[test]
fn the_loss_halves_within_sixty_steps() {
    let run = tempdir().unwrap();

    trained(run.path(), &["schedule.max_steps=60", "data.batch_size=16"]);

    let losses = losses(run.path());
    assert_eq!(losses.len(), 60);
    // Initial logits are nearly uniform over a vocabulary of 1200; the answers are 10 words and an end token.
    assert!((losses[0] - 1200f64.ln()).abs() < 0.2, "{}", losses[0]);
    let (first, last) = (mean(&losses[..5]), mean(&losses[55..]));
    assert!(last < 0.5 * first, "loss {first} -> {last}");
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    for dtype in ["f32", "bf16"] {
        let folder = tempdir().unwrap();
        let (straight, resumed) = (folder.path().join("straight"), folder.path().join("resumed"));
        let settings = ["schedule.max_steps=12", "run.save_steps=6", "schedule.warmup_steps=3"];
        let run = |folder: &Path, more: &[&str]| {
            CommandOutput::run(train(folder, &settings).args(["--dtype", dtype]).args(more)).success();
        };
        run(&straight, &[]);
        copy(&straight.join("checkpoints/step-6"), &resumed.join("checkpoints/step-6"));

        run(&resumed, &["--resume"]);

        assert_eq!(numbers(&resumed), numbers(&straight)[6..], "{dtype}");
        assert!(weights(&resumed) == weights(&straight), "{dtype}: the last weights differ");
    }
}

#[test]
fn a_mixture_with_a_part_held_out_resumes_exactly() {
    let folder = tempdir().unwrap();
    let [straight, resumed, other] = ["straight", "resumed", "other"].map(|name| folder.path().join(name));
    let mixture = r#"data.train=["demo-sharegpt", {name = "digits:train", weight = 1.5, samples = 40}]"#;
    let common = [mixture, "data.eval_fraction=0.25", "data.batch_size=7", "run.save_steps=5"];
    let settings = [&common[..], &["schedule.max_steps=10", "schedule.type=constant"]].concat();
    let run = |folder: &Path, more: &[&str]| {
        CommandOutput::run(train(folder, &settings).args(more)).success();
    };
    run(&straight, &[]);
    copy(&straight.join("checkpoints/step-5"), &resumed.join("checkpoints/step-5"));

    run(&resumed, &["--resume"]);

    let whole = numbers(&straight);
    let after = whole.iter().position(|entry| entry["step"] == 6).unwrap();
    assert_eq!(numbers(&resumed), whole[after..]);
    // A quarter of 4 and of 1437 records.
    assert_eq!(whole.last().unwrap()["samples"], 1 + 359);
    copy(&straight.join("checkpoints/step-5"), &other.join("checkpoints/step-5"));
    let larger = mixture.replace("40", "41");
    let changed = [&settings[..], &[larger.as_str()]].concat();
    CommandOutput::run(train(&other, &changed).arg("--resume"))
        .failure(&["data.train, demo-sharegpt, digits:train"]);
}

#[test]
fn a_packed_run_has_the_losses_of_an_unpacked_one_and_resumes_exactly() {
    let folder = tempdir().unwrap();
    let [padded, packed, resumed] = ["padded", "packed", "resumed"].map(|name| folder.path().join(name));
    // Digits and records with two images, so that lengths differ.
    let data = folder.path().join("mixed.jsonl");
    let image = |number: usize| repository().join(format!("datasets/digits/images/{number:04}.png"));
    let record = |number: usize| {
        let (question, images) = match number % 3 {
            0 => ("<image>digit?", vec![image(number)]),
            1 => ("<image><image>the first digit, then the second?", vec![image(number), image(number + 1)]),
            _ => ("say six", vec![]),
        };
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "six"}],
            "images": images})
    };
    fs::write(&data, (0..30).map(|number| record(number).to_string() + "\n").collect::<String>()).unwrap();
    let data = format!("data.train={}", data.display());
    let settings = [&data, "schedule.max_steps=6", "run.save_steps=3"];
    let packing =
        [&settings[..], &["data.packing=true", "data.packing_length=90", "data.workers=2"]].concat();
    trained(&padded, &settings);
    trained(&packed, &packing);
    copy(&packed.join("checkpoints/step-3"), &resumed.join("checkpoints/step-3"));

    CommandOutput::run(train(&resumed, &packing).arg("--resume")).success();

    for (one, other) in losses(&packed).iter().zip(losses(&padded)) {
        assert!((one - other).abs() < 1e-4, "{one}, unpacked {other}");
    }
    let padding =
        |run: &Path| metrics(run).iter().map(|step| step["padding"].as_f64().unwrap()).sum::<f64>() / 6.0;
    assert!(padding(&packed) < 0.7 * padding(&padded), "{} of {}", padding(&packed), padding(&padded));
    let tokens = |run: &Path| metrics(run).iter().map(|step| step["tokens"].clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&packed), tokens(&padded));
    assert_eq!(numbers(&resumed), numbers(&packed)[3..]);
    assert!(weights(&resumed) == weights(&packed), "the last weights differ");
}

#[test]
fn an_image_cache_changes_no_number_and_groups_by_length_resume_exactly() {
    let folder = tempdir().unwrap();
    let [plain, filling, cached, resumed] =
        ["plain", "filling", "cached", "resumed"].map(|name| folder.path().join(name));
    let settings = ["schedule.max_steps=4", "run.save_steps=2", "data.group_by_length=true"];
    let cache = folder.path().join("cache");
    let dir = format!("data.cache_dir={}", cache.display());
    let with_cache = [&settings[..], &[&dir]].concat();
    trained(&plain, &settings);
    trained(&filling, &with_cache);
    assert!(fs::read_dir(&cache).unwrap().count() > 0, "images are kept");
    trained(&cached, &with_cache);
    copy(&plain.join("checkpoints/step-2"), &resumed.join("checkpoints/step-2"));

    CommandOutput::run(train(&resumed, &with_cache).arg("--resume")).success();

    assert_eq!(numbers(&filling), numbers(&plain));
    assert_eq!(numbers(&cached), numbers(&plain));
    assert_eq!(numbers(&resumed), numbers(&plain)[2..]);
}

#[cfg(unix)]
#[test]
fn a_run_resumed_after_ctrl_c_equals_an_uninterrupted_one() {
    let folder = tempdir().unwrap();
    let (straight, stopped) = (folder.path().join("straight"), folder.path().join("stopped"));
    let settings = ["schedule.max_steps=150", "data.workers=2"];
    trained(&straight, &settings);

    let output = glm4v_tests::interrupt(&mut train(&stopped, &settings), &stopped, 5);
    let before = losses(&stopped).len();
    CommandOutput::run(train(&stopped, &settings).arg("--resume")).success();

    assert_eq!(output.code, Some(130), "{output:?}");
    assert!((5..150).contains(&before), "stopped after {before}");
    assert_eq!(numbers(&stopped), numbers(&straight));
    assert!(weights(&stopped) == weights(&straight), "the last weights differ");
}

#[test]
fn metrics_depend_on_the_seed_and_not_on_threads() {
    let folder = tempdir().unwrap();
    let run = |name: &str, seed: &str, threads: &str| {
        let run = folder.path().join(name);
        let settings = ["schedule.max_steps=8", seed];
        CommandOutput::run(train(&run, &settings).args(["--threads", threads])).success();
        run
    };
    let first = run("first", "run.seed=3", "1");

    for same in [run("again", "run.seed=3", "1"), run("wide", "run.seed=3", "2")] {
        assert_eq!(numbers(&same), numbers(&first), "{}", same.display());
        assert!(weights(&same) == weights(&first), "{}", same.display());
    }
    assert_all_tensors_differ(&first, &run("other", "run.seed=4", "1"));
}

#[test]
fn the_seed_determines_the_record_order() {
    let folder = tempdir().unwrap();
    let model = random_model(folder.path());
    let start = format!("model.path={}", model.display());
    let [one, two] = ["run.seed=1", "run.seed=2"].map(|seed| {
        let run = folder.path().join(seed);
        trained(&run, &["schedule.max_steps=3", "model.init=pretrained", &start, seed]);
        run
    });

    assert_all_tensors_differ(&one, &two);
}

fn assert_all_tensors_differ(one: &Path, two: &Path) {
    for (a, b) in losses(one).into_iter().zip(losses(two)) {
        assert_ne!(a, b);
    }
}

#[test]
fn frozen_parts_are_bit_identical_and_the_others_change() {
    let folder = tempdir().unwrap();
    let model = random_model(folder.path());
    let before = TensorFile::open(&model.join("model.safetensors")).unwrap();
    let start = format!("model.path={}", model.display());
    for frozen in [
        &["vision"][..],
        &["merger"],
        &["text", "embeddings", "head"],
        &["vision", "text", "embeddings", "head"],
        &["embeddings"],
        &["head", "merger"],
    ] {
        let run = folder.path().join(frozen.concat());
        // "text" includes its parts.
        let named: Vec<&&str> = frozen
            .iter()
            .filter(|part| !frozen.contains(&"text") || !["embeddings", "head"].contains(part))
            .collect();
        let freeze = format!("model.freeze={named:?}");

        trained(&run, &["schedule.max_steps=3", "model.init=pretrained", &start, &freeze]);

        let after = TensorFile::open(&run.join("final/model.safetensors")).unwrap();
        let names = before.names();
        assert_eq!(after.names(), names);
        for name in names {
            let values = |file: &TensorFile| file.float(&name, DType::F32).unwrap();
            let kept = values(&before) == values(&after);
            assert_eq!(kept, frozen.contains(&freeze_target(&name)), "{name} with {frozen:?} frozen");
        }
    }
}

/// The most specific value of `model.freeze` that covers a tensor.
fn freeze_target(name: &str) -> &'static str {
    match name.strip_prefix("model.visual.") {
        Some(rest) if rest.starts_with("merger.") || rest.starts_with("downsample.") => "merger",
        Some(_) => "vision",
        None if name.starts_with("lm_head.") => "head",
        None if name.contains(".embed_tokens.") => "embeddings",
        None => "text",
    }
}

#[test]
fn init_and_a_run_from_random_weights_agree_for_a_seed() {
    let folder = tempdir().unwrap();
    let model = random_model(folder.path());
    let other = folder.path().join("other");
    let from = ["init", "--config", "configs/models/digits", "--seed", "1", "--out", other.to_str().unwrap()];
    glm4v(from).success();
    let start = format!("model.path={}", model.display());
    let (loaded, fresh) = (folder.path().join("loaded"), folder.path().join("fresh"));

    trained(&loaded, &["schedule.max_steps=2", "model.init=pretrained", &start]);
    trained(&fresh, &["schedule.max_steps=2", "model.init=random"]);

    assert_eq!(numbers(&loaded), numbers(&fresh));
    let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(bytes(&model) != bytes(&other));
}

#[test]
fn the_final_directory_is_a_complete_model_to_train_from() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    trained(&run, &["schedule.max_steps=2"]);
    let last = run.join("final");

    let names: Vec<_> = walk(&last).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    for file in walk(&repository().join("configs/models/digits")) {
        assert!(names.contains(&file.file_name().unwrap().to_owned()), "{} is missing", file.display());
    }
    let text = fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(
        text.contains("steps = 2") && text.contains("weight_decay = 0.01"),
        "every key is written: {text}"
    );
    let start = format!("model.path={}", last.display());
    let next = folder.path().join("next");
    trained(&next, &["schedule.max_steps=1", "model.init=pretrained", &start]);
    assert!(losses(&next)[0] < losses(&run)[0]);
}

#[test]
fn trace_has_the_documented_tensors_and_the_tokens_of_generate() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    trained(&run, &["schedule.max_steps=40", "optim.lr=4e-3"]);
    let messages = conversation(folder.path());
    let out = folder.path().join("trace.safetensors");
    // With random weights the text repeats until the limit; after a few steps the model ends it.
    for (model, finish) in [(random_model(folder.path()), "length"), (run.join("final"), "stop")] {
        let shared = |name: &'static str| {
            let mut command = command();
            command.arg(name).arg("--model").arg(&model).arg("--messages").arg(&messages);
            command.args(["--max-new-tokens", "12"]);
            command
        };

        CommandOutput::run(shared("trace").arg("--activations").arg("--out").arg(&out)).success();
        let output = CommandOutput::run(shared("generate").args(["--greedy", "--json"])).success();

        let file = TensorFile::open(&out).unwrap();
        let shape = |name: &str| file.shape(name).unwrap_or_else(|| panic!("{name} is missing"));
        let [_, tokens] = shape("input_ids")[..] else { panic!("input_ids is [1, S]") };
        let vocabulary = ModelFolder::open(&model).unwrap().config().text.vocab_size;
        assert_eq!(shape("input_ids"), [1, tokens]);
        assert_eq!(shape("attention_mask"), [1, tokens]);
        assert_eq!(shape("position_ids"), [3, 1, tokens]);
        assert_eq!(shape("rope_deltas"), [1, 1]);
        assert_eq!(shape("logits"), [1, tokens, vocabulary]);
        assert!(file.names().iter().filter(|name| name.starts_with("mid.")).count() > 10);

        // The first token is the argmax of the logits at the last position.
        let (generated, _) = file.integers("generated").unwrap();
        let logits = file.float("logits", DType::F32).unwrap();
        let last = &logits.as_slice::<f32>().unwrap()[(tokens - 1) * vocabulary..];
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(generated[0], best as i64);

        let answer: Value = serde_json::from_str(&output.stdout).unwrap();
        let ids: Vec<u32> = generated.iter().map(|id| *id as u32).collect();
        let processor = Processor::load(&model).unwrap();
        assert_eq!(answer["text"], json!(processor.tokenizer().decode(&ids, true)));
        assert_eq!(answer["completion_tokens"], json!(ids.len()));
        assert_eq!(answer["prompt_tokens"], json!(tokens));
        assert_eq!(answer["finish_reason"], json!(finish));
    }
}

/// A messages file with a question about an image.
fn conversation(folder: &Path) -> PathBuf {
    let path = folder.join("messages.json");
    let image = repository().join("datasets/digits/images/0003.png").canonicalize().unwrap();
    let content = json!([{"type": "image", "path": image}, {"type": "text", "text": "What digit is this?"}]);
    fs::write(&path, json!([{"role": "user", "content": content}]).to_string()).unwrap();
    path
}

#[test]
fn prompt_flags_equal_the_same_messages_file() {
    let folder = tempdir().unwrap();
    let model = random_model(folder.path());
    let messages = conversation(folder.path());
    let ask = |args: &[&str]| {
        let mut command = command();
        command.args(["generate", "--max-new-tokens", "5", "--greedy"]).args(args).arg("--model").arg(&model);
        CommandOutput::run(&mut command).success().stdout
    };

    let spelled = ask(&["--image", "datasets/digits/images/0003.png", "--prompt", "What digit is this?"]);

    assert_eq!(spelled, ask(&["--messages", messages.to_str().unwrap()]));
}

#[test]
fn eval_of_the_final_directory_equals_the_last_evaluation() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let exam = ["eval.data=digits:test", "eval.steps=100", "eval.batch_size=60", "eval.max_new_tokens=8"];
    let settings = ["schedule.max_steps=150", "data.batch_size=32", "optim.lr=2e-3"];

    let output = CommandOutput::run(&mut train(&run, &[&exam[..], &settings].concat())).success();
    let model = run.join("final");
    let args = ["eval", "--data", "digits:test", "--batch-size", "60", "--max-new-tokens", "8", "--json"];
    let eval = CommandOutput::run(command().args(args).arg("--model").arg(&model)).success();

    let metrics = metrics(&run);
    let exams: Vec<&Value> = metrics.iter().filter(|entry| entry["samples"].is_u64()).collect();
    assert_eq!(exams.iter().map(|exam| exam["step"].as_u64().unwrap()).collect::<Vec<_>>(), [100, 150]);
    let totals: Value = serde_json::from_str(eval.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(eval.stdout.lines().count(), 361, "one line a record, and the totals");
    assert_eq!(totals["exact_match"], exams[1]["exact_match"]);
    assert_eq!(totals["loss"], exams[1]["eval_loss"]);
    assert_eq!(totals["samples"], json!(360));
    let right = totals["correct"].as_u64().unwrap();
    assert!((1..360).contains(&right), "{right} right: too few or too many to tell answers apart");
    assert!(output.stdout.contains(&format!("exact match: {right} of 360")), "{}", output.stdout);
}

#[test]
fn batch_order_and_stored_weights_reproduce_a_run_for_any_seed() {
    let folder = tempdir().unwrap();
    let model = random_model(folder.path());
    let order = folder.path().join("order.json");
    fs::write(&order, "[[5, 1, 9, 700], [3, 3, 2, 4], [1436, 0, 8, 6]]").unwrap();
    let start = format!("model.path={}", model.display());
    let order = format!("data.batch_order={}", order.display());
    let settings = ["model.init=pretrained", &start, &order, "schedule.max_steps=3"];
    let run = |name: &str, seed: &str| {
        let run = folder.path().join(name);
        trained(&run, &[&settings[..], &[seed]].concat());
        run
    };

    let (one, two) = (run("one", "run.seed=1"), run("two", "run.seed=2"));

    assert_eq!(numbers(&one), numbers(&two));
    assert!(weights(&one) == weights(&two));
    assert_eq!(metrics(&one)[2]["epoch"], json!(12.0 / 1437.0));
}

#[test]
fn a_failed_evaluation_loses_nothing_and_is_repeated_on_resume() {
    let folder = tempdir().unwrap();
    let digit = |number| repository().join(format!("datasets/digits/images/000{number}.png"));
    let data = folder.path().join("eval.jsonl");
    let image = folder.path().join("a.png");
    let record = json!({"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "x"}],
        "images": ["a.png"]});
    fs::write(&data, format!("{record}\n")).unwrap();
    let eval = format!("eval.data={}", data.display());
    let whole = fs::read(digit(1)).unwrap();
    let damage = || fs::write(&image, &whole[..whole.len() / 2]).unwrap();
    let settings = ["schedule.max_steps=4", "eval.max_new_tokens=2", &eval];
    for (name, more, failed, kept) in [
        ("last", &["run.save_steps=0"][..], 4, "final"),
        ("between", &["eval.steps=2", "run.save_steps=500"], 2, "checkpoints/step-2"),
        ("unsaved", &["eval.steps=2", "run.save_steps=0"], 2, "checkpoints/step-2"),
    ] {
        let all = [&settings[..], more].concat();
        let (straight, run) = (folder.path().join(format!("{name}-straight")), folder.path().join(name));
        fs::write(&image, &whole).unwrap();
        trained(&straight, &all);
        damage();

        CommandOutput::run(&mut train(&run, &all)).failure(&[
            &format!(
                "the evaluation after step {failed} failed; the weights are in {}",
                run.join(kept).display()
            ),
            "eval.jsonl: line 1",
            "a.png",
        ]);

        ModelFolder::open(&run.join(kept)).unwrap();
        assert!(run.join(kept).join("model.safetensors").exists());
        assert_eq!(run.join("final").exists(), failed == 4);
        fs::write(&image, &whole).unwrap();
        CommandOutput::run(train(&run, &all).arg("--resume")).success();
        assert_eq!(numbers(&run), numbers(&straight), "{name}");
        assert!(weights(&run) == weights(&straight), "{name}: the last weights differ");
    }
}

#[test]
fn a_finished_run_is_extended_from_its_last_step() {
    let folder = tempdir().unwrap();
    let (straight, longer) = (folder.path().join("straight"), folder.path().join("longer"));
    let constant = ["schedule.type=constant", "run.save_steps=500"];
    trained(&straight, &[&constant[..], &["schedule.max_steps=5"]].concat());
    trained(&longer, &[&constant[..], &["schedule.max_steps=3"]].concat());

    CommandOutput::run(train(&longer, &[&constant[..], &["schedule.max_steps=5"]].concat()).arg("--resume"))
        .success();

    assert_eq!(numbers(&longer), numbers(&straight));
    assert!(weights(&longer) == weights(&straight), "the last weights differ");
}

#[test]
fn resume_prints_changed_settings_that_affect_numbers() {
    let folder = tempdir().unwrap();
    trained(folder.path(), &["schedule.max_steps=2", "run.save_steps=1"]);
    let mut resumed =
        train(folder.path(), &["schedule.max_steps=3", "optim.lr=1e-4", "run.save_total_limit=7"]);
    let loud = CommandOutput::run(command_without_quiet(&mut resumed).arg("--resume")).success();

    let changed: Vec<&str> =
        loud.stderr.lines().filter_map(|line| line.strip_prefix("changed since the checkpoint: ")).collect();
    assert_eq!(changed, ["optim.lr 0.002 -> 0.0001", "schedule.max_steps 2 -> 3"]);
}

/// The same command without `--quiet`.
fn command_without_quiet(command: &mut Command) -> Command {
    let mut loud = Command::new(command.get_program());
    loud.current_dir(repository()).args(command.get_args().filter(|arg| *arg != "--quiet"));
    loud
}

#[test]
fn lora_without_targets_trains_and_reports_the_text_decoder() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let output = CommandOutput::run(&mut command_without_quiet(&mut train(
        &run,
        &["schedule.max_steps=2", "lora.r=8"],
    )))
    .success();

    let line =
        output.stderr.lines().find(|line| line.starts_with("LoRA ")).unwrap_or_else(|| panic!("{output:?}"));
    assert_eq!(
        line,
        "LoRA r=8 on 12 linear layers of the text decoder: down_proj, gate_up_proj, k_proj, o_proj, q_proj, v_proj"
    );
    let names = TensorFile::open(&run.join("final/adapter_model.safetensors")).unwrap().names();
    assert_eq!(names.len(), 24);
    assert!(names.iter().all(|name| name.contains(".language_model.layers.")), "{names:?}");

    // The config in the run directory describes the same run.
    let again = folder.path().join("again");
    let mut command = command();
    command.arg("train").arg(run.join("config.toml"));
    command.args(["--set", &format!("run.output_dir={}", again.display())]);
    CommandOutput::run(&mut command).success();
    assert_eq!(numbers(&again), numbers(&run));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in walk(from) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn only_adapters_are_trained_and_resume_repeats_dropout_masks() {
    let folder = tempdir().unwrap();
    let model = random_model(folder.path());
    let (straight, resumed) = (folder.path().join("straight"), folder.path().join("resumed"));
    let start = format!("model.path={}", model.display());
    let settings = [
        "schedule.max_steps=8",
        "run.save_steps=4",
        "model.init=pretrained",
        &start,
        "lora.target_modules=all-linear",
        "lora.lora_dropout=0.2",
        "lora.modules_to_save=[\"lm_head\"]",
        "optim.lr=1e-2",
    ];
    trained(&straight, &settings);
    copy(&straight.join("checkpoints/step-4"), &resumed.join("checkpoints/step-4"));

    CommandOutput::run(train(&resumed, &settings).arg("--resume")).success();

    assert_eq!(numbers(&resumed), numbers(&straight)[4..]);
    let file = |run: &Path| fs::read(run.join("final/adapter_model.safetensors")).unwrap();
    assert!(file(&resumed) == file(&straight), "the last adapters differ");
    let losses = losses(&straight);
    assert!(losses[7] < losses[0], "{losses:?}");
    let names = TensorFile::open(&straight.join("final/adapter_model.safetensors")).unwrap().names();
    let whole: Vec<&String> = names.iter().filter(|name| !name.contains(".lora_")).collect();
    assert_eq!(whole, ["base_model.model.lm_head.weight"]);
}

#[test]
fn dropout_changes_the_losses() {
    let folder = tempdir().unwrap();
    let [with, without] = ["0.3", "0.0"].map(|share| {
        let run = folder.path().join(share);
        let dropout = format!("lora.lora_dropout={share}");
        trained(&run, &["schedule.max_steps=3", "lora.target_modules=all-linear", "optim.lr=1e-2", &dropout]);
        losses(&run)
    });

    assert_ne!(with[2], without[2]);
}

#[test]
fn commands_accept_an_adapter_and_refuse_one_of_another_model() {
    let folder = tempdir().unwrap();
    let model = random_model(folder.path());
    let run = folder.path().join("run");
    let start = format!("model.path={}", model.display());
    trained(
        &run,
        &[
            "schedule.max_steps=2",
            "model.init=pretrained",
            &start,
            "lora.target_modules=[\"q_proj\"]",
            "optim.lr=0.1",
        ],
    );
    let (model, adapter) = (model.to_str().unwrap(), run.join("final"));
    let adapter = adapter.to_str().unwrap();
    let eval = |more: &[&str]| {
        let all = ["eval", "--model", model, "--data", "digits:test", "--max-new-tokens", "2", "--json"];
        let output = CommandOutput::run(command().args(all).args(more)).success();
        let last: Value = serde_json::from_str(output.stdout.lines().last().unwrap()).unwrap();
        last["loss"].as_f64().unwrap()
    };

    assert_ne!(eval(&[]), eval(&["--adapter", adapter]));
    let other = repository().join("tests/fixtures/golden/lora/adapter");
    let output = CommandOutput::run(
        command().args(["generate", "--model", model, "--prompt", "x", "--adapter"]).arg(other),
    );
    output.failure(&["lora/adapter", "belong to no part of this model"]);
    glm4v(["generate", "--model", model, "--prompt", "x", "--adapter", model])
        .failure(&["adapter_config.json is missing", "needed: an adapter directory"]);
}

#[test]
fn lora_targets_without_a_match_are_refused_with_the_layer_names() {
    let folder = tempdir().unwrap();
    for (setting, words) in [
        (
            "lora.target_modules=[\"q_proj\", \"query\"]",
            &["\"query\" matches no linear layer", "model.language_model.layers.*.self_attn.q_proj"][..],
        ),
        (
            "lora.target_modules=.*query",
            &["\".*query\" matches no linear layer", "model.visual.merger.gate_proj"],
        ),
        ("lora.target_modules=(", &["\"(\" is not a regular expression"]),
        ("lora.target_parameters=[\"mlp.experts.down_proj\"]", &["\"mlp.experts.down_proj\" matches no"]),
    ] {
        let run = folder.path().join("run");
        CommandOutput::run(&mut train(&run, &["schedule.max_steps=1", setting])).failure(words);
    }
    let run = folder.path().join("run");
    let frozen = ["lora.target_modules=all-linear", "model.freeze=['text']"];
    CommandOutput::run(&mut train(&run, &frozen))
        .failure(&["model.freeze is [text]", "left out beside [lora]"]);
}

#[test]
fn train_and_eval_accept_records_with_videos() {
    let folder = tempdir().unwrap();
    let videos = repository().join("tests/fixtures/processor/video").canonicalize().unwrap();
    let video = |name: &str| videos.join(name).display().to_string();
    let digit = repository().join("datasets/digits/images/0004.png").canonicalize().unwrap();
    let record = |content: &str, videos: Value, answer: &str| {
        json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
            "images": if content.contains("<image>") { json!([digit]) } else { json!([]) }, "videos": videos})
        .to_string()
    };
    // One video, two with an image between them, frames in a list, and an image alone.
    let (long, short) = (video("sampled_30f_4fps.png"), video("template_8x84x56.png"));
    let records = [
        record("<video>What?", json!([long]), "one"),
        record("<video><image><video>?", json!([short, long]), "two"),
        record("Say <video>", json!([[digit, digit, digit]]), "three"),
        record("<image>?", json!([]), "four"),
    ];
    let data = folder.path().join("videos.jsonl");
    fs::write(&data, records.join("\n") + "\n").unwrap();
    let data = data.display().to_string();
    let run = folder.path().join("run");

    trained(
        &run,
        &[
            "schedule.max_steps=3",
            "data.batch_size=3",
            &format!("data.train={data}"),
            &format!("eval.data={data}"),
        ],
    );

    assert!(losses(&run).iter().all(|loss| loss.is_finite() && *loss > 0.0));
    let model = run.join("final");
    let output = glm4v(["eval", "--json", "--data", &data, "--model", model.to_str().unwrap()]).success();
    assert_eq!(output.stdout.lines().count(), records.len() + 1, "{output:?}");
}
