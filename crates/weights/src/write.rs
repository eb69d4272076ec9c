//! Writing of safetensors files, one tensor at a time.

use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Write};
use std::path::Path;

use burn::tensor::TensorData;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::atomic::StagedPath;
use crate::dtype;
use crate::error::WeightsError;

/// Consumes consecutive bytes of a tensor.
pub(crate) type ByteSink<'a> = dyn FnMut(&[u8]) -> Result<(), WeightsError> + 'a;

/// Produces the bytes of a tensor, in as many chunks as it likes.
type ByteSource<'a> = dyn Fn(&mut ByteSink<'_>) -> Result<(), WeightsError> + 'a;

/// A tensor whose bytes are produced when the writer reaches it, so that no model is in memory as a whole.
pub(crate) struct LazyTensor<'a> {
    pub(crate) name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Box<ByteSource<'a>>,
}

impl<'a> LazyTensor<'a> {
    /// `bytes` must produce exactly as many bytes as type and shape need.
    pub(crate) fn new(
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: impl Fn(&mut ByteSink<'_>) -> Result<(), WeightsError> + 'a,
    ) -> Self {
        Self { name, dtype, shape, bytes: Box::new(bytes) }
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes a safetensors file atomically, with the metadata `format: pt` that transformers requires.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_tensors(
    path: &Path,
    tensors: Vec<(String, TensorData)>,
    metadata: &[(&str, String)],
) -> Result<(), WeightsError> {
    let lazy = tensors.iter().map(|(name, data)| {
        let dtype = dtype::safetensors_dtype(data.dtype());
        LazyTensor::new(name.clone(), dtype, data.shape().to_vec(), |sink| sink(data.as_bytes()))
    });
    write_lazy(path, lazy.collect(), metadata, &mut |_| {})
}

/// Writes a safetensors file atomically; `progress` is called with the number of bytes after every chunk.
pub(crate) fn write_lazy(
    path: &Path,
    mut tensors: Vec<LazyTensor<'_>>,
    metadata: &[(&str, String)],
    progress: &mut dyn FnMut(u64),
) -> Result<(), WeightsError> {
    // Widest types first aligns each tensor to its type; torch refuses unaligned ones.
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    let staged = StagedPath::beside(path);
    write_staged(path, staged.path(), &tensors, metadata, progress)?;
    staged.publish(path).map_err(WeightsError::write(path))
}

fn write_staged(
    path: &Path,
    staged: &Path,
    tensors: &[LazyTensor<'_>],
    metadata: &[(&str, String)],
    progress: &mut dyn FnMut(u64),
) -> Result<(), WeightsError> {
    let file = File::create(staged).map_err(WeightsError::write(path))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let header = header(tensors, metadata);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(&header))
        .map_err(WeightsError::write(path))?;
    for tensor in tensors {
        let mut written = 0;
        (tensor.bytes)(&mut |bytes| {
            written += bytes.len();
            file.write_all(bytes).map_err(WeightsError::write(path))?;
            progress(bytes.len() as u64);
            Ok(())
        })?;
        assert_eq!(written, tensor.len(), "{} is as long as its header says", tensor.name);
    }
    // A rename may reach the disk before the data: without a sync, a power cut could leave an empty file.
    file.into_inner()
        .map_err(IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .map_err(WeightsError::write(path))
}

fn header(tensors: &[LazyTensor<'_>], metadata: &[(&str, String)]) -> Vec<u8> {
    let mut texts: Map<String, Value> = Map::from_iter([("format".to_owned(), "pt".into())]);
    texts.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())));
    let mut header = Map::from_iter([("__metadata__".to_owned(), texts.into())]);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.len();
        let entry = json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, end],
        });
        header.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' '); // aligns the tensor data
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dtype::cast_floats;
    use crate::tensor_file::TensorFile;
    use burn::tensor::DType;

    #[test]
    fn written_tensors_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let tensor = TensorData::new(vec![1.0f32, -2.5, 3.0, 0.1], [2, 2]);

        write_tensors(&path, vec![("a".into(), tensor.clone())], &[("step", "3".into())]).unwrap();

        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), ["a"]);
        assert_eq!((file.metadata()["step"].as_str(), file.metadata()["format"].as_str()), ("3", "pt"));
        assert_eq!(file.float("a", DType::F32).unwrap(), tensor);
        assert_eq!(file.float("a", DType::BF16).unwrap().dtype(), DType::BF16);
        assert!(file.integers("a").unwrap_err().to_string().contains("has type F32"));
    }

    #[test]
    fn every_tensor_is_aligned_to_its_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let bytes = TensorData::new(vec![7u8; 3], [3]);
        let half = cast_floats(TensorData::new(vec![1.0f32; 3], [3]), DType::BF16);
        let single = TensorData::new(vec![1.0f32], [1]);

        let tensors = vec![("a".into(), bytes), ("b".into(), half), ("c".into(), single)];
        write_tensors(&path, tensors, &[]).unwrap();

        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names_by_offset(), ["c", "b", "a"]);
        let raw = fs::read(&path).unwrap();
        assert_eq!((raw.len() - 4 - 6 - 3) % 8, 0, "the header ends aligned");
    }

    #[test]
    fn a_failed_write_leaves_no_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        fs::create_dir(&path).unwrap(); // no file can take its place

        let error = write_tensors(&path, vec![("a".into(), TensorData::new(vec![1.0f32], [1]))], &[]);

        assert!(error.unwrap_err().to_string().contains("t.safetensors: cannot write"));
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tensor_that_cannot_be_read_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let gone = || WeightsError::NoSuchDir { path: "gone".into() };
        let tensor = LazyTensor::new("a".into(), Dtype::U8, vec![4], move |sink| {
            sink(&[1, 2]).and_then(|()| Err(gone()))
        });

        assert!(write_lazy(&path, vec![tensor], &[], &mut |_| {}).is_err());

        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
