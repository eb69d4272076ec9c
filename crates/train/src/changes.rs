//! What may be changed in a run's config between a checkpoint and the run that goes on from it.
//!
//! A resumed run continues number for number unless it is told otherwise. So what the saved state does not fit is refused,
//! what only moves the numbers is allowed and reported, and what no number depends on is not mentioned.

use std::collections::BTreeMap;
use std::fmt;

use toml::{Table, Value};

use crate::config::RunConfig;

/// A setting that differs from the checkpoint's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key with its section.
    pub key: String,
    /// Its value in the checkpoint.
    pub saved: String,
    /// Its value now.
    pub now: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.key, self.saved, self.now)
    }
}

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No number depends on it.
    Unmentioned,
    /// It is allowed, and reported.
    Reported,
    /// It is refused, for this reason.
    Refused(&'static str),
}

impl Change {
    pub(crate) fn new(key: impl Into<String>, saved: impl fmt::Display, now: impl fmt::Display) -> Self {
        Self { key: key.into(), saved: saved.to_string(), now: now.to_string() }
    }

    /// What becomes of it.
    pub(crate) fn fate(&self) -> Fate {
        let of_adapters = "the saved adapters are those of the first run";
        match self.key.as_str() {
            "run.output_dir"
            | "eval.log_samples"
            | "run.save_total_limit"
            | "run.save_steps"
            | "data.workers" => Fate::Unmentioned,
            "run.seed" => Fate::Refused("the order of the records comes from it"),
            "data.batch_size" => Fate::Refused("other batches would follow"),
            "dtype" => Fate::Refused("the saved weights are of that type"),
            "model.init" => Fate::Refused("the first weights come from it"),
            "lora.lora_dropout" => Fate::Reported,
            "lora" => Fate::Refused(of_adapters),
            key if key.starts_with("lora.") => Fate::Refused(of_adapters),
            "model.freeze" => Fate::Refused("the optimizer has state for what learned in the first run"),
            _ => Fate::Reported,
        }
    }
}

/// Every setting that differs.
pub(crate) fn changes(saved: &RunConfig, now: &RunConfig) -> Vec<Change> {
    let written = |on: bool| if on { "present" } else { "absent" };
    if saved.lora.is_some() != now.lora.is_some() {
        return vec![Change::new("lora", written(saved.lora.is_some()), written(now.lora.is_some()))];
    }
    let (saved, now) = (flat(saved), flat(now));
    let keys = saved.keys().chain(now.keys()).collect::<std::collections::BTreeSet<_>>();
    let value = |table: &BTreeMap<String, String>, key: &str| {
        table.get(key).cloned().unwrap_or_else(|| "absent".to_owned())
    };
    let changes = keys.into_iter().map(|key| Change::new(key, value(&saved, key), value(&now, key)));
    changes.filter(|change| change.saved != change.now).collect()
}

/// Every key with its section, and its value as TOML.
fn flat(config: &RunConfig) -> BTreeMap<String, String> {
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
    use crate::config::{LoraSection, Part};

    /// The changes that one edit makes, each with what becomes of it.
    fn after(edit: impl FnOnce(&mut RunConfig)) -> Vec<(String, Fate)> {
        let saved = RunConfig { lora: Some(LoraSection::default()), ..RunConfig::default() };
        let mut now = saved.clone();
        edit(&mut now);
        changes(&saved, &now).iter().map(|change| (change.to_string(), change.fate())).collect()
    }

    #[test]
    fn what_only_moves_the_numbers_is_reported() {
        let found = after(|run| {
            run.optim.lr = 1e-4;
            run.schedule.max_steps = 80;
            run.eval.data = "x".into();
            run.run.output_dir = "moved".into();
            run.data.workers = 3;
        });

        let reported = [r#"eval.data "" -> "x""#, "optim.lr 0.00001 -> 0.0001", "schedule.max_steps 0 -> 80"];
        let found: Vec<String> =
            found.into_iter().filter(|(_, fate)| *fate != Fate::Unmentioned).map(|(said, _)| said).collect();
        assert_eq!(found.iter().map(|said| said.replace("1e-5", "0.00001")).collect::<Vec<_>>(), reported);
    }

    #[test]
    fn what_the_saved_state_does_not_fit_is_refused() {
        type Edit = fn(&mut RunConfig);
        let edits: [(&str, Edit); 6] = [
            ("data.batch_size 8 -> 4", |run| run.data.batch_size = 4),
            ("run.seed 0 -> 1", |run| run.run.seed = 1),
            ("model.freeze [] -> [\"vision\"]", |run| run.model.freeze = vec![Part::Vision]),
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
            assert!(matches!(found[0].1, Fate::Refused(_)), "{expected}");
        }
        assert_eq!(after(|_| {}), []);
    }
}
