//! One safetensors file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};

use crate::publish::staged;
use crate::{WeightsError, convert};

/// A safetensors file, mapped into memory: a tensor's bytes are read when it is asked for.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
}

impl TensorFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is cut short, or its header contradicts itself.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = File::open(path).map_err(WeightsError::read(path))?;
        #[expect(
            unsafe_code,
            reason = "mapping a file; it is opened for reading and never written by us in place"
        )]
        // SAFETY: a file that another program shortens meanwhile would end this one; every loader of mapped
        // weights shares that risk, and our own writers replace files by renaming.
        let map = unsafe { Mmap::map(&file) }.map_err(WeightsError::read(path))?;
        let opened = Self { path: path.to_owned(), map };
        opened.tensors()?;
        Ok(opened)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, WeightsError> {
        SafeTensors::deserialize(&self.map)
            .map_err(|source| WeightsError::Format { path: self.path.clone(), source })
    }

    /// Names of the tensors, sorted.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn names(&self) -> Result<Vec<String>, WeightsError> {
        let tensors = self.tensors()?;
        let mut names: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// The file's text metadata.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn metadata(&self) -> Result<HashMap<String, String>, WeightsError> {
        let (_, metadata) = SafeTensors::read_metadata(&self.map)
            .map_err(|source| WeightsError::Format { path: self.path.clone(), source })?;
        Ok(metadata.metadata().clone().unwrap_or_default())
    }

    /// Shape of a tensor, none if the file does not have it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn shape(&self, name: &str) -> Result<Option<Vec<usize>>, WeightsError> {
        Ok(self.tensors()?.tensor(name).ok().map(|view| view.shape().to_vec()))
    }

    /// A tensor of numbers as f32, bf16 or f16, whatever the file keeps.
    ///
    /// # Errors
    ///
    /// When the file does not have it, or it holds no floating-point numbers.
    pub fn float(&self, name: &str, dtype: DType) -> Result<TensorData, WeightsError> {
        let tensors = self.tensors()?;
        let view = self.view(&tensors, name)?;
        convert::float(&view, dtype).ok_or_else(|| self.wrong_dtype(name, &view))
    }

    /// A tensor of whole numbers.
    ///
    /// # Errors
    ///
    /// When the file does not have it, or it holds no integers.
    pub fn integers(&self, name: &str) -> Result<(Vec<i64>, Vec<usize>), WeightsError> {
        let tensors = self.tensors()?;
        let view = self.view(&tensors, name)?;
        let values = convert::integers(&view).ok_or_else(|| self.wrong_dtype(name, &view))?;
        Ok((values, view.shape().to_vec()))
    }

    fn view<'a>(&self, tensors: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, WeightsError> {
        tensors
            .tensor(name)
            .map_err(|_| WeightsError::NoTensor { path: self.path.clone(), name: name.to_owned() })
    }

    fn wrong_dtype(&self, name: &str, view: &TensorView<'_>) -> WeightsError {
        WeightsError::Dtype {
            path: self.path.clone(),
            name: name.to_owned(),
            found: format!("{:?}", view.dtype()),
        }
    }
}

/// Writes named tensors to `path`, whole or not at all, with `format: pt` as transformers expects.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_tensors(
    path: &Path,
    tensors: Vec<(String, TensorData)>,
    metadata: &[(&str, String)],
) -> Result<(), WeightsError> {
    let tensors = tensors.into_iter().map(|(name, data)| (name, Stored::new(data)));
    write_views(path, tensors, metadata)
}

/// Writes tensors that are fetched when their turn comes.
pub(crate) fn write_views<V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, V)>,
    metadata: &[(&str, String)],
) -> Result<(), WeightsError> {
    let mut all = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    all.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let staged = staged(path);
    let written = write_staged(path, &staged, tensors, all);
    if written.is_err() {
        let _ = fs::remove_file(&staged);
    }
    written
}

fn write_staged<V: View>(
    path: &Path,
    staged: &Path,
    tensors: impl IntoIterator<Item = (String, V)>,
    metadata: HashMap<String, String>,
) -> Result<(), WeightsError> {
    // The writer's temporary file is private to the user: give the result the permissions of an ordinary file.
    let ordinary =
        File::create(staged).and_then(|file| file.metadata()).map_err(WeightsError::write(path))?;
    safetensors::serialize_to_file(tensors, Some(metadata), staged).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => WeightsError::write(path)(source),
        source => WeightsError::Format { path: path.to_owned(), source },
    })?;
    fs::set_permissions(staged, ordinary.permissions())
        .and_then(|()| fs::rename(staged, path))
        .map_err(WeightsError::write(path))
}

/// A tensor on the host, as the writer wants it.
struct Stored {
    shape: Vec<usize>,
    data: TensorData,
}

impl Stored {
    fn new(data: TensorData) -> Self {
        Self { shape: data.shape().to_vec(), data }
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        convert::file_dtype(self.data.dtype())
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.data.as_bytes())
    }

    fn data_len(&self) -> usize {
        self.data.as_bytes().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let tensor = TensorData::new(vec![1.0f32, -2.5, 3.0, 0.1], [2, 2]);

        write_tensors(&path, vec![("a".into(), tensor.clone())], &[("step", "3".into())]).unwrap();

        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().unwrap(), ["a"]);
        assert_eq!(file.metadata().unwrap()["step"], "3");
        assert_eq!(file.float("a", DType::F32).unwrap(), tensor);
        assert_eq!(file.float("a", DType::BF16).unwrap().dtype(), DType::BF16);
        assert!(file.integers("a").unwrap_err().to_string().contains("has type F32"));
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_and_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        std::fs::create_dir(&path).unwrap(); // no file can take its place

        let error = write_tensors(&path, vec![("a".into(), TensorData::new(vec![1.0f32], [1]))], &[]);

        assert!(error.unwrap_err().to_string().contains("t.safetensors: cannot write"));
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_cut_short_anywhere_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        write_tensors(&path, vec![("a".into(), TensorData::new(vec![1.0f32; 64], [64]))], &[]).unwrap();
        let whole = std::fs::read(&path).unwrap();

        for length in [0, 4, 8, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = TensorFile::open(&path).unwrap_err().to_string();
            assert!(error.contains("t.safetensors"), "{length}: {error}");
        }
    }

    #[test]
    fn a_header_that_lies_about_sizes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        for header in [
            r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#,
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99999999]}}"#,
            r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,16]}}"#,
        ] {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&[0; 16]);
            std::fs::write(&path, bytes).unwrap();

            assert!(matches!(TensorFile::open(&path), Err(WeightsError::Format { .. })), "{header}");
        }
    }
}
