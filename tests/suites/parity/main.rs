//! Numbers against transformers: see `fixtures/README.md` for how the cases were made.
//!
//! Tolerances: logits 5e-4, activations 1e-5 and gradients 5e-5 relative. transformers itself moves by up to 4.8e-5
//! in logits between its two attention implementations, and logits here have a deviation of 2.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod adapters;
mod forward;
mod generation;
mod gradients;
mod optimizer;
mod packing;
mod sharding;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::text::load_balancing_loss;
use glm4v_model::{
    ActivationRecorder, Backend, Batch, CausalLm, DecoderOptions, DecoderOutput, DeviceSpec, Glm4v, Modality,
    MultimodalInputs, NamedVisitor, Patches, PositionIds, Precision, visit_named,
};
use glm4v_tests::{Case, backend, golden, grids_from_thw, max_difference, relative_l2, values_of};
use glm4v_train::{
    AdamW, AdamWConfig, NamedGradients, Schedule, ScheduleKind, Trainer, TrainerConfig, causal_lm_loss,
    cross_entropy, mark_only_adapters_as_trainable,
};
use glm4v_weights::{
    AdapterConfig, AdapterFolder, ModelFolder, TargetModules, TensorFile, add_adapter, save_adapter,
    save_model,
};

/// Families with a golden checkpoint.
const FAMILIES: [&str; 4] = ["glm4v", "glm4v_moe", "glm46v", "glm_ocr"];

/// Tolerance of logits, absolute.
const LOGITS: f32 = 5e-4;
/// Tolerance of activations, relative L2.
const ACTIVATIONS: f64 = 1e-5;
/// Tolerance of gradients, relative L2.
const GRADIENTS: f64 = 5e-5;

fn model(dir: &Path) -> Glm4v {
    load(dir, &backend().open().unwrap())
}

fn load(dir: &Path, device: &Device) -> Glm4v {
    ModelFolder::open(dir).unwrap().load(device, Precision::F32).unwrap()
}

fn checkpoint(family: &str) -> PathBuf {
    golden().join("checkpoints").join(family)
}

/// A golden checkpoint on an autodiff device.
fn trainable(family: &str) -> Glm4v {
    load(&checkpoint(family), &backend().open().unwrap().autodiff())
}

/// Families with golden cases of a kind, such as "forward"; at least two.
fn families(kind: &str) -> Vec<&'static str> {
    let found: Vec<&str> =
        FAMILIES.into_iter().filter(|family| golden().join(kind).join(family).is_dir()).collect();
    assert!(found.len() >= 2, "{kind}: {found:?}");
    found
}

/// All forward cases, each with its model.
fn forward_cases() -> impl Iterator<Item = (&'static str, Case, Glm4v)> {
    families("forward").into_iter().flat_map(|family| {
        let model = model(&checkpoint(family));
        Case::all(&format!("forward/{family}")).into_iter().map(move |case| (family, case, model.clone()))
    })
}

/// The values of `[B, S, ..]` at positions where the attention mask is set.
fn at_unpadded_positions(data: &TensorData, mask: &[bool]) -> Vec<f32> {
    let values = values_of(data);
    let width = values.len() / mask.len();
    values.chunks(width).zip(mask).filter(|(_, keep)| **keep).flat_map(|(row, _)| row.to_vec()).collect()
}

/// Values of all parameters, by name.
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

#[test]
#[ignore = "prints a table; the command is in docs/PARITY.md"]
fn print_the_table_of_docs_parity_md() {
    let backend = backend();
    println!(
        "| family | backend | cases | logits, largest difference | activations, relative L2 | gradients, relative L2 |"
    );
    println!("|---|---|---|---|---|---|");
    for family in families("forward") {
        let model = model(&checkpoint(family));
        let cases = Case::all(&format!("forward/{family}"));
        let logits = cases.iter().map(|case| forward::logits_difference(case, &model)).fold(0.0, f32::max);
        let activation =
            cases.iter().map(|case| forward::worst_activation(case, &model).0).fold(0.0, f64::max);
        let gradient = match golden().join("train").join(family).is_dir() {
            true => format!("{:.1e}", gradients::gradient_differences(family).whole.0),
            false => "no case".to_owned(),
        };
        println!(
            "| `{family}` | {backend} | {} | {logits:.1e} | {activation:.1e} | {gradient} |",
            cases.len()
        );
    }
}
