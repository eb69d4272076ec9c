//! `adapter_config.json`, with PEFT's keys.

use std::collections::BTreeMap;
use std::path::Path;

use glm4v_files::{LONGEST_CONFIG, read_text};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::AdapterError;

/// Name of the config in an adapter directory.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// PEFT's `LoraConfig`: the targets of an adapter, its rank and its scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object")]
pub struct AdapterConfig {
    /// Always "LORA".
    pub peft_type: String,
    /// Repository id or path of the base model.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank of the factors.
    pub r: usize,
    /// Numerator of the scale `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability of the adapter's inputs in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Whether the scale is `lora_alpha / √r` (rank-stabilized LoRA).
    #[serde(default)]
    pub use_rslora: bool,
    /// Linear layers that get an adapter.
    #[serde(default)]
    pub target_modules: Option<TargetModules>,
    /// Stacked expert parameters that get an adapter, such as `mlp.experts.down_proj`.
    #[serde(default)]
    pub target_parameters: Option<Vec<String>>,
    /// Linear layers that get none even if `target_modules` matches them.
    #[serde(default)]
    pub exclude_modules: Option<TargetModules>,
    /// Modules that are fully trained and saved with the adapter.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Ranks of single modules. Ordered, because the first matching key applies, as in PEFT.
    #[serde(default)]
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas of single modules, matched like `rank_pattern`.
    #[serde(default)]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Whether tied embeddings in `modules_to_save` stay tied to the LM head. Without it PEFT trains a separate copy of each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ensure_weight_tying: bool,
    /// Always "none": biases are not trained.
    #[serde(default = "none")]
    pub bias: String,
    /// Other keys, kept for writing.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A selection of modules by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Full names, or suffixes of them that start after a dot.
    List(Vec<String>),
    /// A regular expression for the full name, or `all-linear` for every linear layer but the LM head.
    Pattern(String),
}

impl Default for TargetModules {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl TargetModules {
    /// Whether it selects nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::List(names) => names.is_empty(),
            Self::Pattern(pattern) => pattern.is_empty(),
        }
    }
}

fn none() -> String {
    "none".into()
}

/// Keys of LoRA variants with another formula, and their value for plain LoRA; null and empty collections disable them, too.
const UNSUPPORTED_OPTIONS: [(&str, Value); 12] = [
    ("use_dora", Value::Bool(false)),
    ("fan_in_fan_out", Value::Bool(false)),
    ("lora_bias", Value::Bool(false)),
    ("use_qalora", Value::Bool(false)),
    ("layer_replication", Value::Null),
    ("trainable_token_indices", Value::Null),
    ("alora_invocation_tokens", Value::Null),
    ("arrow_config", Value::Null),
    ("kasa_config", Value::Null),
    ("monteclora_config", Value::Null),
    ("velora_config", Value::Null),
    ("use_bdlora", Value::Null),
];

/// Initializations that subtract the initial adapter from the base model's weights, so that the adapter does not fit the
/// published model.
const RESIDUAL_INITS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterConfig {
    /// Parses `adapter_config.json`.
    pub(crate) fn parse(json: &str) -> Result<Self, AdapterError> {
        let config: Value = serde_json::from_str(json)?;
        // Checked first: other methods have other keys.
        match &config["peft_type"] {
            Value::String(kind) if kind != "LORA" => {
                return Err(AdapterError::PeftType { found: kind.clone() });
            }
            _ => {}
        }
        let config: Self = serde_json::from_value(config)?;
        config.check()?;
        Ok(config)
    }

    /// A config without targets, dropout or patterns.
    pub fn new(r: usize, lora_alpha: f64) -> Self {
        Self {
            peft_type: "LORA".into(),
            base_model_name_or_path: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: None,
            target_parameters: None,
            exclude_modules: None,
            modules_to_save: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            ensure_weight_tying: false,
            bias: none(),
            rest: BTreeMap::new(),
        }
    }

    /// Rejects values out of range and unsupported variants of LoRA.
    pub(crate) fn check(&self) -> Result<(), AdapterError> {
        if self.peft_type != "LORA" {
            return Err(AdapterError::PeftType { found: self.peft_type.clone() });
        }
        if self.r == 0 || self.r > 1 << 16 {
            return Err(AdapterError::Rank { found: self.r });
        }
        let (lora_alpha, lora_dropout) = (self.lora_alpha, self.lora_dropout);
        if !lora_alpha.is_finite() || !(0.0..1.0).contains(&lora_dropout) {
            return Err(AdapterError::AlphaOrDropout { lora_alpha, lora_dropout });
        }
        if self.bias != "none" {
            return Err(AdapterError::Bias { found: self.bias.clone() });
        }
        for (key, needed) in UNSUPPORTED_OPTIONS {
            if let Some(found) = self.rest.get(key).filter(|found| !is_off(found)) {
                return Err(AdapterError::UnsupportedOption {
                    key,
                    found: Box::new(found.clone()),
                    needed: Box::new(needed),
                });
            }
        }
        let key = "init_lora_weights";
        if let Some(found @ Value::String(found_init)) = self.rest.get(key)
            && RESIDUAL_INITS.iter().any(|init| found_init.starts_with(init))
        {
            return Err(AdapterError::UnsupportedOption {
                key,
                found: Box::new(found.clone()),
                needed: Box::new(Value::Bool(true)),
            });
        }
        Ok(())
    }
}

/// `base_model_name_or_path` of an adapter directory: `Some(None)` if its config has none, `None` if it is not an adapter.
pub(crate) fn base_model_of(dir: &Path) -> Option<Option<String>> {
    let path = dir.join(CONFIG);
    let config = || AdapterConfig::parse(&read_text(&path, LONGEST_CONFIG).ok()?).ok();
    path.exists().then(|| config()?.base_model_name_or_path)
}

/// Whether the value of an option disables it.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}
