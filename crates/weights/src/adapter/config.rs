//! `adapter_config.json`, with PEFT's keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

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

    /// Why this version cannot compute what the config says; none if it can.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.peft_type != "LORA" {
            return Some(format!("peft_type is \"{}\"; needed: \"LORA\"", self.peft_type));
        }
        if self.r == 0 || self.r > 1 << 16 {
            return Some(format!("r is {}; needed: an integer from 1 to 65536", self.r));
        }
        if !self.lora_alpha.is_finite() || !(0.0..1.0).contains(&self.lora_dropout) {
            return Some(format!(
                "lora_alpha is {} and lora_dropout {}; needed: a finite number, and one from 0 to below 1",
                self.lora_alpha, self.lora_dropout
            ));
        }
        if self.bias != "none" {
            return Some(format!(
                "bias is \"{}\"; needed: \"none\", biases with adapters are not supported",
                self.bias
            ));
        }
        OTHER_FORMULAS.iter().find_map(|(key, plain)| {
            let found = self.rest.get(*key).filter(|found| !found.is_null() && *found != plain)?;
            Some(format!(
                "{key} is {found}; needed: {plain}, plain low-rank adapters are all that is supported"
            ))
        })
    }
}
