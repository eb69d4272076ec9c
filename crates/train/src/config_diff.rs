//! Differences between the config of a checkpoint and that of the run that resumes from it.
//!
//! A resumed run continues number for number unless its config changes. So a change that the saved state does not fit is
//! rejected, one that only affects the numbers is allowed and reported, and one that affects no number is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use toml::{Table, Value};

use crate::config::RunConfig;

/// A setting that differs from the checkpoint's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// The key with its section.
    pub key: String,
    /// Its value in the checkpoint.
    pub saved: String,
    /// Its value in the current config.
    pub current: String,
}

impl fmt::Display for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.key, self.saved, self.current)
    }
}

/// Treatment of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangePolicy {
    /// Not mentioned, as no number depends on it.
    Ignore,
    /// Allowed, and reported to the user.
    Report,
    /// An error, with the reason.
    Reject(&'static str),
}

impl ConfigChange {
    pub(crate) fn new(key: impl Into<String>, saved: impl fmt::Display, current: impl fmt::Display) -> Self {
        Self { key: key.into(), saved: saved.to_string(), current: current.to_string() }
    }

    pub(crate) fn policy(&self) -> ChangePolicy {
        let adapter_shape = "the saved adapters are those of the first run";
        match self.key.as_str() {
            "run.output_dir"
            | "eval.log_samples"
            | "run.save_total_limit"
            | "run.save_steps"
            | "data.workers"
            | "data.prefetch_bytes"
            | "data.cache_dir"
            | "data.cache_bytes" => ChangePolicy::Ignore,
            "run.seed" => ChangePolicy::Reject("the order of the records comes from it"),
            "dtype" => ChangePolicy::Reject("the saved weights are of that type"),
            "model.init" => ChangePolicy::Reject("the first weights come from it"),
            "lora.lora_dropout" => ChangePolicy::Report,
            "lora" => ChangePolicy::Reject(adapter_shape),
            key if key.starts_with("lora.") => ChangePolicy::Reject(adapter_shape),
            "model.freeze" => {
                ChangePolicy::Reject("the optimizer has state for the parameters that the first run trained")
            }
            _ => ChangePolicy::Report,
        }
    }
}

/// All settings that differ.
pub(crate) fn config_diff(saved: &RunConfig, current: &RunConfig) -> Vec<ConfigChange> {
    if saved.lora.is_some() != current.lora.is_some() {
        let [saved, current] =
            [saved, current].map(|config| if config.lora.is_some() { "present" } else { "absent" });
        return vec![ConfigChange::new("lora", saved, current)];
    }
    let (saved, current) = (flatten(saved), flatten(current));
    let keys: BTreeSet<&String> = saved.keys().chain(current.keys()).collect();
    let value = |table: &BTreeMap<String, String>, key: &str| {
        table.get(key).cloned().unwrap_or_else(|| "absent".to_owned())
    };
    let changes =
        keys.into_iter().map(|key| ConfigChange::new(key, value(&saved, key), value(&current, key)));
    changes.filter(|change| change.saved != change.current).collect()
}

/// Every key with its section, and its value as TOML.
fn flatten(config: &RunConfig) -> BTreeMap<String, String> {
    fn walk(prefix: &str, table: &Table, found: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            match value {
                Value::Table(table) => walk(&format!("{key}."), table, found),
                value => {
                    found.insert(key, value.to_string());
                }
            }
        }
    }
    let table = Table::try_from(config).expect("a run has no value that TOML cannot express");
    let mut found = BTreeMap::new();
    walk("", &table, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FreezeTarget, LoraSection};

    /// The changes that one edit makes, each with its policy.
    fn after(edit: impl FnOnce(&mut RunConfig)) -> Vec<(String, ChangePolicy)> {
        let saved = RunConfig { lora: Some(LoraSection::default()), ..RunConfig::default() };
        let mut now = saved.clone();
        edit(&mut now);
        config_diff(&saved, &now).iter().map(|change| (change.to_string(), change.policy())).collect()
    }

    #[test]
    fn a_change_that_only_affects_numbers_is_reported() {
        let found = after(|run| {
            run.optim.lr = 1e-4;
            run.data.batch_size = 4; // after a device was out of memory
            run.schedule.max_steps = 80;
            run.eval.data = "x".into();
            run.run.output_dir = "moved".into();
            run.data.workers = 3;
        });

        let reported = [
            "data.batch_size 8 -> 4",
            r#"eval.data "" -> "x""#,
            "optim.lr 0.00001 -> 0.0001",
            "schedule.max_steps 0 -> 80",
        ];
        let found: Vec<String> = found
            .into_iter()
            .filter(|(_, policy)| *policy != ChangePolicy::Ignore)
            .map(|(text, _)| text)
            .collect();
        assert_eq!(found.iter().map(|text| text.replace("1e-5", "0.00001")).collect::<Vec<_>>(), reported);
    }

    #[test]
    fn a_change_that_the_saved_state_does_not_fit_is_rejected() {
        type Edit = fn(&mut RunConfig);
        let edits: [(&str, Edit); 5] = [
            ("run.seed 0 -> 1", |run| run.run.seed = 1),
            ("model.freeze [] -> [\"vision\"]", |run| run.model.freeze = vec![FreezeTarget::Vision]),
            ("lora.r 16 -> 8", |run| run.lora = Some(LoraSection { r: 8, ..LoraSection::default() })),
            ("lora present -> absent", |run| run.lora = None),
            ("lora.rank_pattern.q_proj absent -> 4", |run| {
                let rank_pattern = [("q_proj".to_owned(), 4)].into();
                run.lora = Some(LoraSection { rank_pattern, ..LoraSection::default() });
            }),
        ];
        for (expected, edit) in edits {
            let found = after(edit);

            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0, expected);
            assert!(matches!(found[0].1, ChangePolicy::Reject(_)), "{expected}");
        }
        assert_eq!(after(|_| {}), []);
    }
}
