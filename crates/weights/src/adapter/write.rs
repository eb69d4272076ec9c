//! Saving of adapters for PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::{Glm4v, NamedVisitor, ParamName, visit_named};
use serde_json::json;

use super::config::{AdapterConfig, CONFIG, TargetModules};
use super::modules_to_save::excluded_by_modules_to_save;
use super::peft_names::{EXPERTS, PREFIX, peft_name};
use super::read::TENSORS;
use super::targets::{MatchedModules, check_peft_reads, match_modules};
use crate::atomic::write_file;
use crate::dtype::cast_floats;
use crate::error::WeightsError;
use crate::names;
use crate::write::write_tensors;

/// Saves the LoRA factors of a network and the parameters of `modules_to_save` to `dir`, in f32.
///
/// `dir` must exist: use an [`AtomicDir`](crate::AtomicDir) to have it appear complete or not at all.
///
/// # Errors
///
/// When a target matches nothing, or a file cannot be written.
pub fn save_adapter(model: &Glm4v, config: &AdapterConfig, dir: &Path) -> Result<(), WeightsError> {
    let mut collector = TrainableCollector { config, tensors: BTreeMap::new() };
    visit_named(model, &mut collector);
    let mut tensors = collector.tensors;
    // PEFT writes tied embeddings under both names.
    if let (None, Some(table)) = (&model.lm_head, tensors.get(names::EMBEDDING)) {
        tensors.insert(names::HEAD.to_owned(), table.clone());
    }
    let tensors = peft_tensors(tensors);
    let config = peft_config(config, model)?;
    let json = serde_json::to_string_pretty(&config).expect("a config has no keys or values that json lacks");
    write_tensors(&dir.join(TENSORS), tensors, &[])?;
    write_file(&dir.join(CONFIG), format!("{json}\n").as_bytes())
}

/// Copies the trainable parameters to the host.
struct TrainableCollector<'a> {
    config: &'a AdapterConfig,
    tensors: BTreeMap<String, TensorData>,
}

impl NamedVisitor for TrainableCollector<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if self.config.is_trainable(name) {
            let data = cast_floats(param.val().into_data(), DType::F32);
            // Row shards are visited in order.
            let full = ParamName(name).shard().0;
            let joined = match self.tensors.remove(full) {
                Some(before) => concat_rows(before, data),
                None => data,
            };
            self.tensors.insert(full.to_owned(), joined);
        }
    }
}

fn concat_rows(above: TensorData, below: TensorData) -> TensorData {
    let mut shape = above.shape().to_vec();
    shape[0] += below.shape().to_vec()[0];
    TensorData::from_bytes_vec([above.as_bytes(), below.as_bytes()].concat(), shape, DType::F32)
}

/// Renames tensors to PEFT's names, and stacks the factors of experts.
fn peft_tensors(tensors: BTreeMap<String, TensorData>) -> Vec<(String, TensorData)> {
    let mut out = Vec::new();
    let mut stacks: BTreeMap<(String, &str), BTreeMap<usize, TensorData>> = BTreeMap::new();
    for (name, data) in tensors {
        let (module, factor) = match (name.strip_suffix(".lora.a"), name.strip_suffix(".lora.b")) {
            (Some(module), _) => (module, "lora_A"),
            (_, Some(module)) => (module, "lora_B"),
            _ => {
                out.push((format!("{PREFIX}{name}"), data));
                continue;
            }
        };
        match module.split_once(EXPERTS).and_then(|(_, expert)| expert.split_once('.')) {
            Some((number, _)) => {
                let stack = stacks.entry((peft_name(module), factor)).or_default();
                stack.insert(number.parse().unwrap_or_default(), data);
            }
            None => out.push((format!("{PREFIX}{module}.{factor}.weight"), data)),
        }
    }
    let modules: BTreeSet<String> = stacks.keys().map(|(module, _)| module.clone()).collect();
    for ((module, factor), experts) in stacks {
        let (stack, projection) = module.rsplit_once('.').unwrap_or((&module, ""));
        let both = modules.contains(&format!("{stack}.down_proj"));
        let inner = if projection == "gate_up_proj" && both { ".base_layer" } else { "" };
        let data = if factor == "lora_A" { stack_a(experts) } else { stack_b(experts) };
        out.push((format!("{PREFIX}{stack}{inner}.{factor}.weight"), data));
    }
    out
}

fn matrix_values(data: TensorData) -> (Vec<f32>, [usize; 2]) {
    let shape = data.shape().to_vec();
    (data.try_to_vec().expect("collected in f32"), [shape[0], shape[1]])
}

/// `[r, in]` of each expert to `[E · r, in]`.
fn stack_a(experts: BTreeMap<usize, TensorData>) -> TensorData {
    let mut values = Vec::new();
    let (mut rows, mut d_input) = (0, 0);
    for (more, [r, columns]) in experts.into_values().map(matrix_values) {
        values.extend(more);
        rows += r;
        d_input = columns;
    }
    TensorData::new(values, [rows, d_input])
}

/// `[out, r]` of each expert to `[out, r · E]`, with the expert as the fastest index.
fn stack_b(experts: BTreeMap<usize, TensorData>) -> TensorData {
    let count = experts.len();
    let parts: Vec<(Vec<f32>, [usize; 2])> = experts.into_values().map(matrix_values).collect();
    let [out, rank] = parts.first().map_or([0, 0], |(_, shape)| *shape);
    let mut values = Vec::with_capacity(out * rank * count);
    for row in 0..out {
        for j in 0..rank {
            values.extend(parts.iter().map(|(part, _)| part[row * rank + j]));
        }
    }
    TensorData::new(values, [out, rank * count])
}

/// The config with which PEFT finds the modules that have factors.
fn peft_config(config: &AdapterConfig, model: &Glm4v) -> Result<AdapterConfig, WeightsError> {
    let mut model = model.clone(); // tensors are shared
    let matched = match_modules(config, &mut model)?;
    check_peft_reads(&matched, model.config.architecture)?;
    let modules = target_modules(config, &matched);
    let parameters = target_parameters(&matched);
    let mut written = AdapterConfig {
        target_modules: (!modules.is_empty()).then_some(TargetModules::List(modules)),
        target_parameters: (!parameters.is_empty()).then(|| parameters.into_iter().collect()),
        exclude_modules: None,
        ..config.clone()
    };
    write_ranks(&mut written, &matched, &mut model);
    for (key, value) in [
        ("task_type", json!("CAUSAL_LM")),
        ("inference_mode", json!(true)),
        ("use_dora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("lora_bias", json!(false)),
        ("init_lora_weights", json!(true)),
    ] {
        written.rest.entry(key.to_owned()).or_insert(value);
    }
    Ok(written)
}

/// The matched linear layers: by their last components if these match no other layer, else by their full names.
fn target_modules(config: &AdapterConfig, matched: &MatchedModules) -> Vec<String> {
    let full: Vec<&String> = matched.targets.keys().filter(|name| !name.contains(EXPERTS)).collect();
    let short: BTreeSet<&str> = full.iter().filter_map(|name| name.rsplit('.').next()).collect();
    let matched_by_short = matched.candidates.iter().filter(|name| {
        !name.contains(EXPERTS)
            && name.rsplit('.').next().is_some_and(|last| short.contains(last))
            && !excluded_by_modules_to_save(config, name)
    });
    // `proj` is also the patch convolution, which PEFT would adapt too.
    if !short.contains("proj") && matched_by_short.collect::<Vec<_>>() == full {
        return short.into_iter().map(str::to_owned).collect();
    }
    full.into_iter().cloned().collect()
}

/// The matched projections of experts.
fn target_parameters(matched: &MatchedModules) -> BTreeSet<String> {
    let experts = matched.targets.keys().filter(|name| name.contains(EXPERTS));
    let projections = experts.filter_map(|name| name.rsplit('.').next());
    projections.map(|projection| format!("mlp.experts.{projection}")).collect()
}

/// Adds patterns for layers whose rank differs from the config's, as that of an adapter whose gate and up projection were fused.
fn write_ranks(config: &mut AdapterConfig, matched: &MatchedModules, model: &mut Glm4v) {
    model.for_each_linear(|name, linear| {
        let name = peft_name(name);
        let (Some(lora), Some(by_config)) = (&linear.lora, matched.targets.get(&name)) else { return };
        let rank = lora.a.dims()[0];
        if rank == by_config.rank {
            return;
        }
        let divisor = if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        let pattern = fancy_regex::escape(&name).into_owned();
        // At the front, because the first matching key applies.
        config.rank_pattern.shift_insert(0, pattern.clone(), rank);
        config.alpha_pattern.shift_insert(0, pattern, lora.scale * divisor);
    });
}
