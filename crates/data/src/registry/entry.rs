//! Entries of `dataset_info.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{DatasetRegistryError, suggestion};
use crate::schema::{Columns, Formatting, RecordSchema, Tags};

/// One entry of the registry.
pub(super) struct Entry {
    /// Name and file of each split, in the order of the registry.
    pub(super) splits: Vec<(String, String)>,
    /// Whether the entry names its one split.
    pub(super) is_split_given: bool,
    /// Whether it stands for a path that was given in place of a name.
    pub(super) is_path: bool,
    pub(super) schema: RecordSchema,
    /// Number of records to draw; all of them without.
    pub(super) samples: Option<usize>,
}

/// Keys of LLaMA-Factory that are not supported, with the alternative.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("hf_hub_url", HUB),
    ("ms_hub_url", HUB),
    ("om_hub_url", HUB),
    ("cloud_file_name", HUB),
    ("script_url", "convert the dataset to JSONL and name it with file_name"),
    ("ranking", "training on preferences is not supported"),
    ("load_from", "name the file with file_name"),
];
const HUB: &str = "nothing is fetched; download the dataset and name it with file_name";

impl Entry {
    pub(super) fn parse(file: &Path, name: &str, value: &Value) -> Result<Self, DatasetRegistryError> {
        let mut keys = EntryKeys::new(file, name.to_owned(), value)?;
        let unsupported = UNSUPPORTED.map(|(key, _)| key);
        keys.check_known(&[
            &[
                "file_name",
                "folder",
                "subset",
                "splits",
                "split",
                "num_samples",
                "formatting",
                "columns",
                "tags",
            ],
            unsupported.as_slice(),
        ])?;
        for (key, remedy) in UNSUPPORTED {
            match keys.values.shift_remove(key) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                // An entry with file_name needs no hub.
                Some(_) if remedy == HUB && keys.values.contains_key("file_name") => {}
                Some(_) => return Err(keys.unsupported(key, remedy)),
            }
        }
        let formatting = match keys.text("formatting")?.as_deref() {
            None => Formatting::Auto,
            Some("openai") => Formatting::OpenAi,
            Some("sharegpt") => Formatting::ShareGpt,
            Some("alpaca") => Formatting::Alpaca,
            Some(_) => return Err(keys.wrong_type("formatting", "\"openai\", \"sharegpt\" or \"alpaca\"")),
        };
        let is_split_given = keys.values.contains_key("split");
        let splits = keys.splits()?;
        let samples = keys.samples()?;
        let mut columns = keys.section("columns")?;
        let mut tags = keys.section("tags")?;
        let schema = RecordSchema { formatting, columns: columns.columns()?, tags: tags.tags()? };
        Ok(Self { splits, is_split_given, is_path: false, schema, samples })
    }
}

/// An object of the registry, from which keys are taken one by one.
struct EntryKeys<'a> {
    file: &'a Path,
    /// Full key of the object.
    prefix: String,
    values: Map<String, Value>,
}

impl<'a> EntryKeys<'a> {
    fn new(file: &'a Path, prefix: String, value: &Value) -> Result<Self, DatasetRegistryError> {
        match value {
            Value::Object(values) => Ok(Self { file, prefix, values: values.clone() }),
            _ => Err(DatasetRegistryError::WrongType {
                file: file.to_owned(),
                key: prefix,
                needed: "an object",
            }),
        }
    }

    fn wrong_type(&self, key: &str, needed: &'static str) -> DatasetRegistryError {
        DatasetRegistryError::WrongType {
            file: self.file.to_owned(),
            key: format!("{}.{key}", self.prefix),
            needed,
        }
    }

    fn unsupported(&self, key: &str, remedy: &'static str) -> DatasetRegistryError {
        DatasetRegistryError::Unsupported {
            file: self.file.to_owned(),
            key: format!("{}.{key}", self.prefix),
            remedy,
        }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, DatasetRegistryError> {
        match self.values.shift_remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(_) => Err(self.wrong_type(key, "a text")),
        }
    }

    fn section(&mut self, key: &str) -> Result<EntryKeys<'a>, DatasetRegistryError> {
        let value = self.values.shift_remove(key).unwrap_or_else(|| Map::new().into());
        EntryKeys::new(self.file, format!("{}.{key}", self.prefix), &value)
    }

    fn splits(&mut self) -> Result<Vec<(String, String)>, DatasetRegistryError> {
        let split = self.text("split")?.unwrap_or_else(|| "train".to_owned());
        if split.contains('[') {
            return Err(
                self.wrong_type("split", "the name of a split, without a slice; num_samples takes a part")
            );
        }
        let below = [self.text("folder")?, self.text("subset")?];
        match (self.text("file_name")?, self.values.shift_remove("splits")) {
            (Some(file), None) => {
                let parts = [Some(file)].into_iter().chain(below).flatten();
                Ok(vec![(split, parts.collect::<Vec<_>>().join("/"))])
            }
            (None, Some(Value::Object(splits))) if !splits.is_empty() => {
                splits.into_iter().map(|(name, file)| self.split_file(name, file)).collect()
            }
            (None, Some(_)) => Err(self.wrong_type("splits", "an object from split to file")),
            (Some(_), Some(_)) => Err(self.wrong_type("splits", "left out beside file_name")),
            (None, None) => {
                Err(self.wrong_type("file_name", "the name of a file, or \"splits\" given instead"))
            }
        }
    }

    fn samples(&mut self) -> Result<Option<usize>, DatasetRegistryError> {
        match self.values.shift_remove("num_samples") {
            None | Some(Value::Null) => Ok(None),
            Some(number) => match number.as_u64().and_then(|number| usize::try_from(number).ok()) {
                Some(number) if number > 0 => Ok(Some(number)),
                _ => Err(self.wrong_type("num_samples", "a number of records, 1 or more")),
            },
        }
    }

    fn split_file(&self, name: String, file: Value) -> Result<(String, String), DatasetRegistryError> {
        match file {
            Value::String(file) => Ok((name, file)),
            _ => Err(self.wrong_type(&format!("splits.{name}"), "the name of a file")),
        }
    }

    fn columns(&mut self) -> Result<Columns, DatasetRegistryError> {
        let alpaca = ["prompt", "query", "response", "history"];
        self.check_known(&[&["messages", "images", "videos", "system", "tools"], &alpaca])?;
        Ok(Columns {
            messages: self.text("messages")?,
            images: self.text("images")?,
            videos: self.text("videos")?,
            system: self.text("system")?,
            tools: self.text("tools")?,
            prompt: self.text("prompt")?,
            query: self.text("query")?,
            response: self.text("response")?,
            history: self.text("history")?,
        })
    }

    fn tags(&mut self) -> Result<Tags, DatasetRegistryError> {
        let turn = ["role_tag", "content_tag"];
        self.check_known(&[
            &turn,
            &["user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"],
        ])?;
        Ok(Tags {
            role_tag: self.text("role_tag")?,
            content_tag: self.text("content_tag")?,
            user_tag: self.text("user_tag")?,
            assistant_tag: self.text("assistant_tag")?,
            observation_tag: self.text("observation_tag")?,
            function_tag: self.text("function_tag")?,
            system_tag: self.text("system_tag")?,
        })
    }

    /// Refuses unknown keys.
    fn check_known(&self, known: &[&[&str]]) -> Result<(), DatasetRegistryError> {
        let known = known.concat();
        let unknown = self.values.keys().find(|key| !known.contains(&key.as_str()));
        let Some(key) = unknown else { return Ok(()) };
        Err(DatasetRegistryError::UnknownKey {
            file: self.file.to_owned(),
            key: format!("{}.{key}", self.prefix),
            suggestion: suggestion(key, known),
        })
    }
}
