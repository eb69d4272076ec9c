//! Errors of the registry.

use std::io;
use std::path::PathBuf;

use glm4v_files::{FileError, did_you_mean};

/// Error of looking up a dataset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetRegistryError {
    /// A directory of records cannot be listed.
    #[error("{}: cannot be read", .file.display())]
    Io {
        /// Path of the directory.
        file: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The registry is not valid JSON.
    #[error("{}: not valid json", .file.display())]
    Json {
        /// Path of the registry.
        file: PathBuf,
        /// Error of the JSON parser, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The registry cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no entry and no file of that name.
    #[error("{}: no dataset \"{name}\", and no file of that name; known are {known}{suggestion}", .file.display())]
    UnknownName {
        /// Path of the registry.
        file: PathBuf,
        /// The name looked up.
        name: String,
        /// Names of the registry.
        known: String,
        /// The nearest of them, as the end of the message.
        suggestion: String,
    },
    /// There is no file of that name, and no registry.
    #[error("\"{name}\": no such file, and no dataset has that name: {} does not exist", .file.display())]
    NoRegistry {
        /// Path of the missing registry.
        file: PathBuf,
        /// The name looked up.
        name: String,
    },
    /// The dataset has no such split.
    #[error("{}: \"{name}\" has no split \"{split}\"; known are {known}{suggestion}", .file.display())]
    UnknownSplit {
        /// Path of the registry, or of the dataset if that is a file.
        file: PathBuf,
        /// Name of the dataset.
        name: String,
        /// The split looked up.
        split: String,
        /// Splits of the dataset.
        known: String,
        /// The nearest of them, as the end of the message.
        suggestion: String,
    },
    /// The dataset has several splits, and the name gives none.
    #[error("{}: \"{name}\" has the splits {known}; name one, as in \"{name}:{first}\"", .file.display())]
    AmbiguousSplit {
        /// Path of the registry.
        file: PathBuf,
        /// Name of the dataset.
        name: String,
        /// Splits of the dataset.
        known: String,
        /// The first of them, as an example.
        first: String,
    },
    /// An unknown key.
    #[error("{}: unknown key \"{key}\"{suggestion}", .file.display())]
    UnknownKey {
        /// Path of the registry.
        file: PathBuf,
        /// Full key, from the name of the dataset.
        key: String,
        /// The nearest key, as the end of the message.
        suggestion: String,
    },
    /// A key of LLaMA-Factory that is not supported.
    #[error("{}: \"{key}\" is not supported; {remedy}", .file.display())]
    Unsupported {
        /// Path of the registry.
        file: PathBuf,
        /// Full key, from the name of the dataset.
        key: String,
        /// The alternative.
        remedy: &'static str,
    },
    /// A value is missing or of the wrong type.
    #[error("{}: \"{key}\" must be {needed}", .file.display())]
    WrongType {
        /// Path of the registry.
        file: PathBuf,
        /// Full key, from the name of the dataset.
        key: String,
        /// Values allowed.
        needed: &'static str,
    },
}

/// The nearest known name, as the end of an error message; empty if none is near.
pub(super) fn suggestion<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    did_you_mean(found, known).map_or_else(String::new, |question| format!("; {question}"))
}
