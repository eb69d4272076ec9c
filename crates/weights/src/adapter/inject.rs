//! New adapters on a network.

use glm4v_model::{CausalLm, Glm4v, Precision, initialize_lora};

use super::config::AdapterConfig;
use super::modules_to_save::check_modules_to_save;
use super::peft_names::peft_name;
use super::targets::{check_peft_reads, match_modules};
use crate::error::WeightsError;

/// Adds randomly initialized LoRA factors to the linear layers that a config targets; returns PEFT's names of these layers.
///
/// # Errors
///
/// When the config is invalid, or a target matches nothing; the error lists the linear layers.
pub fn add_adapter(
    mut model: Glm4v,
    config: &AdapterConfig,
    seed: u64,
    precision: Precision,
) -> Result<(Glm4v, Vec<String>), WeightsError> {
    config.check()?;
    check_modules_to_save(config, &model)?;
    let matched = match_modules(config, &mut model)?;
    // Checked before days of training, not when the adapter is written.
    check_peft_reads(&matched, model.config.architecture)?;
    let device = model.device();
    model.for_each_linear(|name, linear| {
        if let Some(lora) = matched.targets.get(&peft_name(name)) {
            linear.lora = Some(lora.init(linear.d_input(), linear.d_output(), &device));
        }
    });
    Ok((initialize_lora(model, seed, precision.dtype()), matched.targets.into_keys().collect()))
}
