//! A model folder as published.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::{Backend, Glm4vConfig};
use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::foreign::{not_a_directory, other_weights};
use crate::hub::{Place, Repository, locate, unfinished};
use crate::layout::Layout;
use crate::names::{EMBEDDING, HEAD};
use crate::{LISTED, WeightsError, adapter, list_names};

/// Name of the file that describes the network.
const CONFIG: &str = "config.json";

/// A folder with `config.json`, and weights if it is a whole checkpoint.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    place: Place,
    config: Glm4vConfig,
    /// `quant_method` of the config's `quantization_config`.
    quantization: Option<String>,
}

impl ModelFolder {
    /// Reads and checks a folder's config; weights are looked at when they are loaded.
    ///
    /// Where there is no such path, `ORG/NAME` and `ORG/NAME@REVISION` are looked up in the Hugging Face cache of this
    /// machine, see [`HubCache`](crate::HubCache).
    ///
    /// # Errors
    ///
    /// When there is no such folder, or its config describes no network.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let place = find(path)?;
        let file = place.path.join(CONFIG);
        if !file.exists() {
            return Err(without_config(&place.path));
        }
        let json = read_text(&file, LONGEST_CONFIG)?;
        let broken = |source| WeightsError::Config { folder: place.path.clone(), source };
        let config = Glm4vConfig::from_json(&json).map_err(broken)?;
        let quantization = quantization(&json);
        Ok(Self { place, config, quantization })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// What opens the same folder again, whatever is downloaded meanwhile: its path, or for one that was found by a
    /// repository's name, repository and commit.
    pub fn name(&self) -> PathBuf {
        self.place.name()
    }

    /// The repository and its commit, if it was found by a repository's name.
    pub fn repository(&self) -> Option<&Repository> {
        self.place.repository.as_ref()
    }

    /// The network that it describes.
    pub fn config(&self) -> &Glm4vConfig {
        &self.config
    }

    /// Whether weights lie beside the config.
    pub fn has_weights(&self) -> bool {
        Checkpoint::is_in(self.path())
    }

    /// The weights' headers.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, WeightsError> {
        let checkpoint = Checkpoint::open(self.path())?;
        match checkpoint.packed(self.quantization.is_some()) {
            None => Ok(checkpoint),
            Some(found) => Err(WeightsError::Quantized {
                folder: self.path().to_owned(),
                method: self.quantization.clone().unwrap_or_else(|| "not named".to_owned()),
                found,
            }),
        }
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
                self.path().display()
            );
            config.tie_word_embeddings = false;
        }
        Ok(config)
    }
}

/// The directory that a user's words for a model or an adapter lead to.
pub(crate) fn find(written: &Path) -> Result<Place, WeightsError> {
    let place = locate(written)?;
    match (place.path.is_dir(), place.path.exists()) {
        (true, _) => Ok(place),
        (false, true) => Err(not_a_directory(&place.path)),
        (false, false) => Err(WeightsError::NoFolder { path: place.path }),
    }
}

/// The error for files that a folder should have: of a download into the cache that is not complete it says so.
pub(crate) fn missing(folder: &Path, files: &[String], remedy: &'static str) -> WeightsError {
    let (folder, file) = (folder.to_owned(), list_names(files, LISTED));
    match unfinished(&folder) {
        Some(rest) => WeightsError::Unfinished { folder, file, begun: rest.begun, download: rest.download },
        None => WeightsError::MissingFile { folder, file, remedy },
    }
}

/// The error for a folder without a config, by what it holds instead.
fn without_config(folder: &Path) -> WeightsError {
    if let Some(base) = adapter::base_of(folder) {
        return WeightsError::IsAdapter { folder: folder.to_owned(), base };
    }
    other_weights(folder)
        .unwrap_or_else(|| missing(folder, &[CONFIG.to_owned()], "needed: a folder as published on the hub"))
}

/// How the weights of a checkpoint are quantized by its config; none if they are not.
fn quantization(json: &str) -> Option<String> {
    let config: Value = serde_json::from_str(json).ok()?;
    let section = ["/quantization_config", "/text_config/quantization_config"];
    let section = section.iter().find_map(|place| config.pointer(place))?.as_object()?;
    let text = |key: &str| section.get(key).and_then(Value::as_str);
    let method = text("quant_method").unwrap_or("not named");
    Some(text("format").map_or_else(|| method.to_owned(), |format| format!("{method}, {format}")))
}

/// The tensors of the network that a config describes; nothing is allocated.
pub(crate) fn layout(config: &Glm4vConfig) -> Layout {
    // Parameters that are neither loaded nor initialised only know their shape, on whichever device.
    Layout::of(&config.init(&Backend::Cpu.open().unwrap_or_else(|_| Device::default())))
}
