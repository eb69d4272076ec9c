//! Parquet files, of which a few rows at a time are decoded.
//!
//! Rows become records as Hugging Face writes them: a null is a key that the record lacks, and the struct `{bytes, path}` of an image or
//! video stands for its bytes, or for its path where it has none.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use parquet::file::reader::{ChunkReader, Length};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::RawRecord;
use super::error::{ReadError, TableError};
use super::stamp::FileStamp;
use crate::record::media_reference;

/// Bytes of rows that are decoded at once. Rows that are larger are decoded alone.
const BLOCK_BYTES: usize = 1 << 20;

/// Rows that are decoded at once.
const BLOCK_ROWS: usize = 1024;

/// Memory for decoded rows of all files of a dataset.
const CACHE_BYTES: usize = 64 << 20;

/// Maximum bytes of the footer, which is read whole.
const LONGEST_FOOTER: u64 = 256 << 20;

/// Rows for each byte of a file above which its count is not believed. Even rows that are all equal take more.
const ROWS_PER_BYTE: u64 = 64;

/// The rows of one file.
#[derive(Debug)]
pub(super) struct TableIndex {
    metadata: ArrowReaderMetadata,
    columns: ProjectionMask,
    /// Number of rows up to the end of each row group.
    ends: Vec<usize>,
    cache: Arc<BlockCache>,
}

/// Rows that are decoded at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    file: PathBuf,
    group: usize,
    /// Number of the block in its row group.
    number: usize,
}

/// Blocks that were decoded last.
#[derive(Debug, Default)]
pub(super) struct BlockCache(Mutex<VecDeque<(Block, RecordBatch)>>);

impl BlockCache {
    fn get(&self, block: &Block) -> Option<RecordBatch> {
        let blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.iter().find(|(known, _)| known == block).map(|(_, rows)| rows.clone())
    }

    /// Adds a block, and forgets the oldest ones that no longer fit.
    fn insert(&self, block: Block, rows: &RecordBatch) {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.push_back((block, rows.clone()));
        let bytes = |rows: &RecordBatch| rows.get_array_memory_size();
        let mut total: usize = blocks.iter().map(|(_, rows)| bytes(rows)).sum();
        while total > CACHE_BYTES {
            let Some((_, oldest)) = blocks.pop_front() else { break };
            total -= bytes(&oldest);
        }
    }
}

impl TableIndex {
    /// Reads the footer of a file, and hashes it.
    pub(super) fn open(
        opened: File,
        file: &Path,
        stamp: FileStamp,
        cache: Arc<BlockCache>,
        hash: &mut Sha256,
    ) -> Result<Self, ReadError> {
        let refuse = |problem| ReadError::Table { file: file.to_owned(), problem };
        let chunks = Chunks { file: opened.into(), length: stamp.length() };
        chunks.hash_footer(hash).map_err(refuse)?;
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = guard(|| ArrowReaderMetadata::load(&chunks, options)).map_err(refuse)?;
        let ends = check_row_groups(metadata.metadata(), stamp.length()).map_err(refuse)?;
        let columns = readable_columns(&metadata, file).map_err(refuse)?;
        match ends.last() {
            None | Some(0) => Err(ReadError::Empty { file: file.to_owned() }),
            _ => Ok(Self { metadata, columns, ends, cache }),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Reads a row.
    pub(super) fn read(&self, index: usize, file: &Path, stamp: FileStamp) -> Result<RawRecord, ReadError> {
        let refuse = |problem| ReadError::Table { file: file.to_owned(), problem };
        let group = self.ends.partition_point(|end| *end <= index);
        let row = index - group.checked_sub(1).map_or(0, |before| self.ends[before]);
        let per_block = self.rows_per_block(group);
        let block = Block { file: file.to_owned(), group, number: row / per_block };
        let rows = match self.cache.get(&block) {
            // The file may have changed since.
            Some(rows) => stamp.reopen(file).map(|_| rows)?,
            None => {
                let chunks = Chunks { file: stamp.reopen(file)?.into(), length: stamp.length() };
                let rows = self.decode(chunks, &block, per_block).map_err(refuse)?;
                stamp.reopen(file)?;
                self.cache.insert(block, &rows);
                rows
            }
        };
        let mut media = Vec::new();
        let value = struct_value(&StructArray::from(rows), row % per_block, &mut media);
        Ok(RawRecord { value: value.unwrap_or(Value::Null), media })
    }

    fn rows_per_block(&self, group: usize) -> usize {
        let group = self.metadata.metadata().row_group(group);
        let bytes = usize::try_from(group.total_byte_size()).unwrap_or(usize::MAX);
        let rows = usize::try_from(group.num_rows()).unwrap_or(1).max(1);
        (BLOCK_BYTES / (bytes / rows).max(1)).clamp(1, BLOCK_ROWS)
    }

    fn decode(&self, chunks: Chunks, block: &Block, per_block: usize) -> Result<RecordBatch, TableError> {
        let rows = self.metadata.metadata().row_group(block.group).num_rows() as usize;
        let start = block.number * per_block;
        let count = per_block.min(rows - start);
        let selection = RowSelection::from(vec![RowSelector::skip(start), RowSelector::select(count)]);
        guard(|| {
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, self.metadata.clone());
            let reader = reader.with_projection(self.columns.clone()).with_row_groups(vec![block.group]);
            let mut reader = reader.with_row_selection(selection).with_batch_size(count).build()?;
            let rows = reader.next().transpose()?;
            let rows = rows.filter(|rows| rows.num_rows() == count);
            rows.ok_or_else(|| ParquetError::EOF("fewer rows than its footer says".to_owned()))
        })
    }
}

/// Runs the decoder on a file that may be hostile: where it panics, the file is damaged.
fn guard<T>(decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, TableError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)) {
        Ok(Ok(decoded)) => Ok(decoded),
        Ok(Err(error)) => Err(TableError::Damaged { problem: error.to_string() }),
        Err(_) => Err(TableError::Damaged { problem: "its decoder stopped".to_owned() }),
    }
}

/// Number of rows up to the end of each row group, if the file can have them.
fn check_row_groups(metadata: &ParquetMetaData, length: u64) -> Result<Vec<usize>, TableError> {
    let (mut ends, mut end) = (Vec::new(), 0u64);
    for (group, row_group) in metadata.row_groups().iter().enumerate() {
        let rows = row_group.num_rows();
        end = u64::try_from(rows).ok().and_then(|rows| end.checked_add(rows)).unwrap_or(u64::MAX);
        if end > length.saturating_mul(ROWS_PER_BYTE) {
            return Err(TableError::RowCount { group, rows, bytes: length });
        }
        for column in row_group.columns() {
            let name = column.column_path().string();
            match column.compression() {
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => {}
                other => return Err(TableError::Compression { column: name, found: codec_name(other) }),
            }
            let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let chunk = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
            if chunk.and_then(|(start, size)| start.checked_add(size)).is_none_or(|end| end > length) {
                return Err(TableError::Truncated { column: name, group });
            }
        }
        ends.push(end as usize);
    }
    Ok(ends)
}

/// `gzip` of `GZIP(GzipLevel(6))`.
fn codec_name(compression: Compression) -> String {
    let name = format!("{compression:?}").to_ascii_lowercase();
    name.split('(').next().unwrap_or(&name).to_owned()
}

/// The columns whose types records have; the others are named in a warning.
fn readable_columns(metadata: &ArrowReaderMetadata, file: &Path) -> Result<ProjectionMask, TableError> {
    let fields = metadata.schema().fields().iter().enumerate();
    let (read, left): (Vec<_>, Vec<_>) = fields.partition(|(_, field)| is_readable(field.data_type()));
    for (_, field) in &left {
        tracing::warn!(
            "{}: column \"{}\" has the type {}, which no record has, and is not read",
            file.display(),
            field.name(),
            field.data_type()
        );
    }
    if read.is_empty() {
        return Err(TableError::NoColumns);
    }
    Ok(ProjectionMask::roots(metadata.parquet_schema(), read.into_iter().map(|(root, _)| root)))
}

fn is_readable(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.iter().all(|field| is_readable(field.data_type())),
        DataType::List(field) => is_readable(field.data_type()),
        DataType::Utf8 | DataType::Binary | DataType::Boolean | DataType::Null => true,
        other => other.is_integer() || other.is_floating(),
    }
}

/// One value of a column; none for null.
fn value(array: &ArrayRef, row: usize, media: &mut Vec<Vec<u8>>) -> Option<Value> {
    if array.is_null(row) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Struct(_) => return struct_value(array.as_struct(), row, media),
        DataType::List(_) => {
            let values = array.as_list::<i32>().value(row);
            let values = (0..values.len()).map(|at| value(&values, at, media).unwrap_or(Value::Null));
            Value::Array(values.collect())
        }
        DataType::Utf8 => Value::from(array.as_string::<i32>().value(row)),
        DataType::Binary => attached(array.as_binary::<i32>().value(row), media),
        DataType::Boolean => Value::from(array.as_boolean().value(row)),
        DataType::Int8 => Value::from(array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => Value::from(array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => Value::from(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => Value::from(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => Value::from(array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => Value::from(array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => Value::from(array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => Value::from(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float16 => Value::from(array.as_primitive::<Float16Type>().value(row).to_f32()),
        DataType::Float32 => Value::from(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Value::from(array.as_primitive::<Float64Type>().value(row)),
        _ => return None,
    })
}

fn attached(bytes: &[u8], media: &mut Vec<Vec<u8>>) -> Value {
    media.push(bytes.to_vec());
    media_reference(media.len() - 1)
}

/// A struct without its nulls; an image or video with bytes is its bytes.
fn struct_value(array: &StructArray, row: usize, media: &mut Vec<Vec<u8>>) -> Option<Value> {
    if let Some(bytes) = array.column_by_name("bytes")
        && bytes.data_type() == &DataType::Binary
        && bytes.is_valid(row)
        && array.column_by_name("path").is_some()
    {
        return Some(attached(bytes.as_binary::<i32>().value(row), media));
    }
    let mut keys = Map::new();
    for (name, column) in array.column_names().into_iter().zip(array.columns()) {
        if let Some(value) = value(column, row, media) {
            keys.insert(name.to_owned(), value);
        }
    }
    (!keys.is_empty()).then_some(Value::Object(keys))
}

/// A file from which no more is read than it has, whatever its footer says.
struct Chunks {
    file: Arc<File>,
    length: u64,
}

/// A place in a file of which no other reader moves the cursor.
struct ChunkRead {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for ChunkRead {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = bytes.len().min(left);
        glm4v_files::read_exact_at(&self.file, &mut bytes[..count], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Chunks {
    /// Hashes the footer: it has place, size and statistics of every column.
    fn hash_footer(&self, hash: &mut Sha256) -> Result<(), TableError> {
        let damaged = |problem: String| TableError::Damaged { problem };
        let ending = self.length.checked_sub(8).ok_or(TableError::NoFooter)?;
        let mut bytes = [0; 8];
        glm4v_files::read_exact_at(&self.file, &mut bytes, ending).map_err(|e| damaged(e.to_string()))?;
        let size = u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let start = ending.checked_sub(size).filter(|_| &bytes[4..] == b"PAR1" && size <= LONGEST_FOOTER);
        let mut footer = vec![0; size.min(LONGEST_FOOTER) as usize];
        let start = start.ok_or(TableError::NoFooter)?;
        glm4v_files::read_exact_at(&self.file, &mut footer, start).map_err(|e| damaged(e.to_string()))?;
        hash.update(&footer);
        Ok(())
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<ChunkRead>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(ChunkRead { file: self.file.clone(), at: start, end: self.length }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            let problem = format!("{length} bytes at {start}, and the file has {}", self.length);
            return Err(ParquetError::EOF(problem));
        }
        let mut bytes = vec![0; length];
        glm4v_files::read_exact_at(&self.file, &mut bytes, start)?;
        Ok(bytes.into())
    }
}
