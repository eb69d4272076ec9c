//! A Hugging Face model directory.

use std::path::{Path, PathBuf};

use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::Glm4vConfig;
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::diagnose::{find_dir, missing_config};
use crate::error::WeightsError;
use crate::hub::{RepoId, ResolvedDir};
use crate::names::{EMBEDDING, HEAD};
use crate::shard_index::has_weights;

const CONFIG: &str = "config.json";

/// A model directory: `config.json`, usually with weights.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    dir: ResolvedDir,
    config: Glm4vConfig,
    /// Quantization method of the config, if it has a `quantization_config`.
    quantization: Option<String>,
}

impl ModelFolder {
    /// Reads and checks the config; weights are not opened yet.
    ///
    /// If there is no such path, `ORG/NAME` and `ORG/NAME@REVISION` are looked up in the local Hugging Face cache, see
    /// [`HubCache`](crate::HubCache).
    ///
    /// # Errors
    ///
    /// When there is no such directory, or its config does not describe a network.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let dir = find_dir(path)?;
        let file = dir.path.join(CONFIG);
        if !file.exists() {
            return Err(missing_config(&dir.path, CONFIG));
        }
        let json = read_text(&file, LONGEST_CONFIG)?;
        let invalid = |source| WeightsError::Config { dir: dir.path.clone(), source };
        let config = Glm4vConfig::from_json(&json).map_err(invalid)?;
        let quantization = quantization_method(&json);
        Ok(Self { dir, config, quantization })
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// An argument that [`open`](Self::open)s the same files even after another download: the path, or for a cached
    /// repository its id and commit.
    pub fn name(&self) -> PathBuf {
        self.dir.name()
    }

    /// The repository and its commit, if it was opened by a repository id.
    pub fn repository(&self) -> Option<&RepoId> {
        self.dir.repository.as_ref()
    }

    /// The network described by `config.json`.
    pub fn config(&self) -> &Glm4vConfig {
        &self.config
    }

    /// Whether the directory contains safetensors weights.
    pub fn has_weights(&self) -> bool {
        has_weights(self.path())
    }

    /// Opens the weights.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, WeightsError> {
        let checkpoint = Checkpoint::open(self.path())?;
        match checkpoint.unsupported_quantization(self.quantization.is_some()) {
            None => Ok(checkpoint),
            Some(found) => Err(WeightsError::Quantized {
                dir: self.path().to_owned(),
                method: self.quantization.clone().unwrap_or_else(|| "not named".to_owned()),
                found,
            }),
        }
    }

    /// The config, untied if the weights contain an LM head that differs from the embeddings, as in transformers.
    pub(crate) fn config_for(&self, checkpoint: &Checkpoint) -> Result<Glm4vConfig, WeightsError> {
        let mut config = self.config.clone();
        let both = checkpoint.contains(EMBEDDING) && checkpoint.contains(HEAD);
        if config.text.tie_word_embeddings && both && !checkpoint.equal(EMBEDDING, HEAD)? {
            tracing::warn!(
                "{}: config.json ties {HEAD} to the embedding table, but the weights hold another; it is used, as \
                 transformers does; set \"tie_word_embeddings\" to false",
                self.path().display()
            );
            config.text.tie_word_embeddings = false;
        }
        Ok(config)
    }
}

/// `quant_method` and `format` of `quantization_config`, if there is one.
fn quantization_method(json: &str) -> Option<String> {
    let config: Value = serde_json::from_str(json).ok()?;
    let pointers = ["/quantization_config", "/text_config/quantization_config"];
    let section = pointers.iter().find_map(|pointer| config.pointer(pointer))?.as_object()?;
    let text = |key: &str| section.get(key).and_then(Value::as_str);
    let method = text("quant_method").unwrap_or("not named");
    Some(text("format").map_or_else(|| method.to_owned(), |format| format!("{method}, {format}")))
}
