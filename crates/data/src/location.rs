//! Locations of records, for error messages.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The location of a record: `train.jsonl: line 17`, or `demo.json: record [3] (line 17)` in a JSON list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordLocation {
    /// Path of the file.
    pub file: Arc<Path>,
    /// The place in the file.
    pub position: RecordPosition,
}

/// The place of a record in its file, as a person finds it there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordPosition {
    /// A line of JSONL, from 1.
    Line(usize),
    /// An element of a JSON list.
    Element {
        /// Its index, from 0.
        index: usize,
        /// Its first line, from 1.
        line: usize,
    },
    /// A row of a table, from 0.
    Row(usize),
    /// Members of an archive, by the name that they share.
    Members(Arc<str>),
}

impl RecordLocation {
    /// A line of a JSONL file, from 1.
    pub fn line(file: &Path, line: usize) -> Self {
        Self { file: file.into(), position: RecordPosition::Line(line) }
    }
}

impl fmt::Display for RecordLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        match &self.position {
            RecordPosition::Line(line) => write!(f, "line {line}"),
            RecordPosition::Element { index, line } => write!(f, "record [{index}] (line {line})"),
            RecordPosition::Row(row) => write!(f, "row {row}"),
            RecordPosition::Members(name) => write!(f, "record \"{name}\""),
        }
    }
}
