//! Reading of one safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use glm4v_files::read_exact_at;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::dtype;
use crate::error::{LENGTH_FIELD, MAX_HEADER, SafetensorsError, WeightsError};

/// Bytes that one thread reads at once: the copy stays in its cache while it is converted.
const CHUNK: usize = 1 << 20;

/// An open safetensors file: the header is parsed once, tensors are read on demand.
///
/// Tensors are copied with positioned reads by several threads rather than memory-mapped: as fast (see `benches/load`),
/// no page of the file counts as memory of this process, and truncation of an open file is an error instead of a signal.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Offset of the tensor data in the file.
    data_start: u64,
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is truncated, or its header contradicts itself.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let invalid = |source| WeightsError::Format { path: path.to_owned(), source };
        let file = glm4v_files::open(path)?;
        let found = file.metadata().map_err(WeightsError::read(path))?.len();
        if found < LENGTH_FIELD {
            return Err(invalid(SafetensorsError::TooShort { found }));
        }
        let mut length = [0; LENGTH_FIELD as usize];
        read_exact_at(&file, &mut length, 0).map_err(WeightsError::read(path))?;
        let announced = u64::from_le_bytes(length);
        if announced > MAX_HEADER {
            return Err(invalid(SafetensorsError::HeaderTooLong { announced }));
        }
        let data_start = LENGTH_FIELD + announced;
        if data_start > found {
            return Err(invalid(SafetensorsError::HeaderTruncated { announced, found }));
        }
        let mut header = vec![0; announced as usize];
        read_exact_at(&file, &mut header, LENGTH_FIELD).map_err(WeightsError::read(path))?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| invalid(error.into()))?;
        let needed = data_start.saturating_add(header.data_len() as u64);
        if needed != found {
            return Err(invalid(SafetensorsError::WrongLength { found, needed }));
        }
        Ok(Self { path: path.to_owned(), file, header, data_start })
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sorted names of the tensors.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.names_by_offset();
        names.sort_unstable();
        names
    }

    /// Names of the tensors in the order of their data.
    pub(crate) fn names_by_offset(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> HashMap<String, String> {
        self.header.metadata().clone().unwrap_or_default()
    }

    /// Shape of a tensor, `None` if the file does not have it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.header.info(name)?.shape)
    }

    /// Reads a floating-point tensor as f32, bf16 or f16, whatever type it is stored in.
    ///
    /// # Errors
    ///
    /// When the file does not have it, it is not a floating-point tensor, or the read fails.
    pub fn float(&self, name: &str, dtype: DType) -> Result<TensorData, WeightsError> {
        let info = self.info(name)?;
        dtype::tensor_from_fn(info.shape.clone(), dtype, |out| self.float_into(name, 0, dtype, out))
    }

    /// Fills `out` with a tensor's values as `dtype`, from element `first` on.
    pub(crate) fn float_into(
        &self,
        name: &str,
        first: usize,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let info = self.info(name)?;
        if !dtype::is_float(info.dtype) {
            return Err(self.wrong_dtype(name, info));
        }
        let size = info.dtype.bitsize() / 8;
        let start = self.data_start + (info.data_offsets.0 + first * size) as u64;
        let chunk = CHUNK / size.max(dtype.size()); // in elements
        let offset = |number: usize| start + (number * chunk * size) as u64;
        let read = if out.len() <= chunk * dtype.size() {
            self.convert_chunk(start, info.dtype, dtype, &mut Vec::new(), out)
        } else {
            out.par_chunks_mut(chunk * dtype.size())
                .enumerate()
                .try_for_each_init(Vec::new, |scratch, (number, out)| {
                    self.convert_chunk(offset(number), info.dtype, dtype, scratch, out)
                })
        };
        read.map_err(WeightsError::read(&self.path))
    }

    /// Reads elements of type `stored` at an offset of the file and converts them into `out`; `scratch` is reused memory.
    fn convert_chunk(
        &self,
        offset: u64,
        stored: Dtype,
        dtype: DType,
        scratch: &mut Vec<u8>,
        out: &mut [u8],
    ) -> io::Result<()> {
        if stored == dtype::safetensors_dtype(dtype) {
            return read_exact_at(&self.file, out, offset);
        }
        scratch.resize(out.len() / dtype.size() * (stored.bitsize() / 8), 0);
        read_exact_at(&self.file, scratch, offset)?;
        dtype::convert(scratch, stored, dtype, out);
        Ok(())
    }

    /// Fills `out` with a tensor's stored bytes, from byte `first` on.
    pub(crate) fn bytes_into(&self, name: &str, first: usize, out: &mut [u8]) -> Result<(), WeightsError> {
        let start = self.data_start + (self.info(name)?.data_offsets.0 + first) as u64;
        read_exact_at(&self.file, out, start).map_err(WeightsError::read(&self.path))
    }

    /// Passes a tensor's stored bytes to `sink`, a chunk at a time.
    pub(crate) fn for_each_chunk(
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
            read_exact_at(&self.file, chunk, self.data_start + at as u64)
                .map_err(WeightsError::read(&self.path))?;
            sink(chunk)?;
            at += chunk.len();
        }
        Ok(())
    }

    /// Reads an integer tensor: its values and its shape.
    ///
    /// # Errors
    ///
    /// When the file does not have it, it is not an integer tensor, or the read fails.
    pub fn integers(&self, name: &str) -> Result<(Vec<i64>, Vec<usize>), WeightsError> {
        let info = self.info(name)?;
        let mut bytes = Vec::new();
        self.for_each_chunk(name, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        let values = dtype::to_integers(&bytes, info.dtype).ok_or_else(|| self.wrong_dtype(name, info))?;
        Ok((values, info.shape.clone()))
    }

    /// Type, shape and offsets of a tensor.
    pub(crate) fn info(&self, name: &str) -> Result<&TensorInfo, WeightsError> {
        self.header
            .info(name)
            .ok_or_else(|| WeightsError::NoTensor { path: self.path.clone(), name: name.to_owned() })
    }

    /// The error for a tensor of an unsupported type.
    pub(crate) fn wrong_dtype(&self, name: &str, info: &TensorInfo) -> WeightsError {
        WeightsError::Dtype { path: self.path.clone(), name: name.to_owned(), found: info.dtype.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::write::write_tensors;
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
    fn an_inconsistent_header_is_an_error_with_the_inconsistency() {
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
    fn the_header_length_is_checked() {
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
    fn a_directory_is_not_a_file() {
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
