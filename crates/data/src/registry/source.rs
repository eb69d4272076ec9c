//! Files of a dataset.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::reader::ReadError;
use crate::record::Record;
use crate::records::Records;
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
    /// The records of one file, detected in each.
    pub fn of_file(file: &Path) -> Self {
        let name = file.display().to_string();
        Self { name, files: vec![file.to_owned()], schema: RecordSchema::default() }
    }

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
