//! Safetensors files, written a tensor at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use burn::tensor::TensorData;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::publish::Staged;
use crate::{WeightsError, numbers};

/// Takes bytes on their way to a file.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), WeightsError> + 'a;

/// Hands the bytes of a tensor over, in as many portions as it likes.
type Source<'a> = dyn Fn(&mut Sink<'_>) -> Result<(), WeightsError> + 'a;

/// A tensor on its way to a file: what the header says of it, and its bytes once their turn comes.
pub(crate) struct Outgoing<'a> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// As many bytes as type and shape say.
    pub(crate) bytes: Box<Source<'a>>,
}

impl Outgoing<'_> {
    /// Bytes that it will take.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
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
    let outgoing = tensors.iter().map(|(name, data)| Outgoing {
        name: name.clone(),
        dtype: numbers::file_dtype(data.dtype()),
        shape: data.shape().to_vec(),
        bytes: Box::new(|sink| sink(data.as_bytes())),
    });
    write_outgoing(path, outgoing.collect(), metadata, &mut |_| {})
}

/// Writes tensors that are fetched when their turn comes; `watch` hears of every byte.
pub(crate) fn write_outgoing(
    path: &Path,
    mut tensors: Vec<Outgoing<'_>>,
    metadata: &[(&str, String)],
    watch: &mut dyn FnMut(u64),
) -> Result<(), WeightsError> {
    // Widest types first, so that each tensor is aligned to its own: torch refuses others.
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    let staged = Staged::beside(path);
    write_staged(path, staged.path(), &tensors, metadata, watch)?;
    staged.publish(path).map_err(WeightsError::write(path))
}

fn write_staged(
    path: &Path,
    staged: &Path,
    tensors: &[Outgoing<'_>],
    metadata: &[(&str, String)],
    watch: &mut dyn FnMut(u64),
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
            watch(bytes.len() as u64);
            Ok(())
        })?;
        assert_eq!(written, tensor.len(), "{} is as long as its header says", tensor.name);
    }
    // A rename may reach the disk before what it renames: without this, a power cut could leave an empty file.
    file.into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .map_err(WeightsError::write(path))
}

fn header(tensors: &[Outgoing<'_>], metadata: &[(&str, String)]) -> Vec<u8> {
    let mut about: Map<String, Value> = Map::from_iter([("format".to_owned(), "pt".into())]);
    about.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())));
    let mut header = Map::from_iter([("__metadata__".to_owned(), about.into())]);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.len();
        let place = json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, end],
        });
        header.insert(tensor.name.clone(), place);
        start = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' '); // the tensors start aligned
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::TensorFile;
    use burn::tensor::DType;

    #[test]
    fn what_is_written_is_read_back() {
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
        let half = crate::floats(TensorData::new(vec![1.0f32; 3], [3]), DType::BF16);
        let single = TensorData::new(vec![1.0f32], [1]);

        let tensors = vec![("a".into(), bytes), ("b".into(), half), ("c".into(), single)];
        write_tensors(&path, tensors, &[]).unwrap();

        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names_in_order(), ["c", "b", "a"]);
        let raw = fs::read(&path).unwrap();
        assert_eq!((raw.len() - 4 - 6 - 3) % 8, 0, "the header ends aligned");
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_and_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        fs::create_dir(&path).unwrap(); // no file can take its place

        let error = write_tensors(&path, vec![("a".into(), TensorData::new(vec![1.0f32], [1]))], &[]);

        assert!(error.unwrap_err().to_string().contains("t.safetensors: cannot write"));
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tensor_that_cannot_be_fetched_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let gone = || WeightsError::NoFolder { path: "gone".into() };
        let tensor = Outgoing {
            name: "a".into(),
            dtype: Dtype::U8,
            shape: vec![4],
            bytes: Box::new(move |sink| sink(&[1, 2]).and_then(|()| Err(gone()))),
        };

        assert!(write_outgoing(&path, vec![tensor], &[], &mut |_| {}).is_err());

        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
