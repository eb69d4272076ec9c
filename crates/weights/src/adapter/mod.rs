//! Adapters: PEFT folders to and from networks.
//!
//! An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`. [`attach`] puts fresh adapters on the
//! maps that a config names, [`AdapterFolder::apply`] those of a folder, [`save_adapter`] writes a folder that PEFT loads.
//!
//! Experts: transformers stacks the experts of a layer, and PEFT keeps their adapters stacked too, both projections under
//! `….mlp.experts`: `base_layer.lora_A` for `gate_up_proj` where both have adapters, `lora_A` for `down_proj`, or for the only
//! one that has. `lora_A` is `[E · r, in]`, experts one after another; `lora_B` is `[out, r · E]`, experts innermost.

mod config;
mod error;
mod read;
mod targets;
mod write;

pub use config::{AdapterConfig, Names};
pub use error::AdapterError;
pub use read::AdapterFolder;
pub use write::save_adapter;

use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::{Glm4v, NamedVisitor, Precision, initialize_lora, visit_named};

use crate::{WeightsError, names};
use targets::{check_published, is_saved, pick, spoken_name};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of every parameter.
const PREFIX: &str = "base_model.model.";

/// The model that an adapter folder's config names as its base; `Some(None)` if it names none, `None` for a folder that
/// is no adapter's.
pub(crate) fn base_of(folder: &Path) -> Option<Option<String>> {
    let path = folder.join(CONFIG);
    let config = || AdapterConfig::parse(&read_text(&path, LONGEST_CONFIG).ok()?).ok();
    path.exists().then(|| config()?.base_model_name_or_path)
}

/// Puts fresh adapters on a network, and names the modules that got one.
///
/// # Errors
///
/// When a target matches nothing: the error lists what there is.
pub fn attach(
    mut model: Glm4v,
    config: &AdapterConfig,
    seed: u64,
    precision: Precision,
) -> Result<(Glm4v, Vec<String>), WeightsError> {
    config.check()?;
    check_saved(config, &model)?;
    let picked = pick(config, &mut model)?;
    // Now, and not when it is written after days.
    check_published(&picked, model.config.architecture)?;
    let device = model.device();
    model.for_each_linear(|name, linear| {
        if let Some(size) = picked.adapters.get(&spoken_name(name)) {
            linear.lora = Some(size.init(linear.d_input(), linear.d_output(), &device));
        }
    });
    Ok((initialize_lora(model, seed, precision.dtype()), picked.adapters.into_keys().collect()))
}

/// Whether a parameter learns under an adapter: factors, and what `modules_to_save` names.
pub fn learns_with(config: &AdapterConfig, parameter: &str) -> bool {
    parameter.ends_with(".lora.a") || parameter.ends_with(".lora.b") || is_saved(config, parameter)
}

/// Makes sure that everything in `modules_to_save` is there, and that a tied head follows its table.
fn check_saved(config: &AdapterConfig, model: &Glm4v) -> Result<(), AdapterError> {
    struct Names(Vec<String>);
    impl NamedVisitor for Names {
        fn visit<const D: usize>(&mut self, name: &str, _param: &Param<Tensor<D>>) {
            self.0.push(name.to_owned());
        }
    }
    if model.lm_head.is_none() && is_saved(config, names::EMBEDDING) && !config.ensure_weight_tying {
        return Err(AdapterError::Untied);
    }
    let mut names = Names(Vec::new());
    visit_named(model, &mut names);
    for module in config.modules_to_save.iter().flatten() {
        let one = AdapterConfig { modules_to_save: Some(vec![module.clone()]), ..config.clone() };
        if !names.0.iter().any(|name| is_saved(&one, name)) {
            return Err(AdapterError::NoModule { module: module.clone() });
        }
    }
    Ok(())
}
