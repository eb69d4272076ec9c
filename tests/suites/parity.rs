//! Numbers against transformers: see `fixtures/README.md` for how the cases were made.
//!
//! Tolerances: logits 5e-4, activations 1e-5 and gradients 5e-5 relative. transformers itself moves by up to 4.8e-5
//! in logits between its two attention implementations, and logits here have a deviation of 2.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::text::load_balancing_loss;
use glm4v_model::{Backend, Glm4v, NamedVisitor, Positions, Precision, Probe, Site, visit_named};
use glm4v_tests::{Case, backend, golden, max_difference, relative_l2, values_of};
use glm4v_train::{
    AdamW, AdamWConfig, NamedGradients, Schedule, ScheduleKind, Targets, cross_entropy, freeze_all_but, loss,
};
use glm4v_weights::{
    AdapterConfig, AdapterFolder, ModelFolder, Names, TensorFile, attach, save_adapter, save_model,
};

/// The members of the family that the golden cases have checkpoints of.
const FAMILIES: [&str; 4] = ["glm4v", "glm4v_moe", "glm46v", "glm_ocr"];
const LOGITS: f32 = 5e-4;
const ACTIVATIONS: f64 = 1e-5;
const GRADIENTS: f64 = 5e-5;

fn model(folder: &Path) -> Glm4v {
    load(folder, &backend().open().unwrap())
}

fn load(folder: &Path, device: &Device) -> Glm4v {
    ModelFolder::open(folder).unwrap().load(device, Precision::F32).unwrap()
}

fn checkpoint(family: &str) -> std::path::PathBuf {
    golden().join("checkpoints").join(family)
}

/// A tiny checkpoint, ready to be trained.
fn trainable(family: &str) -> Glm4v {
    load(&checkpoint(family), &backend().open().unwrap().autodiff())
}

/// Members of the family that the golden set has cases of, `kind` as "forward"; the repository's own has most.
fn families(kind: &str) -> Vec<&'static str> {
    let found: Vec<&str> =
        FAMILIES.into_iter().filter(|family| golden().join(kind).join(family).is_dir()).collect();
    assert!(found.len() >= 2, "{kind}: {found:?}");
    found
}

/// Every forward case, with the model it belongs to.
fn forward_cases() -> impl Iterator<Item = (&'static str, Case, Glm4v)> {
    families("forward").into_iter().flat_map(|family| {
        let model = model(&checkpoint(family));
        Case::all(&format!("forward/{family}")).into_iter().map(move |case| (family, case, model.clone()))
    })
}

/// The part of `[B, S, ..]` values where the mask is set.
fn at_real_positions(data: &TensorData, real: &[bool]) -> Vec<f32> {
    let values = values_of(data);
    let width = values.len() / real.len();
    values.chunks(width).zip(real).filter(|(_, real)| **real).flat_map(|(row, _)| row.to_vec()).collect()
}

#[test]
fn logits_and_deltas_are_those_of_transformers() {
    for (family, case, model) in forward_cases() {
        let batch = case.batch();

        let difference = logits_difference(&case, &model);

        println!("{family} {}: logits differ by {difference:.1e}", case.name);
        assert!(difference < LOGITS, "{family} {}: logits differ by {difference}", case.name);
        if let Some((deltas, _)) = case.integers("out.rope_deltas") {
            assert_eq!(Positions::of(&batch, 2).unwrap().deltas, deltas, "{}", case.name);
        }
    }
}

/// The largest difference of a case's logits.
fn logits_difference(case: &Case, model: &Glm4v) -> f32 {
    let batch = case.batch();
    let logits = model.forward(&batch).unwrap().into_data();
    let real = |data| at_real_positions(data, &batch.attention_mask);
    max_difference(&real(&logits), &real(&case.float("out.logits")))
}

#[test]
fn activations_are_those_of_transformers() {
    for (family, case, model) in forward_cases() {
        let (difference, name) = worst_activation(&case, &model);
        println!("{family} {}: worst activation {difference:.1e} {name}", case.name);
        assert!(difference < ACTIVATIONS, "{family} {}: {name} differs by {difference:.1e}", case.name);
    }
}

/// The activation of a case that differs most, and by how much.
fn worst_activation(case: &Case, model: &Glm4v) -> (f64, String) {
    let batch = case.batch();
    let mut probe = Probe::on();

    let input = model.embed(&batch, &mut probe).unwrap();
    model.decode(input, None, &mut probe);

    let kept = probe.into_kept();
    let mut worst = (0.0, String::new());
    // transformers numbers the positions of text-only prompts by column, padding included; ours count real
    // tokens. Scores depend on distances alone, so only the tables differ.
    let text_only = batch.images.grids.is_empty() && batch.videos.grids.is_empty();
    for name in case.names("mid.") {
        let name = name.trim_start_matches("mid.");
        if name == "text.position_ids" || (text_only && name.starts_with("text.rotary")) {
            continue;
        }
        if let Some(gate) = name.strip_suffix(".indices") {
            check_choice(case, gate, &kept, &batch.attention_mask);
            continue;
        }
        if name.ends_with("gate.weights") {
            continue; // compared with the indices they belong to
        }
        let (_, found) = kept.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{name}"));
        let expected = case.float(&format!("mid.{name}"));
        let difference = if name.starts_with("text.") {
            let real = |data| at_real_positions(data, &batch.attention_mask);
            relative_l2(&real(found), &real(&expected))
        } else {
            relative_l2(&values_of(found), &values_of(&expected))
        };
        if difference > worst.0 {
            worst = (difference, name.to_owned());
        }
    }
    worst
}

/// The experts that tokens were sent to, and their weights, whatever the order within a token.
fn check_choice(case: &Case, gate: &str, kept: &[(String, TensorData)], real: &[bool]) {
    let of = |name: &str| &kept.iter().find(|(other, _)| other == name).unwrap().1;
    let weights = |data: &TensorData| at_real_positions(data, real);
    let (indices, shape) = case.integers(&format!("mid.{gate}.indices")).unwrap();
    let chosen = shape[1];
    let real_rows = indices.chunks(chosen).zip(real).filter(|(_, real)| **real);
    let expected: Vec<i64> = real_rows.flat_map(|(row, _)| row.to_vec()).collect();
    let found = of(&format!("{gate}.indices")).clone().convert::<i64>().try_to_vec::<i64>().unwrap();
    let found: Vec<i64> =
        found.chunks(chosen).zip(real).filter(|(_, real)| **real).flat_map(|(row, _)| row.to_vec()).collect();
    let expected_weights = weights(&case.float(&format!("mid.{gate}.weights")));
    let found_weights = weights(of(&format!("{gate}.weights")));
    let pairs = |indices: &[i64], weights: &[f32]| {
        let mut pairs: Vec<(i64, f32)> = indices.iter().copied().zip(weights.iter().copied()).collect();
        pairs.chunks_mut(chosen).for_each(|row| row.sort_by_key(|(index, _)| *index));
        pairs
    };
    for (found, expected) in pairs(&found, &found_weights).iter().zip(pairs(&expected, &expected_weights)) {
        assert_eq!(found.0, expected.0, "{}: {gate}", case.name);
        assert!((found.1 - expected.1).abs() < 1e-5, "{}: {gate}: {found:?}, not {expected:?}", case.name);
    }
}

#[test]
fn the_loss_of_uneven_experts_is_that_of_transformers() {
    let case = Case::open("train/glm4v_moe/loss_and_grads");
    let model = trainable("glm4v_moe");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let mut probe = Probe::of_routers();

    let input = model.embed(&batch, &mut probe).unwrap();
    model.decode(input, None, &mut probe);
    let chosen = model.config.text.moe.as_ref().unwrap().num_experts_per_tok;
    let logits = probe.into_routers();
    let loss = load_balancing_loss(&logits, &batch.attention_mask, chosen).unwrap();

    let expected = case.meta["aux_loss"].as_f64().unwrap();
    let found = f64::from(loss.clone().into_scalar::<f32>());
    // A token between two experts that are as good as equal may fall to the other on a GPU: a count, so a step.
    let allowed = if matches!(backend(), Backend::Cpu) { 1e-5 } else { 5e-3 };
    assert!((found - expected).abs() < allowed, "{found}, not {expected}");
    let gradients = NamedGradients::take(&model, loss.backward());
    let names: Vec<&str> = gradients.names().filter(|name| name.ends_with("mlp.gate.weight")).collect();
    assert_eq!(names.len(), 2, "the loss reaches the routers of both layers with experts");
}

#[test]
fn the_older_style_of_config_makes_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let original = golden().join("checkpoints/glm4v");
    for (from, to) in [("config_legacy.json", "config.json"), ("model.safetensors", "model.safetensors")] {
        std::fs::copy(original.join(from), folder.path().join(to)).unwrap();
    }
    let (new, old) = (model(&original), model(folder.path()));

    assert_eq!(new.config, old.config);
    let batch = Case::open("forward/glm4v/image_single").batch();
    assert_eq!(new.forward(&batch).unwrap().into_data(), old.forward(&batch).unwrap().into_data());
}

#[test]
fn positions_of_random_layouts_are_those_of_transformers() {
    let table = std::fs::read_to_string(golden().join("rope/get_rope_index.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&table).unwrap();
    assert!(cases.len() > 20);
    for (index, case) in cases.iter().enumerate() {
        let rows =
            |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(case[key].clone()).unwrap_or_default() };
        let flat = |key: &str| rows(key).concat();
        let ids = rows("input_ids");
        let (count, width) = (ids.len(), ids[0].len());
        let mask = match case["attention_mask"].is_null() {
            true => vec![1; count * width],
            false => flat("attention_mask"),
        };
        let grids = |key: &str| {
            let grids = rows(key);
            glm4v_model::Patches {
                values: vec![],
                grids: grids
                    .iter()
                    .map(|g| glm4v_model::Grid::new(g[0] as usize, g[1] as usize, g[2] as usize))
                    .collect(),
            }
        };
        let kinds: Vec<u8> = flat("mm_token_type_ids").iter().map(|kind| *kind as u8).collect();
        let sample = glm4v_model::Sample::from_parts(
            vec![0; kinds.len()],
            &kinds,
            vec![],
            (vec![], &[]),
            (vec![], &[]),
        );
        let batch = glm4v_model::Batch {
            shape: [count, width],
            input_ids: sample.input_ids,
            kinds: sample.kinds,
            attention_mask: mask.iter().map(|real| *real == 1).collect(),
            loss_mask: vec![false; count * width],
            images: grids("image_grid_thw"),
            videos: grids("video_grid_thw"),
        };

        let positions = Positions::of(&batch, 2).unwrap();

        let expected: Vec<Vec<Vec<i64>>> = serde_json::from_value(case["position_ids"].clone()).unwrap();
        for (axis, (found, expected)) in positions.axes.iter().zip(&expected).enumerate() {
            assert_eq!(*found, expected.concat(), "case {index}, axis {axis}");
        }
        assert_eq!(positions.deltas, flat("rope_deltas"), "case {index}");
    }
}

#[test]
fn loss_and_every_gradient_are_those_of_torch() {
    for family in families("train") {
        let differences = gradient_differences(family);
        println!("{family}: worst gradient {:.1e} {}", differences.whole.0, differences.whole.1);
        differences.check();
    }
}

/// What transformers calls the tensor that a parameter is part of: it stacks the experts of a layer.
fn stacked(name: &str) -> String {
    let Some((before, after)) = name.split_once(".mlp.experts.") else { return name.to_owned() };
    let kind = after.split('.').nth(1).unwrap();
    format!("{before}.mlp.experts.{kind}")
}

/// How far loss and gradients of a family are from torch.
struct GradientDifferences {
    loss: f64,
    /// Of the norm over all gradients, relative.
    total: f64,
    /// The norm of one gradient that differs most, relative.
    norm: (f64, String),
    /// The gradient that differs most, relative L2.
    whole: (f64, String),
}

impl GradientDifferences {
    fn check(&self) {
        assert!(self.loss < 1e-4, "loss differs by {:.1e}", self.loss);
        assert!(self.total < 2e-5, "norm of all gradients differs by {:.1e}", self.total);
        for (difference, name) in [&self.norm, &self.whole] {
            assert!(*difference < GRADIENTS, "{name}: gradient differs by {difference:.1e}");
        }
    }
}

fn gradient_differences(family: &str) -> GradientDifferences {
    let case = Case::open(&format!("train/{family}/loss_and_grads"));
    let model = trainable(family);
    let batch = Case::open("train/glm4v/loss_and_grads").batch(); // the same for every family
    let targets = Targets::of(&batch);

    let loss = loss(&model, &batch, &targets).unwrap();
    let gradients = loss.backward();

    let expected = |key: &str| case.meta[key].as_f64().unwrap();
    let found = f64::from(loss.into_scalar::<f32>());
    let mut gradients = NamedGradients::take(&model, gradients);
    let total = f64::from(gradients.norm().unwrap().into_scalar::<f32>());
    let mut out = GradientDifferences {
        loss: (found - expected("loss")).abs(),
        total: (total / expected("grad_total_norm") - 1.0).abs(),
        norm: (0.0, String::new()),
        whole: (0.0, String::new()),
    };
    let norms = case.meta["grad_norms"].as_object().unwrap();
    let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for name in gradients.names().map(str::to_owned).collect::<Vec<_>>() {
        let values = gradients.remove(&name).unwrap().into_data().try_to_vec::<f32>().unwrap();
        found.entry(stacked(&name)).or_default().extend(values);
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), norms.keys().collect::<Vec<_>>());
    let keep = |worst: &mut (f64, String), difference: f64, name: &str| {
        if difference.is_nan() || difference > worst.0 {
            *worst = (difference, name.to_owned());
        }
    };
    for (name, found) in found {
        let norm = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        keep(&mut out.norm, (norm / norms[&name]["l2"].as_f64().unwrap() - 1.0).abs(), &name);
        let whole = format!("grad.{name}");
        if !case.names(&whole).is_empty() {
            keep(&mut out.whole, relative_l2(&found, &values_of(&case.float(&whole))), &name);
        }
    }
    out
}

/// Prints the rows of docs/PARITY.md.
#[test]
#[ignore = "prints a table; the command is in docs/PARITY.md"]
fn table() {
    let backend = backend();
    println!(
        "| family | backend | cases | logits, largest difference | activations, relative L2 | gradients, relative L2 |"
    );
    println!("|---|---|---|---|---|---|");
    for family in families("forward") {
        let model = model(&checkpoint(family));
        let cases = Case::all(&format!("forward/{family}"));
        let logits = cases.iter().map(|case| logits_difference(case, &model)).fold(0.0, f32::max);
        let activation = cases.iter().map(|case| worst_activation(case, &model).0).fold(0.0, f64::max);
        let gradient = match golden().join("train").join(family).is_dir() {
            true => format!("{:.1e}", gradient_differences(family).whole.0),
            false => "no case".to_owned(),
        };
        println!(
            "| `{family}` | {backend} | {} | {logits:.1e} | {activation:.1e} | {gradient} |",
            cases.len()
        );
    }
}

#[test]
fn the_loss_at_label_positions_is_that_of_the_whole_sequence() {
    let model = trainable("glm4v");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let targets = Targets::of(&batch);

    let chosen = loss(&model, &batch, &targets).unwrap().into_scalar::<f32>();
    let logits = model.forward(&batch).unwrap();
    let [rows, width, vocabulary] = logits.dims();
    let all = logits.reshape([rows * width, vocabulary]);
    let picked = Tensor::cat(targets.slots.iter().map(|slot| all.clone().narrow(0, *slot, 1)).collect(), 0);
    let whole = cross_entropy(picked, &targets.ids).into_scalar::<f32>();

    assert!((chosen - whole).abs() < 1e-5, "{chosen}, {whole}");
}

/// Parameters of a network on the host, by name.
fn parameters(model: &Glm4v) -> BTreeMap<String, Vec<f32>> {
    struct Reader(BTreeMap<String, Vec<f32>>);
    impl NamedVisitor for Reader {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            self.0.insert(name.to_owned(), param.val().into_data().try_to_vec().unwrap());
        }
    }
    let mut reader = Reader(BTreeMap::new());
    visit_named(model, &mut reader);
    reader.0
}

/// Gradients of one value for parameters.
fn gradients(model: &Glm4v, value: f32, of: impl Fn(&str) -> bool) -> NamedGradients {
    let device = model.device().inner();
    let gradient = |(name, values): (String, Vec<f32>)| {
        (name, Tensor::from_data(TensorData::new(vec![value; values.len()], [values.len()]), &device))
    };
    parameters(model).into_iter().filter(|(name, _)| of(name)).map(gradient).collect()
}

/// PEFT takes these names for experts, see `check_published`.
#[test]
fn an_adapter_that_peft_would_misread_is_refused_before_it_is_trained() {
    let attached = |family: &str, config: AdapterConfig| {
        let config = AdapterConfig { r: 2, ..config };
        attach(trainable(family), &config, 0, Precision::F32).map(|(_, modules)| modules.len())
    };
    let modules = |names: &[&str]| AdapterConfig {
        target_modules: Some(Names::List(names.iter().map(|name| (*name).to_owned()).collect())),
        ..AdapterConfig::new(2, 4.0)
    };
    let all = || AdapterConfig {
        target_modules: Some(Names::Pattern("all-linear".into())),
        ..AdapterConfig::new(2, 4.0)
    };
    for (config, module) in [
        (all(), "model.language_model.layers.*.mlp.down_proj"),
        (modules(&["down_proj"]), "model.language_model.layers.*.mlp.shared_experts.down_proj"),
        (modules(&["model.visual.merger.gate_proj"]), "adapters on model.visual.merger.gate_proj;"),
    ] {
        let error = attached("glm4v_moe", config).unwrap_err().to_string();
        assert!(error.contains(module) && error.contains("target_parameters = ["), "{error}");
    }
    assert!(attached("glm4v_moe", modules(&["q_proj", "qkv"])).unwrap() > 0);
    assert!(attached("glm4v", all()).unwrap() > 0);
    let both = AdapterConfig { modules_to_save: Some(vec!["_proj".into()]), ..modules(&["q_proj"]) };
    let error = attached("glm4v", both).unwrap_err().to_string();
    assert!(error.contains("q_proj has an adapter and belongs to modules_to_save"), "{error}");
}

/// A head that is tied to the embeddings learns with them, here and in PEFT, where `ensure_weight_tying` says so.
#[test]
fn tied_embeddings_are_kept_whole_under_both_names_or_not_at_all() {
    let device = backend().open().unwrap().autodiff();
    let tied = || {
        let mut config = trainable("glm4v").config.clone();
        config.tie_word_embeddings = true;
        glm4v_model::initialize(config.init(&device), 7, Precision::F32.dtype())
    };
    let config = AdapterConfig {
        target_modules: Some(Names::List(vec!["q_proj".into()])),
        modules_to_save: Some(vec!["embed_tokens".into()]),
        ..AdapterConfig::new(2, 4.0)
    };
    let error = attach(tied(), &config, 0, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("ensure_weight_tying"), "{error}");

    let config = AdapterConfig { ensure_weight_tying: true, ..config };
    let (model, _) = attach(tied(), &config, 0, Precision::F32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_adapter(&model, &config, folder.path()).unwrap();

    let file = TensorFile::open(&folder.path().join("adapter_model.safetensors")).unwrap();
    let table = |name: &str| {
        values_of(&file.float(&format!("base_model.model.{name}"), Precision::F32.dtype()).unwrap())
    };
    assert_eq!(table("lm_head.weight"), table("model.language_model.embed_tokens.weight"));
    let again = AdapterFolder::open(folder.path()).unwrap().apply(tied(), Precision::F32).unwrap();
    assert_eq!(parameters(&again), parameters(&model));
}

/// In torch each parameter counts its own steps: the first step of any moves by the rate, whenever it comes.
#[test]
fn adamw_moves_a_parameter_by_the_rate_when_its_first_gradient_comes_late() {
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let (mut model, mut optimizer) = (trainable("glm4v"), AdamW::new(settings));
    let vision = |name: &str| name.starts_with("model.visual.");
    for _ in 0..3 {
        let of_text = gradients(&model, 0.5, |name| !vision(name));
        model = optimizer.step(model, of_text, 1e-3, 1.0);
    }
    let before = parameters(&model);
    // The state comes back from a file with every count.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    optimizer.save(&path).unwrap();
    let mut optimizer = AdamW::load(settings, &path, &model).unwrap();

    let of_all = gradients(&model, 0.5, |_| true);
    let model = optimizer.step(model, of_all, 1e-3, 1.0);

    for (name, after) in parameters(&model) {
        let moved = before[&name].iter().zip(&after).map(|(before, after)| before - after);
        let (least, most) = moved.fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(x), b.max(x)));
        // Equal gradients: the first moment over the root of the second is 1 at every step.
        assert!(least > 0.99e-3 && most < 1.01e-3, "{name} moved by {least} to {most}");
    }
}

/// transformers keeps the experts of a layer in one tensor, whose gradient is zero for those that no token chose.
#[test]
fn an_expert_without_tokens_moves_as_if_its_gradient_were_zero() {
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 };
    let second = |name: &str| name.contains(".mlp.experts.1.");
    let stepped = |explicit: bool| {
        let (mut model, mut optimizer) = (trainable("glm4v_moe"), AdamW::new(settings));
        let all = gradients(&model, 0.5, |_| true);
        model = optimizer.step(model, all, 1e-3, 1.0);
        let mut names = gradients(&model, 0.25, |name| !second(name));
        if explicit {
            let zero = gradients(&model, 0.0, second);
            names = names.into_iter().chain(zero).collect();
        }
        optimizer.step(model, names, 1e-3, 1.0)
    };
    let (idle, zero) = (parameters(&stepped(false)), parameters(&stepped(true)));
    assert_eq!(idle, zero);
    assert!(idle.keys().any(|name| second(name)));

    // Where no expert of the layer has a gradient, as when text is frozen, none moves.
    let model = trainable("glm4v_moe");
    let before = parameters(&model);
    let of_vision = gradients(&model, 0.5, |name| name.starts_with("model.visual."));
    let after = parameters(&AdamW::new(settings).step(model, of_vision, 1e-3, 1.0));
    assert!(before.iter().filter(|(name, _)| second(name)).all(|(name, values)| after[name] == *values));
}

#[test]
fn five_steps_of_adamw_are_those_of_torch_with_and_without_clipping() {
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let targets = Targets::of(&batch);
    for name in ["adamw", "adamw_clip"] {
        let case = Case::open(&format!("train/glm4v/{name}"));
        let settings = &case.meta["optimizer"];
        let number = |key: &str| settings[key].as_f64();
        let mut optimizer = AdamW::new(AdamWConfig {
            betas: [0.9, 0.999],
            eps: number("eps").unwrap(),
            weight_decay: number("weight_decay").unwrap(),
        });
        let mut model = trainable("glm4v");
        let losses: Vec<f64> = serde_json::from_value(case.meta["losses"].clone()).unwrap();
        let totals: Vec<f64> =
            serde_json::from_value(case.meta["grad_total_norms_before_clip"].clone()).unwrap();
        for step in 1..=5 {
            let loss = loss(&model, &batch, &targets).unwrap();
            let gradients = NamedGradients::take(&model, loss.backward());
            let found = f64::from(loss.into_scalar::<f32>());
            assert!((found - losses[step - 1]).abs() < 2e-3, "{name}, step {step}: {found}");
            let mut scale = 1.0;
            if let Some(most) = number("clip_norm") {
                let norm = f64::from(gradients.norm().unwrap().into_scalar::<f32>());
                let expected = totals[step - 1];
                assert!((norm / expected - 1.0).abs() < 5e-3, "{name}, step {step}: {norm}, not {expected}");
                scale = (most / (norm + 1e-6)).min(1.0);
            }
            model = optimizer.step(model, gradients, number("lr").unwrap(), scale);
            if step == 1 {
                // One step moves a weight by about the rate, whichever way its gradient points: compare the
                // moves, where gradients are not so small that their sign is noise.
                for (name, found) in parameters(&model) {
                    let stored = format!("step1.{name}");
                    // A key's bias shifts all scores of a query alike wherever it is not rotated: no gradient but
                    // rounding, whose sign decides the first step.
                    if case.names(&stored).contains(&stored) && !name.ends_with("k_proj.bias") {
                        let difference = relative_l2(&found, &values_of(&case.float(&stored)));
                        assert!(difference < 1e-4, "{name} after step 1 differs by {difference:.1e}");
                    }
                }
            }
        }
        let norms = case.meta["param_norms"]["5"].as_object().unwrap();
        for (name, found) in parameters(&model) {
            let norm = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let expected = norms[&name]["l2"].as_f64().unwrap();
            // The noise in a key's bias, see above, has moved it by up to five steps.
            let tolerance = if name.ends_with("k_proj.bias") { 1e-2 } else { 1e-3 };
            assert!(
                (norm / expected - 1.0).abs() < tolerance,
                "{name} after step 5: norm {norm}, not {expected}"
            );
        }
    }
}

#[test]
fn rates_are_those_of_transformers() {
    let text = std::fs::read_to_string(golden().join("train/glm4v/schedules.json")).unwrap();
    let table: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, kind) in [
        ("cosine", ScheduleKind::Cosine),
        ("linear", ScheduleKind::Linear),
        ("constant_with_warmup", ScheduleKind::Constant),
    ] {
        let schedule = Schedule { kind, lr: 3e-4, warmup_steps: 5, steps: 40 };
        let rates: Vec<f64> = serde_json::from_value(table["rates"][name].clone()).unwrap();
        // Beyond the last step a cosine would rise again; no run goes there.
        for (step, expected) in rates.iter().enumerate().take(41) {
            let found = schedule.rate(step);
            assert!((found - expected).abs() < 1e-12, "{name}, step {step}: {found}, not {expected}");
        }
    }
}

#[test]
fn greedy_answers_are_those_of_transformers_token_for_token() {
    for family in families("generate") {
        check_greedy(family);
    }
}

fn check_greedy(family: &str) {
    let model = model(&checkpoint(family));
    for case in Case::all(&format!("generate/{family}")) {
        let batch = case.batch();
        let (expected, shape) = case.integers("out.sequences").unwrap();
        let new = shape[1] - batch.shape[1];
        let mut config = GenerationConfig::greedy(&model.config, new);
        config.stop_ids = case.meta["stop"].as_u64().map(|id| vec![id as u32]).unwrap_or_default();

        let answers = generate(&model, &batch, &config, |_, _| ControlFlow::Continue(())).unwrap();

        for (row, answer) in answers.iter().enumerate() {
            let expected = &expected[row * shape[1] + batch.shape[1]..(row + 1) * shape[1]];
            let found: Vec<i64> = answer.ids.iter().map(|id| i64::from(*id)).collect();
            // transformers fills a row that stopped early with the padding token.
            let (answer, filling) = expected.split_at(found.len());
            assert_eq!(found, answer, "{} row {row}", case.name);
            assert!(filling.iter().all(|id| *id == 1150), "{} row {row}: stopped too early", case.name);
        }
    }
}

/// The tiny checkpoint with the adapter of a folder, ready to be trained.
fn adapted(adapter: &str) -> Glm4v {
    let folder = AdapterFolder::open(&golden().join("lora").join(adapter)).unwrap();
    let model = folder.apply(trainable("glm4v"), Precision::F32).unwrap();
    freeze_all_but(model, folder.config()).0
}

#[test]
fn an_adapter_of_peft_computes_and_learns_what_it_does_there() {
    let case = Case::open("lora/lora");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let targets = Targets::of(&batch);
    let mut model = adapted("adapter");
    let near = |model: &Glm4v, name: &str| {
        let logits = model.forward(&batch).unwrap().inner().into_data();
        let real = |data| at_real_positions(data, &batch.attention_mask);
        max_difference(&real(&logits), &real(&case.float(name)))
    };
    let difference = near(&model, "out.logits");
    println!("logits differ by {difference:.1e}");
    assert!(difference < LOGITS, "logits differ by {difference}");

    let mut gradients = NamedGradients::take(&model, loss(&model, &batch, &targets).unwrap().backward());
    let mut expected: Vec<String> =
        case.names("grad.").iter().map(|name| name.trim_start_matches("grad.").to_owned()).collect();
    expected.sort();
    let ours = |name: &str| name.replace(".lora_A.weight", ".lora.a").replace(".lora_B.weight", ".lora.b");
    assert_eq!(
        gradients.names().map(str::to_owned).collect::<Vec<_>>(),
        expected.iter().map(|name| ours(name)).collect::<Vec<_>>(),
        "the adapter learns, and nothing else"
    );
    for name in &expected {
        let found = gradients.remove(&ours(name)).unwrap().into_data().try_to_vec::<f32>().unwrap();
        let difference = relative_l2(&found, &values_of(&case.float(&format!("grad.{name}"))));
        assert!(difference < GRADIENTS, "{name}: gradient differs by {difference:.1e}");
    }

    let losses: Vec<f64> = serde_json::from_value(case.meta["losses"].clone()).unwrap();
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(settings);
    for (step, expected) in losses.iter().enumerate() {
        let loss = loss(&model, &batch, &targets).unwrap();
        let found = f64::from(loss.clone().into_scalar::<f32>());
        assert!((found - expected).abs() < 2e-3, "after {step} steps: {found}, not {expected}");
        if step < 3 {
            let gradients = NamedGradients::take(&model, loss.backward());
            model = optimizer.step(model, gradients, 0.01, 1.0);
        }
    }
    let difference = near(&model, "out.logits_after_3_steps");
    println!("logits after 3 steps differ by {difference:.1e}");
    assert!(difference < 5e-3, "logits after 3 steps differ by {difference}");
    let difference = near(&adapted("adapter_after_3_steps"), "out.logits_after_3_steps");
    assert!(difference < LOGITS, "logits of the saved adapter differ by {difference}");
    let difference = near(&model.clone().merge_adapters(), "out.logits_after_3_steps");
    assert!(difference < 5e-3, "logits of the merged model differ by {difference}");
}

#[test]
fn an_adapter_is_the_same_after_it_was_saved() {
    for (family, config) in [
        (
            "glm4v",
            AdapterConfig {
                target_modules: Some(Names::Pattern("all-linear".into())),
                ..AdapterConfig::new(3, 6.0)
            },
        ),
        (
            "glm4v_moe",
            AdapterConfig {
                target_modules: Some(Names::List(vec!["q_proj".into(), "attn.qkv".into()])),
                target_parameters: Some(vec![
                    "mlp.experts.gate_up_proj".into(),
                    "mlp.experts.down_proj".into(),
                ]),
                modules_to_save: Some(vec!["lm_head".into()]),
                use_rslora: true,
                ..AdapterConfig::new(2, 3.0)
            },
        ),
        (
            "glm_ocr",
            AdapterConfig {
                target_modules: Some(Names::Pattern(r"model\.visual\..*(qkv|gate_proj)".into())),
                ..AdapterConfig::new(2, 3.0)
            },
        ),
    ] {
        let batch = Case::open("train/glm4v/loss_and_grads").batch();
        let (model, names) = attach(trainable(family), &config, 3, Precision::F32).unwrap();
        assert!(!names.is_empty());
        let (mut model, _) = freeze_all_but(model, &config);
        // One step, so that no factor is zero.
        let targets = Targets::of(&batch);
        for _ in 0..2 {
            let gradients = NamedGradients::take(&model, loss(&model, &batch, &targets).unwrap().backward());
            let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
            model = AdamW::new(settings).step(model, gradients, 0.01, 1.0);
        }
        let folder = tempfile::tempdir().unwrap();

        save_adapter(&model, &config, folder.path()).unwrap();

        let again =
            AdapterFolder::open(folder.path()).unwrap().apply(trainable(family), Precision::F32).unwrap();
        let logits = |model: &Glm4v| values_of(&model.forward(&batch).unwrap().inner().into_data());
        assert_eq!(max_difference(&logits(&again), &logits(&model)), 0.0, "{family}");
        assert!(max_difference(&logits(&again), &logits(&trainable(family))) > 0.1, "{family}");
        let difference = max_difference(&logits(&again.merge_adapters()), &logits(&model));
        println!("{family}: merged and unmerged differ by {difference:.1e}");
        assert!(difference < LOGITS, "{family}: merged and unmerged differ by {difference}");
    }
}

#[test]
fn a_network_in_pieces_computes_learns_and_is_saved_as_the_whole_one() {
    let folder = ModelFolder::open(&checkpoint("glm4v")).unwrap();
    let device = backend().open().unwrap().autodiff();
    // The patch convolution takes 301,056 bytes and cannot be split; the token table and the head take 460,800.
    let site = Site::bounded(&device, 302_000, Precision::F32.dtype());
    let model = folder.load_on(&site, Precision::F32, &mut |_, _| {}).unwrap();
    assert!(parameters(&model).contains_key("lm_head.weight.1"), "the head is in pieces");
    assert!(parameters(&model).contains_key("model.language_model.embed_tokens.weight.1"));
    let case = Case::open("forward/glm4v/image_single");
    let batch = case.batch();

    let logits = model.forward(&batch).unwrap().inner().into_data();

    let difference = max_difference(&values_of(&logits), &values_of(&case.float("out.logits")));
    assert!(difference < LOGITS, "logits differ by {difference}");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let targets = Targets::of(&batch);
    let moved = |model: Glm4v| {
        let gradients = NamedGradients::take(&model, loss(&model, &batch, &targets).unwrap().backward());
        let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
        let model = AdamW::new(settings).step(model, gradients, 1e-3, 1.0);
        let saved = tempfile::tempdir().unwrap();
        save_model(&model, folder.path(), saved.path(), Precision::F32).unwrap();
        let file = TensorFile::open(&saved.path().join("model.safetensors")).unwrap();
        let read =
            |name: &String| (name.clone(), values_of(&file.float(name, Precision::F32.dtype()).unwrap()));
        file.names().iter().map(read).collect::<BTreeMap<_, _>>()
    };
    let (pieces, whole) = (moved(model), moved(trainable("glm4v")));
    assert_eq!(pieces.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    for (name, found) in pieces {
        let difference = relative_l2(&found, &whole[&name]);
        // The sign of a key bias's gradient is noise, see above.
        assert!(difference < 1e-4 || name.ends_with("k_proj.bias"), "{name} differs by {difference:.1e}");
    }
}
