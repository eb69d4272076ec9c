//! Where a record stands, for messages that lead a person to it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The place of a record: `train.jsonl: line 17`, or `demo.json: record [3] (line 17)` in a JSON list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: Arc<Path>,
    /// Line on which the record begins, from 1.
    pub line: usize,
    /// Index in the list, from 0; `None` in JSONL, where the line says it all.
    pub index: Option<usize>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, index } = self;
        match index {
            None => write!(f, "{}: line {line}", file.display()),
            Some(index) => write!(f, "{}: record [{index}] (line {line})", file.display()),
        }
    }
}
