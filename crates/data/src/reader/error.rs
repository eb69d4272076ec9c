//! Errors of reading records.

use std::io;
use std::path::PathBuf;

use glm4v_files::FileError;

use crate::location::RecordLocation;
use crate::record::RecordError;
use crate::unsupported_file::UnsupportedFile;

/// Error of reading records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read", .file.display())]
    Io {
        /// Path of the file.
        file: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The file does not exist, or is not a regular file.
    #[error(transparent)]
    Open(#[from] FileError),
    /// The file is another than when its records were counted.
    #[error(
        "{}: has changed while it was in use, from {was} to {now} bytes or in its content; start the run again with files that stay as \
         they are", .file.display()
    )]
    Changed {
        /// Path of the file.
        file: PathBuf,
        /// Its length before.
        was: u64,
        /// Its length now.
        now: u64,
    },
    /// The file has a format other than JSON.
    #[error("{}: is {found}, needed a file of json records; {}", .file.display(), found.remedy(file))]
    Unsupported {
        /// Path of the file.
        file: PathBuf,
        /// Format of the file.
        found: UnsupportedFile,
    },
    /// A record is not valid JSON.
    #[error("{location}: not valid json, column {column}: {problem}")]
    Json {
        /// Location of the record.
        location: RecordLocation,
        /// Column of the error in its line, from 1; counted from the start of the record in a list.
        column: usize,
        /// Error of the JSON parser.
        problem: String,
    },
    /// Invalid JSON between the records of a list.
    #[error("{location}: found {found}, needed {needed}")]
    List {
        /// Location of the record.
        location: RecordLocation,
        /// The character found.
        found: String,
        /// The characters allowed.
        needed: &'static str,
    },
    /// A record is longer than the limit; the file is probably not one of records.
    #[error("{location}: longer than {limit} bytes; are the records separated by line breaks?")]
    TooLong {
        /// Location of the record.
        location: RecordLocation,
        /// Maximum number of bytes.
        limit: usize,
    },
    /// A record that cannot be trained on.
    #[error("{location}: {problem}")]
    Record {
        /// Location of the record.
        location: RecordLocation,
        /// Error of the record.
        problem: RecordError,
    },
    /// The file holds no records.
    #[error("{}: holds no records", .file.display())]
    Empty {
        /// Path of the file.
        file: PathBuf,
    },
}
