//! Which modules an adapter is attached to: PEFT's rules for names.

use std::collections::{BTreeMap, BTreeSet};

use fancy_regex::Regex;
use glm4v_model::{Glm4v, LoraConfig};

use super::AdapterError;
use super::config::{AdapterConfig, Names};

/// A linear map that an adapter can be attached to: the name that a config speaks of.
///
/// Experts of a layer go by one name, as transformers stacks them: `….mlp.experts.gate_up_proj`.
pub(crate) fn spoken_name(name: &str) -> String {
    match name.split_once(".mlp.experts.") {
        Some((before, after)) => {
            let kind = after.split_once('.').map_or(after, |(_, kind)| kind);
            format!("{before}.mlp.experts.{kind}")
        }
        None => name.to_owned(),
    }
}

/// Names of all linear maps of a network, experts of a layer once.
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
    let saved = |name: &str| is_saved(config, name);
    let mut picked: BTreeSet<&String> = BTreeSet::new();
    let mut lists = Vec::new();
    match &config.target_modules {
        Some(Names::List(names)) => lists.push(("target_modules", names)),
        Some(Names::Pattern(all)) if all == "all-linear" => {
            picked.extend(candidates.iter().filter(|name| *name != "lm_head"));
        }
        Some(Names::Pattern(pattern)) => {
            let expression = Expression::whole("target_modules", pattern)?;
            picked.extend(candidates.iter().filter(|name| expression.matches(name)));
            if picked.is_empty() {
                return Err(no_match("target_modules", pattern, &candidates));
            }
        }
        None => {}
    }
    if let Some(names) = &config.target_parameters {
        lists.push(("target_parameters", names));
    }
    for (key, names) in lists {
        for wanted in names {
            let before = picked.len();
            let found = candidates.iter().filter(|name| ends_with(name, wanted));
            let mut any = false;
            picked.extend(found.inspect(|_| any = true));
            if before == picked.len() && !any {
                return Err(no_match(key, wanted, &candidates));
            }
        }
    }
    if let Some(names) = &config.exclude_modules {
        let expression = match names {
            Names::Pattern(pattern) => Some(Expression::whole("exclude_modules", pattern)?),
            Names::List(_) => None,
        };
        picked.retain(|name| match (names, &expression) {
            (Names::List(list), _) => !list.iter().any(|wanted| ends_with(name, wanted)),
            (_, Some(expression)) => !expression.matches(name),
            _ => true,
        });
    }
    picked.retain(|name| !saved(name));
    let mut adapters = BTreeMap::new();
    for name in picked {
        adapters.insert(name.clone(), size(config, name)?);
    }
    Ok(Picked { adapters, candidates })
}

/// Rank, scale and dropout of one module's adapter.
pub(crate) fn size(config: &AdapterConfig, name: &str) -> Result<LoraConfig, AdapterError> {
    let mut rank = config.r;
    for (pattern, r) in &config.rank_pattern {
        if Expression::end("rank_pattern", pattern)?.matches(name) {
            rank = *r;
        }
    }
    let mut alpha = config.lora_alpha;
    for (pattern, a) in &config.alpha_pattern {
        if Expression::end("alpha_pattern", pattern)?.matches(name) {
            alpha = *a;
        }
    }
    if rank == 0 || !alpha.is_finite() {
        return Err(AdapterError::ModuleSize { module: name.to_owned(), rank, alpha });
    }
    Ok(LoraConfig { rank, alpha, rslora: config.use_rslora, dropout: config.lora_dropout })
}

/// Whether a parameter or a module belongs to what learns whole.
pub(crate) fn is_saved(config: &AdapterConfig, name: &str) -> bool {
    let dotted = format!(".{name}.");
    config.modules_to_save.iter().flatten().any(|module| dotted.contains(&format!(".{module}.")))
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
}

/// Names differ by their numbers mostly: one of each kind is shown.
fn no_match(key: &str, wanted: &str, candidates: &BTreeSet<String>) -> AdapterError {
    let kinds: BTreeSet<String> = candidates.iter().map(|name| without_numbers(name)).collect();
    AdapterError::NoMatch {
        key: key.to_owned(),
        wanted: wanted.to_owned(),
        kinds: kinds.into_iter().collect(),
    }
}

fn without_numbers(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}
