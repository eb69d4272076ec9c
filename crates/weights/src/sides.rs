//! What lies in a model folder beside its weights.

use std::fs;
use std::path::Path;

use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::Precision;
use serde_json::Value;

use crate::{WeightsError, write_file};

/// Copies what is neither weights nor config: tokenizer, templates, processor settings, licences, whatever else.
///
/// Files of tensors that the index does not name are left out: nobody who reads the folder by its index reads them, and
/// beside weights that have changed they would be stale. So are hidden files and folders.
pub(crate) fn copy_side_files(origin: &Path, folder: &Path) -> Result<(), WeightsError> {
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

/// Writes a folder's `config.json` with the type of the weights put right, or as it is if the types are kept; what it says of
/// quantized weights is left out, since those that can be read are written as plain numbers.
pub(crate) fn write_config(
    origin: &Path,
    folder: &Path,
    precision: Option<Precision>,
) -> Result<(), WeightsError> {
    let path = origin.join("config.json");
    let mut json = read_text(&path, LONGEST_CONFIG)?;
    let broken =
        |error: serde_json::Error| WeightsError::Config { folder: origin.to_owned(), source: error.into() };
    let mut config: Value = serde_json::from_str(&json).map_err(broken)?;
    let sections = ["", "/text_config"].map(|place| {
        let section = config.pointer_mut(place).and_then(Value::as_object_mut);
        section.and_then(|section| section.shift_remove("quantization_config")).is_some()
    });
    let precision = precision.or(sections.contains(&true).then_some(Precision::Bf16));
    if let Some(precision) = precision {
        set_dtype(&mut config, precision);
        json = serde_json::to_string_pretty(&config).map_err(broken)? + "\n";
    }
    write_file(&folder.join("config.json"), json.as_bytes())
}

fn set_dtype(config: &mut Value, precision: Precision) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_type_is_put_right_wherever_a_config_says_it() {
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
