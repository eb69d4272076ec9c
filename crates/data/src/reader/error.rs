//! Errors of reading records.

use std::io;
use std::path::PathBuf;

use glm4v_files::FileError;

use crate::location::RecordLocation;
use crate::record::RecordError;
use crate::unsupported_file::UnsupportedFile;

/// Error of a member of a tar archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// A header whose sum or size is wrong.
    #[error("has a damaged header; write the archive again")]
    Header,
    /// The archive ends before the member does.
    #[error("has {size} bytes, and the archive ends after {left} of them; copy it again")]
    Truncated {
        /// Bytes of the member by its header.
        size: u64,
        /// Bytes that are left of the file.
        left: u64,
    },
    /// A link to another file.
    #[error("is a link, needed files; archive again with links followed, as tar's option h does")]
    Link,
    /// A device, pipe or sparse file.
    #[error("is neither a regular file nor a directory; archive files alone")]
    Kind,
    /// A name that leads out of the archive.
    #[error("has a name that is absolute, empty or leads out of the archive; name members relative to it")]
    Path,
    /// An extended header that is no name or attribute.
    #[error(
        "is preceded by {size} bytes of attributes, the limit is {limit}; write the archive without them"
    )]
    LongExtension {
        /// Bytes of the extended header.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// More members than an index may have.
    #[error("is one of more than {limit}; divide the archive into several")]
    TooManyMembers {
        /// Members allowed.
        limit: usize,
    },
    /// A text that is not UTF-8.
    #[error("is not UTF-8; save it as UTF-8")]
    Encoding,
    /// A `.json` member that holds no object.
    #[error("is json but no object; needed: one record")]
    NotAnObject,
    /// Two `.json` members of one record.
    #[error("comes twice in its record; needed: one object")]
    TwoObjects,
}

/// The beginning of a name that may be long, without characters that change a terminal.
fn shortened(name: &str) -> String {
    const SHOWN: usize = 100;
    let shown: String = name.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN).is_some() { shown + "…" } else { shown }
}

/// Error of a parquet file.
#[cfg(feature = "parquet")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The end of the file is no footer.
    #[error("is no parquet file or was cut short: it does not end with a footer; copy it again")]
    NoFooter,
    /// The footer, or the rows that it describes, cannot be decoded.
    #[error("is damaged: {problem}; write the file again")]
    Damaged {
        /// Error of the decoder.
        problem: String,
    },
    /// More rows than the file can hold.
    #[error(
        "row group {group} claims {rows} rows, which a file of {bytes} bytes cannot hold; write the file again"
    )]
    RowCount {
        /// Index of the row group.
        group: usize,
        /// Rows by the footer.
        rows: i64,
        /// Length of the file.
        bytes: u64,
    },
    /// A part of a column that lies outside of the file.
    #[error("row group {group}, column \"{column}\": lies beyond the end of the file; copy it again")]
    Truncated {
        /// Path of the column.
        column: String,
        /// Index of the row group.
        group: usize,
    },
    /// A compression that is not read.
    #[error(
        "column \"{column}\" is compressed with {found}, needed snappy, zstd or none; write the file with one of these"
    )]
    Compression {
        /// Path of the column.
        column: String,
        /// Name of the compression.
        found: String,
    },
    /// No column has a type of which records are made.
    #[error("has no column of text, numbers, lists or structs, so no records")]
    NoColumns,
}

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
        problem: Box<RecordError>,
    },
    /// A parquet file that cannot be read.
    #[cfg(feature = "parquet")]
    #[error("{}: {problem}", .file.display())]
    Table {
        /// Path of the file.
        file: PathBuf,
        /// What is wrong with it.
        problem: TableError,
    },
    /// A tar archive that cannot be read as one of records.
    #[error("{}: member \"{}\" {problem}", .file.display(), shortened(.member))]
    Shard {
        /// Path of the archive.
        file: PathBuf,
        /// Name of the member, or its place where it has none.
        member: String,
        /// What is wrong with it.
        problem: ShardError,
    },
    /// The file holds no records.
    #[error("{}: holds no records", .file.display())]
    Empty {
        /// Path of the file.
        file: PathBuf,
    },
}
