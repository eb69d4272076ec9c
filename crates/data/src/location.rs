//! Locations of records, for error messages.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The location of a record: `train.jsonl: line 17`, or `demo.json: record [3] (line 17)` in a JSON list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordLocation {
    /// Path of the file.
    pub file: Arc<Path>,
    /// First line of the record, from 1.
    pub line: usize,
    /// Index in the list, from 0; `None` in JSONL, where the line is enough.
    pub index: Option<usize>,
}

impl fmt::Display for RecordLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, index } = self;
        match index {
            None => write!(f, "{}: line {line}", file.display()),
            Some(index) => write!(f, "{}: record [{index}] (line {line})", file.display()),
        }
    }
}
