//! Regular expressions over module names, as PEFT matches them.

use fancy_regex::Regex;

use super::error::AdapterError;

/// A regular expression with Python's look-around, and with a limit on backtracking.
pub(crate) struct ModuleRegex(Regex);

impl ModuleRegex {
    /// Matches full names (`re.fullmatch`).
    pub(crate) fn full(key: &str, pattern: &str) -> Result<Self, AdapterError> {
        Self::new(key, pattern, format!("^(?:{pattern})$"))
    }

    /// Matches suffixes of names that start after a dot (PEFT, `get_pattern_key`).
    pub(crate) fn suffix(key: &str, pattern: &str) -> Result<Self, AdapterError> {
        Self::new(key, pattern, format!(r"^(?:.*\.)?(?:{pattern})$"))
    }

    /// Compiles `expression`; `key` and `pattern` are its origin in the config.
    pub(crate) fn new(key: &str, pattern: &str, expression: String) -> Result<Self, AdapterError> {
        Regex::new(&expression).map(Self).map_err(|source| AdapterError::Pattern {
            key: key.to_owned(),
            pattern: pattern.to_owned(),
            source: Box::new(source),
        })
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        // An expression that exceeds the backtracking limit matches nothing.
        self.0.is_match(name).unwrap_or(false)
    }

    /// The number in the last capture group.
    pub(crate) fn captured_number(&self, name: &str) -> Option<usize> {
        let found = self.0.captures(name).ok()??;
        found.get(found.len() - 1)?.as_str().parse().ok()
    }
}
