//! The files of a checkpoint folder that say how its inputs are made.

use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_CONFIG, read_text};
use serde_json::{Map, Value};

/// Why a folder does not hold what a processor needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// No such folder.
    #[error("{folder}: no such folder; give the folder of a checkpoint in Hugging Face layout")]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// A file is missing.
    #[error("{folder}: has no {file}; copy it from the published checkpoint")]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not JSON.
    #[error("{path}, line {line}, column {column}: not valid json")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
        /// What the JSON reader met.
        #[source]
        source: serde_json::Error,
    },
}

/// How the times of a video's frames are written between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampStyle {
    /// Whole seconds, `3` (GLM-4.1V, GLM-4.5V).
    Whole,
    /// Tenths and the unit, `3.5 seconds` (GLM-4.6V, GLM-OCR).
    Tenths,
}

impl TimestampStyle {
    /// A time as it stands in the prompt.
    pub(crate) fn write(self, seconds: f64) -> String {
        match self {
            Self::Whole => format!("{}", seconds.trunc() as i64),
            Self::Tenths => format!("{seconds:.1} seconds"),
        }
    }
}

/// A checkpoint folder.
pub(crate) struct Folder<'a> {
    path: &'a Path,
    tokenizer_config: Map<String, Value>,
    preprocessor: Value,
    /// Configuration for videos, and the file it is from; that of the images where there is none.
    video_preprocessor: (&'static str, Value),
}

const TEMPLATE: &str = "chat_template.jinja";
const PREPROCESSOR: &str = "preprocessor_config.json";
const VIDEO_PREPROCESSOR: &str = "video_preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";
const TOKENIZER: &str = "tokenizer.json";

impl<'a> Folder<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self, FolderError> {
        if !path.is_dir() {
            return Err(FolderError::NoFolder { folder: path.to_owned() });
        }
        let missing = || FolderError::Missing { folder: path.to_owned(), file: PREPROCESSOR };
        let tokenizer_config = match json(&path.join("tokenizer_config.json"))? {
            Some(Value::Object(keys)) => keys,
            _ => Map::new(),
        };
        // transformers 5 nests both when it saves a whole processor.
        let all = json(&path.join(PROCESSOR))?;
        let nested = |key: &str| {
            let all = all.as_ref()?;
            let mut own = all.get(key)?.clone();
            if let (Some(own), Some(class)) = (own.as_object_mut(), all.get("processor_class")) {
                own.entry("processor_class").or_insert_with(|| class.clone());
            }
            Some(own)
        };
        let preprocessor = json(&path.join(PREPROCESSOR))?.or_else(|| nested("image_processor"));
        let preprocessor = preprocessor.ok_or_else(missing)?;
        // The order of `get_video_processor_dict`.
        let video_preprocessor = match nested("video_processor") {
            Some(nested) => (PROCESSOR, nested),
            None => match json(&path.join(VIDEO_PREPROCESSOR))? {
                Some(own) => (VIDEO_PREPROCESSOR, own),
                None => (PREPROCESSOR, preprocessor.clone()),
            },
        };
        Ok(Self { path, tokenizer_config, preprocessor, video_preprocessor })
    }

    pub(crate) fn tokenizer(&self) -> Result<PathBuf, FolderError> {
        let path = self.path.join(TOKENIZER);
        if path.exists() { Ok(path) } else { Err(self.missing(TOKENIZER)) }
    }

    /// The configuration of the image processor, as JSON.
    pub(crate) fn preprocessor(&self) -> String {
        self.preprocessor.to_string()
    }

    pub(crate) fn preprocessor_path(&self) -> PathBuf {
        self.path.join(PREPROCESSOR)
    }

    /// The configuration of the video processor, as JSON.
    pub(crate) fn video_preprocessor(&self) -> String {
        self.video_preprocessor.1.to_string()
    }

    pub(crate) fn video_preprocessor_path(&self) -> PathBuf {
        self.path.join(self.video_preprocessor.0)
    }

    /// The chat template: its own file, or the key of an older file.
    pub(crate) fn template(&self) -> Result<String, FolderError> {
        let path = self.path.join(TEMPLATE);
        if let Some(text) = text(&path)? {
            return Ok(text);
        }
        let older = json(&self.path.join("chat_template.json"))?;
        let older = older.as_ref().and_then(|keys| keys.get("chat_template"));
        older
            .or_else(|| self.tokenizer_config.get("chat_template"))
            .and_then(default_template)
            .map(str::to_owned)
            .ok_or_else(|| self.missing(TEMPLATE))
    }

    /// Texts of the special tokens that a template may name.
    pub(crate) fn token_texts(&self) -> Map<String, Value> {
        let names = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token"];
        let text = |name: &str| {
            let value = self.tokenizer_config.get(name)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.to_owned(), Value::from(text)))
        };
        names.into_iter().filter_map(text).collect()
    }

    /// How times are written, by the class of the processor; GLM-4.1V's way where it is not named.
    pub(crate) fn timestamp_style(&self) -> TimestampStyle {
        let class = self.preprocessor.get("processor_class");
        let class = class.or_else(|| self.tokenizer_config.get("processor_class"));
        match class.and_then(Value::as_str) {
            Some("Glm46VProcessor") => TimestampStyle::Tenths,
            Some("Glm4vProcessor") => TimestampStyle::Whole,
            other => {
                tracing::warn!(?other, "unknown processor class, times are written as whole seconds");
                TimestampStyle::Whole
            }
        }
    }

    fn missing(&self, file: &'static str) -> FolderError {
        FolderError::Missing { folder: self.path.to_owned(), file }
    }
}

/// A template, or the one called "default" of several.
fn default_template(value: &Value) -> Option<&str> {
    let named = |entry: &'_ &Value| entry.get("name").and_then(Value::as_str) == Some("default");
    match value {
        Value::String(text) => Some(text),
        Value::Array(all) => all.iter().find(named)?.get("template")?.as_str(),
        _ => None,
    }
}

/// The text of a file, `None` when there is no such file.
fn text(path: &Path) -> Result<Option<String>, FolderError> {
    match read_text(path, LONGEST_CONFIG) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn json(path: &Path) -> Result<Option<Value>, FolderError> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|source| FolderError::Json {
        path: path.to_owned(),
        line: source.line(),
        column: source.column(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_as_python_rounds_them() {
        // Of two tenths that are as near, the even one.
        let tenths = [0.25, 0.75, 1.25, 0.05, 12.0, 3.0 / 7.0].map(|time| TimestampStyle::Tenths.write(time));
        let expected = ["0.2", "0.8", "1.2", "0.1", "12.0", "0.4"].map(|time| format!("{time} seconds"));
        assert_eq!(tenths, expected);
        assert_eq!([0.0, 0.99, 7.5].map(|time| TimestampStyle::Whole.write(time)), ["0", "0", "7"]);
    }
}
