//! PEFT's rules for which modules get an adapter, and of which rank.

use std::collections::{BTreeMap, BTreeSet};

use glm4v_model::{Architecture, Glm4v, LoraLayerConfig, OneOrMany};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::config::{AdapterConfig, TargetModules};
use super::error::AdapterError;
use super::module_regex::ModuleRegex;
use super::modules_to_save::{excluded_by_modules_to_save, in_modules_to_save};
use super::peft_names::{EXPERTS, peft_name, without_indices};

/// The linear layers of a network that match an adapter's config.
#[derive(Debug)]
pub(crate) struct MatchedModules {
    /// The matching layers by PEFT's names, with their rank, scale and dropout.
    pub(crate) targets: BTreeMap<String, LoraLayerConfig>,
    /// All linear layers.
    pub(crate) candidates: BTreeSet<String>,
}

/// Matches the linear layers of a network with the targets of a config.
///
/// # Errors
///
/// When a target matches nothing; the error lists the linear layers.
pub(crate) fn match_modules(
    config: &AdapterConfig,
    model: &mut Glm4v,
) -> Result<MatchedModules, AdapterError> {
    let mut candidates = BTreeSet::new();
    model.for_each_linear(|name, _| {
        candidates.insert(peft_name(name));
    });
    let matcher = TargetMatcher::new(config)?;
    check_every_target(config, &matcher, &candidates)?;
    let mut targets = BTreeMap::new();
    for name in candidates.iter().filter(|name| matcher.module(name) || matcher.parameter(name)) {
        if in_modules_to_save(config, &format!("{name}.weight")) {
            return Err(AdapterError::AdaptedAndSaved { module: name.clone() });
        }
        targets.insert(name.clone(), lora_config(config, name)?);
    }
    Ok(MatchedModules { targets, candidates })
}

/// Rejects targets that match none of the linear layers.
fn check_every_target(
    config: &AdapterConfig,
    matcher: &TargetMatcher<'_>,
    candidates: &BTreeSet<String>,
) -> Result<(), AdapterError> {
    let no_match = |key: &str, wanted: &str| AdapterError::NoMatch {
        key: key.to_owned(),
        wanted: wanted.to_owned(),
        kinds: without_indices(candidates),
    };
    let modules = match &config.target_modules {
        Some(TargetModules::Pattern(pattern)) => {
            if !candidates.iter().any(|name| matcher.included(name)) {
                return Err(no_match("target_modules", pattern));
            }
            &[]
        }
        Some(TargetModules::List(names)) => names.as_slice(),
        None => &[],
    };
    for wanted in modules {
        if !candidates.iter().any(|name| ends_with(name, wanted)) {
            return Err(no_match("target_modules", wanted));
        }
    }
    for wanted in config.target_parameters.iter().flatten() {
        if !candidates.iter().any(|name| name.contains(EXPERTS) && ends_with(name, wanted)) {
            return Err(no_match("target_parameters", wanted));
        }
    }
    Ok(())
}

/// Rejects targets that PEFT would misread.
///
/// The experts of a `glm4v_moe` model were linear layers in transformers 4. PEFT 0.21 converts targets of those names, full or
/// short, to the experts of transformers 5 (`utils/transformers_weight_conversion.py`), and with them those of dense layers,
/// shared experts, the vision tower and the merger: the adapter that it loads computes something else, mostly without an error.
pub(crate) fn check_peft_reads(
    matched: &MatchedModules,
    architecture: Architecture,
) -> Result<(), AdapterError> {
    const CONVERTED: [&str; 3] = [".gate_proj", ".up_proj", ".down_proj"];
    if architecture != Architecture::Glm4vMoe {
        return Ok(());
    }
    let misread = |name: &&String| !name.contains(EXPERTS) && CONVERTED.iter().any(|end| name.ends_with(end));
    let modules = without_indices(matched.targets.keys().filter(misread));
    if modules.is_empty() { Ok(()) } else { Err(AdapterError::MisreadAsExperts { modules }) }
}

/// The targets of a config with compiled expressions.
pub(crate) struct TargetMatcher<'a> {
    config: &'a AdapterConfig,
    target_modules: Option<ModuleRegex>,
    exclude_modules: Option<ModuleRegex>,
    layers: Option<LayersToTransform>,
}

impl<'a> TargetMatcher<'a> {
    pub(crate) fn new(config: &'a AdapterConfig) -> Result<Self, AdapterError> {
        Ok(Self {
            target_modules: compile("target_modules", &config.target_modules)?,
            exclude_modules: compile("exclude_modules", &config.exclude_modules)?,
            layers: LayersToTransform::from_config(config)?,
            config,
        })
    }

    /// Whether the config has no targets.
    pub(crate) fn is_empty(&self) -> bool {
        let modules = self.config.target_modules.as_ref().is_none_or(TargetModules::is_empty);
        modules && self.config.target_parameters.as_ref().is_none_or(Vec::is_empty)
    }

    /// Whether `target_modules` matches the full name of a module.
    pub(crate) fn module(&self, name: &str) -> bool {
        self.included(name) && !self.excluded(name)
    }

    /// Whether `target_parameters` matches PEFT's name of experts.
    pub(crate) fn parameter(&self, name: &str) -> bool {
        let mut names = self.config.target_parameters.iter().flatten();
        // Only stacked experts are parameters outside of a linear module, so `down_proj` matches nothing else.
        name.contains(EXPERTS) && names.any(|wanted| ends_with(name, wanted)) && !self.excluded(name)
    }

    /// Whether the config allows LoRA factors for a module of an adapter file, stacked or not.
    pub(crate) fn allows(&self, module: &str) -> bool {
        let stack = EXPERTS.trim_end_matches('.');
        if let Some(layer) = module.strip_suffix(".base_layer").unwrap_or(module).strip_suffix(stack) {
            let targeted = |projection: &str| self.parameter(&format!("{layer}{EXPERTS}{projection}"));
            return targeted("gate_up_proj") || targeted("down_proj");
        }
        let mut names = vec![module.to_owned(), peft_name(module)];
        if let Some((layer, _)) = module.split_once(EXPERTS) {
            names.push(format!("{layer}{EXPERTS}gate_up_proj")); // unstacked gate and up projection are its halves
        }
        names.iter().any(|name| self.module(name) || self.parameter(name))
    }

    fn included(&self, name: &str) -> bool {
        match (&self.config.target_modules, &self.target_modules) {
            (_, Some(regex)) => regex.matches(name),
            (Some(TargetModules::Pattern(_)), None) => name != "lm_head", // all-linear
            (Some(TargetModules::List(names)), None) => {
                let suffix = |wanted: &String| name != wanted && ends_with(name, wanted);
                let layer = || self.layers.as_ref().is_none_or(|layers| layers.contain(name));
                names.iter().any(|wanted| name == wanted) || (names.iter().any(suffix) && layer())
            }
            (None, None) => false,
        }
    }

    fn excluded(&self, name: &str) -> bool {
        let excluded = match (&self.config.exclude_modules, &self.exclude_modules) {
            (_, Some(regex)) => regex.matches(name),
            (Some(TargetModules::List(names)), None) => names.iter().any(|wanted| ends_with(name, wanted)),
            _ => false,
        };
        excluded || excluded_by_modules_to_save(self.config, name)
    }
}

fn compile(key: &str, names: &Option<TargetModules>) -> Result<Option<ModuleRegex>, AdapterError> {
    match names {
        Some(TargetModules::Pattern(pattern)) if pattern != "all-linear" => {
            ModuleRegex::full(key, pattern).map(Some)
        }
        _ => Ok(None),
    }
}

/// `layers_to_transform`: restricts modules that were matched by a suffix to some layers.
struct LayersToTransform {
    indices: Vec<usize>,
    /// Expressions that capture the index of a layer.
    patterns: Vec<ModuleRegex>,
}

impl LayersToTransform {
    fn from_config(config: &AdapterConfig) -> Result<Option<Self>, AdapterError> {
        const KEY: &str = "layers_pattern";
        let indices: Vec<usize> = one_or_many(config, "layers_to_transform")?;
        if indices.is_empty() {
            return Ok(None);
        }
        let names: Vec<String> = one_or_many(config, KEY)?;
        let mut patterns = names
            .iter()
            .map(|name| ModuleRegex::new(KEY, name, format!(r"^.*\.(?:{name})\.(\d+)\.")))
            .collect::<Result<Vec<_>, _>>()?;
        if patterns.is_empty() {
            patterns.push(ModuleRegex::new(KEY, "", r"^.*\.[^.]*\.(\d+)\.".to_owned())?);
        }
        Ok(Some(Self { indices, patterns }))
    }

    fn contain(&self, name: &str) -> bool {
        let index = self.patterns.iter().find_map(|pattern| pattern.captured_number(name));
        index.is_some_and(|index| self.indices.contains(&index))
    }
}

/// A value or a list of values of a key in `rest`; empty if the key is missing.
fn one_or_many<T: for<'de> Deserialize<'de>>(
    config: &AdapterConfig,
    key: &'static str,
) -> Result<Vec<T>, AdapterError> {
    let found = config.rest.get(key).cloned().unwrap_or(Value::Null);
    let read: Option<OneOrMany<T>> = serde_json::from_value(found.clone()).map_err(|_| {
        AdapterError::UnsupportedOption { key, found: Box::new(found), needed: Box::new(Value::Null) }
    })?;
    Ok(read.map(OneOrMany::into_vec).unwrap_or_default())
}

/// Rank, scale and dropout of one module.
pub(crate) fn lora_config(config: &AdapterConfig, name: &str) -> Result<LoraLayerConfig, AdapterError> {
    let rank = first_match("rank_pattern", &config.rank_pattern, name)?.unwrap_or(config.r);
    let alpha = first_match("alpha_pattern", &config.alpha_pattern, name)?.unwrap_or(config.lora_alpha);
    if rank == 0 || !alpha.is_finite() {
        return Err(AdapterError::ModuleRankOrAlpha { module: name.to_owned(), rank, alpha });
    }
    Ok(LoraLayerConfig { rank, alpha, rslora: config.use_rslora, dropout: config.lora_dropout })
}

/// The value of the first key that matches a module (PEFT, `get_pattern_key`).
fn first_match<T: Copy>(
    key: &str,
    patterns: &IndexMap<String, T>,
    name: &str,
) -> Result<Option<T>, AdapterError> {
    for (pattern, value) in patterns {
        if ModuleRegex::suffix(key, pattern)?.matches(name) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Two keys of `alpha_pattern` that match a module with different values, the one that applies first. A conflict of ranks
/// would show in the shapes of the factors.
pub(crate) fn conflicting_alphas<'a>(
    config: &'a AdapterConfig,
    module: &str,
) -> Result<Option<[&'a str; 2]>, AdapterError> {
    let mut applied: Option<(&str, f64)> = None;
    for (pattern, alpha) in &config.alpha_pattern {
        if !ModuleRegex::suffix("alpha_pattern", pattern)?.matches(module) {
            continue;
        }
        match applied {
            Some((first, of_first)) if of_first != *alpha => return Ok(Some([first, pattern])),
            Some(_) => {}
            None => applied = Some((pattern, *alpha)),
        }
    }
    Ok(None)
}

/// Whether `suffix` is the full name or starts after a dot.
fn ends_with(name: &str, suffix: &str) -> bool {
    name == suffix || name.strip_suffix(suffix).is_some_and(|before| before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(json: Value) -> AdapterConfig {
        let mut whole = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
        whole.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    const Q3: &str = "model.language_model.layers.3.self_attn.q_proj";
    const Q11: &str = "model.language_model.layers.11.self_attn.q_proj";
    const VISION: &str = "model.visual.blocks.3.attn.q_proj";

    /// The cases of PEFT's `check_target_module_exists`.
    #[test]
    fn layers_to_transform_restricts_suffixes_as_in_peft() {
        for (keys, expected) in [
            (json!({"target_modules": ["q_proj"]}), [true, true, true]),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": 3}), [true, false, true]),
            (json!({"target_modules": ["q_proj"], "layers_to_transform": [3, 11]}), [true, true, true]),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [3], "layers_pattern": "layers"}),
                [true, false, false],
            ),
            (
                json!({"target_modules": ["q_proj"], "layers_to_transform": [3], "layers_pattern": ["h", "blocks"]}),
                [false, false, true],
            ),
            // Full names and expressions are not restricted.
            (json!({"target_modules": [Q11], "layers_to_transform": [3]}), [false, true, false]),
            (
                json!({"target_modules": ".*language.*q_proj", "layers_to_transform": [3]}),
                [true, true, false],
            ),
        ] {
            let config = config(keys.clone());
            let matcher = TargetMatcher::new(&config).unwrap();
            assert_eq!([Q3, Q11, VISION].map(|name| matcher.module(name)), expected, "{keys}");
        }
        let odd = config(json!({"layers_to_transform": "first"}));
        assert!(
            TargetMatcher::new(&odd)
                .err()
                .unwrap()
                .to_string()
                .starts_with("layers_to_transform is \"first\"")
        );
    }

    #[test]
    fn the_first_matching_pattern_applies_as_in_peft() {
        let sized = |keys: &str| {
            let config =
                serde_json::from_str(&format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, {keys}}}"#));
            let lora = lora_config(&config.unwrap(), Q3).unwrap();
            (lora.rank, lora.alpha)
        };
        let keys = |first: &str, second: &str| {
            let pattern = format!(r#"{{{first}, {second}}}"#);
            sized(&format!(r#""rank_pattern": {pattern}, "alpha_pattern": {pattern}"#))
        };
        let [one, every] = [r#""layers.3.self_attn.q_proj": 2"#, r#""q_proj": 32"#];
        assert_eq!(keys(one, every), (2, 2.0));
        assert_eq!(keys(every, one), (32, 32.0));
        assert_eq!(sized(r#""rank_pattern": {"o_proj": 2}"#), (4, 8.0));

        for (alphas, found) in [
            (
                json!({"layers.3.self_attn.q_proj": 2, "q_proj": 32}),
                Some(["layers.3.self_attn.q_proj", "q_proj"]),
            ),
            (json!({"layers.3.self_attn.q_proj": 2, "q_proj": 2}), None),
            (json!({"layers.4.self_attn.q_proj": 2, "q_proj": 32}), None),
        ] {
            let config = config(json!({"alpha_pattern": alphas}));
            assert_eq!(conflicting_alphas(&config, Q3).unwrap(), found);
        }
    }

    #[test]
    fn target_parameters_match_experts_and_no_linear_layers_of_the_same_name() {
        let config = config(json!({"target_parameters": ["down_proj"]}));
        let matcher = TargetMatcher::new(&config).unwrap();

        assert!(matcher.parameter("model.language_model.layers.1.mlp.experts.down_proj"));
        for name in ["layers.0.mlp.down_proj", "layers.1.mlp.shared_experts.down_proj"] {
            assert!(!matcher.parameter(&format!("model.language_model.{name}")), "{name}");
        }
    }

    #[test]
    fn modules_to_save_match_suffixes_of_modules() {
        let config = config(json!({"modules_to_save": ["norm", "visual.merger"]}));
        for name in [
            "model.language_model.norm.weight",
            "model.language_model.layers.0.input_layernorm.weight",
            "model.visual.blocks.0.attn.q_norm.weight",
            "model.visual.merger.post_projection_norm.bias",
            "model.visual.merger.proj.weight",
        ] {
            assert!(in_modules_to_save(&config, name), "{name}");
        }
        for name in ["model.language_model.norms.weight", "model.visual.mergers.weight", "norm"] {
            assert!(!in_modules_to_save(&config, name), "{name}");
        }
    }

    #[test]
    fn experts_are_allowed_stacked_or_not() {
        let apart = config(json!({"target_modules": ["gate_proj", "down_proj"]}));
        let stacked = config(json!({"target_parameters": ["mlp.experts.gate_up_proj"]}));
        let short = config(json!({"target_parameters": ["down_proj"]}));
        assert!(TargetMatcher::new(&short).unwrap().allows("model.layers.1.mlp.experts"));
        let [apart, stacked] = [&apart, &stacked].map(|config| TargetMatcher::new(config).unwrap());

        assert!(apart.allows("model.layers.1.mlp.experts.7.gate_proj"));
        assert!(!apart.allows("model.layers.1.mlp.experts.7.up_proj"));
        assert!(!apart.allows("model.layers.1.mlp.experts"));
        for name in ["experts", "experts.base_layer", "experts.7.up_proj", "experts.7.gate_up_proj"] {
            assert!(stacked.allows(&format!("model.layers.1.mlp.{name}")), "{name}");
        }
        assert!(!stacked.allows("model.layers.1.self_attn.q_proj"));
    }
}
