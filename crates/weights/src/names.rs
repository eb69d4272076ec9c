//! Where a parameter of the network lies in a checkpoint.
//!
//! A parameter has the name and the shape of the published tensor, but for:
//!
//! - **Experts.** The network keeps gate and up projection of an expert as one matrix, gate first. Published checkpoints
//!   keep them apart, transformers 5 may stack all experts of a layer in one tensor.
//! - **Pieces.** A matrix that is too large for one buffer of a device is `X.weight.0`, `X.weight.1`, … in the network,
//!   rows in order, and `X.weight` in a checkpoint.
//! - **Adapters.** Their parameters are in no checkpoint of a model.
//! - **Older and foreign exports** begin names differently: see [`PREFIXES`].

use std::borrow::Cow;

/// How other exports begin names, and how published checkpoints do. The first that fits counts.
const PREFIXES: [(&str, &str); 6] = [
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.layers.", "model.language_model.layers."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.norm.", "model.language_model.norm."),
    ("visual.", "model.visual."),
];

/// The table of token vectors.
pub(crate) const EMBEDDING: &str = "model.language_model.embed_tokens.weight";

/// The matrix that scores tokens; the embedding table if the config ties them.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The name that published checkpoints give to a tensor of any export.
pub(crate) fn published(name: &str) -> Cow<'_, str> {
    for (other, ours) in PREFIXES {
        if let Some(rest) = name.strip_prefix(other) {
            return Cow::Owned(format!("{ours}{rest}"));
        }
    }
    Cow::Borrowed(name)
}

/// Whether a parameter belongs to an adapter.
pub(crate) fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora.a") || name.ends_with(".lora.b")
}

/// Whether a tensor is f32 whatever the type of the others.
///
/// The correction of a router's scores decides between experts whose scores are closer than 16 bits can tell.
pub(crate) fn stays_f32(name: &str) -> bool {
    name.ends_with(".e_score_correction_bias")
}

/// The whole that a parameter is, or is a piece of.
pub(crate) fn whole(parameter: &str) -> &str {
    match parameter.rsplit_once('.') {
        Some((whole, number)) if whole.ends_with(".weight") && is_number(number) => whole,
        _ => parameter,
    }
}

/// The published tensors whose rows, one after another, are a whole.
pub(crate) fn parts(whole: &str) -> Vec<String> {
    match expert(whole) {
        Some((layer, number, "gate_up_proj")) => {
            ["gate_proj", "up_proj"].map(|half| format!("{layer}.{number}.{half}.weight")).to_vec()
        }
        _ => vec![whole.to_owned()],
    }
}

/// The tensor of transformers 5 that stacks a layer's experts, and the place of a whole in it.
pub(crate) fn stack(whole: &str) -> Option<(String, usize)> {
    let (layer, number, kind) = expert(whole)?;
    Some((format!("{layer}.{kind}"), number.parse().ok()?))
}

/// Splits `….mlp.experts.{number}.{kind}.weight`.
fn expert(whole: &str) -> Option<(&str, &str, &str)> {
    const EXPERTS: &str = ".mlp.experts";
    let end = whole.find(EXPERTS)? + EXPERTS.len();
    let (number, rest) = whole[end..].strip_prefix('.')?.split_once('.')?;
    let kind = rest.strip_suffix(".weight")?;
    is_number(number).then_some((&whole[..end], number, kind))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_exports_become_the_published_ones() {
        for (other, ours) in [
            ("visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"),
            ("model.layers.3.mlp.down_proj.weight", "model.language_model.layers.3.mlp.down_proj.weight"),
            ("model.embed_tokens.weight", EMBEDDING),
            ("model.norm.weight", "model.language_model.norm.weight"),
            ("language_model.model.norm.weight", "model.language_model.norm.weight"),
            ("language_model.lm_head.weight", HEAD),
            // These are published names, and names of nobody.
            ("model.visual.patch_embed.proj.bias", "model.visual.patch_embed.proj.bias"),
            (
                "model.language_model.layers.40.eh_proj.weight",
                "model.language_model.layers.40.eh_proj.weight",
            ),
            ("model.normal", "model.normal"),
        ] {
            assert_eq!(published(other), ours);
        }
    }

    #[test]
    fn experts_lie_apart_or_in_a_stack() {
        let layer = "model.language_model.layers.1.mlp.experts";
        let both = format!("{layer}.12.gate_up_proj.weight");
        let down = format!("{layer}.12.down_proj.weight");

        assert_eq!(
            parts(&both),
            [format!("{layer}.12.gate_proj.weight"), format!("{layer}.12.up_proj.weight")]
        );
        assert_eq!(parts(&down), std::slice::from_ref(&down));
        assert_eq!(stack(&both), Some((format!("{layer}.gate_up_proj"), 12)));
        assert_eq!(stack(&down), Some((format!("{layer}.down_proj"), 12)));
        // Dense layers and shared experts are what they are.
        for name in
            ["x.mlp.gate_up_proj.weight", "x.mlp.shared_experts.gate_proj.weight", "x.mlp.gate.weight"]
        {
            assert_eq!((parts(name), stack(name)), (vec![name.to_owned()], None));
        }
    }

    #[test]
    fn pieces_belong_to_their_whole() {
        assert_eq!(whole("lm_head.weight.11"), "lm_head.weight");
        assert_eq!(whole("x.mlp.experts.3.gate_up_proj.weight.0"), "x.mlp.experts.3.gate_up_proj.weight");
        for name in ["lm_head.weight", "x.blocks.1", "x.weight.a", "x.weight."] {
            assert_eq!(whole(name), name);
        }
    }

    #[test]
    fn adapters_and_the_f32_tensor_are_told_by_their_ends() {
        assert!(is_adapter("x.q_proj.lora.a") && is_adapter("x.q_proj.lora.b"));
        assert!(!is_adapter("x.q_proj.weight"));
        assert!(stays_f32("model.language_model.layers.1.mlp.gate.e_score_correction_bias"));
        assert!(!stays_f32("model.language_model.layers.1.mlp.gate.weight"));
    }
}
