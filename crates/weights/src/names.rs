//! Key map between the parameters of the network and the tensors of a checkpoint.
//!
//! A parameter has the name and the shape of its checkpoint tensor, except for:
//!
//! - **Experts.** The network fuses gate and up projection of an expert into one matrix, gate first. Published checkpoints
//!   store them apart; transformers 5 may stack all experts of a layer in one tensor.
//! - **Row shards.** A matrix that exceeds the largest buffer of a device is `X.weight.0`, `X.weight.1`, … in the network, rows
//!   in order, and `X.weight` in a checkpoint.
//! - **LoRA factors**, which no model checkpoint contains.
//! - **Older and third-party exports**, whose names start differently: see [`PREFIXES`].

use std::borrow::Cow;

use glm4v_model::{ExpertParamName, ParamName};

/// Prefixes in other exports, with their replacement in published checkpoints. The first match applies.
const PREFIXES: [(&str, &str); 6] = [
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
    ("visual.", "model.visual."),
];

/// Token embeddings.
pub(crate) const EMBEDDING: &str = "model.language_model.embed_tokens.weight";

/// LM head; absent if the config ties it to the embeddings.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The name in published checkpoints of a tensor of any export.
pub(crate) fn canonical(name: &str) -> Cow<'_, str> {
    for (prefix, replacement) in PREFIXES {
        if let Some(rest) = name.strip_prefix(prefix) {
            return Cow::Owned(format!("{replacement}{rest}"));
        }
    }
    Cow::Borrowed(name)
}

/// Whether a parameter is a LoRA factor.
pub(crate) fn is_lora(name: &str) -> bool {
    name.ends_with(".lora.a") || name.ends_with(".lora.b")
}

/// The checkpoint tensors whose rows, concatenated, are a full tensor.
pub(crate) fn checkpoint_tensors(full: &str) -> Vec<String> {
    match expert_projection(full) {
        Some((ExpertParamName { experts, index, .. }, "gate_up_proj")) => {
            ["gate_proj", "up_proj"].map(|half| format!("{experts}.{index}.{half}.weight")).to_vec()
        }
        _ => vec![full.to_owned()],
    }
}

/// The tensor that stacks a layer's experts in transformers 5, and the index of an expert's tensor in it.
pub(crate) fn expert_stack(full: &str) -> Option<(String, usize)> {
    let (expert, projection) = expert_projection(full)?;
    Some((format!("{}.{projection}", expert.experts), expert.index))
}

/// The expert and the projection of a full tensor `….mlp.experts.{index}.{projection}.weight`.
fn expert_projection(full: &str) -> Option<(ExpertParamName<'_>, &str)> {
    let expert = ParamName(full).expert()?;
    Some((expert, expert.parameter.strip_suffix(".weight")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_exports_become_canonical() {
        for (other, ours) in [
            ("visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"),
            ("model.layers.3.mlp.down_proj.weight", "model.language_model.layers.3.mlp.down_proj.weight"),
            ("model.embed_tokens.weight", EMBEDDING),
            ("model.norm.weight", "model.language_model.norm.weight"),
            ("language_model.model.norm.weight", "model.language_model.norm.weight"),
            ("language_model.lm_head.weight", HEAD),
            // Canonical already, or unknown.
            ("model.visual.patch_embed.proj.bias", "model.visual.patch_embed.proj.bias"),
            (
                "model.language_model.layers.40.eh_proj.weight",
                "model.language_model.layers.40.eh_proj.weight",
            ),
            ("model.normal", "model.normal"),
        ] {
            assert_eq!(canonical(other), ours);
        }
    }

    #[test]
    fn experts_are_stored_apart_or_stacked() {
        let layer = "model.language_model.layers.1.mlp.experts";
        let both = format!("{layer}.12.gate_up_proj.weight");
        let down = format!("{layer}.12.down_proj.weight");

        assert_eq!(
            checkpoint_tensors(&both),
            [format!("{layer}.12.gate_proj.weight"), format!("{layer}.12.up_proj.weight")]
        );
        assert_eq!(checkpoint_tensors(&down), std::slice::from_ref(&down));
        assert_eq!(expert_stack(&both), Some((format!("{layer}.gate_up_proj"), 12)));
        assert_eq!(expert_stack(&down), Some((format!("{layer}.down_proj"), 12)));
        // Dense layers and shared experts are not renamed.
        for name in
            ["x.mlp.gate_up_proj.weight", "x.mlp.shared_experts.gate_proj.weight", "x.mlp.gate.weight"]
        {
            assert_eq!((checkpoint_tensors(name), expert_stack(name)), (vec![name.to_owned()], None));
        }
    }

    #[test]
    fn lora_factors_are_recognized_by_their_suffix() {
        assert!(is_lora("x.q_proj.lora.a") && is_lora("x.q_proj.lora.b"));
        assert!(!is_lora("x.q_proj.weight"));
    }
}
