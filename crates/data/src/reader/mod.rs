//! Files of records, of which one at a time is read.

mod error;
mod hash;
mod json_index;
mod line_numbers;
mod shard;
mod stamp;
#[cfg(feature = "parquet")]
mod table;

use std::ffi::OsStr;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

#[cfg(feature = "parquet")]
pub use error::TableError;
pub use error::{ReadError, ShardError};

use crate::location::{RecordLocation, RecordPosition};
use crate::record::{Record, media_keys, modality_of};
use crate::schema::RecordSchema;
use crate::unsupported_file::UnsupportedFile;
use hash::HashReader;
use json_index::JsonIndex;
use shard::ShardIndex;
use stamp::FileStamp;
#[cfg(feature = "parquet")]
use table::TableIndex;

/// Maximum number of bytes of a record, enough for a few images as `data:` URLs.
const MAX_BYTES: usize = 64 << 20;

/// The file that describes a folder of images.
pub(crate) const IMAGE_FOLDER_FILE: &str = "metadata.jsonl";

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
    contents: Contents,
    hash: [u8; 32],
}

/// Where the records of a file are, by its format.
#[derive(Debug)]
enum Contents {
    /// JSONL, or a JSON list.
    Json(JsonIndex),
    /// `metadata.jsonl` of a folder of images, as Hugging Face's `imagefolder` has it.
    ImageFolder(JsonIndex),
    Shard(ShardIndex),
    #[cfg(feature = "parquet")]
    Table(TableIndex),
}

/// Memory that the files of a dataset share.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedCache {
    #[cfg(feature = "parquet")]
    blocks: Arc<table::BlockCache>,
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
        cache: &SharedCache,
    ) -> Result<Self, ReadError> {
        if let Ok(Some(found)) = UnsupportedFile::detect(file) {
            return Err(ReadError::Unsupported { file: file.to_owned(), found });
        }
        let io = |source| ReadError::Io { file: file.to_owned(), source };
        let opened = glm4v_files::open(file)?;
        let stamp = FileStamp::new(&opened.metadata().map_err(io)?);
        let path: Arc<Path> = file.into();
        let (contents, hash) = Contents::find(opened, &path, stamp, cache)?;
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
        .map_err(|problem| ReadError::Record { location, problem: Box::new(problem) })
    }

    fn raw(&self, index: usize, location: &RecordLocation) -> Result<RawRecord, ReadError> {
        let json = |json: &JsonIndex| {
            let span = json.span(index);
            let bytes = self.stamp.read(&self.file, span.start, (span.end - span.start) as usize)?;
            parse_json(json.record(&bytes), location)
        };
        let value = match &self.contents {
            Contents::Json(index) => json(index)?,
            Contents::ImageFolder(index) => with_media_keys(json(index)?),
            Contents::Shard(shard) => return shard.read(index, &self.file, self.stamp, location),
            #[cfg(feature = "parquet")]
            Contents::Table(table) => return table.read(index, &self.file, self.stamp),
        };
        Ok(RawRecord { value, media: Vec::new() })
    }
}

impl Contents {
    /// The records of an open file, and a hash of what it holds: of its text, or of a parquet footer or tar headers.
    fn find(
        opened: File,
        file: &Arc<Path>,
        stamp: FileStamp,
        cache: &SharedCache,
    ) -> Result<(Self, [u8; 32]), ReadError> {
        let io = |source| ReadError::Io { file: file.to_path_buf(), source };
        let mut head = vec![0; stamp.length().min(512) as usize];
        glm4v_files::read_exact_at(&opened, &mut head, 0).map_err(io)?;
        let extension = file.extension().unwrap_or(OsStr::new(""));
        let mut hash = Sha256::new();
        if head.get(257..262) == Some(b"ustar") || extension.eq_ignore_ascii_case("tar") {
            let shard = ShardIndex::scan(&opened, file, stamp, &mut hash)?;
            return Ok((Self::Shard(shard), hash.finalize().into()));
        }
        #[cfg(feature = "parquet")]
        if head.starts_with(b"PAR1") || extension.eq_ignore_ascii_case("parquet") {
            let table = TableIndex::open(opened, file, stamp, cache.blocks.clone(), &mut hash)?;
            return Ok((Self::Table(table), hash.finalize().into()));
        }
        let _ = cache;
        let mut input = BufReader::with_capacity(SCAN_BYTES, HashReader::new(opened, hash));
        let index = JsonIndex::scan(&mut input, file, MAX_BYTES)?;
        let is_folder = file.file_name() == Some(OsStr::new(IMAGE_FOLDER_FILE));
        let contents = if is_folder { Self::ImageFolder(index) } else { Self::Json(index) };
        Ok((contents, input.into_inner().finish()))
    }

    fn len(&self) -> usize {
        match self {
            Self::Json(index) | Self::ImageFolder(index) => index.len(),
            Self::Shard(shard) => shard.len(),
            #[cfg(feature = "parquet")]
            Self::Table(table) => table.len(),
        }
    }

    fn position(&self, index: usize) -> RecordPosition {
        match self {
            Self::Json(json) | Self::ImageFolder(json) => json.position(index),
            Self::Shard(shard) => shard.position(index),
            #[cfg(feature = "parquet")]
            Self::Table(_) => RecordPosition::Row(index),
        }
    }
}

/// Renames the keys of files in a `metadata.jsonl`: `file_name` is an image or video by its ending, `x_file_name` is `x`.
fn with_media_keys(value: Value) -> Value {
    let Value::Object(keys) = value else { return value };
    let mut renamed = Map::new();
    for (key, value) in keys {
        let first = value.as_array().and_then(|names| names.first()).unwrap_or(&value).as_str();
        let extension = first.and_then(|name| name.rsplit_once('.')).map_or("", |(_, extension)| extension);
        let modality = modality_of(extension).unwrap_or(glm4v_inputs::Modality::Image);
        let key = match key.as_str() {
            "file_name" | "file_names" => media_keys(modality)[usize::from(value.is_array())].to_owned(),
            other => {
                let plain = other.strip_suffix("_file_names").or_else(|| other.strip_suffix("_file_name"));
                plain.unwrap_or(other).to_owned()
            }
        };
        renamed.insert(key, value);
    }
    Value::Object(renamed)
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
