//! Names of modules and tensors in PEFT.

use std::collections::BTreeSet;

/// Prefix of every tensor in an adapter file.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Between the name of a layer and that of one of its experts.
pub(crate) const EXPERTS: &str = ".mlp.experts.";

/// The name of a linear layer for matching targets.
///
/// All experts of a layer share one, since transformers stacks them: `….mlp.experts.gate_up_proj`.
pub(crate) fn peft_name(linear: &str) -> String {
    match linear.split_once(EXPERTS) {
        Some((layer, expert)) => {
            let projection = expert.split_once('.').map_or(expert, |(_, projection)| projection);
            format!("{layer}{EXPERTS}{projection}")
        }
        None => linear.to_owned(),
    }
}

/// Strips PEFT's additions from the name of a tensor: leaves `….q_proj.lora_A`, or the name of a parameter.
pub(crate) fn strip_tensor_name(name: &str) -> String {
    let name = name.strip_prefix(PREFIX).unwrap_or(name).replace(".modules_to_save", "");
    for factor in ["lora_A", "lora_B"] {
        // `.weight`, or in older files `.default.weight`
        if let Some((module, _)) = name.rsplit_once(&format!(".{factor}.")) {
            return format!("{module}.{factor}");
        }
    }
    name
}

/// Names with indices as `*`, each once: the modules of all layers differ by their indices only.
pub(crate) fn without_indices<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let kinds: BTreeSet<String> = names.into_iter().map(|name| without_index(name)).collect();
    kinds.into_iter().collect()
}

fn without_index(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}
