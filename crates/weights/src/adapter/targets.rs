//! Which modules an adapter is attached to: PEFT's rules for names.

use std::collections::{BTreeMap, BTreeSet};

use fancy_regex::Regex;
use glm4v_model::{Architecture, Glm4v, LoraConfig};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::AdapterError;
use super::config::{AdapterConfig, Names};

/// Between the name of a layer and that of one of its experts.
const EXPERTS: &str = ".mlp.experts.";

/// A linear layer that an adapter can be attached to: the name that a config speaks of.
///
/// Experts of a layer go by one name, as transformers stacks them: `….mlp.experts.gate_up_proj`.
pub(crate) fn spoken_name(name: &str) -> String {
    match name.split_once(EXPERTS) {
        Some((before, after)) => {
            let kind = after.split_once('.').map_or(after, |(_, kind)| kind);
            format!("{before}{EXPERTS}{kind}")
        }
        None => name.to_owned(),
    }
}

/// Names of all linear layers of a network, experts of a layer once.
fn candidates(model: &mut Glm4v) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    model.for_each_linear(|name, _| {
        names.insert(spoken_name(name));
    });
    names
}

/// What an adapter's config picks from a network.
#[derive(Debug)]
pub(crate) struct Picked {
    /// Modules with an adapter, and its size.
    pub(crate) adapters: BTreeMap<String, LoraConfig>,
    /// Every module that could have had one.
    pub(crate) candidates: BTreeSet<String>,
}

/// Finds the modules that a config names.
///
/// # Errors
///
/// When a name or an expression matches nothing: with the names that there are.
pub(crate) fn pick(config: &AdapterConfig, model: &mut Glm4v) -> Result<Picked, AdapterError> {
    let candidates = candidates(model);
    let targets = Targets::of(config)?;
    if let Some(Names::Pattern(pattern)) = &config.target_modules
        && !candidates.iter().any(|name| targets.included(name))
    {
        return Err(no_match("target_modules", pattern, &candidates));
    }
    let modules = match &config.target_modules {
        Some(Names::List(names)) => names.as_slice(),
        _ => &[],
    };
    let parameters = config.target_parameters.as_deref().unwrap_or_default();
    for (key, names) in [("target_modules", modules), ("target_parameters", parameters)] {
        for wanted in names {
            let allowed = |name: &String| key == "target_modules" || name.contains(EXPERTS);
            if !candidates.iter().any(|name| allowed(name) && ends_with(name, wanted)) {
                return Err(no_match(key, wanted, &candidates));
            }
        }
    }
    let mut adapters = BTreeMap::new();
    for name in candidates.iter().filter(|name| targets.module(name) || targets.parameter(name)) {
        if is_saved(config, &format!("{name}.weight")) {
            return Err(AdapterError::Both { module: name.clone() });
        }
        adapters.insert(name.clone(), size(config, name)?);
    }
    Ok(Picked { adapters, candidates })
}

/// Refuses what PEFT would take for something else.
///
/// The experts of a `glm4v_moe` model were linear layers in transformers 4. PEFT 0.21 reads targets of those names, long or
/// short, for the experts of transformers 5 (`utils/transformers_weight_conversion.py`), and with them those of dense layers,
/// shared experts, the vision tower and the merger: what it loads computes something else, mostly without an error.
pub(crate) fn check_published(picked: &Picked, architecture: Architecture) -> Result<(), AdapterError> {
    const TAKEN: [&str; 3] = [".gate_proj", ".up_proj", ".down_proj"];
    if architecture != Architecture::Glm4vMoe {
        return Ok(());
    }
    let taken = |name: &&String| !name.contains(EXPERTS) && TAKEN.iter().any(|end| name.ends_with(end));
    let modules = kinds(picked.adapters.keys().filter(taken));
    if modules.is_empty() { Ok(()) } else { Err(AdapterError::TakenForExperts { modules }) }
}

/// The targets of a config, its expressions read.
pub(crate) struct Targets<'a> {
    config: &'a AdapterConfig,
    included: Option<Expression>,
    excluded: Option<Expression>,
    layers: Option<Layers>,
}

impl<'a> Targets<'a> {
    pub(crate) fn of(config: &'a AdapterConfig) -> Result<Self, AdapterError> {
        let pattern = |key: &str, names: &Option<Names>| match names {
            Some(Names::Pattern(pattern)) if !is_all(pattern) => Expression::whole(key, pattern).map(Some),
            _ => Ok(None),
        };
        Ok(Self {
            included: pattern("target_modules", &config.target_modules)?,
            excluded: pattern("exclude_modules", &config.exclude_modules)?,
            layers: Layers::of(config)?,
            config,
        })
    }

    /// Whether the config names anything at all.
    pub(crate) fn any(&self) -> bool {
        let modules = self.config.target_modules.as_ref().is_some_and(|names| !names.is_empty());
        modules || self.config.target_parameters.as_ref().is_some_and(|names| !names.is_empty())
    }

    /// Whether `target_modules` gives a module an adapter, by its whole name.
    pub(crate) fn module(&self, name: &str) -> bool {
        self.included(name) && !self.left_out(name)
    }

    /// Whether `target_parameters` does, for experts by the name that they share.
    pub(crate) fn parameter(&self, name: &str) -> bool {
        let mut names = self.config.target_parameters.iter().flatten();
        // Of the network's weights only stacked experts are parameters without a module of their own: `down_proj` is theirs alone.
        name.contains(EXPERTS) && names.any(|wanted| ends_with(name, wanted)) && !self.left_out(name)
    }

    /// Whether the config allows tensors for a module of an adapter's file, experts in whichever form.
    pub(crate) fn allows(&self, module: &str) -> bool {
        let stack = EXPERTS.trim_end_matches('.');
        if let Some(layer) = module.strip_suffix(".base_layer").unwrap_or(module).strip_suffix(stack) {
            let named = |kind: &str| self.parameter(&format!("{layer}{EXPERTS}{kind}"));
            return named("gate_up_proj") || named("down_proj");
        }
        let mut names = vec![module.to_owned(), spoken_name(module)];
        if let Some((before, _)) = module.split_once(EXPERTS) {
            names.push(format!("{before}{EXPERTS}gate_up_proj")); // what gate and up projection are halves of
        }
        names.iter().any(|name| self.module(name) || self.parameter(name))
    }

    fn included(&self, name: &str) -> bool {
        match (&self.config.target_modules, &self.included) {
            (_, Some(expression)) => expression.matches(name),
            (Some(Names::Pattern(_)), None) => name != "lm_head", // all-linear
            (Some(Names::List(names)), None) => {
                let end = |wanted: &String| name != wanted && ends_with(name, wanted);
                let layer = || self.layers.as_ref().is_none_or(|layers| layers.contain(name));
                names.iter().any(|wanted| name == wanted) || (names.iter().any(end) && layer())
            }
            (None, None) => false,
        }
    }

    fn left_out(&self, name: &str) -> bool {
        let excluded = match (&self.config.exclude_modules, &self.excluded) {
            (_, Some(expression)) => expression.matches(name),
            (Some(Names::List(names)), None) => names.iter().any(|wanted| ends_with(name, wanted)),
            _ => false,
        };
        excluded || is_replaced(self.config, name)
    }
}

fn is_all(pattern: &str) -> bool {
    pattern == "all-linear"
}

/// `layers_to_transform`: of the modules that are named by their ends, those of some layers.
struct Layers {
    numbers: Vec<usize>,
    places: Vec<Expression>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl Layers {
    fn of(config: &AdapterConfig) -> Result<Option<Self>, AdapterError> {
        const KEY: &str = "layers_pattern";
        let numbers: Vec<usize> = list(config, "layers_to_transform")?;
        if numbers.is_empty() {
            return Ok(None);
        }
        let patterns: Vec<String> = list(config, KEY)?;
        let places = patterns
            .iter()
            .map(|pattern| Expression::new(KEY, pattern, format!(r"^.*\.(?:{pattern})\.(\d+)\.")))
            .collect::<Result<Vec<_>, _>>()?;
        let any = || Expression::new(KEY, "", r"^.*\.[^.]*\.(\d+)\.".to_owned());
        Ok(Some(Self { numbers, places: if places.is_empty() { vec![any()?] } else { places } }))
    }

    fn contain(&self, name: &str) -> bool {
        let number = self.places.iter().find_map(|place| place.number(name));
        number.is_some_and(|number| self.numbers.contains(&number))
    }
}

/// A value or a list of them among the keys that are only passed on; empty if there is none.
fn list<T: for<'de> Deserialize<'de>>(
    config: &AdapterConfig,
    key: &'static str,
) -> Result<Vec<T>, AdapterError> {
    let found = config.rest.get(key).cloned().unwrap_or(Value::Null);
    let read: Option<OneOrMany<T>> = serde_json::from_value(found.clone())
        .map_err(|_| AdapterError::Formula { key, found: Box::new(found), needed: Box::new(Value::Null) })?;
    Ok(read.map(OneOrMany::into_vec).unwrap_or_default())
}

/// Rank, scale and dropout of one module's adapter.
pub(crate) fn size(config: &AdapterConfig, name: &str) -> Result<LoraConfig, AdapterError> {
    let rank = first("rank_pattern", &config.rank_pattern, name)?.unwrap_or(config.r);
    let alpha = first("alpha_pattern", &config.alpha_pattern, name)?.unwrap_or(config.lora_alpha);
    if rank == 0 || !alpha.is_finite() {
        return Err(AdapterError::ModuleSize { module: name.to_owned(), rank, alpha });
    }
    Ok(LoraConfig { rank, alpha, rslora: config.use_rslora, dropout: config.lora_dropout })
}

/// What the first key that fits a module says (PEFT, `get_pattern_key`).
fn first<T: Copy>(key: &str, patterns: &IndexMap<String, T>, name: &str) -> Result<Option<T>, AdapterError> {
    for (pattern, value) in patterns {
        if Expression::end(key, pattern)?.matches(name) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Two keys of `alpha_pattern` that fit a module and disagree, the one that counts first. A rank would show in the tensors.
pub(crate) fn contested<'a>(
    config: &'a AdapterConfig,
    module: &str,
) -> Result<Option<[&'a str; 2]>, AdapterError> {
    let mut counts: Option<(&str, f64)> = None;
    for (pattern, alpha) in &config.alpha_pattern {
        if !Expression::end("alpha_pattern", pattern)?.matches(module) {
            continue;
        }
        match counts {
            Some((first, of_first)) if of_first != *alpha => return Ok(Some([first, pattern])),
            Some(_) => {}
            None => counts = Some((pattern, *alpha)),
        }
    }
    Ok(None)
}

/// Whether a parameter belongs to a module that learns whole: one whose name ends with what `modules_to_save` says (PEFT,
/// `_set_trainable`), so that `norm` means every norm.
pub(crate) fn is_saved(config: &AdapterConfig, parameter: &str) -> bool {
    let modules = || parameter.match_indices('.').map(|(end, _)| &parameter[..end]);
    config.modules_to_save.iter().flatten().any(|wanted| modules().any(|module| module.ends_with(wanted)))
}

/// Whether `modules_to_save` keeps a linear layer from getting an adapter: where the name of one is part of it (PEFT,
/// `check_target_module_exists`).
pub(crate) fn is_replaced(config: &AdapterConfig, module: &str) -> bool {
    let dotted = format!(".{module}.");
    config.modules_to_save.iter().flatten().any(|wanted| dotted.contains(&format!(".{wanted}.")))
}

fn ends_with(name: &str, wanted: &str) -> bool {
    name == wanted || name.strip_suffix(wanted).is_some_and(|before| before.ends_with('.'))
}

/// A regular expression of a config, with Python's look-around and a bound on the work.
struct Expression(Regex);

impl Expression {
    /// For whole names (`re.fullmatch`).
    fn whole(key: &str, pattern: &str) -> Result<Self, AdapterError> {
        Self::new(key, pattern, format!("^(?:{pattern})$"))
    }

    /// For the end of names (PEFT, `get_pattern_key`).
    fn end(key: &str, pattern: &str) -> Result<Self, AdapterError> {
        Self::new(key, pattern, format!(r"^(?:.*\.)?(?:{pattern})$"))
    }

    fn new(key: &str, pattern: &str, expression: String) -> Result<Self, AdapterError> {
        Regex::new(&expression).map(Self).map_err(|source| AdapterError::Pattern {
            key: key.to_owned(),
            pattern: pattern.to_owned(),
            source: Box::new(source),
        })
    }

    fn matches(&self, name: &str) -> bool {
        // An expression that runs into its bound matches nothing.
        self.0.is_match(name).unwrap_or(false)
    }

    /// The number that the last group finds.
    fn number(&self, name: &str) -> Option<usize> {
        let found = self.0.captures(name).ok()??;
        found.get(found.len() - 1)?.as_str().parse().ok()
    }
}

/// Names differ by their numbers mostly: one of each kind is shown.
fn no_match(key: &str, wanted: &str, candidates: &BTreeSet<String>) -> AdapterError {
    AdapterError::NoMatch { key: key.to_owned(), wanted: wanted.to_owned(), kinds: kinds(candidates) }
}

/// Names without their numbers, each once.
pub(crate) fn kinds<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let kinds: BTreeSet<String> = names.into_iter().map(|name| without_numbers(name)).collect();
    kinds.into_iter().collect()
}

fn without_numbers(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
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
    fn layers_are_counted_as_in_peft() {
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
            // Neither whole names nor expressions are counted.
            (json!({"target_modules": [Q11], "layers_to_transform": [3]}), [false, true, false]),
            (
                json!({"target_modules": ".*language.*q_proj", "layers_to_transform": [3]}),
                [true, true, false],
            ),
        ] {
            let config = config(keys.clone());
            let targets = Targets::of(&config).unwrap();
            assert_eq!([Q3, Q11, VISION].map(|name| targets.module(name)), expected, "{keys}");
        }
        let odd = config(json!({"layers_to_transform": "first"}));
        assert!(Targets::of(&odd).err().unwrap().to_string().starts_with("layers_to_transform is \"first\""));
    }

    #[test]
    fn of_two_patterns_that_fit_the_first_counts_as_in_peft() {
        let sized = |keys: &str| {
            let config =
                serde_json::from_str(&format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, {keys}}}"#));
            let size = size(&config.unwrap(), Q3).unwrap();
            (size.rank, size.alpha)
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
            assert_eq!(contested(&config, Q3).unwrap(), found);
        }
    }

    #[test]
    fn parameters_are_those_of_experts_and_no_maps_of_the_same_name() {
        let config = config(json!({"target_parameters": ["down_proj"]}));
        let targets = Targets::of(&config).unwrap();

        assert!(targets.parameter("model.language_model.layers.1.mlp.experts.down_proj"));
        for name in ["layers.0.mlp.down_proj", "layers.1.mlp.shared_experts.down_proj"] {
            assert!(!targets.parameter(&format!("model.language_model.{name}")), "{name}");
        }
    }

    #[test]
    fn what_is_saved_is_named_by_the_end_of_a_module() {
        let config = config(json!({"modules_to_save": ["norm", "visual.merger"]}));
        for name in [
            "model.language_model.norm.weight",
            "model.language_model.layers.0.input_layernorm.weight",
            "model.visual.blocks.0.attn.q_norm.weight",
            "model.visual.merger.post_projection_norm.bias",
            "model.visual.merger.proj.weight",
        ] {
            assert!(is_saved(&config, name), "{name}");
        }
        for name in ["model.language_model.norms.weight", "model.visual.mergers.weight", "norm"] {
            assert!(!is_saved(&config, name), "{name}");
        }
    }

    #[test]
    fn experts_are_allowed_in_whichever_form_an_adapter_has_them() {
        let apart = config(json!({"target_modules": ["gate_proj", "down_proj"]}));
        let stacked = config(json!({"target_parameters": ["mlp.experts.gate_up_proj"]}));
        let short = config(json!({"target_parameters": ["down_proj"]}));
        assert!(Targets::of(&short).unwrap().allows("model.layers.1.mlp.experts"));
        let [apart, stacked] = [&apart, &stacked].map(|config| Targets::of(config).unwrap());

        assert!(apart.allows("model.layers.1.mlp.experts.7.gate_proj"));
        assert!(!apart.allows("model.layers.1.mlp.experts.7.up_proj"));
        assert!(!apart.allows("model.layers.1.mlp.experts"));
        for name in ["experts", "experts.base_layer", "experts.7.up_proj", "experts.7.gate_up_proj"] {
            assert!(stacked.allows(&format!("model.layers.1.mlp.{name}")), "{name}");
        }
        assert!(!stacked.allows("model.layers.1.self_attn.q_proj"));
    }
}
