//! What the program makes of bad input: exit code 1 (2 for wrong usage), one error that names the place and the remedy,
//! no panic, and nothing half-written.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{DType, TensorData};
use glm4v_tests::{
    Said, command, fresh_model, glm4v, golden, holds_nothing_half_written, losses, repository, train,
};
use glm4v_weights::{TensorFile, write_tensors};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// The published folder of the golden cases: whole, and never written to.
fn checkpoint() -> PathBuf {
    golden().join("checkpoints/glm4v")
}

/// A copy of the checkpoint with one file changed or, for `None`, missing.
fn spoiled(file: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> TempDir {
    let folder = tempdir().unwrap();
    for entry in fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join(file);
    match change(fs::read(&path).unwrap()) {
        Some(bytes) => fs::write(&path, bytes).unwrap(),
        None => fs::remove_file(&path).unwrap(),
    }
    folder
}

/// A copy of the checkpoint with its tensors changed.
fn with_tensors(change: impl FnOnce(&mut BTreeMap<String, TensorData>)) -> TempDir {
    let folder = spoiled("config.json", Some);
    let path = folder.path().join("model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let names = file.names().into_iter();
    let mut tensors = names.map(|name| (name.clone(), file.float(&name, DType::F32).unwrap())).collect();
    change(&mut tensors);
    write_tensors(&path, tensors.into_iter().collect(), &[]).unwrap();
    folder
}

fn generate(model: &Path, args: &[&str]) -> Said {
    Said::by(command().arg("generate").arg("--model").arg(model).args(["--max-new-tokens", "2"]).args(args))
}

fn trace(messages: &Path, out: &Path) -> Said {
    let paths = [("--model", checkpoint()), ("--messages", messages.into()), ("--out", out.into())];
    let mut command = command();
    command.arg("trace");
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    Said::by(&mut command)
}

fn digit() -> PathBuf {
    repository().join("datasets/digits/images/0000.png").canonicalize().unwrap()
}

/// A conversation about an image, with an answer.
fn record(image: &str, answer: &str) -> Value {
    json!({"messages": [
        {"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": answer}]})
}

/// A data file of 17 lines, all of them good but the last.
fn sixteen_good_and(folder: &Path, last: &str) -> PathBuf {
    let path = folder.join("data.jsonl");
    let good = record(digit().to_str().unwrap(), "zero").to_string();
    fs::write(&path, format!("{}{last}\n", format!("{good}\n").repeat(16))).unwrap();
    path
}

/// Trains one step on all 17 records.
fn train_on(folder: &Path, data: &Path, settings: &[&str]) -> Said {
    Said::by(&mut training_on(folder, data, settings))
}

fn training_on(folder: &Path, data: &Path, settings: &[&str]) -> Command {
    let data = format!("data.train={}", data.display());
    let all = [&[data.as_str(), "data.batch_size=17", "schedule.max_steps=1"], settings].concat();
    train(&folder.join("run"), &all)
}

/// Runs a command with the warnings that the suites else leave out.
fn aloud(command: &mut Command) -> Said {
    Said::by(command.env("GLM4V_LOG", "warn"))
}

/// An image file of 24-bit pixels with an honest or a lying header.
fn bmp(width: u32, height: u32, bytes: usize) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    for word in [bytes as u32, 0, 54, 40, width, height, 0x18_0001, 0, 0, 0, 0, 0, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.resize(bytes, 0x50);
    file
}

/// An image that cannot be used: file name, bytes (none: no such file), and what is said of it.
type BadPicture = (&'static str, Option<Vec<u8>>, &'static [&'static str]);

fn bad_images() -> Vec<BadPicture> {
    let whole = fs::read(digit()).unwrap();
    let middle = whole.len() / 2;
    let mut damaged = whole.clone();
    damaged[middle] ^= 0xff;
    vec![
        ("damaged.png", Some(damaged), &["damaged.png: damaged or unsupported png"]),
        (
            "truncated.png",
            Some(whole[..middle].to_vec()),
            &["truncated.png: ends early, the file is cut off"],
        ),
        ("empty.png", Some(vec![]), &["empty.png: is empty"]),
        ("text.png", Some(b"not an image".to_vec()), &["text.png: not an image; png, jpeg"]),
        (
            "bomb.bmp",
            Some(bmp(20_000, 20_000, 1024)),
            &["bomb.bmp: announces 20000x20000 pixels", "16384 a side"],
        ),
        ("long.bmp", Some(bmp(402, 2, 54 + 2 * 1208)), &["aspect ratio must be smaller than 200, got 201"]),
        ("missing.png", None, &["missing.png: cannot read: No such file"]),
    ]
}

#[test]
fn a_command_line_is_parsed_without_being_followed() {
    let parsed = |args: &[&str]| glm4v(["--parse-only"].iter().chain(args));
    let config = "configs/finetune/digits-full-cpu.toml";

    assert_eq!(parsed(&["generate", "--model", "/nowhere", "--prompt", "hi"]).success().stdout, "");
    assert_eq!(parsed(&["train", config, "--set", "run.output_dir=/nowhere/a"]).success().stdout, "");

    parsed(&["generate", "--modle", "/nowhere", "--prompt", "hi"]).misused(&["--modle"]);
    parsed(&["train", config, "--set", "optim.rl=1"]).refused(&["unknown key \"optim.rl\"; did you mean"]);
    parsed(&["train", "/nowhere.toml"]).refused(&["/nowhere.toml: cannot read"]);
}

#[test]
fn a_image_that_cannot_be_used_is_named_by_generate() {
    for (name, bytes, words) in bad_images() {
        let folder = tempdir().unwrap();
        let path = folder.path().join(name);
        bytes.iter().for_each(|bytes| fs::write(&path, bytes).unwrap());

        let said = generate(&checkpoint(), &["--prompt", "What?", "--image", path.to_str().unwrap()]);

        said.refused(&[words, &["image 0 of the conversation"]].concat());
    }
}

#[test]
fn a_image_that_cannot_be_used_is_named_by_training_with_the_line_of_its_record() {
    for (name, bytes, words) in bad_images() {
        let folder = tempdir().unwrap();
        bytes.iter().for_each(|bytes| fs::write(folder.path().join(name), bytes).unwrap());
        let data = sixteen_good_and(folder.path(), &record(name, "x").to_string());

        let said = train_on(folder.path(), &data, &[]);

        said.refused(&[words, &["data.jsonl: line 17"]].concat());
        holds_nothing_half_written(folder.path());
    }
}

#[test]
fn a_image_is_not_a_folder_and_comes_from_no_network() {
    for (image, words) in [
        ("datasets", "datasets: is a directory; needed: a regular file"),
        (
            "https://example.org/a.png",
            "network is off; needed: a local path or a data: URL; or allow it with --allow-http",
        ),
        ("data:image/png,abc", "needed: data:<type>;base64,<data>"),
    ] {
        generate(&checkpoint(), &["--prompt", "What?", "--image", image]).refused(&[words]);
    }
}

#[test]
fn a_record_that_cannot_be_learned_from_is_named_with_its_line() {
    let turns = |turns: Value| json!({ "messages": turns }).to_string();
    let user = json!({"role": "user", "content": "What?"});
    let two = json!({"images": [digit()], "messages": [
        {"role": "user", "content": "<image><image>Which is larger?"}, {"role": "assistant", "content": "both"}]});
    for (line, words) in [
        (two.to_string(), &["found 2 <image>", "1 in \"images\"", "one entry for each place"][..]),
        (turns(json!([user, {"role": "assistant", "content": ""}])), &["message 1: the answer is empty"]),
        (r#"{"messages": [{"role": "user", "#.into(), &["not valid json", "a record stands on one line"]),
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
        let folder = tempdir().unwrap();
        let data = sixteen_good_and(folder.path(), &line);

        let said = train_on(folder.path(), &data, &[]);

        said.refused(&[words, &["data.jsonl: line 17: "]].concat());
        holds_nothing_half_written(folder.path());
    }
}

#[test]
fn a_data_set_that_makes_no_batches_is_refused() {
    let folder = tempdir().unwrap();
    let empty = folder.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let data = sixteen_good_and(folder.path(), &record(digit().to_str().unwrap(), "x").to_string());

    train_on(folder.path(), &empty, &[]).refused(&["empty.jsonl: holds no records"]);
    train_on(folder.path(), &data, &["data.batch_size=18"])
        .refused(&["dataset has 17 records", "lower the batch size to 17"]);
    train_on(folder.path(), &data, &["data.max_length=5"])
        .refused(&["data.jsonl: line ", "takes more than 5 tokens, the most that max_length"]);
    train_on(folder.path(), &data, &["data.max_length=5", "data.on_long=drop"])
        .refused(&["records in a row as longer than max_length"]);
    holds_nothing_half_written(folder.path());
}

#[test]
fn a_data_set_that_is_not_known_is_answered_with_the_nearest() {
    let folder = tempdir().unwrap();
    for (name, words) in [
        ("digit:train", &["no dataset \"digit\"", "did you mean \"digits\"?"][..]),
        ("digits:tran", &["no split \"tran\"", "did you mean \"train\"?"]),
        ("digits", &["has the splits train, test; name one, as in \"digits:train\""]),
    ] {
        let data = Path::new(name);

        train_on(folder.path(), data, &[]).refused(words);
        let model = checkpoint();
        let args = ["eval", "--model", model.to_str().unwrap(), "--data", name];
        glm4v(args).refused(words);
    }
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_config_that_makes_no_run_is_refused_with_its_key() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.toml");
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

        let said = Said::by(command.arg("train").arg(&path).args(["--set", setting]));

        said.refused(&[words]);
    }
    Said::by(command().arg("train").arg(folder.path().join("y.toml"))).refused(&["y.toml: cannot read"]);
    Said::by(command().arg("train").arg(folder.path())).refused(&["is a directory; needed: a regular file"]);
}

#[test]
fn a_run_in_which_nothing_learns_is_refused() {
    let folder = tempdir().unwrap();

    let said = Said::by(&mut train(folder.path(), &["model.freeze=['vision', 'merger', 'text']"]));

    said.refused(&["model.freeze leaves no trainable parameters", "at least one of vision, merger, text"]);
}

#[test]
fn a_batch_order_that_cannot_be_drawn_is_refused_before_the_first_step() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("order.json");
    let run = folder.path().join("run");
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

        Said::by(&mut train(&run, &[&order, "schedule.max_steps=3"])).refused(&[words]);

        assert!(!run.exists(), "{text}");
    }
}

#[test]
fn a_model_folder_that_lacks_a_file_says_which() {
    for (file, words) in [
        ("tokenizer.json", "has no tokenizer.json; copy it from the published checkpoint"),
        ("chat_template.jinja", "has no chat_template.jinja; copy it"),
        ("preprocessor_config.json", "has no preprocessor_config.json; copy it"),
        (
            "config.json",
            "config.json is missing; needed: a folder as published on the hub; or one made by glm4v init",
        ),
        (
            "model.safetensors",
            "model.safetensors is missing; needed: a checkpoint with weights; glm4v init makes",
        ),
    ] {
        let model = spoiled(file, |_| None);
        let place = model.path().to_str().unwrap();

        generate(model.path(), &["--prompt", "hi"]).refused(&[place, words]);
        glm4v(["eval", "--model", place, "--data", "digits:test"]).refused(&[place, words]);
    }
    generate(Path::new("no/such/model"), &["--prompt", "hi"])
        .refused(&["no/such/model: no such folder; needed: a model folder with config.json"]);
}

#[test]
fn a_model_folder_with_a_broken_file_says_which() {
    let half = |bytes: Vec<u8>| Some(bytes[..bytes.len() / 2].to_vec());
    let nothing = |_: Vec<u8>| Some(vec![]);
    for (model, words) in [
        (
            spoiled("model.safetensors", half),
            &["model.safetensors: not a whole safetensors file", "download it again"][..],
        ),
        (spoiled("model.safetensors", nothing), &["model.safetensors: not a whole safetensors file"]),
        (spoiled("tokenizer.json", half), &["tokenizer.json: not a tokenizer"]),
        (spoiled("config.json", half), &["config.json: EOF"]),
        (spoiled("preprocessor_config.json", half), &["preprocessor_config.json, line", "not valid json"]),
        (spoiled("generation_config.json", half), &["generation_config.json: EOF"]),
        (
            spoiled("generation_config.json", |_| Some(br#"{"num_beams": 4, "typical_p": 1.0}"#.to_vec())),
            &[
                "generation_config.json: \"num_beams\" is 4, and this version does not",
                "needed: no such key, or 1",
            ],
        ),
        (
            spoiled("chat_template.jinja", |_| Some(b"{% for %}".to_vec())),
            &["chat template, line 1: syntax error"],
        ),
        (spoiled("chat_template.jinja", nothing), &["row 0 of the batch has no tokens"]),
    ] {
        generate(model.path(), &["--prompt", "hi"]).refused(words);
    }
}

#[test]
fn a_config_json_that_describes_no_network_says_which_key() {
    for (from, to, words) in [
        (
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 5",
            "\"text_config.num_attention_heads\" is 5; needed: a divisor",
        ),
        (
            "\"hidden_act\": \"silu\"",
            "\"hidden_act\": \"gelu\"",
            "\"text_config.hidden_act\" is \"gelu\"; needed: \"silu\"",
        ),
        (
            "\"model_type\": \"glm4v\"",
            "\"model_type\": \"llama\"",
            "\"model_type\" is \"llama\"; needed: \"glm4v\"",
        ),
        (
            "\"patch_size\": 14",
            "\"patch_size\": 0",
            "\"vision_config.patch_size\" is 0; needed: an integer from 1",
        ),
        (
            "\"vocab_size\": 1200",
            "\"vocab_size\": 99999999999",
            "\"text_config.vocab_size\" is 99999999999; needed",
        ),
        (
            "\"mrope_section\"",
            "\"mrope_sections\"",
            "\"text_config.rope_parameters.mrope_section\" is [8, 12, 12]; needed: three integers that add up",
        ),
        (
            "\"vocab_size\": 1200",
            "\"vocab_size\": -1",
            "config.json: key \"text_config.vocab_size\": invalid value: integer `-1`",
        ),
    ] {
        let model = spoiled("config.json", |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{from}");
            Some(text.replace(from, to).into_bytes())
        });

        generate(model.path(), &["--prompt", "hi"]).refused(&[model.path().to_str().unwrap(), words]);
    }
}

#[test]
fn images_cut_for_another_network_are_refused() {
    let model = spoiled("preprocessor_config.json", |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("\"patch_size\": 14"));
        Some(text.replace("\"patch_size\": 14", "\"patch_size\": 16").into_bytes())
    });

    let said = generate(model.path(), &["--prompt", "What?", "--image", digit().to_str().unwrap()]);

    said.refused(&[
        "1176 values in a patch in config.json, but 1536 in preprocessor_config.json (patch_size",
        "take both from the same checkpoint",
    ]);
}

#[test]
fn tensors_that_are_missing_or_have_another_shape_are_listed() {
    let model = with_tensors(|tensors| {
        tensors.remove("lm_head.weight").unwrap();
        let norm = tensors.get_mut("model.language_model.norm.weight").unwrap();
        *norm = TensorData::new(vec![1.0f32; 3], [3]);
    });

    let said = generate(model.path(), &["--prompt", "hi"]);

    said.refused(&[
        "1 tensor is missing: lm_head.weight",
        "1 tensor has another shape: model.language_model.norm.weight is [3], config.json needs [",
    ]);
}

/// The checkpoint in several files, with its index.
fn in_shards() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let model = folder.path().join("model");
    let from = checkpoint();
    let paths = ["--model", from.to_str().unwrap(), "--out", model.to_str().unwrap()];
    glm4v(["convert", "--shard-size", "1MB"].iter().chain(&paths)).success();
    assert!(model.join("model-00002-of-00003.safetensors").exists());
    (folder, model)
}

#[test]
fn shards_that_do_not_belong_together_are_refused_by_every_reader() {
    const INDEX: &str = "model.safetensors.index.json";
    const SECOND: &str = "model-00002-of-00003.safetensors";
    type Spoil = fn(&Path);
    let cases: [(Spoil, &[&str]); 10] = [
        (
            |model| fs::remove_file(model.join(SECOND)).unwrap(),
            &["model-00002-of-00003.safetensors is missing; the index names it; copy or download it again"],
        ),
        (
            |model| {
                fs::remove_file(model.join(SECOND)).unwrap();
                fs::create_dir(model.join(SECOND)).unwrap();
            },
            &["model-00002-of-00003.safetensors: is a directory; needed"],
        ),
        (
            |model| cut(&model.join(SECOND), 1000),
            &["model-00002-of-00003.safetensors: not a whole safetensors file: it announces a header of"],
        ),
        (
            |model| cut(&model.join(SECOND), 500_000),
            &[
                "model-00002-of-00003.safetensors: not a whole",
                "it is 500000 bytes long; needed by its header: ",
            ],
        ),
        (
            |model| fs::write(model.join(SECOND), u64::MAX.to_le_bytes()).unwrap(),
            &["it announces a header of 18446744073709551615 bytes; needed: at most 100000000"],
        ),
        (
            // A shard of another checkpoint under the right name.
            |model| {
                fs::copy(model.join("model-00003-of-00003.safetensors"), model.join(SECOND)).unwrap();
            },
            &["index.json: it names tensors that their files do not have: ", " in model-00002-of-00003"],
        ),
        (
            |model| replace(&model.join(INDEX), "\"model-00002-of-00003", "\"../model-00002-of-00003"),
            &["index.json: \"../model-00002-of-00003.safetensors\" is not in this folder"],
        ),
        (
            |model| replace(&model.join(INDEX), "\"model-00002-of-00003", "\"/etc/model-00002-of-00003"),
            &["index.json: \"/etc/model-00002-of-00003.safetensors\" is not in this folder"],
        ),
        (|model| cut(&model.join(INDEX), 100), &["index.json: EOF while parsing"]),
        (
            |model| {
                let head = "language_model.lm_head.weight";
                let again = vec![(head.to_owned(), TensorData::new(vec![1.0f32], [1]))];
                write_tensors(&model.join("more.safetensors"), again, &[]).unwrap();
                let entry = format!("\"weight_map\": {{\"{head}\": \"more.safetensors\",");
                replace(&model.join(INDEX), "\"weight_map\": {", &entry);
            },
            &[
                "tensor \"lm_head.weight\" is also in ",
                "more.safetensors, as \"language_model.lm_head.weight\"",
            ],
        ),
    ];
    for (spoil, words) in cases {
        let (folder, model) = in_shards();
        spoil(&model);

        generate(&model, &["--prompt", "hi"]).refused(words);
        let out = folder.path().join("out");
        let paths = ["--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
        glm4v(["convert"].iter().chain(&paths)).refused(words);

        assert!(!out.exists());
        holds_nothing_half_written(folder.path());
    }
}

fn cut(path: &Path, length: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..length]).unwrap();
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_type_or_a_size_that_means_nothing_here_is_refused() {
    let model = checkpoint();
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let convert = ["convert", "--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];

    generate(&model, &["--prompt", "hi", "--dtype", "keep"])
        .refused(&["--dtype keep is for glm4v convert and merge", "needed here: f32, bf16 or f16"]);
    for (flag, value, words) in [
        ("--shard-size", "0GB", "size \"0GB\" is unknown; needed: a positive number with a unit"),
        ("--shard-size", "5", "as 5GB, 500MB or 4GiB"),
        ("--dtype", "f8", "dtype \"f8\" is unknown"),
    ] {
        glm4v(convert.iter().chain(&[flag, value])).misused(&[words]);
    }
}

#[test]
fn weights_that_are_not_numbers_are_noticed_by_every_command() {
    let model = with_tensors(|tensors| {
        let norm = tensors.get_mut("model.language_model.norm.weight").unwrap();
        *norm = TensorData::new(vec![f32::NAN; norm.shape()[0]], norm.shape().clone());
    });
    let folder = tempdir().unwrap();
    let place = model.path().to_str().unwrap();
    let from = format!("model.path={place}");

    generate(model.path(), &["--prompt", "hi"]).refused(&["scores are not numbers", "--dtype f32"]);
    glm4v(["eval", "--model", place, "--data", "digits:test"])
        .refused(&["cannot generate answers", "scores are not numbers"]);
    Said::by(&mut train(&folder.path().join("run"), &[&from, "model.init=pretrained"])).refused(&[
        "step 1: loss is NaN",
        "needed: a lower optim.lr",
        "no checkpoint yet",
    ]);
    holds_nothing_half_written(folder.path());
}

#[test]
fn a_loss_that_is_not_a_number_ends_the_run_at_its_step_and_points_to_the_checkpoint() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let astray = ["optim.lr=1e30", "optim.max_grad_norm=0", "schedule.max_steps=9"];

    let without = Said::by(&mut train(&run, &astray));
    let again = Said::by(&mut train(&run, &astray));
    let resumed = Said::by(train(&run, &astray).arg("--resume"));
    let other = folder.path().join("other");
    let with = Said::by(&mut train(&other, &[&astray[..], &["run.save_steps=1"]].concat()));

    without.refused(&["step 2: loss is NaN", "lr", "start again with --set run.output_dir=PATH"]);
    again.refused(&["ended before its first checkpoint; remove the folder, or --set run.output_dir=PATH"]);
    resumed.refused(&[
        "the run ended before its first checkpoint",
        "remove the folder and start without --resume",
    ]);
    with.refused(&["step 2: loss is NaN", "go on from", "checkpoints/step-1 with --resume"]);
    assert_eq!(glm4v_tests::losses(&run).len(), 1, "the step that failed is not among the metrics");
    holds_nothing_half_written(folder.path());
}

#[test]
fn a_run_that_fails_before_its_first_step_can_be_started_again() {
    let folder = tempdir().unwrap();
    let bad = sixteen_good_and(folder.path(), &record("gone.png", "x").to_string());

    train_on(folder.path(), &bad, &[]).refused(&["gone.png"]);
    let good = sixteen_good_and(folder.path(), &record(digit().to_str().unwrap(), "x").to_string());

    train_on(folder.path(), &good, &[]).success();
}

#[test]
fn a_run_folder_that_cannot_be_written_is_refused_before_the_first_step() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();

    // Below a file, since a test that runs as root may write into any folder.
    let said = Said::by(&mut train(&file.join("run"), &[]));

    said.refused(&["file/run: cannot write the run folder", "--set run.output_dir=PATH"]);
    assert_eq!(fs::read_to_string(file).unwrap(), "");
}

#[test]
fn a_run_folder_that_holds_a_run_is_not_overwritten() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let short = ["schedule.max_steps=2", "run.save_steps=1"];
    Said::by(&mut train(&run, &["schedule.max_steps=2"])).success();
    let before = fs::read(run.join("metrics.jsonl")).unwrap();

    Said::by(&mut train(&run, &short)).refused(&[
        "holds a finished run, its weights are in final; --set run.output_dir=PATH starts another",
    ]);
    Said::by(train(&run, &short).arg("--resume")).refused(&[
        "the run is finished and has no checkpoint",
        "start a run in another run.output_dir with model.path = \"",
        "run/final\"",
    ]);
    let other = folder.path().join("other");
    Said::by(&mut train(&other, &short)).success();
    fs::remove_dir_all(other.join("final")).unwrap(); // as if it had not come that far
    Said::by(&mut train(&other, &short))
        .refused(&["holds a run with a checkpoint after step 2; --resume goes on with it"]);

    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn there_is_nothing_to_resume_in_an_empty_folder() {
    let folder = tempdir().unwrap();

    Said::by(train(folder.path(), &[]).arg("--resume"))
        .refused(&["holds no run to resume; start it without --resume"]);

    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_resumed_run_must_have_the_data_and_seed_of_the_first() {
    let folder = tempdir().unwrap();
    Said::by(&mut train(folder.path(), &["schedule.max_steps=2", "run.save_steps=1"])).success();

    let resume = |setting| Said::by(train(folder.path(), &["schedule.max_steps=3", setting]).arg("--resume"));

    resume("run.seed=1").refused(&["step-2: was made with run.seed 0, this run has 1; needed: 0, as"]);
    resume("data.train=digits:test").refused(&["data.train, digits:test, holds other records"]);
}

#[test]
fn what_a_killed_run_left_half_written_is_removed_by_the_next() {
    let folder = tempdir().unwrap();
    let half = folder.path().join("checkpoints/.step-500.17.partial");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("model.safetensors"), "half").unwrap();

    Said::by(&mut train(folder.path(), &["schedule.max_steps=1"])).success();

    assert!(!half.exists());
}

#[test]
fn a_backend_that_is_not_there_says_how_to_get_it() {
    let model = checkpoint();
    let ask = |flags: &[&str]| {
        let mut command = std::process::Command::new(glm4v_tests::binary());
        command.args(flags).args(["generate", "--prompt", "hi", "--max-new-tokens", "1", "--model"]);
        Said::by(command.arg(&model))
    };

    ask(&["--backend", "rocm"]).misused(&["backend \"rocm\" is unknown; needed: auto, cpu, wgpu, cuda"]);
    ask(&["--dtype", "f8"]).misused(&["dtype \"f8\" is unknown; needed: f32, bf16 or f16"]);
    for name in ["cuda", "wgpu"] {
        let said = ask(&["--backend", name]);
        // A build with the backend runs, or says that there is no device.
        if !said.stderr.contains("finds no device") && said.code != Some(0) {
            said.refused(&[name, "is not compiled into this binary", "cargo build --release --features gpu"]);
        }
    }
}

#[test]
fn sampling_that_makes_no_sense_is_refused() {
    for (flag, value, words) in [
        ("--top-p", "7", "top_p is 7; needed: more than 0, at most 1"),
        ("--temperature", "-1", "temperature is -1; needed: 0 (greedy), or 1e-6 and more"),
        ("--min-p", "2", "min_p is 2; needed: 0 to 1"),
        ("--repetition-penalty", "0", "repetition_penalty is 0; needed: more than 0"),
    ] {
        generate(&checkpoint(), &["--prompt", "hi", flag, value]).refused(&[words]);
    }
    let none = ["generate", "--prompt", "hi", "--max-new-tokens", "0", "--model"];
    Said::by(command().args(none).arg(checkpoint())).refused(&["max_new_tokens is 0; needed: at least 1"]);
}

#[test]
fn an_answer_longer_than_any_memory_ends_at_the_longest_sequence_of_the_model() {
    let model = spoiled("config.json", |bytes| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config["text_config"]["max_position_embeddings"] = 64.into();
        Some(config.to_string().into_bytes())
    });
    let ask = |prompt: &str, most: &str| {
        let mut command = command();
        command.args(["generate", "--greedy", "--json", "--max-new-tokens", most, "--prompt", prompt]);
        Said::by(command.arg("--model").arg(model.path()))
    };

    let endless = ask("hi", "18446744073709551615").success();
    let crowded = ask(&"digit ".repeat(64), "1");

    let answer: Value = serde_json::from_str(&endless.stdout).unwrap();
    let tokens = |key: &str| answer[key].as_u64().unwrap();
    assert!(tokens("prompt_tokens") + tokens("completion_tokens") <= 64, "{answer}");
    crowded.refused(&["takes more than 64 tokens, the longest sequence of the model", "shorten it"]);
}

#[test]
fn a_prompt_that_spells_a_special_token_is_refused_unless_it_is_allowed() {
    let image = digit();
    let image = image.to_str().unwrap();
    let allow = "--allow-special-tokens";

    generate(&checkpoint(), &["--prompt", "<|image|> what?"])
        .refused(&["message 0, part 0: its text spells <|image|>", allow]);
    generate(&checkpoint(), &["--prompt", "<|user|> what?", "--image", image])
        .refused(&["message 0, part 1: its text spells <|user|>", allow]);
    generate(&checkpoint(), &["--prompt", "<|user|> what?", "--image", image, allow]).success();
    generate(&checkpoint(), &["--prompt", "<|image|> what?", "--image", image, allow]).refused(&[
        "has 2 <|image|> placeholders, but 1 images were given",
        "message 0, part 0: 2 placeholders",
    ]);
}

#[test]
fn a_video_that_cannot_be_used_is_named() {
    let folder = tempdir().unwrap();
    let cut = folder.path().join("cut.mp4");
    fs::write(&cut, b"\0\0\0\x18ftypmp42").unwrap();
    let cut = cut.to_str().unwrap();

    // Of a machine with ffmpeg, which need not be this one.
    #[cfg(unix)]
    video_with_path(cut, &no_reader_of_videos(folder.path())).refused(&[
        "video 0 of the conversation",
        cut,
        "not a video that ffprobe can read: moov atom not found",
    ]);
    generate(&checkpoint(), &["--prompt", "what?", "--video", folder.path().to_str().unwrap()])
        .refused(&["has no frames"]);
    video_with_path(cut, Path::new(""))
        .refused(&["needs ffprobe, which is not installed", "apt-get install"]);
}

/// Asks about a video with another `PATH`, in which programs are looked for.
fn video_with_path(video: &str, path: &Path) -> Said {
    let args = ["generate", "--prompt", "what?", "--video", video, "--model"];
    Said::by(command().args(args).arg(checkpoint()).env("PATH", path))
}

/// A folder with an `ffprobe` that reads no video file, and says so as the real one does.
#[cfg(unix)]
fn no_reader_of_videos(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;

    let path = folder.join("bin");
    fs::create_dir(&path).unwrap();
    let program = path.join("ffprobe");
    fs::write(&program, "#!/bin/sh\necho '[mov,mp4 @ 0x55] moov atom not found' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_conversation_that_is_not_understood_is_refused_with_its_place() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("messages.json");
    for (text, words) in [
        ("[{\"role\": \"user\", \"content\": [}]", &["line 1, column 31: not valid json"][..]),
        ("", &["not valid json"]),
        ("[]", &["holds no messages; needed: at least one"]),
        // Behind the mark that editors of Windows put first.
        ("\u{feff}[]", &["holds no messages; needed: at least one"]),
        ("{\"role\": \"user\"}", &["found an object, needed a list of objects"]),
        ("[{\"role\": \"user\", \"content\": 5}]", &["message 0: \"content\" is a number, needed a string"]),
        (
            "[{\"role\": \"wizard\", \"content\": \"x\"}]",
            &["message 0: unknown role \"wizard\"; known are system"],
        ),
        (
            "[{\"role\": \"user\", \"content\": [{\"type\": \"audio\"}]}]",
            &["message 0, part 0: unknown type \"audio\""],
        ),
    ] {
        fs::write(&path, text).unwrap();

        let said = generate(&checkpoint(), &["--messages", path.to_str().unwrap()]);

        said.refused(&[words, &["messages.json: "]].concat());
        trace(&path, &folder.path().join("out.safetensors")).refused(words);
    }
    fs::write(&path, r#"[{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}]"#).unwrap();
    generate(&checkpoint(), &["--messages", path.to_str().unwrap()])
        .refused(&["image 0", "gone.png: cannot read: No such file"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the conversation is there");
}

#[test]
fn a_trace_that_could_not_be_written_is_refused_before_it_is_computed() {
    let folder = tempdir().unwrap();
    let messages = folder.path().join("messages.json");
    fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();

    trace(&messages, &folder.path().join("no/such/out.safetensors")).refused(&[
        "--out ",
        "no/such/out.safetensors: no folder",
        "make it first",
    ]);
    trace(&messages, folder.path()).refused(&["is not a file; needed: the path of a file"]);

    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn init_does_not_write_into_a_folder_that_exists() {
    let folder = tempdir().unwrap();
    let model = fresh_model(folder.path());
    let before = fs::read(model.join("model.safetensors")).unwrap();
    let args = ["init", "--config", "configs/models/digits", "--seed", "7", "--out", model.to_str().unwrap()];

    glm4v(args).refused(&["model: exists already; choose another --out"]);

    assert_eq!(fs::read(model.join("model.safetensors")).unwrap(), before);
    holds_nothing_half_written(folder.path());
}

#[test]
fn wrong_usage_is_told_apart_by_its_exit_code() {
    glm4v(["generate", "--prompt", "hi"]).misused(&["--model <DIR>"]);
    glm4v(["generate", "--model", "x"]).misused(&["--prompt <TEXT>"]);
    glm4v(["generate", "--model", "x", "--image", "a.png"]).misused(&["<--prompt <TEXT>|--messages <FILE>>"]);
    let usage = glm4v(["generate", "--help"]).success().stdout;
    assert!(usage.contains("--model <DIR> <--prompt <TEXT>|--messages <FILE>>\n"), "{usage}");
    glm4v(["generate", "--model", "x", "--messages", "m.json", "--image", "a.png"])
        .misused(&["'--messages <FILE>' cannot be used with '--image <FILE>'"]);
    glm4v(["generate", "--model", "x", "--prompt", "hi", "--greedy", "--temperature", "1"])
        .misused(&["cannot be used with"]);
    glm4v(["eval", "--model", "x", "--data", "y", "--batch-size", "0"]).misused(&["needed: at least 1"]);
    glm4v(["trian"]).misused(&["'trian'", "train"]);
    glm4v(["--threads", "0", "info"]).misused(&["0 is not in 1..=1024"]);
    let info = ["info", "--model", "configs/models/digits"];
    glm4v([&info[..], &["--image-size", "1024"]].concat()).misused(&["WIDTHxHEIGHT"]);
    glm4v([&info[..], &["--seq-len", "1000"]].concat()).refused(&["--seq-len 1000", "1369 tokens", "256"]);
}

/// What needs signals, pipes and odd paths as Unix has them.
#[cfg(unix)]
mod unix {
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    use glm4v_tests::{interrupt, losses, metrics, signal_when, walk};

    use super::*;

    /// What may stand where a small file is due, and what is said of it.
    fn impostors(folder: &Path) -> [(PathBuf, &'static str); 3] {
        let pipe = folder.join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let huge = folder.join("huge");
        fs::File::create(&huge).unwrap().set_len(1 << 32).unwrap(); // takes no room
        [
            (pipe, "is a pipe; needed: a regular file"),
            ("/dev/zero".into(), "is a device; needed: a regular file"),
            (huge, "the limit for a file of its kind"),
        ]
    }

    #[test]
    fn a_small_file_of_a_model_that_is_a_pipe_a_device_or_endless_is_refused_at_once() {
        let elsewhere = tempdir().unwrap();
        for (impostor, words) in impostors(elsewhere.path()) {
            for file in [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "preprocessor_config.json",
                "video_preprocessor_config.json",
                "chat_template.jinja",
            ] {
                let model = spoiled(file, |_| None);
                symlink(&impostor, model.path().join(file)).unwrap();

                generate(model.path(), &["--prompt", "hi"]).refused(&[&format!("{file}: "), words]);
            }
            let model = spoiled("model.safetensors", |_| None);
            symlink(&impostor, model.path().join("model.safetensors.index.json")).unwrap();
            generate(model.path(), &["--prompt", "hi"]).refused(&["index.json: ", words]);
            glm4v(["info", "--model", model.path().to_str().unwrap()]).refused(&["index.json: ", words]);
        }
    }

    #[test]
    fn a_small_file_of_a_command_that_is_a_pipe_a_device_or_endless_is_refused_at_once() {
        let elsewhere = tempdir().unwrap();
        let model = checkpoint();
        for (impostor, words) in impostors(elsewhere.path()) {
            let folder = tempdir().unwrap();
            let at = |name: &str| {
                let path = folder.path().join(name);
                let _ = symlink(&impostor, &path);
                path.to_str().unwrap().to_owned()
            };
            let adapter = folder.path().to_str().unwrap();
            let refused = |args: &[&str]| glm4v(args.iter().copied()).refused(&[words]);
            let generate = |args: &[&str]| generate(&model, args).refused(&[words]);

            refused(&["train", &at("run.toml")]);
            at("dataset_info.json");
            let model = model.to_str().unwrap();
            refused(&["eval", "--model", model, "--data", "x", "--data-dir", adapter]);
            generate(&["--messages", &at("messages.json")]);
            generate(&["--prompt", "hi", "--tools", &at("tools.json")]);
            at("adapter_config.json");
            generate(&["--prompt", "hi", "--adapter", adapter]);
        }
    }

    #[test]
    fn a_pipe_that_a_shell_makes_is_read() {
        let line = format!(
            r#"echo '[{{"role": "user", "content": "hi"}}]' | {} generate --model {} --messages /dev/stdin"#,
            glm4v_tests::binary().display(),
            checkpoint().display()
        );

        Said::by(Command::new("sh").args(["-c", &line])).success();
    }

    #[test]
    fn messages_from_a_device_without_end_are_refused() {
        generate(&checkpoint(), &["--messages", "/dev/zero"])
            .refused(&["/dev/zero: is a device; needed: a regular file"]);
    }

    #[test]
    fn ctrl_c_leaves_a_whole_checkpoint_that_resume_goes_on_from() {
        let folder = tempdir().unwrap();

        let said = interrupt(&mut train(folder.path(), &["schedule.max_steps=5000"]), folder.path(), 3);

        // The word that Ctrl-C was heard comes first, whatever --quiet says.
        let told = said.stderr.trim_start().strip_prefix("stopping after this step and writing a checkpoint");
        let (_, error) = told.expect(&said.stderr).split_once('\n').unwrap();
        let error = Said { stderr: error.to_owned(), ..said };
        let steps = losses(folder.path()).len();
        error.ended(130, &[&format!("stopped after step {steps}"), "--resume goes on from there"]);
        let checkpoint = folder.path().join(format!("checkpoints/step-{steps}"));
        for file in
            ["config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors", "trainer.json"]
        {
            assert!(checkpoint.join(file).exists(), "{file}");
        }
        holds_nothing_half_written(folder.path());

        let end = format!("schedule.max_steps={}", steps + 2);
        Said::by(train(folder.path(), &[&end]).arg("--resume")).success();

        assert_eq!(losses(folder.path()).len(), steps + 2);
        generate(&folder.path().join("final"), &["--prompt", "hi"]).success();
    }

    #[test]
    fn an_evaluation_that_ctrl_c_cuts_short_is_not_reported() {
        let folder = tempdir().unwrap();
        let long = ["eval.data=digits:train", "schedule.max_steps=2", "eval.batch_size=4"];

        let said = interrupt(&mut train(folder.path(), &long), folder.path(), 2);

        assert_eq!((said.code, said.stdout.as_str()), (Some(130), ""));
        assert!(said.stderr.contains("stopped after step 2"), "{said:?}");
        assert_eq!(metrics(folder.path()).len(), 2, "two steps and no evaluation");
        let weights = || fs::read(folder.path().join("final/model.safetensors")).unwrap();
        let before = weights();

        let short = ["eval.data=digits:test", "schedule.max_steps=2"];
        Said::by(train(folder.path(), &short).arg("--resume")).success();

        assert_eq!(metrics(folder.path())[2]["samples"], 360);
        assert!(weights() == before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn signals_end_an_answer_and_an_evaluation_with_their_own_exit_codes() {
        let folder = tempdir().unwrap();
        let model = fresh_model(folder.path());
        // With room for an answer that takes minutes: a signal may come late on a machine with other work.
        let config = model.join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        json["text_config"]["max_position_embeddings"] = json!(200_000);
        fs::write(&config, json.to_string()).unwrap();
        let place = model.to_str().unwrap();
        let endless =
            ["generate", "--model", place, "--prompt", "hi", "--greedy", "--max-new-tokens", "150000"];
        let long = ["eval", "--model", place, "--data", "digits:train", "--batch-size", "4"];
        let incomplete = "stopped before the answer was complete";
        for (args, signal, code, words) in [
            (&endless[..], "INT", 130, incomplete),
            (&endless, "TERM", 143, incomplete),
            (&endless, "HUP", 129, incomplete),
            (&long, "INT", 130, "stopped; no result"),
        ] {
            // Under nohup the program is not to mind a hang-up, as any other.
            if signal == "HUP" && ignores_hang_ups() {
                continue;
            }
            let said = signal_when(command().args(args), signal, computes);

            assert_eq!(said.code, Some(code), "{said:?}");
            // A signal before the model is loaded ends the program at once.
            assert!(said.stderr.is_empty() || said.stderr.contains(words), "{said:?}");
        }
    }

    #[test]
    fn what_no_memory_or_stack_is_left_for_ends_with_the_exit_code_of_errors() {
        let doubled = "{% set ns=namespace(l=[0]) %}{% for i in range(60) %}{% set ns.l=ns.l+ns.l %}{% endfor %}{{ ns.l|length }}";
        let endless = "{% set ns=namespace() %}{% set ns.x=ns %}{{ ns == ns }}{{ ns ~ '' }}";
        for template in [doubled, endless] {
            let model = spoiled("chat_template.jinja", |_| Some(template.into()));

            let said = generate(model.path(), &["--prompt", "hi"]);

            assert_eq!(said.code, Some(1), "{template}: {said:?}");
        }
    }

    /// Whether a process has computed for a while: it listens to signals long since.
    #[cfg(target_os = "linux")]
    fn computes(process: u32) -> bool {
        const TICKS: u64 = 30; // of a hundredth of a second
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let used = after_name.split_whitespace().nth(11).and_then(|ticks| ticks.parse().ok());
        used.is_some_and(|used: u64| used >= TICKS)
    }

    /// Whether this process ignores SIGHUP, which those that it starts inherit.
    fn ignores_hang_ups() -> bool {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1
    }

    /// `glm4v init` of a network that takes a while.
    fn slow_init(out: &Path) -> Command {
        let mut command = command();
        command
            .args(["init", "--config", "configs/models/glm-ocr", "--shard-size", "50MB", "--out"])
            .arg(out);
        command
    }

    /// Whether files of weights are being written beside `out`.
    fn is_being_written(out: &Path) -> bool {
        let written = |path: &PathBuf| path.to_string_lossy().contains("model-00002-of-");
        walk(out.parent().unwrap()).iter().any(written)
    }

    #[test]
    fn signals_leave_nothing_of_a_folder_that_was_being_written() {
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            let folder = tempdir().unwrap();
            let out = folder.path().join("out");

            let said = signal_when(&mut slow_init(&out), signal, |_| is_being_written(&out));

            assert_eq!((said.code, said.stderr.as_str(), said.stdout.as_str()), (Some(code), "", ""));
            assert_eq!(walk(folder.path()), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn what_a_killed_command_left_is_removed_by_the_next_one_to_the_same_folder() {
        let folder = tempdir().unwrap();
        let out = folder.path().join("model");
        signal_when(&mut slow_init(&out), "KILL", |_| is_being_written(&out));
        assert!(!walk(folder.path()).is_empty());

        fresh_model(folder.path());

        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [out]);
    }

    #[test]
    fn a_folder_that_another_process_is_writing_is_left_to_it() {
        let folder = tempdir().unwrap();
        let out = folder.path().join("model");
        let mut first = slow_init(&out).stderr(Stdio::null()).spawn().unwrap();
        while !is_being_written(&out) {
            assert_eq!(first.try_wait().unwrap(), None, "it is slow");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }

        let second = Said::by(&mut slow_init(&out));

        let id = first.id().to_string();
        assert!(Command::new("kill").arg(id).status().unwrap().success());
        first.wait().unwrap();
        second.refused(&[
            "model: another process is writing it; wait until it is done, or choose another --out",
        ]);
        assert_eq!(walk(folder.path()), Vec::<PathBuf>::new());
    }

    #[test]
    fn of_three_that_write_one_folder_at_once_one_wins() {
        let folder = tempdir().unwrap();
        let model = fresh_model(folder.path());
        let out = folder.path().join("out");
        let convert = |_| {
            let mut command = command();
            command.args(["convert", "--dtype", "bf16", "--shard-size", "100KB", "--model"]).arg(&model);
            command.arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };

        let all: Vec<_> = (0..3).map(convert).collect();
        let all: Vec<_> =
            all.into_iter().map(|child| Said::from(child.wait_with_output().unwrap())).collect();

        let (won, lost): (Vec<_>, Vec<_>) = all.iter().partition(|said| said.code == Some(0));
        assert_eq!(won.len(), 1, "{all:?}");
        for said in lost {
            let words = if said.stderr.contains("exists") {
                "exists already"
            } else {
                "another process is writing it"
            };
            said.refused(&[&format!("out: {words}"), "choose another --out"]);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "model and out");
        generate(&out, &["--prompt", "hi"]).success();
    }

    #[test]
    fn threads_that_cannot_be_had_are_told_with_what_to_do() {
        Said::by(command().env("RAYON_NUM_THREADS", "100000").arg("info"))
            .refused(&["RAYON_NUM_THREADS is 100000; needed: 1 to 1024", "--threads"]);
    }

    #[test]
    fn warnings_have_colours_only_where_they_are_wanted() {
        let folder = tempdir().unwrap();
        for frame in ["a.png", "b.png"] {
            fs::copy(digit(), folder.path().join(frame)).unwrap();
        }
        let warned = |variables: &[(&str, &str)]| {
            let mut command = Command::new(glm4v_tests::binary());
            command.current_dir(repository()).env_remove("NO_COLOR").envs(variables.iter().copied());
            command
                .args(["generate", "--max-new-tokens", "1", "--prompt", "What?", "--model"])
                .arg(checkpoint());
            let said = Said::by(command.arg("--video").arg(folder.path())).success();
            assert!(said.stderr.contains("WARN"), "{said:?}");
            said.stderr.contains('\u{1b}')
        };

        assert!(warned(&[("CLICOLOR_FORCE", "1")]), "as on a terminal");
        assert!(!warned(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(!warned(&[]), "no terminal");
    }

    #[test]
    fn a_disk_that_is_full_leaves_nothing_half_written() {
        let folder = tempdir().unwrap();
        let (run, out) = (folder.path().join("run"), folder.path().join("out.safetensors"));
        let messages = folder.path().join("messages.json");
        fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();
        fs::write(&out, "old").unwrap();
        // Files of at most 64 blocks stand for a disk that is full; without the trap the signal would end the program.
        let limited = |command: &Command| {
            let mut limited = Command::new("sh");
            limited.current_dir(repository()).args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
            limited.arg(command.get_program()).args(command.get_args());
            Said::by(&mut limited)
        };

        let saved = limited(&train(&run, &["schedule.max_steps=2", "run.save_steps=1"]));
        let finished = limited(&train(&folder.path().join("other"), &["schedule.max_steps=1"]));
        let mut trace = command();
        trace
            .arg("trace")
            .arg("--model")
            .arg(checkpoint())
            .arg("--messages")
            .arg(&messages)
            .arg("--out")
            .arg(&out);
        let traced = limited(trace.arg("--activations"));

        saved.refused(&["checkpoints/", "model.safetensors: cannot write: File too large"]);
        finished.refused(&["model.safetensors: cannot write: File too large"]);
        traced.refused(&["out.safetensors: cannot write: File too large"]);
        assert_eq!(fs::read_to_string(&out).unwrap(), "old", "what was there before is untouched");
        holds_nothing_half_written(folder.path());
    }

    #[test]
    fn a_reader_that_goes_away_ends_no_run_and_is_no_error() {
        let folder = tempdir().unwrap();
        let mut info = command().arg("info").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(info.stdout.take());
        let run = folder.path().join("run");
        let mut loud = train(&run, &["schedule.max_steps=3", "data.max_length=99"]);
        let mut training = loud.arg("-v").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(training.stderr.take());

        let info = Said::from(info.wait_with_output().unwrap());
        let training = Said::from(training.wait_with_output().unwrap());

        assert_eq!((info.code, info.stderr.as_str()), (Some(0), ""));
        assert_eq!(training.code, Some(0), "{training:?}");
        assert!(run.join("final").exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_result_that_cannot_be_written_is_an_error() {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();

        let said = command().arg("info").stdout(full).stderr(Stdio::piped()).spawn().unwrap();

        Said::from(said.wait_with_output().unwrap()).refused(&["cannot write to stdout: No space left"]);
    }

    #[cfg(target_os = "linux")] // other systems' folders take no such names
    #[test]
    fn paths_need_not_be_utf_8_but_texts_must() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let folder = tempdir().unwrap();
        let odd = folder.path().join(OsStr::from_bytes(b"mod\xffel"));
        let odd_text = OsStr::from_bytes(b"h\xff");

        let missing = Said::by(command().args(["generate", "--prompt", "hi", "--model"]).arg(&odd));
        let text = Said::by(command().args(["generate", "--model", "x", "--prompt"]).arg(odd_text));
        let config = Said::by(command().arg("train").arg(&odd));
        let made = Said::by(command().args(["init", "--config", "configs/models/digits", "--out"]).arg(&odd));
        let answered = generate(&odd, &["--prompt", "hi"]);

        missing.refused(&["no such folder"]);
        text.misused(&["invalid UTF-8"]);
        config.refused(&["cannot read: No such file"]);
        made.success();
        answered.success();
    }
}

#[test]
fn a_tokenizer_of_another_checkpoint_is_refused() {
    let folder = spoiled("config.json", |bytes| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config["image_token_id"] = json!(1165);
        Some(config.to_string().into_bytes())
    });

    let said = generate(folder.path(), &["--prompt", "What?"]);

    said.refused(&["image_token_id is 1165 in config.json, but <|image|> is 1164 in tokenizer.json"]);
}

#[test]
fn a_bad_record_met_late_costs_nothing_of_what_was_learned() {
    let folder = tempdir().unwrap();
    // Found when its pixels are decoded, and not before.
    let whole = fs::read(digit()).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0xff;
    fs::write(folder.path().join("damaged.png"), damaged).unwrap();
    let data = sixteen_good_and(folder.path(), &record("damaged.png", "one").to_string());
    let order = folder.path().join("order.json");
    fs::write(&order, "[[0, 1], [2, 3], [4, 16]]").unwrap();
    let run = folder.path().join("run");
    let settings = [
        format!("data.train={}", data.display()),
        format!("data.batch_order={}", order.display()),
        "schedule.max_steps=3".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();

    Said::by(&mut train(&run, &settings)).refused(&["line 17", "damaged.png: damaged or unsupported png"]);

    assert!(run.join("checkpoints/step-2/optimizer.safetensors").exists());
    holds_nothing_half_written(&run);
    fs::copy(digit(), folder.path().join("damaged.png")).unwrap();
    Said::by(train(&run, &settings).arg("--resume")).success();
}

#[test]
fn a_finished_run_is_not_trained_again_but_may_go_on() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let saving = ["schedule.max_steps=3", "run.save_steps=2"];
    Said::by(&mut train(&run, &saving)).success();

    Said::by(train(&run, &saving).arg("--resume")).refused(&[
        "the run is finished after 3 steps",
        "needed: more than 3 steps",
        "go on from",
        "step-3",
    ]);
    Said::by(&mut train(&run, &saving))
        .refused(&["weights in final and a checkpoint after step 3", "run.output_dir"]);
    Said::by(train(&run, &["schedule.max_steps=2", "run.save_steps=2"]).arg("--resume"))
        .refused(&["3 steps are done, and the schedule has 2"]);
    Said::by(train(&run, &["schedule.max_steps=4", "run.save_steps=2"]).arg("--resume")).success();
}

#[test]
fn a_run_is_resumed_with_its_own_model_and_a_whole_optimizer() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let steps = ["schedule.max_steps=2", "run.save_steps=1"];
    Said::by(&mut train(&run, &steps)).success();
    fs::remove_dir_all(run.join("final")).unwrap();
    let resume = |settings: &[&str]| Said::by(train(&run, &[&steps, settings].concat()).arg("--resume"));

    let other = format!("model.path={}", checkpoint().display());
    resume(&[&other]).refused(&["holds another network than model.path"]);

    let optimizer = run.join("checkpoints/step-2/optimizer.safetensors");
    let whole = fs::read(&optimizer).unwrap();
    write_tensors(&optimizer, vec![], &[]).unwrap();
    resume(&[]).refused(&[
        "optimizer.safetensors: not an optimizer's state",
        "checkpoints/step-2 cannot be resumed from",
        "remove it, and --resume goes on from",
        "checkpoints/step-1",
    ]);
    let short = TensorData::new(vec![0.0f32; 5], [5]);
    let state = vec![("exp_avg.lm_head.weight".to_owned(), short)];
    write_tensors(&optimizer, state, &[("steps", r#"{"lm_head.weight": 2}"#.to_owned())]).unwrap();
    resume(&[])
        .refused(&["optimizer.safetensors: 1 tensor has another shape: exp_avg.lm_head.weight is [5]"]);

    fs::write(&optimizer, whole).unwrap();
    resume(&[]).success();
}

#[test]
fn records_left_out_of_an_evaluation_are_counted() {
    let folder = tempdir().unwrap();
    let long = record(digit().to_str().unwrap(), &"zero ".repeat(40)).to_string();
    let data = format!("eval.data={}", sixteen_good_and(folder.path(), &long).display());
    let settings = ["schedule.max_steps=1", "data.max_length=40", "data.on_long=drop", &data];

    let said = Said::by(&mut train(&folder.path().join("run"), &settings)).success();

    assert!(said.stdout.contains("of 16 (") && said.stdout.contains("1 record left out"), "{}", said.stdout);
}

#[test]
fn an_evaluation_batch_of_which_nothing_is_left_is_counted_and_not_computed() {
    let folder = tempdir().unwrap();
    let long = record(digit().to_str().unwrap(), &"zero ".repeat(40)).to_string();
    let all_long = folder.path().join("long.jsonl");
    fs::write(&all_long, format!("{long}\n{long}\n")).unwrap();
    let one_long = sixteen_good_and(folder.path(), &long);
    for (data, words) in [
        (one_long, ["of 16 (", "; 1 record left out as too long"]),
        (all_long, ["exact match: none, as no record was evaluated", "; 2 records left out as too long"]),
    ] {
        let run = folder.path().join(data.file_stem().unwrap());
        let data = format!("eval.data={}", data.display());
        let small = ["schedule.max_steps=2", "data.max_length=40", "data.on_long=drop", "eval.batch_size=1"];
        let settings = [&small[..], &["eval.steps=1", &data]].concat();

        let said = Said::by(&mut train(&run, &settings)).success();

        assert!(words.iter().all(|word| said.stdout.contains(word)), "{}", said.stdout);
        let evaluations = glm4v_tests::metrics(&run).into_iter().filter(|entry| entry["samples"].is_u64());
        assert_eq!(evaluations.map(|entry| entry["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2]);
        assert!(run.join("final/model.safetensors").exists());
    }
}

#[test]
fn weights_that_broke_in_the_last_step_are_never_saved() {
    let folder = tempdir().unwrap();
    for (name, setting) in [("rate", "optim.lr=1e300"), ("decay", "optim.weight_decay=1e300")] {
        let run = folder.path().join(name);
        let settings = ["schedule.max_steps=1", "run.save_steps=1", setting];

        Said::by(&mut train(&run, &settings)).refused(&[
            "step 1: ",
            "no longer finite",
            "optim.lr",
            "start again with --set run.output_dir=PATH, as there is no checkpoint yet",
        ]);

        assert!(!run.join("checkpoints").exists() && !run.join("final").exists(), "{name}");
    }
    // The rate rises: the first step changes nothing, the second breaks.
    let run = folder.path().join("late");
    let settings = ["schedule.max_steps=2", "schedule.warmup_steps=1", "run.save_steps=1", "optim.lr=1e300"];
    Said::by(&mut train(&run, &settings)).refused(&[
        "step 2: ",
        "no longer finite",
        "late/checkpoints/step-1",
    ]);
    assert!(!run.join("checkpoints/step-2").exists() && !run.join("final").exists());
}

#[test]
fn a_damaged_checkpoint_points_to_the_one_before_it() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let steps = ["schedule.max_steps=3", "run.save_steps=1", "run.save_total_limit=3"];
    Said::by(&mut train(&run, &steps)).success();
    let more = ["schedule.max_steps=4", "run.save_steps=1", "run.save_total_limit=3"];
    let resume = || Said::by(train(&run, &more).arg("--resume"));
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

        resume().refused(&[
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
fn what_a_checkpoint_depends_on_cannot_be_changed() {
    let folder = tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    let answers = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
    let write = |answers: &[&str]| {
        let lines = answers.iter().map(|answer| record(digit().to_str().unwrap(), answer).to_string() + "\n");
        fs::write(&data, lines.collect::<String>()).unwrap();
    };
    write(&answers);
    let run = folder.path().join("run");
    let own = format!("data.train={}", data.display());
    let resumed = |more: &[&str], flags: &[&str]| {
        let settings = [&[own.as_str(), "data.batch_size=4", "schedule.max_steps=4"], more].concat();
        Said::by(train(&run, &settings).args(flags))
    };
    let first = ["schedule.max_steps=2", "run.save_steps=1"];
    resumed(&first, &[]).success();
    for (more, flags, words) in [
        (&["data.batch_size=2"][..], &["--resume"][..], "data.batch_size 4, this run has 2; needed: 4, as"),
        (&["model.freeze=['vision']"], &["--resume"], "model.freeze [], this run has [\"vision\"]"),
        (&["lora.r=8"], &["--resume"], "was made with lora absent, this run has present"),
        (&[], &["--resume", "--dtype", "bf16"], "was made with dtype f32, this run has bf16"),
        (
            &["schedule.max_steps=1"],
            &["--resume"],
            "2 steps are done, and the schedule has 1; needed: at least 2",
        ),
    ] {
        resumed(more, flags).refused(&[words]);
    }
    let mut other = answers;
    other.swap(1, 6);
    write(&other);
    resumed(&[], &["--resume"]).refused(&["holds other records", "in another order", "step-2"]);

    write(&answers);
    resumed(&["optim.lr=1e-5", "run.save_total_limit=5"], &["--resume"]).success();
}

#[test]
fn a_record_longer_than_the_model_allows_is_refused_before_anything_is_computed() {
    let folder = tempdir().unwrap();
    let user = |content: &str| json!({"role": "user", "content": content});
    let said = |content: &str| json!({"role": "assistant", "content": content});
    let images = vec![digit(); 10_000];
    let cases = [
        ("answer", json!({"messages": [user("?"), said(&"x ".repeat(6_000))]})),
        ("images", json!({"messages": [user(&"<image>".repeat(10_000)), said("x")], "images": images})),
        ("prompt", json!({"messages": [user(&"a word ".repeat(3_000_000)), said("x")]})),
        ("word", json!({"messages": [user(&"a".repeat(20_000_000)), said("x")]})),
    ];
    for (name, record) in cases {
        let path = folder.path().join(format!("{name}.jsonl"));
        fs::write(&path, format!("{record}\n")).unwrap();
        let data = path.display().to_string();

        let model = checkpoint().display().to_string();
        let eval = glm4v(["eval", "--model", &model, "--data", &data, "--max-new-tokens", "2"]);

        eval.refused(&[&format!("{name}.jsonl: line 1: takes "), " tokens"]);
    }
}

#[test]
fn two_runs_that_start_at_once_do_not_share_a_folder() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let start = || {
        let mut command = train(&run, &["schedule.max_steps=60"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    };

    let started = [start(), start(), start()];
    let said = started.map(|child| Said::from(child.wait_with_output().unwrap()));

    let (one, refused): (Vec<_>, Vec<_>) = said.iter().partition(|said| said.code == Some(0));
    assert_eq!((one.len(), refused.len()), (1, 2), "{said:?}");
    for said in refused {
        // Whoever came after the end of the first met its results.
        let late = said.stderr.contains("holds a");
        said.refused(&[if late {
            "--set run.output_dir=PATH starts another"
        } else {
            "in use by another run, process "
        }]);
    }
    assert_eq!(glm4v_tests::losses(&run).len(), 60);
}

#[test]
fn a_run_is_not_resumed_beside_itself() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    Said::by(&mut train(&run, &["schedule.max_steps=2", "run.save_steps=1"])).success();
    let lock = fs::File::open(run.join(".lock")).unwrap();
    lock.lock().unwrap();
    let resume = || Said::by(train(&run, &["schedule.max_steps=3", "run.save_steps=1"]).arg("--resume"));

    resume().refused(&[
        "in use by another run, process ",
        "needed: the end of that run, or another run.output_dir",
    ]);

    drop(lock);
    resume().success();
}

/// A data file of good records with three bad ones among them: not JSON, without its image, without an answer.
fn three_bad_of_nineteen(folder: &Path) -> PathBuf {
    let path = folder.join("data.jsonl");
    let good = record(digit().to_str().unwrap(), "zero").to_string();
    let missing = record("missing.png", "x").to_string();
    let mut lines = vec![good.as_str(); 19];
    (lines[4], lines[9], lines[18]) =
        ("{\"messages\"", &missing, "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}");
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn bad_records_are_listed_before_the_first_step_whichever_set_they_are_in() {
    let folder = tempdir().unwrap();
    let bad = three_bad_of_nineteen(folder.path());
    let words = [
        "3 of 19 records cannot be used",
        "line 5: not valid json",
        "line 10: ",
        "missing.png: cannot read",
        "line 19: has no turn of the assistant",
        "data.on_bad=skip",
    ];
    let eval = format!("eval.data={}", bad.display());

    train_on(folder.path(), &bad, &[]).refused(&words);
    Said::by(&mut train(&folder.path().join("run"), &[&eval, "schedule.max_steps=1"])).refused(&words);
    let model = checkpoint();
    let args = ["eval", "--model", model.to_str().unwrap(), "--data", bad.to_str().unwrap()];
    glm4v(args).refused(&words[..5]);

    assert!(!folder.path().join("run/metrics.jsonl").exists(), "no step was made");
    let many: Vec<String> = (0..40).map(|i| record(&format!("{i}.png"), "x").to_string()).collect();
    fs::write(&bad, many.join("\n")).unwrap();
    let said = train_on(folder.path(), &bad, &["data.on_bad=skip"]);
    said.refused(&["none of 40 records can be used", "9.png", "and 30 more"]);
    assert!(!said.stderr.contains("/10.png"), "{said:?}");
}

#[test]
fn bad_records_that_are_skipped_leave_the_others_as_they_are_without_them() {
    let folder = tempdir().unwrap();
    let bad = three_bad_of_nineteen(folder.path());
    let good = folder.path().join("good.jsonl");
    let text = fs::read_to_string(&bad).unwrap();
    let lines = text.lines().enumerate().filter(|(i, _)| ![4, 9, 18].contains(i)).map(|(_, line)| line);
    fs::write(&good, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let run = |name: &str, data: &Path, settings: &[&str]| {
        let data = format!("data.train={}", data.display());
        let all = [&[data.as_str(), "data.batch_size=3", "data.on_bad=skip"], settings].concat();
        train(&folder.path().join(name), &all)
    };

    let skipping = aloud(&mut run("skipping", &bad, &["schedule.max_steps=8"])).success();
    Said::by(&mut run("without", &good, &["schedule.max_steps=8"])).success();
    let first = ["schedule.max_steps=4", "schedule.type=constant", "run.save_steps=2"];
    let rest = ["schedule.max_steps=8", "schedule.type=constant", "run.save_steps=2"];
    Said::by(&mut run("straight", &bad, &rest)).success();
    Said::by(&mut run("resumed", &bad, &first)).success();
    Said::by(run("resumed", &bad, &rest).arg("--resume")).success();

    let losses = |name: &str| losses(&folder.path().join(name));
    assert_eq!(losses("skipping").len(), 8);
    assert_eq!(losses("skipping"), losses("without"));
    assert_eq!(losses("straight"), losses("resumed"));
    let order = folder.path().join("order.json");
    fs::write(&order, "[[0, 1]]").unwrap();
    let order = format!("data.batch_order={}", order.display());
    Said::by(&mut run("ordered", &bad, &["schedule.max_steps=1", &order]))
        .refused(&["data.batch_order numbers every record, and 3 are left out as bad"]);
    let eval = format!("eval.data={}", bad.display());
    let said = Said::by(&mut run("evaluated", &bad, &["schedule.max_steps=1", &eval])).success();
    assert!(
        said.stdout.contains(" of 16 (") && said.stdout.contains("3 records left out as bad"),
        "{said:?}"
    );
    for word in ["3 of 19 records cannot be used", "line 10: "] {
        assert!(skipping.stderr.contains(word), "{skipping:?}");
    }
}

#[test]
fn an_image_that_is_damaged_inside_is_skipped_and_named_once() {
    let folder = tempdir().unwrap();
    let mut damaged = fs::read(digit()).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    fs::write(folder.path().join("damaged.png"), damaged).unwrap();
    let data = sixteen_good_and(folder.path(), &record("damaged.png", "x").to_string());

    let settings = ["data.on_bad=skip", "schedule.max_steps=3"];
    let said = aloud(&mut training_on(folder.path(), &data, &settings)).success();
    assert_eq!(said.stderr.matches("line 17: ").count(), 1, "{said:?}");

    fs::write(&data, format!("{}\n", record("damaged.png", "x")).repeat(17)).unwrap();
    let run = folder.path().join("none");
    let data = format!("data.train={}", data.display());
    let all = [data.as_str(), "data.batch_size=17", "data.on_bad=skip", "schedule.max_steps=1"];
    Said::by(&mut train(&run, &all)).refused(&["records in a row that cannot be used"]);
}

#[test]
fn a_data_file_of_another_kind_is_called_what_it_is() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
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
        let args =
            ["eval", "--model", model.to_str().unwrap(), "--data-dir", folder.path().to_str().unwrap()];
        let said = Said::by(command().args(args).arg("--data").arg(&file));

        said.refused(&[words, &[name]].concat());
        assert!(!said.stderr.contains("known are"), "{said:?}");
    }
}

#[test]
fn an_image_from_the_network_is_refused_without_a_flag_that_is_not_there() {
    let folder = tempdir().unwrap();
    let data = sixteen_good_and(folder.path(), &record("http://example.org/a.png", "x").to_string());

    let said = train_on(folder.path(), &data, &[]);

    said.refused(&["line 17", "http://example.org/a.png: fetching over the network is off"]);
    assert!(!said.stderr.contains("--allow-http"), "{said:?}");
}

#[test]
fn an_empty_path_is_called_empty() {
    for flag in ["--image", "--video"] {
        generate(&checkpoint(), &["--prompt", "what?", flag, ""]).refused(&["path of the ", " is empty"]);
    }
}

#[test]
fn a_key_that_nobody_knows_is_named_once_and_a_record_that_carries_more_is_refused() {
    let folder = tempdir().unwrap();
    let mut odd = record(digit().to_str().unwrap(), "x");
    odd["reward"] = json!(1);
    let data = folder.path().join("data.jsonl");
    fs::write(&data, format!("{odd}\n").repeat(17)).unwrap();

    let said = aloud(&mut training_on(folder.path(), &data, &[])).success();
    assert_eq!(said.stderr.matches("\"reward\" is not known").count(), 1, "{said:?}");
    assert!(said.stderr.contains("data.jsonl: line 1: ") && said.stderr.contains("17 records"), "{said:?}");

    odd["messages"][1]["weight"] = json!(0.5);
    let folder = tempdir().unwrap();
    let data = sixteen_good_and(folder.path(), &odd.to_string());
    train_on(folder.path(), &data, &[]).refused(&["data.jsonl: line 17: message 1: \"weight\" is 0.5"]);
}
