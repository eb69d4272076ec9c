//! Datasets by name: `dataset_info.json`, where `digits:test` is a split of an entry.
//!
//! The keys are LLaMA-Factory's, so that its files can be used as they are. An entry is parsed when it is looked up: unsupported
//! entries (hubs, scripts) do not affect others. `splits`, which gives one entry several files, is an extension.

mod directory;
mod entry;
mod error;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use glm4v_files::{LONGEST_CONFIG, read_text};
use serde_json::{Map, Value};

pub use error::DatasetRegistryError;
pub use source::DatasetSource;

use crate::names::join_names;
use crate::schema::RecordSchema;
use entry::Entry;
use error::suggestion;

/// File name of the registry in a directory of datasets.
pub const REGISTRY_FILE: &str = "dataset_info.json";

/// Datasets by name.
#[derive(Debug, Clone)]
pub struct DatasetRegistry {
    dir: PathBuf,
    file: PathBuf,
    entries: Map<String, Value>,
}

impl DatasetRegistry {
    /// Reads `dataset_info.json` in `dir`. Without the file there are no names, only paths.
    ///
    /// # Errors
    ///
    /// When the file exists but cannot be read, or is not a JSON object.
    pub fn load(dir: &Path) -> Result<Self, DatasetRegistryError> {
        let file = dir.join(REGISTRY_FILE);
        let entries = match read_text(&file, LONGEST_CONFIG) {
            Ok(text) => match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
                Ok(Value::Object(entries)) => entries,
                Ok(_) => {
                    let needed = "an object with one entry for each dataset";
                    return Err(DatasetRegistryError::WrongType {
                        file,
                        key: REGISTRY_FILE.to_owned(),
                        needed,
                    });
                }
                Err(source) => return Err(DatasetRegistryError::Json { file, source }),
            },
            Err(error) if error.is_missing() => Map::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { dir: dir.to_owned(), file, entries })
    }

    /// The names, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The splits of a dataset.
    ///
    /// # Errors
    ///
    /// When there is no such entry, or it is not supported.
    pub fn splits(&self, name: &str) -> Result<Vec<String>, DatasetRegistryError> {
        let entry = self.entries.get(name).ok_or_else(|| self.unknown_name(name))?;
        let entry = Entry::parse(&self.file, name, entry)?;
        Ok(self.files(&entry)?.into_iter().map(|(split, _)| split).collect())
    }

    /// Finds the dataset of `NAME`, `NAME:SPLIT` or the path of a file.
    ///
    /// A registered name comes before a file of that name. Without `SPLIT` the dataset must have a single split.
    ///
    /// # Errors
    ///
    /// When there is neither entry nor file of that name, no such split, or the entry is not supported.
    pub fn find(&self, wanted: &str) -> Result<DatasetSource, DatasetRegistryError> {
        let (name, split) = match wanted.rsplit_once(':') {
            Some((name, split)) if !self.entries.contains_key(wanted) => (name, Some(split)),
            _ => (wanted, None),
        };
        if let Some(entry) = self.entries.get(name) {
            return self.select_split(name, split, Entry::parse(&self.file, name, entry)?);
        }
        if let Some(found) = self.find_path(wanted, name, split)? {
            return Ok(found);
        }
        match split {
            Some(split) if Path::new(name).is_file() => Err(DatasetRegistryError::UnknownSplit {
                file: name.into(),
                name: name.to_owned(),
                split: split.to_owned(),
                known: "(none: a file has no splits)".to_owned(),
                suggestion: String::new(),
            }),
            _ => Err(self.unknown_name(name)),
        }
    }

    /// The dataset of a path, or of a directory with the name of a split after a colon.
    fn find_path(
        &self,
        wanted: &str,
        name: &str,
        split: Option<&str>,
    ) -> Result<Option<DatasetSource>, DatasetRegistryError> {
        let [whole, dir] = [wanted, name].map(Path::new);
        let (path, name, split) = match (whole.is_dir(), dir.is_dir()) {
            (true, _) => (whole, wanted, None),
            (false, true) => (dir, name, split),
            // Any kind of file: the reader has better errors for those without records.
            _ if fs::symlink_metadata(wanted).is_ok() => return Ok(Some(DatasetSource::of_file(whole))),
            _ => return Ok(None),
        };
        let schema = RecordSchema::default();
        let splits = vec![("train".to_owned(), path.display().to_string())];
        let entry = Entry { splits, schema, samples: None, is_split_given: false, is_path: true };
        self.select_split(name, split, entry).map(Some)
    }

    fn select_split(
        &self,
        name: &str,
        split: Option<&str>,
        entry: Entry,
    ) -> Result<DatasetSource, DatasetRegistryError> {
        let splits = self.files(&entry)?;
        let names = || splits.iter().map(|(name, _)| name.as_str());
        let known = join_names(names());
        let (file, owned) = (self.file.clone(), name.to_owned());
        let found = match (split, splits.as_slice()) {
            (None, [only]) => only,
            (None, several) => {
                let first = several.first().map(|(name, _)| name.clone()).unwrap_or_default();
                return Err(DatasetRegistryError::AmbiguousSplit { file, name: owned, known, first });
            }
            (Some(split), several) => several.iter().find(|(name, _)| name == split).ok_or_else(|| {
                let suggestion = suggestion(split, names());
                DatasetRegistryError::UnknownSplit {
                    file,
                    name: owned,
                    split: split.to_owned(),
                    known,
                    suggestion,
                }
            })?,
        };
        let full_name = if splits.len() > 1 { format!("{name}:{}", found.0) } else { name.to_owned() };
        let (schema, samples) = (entry.schema, entry.samples);
        Ok(DatasetSource { name: full_name, files: found.1.clone(), schema, samples })
    }

    /// The files of each split. A directory in place of a file has splits of its own; the entry's `split` selects one of them.
    fn files(&self, entry: &Entry) -> Result<Vec<(String, Vec<PathBuf>)>, DatasetRegistryError> {
        let mut splits = Vec::new();
        for (name, written) in &entry.splits {
            // A path that was given in place of a name is relative to the current directory.
            let path = if entry.is_path { PathBuf::from(written) } else { self.dir.join(written) };
            if !path.is_dir() {
                splits.push((name.clone(), vec![path]));
                continue;
            }
            let io = |source| DatasetRegistryError::Io { file: path.clone(), source };
            let mut found = directory::splits(&path).map_err(io)?;
            let is_named = found.iter().any(|(known, _)| known == name);
            if entry.is_split_given && is_named {
                found.retain(|(known, _)| known == name);
            }
            match found.as_mut_slice() {
                // The reader has the error.
                [] => splits.push((name.clone(), vec![path])),
                [only] if entry.is_split_given => only.0.clone_from(name),
                _ => {}
            }
            splits.append(&mut found);
        }
        Ok(splits)
    }

    fn unknown_name(&self, name: &str) -> DatasetRegistryError {
        if !self.file.exists() {
            return DatasetRegistryError::NoRegistry { file: self.file.clone(), name: name.to_owned() };
        }
        DatasetRegistryError::UnknownName {
            file: self.file.clone(),
            name: name.to_owned(),
            known: join_names(self.names()),
            suggestion: suggestion(name, self.names()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Formatting;

    fn registry(json: &str) -> (tempfile::TempDir, DatasetRegistry) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(REGISTRY_FILE), json).unwrap();
        let registry = DatasetRegistry::load(dir.path()).unwrap();
        (dir, registry)
    }

    /// The error of `find`, without the path of the file.
    fn refused(json: &str, wanted: &str) -> String {
        let (dir, registry) = registry(json);
        let error = registry.find(wanted).unwrap_err().to_string();
        let file = format!("{}: ", dir.path().join(REGISTRY_FILE).display());
        error.strip_prefix(&file).unwrap().to_owned()
    }

    const TWO: &str = r#"{"digits": {"splits": {"train": "a.jsonl", "test": "b.jsonl"}},
        "demo": {"file_name": "c.json"}, "held": {"file_name": "d.json", "split": "validation"}}"#;

    #[test]
    fn a_split_follows_the_name_and_a_colon() {
        let (dir, registry) = registry(TWO);
        let found = |wanted: &str| {
            let source = registry.find(wanted).unwrap();
            (source.name, source.files[0].strip_prefix(dir.path()).unwrap().to_owned())
        };

        assert_eq!(found("digits:test"), ("digits:test".to_owned(), "b.jsonl".into()));
        assert_eq!(found("demo"), ("demo".to_owned(), "c.json".into()));
        assert_eq!(found("demo:train"), ("demo".to_owned(), "c.json".into()));
        assert_eq!(found("held:validation"), ("held".to_owned(), "d.json".into()));
        assert_eq!(registry.splits("digits").unwrap(), ["train", "test"]);
    }

    #[test]
    fn an_unknown_name_or_split_gets_the_nearest_as_suggestion() {
        let error = "no dataset \"digit\", and no file of that name; known are digits, demo, held; \
                    did you mean \"digits\"?";
        assert_eq!(refused(TWO, "digit:test"), error);
        let error = "\"digits\" has no split \"tset\"; known are train, test; did you mean \"test\"?";
        assert_eq!(refused(TWO, "digits:tset"), error);
        let error = "\"digits\" has the splits train, test; name one, as in \"digits:train\"";
        assert_eq!(refused(TWO, "digits"), error);
    }

    #[test]
    fn a_file_needs_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        let registry = DatasetRegistry::load(dir.path()).unwrap();
        let file = dir.path().join("mine.jsonl");
        fs::write(&file, "").unwrap();
        let path = file.to_str().unwrap();

        assert_eq!(registry.find(path).unwrap().files, [path].map(PathBuf::from));
        let split = registry.find(&format!("{path}:test")).unwrap_err().to_string();
        assert!(split.ends_with("has no split \"test\"; known are (none: a file has no splits)"), "{split}");
        let unknown = registry.find("mine").unwrap_err().to_string();
        let registry = dir.path().join(REGISTRY_FILE);
        let error = "\"mine\": no such file, and no dataset has that name: ";
        assert_eq!(unknown, format!("{error}{} does not exist", registry.display()));
    }

    #[test]
    fn a_directory_has_the_splits_of_its_files_and_needs_no_entry() {
        let (dir, registry) = registry(
            r#"{"hub": {"file_name": "hub"}, "one": {"file_name": "hub", "split": "test"},
                "sub": {"file_name": "hub", "subset": "de", "num_samples": 3}}"#,
        );
        for name in ["hub/data/train-0.parquet", "hub/data/test-0.parquet", "hub/de/a.jsonl"] {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let file = |name: &str| vec![dir.path().join("hub").join(name)];
        let found = |wanted: &str| registry.find(wanted).unwrap();

        assert_eq!(registry.splits("hub").unwrap(), ["train", "test"]);
        assert_eq!(found("hub:test").files, file("data/test-0.parquet"));
        assert_eq!(found("one").files, file("data/test-0.parquet"));
        assert_eq!((found("sub").files, found("sub").samples), (file("de/a.jsonl"), Some(3)));
        let path = dir.path().join("hub").display().to_string();
        assert_eq!(found(&format!("{path}:train")).files, file("data/train-0.parquet"));
        let ambiguous = registry.find(&path).unwrap_err().to_string();
        assert!(ambiguous.contains("has the splits train, test; name one"), "{ambiguous}");
    }

    #[test]
    fn files_of_a_directory_are_read_in_the_order_of_their_names() {
        let (dir, registry) = registry(r#"{"x": {"file_name": "x"}}"#);
        fs::create_dir(dir.path().join("x")).unwrap();
        for name in ["b.jsonl", "a.json", "README.md"] {
            fs::write(dir.path().join("x").join(name), "").unwrap();
        }

        let files = registry.find("x").unwrap().files;

        assert_eq!(files, ["a.json", "b.jsonl"].map(|name| dir.path().join("x").join(name)));
    }

    #[test]
    fn entries_of_llama_factory_are_read() {
        let (_dir, registry) = registry(
            r#"{"mllm_demo": {"file_name": "mllm_demo.json", "formatting": "sharegpt",
                "columns": {"messages": "messages", "images": "images"},
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                         "assistant_tag": "assistant"}},
              "alpaca_en": {"hf_hub_url": "x/y"}}"#,
        );

        let schema = registry.find("mllm_demo").unwrap().schema;

        assert_eq!(schema.formatting, Formatting::ShareGpt);
        assert_eq!(schema.columns.messages.as_deref(), Some("messages"));
        assert_eq!(schema.tags.user_tag.as_deref(), Some("user"));
        assert_eq!(schema.tags.system_tag, None);
    }

    #[test]
    fn bad_entries_are_refused_by_key() {
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
                r#""file_name": "x", "num_samples": 0"#,
                "\"d.num_samples\" must be a number of records, 1 or more",
            ),
            (
                r#""file_name": "x", "ranking": true"#,
                "\"d.ranking\" is not supported; training on preferences is not supported",
            ),
            (
                r#""file_name": "x", "split": "train[:10%]""#,
                "\"d.split\" must be the name of a split, without a slice; num_samples takes a part",
            ),
        ];
        for (entry, error) in cases {
            assert_eq!(refused(&format!("{{\"d\": {{{entry}}}}}"), "d"), error);
        }
    }
}
