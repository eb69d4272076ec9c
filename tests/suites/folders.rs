//! Models and adapters by directory or name in the Hugging Face cache, and errors about directories of another kind.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use glm4v_model::{Glm4v, Precision};
use glm4v_tests::{CommandOutput, backend, command, glm4v, golden, losses, random_model, train, walk};
use glm4v_weights::{
    AdapterConfig, AdapterFolder, ModelFolder, TensorFile, WeightsError, add_adapter, save_adapter,
    write_tensors,
};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

fn checkpoint() -> PathBuf {
    golden().join("checkpoints/glm4v")
}

fn copy(from: &Path) -> TempDir {
    let folder = tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn generate(model: impl AsRef<Path>, args: &[&str]) -> CommandOutput {
    let question = ["--prompt", "hi", "--max-new-tokens", "2"];
    CommandOutput::run(command().args(["generate", "--model"]).arg(model.as_ref()).args(question).args(args))
}

mod adapters {
    use super::*;

    const CONFIG: &str = "adapter_config.json";
    const TENSORS: &str = "adapter_model.safetensors";

    fn model(name: &str) -> Glm4v {
        let folder = ModelFolder::open(&golden().join("checkpoints").join(name)).unwrap();
        folder.load(&backend().open().unwrap(), Precision::F32).unwrap()
    }

    /// A copy of PEFT's adapter of rank 4 on the attention of three layers, with changed config keys.
    fn with(keys: &Value) -> TempDir {
        let folder = copy(&golden().join("lora/adapter"));
        edit(&folder.path().join(CONFIG), |config| {
            let config = config.as_object_mut().unwrap();
            config.extend(keys.as_object().unwrap().clone());
            config.retain(|_, value| *value != "left out");
        });
        folder
    }

    fn with_tensors(change: impl FnOnce(&mut BTreeMap<String, TensorData>)) -> TempDir {
        let folder = with(&json!({}));
        let path = folder.path().join(TENSORS);
        let file = TensorFile::open(&path).unwrap();
        let read = |name: String| (name.clone(), file.float(&name, DType::F32).unwrap());
        let mut tensors = file.names().into_iter().map(read).collect();
        change(&mut tensors);
        write_tensors(&path, tensors.into_iter().collect(), &[]).unwrap();
        folder
    }

    fn put(folder: &Path, model: Glm4v) -> Result<Glm4v, WeightsError> {
        AdapterFolder::open(folder)?.apply(model, Precision::F32)
    }

    #[test]
    fn adapter_tensors_that_differ_from_the_config_are_refused() {
        let model = model("glm4v");
        for (keys, words) in [
            (
                json!({"r": 8}),
                "self_attn.q_proj: its tensors have rank 4, but r and rank_pattern of its config give it 8",
            ),
            (
                json!({"rank_pattern": {"v_proj": 2}}),
                "self_attn.v_proj: its tensors have rank 4, but r and rank_pattern of its config give it 2",
            ),
            (
                json!({"modules_to_save": ["lm_head"]}),
                "modules_to_save names modules whose tensors are not there: lm_head.weight",
            ),
            (json!({"modules_to_save": ["score"]}), "modules_to_save: \"score\" is no module of this model"),
            (
                json!({"target_modules": ["q_proj", "k_proj", "v_proj"]}),
                "tensors for 3 modules that neither target_modules nor target_parameters of its config names: \
                 model.language_model.layers.*.self_attn.o_proj;",
            ),
            (
                json!({"exclude_modules": ["layers.1.self_attn.k_proj", "layers.2.self_attn.k_proj"]}),
                "tensors for 2 modules that neither",
            ),
            (json!({"layers_to_transform": [0, 2]}), "tensors for 4 modules that neither"),
            (
                json!({"target_modules": ".*self_attn.*|.*gate_up_proj"}),
                "targets 3 modules that there are no tensors for: model.language_model.layers.*.mlp.gate_up_proj;",
            ),
            (
                json!({"target_modules": "all-linear"}),
                "no tensors for: model.language_model.layers.*.mlp.down_proj, model.language",
            ),
            (json!({"peft_type": "IA3", "r": "left out"}), "peft_type is \"IA3\"; needed: \"LORA\""),
            (json!({"use_dora": true}), "use_dora is true; needed: false"),
            (json!({"trainable_token_indices": [3]}), "trainable_token_indices is [3]; needed: null"),
            (
                json!({"init_lora_weights": "pissa_niter_4"}),
                "init_lora_weights is \"pissa_niter_4\"; needed: true",
            ),
        ] {
            let folder = with(&keys);

            let error = put(folder.path(), model.clone()).unwrap_err().to_string();

            assert!(error.contains(words), "{keys}: {error}");
            assert!(error.starts_with(folder.path().to_str().unwrap()), "{keys}: {error}");
        }
    }

    #[test]
    fn inconsistent_adapter_tensors_are_refused() {
        let model = model("glm4v");
        let name = |part: &str| {
            format!("base_model.model.model.language_model.layers.1.self_attn.q_proj.{part}.weight")
        };
        let none = with_tensors(BTreeMap::clear);
        let half = with_tensors(|tensors| drop(tensors.remove(&name("lora_B"))));
        let other = with_tensors(|tensors| {
            tensors.insert(name("lora_A"), TensorData::new(vec![0.0f32; 2 * 96], [2, 96]));
        });
        let module =
            with_tensors(|tensors| tensors.retain(|name, _| !name.contains("layers.1.self_attn.q_proj")));

        for (folder, words) in [
            (none, "holds no tensors"),
            (half, "layers.1.self_attn.q_proj.lora_B is missing, and "),
            (other, "layers.1.self_attn.q_proj: lora_A is [2, 96] and lora_B [96, 4]; needed: [r, 96] and"),
            (
                module,
                "its config targets 1 modules that there are no tensors for: model.language_model.layers.*.",
            ),
        ] {
            let error = put(folder.path(), model.clone()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn equivalent_adapter_configs_are_accepted() {
        let model = model("glm4v");
        for keys in [
            json!({"target_modules": r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj).*"}),
            json!({"target_modules": ["self_attn.q_proj", "k_proj", "v_proj", "o_proj", "not_here"]}),
            json!({"target_modules": null}),
            json!({"layers_to_transform": [0, 1, 2], "layers_pattern": "layers"}),
            json!({"r": 16, "lora_alpha": 8, "rank_pattern": {"[qkvo]_proj": 4}}),
            json!({"exclude_modules": r".*visual.*", "init_lora_weights": "gaussian"}),
        ] {
            let applied = put(with(&keys).path(), model.clone());
            assert!(applied.is_ok(), "{keys}: {}", applied.unwrap_err());
        }
    }

    #[test]
    fn stacked_experts_of_another_rank_are_refused() {
        let config = AdapterConfig {
            target_parameters: Some(vec!["mlp.experts.gate_up_proj".into(), "mlp.experts.down_proj".into()]),
            ..AdapterConfig::new(2, 3.0)
        };
        let model = model("glm4v_moe");
        let (adapted, _) = add_adapter(model.clone(), &config, 0, Precision::F32).unwrap();
        for rank in [2, 1, 4] {
            let folder = tempdir().unwrap();
            save_adapter(&adapted, &config, folder.path()).unwrap();
            edit(&folder.path().join(CONFIG), |config| config["r"] = json!(rank));

            let applied = put(folder.path(), model.clone());

            match rank {
                2 => assert!(applied.is_ok(), "{}", applied.unwrap_err()),
                _ => {
                    let error = applied.unwrap_err().to_string();
                    let words = format!("needed: the rank, {rank}, times the number of experts");
                    assert!(error.contains(&words), "{error}");
                }
            }
        }
    }

    #[test]
    fn all_commands_refuse_an_adapter_that_differs_from_its_config() {
        let folder = with(&json!({"r": 8}));
        let (adapter, model) = (folder.path().to_str().unwrap(), checkpoint());
        let model = model.to_str().unwrap();
        let out = folder.path().join("out");
        let words = ["its tensors have rank 4, but r and rank_pattern of its config give it 8"];

        generate(model, &["--adapter", adapter]).failure(&words);
        let out_flag = ["--out", out.to_str().unwrap()];
        glm4v(["merge", "--model", model, "--adapter", adapter].iter().chain(&out_flag)).failure(&words);
        assert!(!out.exists());
        glm4v(["eval", "--model", model, "--data", "digits:test", "--adapter", adapter]).failure(&words);
        let settings = [format!("model.path={model}"), format!("lora.adapter_path={adapter}")];
        let settings = ["model.init=pretrained", &settings[0], &settings[1], "schedule.max_steps=1"];
        CommandOutput::run(&mut train(&folder.path().join("run"), &settings)).failure(&words);
    }

    #[test]
    fn an_adapter_that_overflows_is_not_merged() {
        let folder = with(&json!({"lora_alpha": 1e300}));
        let (adapter, model) = (folder.path().to_str().unwrap(), checkpoint());
        let out = folder.path().join("out");

        let merge = ["merge", "--model", model.to_str().unwrap(), "--adapter", adapter, "--out"];
        glm4v(merge.into_iter().chain(out.to_str())).failure(&[
            "_proj.weight: weight and adapter add up to",
            "at most 3.4028234663852886e38",
            "are lora_alpha and alpha_pattern right?",
        ]);
        assert!(!out.exists());
    }

    #[test]
    fn an_adapter_given_as_a_model_is_refused_with_its_base_model() {
        let folder = with(&json!({"base_model_name_or_path": "zai-org/GLM-4.1V-9B-Thinking"}));
        let adapter = folder.path().to_str().unwrap();

        let output = "a LoRA adapter of zai-org/GLM-4.1V-9B-Thinking, not a model";
        let remedy = format!("pass --model zai-org/GLM-4.1V-9B-Thinking --adapter {adapter}");
        generate(adapter, &[]).failure(&[output, &remedy]);
        let remedy =
            format!("set model.path to zai-org/GLM-4.1V-9B-Thinking, and lora.adapter_path to {adapter}");
        let setting = format!("model.path={adapter}");
        CommandOutput::run(&mut train(&folder.path().join("run"), &[&setting])).failure(&[output, &remedy]);
        glm4v(["info", "--model", adapter]).failure(&[output, "glm4v merge makes one model of both"]);
    }
}

mod hub {
    use super::*;

    const COMMIT: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567";

    /// A cache with one repository as `hf download` leaves it: links into blobs, or files where there are no links.
    fn cache(name: &str, files: &Path) -> TempDir {
        let cache = tempdir().unwrap();
        let repository = cache.path().join(format!("models--{}", name.replace('/', "--")));
        let snapshot = repository.join("snapshots").join(COMMIT);
        for folder in [&snapshot, &repository.join("blobs"), &repository.join("refs")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(repository.join("refs/main"), COMMIT).unwrap();
        for entry in fs::read_dir(files).unwrap().map(Result::unwrap) {
            let (file, blob) = (entry.file_name(), repository.join("blobs").join(entry.file_name()));
            fs::copy(entry.path(), &blob).unwrap();
            #[cfg(unix)]
            std::os::unix::fs::symlink(Path::new("../../blobs").join(&file), snapshot.join(&file)).unwrap();
            #[cfg(not(unix))]
            fs::copy(&blob, snapshot.join(&file)).unwrap();
        }
        cache
    }

    fn snapshot(cache: &TempDir, name: &str) -> PathBuf {
        let repository = cache.path().join(format!("models--{}", name.replace('/', "--")));
        repository.join("snapshots").join(COMMIT)
    }

    fn with(cache: &TempDir, args: &[&str]) -> CommandOutput {
        CommandOutput::run(command().env("HF_HUB_CACHE", cache.path()).args(args))
    }

    #[test]
    fn all_commands_find_a_model_in_the_cache() {
        let cache = cache("org/tiny", &checkpoint());
        let out = tempdir().unwrap();
        let at = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
        let ask = ["--prompt", "hi", "--max-new-tokens", "2"];

        let by_path = generate(checkpoint(), &[]).success().stdout;
        for model in ["org/tiny", "org/tiny@main", "org/tiny@0a1b2c3"] {
            let output = with(&cache, &[&["generate", "--model", model], &ask[..]].concat()).success();
            assert_eq!(output.stdout, by_path, "{model}");
        }
        for args in [
            &["info", "--model", "org/tiny", "--json"][..],
            &["convert", "--model", "org/tiny", "--out", &at("converted")],
            &["init", "--config", "org/tiny", "--out", &at("fresh")],
            &["trace", "--model", "org/tiny", "--prompt", "hi", "--out", &at("trace.safetensors")],
        ] {
            with(&cache, args).success();
        }
        generate(at("converted"), &[]).success();
        assert!(walk(&out.path().join("converted")).iter().all(|path| !path.is_symlink()));
    }

    #[test]
    fn an_adapter_is_found_in_the_cache_and_verbose_names_the_snapshot() {
        let cache = cache("org/adapter", &golden().join("lora/adapter"));
        let model = checkpoint();
        let args =
            ["generate", "--model", model.to_str().unwrap(), "--prompt", "hi", "--max-new-tokens", "2"];

        let mut loud = std::process::Command::new(glm4v_tests::binary());
        loud.env("HF_HUB_CACHE", cache.path()).args(args).args(["--adapter", "org/adapter", "-v"]);
        let output = CommandOutput::run(&mut loud).success();

        let snapshot = snapshot(&cache, "org/adapter");
        assert!(output.stderr.contains(snapshot.to_str().unwrap()), "{output:?}");
    }

    #[test]
    fn a_path_takes_precedence_over_the_cache() {
        let cache = cache("org/tiny", &checkpoint());
        let here = tempdir().unwrap();
        fs::create_dir_all(here.path().join("org/tiny")).unwrap();

        let mut command = command();
        command.current_dir(here.path()).env("HF_HUB_CACHE", cache.path());
        let output = CommandOutput::run(command.args(["info", "--model", "org/tiny"]));

        output.failure(&["org/tiny: config.json is missing"]);
    }

    #[test]
    fn a_run_stores_the_commit_of_a_cached_model() {
        let files = tempdir().unwrap();
        let cache = cache("org/digits", &random_model(files.path()));
        let folder = tempdir().unwrap();
        let (run, again) = (folder.path().join("run"), folder.path().join("again"));
        let settings = [
            "model.path=org/digits",
            "model.init=pretrained",
            "schedule.max_steps=2",
            "lora.target_modules=[\"q_proj\"]",
            "run.save_steps=1",
        ];
        let mut first = train(&run, &settings);

        CommandOutput::run(first.env("HF_HUB_CACHE", cache.path())).success();

        let written = fs::read_to_string(run.join("config.toml")).unwrap();
        assert!(written.contains(&format!("path = \"org/digits@{COMMIT}\"")), "{written}");
        let adapter: Value =
            serde_json::from_slice(&fs::read(run.join("final/adapter_config.json")).unwrap()).unwrap();
        assert_eq!(adapter["base_model_name_or_path"], "org/digits");
        assert_eq!(adapter["revision"], COMMIT);
        // The branch now names a commit that is not in the cache.
        fs::write(cache.path().join("models--org--digits/refs/main"), "f".repeat(40)).unwrap();
        let config = run.join("config.toml");
        let folder = format!("run.output_dir={}", again.display());
        with(&cache, &["train", config.to_str().unwrap(), "--set", &folder]).success();
        assert_eq!(losses(&again), losses(&run));
    }

    #[test]
    fn a_missing_repository_is_refused_with_the_download_command() {
        let cache = cache("org/tiny", &checkpoint());
        let place = cache.path().to_str().unwrap();
        let refused = |model: &str, words: &[&str]| with(&cache, &["info", "--model", model]).failure(words);

        let line = "downloaded by: hf download zai-org/GLM-4.1V-9B-Thinking\n";
        refused("zai-org/GLM-4.1V-9B-Thinking", &["no such directory", place, line]);
        let line = "downloaded by: hf download org/tiny --revision v2\n";
        refused("org/tiny@v2", &[COMMIT, place, line]);
        refused("./org/none", &["./org/none: no such directory"]);
        let mut train = train(&cache.path().join("run"), &["model.path=zai-org/GLM-OCR"]);
        CommandOutput::run(train.env("HF_HUB_CACHE", cache.path()))
            .failure(&["hf download zai-org/GLM-OCR\n"]);
        let model = checkpoint();
        let args =
            ["generate", "--model", model.to_str().unwrap(), "--prompt", "hi", "--adapter", "org/lora"];
        with(&cache, &args).failure(&["hf download org/lora\n"]);
    }

    #[test]
    fn an_incomplete_download_is_refused_with_the_download_command() {
        let files = tempdir().unwrap();
        let shards = files.path().join("shards");
        let paths =
            ["--model", checkpoint().to_str().unwrap(), "--out", shards.to_str().unwrap()].map(str::to_owned);
        let flags = ["--shard-size".to_owned(), "1MB".to_owned()];
        glm4v([["convert".to_owned()].as_slice(), &paths, &flags].concat()).success();
        let cache = cache("org/tiny", &shards);
        let snapshot = snapshot(&cache, "org/tiny");
        let shard = "model-00002-of-00003.safetensors";
        assert!(snapshot.join(shard).exists());
        fs::remove_file(snapshot.join(shard)).unwrap();
        fs::write(cache.path().join("models--org--tiny/blobs/abc.incomplete"), "half").unwrap();
        let whole = |words: &[&str]| {
            for model in ["org/tiny", snapshot.to_str().unwrap()] {
                with(&cache, &["generate", "--model", model, "--prompt", "hi"]).failure(words);
            }
        };

        whole(&[shard, "not complete", "not finished: 1", "by: hf download org/tiny\n"]);
        // `info` needs the config alone.
        with(&cache, &["init", "--config", "org/tiny", "--out", files.path().join("x").to_str().unwrap()])
            .success();
        fs::remove_file(snapshot.join("model.safetensors.index.json")).unwrap();
        whole(&["model.safetensors is missing", "by: hf download org/tiny\n"]);
        fs::remove_file(snapshot.join("config.json")).unwrap();
        whole(&["config.json is missing", "by: hf download org/tiny\n"]);
    }
}

mod other_formats {
    use super::*;

    /// The checkpoint's config and tokenizer without its weights.
    fn without_weights() -> TempDir {
        let folder = copy(&checkpoint());
        fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        folder
    }

    /// Writes the checkpoint's tensors as zeros of a one-byte type.
    fn write_packed(folder: &Path, dtype: &str) {
        let file = TensorFile::open(&checkpoint().join("model.safetensors")).unwrap();
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for name in file.names() {
            let shape = file.shape(&name).unwrap();
            let start = end;
            end += shape.iter().product::<usize>();
            header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
        }
        let header = Value::from(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + end, 0);
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
    }

    #[test]
    fn a_quantized_checkpoint_is_refused_with_its_method() {
        let out = tempdir().unwrap();
        let fp8 = json!({"quant_method": "compressed-tensors", "format": "float-quantized"});
        for (dtype, config, words) in [
            ("F8_E4M3", fp8, "compressed-tensors, float-quantized; tensors of type F8_E4M3"),
            ("F8_E5M2", json!({"quant_method": "fp8"}), "fp8; tensors of type F8_E5M2"),
            ("F8_E4M3", Value::Null, "not named; tensors of type F8_E4M3"),
            (
                "U8",
                json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
                "bitsandbytes; tensors of type U8",
            ),
            ("I8", json!({"quant_method": "awq"}), "awq; tensors of type I8"),
        ] {
            let folder = without_weights();
            write_packed(folder.path(), dtype);
            edit(&folder.path().join("config.json"), |all| all["quantization_config"] = config);
            let words =
                ["the weights are quantized", words, "needed: the repository of the same model with bf16"];

            generate(folder.path(), &[]).failure(&words);
            let paths = ["--model", folder.path().to_str().unwrap(), "--out"];
            glm4v(["convert"].iter().chain(&paths).chain([&out.path().join("x").to_str().unwrap()]))
                .failure(&words);
            glm4v(["info", "--model", folder.path().to_str().unwrap()]).success();
        }
    }

    #[test]
    fn weights_in_other_formats_are_refused_with_the_conversion() {
        let pickle = without_weights();
        fs::write(pickle.path().join("pytorch_model-00001-of-00002.bin"), "PK").unwrap();
        let place = pickle.path().to_str().unwrap();
        let line = format!("M.from_pretrained('{place}', dtype='auto').save_pretrained('{place}')");
        generate(place, &[])
            .failure(&["pytorch_model-00001-of-00002.bin holds weights as a Python pickle", &line]);

        let gguf = tempdir().unwrap();
        let file = gguf.path().join("glm-q4.bin");
        fs::write(&file, b"GGUF\x03\0\0\0").unwrap();
        for path in [gguf.path(), &file] {
            generate(path, &[]).failure(&[
                "glm-q4.bin",
                "a GGUF file",
                "needed: the repository that it was made from",
            ]);
        }
    }

    #[test]
    fn a_file_in_place_of_a_directory_is_refused() {
        let model = checkpoint();
        let weights = model.join("model.safetensors");
        let config = model.join("config.json");
        let adapter = golden().join("lora/adapter/adapter_model.safetensors");

        generate(&weights, &[])
            .failure(&["model.safetensors: a file of weights; needed: the directory that it lies in"]);
        generate(&config, &[]).failure(&["config.json: a file; needed: a directory with config.json"]);
        generate(&model, &["--adapter", adapter.to_str().unwrap()])
            .failure(&["adapter_model.safetensors: a file of weights; needed: the directory"]);
    }
}
