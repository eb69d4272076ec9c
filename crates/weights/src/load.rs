//! From files to a network.

use std::collections::HashMap;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_model::{Glm4v, NamedMapper, Precision, map_named};

use crate::{ModelFolder, TensorFile, WeightsError, list_names};

impl ModelFolder {
    /// Builds the network on `device` with the folder's weights in the wanted type, one tensor at a time.
    ///
    /// Tensors that the network does not know are left out with a warning that lists them.
    ///
    /// # Errors
    ///
    /// When a file is broken, or tensors are missing or have another shape: all of them are listed.
    pub fn load(&self, device: &Device, precision: Precision) -> Result<Glm4v, WeightsError> {
        let files = self.weight_files()?;
        let mut place = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names()? {
                place.insert(name, index);
            }
        }
        let mut loader = Loader {
            files: &files,
            place,
            dtype: precision.dtype(),
            missing: Vec::new(),
            misshapen: Vec::new(),
            failed: None,
        };
        let model = map_named(self.config().init(device), &mut loader);
        if let Some(error) = loader.failed {
            return Err(error);
        }
        if !loader.missing.is_empty() || !loader.misshapen.is_empty() {
            return Err(WeightsError::Mismatch {
                folder: self.path().to_owned(),
                missing: loader.missing,
                misshapen: loader.misshapen,
            });
        }
        let mut unknown: Vec<String> = loader.place.into_keys().collect();
        // A tied head may be stored all the same.
        unknown.retain(|name| !(self.config().tie_word_embeddings && name == "lm_head.weight"));
        if !unknown.is_empty() {
            unknown.sort();
            tracing::warn!(
                "{}: {} tensors have no place in this network and are left out: {}",
                self.path().display(),
                unknown.len(),
                list_names(&unknown)
            );
        }
        Ok(model)
    }
}

struct Loader<'a> {
    files: &'a [TensorFile],
    /// Which file has a tensor; emptied as tensors are used.
    place: HashMap<String, usize>,
    dtype: DType,
    missing: Vec<String>,
    misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    failed: Option<WeightsError>,
}

impl NamedMapper for Loader<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(index) = self.place.remove(name) else {
            self.missing.push(name.to_owned());
            return param;
        };
        let file = &self.files[index];
        let needed = param.lazy_shape().to_vec();
        match file.shape(name) {
            Ok(Some(found)) if found == needed => {}
            Ok(found) => {
                self.misshapen.push((name.to_owned(), found.unwrap_or_default(), needed));
                return param;
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                return param;
            }
        }
        match file.float(name, self.dtype) {
            Ok(data) => {
                let (id, device) = (param.id, param.lazy_device());
                param.transform_for_load(Tensor::from_data(data, (&device, self.dtype)), id)
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                param
            }
        }
    }
}
