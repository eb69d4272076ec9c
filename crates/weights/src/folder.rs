//! A model folder as published.

use std::fs;
use std::path::{Path, PathBuf};

use glm4v_model::Glm4vConfig;
use serde_json::Value;

use crate::{TensorFile, WeightsError};

/// A folder with `config.json`, and weights if it is a whole checkpoint.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    path: PathBuf,
    config: Glm4vConfig,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl ModelFolder {
    /// Reads and checks a folder's config; weights are looked at when they are loaded.
    ///
    /// # Errors
    ///
    /// When there is no such folder, or its config describes no network.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        if !path.is_dir() {
            return Err(WeightsError::NoFolder { path: path.to_owned() });
        }
        let file = path.join("config.json");
        if !file.exists() {
            return Err(WeightsError::MissingFile {
                folder: path.to_owned(),
                file: "config.json".into(),
                remedy: "needed: a folder as published on the hub, or made by glm4v init",
            });
        }
        let json = fs::read_to_string(&file).map_err(WeightsError::read(&file))?;
        let config = Glm4vConfig::from_json(&json)
            .map_err(|source| WeightsError::Config { folder: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), config })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The network that it describes.
    pub fn config(&self) -> &Glm4vConfig {
        &self.config
    }

    /// Whether weights lie beside the config.
    pub fn has_weights(&self) -> bool {
        self.path.join(SINGLE).exists() || self.path.join(INDEX).exists()
    }

    /// Opens the files of the weights: one, or those that the index names.
    ///
    /// # Errors
    ///
    /// When a file is missing or broken, or the index points outside the folder.
    pub fn weight_files(&self) -> Result<Vec<TensorFile>, WeightsError> {
        let index = self.path.join(INDEX);
        if !index.exists() {
            let single = self.path.join(SINGLE);
            if !single.exists() {
                return Err(WeightsError::MissingFile {
                    folder: self.path.clone(),
                    file: SINGLE.into(),
                    remedy: "needed: a checkpoint with weights; glm4v init makes fresh ones",
                });
            }
            return Ok(vec![TensorFile::open(&single)?]);
        }
        let problem = |problem: String| WeightsError::Index { path: index.clone(), problem };
        let json = fs::read_to_string(&index).map_err(WeightsError::read(&index))?;
        let json: Value = serde_json::from_str(&json).map_err(|error| problem(error.to_string()))?;
        let map = json["weight_map"].as_object().ok_or_else(|| {
            problem("key \"weight_map\" is missing; needed: an object of tensor and file names".into())
        })?;
        let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let plain = Path::new(name).components().count() == 1
                && matches!(Path::new(name).components().next(), Some(std::path::Component::Normal(_)));
            if !plain {
                return Err(problem(format!("\"{name}\" points outside the folder")));
            }
            let path = self.path.join(name);
            if !path.exists() {
                return Err(WeightsError::MissingFile {
                    folder: self.path.clone(),
                    file: name.to_owned(),
                    remedy: "the index names it; copy or download it again",
                });
            }
            files.push(TensorFile::open(&path)?);
        }
        Ok(files)
    }
}
