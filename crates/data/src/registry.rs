//! Datasets by name: `dataset_info.json` and what `digits:test` stands for.
//!
//! The keys are LLaMA-Factory's, so that a file written for it can be used as it is. An entry is looked
//! at when it is asked for: entries that this program cannot read (hubs, scripts) do no harm to others.
//! Ours alone is `splits`, which gives one entry several files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_CONFIG, read_text};
use serde_json::{Map, Value};

use crate::layout::{Columns, Formatting, Layout, Tags};
use crate::reader::{ReadError, read_all};
use crate::record::Record;
use crate::suggest::{did_you_mean, list};

/// File name of the registry in a folder of datasets.
pub const REGISTRY_FILE: &str = "dataset_info.json";

/// Why a name does not lead to a dataset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A folder of records cannot be listed.
    #[error("{}: cannot be read", .file.display())]
    Io {
        /// The folder.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The registry is not JSON.
    #[error("{}: not valid json", .file.display())]
    Json {
        /// The registry.
        file: PathBuf,
        /// What the JSON reader met, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The registry is no file, or longer than any.
    #[error(transparent)]
    File(#[from] FileError),
    /// No entry of that name, and no file either.
    #[error("{}: no dataset \"{name}\", and no file of that name; known are {known}{suggestion}", .file.display())]
    UnknownName {
        /// The registry.
        file: PathBuf,
        /// The name asked for.
        name: String,
        /// The names known.
        known: String,
        /// The nearest of them, as the end of a sentence.
        suggestion: String,
    },
    /// No file of that name, and no registry that could give it to a dataset.
    #[error("\"{name}\": no such file, and no dataset has that name: {} does not exist", .file.display())]
    NoRegistry {
        /// Where the registry would be.
        file: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The entry has no such split.
    #[error("{}: \"{name}\" has no split \"{split}\"; known are {known}{suggestion}", .file.display())]
    UnknownSplit {
        /// The registry or the file itself.
        file: PathBuf,
        /// The dataset.
        name: String,
        /// The split asked for.
        split: String,
        /// The splits known.
        known: String,
        /// The nearest of them, as the end of a sentence.
        suggestion: String,
    },
    /// The entry has several splits and none was asked for.
    #[error("{}: \"{name}\" has the splits {known}; name one, as in \"{name}:{first}\"", .file.display())]
    WhichSplit {
        /// The registry.
        file: PathBuf,
        /// The dataset.
        name: String,
        /// The splits known.
        known: String,
        /// The first of them.
        first: String,
    },
    /// A key that has no meaning.
    #[error("{}: unknown key \"{key}\"{suggestion}", .file.display())]
    UnknownKey {
        /// The registry.
        file: PathBuf,
        /// The key with the keys that lead to it.
        key: String,
        /// The nearest key, as the end of a sentence.
        suggestion: String,
    },
    /// A key of LLaMA-Factory that this program does not follow.
    #[error("{}: \"{key}\" is not supported; {remedy}", .file.display())]
    Unsupported {
        /// The registry.
        file: PathBuf,
        /// The key with the keys that lead to it.
        key: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A value of the wrong kind, or none.
    #[error("{}: \"{key}\" must be {needed}", .file.display())]
    Kind {
        /// The registry.
        file: PathBuf,
        /// The key with the keys that lead to it.
        key: String,
        /// What it may hold.
        needed: &'static str,
    },
}

/// Where the records of one split are and how they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What it is called in messages: `digits:test`.
    pub name: String,
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// How the records are written.
    pub layout: Layout,
}

impl Source {
    /// Reads every record. Media are relative to their file, or to `media_dir` where they exist there.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, a record is wrong, or a file holds none.
    pub fn read(&self, media_dir: Option<&Path>) -> Result<Vec<Record>, ReadError> {
        self.read_all(media_dir)?.into_iter().collect()
    }

    /// Reads every record, and why others cannot be learned from. Names keys that are not known in a warning.
    ///
    /// # Errors
    ///
    /// When a file cannot be read to its end, or holds no records.
    pub(crate) fn read_all(
        &self,
        media_dir: Option<&Path>,
    ) -> Result<Vec<Result<Record, ReadError>>, ReadError> {
        let mut records = Vec::new();
        for file in &self.files {
            records.append(&mut read_all(file, &self.layout, media_dir)?);
        }
        self.warn_of_unread(records.iter().flatten());
        Ok(records)
    }

    fn warn_of_unread<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        /// Keys that are named; a dataset with more has another fault.
        const NAMED: usize = 8;
        let mut keys: Vec<(&str, usize, &Record)> = Vec::new();
        for record in records {
            for key in &record.unread {
                match keys.iter_mut().find(|(known, ..)| known == key) {
                    Some((_, count, _)) => *count += 1,
                    None => keys.push((key, 1, record)),
                }
            }
        }
        for (key, count, first) in keys.iter().take(NAMED) {
            let of = if *count == 1 { "1 record".to_owned() } else { format!("{count} records") };
            tracing::warn!("{}: key \"{key}\" is not known and is not read, in {of} from here on", first.at);
        }
        if let Some(more) = keys.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::warn!("{}: {more} more keys are not known and are not read", self.name);
        }
    }
}

/// The datasets that have names.
#[derive(Debug, Clone)]
pub struct Registry {
    folder: PathBuf,
    file: PathBuf,
    entries: Map<String, Value>,
}

impl Registry {
    /// Reads `dataset_info.json` in `folder`; without the file there are no names, and paths still work.
    ///
    /// # Errors
    ///
    /// When the file is there but cannot be read, or is not a JSON object.
    pub fn load(folder: &Path) -> Result<Self, RegistryError> {
        let file = folder.join(REGISTRY_FILE);
        let entries = match read_text(&file, LONGEST_CONFIG) {
            Ok(text) => match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
                Ok(Value::Object(entries)) => entries,
                Ok(_) => {
                    let needed = "an object with one entry for each dataset";
                    return Err(RegistryError::Kind { file, key: REGISTRY_FILE.to_owned(), needed });
                }
                Err(source) => return Err(RegistryError::Json { file, source }),
            },
            Err(error) if error.is_missing() => Map::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { folder: folder.to_owned(), file, entries })
    }

    /// The names, as the file orders them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The splits of a dataset.
    ///
    /// # Errors
    ///
    /// When there is no such entry, or it cannot be followed.
    pub fn splits(&self, name: &str) -> Result<Vec<String>, RegistryError> {
        let entry = self.entries.get(name).ok_or_else(|| self.unknown(name))?;
        Ok(Entry::read(&self.file, name, entry)?.splits.into_iter().map(|(split, _)| split).collect())
    }

    /// Finds what `NAME`, `NAME:SPLIT` or the path of a file stands for.
    ///
    /// A registered name comes before a file of that name. Without `SPLIT` the dataset must have one only.
    ///
    /// # Errors
    ///
    /// When nothing has that name, the split is not there, or the entry cannot be followed.
    pub fn find(&self, wanted: &str) -> Result<Source, RegistryError> {
        let (name, split) = match wanted.rsplit_once(':') {
            Some((name, split)) if !self.entries.contains_key(wanted) => (name, Some(split)),
            _ => (wanted, None),
        };
        if let Some(entry) = self.entries.get(name) {
            return self.pick(name, split, Entry::read(&self.file, name, entry)?);
        }
        // Whatever stands there is meant; reading says what it is if it holds no records.
        if fs::symlink_metadata(wanted).is_ok() {
            let files = vec![wanted.into()];
            return Ok(Source { name: wanted.to_owned(), files, layout: Layout::default() });
        }
        match split {
            Some(split) if Path::new(name).is_file() => Err(RegistryError::UnknownSplit {
                file: name.into(),
                name: name.to_owned(),
                split: split.to_owned(),
                known: "(none: a file has no splits)".to_owned(),
                suggestion: String::new(),
            }),
            _ => Err(self.unknown(name)),
        }
    }

    fn pick(&self, name: &str, split: Option<&str>, entry: Entry) -> Result<Source, RegistryError> {
        let names = || entry.splits.iter().map(|(name, _)| name.as_str());
        let known = list(names());
        let (file, owned) = (self.file.clone(), name.to_owned());
        let found = match (split, entry.splits.as_slice()) {
            (None, [only]) => only,
            (None, several) => {
                let first = several.first().map(|(name, _)| name.clone()).unwrap_or_default();
                return Err(RegistryError::WhichSplit { file, name: owned, known, first });
            }
            (Some(split), several) => several.iter().find(|(name, _)| name == split).ok_or_else(|| {
                let suggestion = did_you_mean(split, names());
                RegistryError::UnknownSplit { file, name: owned, split: split.to_owned(), known, suggestion }
            })?,
        };
        let full_name = if entry.splits.len() > 1 { format!("{name}:{}", found.0) } else { name.to_owned() };
        Ok(Source { name: full_name, files: self.files(&found.1)?, layout: entry.layout })
    }

    /// The file of a split, or the `.json` and `.jsonl` files of a folder in the order of their names.
    fn files(&self, written: &str) -> Result<Vec<PathBuf>, RegistryError> {
        let path = self.folder.join(written);
        if !path.is_dir() {
            return Ok(vec![path]);
        }
        let io = |source| RegistryError::Io { file: path.clone(), source };
        let entries = fs::read_dir(&path).map_err(io)?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(io));
        let mut files = paths.collect::<Result<Vec<_>, _>>()?;
        files.retain(|file| file.extension().is_some_and(|e| e == "json" || e == "jsonl"));
        files.sort();
        Ok(files)
    }

    fn unknown(&self, name: &str) -> RegistryError {
        if !self.file.exists() {
            return RegistryError::NoRegistry { file: self.file.clone(), name: name.to_owned() };
        }
        RegistryError::UnknownName {
            file: self.file.clone(),
            name: name.to_owned(),
            known: list(self.names()),
            suggestion: did_you_mean(name, self.names()),
        }
    }
}

/// One entry of the registry, understood.
struct Entry {
    /// Name and file of each split, in the order in which they are written.
    splits: Vec<(String, String)>,
    layout: Layout,
}

/// Keys of LLaMA-Factory that ask for what this program does not do.
const UNSUPPORTED: [(&str, &str); 10] = [
    ("hf_hub_url", HUB),
    ("ms_hub_url", HUB),
    ("om_hub_url", HUB),
    ("cloud_file_name", HUB),
    ("script_url", "convert the dataset to JSONL and name it with file_name"),
    ("subset", "give each subset an entry with its file_name"),
    ("folder", "give each folder an entry with its file_name"),
    ("num_samples", "write the records that you want to a file of their own"),
    ("ranking", "pairs of preferred answers are not learned from"),
    ("load_from", "name the file with file_name"),
];
const HUB: &str = "nothing is fetched; download the dataset and name it with file_name";

impl Entry {
    fn read(file: &Path, name: &str, value: &Value) -> Result<Self, RegistryError> {
        let mut keys = Keys::new(file, name.to_owned(), value)?;
        let unsupported = UNSUPPORTED.map(|(key, _)| key);
        keys.only(&[
            &["file_name", "splits", "split", "formatting", "columns", "tags"],
            unsupported.as_slice(),
        ])?;
        for (key, remedy) in UNSUPPORTED {
            match keys.values.shift_remove(key) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                // With file_name beside it the hub is only an alternative.
                Some(_) if remedy == HUB && keys.values.contains_key("file_name") => {}
                Some(_) => return Err(keys.unsupported(key, remedy)),
            }
        }
        let formatting = match keys.text("formatting")?.as_deref() {
            None => Formatting::Auto,
            Some("openai") => Formatting::OpenAi,
            Some("sharegpt") => Formatting::ShareGpt,
            Some("alpaca") => Formatting::Alpaca,
            Some(_) => return Err(keys.kind("formatting", "\"openai\", \"sharegpt\" or \"alpaca\"")),
        };
        let splits = keys.splits()?;
        let mut columns = keys.section("columns")?;
        let mut tags = keys.section("tags")?;
        let layout = Layout { formatting, columns: columns.columns()?, tags: tags.tags()? };
        Ok(Self { splits, layout })
    }
}

/// An object of the registry whose keys are taken one by one.
struct Keys<'a> {
    file: &'a Path,
    /// The keys that lead here.
    place: String,
    values: Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn new(file: &'a Path, place: String, value: &Value) -> Result<Self, RegistryError> {
        match value {
            Value::Object(values) => Ok(Self { file, place, values: values.clone() }),
            _ => Err(RegistryError::Kind { file: file.to_owned(), key: place, needed: "an object" }),
        }
    }

    fn kind(&self, key: &str, needed: &'static str) -> RegistryError {
        RegistryError::Kind { file: self.file.to_owned(), key: format!("{}.{key}", self.place), needed }
    }

    fn unsupported(&self, key: &str, remedy: &'static str) -> RegistryError {
        RegistryError::Unsupported {
            file: self.file.to_owned(),
            key: format!("{}.{key}", self.place),
            remedy,
        }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, RegistryError> {
        match self.values.shift_remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(_) => Err(self.kind(key, "a text")),
        }
    }

    fn section(&mut self, key: &str) -> Result<Keys<'a>, RegistryError> {
        let value = self.values.shift_remove(key).unwrap_or_else(|| Map::new().into());
        Keys::new(self.file, format!("{}.{key}", self.place), &value)
    }

    fn splits(&mut self) -> Result<Vec<(String, String)>, RegistryError> {
        let split = self.text("split")?.unwrap_or_else(|| "train".to_owned());
        match (self.text("file_name")?, self.values.shift_remove("splits")) {
            (Some(file), None) => Ok(vec![(split, file)]),
            (None, Some(Value::Object(splits))) if !splits.is_empty() => {
                let named = |(name, file): (String, Value)| match file {
                    Value::String(file) => Ok((name, file)),
                    _ => Err(self.kind(&format!("splits.{name}"), "the name of a file")),
                };
                splits.into_iter().map(named).collect()
            }
            (None, Some(_)) => Err(self.kind("splits", "an object from split to file")),
            (Some(_), Some(_)) => Err(self.kind("splits", "left out beside file_name")),
            (None, None) => Err(self.kind("file_name", "the name of a file, or \"splits\" given instead")),
        }
    }

    fn columns(&mut self) -> Result<Columns, RegistryError> {
        let alpaca = ["prompt", "query", "response", "history"];
        self.only(&[&["messages", "images", "videos", "system", "tools"], &alpaca])?;
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

    fn tags(&mut self) -> Result<Tags, RegistryError> {
        let turn = ["role_tag", "content_tag"];
        self.only(&[&turn, &["user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"]])?;
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

    /// Refuses keys that are not among the known.
    fn only(&self, known: &[&[&str]]) -> Result<(), RegistryError> {
        let known = known.concat();
        let unknown = self.values.keys().find(|key| !known.contains(&key.as_str()));
        let Some(key) = unknown else { return Ok(()) };
        Err(RegistryError::UnknownKey {
            file: self.file.to_owned(),
            key: format!("{}.{key}", self.place),
            suggestion: did_you_mean(key, known),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(json: &str) -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(REGISTRY_FILE), json).unwrap();
        let registry = Registry::load(folder.path()).unwrap();
        (folder, registry)
    }

    /// What `find` says, behind the name of the file.
    fn refused(json: &str, wanted: &str) -> String {
        let (folder, registry) = registry(json);
        let said = registry.find(wanted).unwrap_err().to_string();
        let file = format!("{}: ", folder.path().join(REGISTRY_FILE).display());
        said.strip_prefix(&file).unwrap().to_owned()
    }

    const TWO: &str = r#"{"digits": {"splits": {"train": "a.jsonl", "test": "b.jsonl"}},
        "demo": {"file_name": "c.json"}, "held": {"file_name": "d.json", "split": "validation"}}"#;

    #[test]
    fn a_split_is_named_behind_a_colon() {
        let (folder, registry) = registry(TWO);
        let found = |wanted: &str| {
            let source = registry.find(wanted).unwrap();
            (source.name, source.files[0].strip_prefix(folder.path()).unwrap().to_owned())
        };

        assert_eq!(found("digits:test"), ("digits:test".to_owned(), "b.jsonl".into()));
        assert_eq!(found("demo"), ("demo".to_owned(), "c.json".into()));
        assert_eq!(found("demo:train"), ("demo".to_owned(), "c.json".into()));
        assert_eq!(found("held:validation"), ("held".to_owned(), "d.json".into()));
        assert_eq!(registry.splits("digits").unwrap(), ["train", "test"]);
    }

    #[test]
    fn a_name_or_split_that_is_not_there_gets_the_nearest() {
        let said = "no dataset \"digit\", and no file of that name; known are digits, demo, held; \
                    did you mean \"digits\"?";
        assert_eq!(refused(TWO, "digit:test"), said);
        let said = "\"digits\" has no split \"tset\"; known are train, test; did you mean \"test\"?";
        assert_eq!(refused(TWO, "digits:tset"), said);
        let said = "\"digits\" has the splits train, test; name one, as in \"digits:train\"";
        assert_eq!(refused(TWO, "digits"), said);
    }

    #[test]
    fn a_file_needs_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::load(folder.path()).unwrap();
        let file = folder.path().join("mine.jsonl");
        fs::write(&file, "").unwrap();
        let path = file.to_str().unwrap();

        assert_eq!(registry.find(path).unwrap().files, [path].map(PathBuf::from));
        let split = registry.find(&format!("{path}:test")).unwrap_err().to_string();
        assert!(split.ends_with("has no split \"test\"; known are (none: a file has no splits)"), "{split}");
        let unknown = registry.find("mine").unwrap_err().to_string();
        let registry = folder.path().join(REGISTRY_FILE);
        let said = "\"mine\": no such file, and no dataset has that name: ";
        assert_eq!(unknown, format!("{said}{} does not exist", registry.display()));
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_names() {
        let (folder, registry) = registry(r#"{"x": {"file_name": "x"}}"#);
        fs::create_dir(folder.path().join("x")).unwrap();
        for name in ["b.jsonl", "a.json", "README.md"] {
            fs::write(folder.path().join("x").join(name), "").unwrap();
        }

        let files = registry.find("x").unwrap().files;

        assert_eq!(files, ["a.json", "b.jsonl"].map(|name| folder.path().join("x").join(name)));
    }

    #[test]
    fn the_entries_of_llama_factory_are_understood() {
        let (_folder, registry) = registry(
            r#"{"mllm_demo": {"file_name": "mllm_demo.json", "formatting": "sharegpt",
                "columns": {"messages": "messages", "images": "images"},
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                         "assistant_tag": "assistant"}},
              "alpaca_en": {"hf_hub_url": "x/y"}}"#,
        );

        let layout = registry.find("mllm_demo").unwrap().layout;

        assert_eq!(layout.formatting, Formatting::ShareGpt);
        assert_eq!(layout.columns.messages.as_deref(), Some("messages"));
        assert_eq!(layout.tags.user_tag.as_deref(), Some("user"));
        assert_eq!(layout.tags.system_tag, None);
    }

    #[test]
    fn what_an_entry_cannot_mean_is_refused_by_key() {
        let cases = [
            (r#""file": "x""#, "unknown key \"d.file\"; did you mean \"file_name\"?"),
            (r#""file_name": 3"#, "\"d.file_name\" must be a text"),
            (
                r#""formatting": "openai""#,
                "\"d.file_name\" must be the name of a file, or \"splits\" given instead",
            ),
            (r#""file_name": "x", "splits": {"a": "b"}"#, "\"d.splits\" must be left out beside file_name"),
            (r#""splits": {"a": 1}"#, "\"d.splits.a\" must be the name of a file"),
            (r#""splits": {}"#, "\"d.splits\" must be an object from split to file"),
            (
                r#""file_name": "x", "formatting": "chatml""#,
                "\"d.formatting\" must be \"openai\", \"sharegpt\" or \"alpaca\"",
            ),
            (
                r#""file_name": "x", "columns": {"image": "y"}"#,
                "unknown key \"d.columns.image\"; did you mean \"images\"?",
            ),
            (
                r#""file_name": "x", "tags": {"usertag": "y"}"#,
                "unknown key \"d.tags.usertag\"; did you mean \"user_tag\"?",
            ),
            (
                r#""hf_hub_url": "x/y""#,
                "\"d.hf_hub_url\" is not supported; nothing is fetched; download the dataset and name it with file_name",
            ),
            (
                r#""file_name": "x", "num_samples": 5"#,
                "\"d.num_samples\" is not supported; write the records that you want to a file of their own",
            ),
        ];
        for (entry, said) in cases {
            assert_eq!(refused(&format!("{{\"d\": {{{entry}}}}}"), "d"), said);
        }
    }
}
