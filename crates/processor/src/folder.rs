//! Files of a checkpoint folder that configure its processor.

use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_CONFIG, read_text};
use serde_json::{Map, Value};

/// Error of reading the files of a processor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorFilesError {
    /// The folder does not exist.
    #[error("{folder}: no such directory; give the directory of a checkpoint in Hugging Face layout")]
    NoFolder {
        /// Path of the folder.
        folder: PathBuf,
    },
    /// A required file is missing.
    #[error("{folder}: has no {file}; copy it from the published checkpoint")]
    Missing {
        /// Path of the folder.
        folder: PathBuf,
        /// Name of the file.
        file: &'static str,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not valid JSON.
    #[error("{path}, line {line}, column {column}: not valid json")]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1.
        column: usize,
        /// Error of the parser.
        #[source]
        source: serde_json::Error,
    },
}

/// Format of the timestamps between the frames of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampFormat {
    /// Whole seconds, `3` (GLM-4.1V, GLM-4.5V).
    Whole,
    /// Tenths and the unit, `3.5 seconds` (GLM-4.6V, GLM-OCR).
    Tenths,
}

impl TimestampFormat {
    /// A timestamp as it is written in the prompt.
    pub(crate) fn write(self, seconds: f64) -> String {
        match self {
            Self::Whole => format!("{}", seconds.trunc() as i64),
            Self::Tenths => format!("{seconds:.1} seconds"),
        }
    }
}

/// Configuration files of a checkpoint folder.
pub(crate) struct Folder<'a> {
    path: &'a Path,
    tokenizer_config: Map<String, Value>,
    preprocessor: Value,
    /// Configuration for videos and the name of its file; that of images where there is none.
    video_preprocessor: (&'static str, Value),
}

const TEMPLATE: &str = "chat_template.jinja";
const PREPROCESSOR: &str = "preprocessor_config.json";
const VIDEO_PREPROCESSOR: &str = "video_preprocessor_config.json";
const PROCESSOR: &str = "processor_config.json";
const TOKENIZER: &str = "tokenizer.json";

impl<'a> Folder<'a> {
    pub(crate) fn open(path: &'a Path) -> Result<Self, ProcessorFilesError> {
        if !path.is_dir() {
            return Err(ProcessorFilesError::NoFolder { folder: path.to_owned() });
        }
        let missing = || ProcessorFilesError::Missing { folder: path.to_owned(), file: PREPROCESSOR };
        let tokenizer_config = match json(&path.join("tokenizer_config.json"))? {
            Some(Value::Object(keys)) => keys,
            _ => Map::new(),
        };
        // transformers 5 nests both when it saves a whole processor.
        let all = json(&path.join(PROCESSOR))?;
        let preprocessor =
            json(&path.join(PREPROCESSOR))?.or_else(|| nested_config(all.as_ref()?, "image_processor"));
        let preprocessor = preprocessor.ok_or_else(missing)?;
        // In the order of transformers' `get_video_processor_dict`.
        let video_preprocessor = match all.as_ref().and_then(|all| nested_config(all, "video_processor")) {
            Some(nested) => (PROCESSOR, nested),
            None => match json(&path.join(VIDEO_PREPROCESSOR))? {
                Some(own) => (VIDEO_PREPROCESSOR, own),
                None => (PREPROCESSOR, preprocessor.clone()),
            },
        };
        Ok(Self { path, tokenizer_config, preprocessor, video_preprocessor })
    }

    pub(crate) fn tokenizer(&self) -> Result<PathBuf, ProcessorFilesError> {
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

    /// The chat template: from a file of its own, or from a key of the older files.
    pub(crate) fn template(&self) -> Result<String, ProcessorFilesError> {
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

    /// Texts of the special tokens that templates can refer to, `eos_token` for example.
    pub(crate) fn token_texts(&self) -> Map<String, Value> {
        let names = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token"];
        names.into_iter().filter_map(|name| Some((name.to_owned(), self.token_text(name)?.into()))).collect()
    }

    fn token_text(&self, name: &str) -> Option<&str> {
        let value = self.tokenizer_config.get(name)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }

    /// By the class of the processor; that of GLM-4.1V where the class is missing or unknown.
    pub(crate) fn timestamp_style(&self) -> TimestampFormat {
        let class = self.preprocessor.get("processor_class");
        let class = class.or_else(|| self.tokenizer_config.get("processor_class"));
        match class.and_then(Value::as_str) {
            Some("Glm46VProcessor") => TimestampFormat::Tenths,
            Some("Glm4vProcessor") => TimestampFormat::Whole,
            other => {
                tracing::warn!(?other, "unknown processor class, times are written as whole seconds");
                TimestampFormat::Whole
            }
        }
    }

    fn missing(&self, file: &'static str) -> ProcessorFilesError {
        ProcessorFilesError::Missing { folder: self.path.to_owned(), file }
    }
}

/// The configuration under a key of `processor_config.json`, with the class of the whole processor.
fn nested_config(all: &Value, key: &str) -> Option<Value> {
    let mut own = all.get(key)?.clone();
    if let (Some(own), Some(class)) = (own.as_object_mut(), all.get("processor_class")) {
        own.entry("processor_class").or_insert_with(|| class.clone());
    }
    Some(own)
}

/// A single template, or the one named "default" of several.
fn default_template(value: &Value) -> Option<&str> {
    let named = |entry: &'_ &Value| entry.get("name").and_then(Value::as_str) == Some("default");
    match value {
        Value::String(text) => Some(text),
        Value::Array(all) => all.iter().find(named)?.get("template")?.as_str(),
        _ => None,
    }
}

/// The text of a file, `None` if it does not exist.
fn text(path: &Path) -> Result<Option<String>, ProcessorFilesError> {
    match read_text(path, LONGEST_CONFIG) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn json(path: &Path) -> Result<Option<Value>, ProcessorFilesError> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|source| ProcessorFilesError::Json {
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
    fn timestamps_are_rounded_as_in_python() {
        // Ties go to the even tenth.
        let tenths =
            [0.25, 0.75, 1.25, 0.05, 12.0, 3.0 / 7.0].map(|time| TimestampFormat::Tenths.write(time));
        let expected = ["0.2", "0.8", "1.2", "0.1", "12.0", "0.4"].map(|time| format!("{time} seconds"));
        assert_eq!(tenths, expected);
        assert_eq!([0.0, 0.99, 7.5].map(|time| TimestampFormat::Whole.write(time)), ["0", "0", "7"]);
    }
}
