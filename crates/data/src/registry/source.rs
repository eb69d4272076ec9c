//! Files of a dataset.

use std::path::{Path, PathBuf};

use crate::reader::{ReadError, read_all};
use crate::record::Record;
use crate::schema::RecordSchema;

/// The files of one split of a dataset and the schema of their records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSource {
    /// Name for messages: `digits:test`.
    pub name: String,
    /// Paths of the files, in order.
    pub files: Vec<PathBuf>,
    /// Keys and role names of the records.
    pub schema: RecordSchema,
}

impl DatasetSource {
    /// Reads all records. Media paths are relative to `media_dir` where they exist there, else to the file of the record.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, a record is bad, or a file holds none.
    pub fn read(&self, media_dir: Option<&Path>) -> Result<Vec<Record>, ReadError> {
        self.read_all(media_dir)?.into_iter().collect()
    }

    /// Reads all records, with the errors of bad ones. Warns of unknown keys.
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
            records.append(&mut read_all(file, &self.schema, media_dir)?);
        }
        self.warn_of_unknown_keys(records.iter().flatten());
        Ok(records)
    }

    fn warn_of_unknown_keys<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        /// Number of keys with a warning of their own.
        const NAMED: usize = 8;
        let mut keys: Vec<(&str, usize, &Record)> = Vec::new();
        for record in records {
            for key in &record.unknown_keys {
                match keys.iter_mut().find(|(known, ..)| known == key) {
                    Some((_, count, _)) => *count += 1,
                    None => keys.push((key, 1, record)),
                }
            }
        }
        for (key, count, first) in keys.iter().take(NAMED) {
            let of = if *count == 1 { "1 record".to_owned() } else { format!("{count} records") };
            tracing::warn!(
                "{}: key \"{key}\" is not known and is not read, in {of} from here on",
                first.location
            );
        }
        if let Some(more) = keys.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::warn!("{}: {more} more keys are not known and are not read", self.name);
        }
    }
}
