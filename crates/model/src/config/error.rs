//! Errors of reading a `config.json`.

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON.
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// A value of the wrong type.
    #[error("config.json: key \"{key}\": {source}")]
    Type {
        /// Path of the key, with dots.
        key: String,
        /// The type in the file and the expected one.
        source: serde_json::Error,
    },
    /// A required key is absent, and transformers has no default for it.
    #[error("config.json: key \"{key}\" is missing; needed: {needed}")]
    Missing {
        /// Path of the key, with dots.
        key: &'static str,
        /// Kind of value that the key takes.
        needed: &'static str,
    },
    /// A value out of range, or in conflict with another one.
    #[error("config.json: key \"{key}\" is {found}; needed: {needed}")]
    Invalid {
        /// Path of the key, with dots.
        key: &'static str,
        /// The value in the file.
        found: String,
        /// The values that are accepted.
        needed: String,
    },
}
