//! `adapter_config.json`, with PEFT's keys.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AdapterError;
use crate::ModelFolder;

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
    /// Linear layers.
    #[serde(default)]
    pub target_modules: Option<Names>,
    /// Stacked experts.
    #[serde(default)]
    pub target_parameters: Option<Vec<String>>,
    /// Linear layers that are left out, whatever `target_modules` says.
    #[serde(default)]
    pub exclude_modules: Option<Names>,
    /// Modules that learn whole, and are kept whole in the adapter.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Ranks of single modules: the first key that fits counts, as in PEFT, so the order is kept.
    #[serde(default)]
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas of single modules, in the same way.
    #[serde(default)]
    pub alpha_pattern: IndexMap<String, f64>,
    /// Whether a head that is tied to the embeddings stays tied where `modules_to_save` names one of the two. Without it PEFT
    /// trains a copy of its own for each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ensure_weight_tying: bool,
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
    /// A regular expression for the whole name, or `all-linear` for every linear layer but the head.
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

/// Keys that change the formula, and the value that leaves it as it is; null and what is empty do too.
const OTHER_FORMULAS: [(&str, Value); 12] = [
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

/// Starting values that are taken out of the base model's weights: the adapter belongs to what is left of them.
const OTHER_BASES: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterConfig {
    /// Reads `adapter_config.json`.
    pub(crate) fn parse(json: &str) -> Result<Self, AdapterError> {
        let config: Value = serde_json::from_str(json)?;
        // Looked at first: other kinds have other keys.
        match &config["peft_type"] {
            Value::String(kind) if kind != "LORA" => return Err(AdapterError::Kind { found: kind.clone() }),
            _ => {}
        }
        let config: Self = serde_json::from_value(config)?;
        config.check()?;
        Ok(config)
    }

    /// The same for the model of a folder, which goes by its repository's name if it was found by one.
    pub fn with_base(mut self, base: &ModelFolder) -> Self {
        let repository = base.repository();
        let name = repository.map_or_else(|| base.path().to_string_lossy(), |found| found.name().into());
        self.base_model_name_or_path = Some(name.into_owned());
        let commit = repository.and_then(|found| found.commit()).map_or(Value::Null, Value::from);
        self.rest.insert("revision".to_owned(), commit);
        self
    }

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
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            ensure_weight_tying: false,
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
            if let Some(found) = self.rest.get(key).filter(|found| !is_off(found)) {
                return Err(AdapterError::Formula {
                    key,
                    found: Box::new(found.clone()),
                    needed: Box::new(needed),
                });
            }
        }
        let key = "init_lora_weights";
        if let Some(found @ Value::String(start)) = self.rest.get(key)
            && OTHER_BASES.iter().any(|other| start.starts_with(other))
        {
            return Err(AdapterError::Formula {
                key,
                found: Box::new(found.clone()),
                needed: Box::new(Value::Bool(true)),
            });
        }
        Ok(())
    }
}

/// Whether a value leaves a key's feature off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}
