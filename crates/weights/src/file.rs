//! One safetensors file, read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::{WeightsError, numbers};

/// Length of the header's length.
const PREFIX: u64 = 8;

/// Longest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;

/// Bytes that one thread reads at once: the copy stays in its cache while it is converted.
const CHUNK: usize = 1 << 20;

/// A safetensors file: its header is read once, a tensor's bytes when it is asked for.
///
/// Bytes are copied with positioned reads by several threads, straight to where they belong, rather than mapped: as
/// quick (see `benches/load`), nothing of the file stays in this program's memory, and a file that is cut short while
/// it is open is an error instead of a signal.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the first tensor begins.
    start: u64,
}

/// What makes a file no safetensors file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Too short for a header.
    #[error("it is {found} bytes long; needed: at least {PREFIX}")]
    Short {
        /// Bytes in the file.
        found: u64,
    },
    /// A header beyond what the format allows.
    #[error("it announces a header of {announced} bytes; needed: at most {MOST_HEADER}")]
    Huge {
        /// What the file says.
        announced: u64,
    },
    /// A header that goes beyond the file.
    #[error("it announces a header of {announced} bytes, but is {found} bytes long")]
    Cut {
        /// What the file says.
        announced: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A header that is not json, or whose shapes, types and offsets contradict each other.
    #[error("its header: {0}")]
    Header(#[from] serde_json::Error),
    /// Tensors that go beyond the file, or end before it.
    #[error("it is {found} bytes long; needed by its header: {needed}")]
    Length {
        /// Bytes in the file.
        found: u64,
        /// Bytes that the header speaks of.
        needed: u64,
    },
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is cut short, or its header contradicts itself.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let broken = |source| WeightsError::Format { path: path.to_owned(), source };
        let file = glm4v_files::open(path)?;
        let found = file.metadata().map_err(WeightsError::read(path))?.len();
        if found < PREFIX {
            return Err(broken(FormatError::Short { found }));
        }
        let mut length = [0; PREFIX as usize];
        read_exact_at(&file, &mut length, 0).map_err(WeightsError::read(path))?;
        let announced = u64::from_le_bytes(length);
        if announced > MOST_HEADER {
            return Err(broken(FormatError::Huge { announced }));
        }
        let start = PREFIX + announced;
        if start > found {
            return Err(broken(FormatError::Cut { announced, found }));
        }
        let mut header = vec![0; announced as usize];
        read_exact_at(&file, &mut header, PREFIX).map_err(WeightsError::read(path))?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| broken(error.into()))?;
        let needed = start.saturating_add(header.data_len() as u64);
        if needed != found {
            return Err(broken(FormatError::Length { found, needed }));
        }
        Ok(Self { path: path.to_owned(), file, header, start })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.names_in_order();
        names.sort_unstable();
        names
    }

    /// Names of the tensors, as they follow each other in the file.
    pub(crate) fn names_in_order(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The file's text metadata.
    pub fn metadata(&self) -> HashMap<String, String> {
        self.header.metadata().clone().unwrap_or_default()
    }

    /// Shape of a tensor, none if the file does not have it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.header.info(name)?.shape)
    }

    /// A tensor of numbers as f32, bf16 or f16, whatever the file keeps.
    ///
    /// # Errors
    ///
    /// When the file does not have it, it holds no floating-point numbers, or the system refuses.
    pub fn float(&self, name: &str, dtype: DType) -> Result<TensorData, WeightsError> {
        let info = self.info(name)?;
        numbers::tensor(info.shape.clone(), dtype, |out| self.float_into(name, 0, dtype, out))
    }

    /// Fills `out` with a tensor's values of `dtype`, from value `first` on.
    pub(crate) fn float_into(
        &self,
        name: &str,
        first: usize,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let info = self.info(name)?;
        if !numbers::is_float(info.dtype) {
            return Err(self.wrong_dtype(name, info));
        }
        let size = info.dtype.bitsize() / 8;
        let start = self.start + (info.data_offsets.0 + first * size) as u64;
        let same = info.dtype == numbers::file_dtype(dtype);
        let values = CHUNK / size.max(dtype.size()); // a chunk
        let fill = |scratch: &mut Vec<u8>, number: usize, out: &mut [u8]| {
            let at = start + (number * values * size) as u64;
            if same {
                return read_exact_at(&self.file, out, at);
            }
            scratch.resize(out.len() / dtype.size() * size, 0);
            read_exact_at(&self.file, scratch, at)?;
            numbers::convert(scratch, info.dtype, dtype, out);
            Ok(())
        };
        let read = if out.len() <= values * dtype.size() {
            fill(&mut Vec::new(), 0, out)
        } else {
            out.par_chunks_mut(values * dtype.size())
                .enumerate()
                .try_for_each_init(Vec::new, |scratch, (number, out)| fill(scratch, number, out))
        };
        read.map_err(WeightsError::read(&self.path))
    }

    /// Fills `out` with a tensor's bytes, from byte `first` on.
    pub(crate) fn bytes_into(&self, name: &str, first: usize, out: &mut [u8]) -> Result<(), WeightsError> {
        let start = self.start + (self.info(name)?.data_offsets.0 + first) as u64;
        read_exact_at(&self.file, out, start).map_err(WeightsError::read(&self.path))
    }

    /// Hands a tensor's bytes to `sink`, a chunk at a time.
    pub(crate) fn bytes(
        &self,
        name: &str,
        mut sink: impl FnMut(&[u8]) -> Result<(), WeightsError>,
    ) -> Result<(), WeightsError> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        let mut chunk = vec![0; CHUNK.min(end - start)];
        let mut at = start;
        while at < end {
            let chunk = &mut chunk[..CHUNK.min(end - at)];
            read_exact_at(&self.file, chunk, self.start + at as u64)
                .map_err(WeightsError::read(&self.path))?;
            sink(chunk)?;
            at += chunk.len();
        }
        Ok(())
    }

    /// A tensor of whole numbers.
    ///
    /// # Errors
    ///
    /// When the file does not have it, it holds no integers, or the system refuses.
    pub fn integers(&self, name: &str) -> Result<(Vec<i64>, Vec<usize>), WeightsError> {
        let info = self.info(name)?;
        let mut bytes = Vec::new();
        self.bytes(name, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        let values = numbers::integers(&bytes, info.dtype).ok_or_else(|| self.wrong_dtype(name, info))?;
        Ok((values, info.shape.clone()))
    }

    /// Type, shape and place of a tensor.
    pub(crate) fn info(&self, name: &str) -> Result<&TensorInfo, WeightsError> {
        self.header
            .info(name)
            .ok_or_else(|| WeightsError::NoTensor { path: self.path.clone(), name: name.to_owned() })
    }

    pub(crate) fn wrong_dtype(&self, name: &str, info: &TensorInfo) -> WeightsError {
        WeightsError::Dtype { path: self.path.clone(), name: name.to_owned(), found: info.dtype.to_string() }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                bytes = &mut bytes[read..];
                at += read as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::write_tensors;
    use half::bf16;

    /// A file of this header and so many bytes of data.
    pub(crate) fn forge(path: &Path, header: &str, data: usize) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_file_cut_short_anywhere_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        write_tensors(&path, vec![("a".into(), TensorData::new(vec![1.0f32; 64], [64]))], &[]).unwrap();
        let whole = fs::read(&path).unwrap();

        for length in [0, 4, 8, 20, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = TensorFile::open(&path).unwrap_err().to_string();
            assert!(error.contains("t.safetensors"), "{length}: {error}");
        }
        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        let needed = format!("it is {} bytes long; needed by its header: {}", whole.len() + 1, whole.len());
        assert!(error.contains(&needed), "{error}");
    }

    #[test]
    fn a_header_that_lies_is_an_error_that_says_how() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let f32s = |name: &str, from: usize, to: usize| {
            let shape = (to - from) / 4;
            format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{from},{to}]}}"#)
        };
        for (header, words) in [
            (
                r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#.into(),
                "overflow",
            ),
            (r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99999999]}}"#.into(), "offset for tensor"),
            (r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,16]}}"#.into(), "offset for tensor"),
            (r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[16,0]}}"#.into(), "offset for tensor"),
            (r#"{"a":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}}"#.into(), "unknown variant `F33`"),
            (format!("{{{},{}}}", f32s("a", 0, 12), f32s("b", 8, 16)), "invalid offset for tensor `b`"),
            (format!("{{{},{}}}", f32s("a", 0, 4), f32s("b", 8, 16)), "invalid offset for tensor `b`"),
            (format!("{{{}}}", f32s("a", 0, 1 << 30)), "bytes long; needed by its header: 107374"),
            ("{".into(), "EOF"),
            ("[1]".into(), "its header: "),
        ] {
            forge(&path, &header, 16);

            let error = TensorFile::open(&path).unwrap_err().to_string();

            assert!(error.contains("t.safetensors: not a whole safetensors file: "), "{header}: {error}");
            assert!(error.contains(words), "{header}: {error}");
        }
    }

    #[test]
    fn a_header_length_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        for (length, words) in [
            (u64::MAX, "a header of 18446744073709551615 bytes; needed: at most 100000000"),
            (99_999_999, "a header of 99999999 bytes, but is 16 bytes long"),
        ] {
            fs::write(&path, [length.to_le_bytes(), [b' '; 8]].concat()).unwrap();

            let error = TensorFile::open(&path).unwrap_err().to_string();

            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();

        let error = TensorFile::open(folder.path()).unwrap_err().to_string();

        assert!(error.ends_with(": is a directory; needed: a regular file"), "{error}");
    }

    #[test]
    fn a_tensor_larger_than_a_chunk_is_read_and_converted_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let values: Vec<bf16> = (0..CHUNK + 3).map(|i| bf16::from_f32((i % 251) as f32)).collect();
        let small = TensorData::new(vec![0u8; 3], [3]); // what follows is aligned to nothing
        let tensors = vec![("a".into(), small), ("b".into(), TensorData::new(values.clone(), [CHUNK + 3]))];
        write_tensors(&path, tensors, &[]).unwrap();

        let file = TensorFile::open(&path).unwrap();

        let wide = file.float("b", DType::F32).unwrap();
        let expected: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
        assert!(wide.as_slice::<f32>().unwrap() == expected);
        assert!(file.float("b", DType::BF16).unwrap().as_slice::<bf16>().unwrap() == values);
        let mut some = [0; 8];
        file.float_into("b", CHUNK + 1, DType::F32, &mut some).unwrap();
        let last: Vec<f32> = some.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(last, expected[CHUNK + 1..]);
    }
}
