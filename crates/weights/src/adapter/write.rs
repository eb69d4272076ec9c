//! From a network to a PEFT folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::{Glm4v, NamedVisitor, visit_named};
use serde_json::json;

use super::config::{AdapterConfig, Names};
use super::targets::{check_published, is_replaced, pick, spoken_name};
use super::{CONFIG, PREFIX, TENSORS};
use crate::{WeightsError, floats, names, write_file, write_tensors};

/// Writes the adapters of a network, and what `modules_to_save` names, into `folder` in f32.
///
/// `folder` must exist; use a [`StagedFolder`](crate::StagedFolder) to have it appear whole.
///
/// # Errors
///
/// When the system refuses.
pub fn save_adapter(model: &Glm4v, config: &AdapterConfig, folder: &Path) -> Result<(), WeightsError> {
    let mut collector = Collector { config, tensors: BTreeMap::new() };
    visit_named(model, &mut collector);
    let mut tensors = collector.tensors;
    // As PEFT writes a table that the head is tied to.
    if let (None, Some(table)) = (&model.lm_head, tensors.get(names::EMBEDDING)) {
        tensors.insert(names::HEAD.to_owned(), table.clone());
    }
    let tensors = published(tensors);
    let said = published_config(config, model)?;
    let json = serde_json::to_string_pretty(&said).expect("a config has no keys or values that json lacks");
    write_tensors(&folder.join(TENSORS), tensors, &[])?;
    write_file(&folder.join(CONFIG), format!("{json}\n").as_bytes())
}

/// Copies what belongs to an adapter to the host, by our names.
struct Collector<'a> {
    config: &'a AdapterConfig,
    tensors: BTreeMap<String, TensorData>,
}

impl NamedVisitor for Collector<'_> {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if super::learns_with(self.config, name) {
            let data = floats(param.val().into_data(), DType::F32);
            // Pieces of a matrix come in the order of their rows.
            let joined = match self.tensors.remove(names::whole(name)) {
                Some(before) => below(before, data),
                None => data,
            };
            self.tensors.insert(names::whole(name).to_owned(), joined);
        }
    }
}

/// Two matrices one below the other.
fn below(above: TensorData, data: TensorData) -> TensorData {
    let mut shape = above.shape().to_vec();
    shape[0] += data.shape().to_vec()[0];
    TensorData::from_bytes_vec([above.as_bytes(), data.as_bytes()].concat(), shape, DType::F32)
}

/// The same by PEFT's names, experts stacked.
fn published(tensors: BTreeMap<String, TensorData>) -> Vec<(String, TensorData)> {
    let mut out = Vec::new();
    let mut stacks: BTreeMap<(String, String), BTreeMap<usize, TensorData>> = BTreeMap::new();
    for (name, data) in tensors {
        let (module, part) = match (name.strip_suffix(".lora.a"), name.strip_suffix(".lora.b")) {
            (Some(module), _) => (module, "lora_A"),
            (_, Some(module)) => (module, "lora_B"),
            _ => {
                out.push((format!("{PREFIX}{name}"), data));
                continue;
            }
        };
        match module.split_once(".mlp.experts.").and_then(|(_, expert)| expert.split_once('.')) {
            Some((number, _)) => {
                let stack = stacks.entry((spoken_name(module), part.to_owned())).or_default();
                stack.insert(number.parse().unwrap_or_default(), data);
            }
            None => out.push((format!("{PREFIX}{module}.{part}.weight"), data)),
        }
    }
    let modules: BTreeSet<String> = stacks.keys().map(|(module, _)| module.clone()).collect();
    for ((module, part), experts) in stacks {
        let (stack, kind) = module.rsplit_once('.').unwrap_or((&module, ""));
        let both = modules.contains(&format!("{stack}.down_proj"));
        let inner = if kind == "gate_up_proj" && both { ".base_layer" } else { "" };
        let data = if part == "lora_A" { stack_rows(experts) } else { stack_columns(experts) };
        out.push((format!("{PREFIX}{stack}{inner}.{part}.weight"), data));
    }
    out
}

fn numbers(data: TensorData) -> (Vec<f32>, [usize; 2]) {
    let shape = data.shape().to_vec();
    (data.try_to_vec().expect("collected in f32"), [shape[0], shape[1]])
}

/// `[r, in]` of each expert to `[E · r, in]`.
fn stack_rows(experts: BTreeMap<usize, TensorData>) -> TensorData {
    let mut values = Vec::new();
    let (mut rows, mut width) = (0, 0);
    for (more, [r, columns]) in experts.into_values().map(numbers) {
        values.extend(more);
        rows += r;
        width = columns;
    }
    TensorData::new(values, [rows, width])
}

/// `[out, r]` of each expert to `[out, r · E]`, experts innermost.
fn stack_columns(experts: BTreeMap<usize, TensorData>) -> TensorData {
    let count = experts.len();
    let parts: Vec<(Vec<f32>, [usize; 2])> = experts.into_values().map(numbers).collect();
    let [out, rank] = parts.first().map_or([0, 0], |(_, shape)| *shape);
    let mut values = Vec::with_capacity(out * rank * count);
    for row in 0..out {
        for j in 0..rank {
            values.extend(parts.iter().map(|(part, _)| part[row * rank + j]));
        }
    }
    TensorData::new(values, [out, rank * count])
}

/// The config as PEFT has to read it to find the same modules: short names where they mean the same, else whole ones.
fn published_config(config: &AdapterConfig, model: &Glm4v) -> Result<AdapterConfig, WeightsError> {
    let mut model = model.clone(); // handles alone
    let picked = pick(config, &mut model)?;
    check_published(&picked, model.config.architecture)?;
    let (experts, maps): (Vec<&String>, Vec<&String>) =
        picked.adapters.keys().partition(|name| name.contains(".mlp.experts."));
    let short: BTreeSet<&str> = maps.iter().filter_map(|name| name.rsplit('.').next()).collect();
    let meant = picked.candidates.iter().filter(|name| {
        !name.contains(".mlp.experts.")
            && short.iter().any(|short| name.rsplit('.').next() == Some(short))
            && !is_replaced(config, name)
    });
    // `proj` is also the name of the patch convolution, which PEFT would adapt too.
    let same = !short.contains("proj") && meant.collect::<Vec<_>>() == maps;
    let modules = if same {
        short.into_iter().map(str::to_owned).collect()
    } else {
        maps.into_iter().cloned().collect::<Vec<_>>()
    };
    let parameters: BTreeSet<String> = experts
        .iter()
        .filter_map(|name| name.rsplit('.').next())
        .map(|kind| format!("mlp.experts.{kind}"))
        .collect();
    let mut said = AdapterConfig {
        target_modules: (!modules.is_empty()).then_some(Names::List(modules)),
        target_parameters: (!parameters.is_empty()).then(|| parameters.into_iter().collect()),
        exclude_modules: None,
        ..config.clone()
    };
    // An adapter that came in another form may have another rank than the config gives it.
    model.for_each_linear(|name, linear| {
        let spoken = spoken_name(name);
        if let (Some(lora), Some(size)) = (&linear.lora, picked.adapters.get(&spoken)) {
            let rank = lora.a.dims()[0];
            if rank != size.rank {
                let root = if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
                // Before all others: the first that fits counts.
                said.rank_pattern.shift_insert(0, fancy_regex::escape(&spoken).into_owned(), rank);
                said.alpha_pattern.shift_insert(
                    0,
                    fancy_regex::escape(&spoken).into_owned(),
                    lora.scale * root,
                );
            }
        }
    });
    for (key, value) in [
        ("task_type", json!("CAUSAL_LM")),
        ("inference_mode", json!(true)),
        ("use_dora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("lora_bias", json!(false)),
        ("init_lora_weights", json!(true)),
    ] {
        said.rest.entry(key.to_owned()).or_insert(value);
    }
    Ok(said)
}
