//! The tensors of a model directory under their canonical names.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use burn::tensor::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use crate::dtype;
use crate::error::WeightsError;
use crate::fp8::{self, Fp8Scales};
use crate::names;
use crate::shard_index::open_files;
use crate::tensor_file::TensorFile;

/// The tensors of all files by canonical name, and the values of FP8 weights with their scales.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    files: Vec<TensorFile>,
    locations: HashMap<String, Location>,
    /// Canonical names in the order of the files.
    order: Vec<String>,
    /// Scales of FP8 weights, by the canonical name of the weight.
    scales: HashMap<String, Fp8Scales>,
}

#[derive(Debug)]
struct Location {
    /// Index of the file.
    file: usize,
    /// Name in the file.
    stored_name: String,
}

impl Checkpoint {
    /// Reads the index, the headers and the FP8 scales.
    pub(crate) fn open(dir: &Path) -> Result<Self, WeightsError> {
        let mut checkpoint = Self {
            files: open_files(dir)?,
            locations: HashMap::new(),
            order: Vec::new(),
            scales: HashMap::new(),
        };
        checkpoint.index_tensors()?;
        checkpoint.read_scales(dir)?;
        Ok(checkpoint)
    }

    fn index_tensors(&mut self) -> Result<(), WeightsError> {
        for (number, file) in self.files.iter().enumerate() {
            for name in file.names_by_offset() {
                let canonical = names::canonical(&name).into_owned();
                self.order.push(canonical.clone());
                let location = Location { file: number, stored_name: name.clone() };
                if let Some(first) = self.locations.insert(canonical, location) {
                    return Err(WeightsError::Duplicate {
                        first: self.files[first.file].path().to_owned(),
                        first_name: first.stored_name,
                        second: file.path().to_owned(),
                        second_name: name,
                    });
                }
            }
        }
        Ok(())
    }

    /// Reads the scales of FP8 weights, and removes them from the list of tensors.
    fn read_scales(&mut self, dir: &Path) -> Result<(), WeightsError> {
        let is_fp8 = |name: &&String| self.info(name).is_some_and(|info| fp8::is_fp8(info.dtype));
        let weights: Vec<String> = self.order.iter().filter(is_fp8).cloned().collect();
        if weights.is_empty() {
            return Ok(());
        }
        let block = fp8::block_size(dir);
        let mut scale_tensors = BTreeSet::new();
        for weight in weights {
            let shape = self.info(&weight).map(|info| info.shape.clone()).unwrap_or_default();
            for name in fp8::scale_names(&weight) {
                let Some((file, stored_name)) = self.find(&name) else { continue };
                let scales = Fp8Scales::read(file, stored_name, &shape, block)?;
                self.scales.insert(weight.clone(), scales);
                scale_tensors.insert(name);
                break;
            }
            scale_tensors.insert(fp8::input_scale_name(&weight));
        }
        self.order.retain(|name| !scale_tensors.contains(name));
        Ok(())
    }

    /// Whether a tensor is an FP8 weight with scales.
    pub(crate) fn is_scaled(&self, name: &str) -> bool {
        self.scales.contains_key(name)
    }

    /// Fills `out` with a tensor's values as `dtype`, from element `first` on; FP8 weights are dequantized.
    pub(crate) fn float_into(
        &self,
        name: &str,
        first: usize,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let (file, stored_name) = self.expect(name);
        match self.scales.get(name) {
            Some(scales) => scales.float_into(file, stored_name, first, dtype, out),
            None => file.float_into(stored_name, first, dtype, out),
        }
    }

    /// The type of the first tensor that is quantized in an unsupported way; `quantized` tells whether the config has a
    /// `quantization_config`.
    ///
    /// FP8 weights without known scales are unsupported in any case, integers only with such a config: without one, integer
    /// tensors are tensors that the network does not use.
    pub(crate) fn unsupported_quantization(&self, quantized: bool) -> Option<Dtype> {
        let types = self.order.iter().filter_map(|name| Some((name, self.info(name)?.dtype)));
        let unsupported = |(name, dtype): &(&String, Dtype)| match dtype {
            _ if self.is_scaled(name) => false,
            Dtype::F8_E4M3 | Dtype::F8_E5M2 => quantized || name.ends_with(".weight"),
            other => quantized && !dtype::is_float(*other),
        };
        types.filter(unsupported).map(|(_, dtype)| dtype).next()
    }

    /// Canonical names in the order of the files, without FP8 scales.
    pub(crate) fn names(&self) -> &[String] {
        &self.order
    }

    /// The file of a tensor and its name there.
    pub(crate) fn find(&self, name: &str) -> Option<(&TensorFile, &str)> {
        let location = self.locations.get(name)?;
        Some((&self.files[location.file], &location.stored_name))
    }

    /// As [`find`](Self::find), for one of [`names`](Self::names).
    pub(crate) fn expect(&self, name: &str) -> (&TensorFile, &str) {
        self.find(name).expect("the name is one of the checkpoint's")
    }

    /// Whether any file has the tensor.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.locations.contains_key(name)
    }

    /// Type and shape of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        let (file, stored_name) = self.find(name)?;
        file.info(stored_name).ok()
    }

    /// Whether two tensors have the same shape and values; false if one of them is missing.
    pub(crate) fn equal(&self, one: &str, other: &str) -> Result<bool, WeightsError> {
        /// Elements compared at once, to bound the memory.
        const RUN: usize = 1 << 22;
        let (Some(info), Some(other_info)) = (self.info(one), self.info(other)) else {
            return Ok(false);
        };
        if info.shape != other_info.shape {
            return Ok(false);
        }
        let count: usize = info.shape.iter().product();
        for first in (0..count).step_by(RUN) {
            let mut values = [0; 2].map(|_: u8| vec![0; RUN.min(count - first) * 4]);
            self.float_into(one, first, DType::F32, &mut values[0])?;
            self.float_into(other, first, DType::F32, &mut values[1])?;
            if values[0] != values[1] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::cast_floats;
    use crate::shard_index::SINGLE_FILE;
    use crate::shard_index::tests::write_shards;
    use crate::write::write_tensors;
    use burn::tensor::TensorData;
    use serde_json::json;

    #[test]
    fn tensors_of_all_shards_are_found_by_canonical_name() {
        let folder = write_shards(
            &[
                ("1.safetensors", &[("visual.a", 1.0)]),
                ("2.safetensors", &[("model.norm.weight", 2.0), ("x", 3.0)]),
            ],
            json!({"visual.a": "1.safetensors", "model.norm.weight": "2.safetensors"}),
        );

        let checkpoint = Checkpoint::open(folder.path()).unwrap();

        // `x` is in a file that is read, though the index does not name it.
        assert_eq!(checkpoint.names(), ["model.visual.a", "model.language_model.norm.weight", "x"]);
        let (file, name) = checkpoint.find("model.language_model.norm.weight").unwrap();
        assert!(file.path().ends_with("2.safetensors") && name == "model.norm.weight");
        assert!(checkpoint.find("model.norm.weight").is_none());
    }

    #[test]
    fn a_duplicate_tensor_is_refused_with_both_files() {
        let map = json!({"model.norm.weight": "1.safetensors", "language_model.model.norm.weight": "2.safetensors"});
        let folder = write_shards(
            &[
                ("1.safetensors", &[("model.norm.weight", 1.0)]),
                ("2.safetensors", &[("language_model.model.norm.weight", 1.0)]),
            ],
            map,
        );

        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();

        for words in
            ["1.safetensors: tensor \"model.norm.weight\" is also in ", "2.safetensors", "remove one"]
        {
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn values_of_different_types_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |values: Vec<f32>| TensorData::new(values, [2, 2]);
        let tensors = vec![
            ("a".into(), tensor(vec![1.0, 2.0, 3.0, 4.0])),
            ("b".into(), cast_floats(tensor(vec![1.0, 2.0, 3.0, 4.0]), DType::BF16)),
            ("c".into(), tensor(vec![1.0, 2.0, 3.0, 5.0])),
            ("d".into(), TensorData::new(vec![1.0f32, 2.0, 3.0, 4.0], [4])),
        ];
        write_tensors(&folder.path().join(SINGLE_FILE), tensors, &[]).unwrap();

        let checkpoint = Checkpoint::open(folder.path()).unwrap();

        assert!(checkpoint.equal("a", "b").unwrap());
        for other in ["c", "d", "e"] {
            assert!(!checkpoint.equal("a", other).unwrap(), "{other}");
        }
    }
}
