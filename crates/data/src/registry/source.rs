//! Files of a dataset.

use std::path::{Path, PathBuf};

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
    /// Number of records to draw by a seed, as the registry's `num_samples` has it; all of them without.
    pub samples: Option<usize>,
}

impl DatasetSource {
    /// The records of one file, detected in each.
    pub fn of_file(file: &Path) -> Self {
        let name = file.display().to_string();
        Self { name, files: vec![file.to_owned()], schema: RecordSchema::default(), samples: None }
    }
}
