//! PEFT's `modules_to_save`: modules that are trained in full and saved with an adapter.

use glm4v_model::{Glm4v, param_infos};

use super::config::AdapterConfig;
use super::error::AdapterError;
use crate::names;

impl AdapterConfig {
    /// Whether a parameter is trained with the adapter: LoRA factors, and the parameters of `modules_to_save`.
    pub fn is_trainable(&self, parameter: &str) -> bool {
        names::is_lora(parameter) || in_modules_to_save(self, parameter)
    }
}

/// Whether a parameter belongs to a module whose name ends with an entry of `modules_to_save` (PEFT, `_set_trainable`); the
/// entry `norm` thus matches every norm.
pub(crate) fn in_modules_to_save(config: &AdapterConfig, parameter: &str) -> bool {
    config.modules_to_save.iter().flatten().any(|entry| matches_entry(entry, parameter))
}

fn matches_entry(entry: &str, parameter: &str) -> bool {
    let mut modules = parameter.match_indices('.').map(|(end, _)| &parameter[..end]);
    modules.any(|module| module.ends_with(entry))
}

/// Whether `modules_to_save` prevents a linear layer from getting an adapter: when an entry is a dotted part of its name (PEFT,
/// `check_target_module_exists`).
pub(crate) fn excluded_by_modules_to_save(config: &AdapterConfig, module: &str) -> bool {
    let dotted = format!(".{module}.");
    config.modules_to_save.iter().flatten().any(|entry| dotted.contains(&format!(".{entry}.")))
}

/// Rejects entries that match nothing, and tied embeddings that PEFT would untie.
pub(crate) fn check_modules_to_save(config: &AdapterConfig, model: &Glm4v) -> Result<(), AdapterError> {
    let tied = model.lm_head.is_none();
    if tied && in_modules_to_save(config, names::EMBEDDING) && !config.ensure_weight_tying {
        return Err(AdapterError::TiedEmbeddings);
    }
    let parameters = param_infos(model);
    for entry in config.modules_to_save.iter().flatten() {
        if !parameters.iter().any(|param| matches_entry(entry, &param.name)) {
            return Err(AdapterError::NoModule { module: entry.clone() });
        }
    }
    Ok(())
}
