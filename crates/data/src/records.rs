//! The records of a dataset by index, read from its files when they are needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::location::RecordLocation;
use crate::reader::{ReadError, RecordFile, SharedCache};
use crate::record::Record;
use crate::registry::DatasetSource;

/// The records of one dataset, in the order of its files.
///
/// What is in memory is where each record begins: eight bytes for a line of JSONL. Threads share it by reference.
#[derive(Debug)]
pub struct Records {
    name: String,
    parts: Vec<Part>,
    /// Number of records up to the end of each part.
    ends: Vec<usize>,
    unknown_keys: UnknownKeyWarnings,
}

/// Records in a row.
#[derive(Debug)]
enum Part {
    File(Box<RecordFile>),
    Memory(Vec<Record>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::File(file) => file.len(),
            Self::Memory(records) => records.len(),
        }
    }
}

impl DatasetSource {
    /// Reads all records into memory. Media paths are relative to `media_dir` where they exist there, else to the file of the record.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, a record is bad, or a file holds none.
    pub fn read(&self, media_dir: Option<&Path>) -> Result<Vec<Record>, ReadError> {
        let records = Records::open(self, media_dir)?;
        (0..records.len()).into_par_iter().map(|index| records.read(index)).collect()
    }
}

impl Records {
    /// Opens the files of a dataset and finds their records. Media paths are relative to `media_dir` where they exist there, else to
    /// the file of the record.
    ///
    /// # Errors
    ///
    /// When a file cannot be opened, has another format, an error hides the beginning of a record, or a file has none.
    pub fn open(source: &DatasetSource, media_dir: Option<&Path>) -> Result<Self, ReadError> {
        let cache = SharedCache::default();
        let open = |file: &PathBuf| RecordFile::open(file, &source.schema, media_dir, &cache);
        let files = source.files.par_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::of_parts(source.name.clone(), files.into_iter().map(Box::new).map(Part::File).collect()))
    }

    fn of_parts(name: String, parts: Vec<Part>) -> Self {
        let mut end = 0;
        let ends = parts.iter().map(|part| {
            end += part.len();
            end
        });
        let ends = ends.collect();
        Self { name, parts, ends, unknown_keys: UnknownKeyWarnings::default() }
    }

    /// Name of the dataset, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part that holds a record, and its index there.
    fn find(&self, index: usize) -> (&Part, usize) {
        assert!(index < self.len(), "record {index} of {}", self.len());
        let part = self.ends.partition_point(|end| *end <= index);
        let start = part.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&self.parts[part], index - start)
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// When its file has changed or cannot be read, or the record is bad.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn read(&self, index: usize) -> Result<Record, ReadError> {
        match self.find(index) {
            (Part::File(file), index) => file.read(index),
            (Part::Memory(records), index) => Ok(records[index].clone()),
        }
    }

    /// The location of a record, without reading it.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn location(&self, index: usize) -> RecordLocation {
        match self.find(index) {
            (Part::File(file), index) => file.location(index),
            (Part::Memory(records), index) => records[index].location.clone(),
        }
    }

    /// Adds what the files hold to a hash: their contents, not their paths, so that a moved dataset has the same. Records in memory
    /// have no hash.
    pub(crate) fn hash(&self, hash: &mut Sha256) {
        for part in &self.parts {
            if let Part::File(file) = part {
                hash.update(file.hash());
            }
        }
    }

    /// Warns of keys that no record read before had and that were ignored.
    pub(crate) fn warn_of_unknown_keys<'a>(
        &self,
        records: impl IntoIterator<Item = (&'a [String], RecordLocation)>,
    ) {
        self.unknown_keys.add(&self.name, records);
    }
}

impl From<Vec<Record>> for Records {
    fn from(records: Vec<Record>) -> Self {
        Self::of_parts(String::new(), vec![Part::Memory(records)])
    }
}

/// Unknown keys with a warning behind them.
#[derive(Debug, Default)]
struct UnknownKeyWarnings(Mutex<Vec<String>>);

impl UnknownKeyWarnings {
    /// Number of keys with a warning of their own.
    const NAMED: usize = 8;

    fn add<'a>(&self, dataset: &str, records: impl IntoIterator<Item = (&'a [String], RecordLocation)>) {
        let mut new: Vec<(&str, usize, RecordLocation)> = Vec::new();
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (keys, location) in records {
            for key in keys.iter().filter(|key| !warned.contains(key)) {
                match seen.get(key.as_str()) {
                    Some(at) => new[*at].1 += 1,
                    None => {
                        seen.insert(key, new.len());
                        new.push((key, 1, location.clone()));
                    }
                }
            }
        }
        for (key, count, first) in new {
            let of = if count == 1 { "1 record".to_owned() } else { format!("{count} records") };
            match warned.len() {
                before if before < Self::NAMED => {
                    tracing::warn!(
                        "{first}: key \"{key}\" is not known and is not read, in {of} from here on"
                    );
                }
                Self::NAMED => tracing::warn!("{dataset}: more keys are not known and are not read"),
                _ => return,
            }
            warned.push(key.to_owned());
        }
    }
}
