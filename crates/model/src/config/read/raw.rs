//! The keys of `config.json` as they are written, with second spellings and defaults resolved.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::check::invalid;
use crate::config::error::ConfigError;
use crate::config::family::Family;
use crate::config::one_or_many::OneOrMany;

/// transformers' defaults by family and section; made by `tests/fixtures/oracle/config_defaults.py`.
pub(super) const DEFAULTS: &str = include_str!("../defaults.json");

/// Second spellings that transformers accepts (`attribute_map`): section, second spelling, first spelling.
const SPELLINGS: [(&str, &str, &str); 3] = [
    ("text_config", "num_local_experts", "n_routed_experts"),
    ("vision_config", "num_attention_heads", "num_heads"),
    ("vision_config", "num_hidden_layers", "depth"),
];

#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct RawConfig {
    pub(super) model_type: Option<String>,
    pub(super) text_config: Option<RawText>,
    pub(super) vision_config: Option<RawVision>,
    pub(super) image_token_id: Option<u32>,
    pub(super) video_token_id: Option<u32>,
    pub(super) tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct RawText {
    pub(super) vocab_size: Option<usize>,
    pub(super) hidden_size: Option<usize>,
    pub(super) intermediate_size: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) attention_bias: Option<bool>,
    pub(super) use_qk_norm: Option<bool>,
    pub(super) first_k_dense_replace: Option<usize>,
    pub(super) n_routed_experts: Option<usize>,
    pub(super) num_experts_per_tok: Option<usize>,
    pub(super) n_shared_experts: Option<usize>,
    pub(super) moe_intermediate_size: Option<usize>,
    pub(super) n_group: Option<usize>,
    pub(super) topk_group: Option<usize>,
    pub(super) norm_topk_prob: Option<bool>,
    pub(super) routed_scaling_factor: Option<f64>,
    pub(super) max_position_embeddings: Option<usize>,
    pub(super) rms_norm_eps: Option<f64>,
    pub(super) hidden_act: Option<String>,
    pub(super) initializer_range: Option<f64>,
    pub(super) eos_token_id: Option<OneOrMany<u32>>,
    pub(super) pad_token_id: Option<u32>,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) rope_parameters: Option<RawRope>,
    pub(super) rope_scaling: Option<RawRope>,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(expecting = "an object")]
pub(super) struct RawRope {
    pub(super) rope_type: Option<String>,
    /// The same under the name of transformers 4; both may be present.
    pub(super) r#type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) mrope_section: Option<Vec<usize>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct RawVision {
    pub(super) depth: Option<usize>,
    pub(super) hidden_size: Option<usize>,
    pub(super) num_heads: Option<usize>,
    pub(super) in_channels: Option<usize>,
    pub(super) image_size: Option<Side>,
    pub(super) patch_size: Option<Side>,
    pub(super) temporal_patch_size: Option<usize>,
    pub(super) spatial_merge_size: Option<usize>,
    pub(super) out_hidden_size: Option<usize>,
    pub(super) intermediate_size: Option<usize>,
    pub(super) rms_norm_eps: Option<f64>,
    pub(super) hidden_act: Option<String>,
    pub(super) attention_bias: Option<bool>,
    pub(super) initializer_range: Option<f64>,
    pub(super) head_dim: Option<usize>,
    pub(super) rope_parameters: Option<RawRope>,
    pub(super) rope_theta: Option<f64>,
}

/// The side of a square, or height and width.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Side {
    One(usize),
    Two([usize; 2]),
}

impl RawConfig {
    /// Parses a `config.json` of either style.
    pub(super) fn from_json(json: &str) -> Result<Self, ConfigError> {
        let mut config: Value = serde_json::from_str(json)?;
        if let Some(model_type) = config["model_type"].as_str() {
            let family = Family::find(model_type);
            unify_spellings(&mut config)?;
            if let Some(family) = family {
                add_defaults(&mut config, family);
            }
        }
        serde_path_to_error::deserialize(config)
            .map_err(|error| ConfigError::Type { key: error.path().to_string(), source: error.into_inner() })
    }
}

/// Renames second spellings to the first, unless both are there with different values.
fn unify_spellings(config: &mut Value) -> Result<(), ConfigError> {
    for (section, second, first) in SPELLINGS {
        let Some(keys) = config.get_mut(section).and_then(Value::as_object_mut) else { continue };
        let Some(value) = keys.shift_remove(second) else { continue };
        let known = keys.entry(first).or_insert_with(|| value.clone());
        if *known != value {
            let found = format!("{known}, and \"{second}\" beside it is {value}");
            return invalid(first, found, "the same value under both names");
        }
    }
    Ok(())
}

/// Adds absent keys with the values that transformers gives them.
pub(super) fn add_defaults(config: &mut Value, family: &Family) {
    let defaults: Value = serde_json::from_str(DEFAULTS).expect("the table is json");
    let Some(sections) = defaults.get(family.name).and_then(Value::as_object) else { return };
    for (section, values) in sections {
        let keys = if section.is_empty() { Some(&mut *config) } else { config.get_mut(section) };
        if let (Some(keys), Some(values)) = (keys.and_then(Value::as_object_mut), values.as_object()) {
            add_missing(keys, values);
        }
    }
}

fn add_missing(keys: &mut Map<String, Value>, defaults: &Map<String, Value>) {
    for (key, value) in defaults {
        keys.entry(key).or_insert_with(|| value.clone());
    }
}
