//! The files of a model directory other than its weights.

use std::fs;
use std::path::Path;

use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::Precision;
use serde_json::Value;

use crate::atomic::write_file;
use crate::error::WeightsError;

/// Copies tokenizer, templates, processor configs, licenses and other files, without weights and `config.json`.
///
/// All safetensors files are left out, even those that the index does not list: no reader of the checkpoint uses them, and
/// beside changed weights they would be stale. Hidden files and subdirectories are left out, too.
pub(crate) fn copy_auxiliary_files(origin: &Path, dir: &Path) -> Result<(), WeightsError> {
    for entry in fs::read_dir(origin).map_err(WeightsError::read(origin))? {
        let entry = entry.map_err(WeightsError::read(origin))?;
        let name = entry.file_name();
        if is_auxiliary(&name.to_string_lossy()) && entry.path().is_file() {
            let copy = dir.join(&name);
            fs::copy(entry.path(), &copy).map_err(WeightsError::write(&copy))?;
        }
    }
    Ok(())
}

fn is_auxiliary(name: &str) -> bool {
    let weights = name.ends_with(".safetensors")
        || name.ends_with(".safetensors.index.json")
        || name.starts_with("pytorch_model"); // the same weights pickled, stale from now on
    let trainer_state = name == "trainer.json"; // of a training checkpoint
    !(weights || trainer_state || name == "config.json" || name.starts_with('.'))
}

/// Writes `config.json` with the dtype of the weights, or unchanged if `precision` is none.
///
/// `quantization_config` is removed, since quantized weights are written dequantized, in bf16 if `precision` is none.
pub(crate) fn write_config(
    origin: &Path,
    dir: &Path,
    precision: Option<Precision>,
) -> Result<(), WeightsError> {
    let mut json = read_text(&origin.join("config.json"), LONGEST_CONFIG)?;
    let invalid =
        |error: serde_json::Error| WeightsError::Config { dir: origin.to_owned(), source: error.into() };
    let mut config: Value = serde_json::from_str(&json).map_err(invalid)?;
    let removed = ["", "/text_config"].map(|pointer| {
        let section = config.pointer_mut(pointer).and_then(Value::as_object_mut);
        section.and_then(|section| section.shift_remove("quantization_config")).is_some()
    });
    let precision = precision.or(removed.contains(&true).then_some(Precision::Bf16));
    if let Some(precision) = precision {
        set_dtype(&mut config, precision);
        json = serde_json::to_string_pretty(&config).map_err(invalid)? + "\n";
    }
    write_file(&dir.join("config.json"), json.as_bytes())
}

/// Sets every `dtype` and `torch_dtype` (transformers 5 and 4); a config with neither gets a `dtype`.
fn set_dtype(config: &mut Value, precision: Precision) {
    let dtype = match precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
        Precision::F16 => "float16",
    };
    let mut found = false;
    for section in ["", "/text_config", "/vision_config"] {
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = config.pointer_mut(&format!("{section}/{key}")) {
                *value = dtype.into();
                found = true;
            }
        }
    }
    if !found {
        config["dtype"] = dtype.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_dtype_of_a_config_is_set() {
        for (mut config, expected) in [
            (json!({"text_config": {}}), json!({"text_config": {}, "dtype": "bfloat16"})),
            (
                json!({"torch_dtype": "float32", "text_config": {"dtype": "float32"}}),
                json!({"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}),
            ),
        ] {
            set_dtype(&mut config, Precision::Bf16);

            assert_eq!(config, expected);
        }
    }
}
