//! The weights files of a model directory: one file, or the shards that an index lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use glm4v_files::{LONGEST_CONFIG, read_text};
use serde_json::Value;

use crate::diagnose::{missing_files, unsupported_weights};
use crate::error::WeightsError;
use crate::name_list::{MAX_LISTED, list_names};
use crate::tensor_file::TensorFile;

/// Name of unsharded weights.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index of sharded weights.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Whether a directory has weights.
pub(crate) fn has_weights(dir: &Path) -> bool {
    dir.join(SINGLE_FILE).exists() || dir.join(INDEX_FILE).exists()
}

/// Opens all weights files of a directory.
///
/// A single file takes precedence over an index, as in transformers.
pub(crate) fn open_files(dir: &Path) -> Result<Vec<TensorFile>, WeightsError> {
    let single = dir.join(SINGLE_FILE);
    if single.exists() {
        return Ok(vec![TensorFile::open(&single)?]);
    }
    if dir.join(INDEX_FILE).exists() {
        return open_shards(dir);
    }
    Err(unsupported_weights(dir).unwrap_or_else(|| {
        missing_files(dir, &[SINGLE_FILE.to_owned()], "needed: a checkpoint with weights")
    }))
}

/// Opens the shards, which must contain the tensors that the index lists; they may contain more.
fn open_shards(dir: &Path) -> Result<Vec<TensorFile>, WeightsError> {
    let shards = read_index(dir)?;
    check_file_names(dir, shards.keys())?;
    let absent: Vec<String> = shards.keys().filter(|name| !dir.join(name).exists()).cloned().collect();
    if !absent.is_empty() {
        return Err(missing_files(dir, &absent, "the index names it; copy or download it again"));
    }
    let mut files = Vec::with_capacity(shards.len());
    let mut lacking = BTreeSet::new();
    for (name, tensors) in shards {
        let file = TensorFile::open(&dir.join(&name))?;
        let absent = tensors.into_iter().filter(|tensor| file.shape(tensor).is_none());
        lacking.extend(absent.map(|tensor| format!("{tensor} in {name}")));
        files.push(file);
    }
    if !lacking.is_empty() {
        let listed = list_names(&lacking.into_iter().collect::<Vec<_>>(), MAX_LISTED);
        return Err(index_error(
            dir,
            format!(
                "it names tensors that their files do not have: {listed}; copy or download the directory again"
            ),
        ));
    }
    Ok(files)
}

/// The tensors of each shard by the index.
fn read_index(dir: &Path) -> Result<BTreeMap<String, Vec<String>>, WeightsError> {
    let json = read_text(&dir.join(INDEX_FILE), LONGEST_CONFIG)?;
    let json: Value = serde_json::from_str(&json).map_err(|error| index_error(dir, error.to_string()))?;
    let without_map = |state: &str| {
        index_error(dir, format!("key \"weight_map\" is {state}; needed: an object of tensor and file names"))
    };
    let map = json["weight_map"].as_object().ok_or_else(|| without_map("missing"))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let Some(file) = file.as_str() else {
            let problem = format!("tensor \"{tensor}\" is in {file}; needed: the name of a file");
            return Err(index_error(dir, problem));
        };
        shards.entry(file.to_owned()).or_default().push(tensor.clone());
    }
    if shards.is_empty() {
        return Err(without_map("empty"));
    }
    Ok(shards)
}

/// Rejects names that lead out of the directory: an index is untrusted.
fn check_file_names<'a>(dir: &Path, names: impl Iterator<Item = &'a String>) -> Result<(), WeightsError> {
    for name in names {
        let mut components = Path::new(name).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        // A trailing separator is not a component.
        if !plain || name.contains(['/', '\\']) {
            let problem =
                format!("\"{name}\" is not in this directory; needed: the name of a file beside the index");
            return Err(index_error(dir, problem));
        }
    }
    Ok(())
}

fn index_error(dir: &Path, problem: String) -> WeightsError {
    WeightsError::Index { path: dir.join(INDEX_FILE), problem }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::write::write_tensors;
    use burn::tensor::TensorData;
    use serde_json::json;
    use tempfile::TempDir;

    /// A directory of shards, each with tensors of one element.
    pub(crate) fn write_shards(files: &[(&str, &[(&str, f32)])], map: Value) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, tensors) in files {
            let tensors =
                tensors.iter().map(|(name, value)| ((*name).into(), TensorData::new(vec![*value], [1])));
            write_tensors(&folder.path().join(file), tensors.collect(), &[]).unwrap();
        }
        fs::write(folder.path().join(INDEX_FILE), json!({ "weight_map": map }).to_string()).unwrap();
        folder
    }

    fn error_of(folder: &TempDir) -> String {
        open_files(folder.path()).unwrap_err().to_string()
    }

    #[test]
    fn a_single_file_takes_precedence_over_an_index() {
        let folder = write_shards(&[(SINGLE_FILE, &[("a", 1.0)])], json!({"b": "gone.safetensors"}));

        assert_eq!(open_files(folder.path()).unwrap()[0].names(), ["a"]);
    }

    #[test]
    fn an_index_with_missing_tensors_or_files_is_refused() {
        let one: &[(&str, &[(&str, f32)])] = &[("1.safetensors", &[("a", 1.0)])];
        for (map, words) in [
            (json!({"a": "1.safetensors", "b": "1.safetensors"}), "do not have: b in 1.safetensors; copy"),
            (
                json!({"a": "1.safetensors", "b": "2.safetensors"}),
                "2.safetensors is missing; the index names it",
            ),
            (json!({"a": 1}), "tensor \"a\" is in 1; needed: the name of a file"),
            (json!({}), "\"weight_map\" is empty"),
            (json!([]), "\"weight_map\" is missing"),
        ] {
            let error = error_of(&write_shards(one, map.clone()));

            assert!(error.contains(words), "{map}: {error}");
        }
    }

    #[test]
    fn an_index_reads_nothing_outside_its_folder() {
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("1.safetensors");
        write_tensors(&path, vec![("a".into(), TensorData::new(vec![1.0f32], [1]))], &[]).unwrap();
        let absolute = path.to_str().unwrap();
        for name in
            ["../1.safetensors", absolute, "sub/1.safetensors", "./1.safetensors", "..", ".", "", "/", "sub/"]
        {
            let folder = write_shards(&[], json!({ "a": name }));
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::copy(&path, folder.path().join("sub/1.safetensors")).unwrap();
            fs::copy(&path, folder.path().join("1.safetensors")).unwrap();

            let error = error_of(&folder);

            let words = format!("{INDEX_FILE}: \"{name}\" is not in this directory");
            assert!(error.contains(&words), "{name}: {error}");
        }
    }

    #[test]
    fn a_shard_that_is_a_directory_is_refused() {
        let folder = write_shards(&[], json!({"a": "1.safetensors"}));
        fs::create_dir(folder.path().join("1.safetensors")).unwrap();

        let error = error_of(&folder);

        assert!(error.ends_with("1.safetensors: is a directory; needed: a regular file"), "{error}");
    }
}
