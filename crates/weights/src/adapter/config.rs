//! `adapter_config.json`, with PEFT's keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AdapterError;

/// What an adapter is attached to, and how large and strong it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// "LORA"
    pub peft_type: String,
    /// The model that it belongs to, as its maker named it.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// What the scale is made of.
    pub lora_alpha: f64,
    /// Share of the inputs that are left out in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Whether the scale is `lora_alpha / √r`.
    #[serde(default)]
    pub use_rslora: bool,
    /// Linear maps.
    #[serde(default)]
    pub target_modules: Option<Names>,
    /// Stacked experts.
    #[serde(default)]
    pub target_parameters: Option<Vec<String>>,
    /// Linear maps that are left out, whatever `target_modules` says.
    #[serde(default)]
    pub exclude_modules: Option<Names>,
    /// Modules that learn whole, and are kept whole in the adapter.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Ranks of single modules.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single modules.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// "none": biases do not learn.
    #[serde(default = "none")]
    pub bias: String,
    /// What PEFT asks for and we have no use of.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Names of modules: a list of names or their ends, or one regular expression, or `all-linear`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// Whole names, or what stands behind their last dots.
    List(Vec<String>),
    /// A regular expression for the whole name, or `all-linear` for every linear map but the head.
    Pattern(String),
}

impl Default for Names {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl Names {
    /// Whether nothing is named.
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

/// Kinds of adapters that change the formula, and the value that leaves it as it is.
const OTHER_FORMULAS: [(&str, Value); 5] = [
    ("use_dora", Value::Bool(false)),
    ("fan_in_fan_out", Value::Bool(false)),
    ("lora_bias", Value::Bool(false)),
    ("use_qalora", Value::Bool(false)),
    ("layer_replication", Value::Null),
];

impl AdapterConfig {
    /// An adapter without dropout or patterns.
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
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            bias: none(),
            rest: BTreeMap::new(),
        }
    }

    /// Refuses what this version cannot compute.
    pub(crate) fn check(&self) -> Result<(), AdapterError> {
        if self.peft_type != "LORA" {
            return Err(AdapterError::Kind { found: self.peft_type.clone() });
        }
        if self.r == 0 || self.r > 1 << 16 {
            return Err(AdapterError::Rank { found: self.r });
        }
        let (lora_alpha, lora_dropout) = (self.lora_alpha, self.lora_dropout);
        if !lora_alpha.is_finite() || !(0.0..1.0).contains(&lora_dropout) {
            return Err(AdapterError::Scale { lora_alpha, lora_dropout });
        }
        if self.bias != "none" {
            return Err(AdapterError::Bias { found: self.bias.clone() });
        }
        for (key, needed) in OTHER_FORMULAS {
            if let Some(found) = self.rest.get(key).filter(|found| !found.is_null() && **found != needed) {
                return Err(AdapterError::Formula { key, found: found.clone(), needed });
            }
        }
        Ok(())
    }
}
