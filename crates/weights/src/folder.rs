//! A model folder as published.

use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use glm4v_model::{Backend, Glm4vConfig};

use crate::WeightsError;
use crate::checkpoint::Checkpoint;
use crate::layout::Layout;
use crate::names::{EMBEDDING, HEAD};

/// A folder with `config.json`, and weights if it is a whole checkpoint.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    path: PathBuf,
    config: Glm4vConfig,
}

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
                remedy: "needed: a folder as published on the hub",
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
        Checkpoint::is_in(&self.path)
    }

    /// The network that config and weights describe together.
    ///
    /// As in transformers, a head that is stored with numbers of its own is used, whatever the config says of tying it.
    pub(crate) fn config_for(&self, checkpoint: &Checkpoint) -> Result<Glm4vConfig, WeightsError> {
        let mut config = self.config.clone();
        let both = checkpoint.find(EMBEDDING).is_some() && checkpoint.find(HEAD).is_some();
        if config.tie_word_embeddings && both && !checkpoint.same(EMBEDDING, HEAD)? {
            tracing::warn!(
                "{}: config.json ties {HEAD} to the embedding table, but the weights hold another; it is used, as \
                 transformers does; set \"tie_word_embeddings\" to false",
                self.path.display()
            );
            config.tie_word_embeddings = false;
        }
        Ok(config)
    }
}

/// The tensors of the network that a config describes; nothing is allocated.
pub(crate) fn layout(config: &Glm4vConfig) -> Layout {
    // Parameters that are neither loaded nor initialised only know their shape, on whichever device.
    Layout::of(&config.init(&Backend::Cpu.open().unwrap_or_else(|_| Device::default())))
}
