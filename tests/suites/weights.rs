//! Loading, saving, conversion and initialization of checkpoints, byte for byte.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use glm4v_model::{
    DeviceSpec, Glm4v, NamedMapper, NamedVisitor, Precision, initialize, map_named, visit_named,
};
use glm4v_tests::{CommandOutput, walk};
use glm4v_tests::{assert_no_partial_files, backend, glm4v, golden, repository, train};
use glm4v_weights::{
    AdapterConfig, ModelFolder, ShardSize, TargetModules, TensorFile, add_adapter, cast_floats, save_adapter,
    save_model, save_model_sharded, write_tensors,
};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

const CORRECTION: &str = ".mlp.gate.e_score_correction_bias";

/// The golden checkpoints that have weights.
fn checkpoints() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = walk(&golden().join("checkpoints"))
        .into_iter()
        .filter(|path| path.is_dir() && path.join("model.safetensors").exists())
        .collect();
    assert!(!found.is_empty());
    found
}

fn device() -> Device {
    backend().open().unwrap()
}

fn load(folder: &Path, precision: Precision) -> Glm4v {
    ModelFolder::open(folder).unwrap().load(&device(), precision).unwrap()
}

/// Data type and bytes of all tensors of a directory, by name.
fn tensors(folder: &Path) -> BTreeMap<String, (String, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for path in walk(folder).iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")) {
        let bytes = fs::read(path).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
        assert_eq!(header["__metadata__"]["format"], "pt");
        for (name, about) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let [from, to] = [0, 1].map(|i| start + about["data_offsets"][i].as_u64().unwrap() as usize);
            let kind = format!("{} {}", about["dtype"].as_str().unwrap(), about["shape"]);
            let before = found.insert(name.clone(), (kind, bytes[from..to].to_vec()));
            assert!(before.is_none(), "{name} is there twice");
        }
    }
    found
}

/// A copy of a model directory with its tensors changed, in their stored types.
fn with_tensors(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, TensorData>)) -> TempDir {
    let copy = tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        fs::write(copy.path().join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    let path = copy.path().join("model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let mut tensors =
        file.names().into_iter().map(|name| (name.clone(), file.float(&name, DType::F32).unwrap())).collect();
    change(&mut tensors);
    write_tensors(&path, tensors.into_iter().collect(), &[]).unwrap();
    copy
}

fn with_config(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

/// Tensors without a parameter in the model, such as MTP layers, in several data types.
fn unknown_tensors() -> BTreeMap<String, TensorData> {
    let layer = "model.language_model.layers.40";
    BTreeMap::from([
        (
            format!("{layer}.eh_proj.weight"),
            cast_floats(TensorData::new(vec![0.1f32; 6], [2, 3]), DType::BF16),
        ),
        (format!("{layer}.enorm.weight"), TensorData::new(vec![0.1f32; 3], [3])),
        ("quantizer.codes".to_owned(), TensorData::new(vec![7u8, 0, 255], [3])),
        ("counter".to_owned(), TensorData::new(vec![i64::MIN], [1])),
    ])
}

fn convert(model: &Path, out: &Path, flags: &[&str]) -> CommandOutput {
    let paths = ["--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
    glm4v(["convert"].iter().chain(&paths).chain(flags))
}

/// Values of all parameters, by name.
fn parameters(model: &Glm4v) -> BTreeMap<String, TensorData> {
    struct Reader(BTreeMap<String, TensorData>);
    impl NamedVisitor for Reader {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            self.0.insert(name.to_owned(), param.val().into_data());
        }
    }
    let mut reader = Reader(BTreeMap::new());
    visit_named(model, &mut reader);
    reader.0
}

#[test]
fn convert_with_stored_types_changes_no_byte_for_any_shard_size() {
    for model in checkpoints() {
        let folder = tempdir().unwrap();
        let out = folder.path().join("out");

        convert(&model, &out, &["--shard-size", "300KB"]).success();

        assert_eq!(tensors(&out), tensors(&model));
        let index: Value =
            serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        let mut total = 0;
        for (name, (_, bytes)) in tensors(&out) {
            let shard = TensorFile::open(&out.join(map[&name].as_str().unwrap())).unwrap();
            assert!(shard.shape(&name).is_some(), "{name}");
            total += bytes.len();
        }
        assert_eq!(index["metadata"]["total_size"], total);
        for path in walk(&model).iter().filter(|path| path.extension().is_none_or(|e| e != "safetensors")) {
            let name = path.file_name().unwrap();
            assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(path).unwrap(), "{name:?}");
        }
    }
}

#[test]
fn convert_rounds_like_loading_and_updates_the_config() {
    for model in checkpoints() {
        let folder = tempdir().unwrap();
        for (flag, dtype, name) in [
            ("bf16", DType::BF16, "bfloat16"),
            ("f16", DType::F16, "float16"),
            ("f32", DType::F32, "float32"),
        ] {
            let out = folder.path().join(flag);

            convert(&model, &out, &["--dtype", flag]).success();

            let (from, to) = [&model, &out]
                .map(|folder| TensorFile::open(&folder.join("model.safetensors")).unwrap())
                .into();
            for tensor in from.names() {
                let dtype = if tensor.ends_with(CORRECTION) { DType::F32 } else { dtype };
                let kind = &tensors(&out)[&tensor].0;
                assert!(kind.starts_with(&format!("{dtype:?} ")), "{tensor} is {kind}");
                assert_eq!(
                    to.float(&tensor, dtype).unwrap(),
                    from.float(&tensor, dtype).unwrap(),
                    "{tensor}"
                );
            }
            let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["dtype"], name);
        }
    }
}

#[test]
fn a_saved_model_equals_the_published_one_byte_for_byte() {
    for model in checkpoints() {
        let folder = tempdir().unwrap();

        let size: ShardSize = "300KB".parse().unwrap();
        save_model_sharded(&load(&model, Precision::F32), &model, folder.path(), Precision::F32, size)
            .unwrap();

        assert_eq!(tensors(folder.path()), tensors(&model));
        assert!(folder.path().join("model.safetensors.index.json").exists());
    }
}

#[test]
fn a_model_in_row_shards_loads_and_saves_like_a_dense_one() {
    let mut split = false;
    for model in checkpoints() {
        let folder = tempdir().unwrap();
        let device_spec = DeviceSpec::bounded(&device(), 302_000, DType::F32);

        let mut heard = (0, 0);
        let opened = ModelFolder::open(&model).unwrap();
        let pieces =
            opened.load_on(&device_spec, Precision::F32, &mut |done, of| heard = (done, of)).unwrap();
        save_model(&pieces, &model, folder.path(), Precision::F32).unwrap();

        split |= parameters(&pieces).contains_key("model.language_model.embed_tokens.weight.1");
        assert_eq!(tensors(folder.path()), tensors(&model));
        assert!(heard.0 == heard.1 && heard.0 > 1_000_000, "{heard:?}");
    }
    assert!(split);
}

#[test]
fn unknown_tensors_are_copied_by_every_export() {
    let folder = tempdir().unwrap();
    let origin =
        with_tensors(&golden().join("checkpoints/glm4v"), |tensors| tensors.extend(unknown_tensors()));
    fs::write(origin.path().join("NOTICE.txt"), "keep me").unwrap();
    fs::write(origin.path().join("extra.safetensors"), "stale").unwrap();
    let (converted, saved) = (folder.path().join("converted"), folder.path().join("saved"));
    fs::create_dir(&saved).unwrap();

    convert(origin.path(), &converted, &["--dtype", "bf16", "--shard-size", "300KB"]).success();
    save_model(&load(origin.path(), Precision::F32), origin.path(), &saved, Precision::F16).unwrap();

    let before = tensors(&{
        fs::remove_file(origin.path().join("extra.safetensors")).unwrap();
        origin.path().to_owned()
    });
    for out in [converted, saved] {
        let after = tensors(&out);
        assert_eq!(after.len(), before.len());
        for name in unknown_tensors().keys() {
            assert_eq!(after[name], before[name], "{name}");
        }
        assert_ne!(after["lm_head.weight"], before["lm_head.weight"]);
        assert_eq!(fs::read_to_string(out.join("NOTICE.txt")).unwrap(), "keep me");
        assert!(!out.join("extra.safetensors").exists());
    }
}

#[test]
fn unknown_tensors_are_copied_by_a_run() {
    let folder = tempdir().unwrap();
    let origin = folder.path().join("origin");
    let args = ["init", "--config", "configs/models/digits", "--out", origin.to_str().unwrap()];
    glm4v(args).success();
    let origin = with_tensors(&origin, |tensors| tensors.extend(unknown_tensors()));
    let run = folder.path().join("run");

    let from = format!("model.path={}", origin.path().display());
    CommandOutput::run(&mut train(
        &run,
        &[&from, "model.init=pretrained", "schedule.max_steps=2", "run.save_steps=1"],
    ))
    .success();

    let before = tensors(origin.path());
    for out in [run.join("final"), run.join("checkpoints/step-1")] {
        let mut after = tensors(&out);
        after.retain(|name, _| before.contains_key(name)); // a checkpoint also has the optimizer
        assert_eq!(after.len(), before.len());
        for name in unknown_tensors().keys() {
            assert_eq!(after[name], before[name], "{name}");
        }
        assert_ne!(after["lm_head.weight"], before["lm_head.weight"], "it has learned");
    }
}

#[test]
fn init_writes_the_weights_of_an_initialized_model() {
    for config in checkpoints() {
        for (flag, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
            let folder = tempdir().unwrap();
            let (files, network) = (folder.path().join("files"), folder.path().join("network"));
            fs::create_dir(&network).unwrap();

            let paths = ["--config", config.to_str().unwrap(), "--out", files.to_str().unwrap()];
            let flags = ["--seed", "7", "--dtype", flag, "--shard-size", "300KB"];
            let output = glm4v(["init"].iter().chain(&paths).chain(&flags)).success();
            let model = ModelFolder::open(&config).unwrap().config().init(&device());
            let model = initialize(model, 7, precision.dtype());
            save_model(&model, &config, &network, precision).unwrap();

            assert_eq!(tensors(&files), tensors(&network));
            assert!(output.stdout.contains(" parameters, "), "{output:?}");
        }
    }
}

#[test]
fn tensor_names_of_other_exports_are_loaded() {
    let model = golden().join("checkpoints/glm4v");
    for renames in [
        // Older exports have no `language_model` in the name.
        &[("model.language_model.", "model."), ("model.visual.", "visual.")][..],
        &[("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")],
    ] {
        let other = with_tensors(&model, |tensors| {
            let rename = |name: String| {
                let found = renames
                    .iter()
                    .find_map(|(ours, theirs)| name.strip_prefix(ours).map(|rest| format!("{theirs}{rest}")));
                found.unwrap_or(name)
            };
            *tensors = std::mem::take(tensors).into_iter().map(|(name, data)| (rename(name), data)).collect();
        });
        let folder = tempdir().unwrap();
        let out = folder.path().join("out");

        assert_eq!(
            parameters(&load(other.path(), Precision::F32)),
            parameters(&load(&model, Precision::F32))
        );
        convert(other.path(), &out, &[]).success();
        assert_eq!(tensors(&out), tensors(&model), "a conversion writes the published names");
    }
}

#[test]
fn a_tied_head_is_the_embeddings_unless_lm_head_is_stored_with_other_values() {
    let (embedding, head) = ("model.language_model.embed_tokens.weight", "lm_head.weight");
    let original = golden().join("checkpoints/glm4v");
    for place in ["", "/text_config"] {
        let tied = |change: &dyn Fn(&mut BTreeMap<String, TensorData>)| {
            let folder = with_tensors(&original, |tensors| change(tensors));
            with_config(folder.path(), |config| {
                config.as_object_mut().unwrap().remove("tie_word_embeddings");
                config.pointer_mut(place).unwrap()["tie_word_embeddings"] = json!(true);
            });
            let model = load(folder.path(), Precision::F32);
            let (saved, converted) = (folder.path().join("saved"), folder.path().join("converted"));
            fs::create_dir(&saved).unwrap();
            save_model(&model, folder.path(), &saved, Precision::F32).unwrap();
            convert(folder.path(), &converted, &[]).success();
            let stored = |out: &Path| tensors(out).contains_key(head);
            (parameters(&model), stored(&saved), stored(&converted))
        };

        let (without, saved, _) = tied(&|tensors| drop(tensors.remove(head)));
        assert!(!without.contains_key(head) && !saved);
        let (same, saved, converted) = tied(&|tensors| {
            let table = tensors[embedding].clone();
            tensors.insert(head.into(), table);
        });
        assert_eq!(same, without);
        assert!(!saved && converted, "a conversion keeps what is there");
        let (turned, _, _) = tied(&|tensors| {
            let table = tensors.remove(embedding).unwrap();
            tensors.insert(head.into(), table);
        });
        assert_eq!(turned, without, "either of the pair is enough");
        // transformers 5.23: "both are present in the checkpoints with different values, so we will NOT tie them".
        let (other, saved, converted) = tied(&|_| {});
        assert!(other.contains_key(head) && saved && converted);
        assert_ne!(other[head], other[embedding]);
    }
}

/// Stacks the experts of every layer as transformers 5 does; returns how many layers have some.
fn stack_experts(tensors: &mut BTreeMap<String, TensorData>) -> usize {
    let mut layers = 0;
    for layer in 0..8 {
        let experts = format!("model.language_model.layers.{layer}.mlp.experts");
        let mut take =
            |number: usize, kind: &str| tensors.remove(&format!("{experts}.{number}.{kind}.weight"));
        let (mut both, mut down) = (Vec::new(), Vec::new());
        let mut shapes = (Vec::new(), Vec::new());
        let mut count = 0;
        while let Some(gate) = take(count, "gate_proj") {
            let [up, last] = ["up_proj", "down_proj"].map(|kind| take(count, kind).unwrap());
            shapes = (gate.shape().to_vec(), last.shape().to_vec());
            both.extend_from_slice(gate.as_slice::<f32>().unwrap());
            both.extend_from_slice(up.as_slice::<f32>().unwrap());
            down.extend_from_slice(last.as_slice::<f32>().unwrap());
            count += 1;
        }
        if count == 0 {
            continue;
        }
        layers += 1;
        let (one, two) = shapes;
        let both = TensorData::new(both, [count, 2 * one[0], one[1]]);
        tensors.insert(format!("{experts}.gate_up_proj"), both);
        tensors.insert(format!("{experts}.down_proj"), TensorData::new(down, [count, two[0], two[1]]));
    }
    layers
}

#[test]
fn stacked_experts_of_transformers_5_are_loaded() {
    for model in checkpoints() {
        let mut layers = 0;
        let stacked = with_tensors(&model, |tensors| layers = stack_experts(tensors));
        if layers == 0 {
            continue; // no experts
        }
        let folder = tempdir().unwrap();
        let (saved, converted) = (folder.path().join("saved"), folder.path().join("converted"));
        fs::create_dir(&saved).unwrap();

        let loaded = load(stacked.path(), Precision::F32);
        save_model(&loaded, stacked.path(), &saved, Precision::F32).unwrap();
        convert(stacked.path(), &converted, &["--shard-size", "300KB"]).success();

        assert_eq!(tensors(&saved), tensors(&model), "experts are written apart, as published");
        assert_eq!(tensors(&converted), tensors(&model));
    }
}

/// Fills lora_B with values that differ between modules.
struct Filled;

impl NamedMapper for Filled {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let share = name.bytes().map(u32::from).sum::<u32>() % 7 + 1;
        if name.ends_with(".lora.b") { param.map(|values| values + 0.004 * share as f32) } else { param }
    }
}

#[test]
fn merge_into_stacked_experts_equals_merge_into_separate_ones() {
    let model = golden().join("checkpoints/glm4v_moe");
    let stacked = with_tensors(&model, |tensors| assert!(stack_experts(tensors) > 0));
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let config = AdapterConfig {
        target_modules: Some(TargetModules::List(vec!["q_proj".into()])),
        target_parameters: Some(vec!["mlp.experts.gate_up_proj".into(), "mlp.experts.down_proj".into()]),
        ..AdapterConfig::new(2, 4.0)
    };
    let (adapted, _) = add_adapter(load(&model, Precision::F32), &config, 1, Precision::F32).unwrap();
    fs::create_dir(path("adapter")).unwrap();
    save_adapter(&map_named(adapted, &mut Filled), &config, path("adapter").as_ref()).unwrap();
    let merge = |model: &Path, out: &str| {
        let model = model.to_str().unwrap();
        glm4v(["merge", "--model", model, "--adapter", &path("adapter"), "--out", &path(out)]).success();
        load(path(out).as_ref(), Precision::F32)
    };

    let apart = parameters(&merge(&model, "apart"));

    assert_eq!(parameters(&merge(stacked.path(), "whole")), apart);
    let before = parameters(&load(&model, Precision::F32));
    let changed = |kind: &str| {
        apart.iter().filter(|(name, data)| name.contains(kind) && before[*name] != **data).count()
    };
    assert!(changed(".experts.0.gate_up_proj") > 0 && changed(".experts.1.down_proj") > 0);
    assert!(tensors(path("whole").as_ref()).keys().any(|name| name.ends_with("mlp.experts.down_proj")));
}

#[test]
fn router_corrections_are_f32_in_every_precision() {
    for model in checkpoints() {
        let exact = parameters(&load(&model, Precision::F32));
        let fresh = initialize(ModelFolder::open(&model).unwrap().config().init(&device()), 0, DType::BF16);
        for (name, data) in parameters(&load(&model, Precision::Bf16)).into_iter().chain(parameters(&fresh)) {
            let dtype = if name.ends_with(CORRECTION) { DType::F32 } else { DType::BF16 };
            assert_eq!(data.dtype(), dtype, "{name}");
        }
        for (name, data) in parameters(&load(&model, Precision::Bf16)) {
            assert!(!name.ends_with(CORRECTION) || data == exact[&name], "{name}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_output_directory() {
    let model = golden().join("checkpoints/glm4v");
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    for command in [
        format!("convert --model {}", model.display()),
        format!("convert --dtype bf16 --shard-size 400KB --model {}", model.display()),
        format!("init --config {}", model.display()),
    ] {
        // A limit of 256 KiB per file acts as a full disk, with another error of the system.
        let limited = format!(
            "trap '' XFSZ; ulimit -f 256; exec {} --quiet {command} --out {}",
            glm4v_tests::binary().display(),
            out.display()
        );
        let mut shell = std::process::Command::new("bash");
        let output = CommandOutput::run(shell.current_dir(repository()).args(["-c", &limited]));

        output.failure(&[".safetensors: cannot write: File too large"]);
        assert_no_partial_files(folder.path());
        assert_eq!(walk(folder.path()), Vec::<PathBuf>::new(), "{command}");
    }
}

#[test]
fn an_existing_output_directory_is_not_overwritten() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();

    convert(&golden().join("checkpoints/glm4v"), &out, &[])
        .failure(&["out: exists already; choose another --out"]);

    assert_eq!(walk(folder.path()), [out]);
}
