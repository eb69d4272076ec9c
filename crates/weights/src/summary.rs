//! Size and types of the stored weights, from the headers of their files.

use std::collections::BTreeMap;

use crate::error::WeightsError;
use crate::folder::ModelFolder;
use crate::shard_index::open_files;

/// Totals over the tensors of a checkpoint as they are stored, FP8 scales and unused tensors included.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// Number of weights files.
    pub files: usize,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of all tensors, without headers.
    pub total_bytes: u64,
    /// Number of tensors of each type, by safetensors' name of it: `BF16`.
    pub types: BTreeMap<String, usize>,
}

impl ModelFolder {
    /// Summarizes the stored weights; no tensor is read, and quantized weights of any kind are accepted.
    ///
    /// # Errors
    ///
    /// When there are no weights, or a header or the index is broken.
    pub fn summary(&self) -> Result<CheckpointSummary, WeightsError> {
        let mut summary = CheckpointSummary::default();
        for file in open_files(self.path())? {
            summary.files += 1;
            for name in file.names_by_offset() {
                let info = file.info(&name)?;
                let (start, end) = info.data_offsets;
                summary.tensors += 1;
                summary.total_bytes += (end - start) as u64;
                *summary.types.entry(info.dtype.to_string()).or_default() += 1;
            }
        }
        Ok(summary)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dtype::cast_floats;
    use crate::write::write_tensors;
    use burn::tensor::{DType, TensorData};
    use tempfile::TempDir;

    /// A directory with a config.
    fn model_dir() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let config =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/models/glm-4.1v-9b-thinking/config.json");
        fs::copy(config, dir.path().join("config.json")).unwrap();
        dir
    }

    #[test]
    fn the_headers_of_all_shards_are_counted() {
        let dir = model_dir();
        let values = || TensorData::new(vec![1.0f32; 4], [4]);
        for (file, name, dtype) in [("a", "x", DType::BF16), ("b", "y", DType::F16), ("c", "z", DType::F32)] {
            let path = dir.path().join(format!("{file}.safetensors"));
            write_tensors(&path, vec![(name.into(), cast_floats(values(), dtype))], &[]).unwrap();
        }
        let index = r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#;
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();

        let summary = ModelFolder::open(dir.path()).unwrap().summary().unwrap();

        let types = BTreeMap::from([("BF16".to_owned(), 1), ("F16".to_owned(), 1)]);
        assert_eq!(summary, CheckpointSummary { files: 2, tensors: 2, total_bytes: 16, types });
    }

    #[test]
    fn a_broken_header_is_an_error_with_the_file() {
        let dir = model_dir();
        let header = br#"{"x":{"dtype":"F32"}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();

        let error = ModelFolder::open(dir.path()).unwrap().summary().unwrap_err().to_string();

        assert!(error.contains("model.safetensors: not a whole safetensors file: its header: "), "{error}");
    }
}
