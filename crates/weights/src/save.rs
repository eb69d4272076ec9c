//! From a network to files.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_model::{Glm4v, NamedVisitor, Precision, visit_named};
use safetensors::{Dtype, View};
use serde_json::Value;

use crate::file::write_views;
use crate::{WeightsError, convert, floats, write_file};

/// Writes a network into `folder`, with the config, tokenizer and processor files of the folder it came from.
///
/// `folder` must exist; use a [`StagedFolder`](crate::StagedFolder) to have it appear whole. `config.json` is that of
/// `origin` with the type of the weights put right; every other file that is not weights is copied as it is.
///
/// # Errors
///
/// When the system refuses.
pub fn save_model(
    model: &Glm4v,
    origin: &Path,
    folder: &Path,
    precision: Precision,
) -> Result<(), WeightsError> {
    copy_side_files(origin, folder)?;
    write_config(origin, folder, precision)?;
    let mut collector = Collector { tensors: Vec::new(), dtype: precision.dtype() };
    visit_named(model, &mut collector);
    write_views(&folder.join("model.safetensors"), collector.tensors, &[])
}

/// Copies what is neither weights nor config.
fn copy_side_files(origin: &Path, folder: &Path) -> Result<(), WeightsError> {
    for entry in fs::read_dir(origin).map_err(WeightsError::read(origin))? {
        let entry = entry.map_err(WeightsError::read(origin))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let weights = text.ends_with(".safetensors")
            || text.ends_with(".safetensors.index.json")
            || text.starts_with("pytorch_model"); // the same weights in the older format, stale from now on
        let trainer = text == "trainer.json"; // what a checkpoint has beside its model
        if weights || trainer || text == "config.json" || text.starts_with('.') || !entry.path().is_file() {
            continue;
        }
        fs::copy(entry.path(), folder.join(&name)).map_err(WeightsError::write(&folder.join(&name)))?;
    }
    Ok(())
}

fn write_config(origin: &Path, folder: &Path, precision: Precision) -> Result<(), WeightsError> {
    let path = origin.join("config.json");
    let json = fs::read_to_string(&path).map_err(WeightsError::read(&path))?;
    let mut config: Value = serde_json::from_str(&json)
        .map_err(|error| WeightsError::Config { folder: origin.to_owned(), source: error.into() })?;
    let dtype = match precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
        Precision::F16 => "float16",
    };
    // Whichever of the two styles it has; a config that says nothing gets the newer key.
    let mut said = false;
    for place in ["", "/text_config", "/vision_config"] {
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = config.pointer_mut(&format!("{place}/{key}")) {
                *value = dtype.into();
                said = true;
            }
        }
    }
    if !said {
        config["dtype"] = dtype.into();
    }
    let json = serde_json::to_string_pretty(&config)
        .map_err(|error| WeightsError::Config { folder: origin.to_owned(), source: error.into() })?;
    write_file(&folder.join("config.json"), format!("{json}\n").as_bytes())
}

/// Lists a network's tensors by name.
struct Collector {
    tensors: Vec<(String, OnDevice)>,
    dtype: DType,
}

impl NamedVisitor for Collector {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let value = param.val();
        self.tensors.push((
            name.to_owned(),
            OnDevice {
                shape: value.dims().to_vec(),
                dtype: self.dtype,
                // Handles only: the numbers leave the device when the writer asks for them.
                fetch: Box::new(move || value.clone().into_data()),
            },
        ));
    }
}

/// A tensor that leaves its device when the writer comes to it.
struct OnDevice {
    shape: Vec<usize>,
    dtype: DType,
    fetch: Box<dyn Fn() -> burn::tensor::TensorData>,
}

impl View for OnDevice {
    fn dtype(&self) -> Dtype {
        convert::file_dtype(self.dtype)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(floats((self.fetch)(), self.dtype).as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}
