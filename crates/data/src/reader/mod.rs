//! Files of records, of which one at a time is read.

mod error;
mod hash;
mod json_index;
mod line_numbers;
mod stamp;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

pub use error::ReadError;

use crate::location::{RecordLocation, RecordPosition};
use crate::record::Record;
use crate::schema::RecordSchema;
use crate::unsupported_file::UnsupportedFile;
use hash::HashReader;
use json_index::JsonIndex;
use stamp::FileStamp;

/// Maximum number of bytes of a record, enough for a few images as `data:` URLs.
const MAX_BYTES: usize = 64 << 20;

/// Bytes that a scan reads at once.
const SCAN_BYTES: usize = 1 << 20;

/// Advice for a line that ends within a record.
const ONE_LINE: &str = "write each record on one line, or all of them in one list";

/// A file of records.
#[derive(Debug)]
pub(crate) struct RecordFile {
    file: Arc<Path>,
    dir: PathBuf,
    media_dir: Option<PathBuf>,
    schema: RecordSchema,
    stamp: FileStamp,
    contents: JsonIndex,
    hash: [u8; 32],
}

/// A record before parsing.
struct RawRecord {
    value: Value,
    /// Contents of images and videos, to which the value refers by number.
    media: Vec<Vec<u8>>,
}

impl RecordFile {
    /// Opens `file` and finds its records. Media paths are relative to `media_dir` where they exist there, else to the file.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, has another format, an error hides the beginning of a record, or there is none.
    pub(crate) fn open(
        file: &Path,
        schema: &RecordSchema,
        media_dir: Option<&Path>,
    ) -> Result<Self, ReadError> {
        if let Ok(Some(found)) = UnsupportedFile::detect(file) {
            return Err(ReadError::Unsupported { file: file.to_owned(), found });
        }
        let io = |source| ReadError::Io { file: file.to_owned(), source };
        let opened = glm4v_files::open(file)?;
        let stamp = FileStamp::new(&opened.metadata().map_err(io)?);
        let path: Arc<Path> = file.into();
        let (contents, hash) = index_json(opened, &path)?;
        Ok(Self {
            file: path,
            dir: file.parent().unwrap_or(Path::new("")).to_owned(),
            media_dir: media_dir.map(Path::to_owned),
            schema: schema.clone(),
            stamp,
            contents,
            hash,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.contents.len()
    }

    /// SHA-256 of what the file holds.
    pub(crate) fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    pub(crate) fn location(&self, index: usize) -> RecordLocation {
        RecordLocation { file: self.file.clone(), position: self.contents.position(index) }
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// When the file has changed or cannot be read, or the record is bad.
    pub(crate) fn read(&self, index: usize) -> Result<Record, ReadError> {
        let location = self.location(index);
        let RawRecord { value, media } = self.raw(index, &location)?;
        Record::parse_with_media(
            value,
            media,
            location.clone(),
            &self.schema,
            &self.dir,
            self.media_dir.as_deref(),
        )
        .map_err(|problem| ReadError::Record { location, problem })
    }

    fn raw(&self, index: usize, location: &RecordLocation) -> Result<RawRecord, ReadError> {
        let span = self.contents.span(index);
        let bytes = self.stamp.read(&self.file, span.start, (span.end - span.start) as usize)?;
        let value = parse_json(self.contents.record(&bytes), location)?;
        Ok(RawRecord { value, media: Vec::new() })
    }
}

fn index_json(opened: File, file: &Arc<Path>) -> Result<(JsonIndex, [u8; 32]), ReadError> {
    let mut input = BufReader::with_capacity(SCAN_BYTES, HashReader::new(opened));
    let index = JsonIndex::scan(&mut input, file, MAX_BYTES)?;
    Ok((index, input.into_inner().finish()))
}

fn parse_json(json: &[u8], location: &RecordLocation) -> Result<Value, ReadError> {
    serde_json::from_slice(json).map_err(|error| ReadError::Json {
        location: location.clone(),
        column: error.column(),
        problem: match without_position(&error.to_string()) {
            problem if error.is_eof() && matches!(location.position, RecordPosition::Line(_)) => {
                format!("{problem}; {ONE_LINE}")
            }
            problem => problem.to_owned(),
        },
    })
}

/// The message of serde_json without its line and column, which count from the start of the record.
fn without_position(problem: &str) -> &str {
    problem.split(" at line ").next().unwrap_or(problem)
}
