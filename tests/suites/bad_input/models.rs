//! Model directories: missing, damaged and inconsistent files, and weights that are not finite.

use glm4v_model::{Backend, DeviceSpec, Precision};
use glm4v_train::{Run, RunConfig};

use super::*;

#[test]
fn a_missing_model_file_is_named() {
    for (file, words) in [
        ("tokenizer.json", "has no tokenizer.json; copy it from the published checkpoint"),
        ("chat_template.jinja", "has no chat_template.jinja; copy it"),
        ("preprocessor_config.json", "has no preprocessor_config.json; copy it"),
        (
            "config.json",
            "config.json is missing; needed: a directory as published on the hub; or one made by glm4v init",
        ),
        (
            "model.safetensors",
            "model.safetensors is missing; needed: a checkpoint with weights; glm4v init makes",
        ),
    ] {
        let model = with_corrupt(file, |_| None);
        let path_text = model.path().to_str().unwrap();

        generate(model.path(), &["--prompt", "hi"]).failure(&[path_text, words]);
        glm4v(["eval", "--model", path_text, "--data", "digits:test"]).failure(&[path_text, words]);
    }
    generate(Path::new("no/such/model"), &["--prompt", "hi"])
        .failure(&["no/such/model: no such directory; needed: a model directory with config.json"]);
}

#[test]
fn a_damaged_model_file_is_named() {
    let half = |bytes: Vec<u8>| Some(bytes[..bytes.len() / 2].to_vec());
    let nothing = |_: Vec<u8>| Some(vec![]);
    for (model, words) in [
        (
            with_corrupt("model.safetensors", half),
            &["model.safetensors: not a whole safetensors file", "download it again"][..],
        ),
        (with_corrupt("model.safetensors", nothing), &["model.safetensors: not a whole safetensors file"]),
        (with_corrupt("tokenizer.json", half), &["tokenizer.json: not a tokenizer"]),
        (with_corrupt("config.json", half), &["config.json: EOF"]),
        (
            with_corrupt("preprocessor_config.json", half),
            &["preprocessor_config.json, line", "not valid json"],
        ),
        (with_corrupt("generation_config.json", half), &["generation_config.json: EOF"]),
        (
            with_corrupt("generation_config.json", |_| {
                Some(br#"{"num_beams": 4, "typical_p": 1.0}"#.to_vec())
            }),
            &[
                "generation_config.json: \"num_beams\" is 4, and this version does not",
                "needed: no such key, or 1",
            ],
        ),
        (
            with_corrupt("chat_template.jinja", |_| Some(b"{% for %}".to_vec())),
            &["chat template, line 1: syntax error"],
        ),
        (with_corrupt("chat_template.jinja", nothing), &["row 0 of the batch has no tokens"]),
    ] {
        generate(model.path(), &["--prompt", "hi"]).failure(words);
    }
}

#[test]
fn an_invalid_config_json_is_refused_with_its_key() {
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
        let model = with_corrupt("config.json", |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{from}");
            Some(text.replace(from, to).into_bytes())
        });

        generate(model.path(), &["--prompt", "hi"]).failure(&[model.path().to_str().unwrap(), words]);
    }
}

/// The checkpoint with patches of 16 instead of 14 pixels in `preprocessor_config.json`.
fn with_other_patch_size() -> TempDir {
    with_corrupt("preprocessor_config.json", |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("\"patch_size\": 14"));
        Some(text.replace("\"patch_size\": 14", "\"patch_size\": 16").into_bytes())
    })
}

const OTHER_PATCH_SIZE: [&str; 2] = [
    "1176 values in a patch in config.json, but 1536 in preprocessor_config.json (patch_size",
    "take both from the same checkpoint",
];

#[test]
fn a_preprocessor_config_of_another_model_is_refused() {
    let model = with_other_patch_size();

    let output = generate(model.path(), &["--prompt", "What?", "--image", digit_image().to_str().unwrap()]);

    output.failure(&OTHER_PATCH_SIZE);
}

// `glm4v train` makes this check before it opens the run; other users of the library have `Run::open` alone.
#[test]
fn run_open_refuses_a_preprocessor_config_of_another_model() {
    let model = with_other_patch_size();
    let dir = tempdir().unwrap();
    let mut config = RunConfig::default();
    config.model.path = model.path().to_owned();
    config.data.dir = repository().join("datasets");
    config.data.train = "digits:train".into();
    config.run.output_dir = dir.path().join("run");
    let device_spec = DeviceSpec::for_backend(Backend::Cpu, &Backend::Cpu.open().unwrap(), DType::F32);

    let error = Run::open(config, &device_spec, Precision::F32, false, &mut |_, _| {}).unwrap_err();

    for text in OTHER_PATCH_SIZE {
        assert!(error.to_string().contains(text), "{error}");
    }
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let dir = with_corrupt("config.json", |bytes| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config["image_token_id"] = json!(1165);
        Some(config.to_string().into_bytes())
    });

    let output = generate(dir.path(), &["--prompt", "What?"]);

    output.failure(&["image_token_id is 1165 in config.json, but <|image|> is 1164 in tokenizer.json"]);
}

#[test]
fn missing_and_misshapen_tensors_are_listed() {
    let model = with_tensors(|tensors| {
        tensors.remove("lm_head.weight").unwrap();
        let norm = tensors.get_mut("model.language_model.norm.weight").unwrap();
        *norm = TensorData::new(vec![1.0f32; 3], [3]);
    });

    let output = generate(model.path(), &["--prompt", "hi"]);

    output.failure(&[
        "1 tensor is missing: lm_head.weight",
        "1 tensor has another shape: model.language_model.norm.weight is [3], config.json needs [",
    ]);
}

#[test]
fn nan_weights_are_an_error_of_generate_eval_and_train() {
    let model = with_tensors(|tensors| {
        let norm = tensors.get_mut("model.language_model.norm.weight").unwrap();
        *norm = TensorData::new(vec![f32::NAN; norm.shape()[0]], norm.shape().clone());
    });
    let dir = tempdir().unwrap();
    let path_text = model.path().to_str().unwrap();
    let from = format!("model.path={path_text}");

    generate(model.path(), &["--prompt", "hi"]).failure(&["scores are not numbers", "--dtype f32"]);
    glm4v(["eval", "--model", path_text, "--data", "digits:test"])
        .failure(&["cannot generate answers", "scores are not numbers"]);
    CommandOutput::run(&mut train(&dir.path().join("run"), &[&from, "model.init=pretrained"])).failure(&[
        "step 1: loss is NaN",
        "needed: a lower optim.lr",
        "no checkpoint yet",
    ]);
    assert_no_partial_files(dir.path());
}
