//! What the modeling code of each family fixes and `config.json` does not contain: one table.
//!
//! A new member of the family is a row here. The layers ask for the value, never for the name of the model.

use std::fmt;

use super::text::RotaryLayout;

/// A member of the family, by the class in transformers that implements it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// GLM-4.1V, GLM-4.6V-Flash, AutoGLM-Phone: `glm4v`, and `glm46v`, the same network with another processor.
    Glm4v,
    /// GLM-4.5V, GLM-4.6V: `glm4v_moe`, experts in the text decoder.
    Glm4vMoe,
    /// GLM-OCR: `glm_ocr`.
    GlmOcr,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Family::of(*self).name)
    }
}

/// One row of the table.
pub(super) struct Family {
    pub(super) architecture: Architecture,
    /// `model_type`, and key of the family in `defaults.json`.
    pub(super) name: &'static str,
    /// Other values of `model_type` for the same network.
    aliases: &'static [&'static str],
    pub(super) text: TextFamily,
    pub(super) vision: VisionFamily,
}

/// Properties of a family's text decoder; those not described here are fields of [`TextConfig`](super::TextConfig).
pub(super) struct TextFamily {
    /// Whether `head_dim` is read from the config; else it is `hidden_size / num_attention_heads`.
    pub(super) reads_head_dim: bool,
    pub(super) attention_bias: Bias,
    pub(super) o_proj_bias: bool,
    pub(super) qk_norm: bool,
    pub(super) sandwich_norms: bool,
    pub(super) fused_gate_up: bool,
    /// Whether there are experts, whose keys are then required.
    pub(super) experts: bool,
    pub(super) rotary_layout: RotaryLayout,
    /// Default of transformers 5; published configs contain 0.5, and 1.0 for glm_ocr.
    pub(super) partial_rotary_factor: f64,
}

/// Bias of queries, keys and values.
pub(super) enum Bias {
    /// Fixed in the modeling code, whatever `attention_bias` is.
    Fixed(bool),
    /// Read from `attention_bias`, false where that is absent.
    FromConfig,
}

/// Properties of a family's vision tower; those not described here are fields of [`VisionConfig`](super::VisionConfig).
pub(super) struct VisionFamily {
    /// Default of `attention_bias`.
    pub(super) attention_bias: bool,
    /// Whether `attention_bias` also applies to the attention's output and to the feed-forward.
    pub(super) bias_in_blocks: bool,
    pub(super) qk_norm: bool,
    pub(super) learned_positions: bool,
    pub(super) intermediate_size: IntermediateSize,
}

/// The feed-forward whose width `vision_config.intermediate_size` is; the width of the other one is derived.
#[derive(Clone, Copy)]
pub(super) enum IntermediateSize {
    /// The merger's; blocks have `out_hidden_size` (Glm4VisionMlp, Glm4vVisionPatchMerger).
    OfMerger,
    /// The blocks'; the merger has `out_hidden_size * in_channels` (GlmOcrVisionPatchMerger).
    OfBlocks,
}

static FAMILIES: [Family; 3] = [
    Family {
        architecture: Architecture::Glm4v,
        name: "glm4v",
        aliases: &["glm46v"],
        text: TextFamily {
            reads_head_dim: false,
            attention_bias: Bias::Fixed(true), // modeling_glm4v.py
            o_proj_bias: false,
            qk_norm: false,
            sandwich_norms: true,
            fused_gate_up: true,
            experts: false,
            rotary_layout: RotaryLayout::Interleaved,
            partial_rotary_factor: 1.0,
        },
        vision: VisionFamily {
            attention_bias: false,
            bias_in_blocks: false,
            qk_norm: false,
            learned_positions: true,
            intermediate_size: IntermediateSize::OfMerger,
        },
    },
    Family {
        architecture: Architecture::Glm4vMoe,
        name: "glm4v_moe",
        aliases: &[],
        text: TextFamily {
            reads_head_dim: true,
            attention_bias: Bias::FromConfig,
            o_proj_bias: false,
            qk_norm: false,
            sandwich_norms: false,
            fused_gate_up: false,
            experts: true,
            rotary_layout: RotaryLayout::HalfSplit,
            partial_rotary_factor: 0.5,
        },
        vision: VisionFamily {
            attention_bias: false,
            bias_in_blocks: false,
            qk_norm: false,
            learned_positions: true,
            intermediate_size: IntermediateSize::OfMerger,
        },
    },
    Family {
        architecture: Architecture::GlmOcr,
        name: "glm_ocr",
        aliases: &[],
        text: TextFamily {
            reads_head_dim: true,
            attention_bias: Bias::Fixed(false), // modeling_glm_ocr.py
            o_proj_bias: false,
            qk_norm: false,
            sandwich_norms: true,
            fused_gate_up: true,
            experts: false,
            rotary_layout: RotaryLayout::Interleaved,
            partial_rotary_factor: 1.0,
        },
        vision: VisionFamily {
            attention_bias: true,
            bias_in_blocks: true,
            qk_norm: true,
            learned_positions: false,
            intermediate_size: IntermediateSize::OfBlocks,
        },
    },
];

impl Family {
    /// The family of a `model_type`.
    pub(super) fn find(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == model_type || family.aliases.contains(&model_type))
    }

    fn of(architecture: Architecture) -> &'static Self {
        let row = FAMILIES.iter().find(|family| family.architecture == architecture);
        row.expect("every architecture has a row")
    }
}

impl TextFamily {
    /// Whether queries, keys and values have a bias, given `attention_bias` of the config.
    pub(super) fn attention_bias(&self, key: Option<bool>) -> bool {
        match self.attention_bias {
            Bias::Fixed(bias) => bias,
            Bias::FromConfig => key.unwrap_or(false),
        }
    }
}

impl IntermediateSize {
    /// Widths of the blocks' feed-forward and of the merger's.
    pub(super) fn of_blocks_and_merger(
        self,
        key: usize,
        out_hidden_size: usize,
        in_channels: usize,
    ) -> [usize; 2] {
        match self {
            Self::OfMerger => [out_hidden_size, key],
            Self::OfBlocks => [key, out_hidden_size * in_channels],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_alias_leads_to_its_own_row() {
        for (model_type, architecture) in [
            ("glm4v", Architecture::Glm4v),
            ("glm46v", Architecture::Glm4v),
            ("glm4v_moe", Architecture::Glm4vMoe),
            ("glm_ocr", Architecture::GlmOcr),
        ] {
            assert_eq!(Family::find(model_type).map(|family| family.architecture), Some(architecture));
            assert_eq!(Family::of(architecture).architecture, architecture);
        }
        assert!(Family::find("qwen3_vl").is_none());
    }
}
