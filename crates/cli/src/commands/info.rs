//! `glm4v info`

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use glm4v_model::{Backend, Glm4v};
use glm4v_weights::ModelFolder;
use serde_json::{Value, json};

use super::print_line;
use crate::args::{Global, Info};
use crate::progress::grouped;

pub(crate) fn info(args: &Info, global: &Global) -> anyhow::Result<()> {
    if global.backend != Backend::Auto {
        global.backend.open()?; // whoever names one wants to know whether it is there
    }
    let report = match &args.model {
        Some(folder) => model(folder)?,
        None => devices(),
    };
    if args.json {
        return print_line(&report.to_string());
    }
    for (key, value) in report.as_object().into_iter().flatten() {
        match value {
            Value::Array(lines) => {
                for line in lines {
                    print_line(&format!("{key:20} {}", plain(line)))?;
                }
            }
            value => print_line(&format!("{key:20} {}", plain(value)))?,
        }
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), |n| grouped(n as usize)),
        other => other.to_string(),
    }
}

fn devices() -> Value {
    let mut compiled = Vec::new();
    for (feature, name) in
        [(cfg!(feature = "cpu"), "cpu"), (cfg!(feature = "wgpu"), "wgpu"), (cfg!(feature = "cuda"), "cuda")]
    {
        if feature {
            compiled.push(name);
        }
    }
    let found = Backend::available();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "compiled in": compiled.join(", "),
        "auto means": Backend::Auto.resolve().to_string(),
        "device": found.iter().map(|(name, what)| format!("{name}: {what}")).collect::<Vec<_>>(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

fn model(folder: &Path) -> anyhow::Result<Value> {
    let folder = ModelFolder::open(folder)?;
    let config = folder.config();
    // Nothing is allocated: parameters that are neither loaded nor initialised only know their shape.
    let network: Glm4v = config.init(&Backend::Cpu.open().unwrap_or_else(|_| Device::default()));
    let (visual, text) = (&network.model.visual, &network.model.language_model);
    let merger = visual.merger.num_params() + visual.downsample.num_params();
    let head = network.lm_head.as_ref().map_or(0, Module::num_params);
    Ok(json!({
        "architecture": "glm4v",
        "parameters": network.num_params(),
        "vision tower": visual.num_params() - merger,
        "merger": merger,
        "text decoder": text.num_params(),
        "head": head,
        "weights": if folder.has_weights() { "in the folder" } else { "none: glm4v init makes fresh ones" },
        "text": format!("{} layers of width {}, {} heads on {} key heads, vocabulary {}",
            config.text.num_hidden_layers, config.text.hidden_size, config.text.num_attention_heads,
            config.text.num_key_value_heads, config.text.vocab_size),
        "vision": format!("{} blocks of width {}, {} heads, patches of {} pixels, {} a token",
            config.vision.depth, config.vision.hidden_size, config.vision.num_heads, config.vision.patch_size,
            config.vision.merged_patches()),
        "longest sequence": config.text.max_position_embeddings,
    }))
}
