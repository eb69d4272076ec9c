//! Checkpoints: everything that a run needs to go on as if it had never stopped.
//!
//! `checkpoints/step-N/` is a model folder, or an adapter folder where adapters learn, with `optimizer.safetensors` and
//! `trainer.json` beside the weights.

use std::fs;
use std::path::{Path, PathBuf};

use glm4v_data::SamplerState;
use glm4v_model::{Glm4v, Precision};
use glm4v_weights::{AdapterConfig, StagedFolder, WeightsError, save_adapter, save_model};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::adamw::AdamW;
use crate::config::RunConfig;

/// Name of the optimizer's file.
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";
/// Name of the folder with a run's checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
const TRAINER: &str = "trainer.json";

/// What is neither weights nor optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Steps done.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Place in the data; none before the first step.
    pub sampler: Option<SamplerState>,
    /// Version of this program.
    pub version: String,
    /// The config of the run.
    pub config: RunConfig,
    /// Type of weights and activations.
    pub dtype: String,
    /// [`fingerprint`](glm4v_data::fingerprint) of the records to learn from.
    pub data: String,
}

/// What a run learns, and so what it saves.
#[derive(Debug, Clone)]
pub(crate) enum Learned {
    /// The model's own weights, beside the files of the folder it came from.
    Model {
        /// That folder.
        origin: PathBuf,
        /// Type of the saved weights.
        precision: Precision,
    },
    /// An adapter.
    Adapter(Box<AdapterConfig>),
}

impl Learned {
    /// Writes it into `folder`, which must exist.
    pub(crate) fn save(&self, model: &Glm4v, folder: &Path) -> Result<(), WeightsError> {
        match self {
            Self::Model { origin, precision } => save_model(model, origin, folder, *precision),
            Self::Adapter(config) => save_adapter(model, config, folder),
        }
    }
}

/// A run's folder of checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those of a run folder.
    pub fn of(run: &Path) -> Self {
        Self { folder: run.join(CHECKPOINTS) }
    }

    /// Where the checkpoint after `step` steps is.
    pub(crate) fn place(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// Checkpoints by step, oldest first.
    ///
    /// # Errors
    ///
    /// When the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<(usize, PathBuf)>, WeightsError> {
        let failed = |source| WeightsError::Io { path: self.folder.clone(), action: "read", source };
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes a checkpoint, whole or not at all, and removes all but the newest `keep`.
    ///
    /// # Errors
    ///
    /// When the system refuses; older checkpoints are then untouched.
    pub(crate) fn save(
        &self,
        model: &Glm4v,
        learned: &Learned,
        optimizer: &AdamW,
        state: &TrainerState,
        keep: usize,
    ) -> Result<PathBuf, WeightsError> {
        let target = self.place(state.step);
        let staged = StagedFolder::new(&target)?;
        learned.save(model, staged.path())?;
        optimizer.save(&staged.path().join(OPTIMIZER))?;
        let json = serde_json::to_vec_pretty(state).expect("the state is plain numbers");
        glm4v_weights::write_file(&staged.path().join(TRAINER), &json)?;
        staged.publish()?;
        let all = self.list()?;
        for (_, old) in &all[..all.len().saturating_sub(keep)] {
            // A checkpoint that stays is no harm.
            let _ = fs::remove_dir_all(old);
        }
        Ok(target)
    }

    /// Reads the state of a checkpoint.
    ///
    /// # Errors
    ///
    /// When the file is missing or broken.
    pub(crate) fn state(folder: &Path) -> Result<TrainerState, TrainError> {
        let path = folder.join(TRAINER);
        let text = fs::read_to_string(&path).map_err(|source| WeightsError::Io {
            path: path.clone(),
            action: "read",
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| TrainError::State { path, source })
    }
}
