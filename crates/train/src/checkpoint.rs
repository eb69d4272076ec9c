//! Checkpoints, from which a run resumes number for number.
//!
//! `checkpoints/step-N/` is a model directory, or an adapter directory for LoRA, with `optimizer.safetensors` and
//! `trainer.json` beside the weights.

use std::fs;
use std::path::{Path, PathBuf};

use glm4v_data::BatchSamplerState;
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::{Glm4v, Precision};
use glm4v_weights::{AdapterConfig, AtomicDir, WeightsError, save_adapter, save_model};
use serde::{Deserialize, Serialize};

use crate::adamw::AdamW;
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::layout::{CHECKPOINTS, OPTIMIZER, TRAINER};

/// State of a run besides weights and optimizer, stored in `trainer.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Steps done.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Position in the data; none before the first step.
    pub sampler: Option<BatchSamplerState>,
    /// Crate version that wrote the checkpoint.
    pub version: String,
    /// The config of the run.
    pub config: RunConfig,
    /// Data type of weights and activations, as in `bf16`.
    pub dtype: String,
    /// [`fingerprint`](glm4v_data::Mixture::fingerprint) of the training records.
    pub data: String,
}

/// Format of the weights in a checkpoint.
#[derive(Debug, Clone)]
pub(crate) enum CheckpointFormat {
    /// All weights of the model.
    Model {
        /// Directory of the base model, whose other files (tokenizer, configs) are copied.
        origin: PathBuf,
        /// Data type of the saved weights.
        precision: Precision,
    },
    /// A LoRA adapter in PEFT's format.
    Adapter(Box<AdapterConfig>),
}

impl CheckpointFormat {
    /// Whether the adapter has dropout.
    pub(crate) fn has_dropout(&self) -> bool {
        matches!(self, Self::Adapter(config) if config.lora_dropout > 0.0)
    }

    /// Writes the weights into `dir`, which must exist.
    pub(crate) fn save(&self, model: &Glm4v, dir: &Path) -> Result<(), WeightsError> {
        match self {
            Self::Model { origin, precision } => save_model(model, origin, dir, *precision),
            Self::Adapter(config) => save_adapter(model, config, dir),
        }
    }
}

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Checkpoints in the run directory `output_dir`, which need not exist.
    pub fn new(output_dir: &Path) -> Self {
        Self { dir: output_dir.join(CHECKPOINTS) }
    }

    /// Directory of the checkpoint after `step` steps.
    pub(crate) fn path(&self, step: usize) -> PathBuf {
        self.dir.join(format!("step-{step}"))
    }

    /// Checkpoints by step, oldest first.
    ///
    /// # Errors
    ///
    /// When the directory cannot be listed.
    pub fn list(&self) -> Result<Vec<(usize, PathBuf)>, WeightsError> {
        let failed = |source| WeightsError::Io { path: self.dir.clone(), action: "read", source };
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes a checkpoint atomically, and removes all but the newest `save_total_limit`.
    ///
    /// # Errors
    ///
    /// When a file cannot be written; older checkpoints are then untouched.
    pub(crate) fn save(
        &self,
        model: &Glm4v,
        format: &CheckpointFormat,
        optimizer: &AdamW,
        state: &TrainerState,
        save_total_limit: usize,
    ) -> Result<PathBuf, WeightsError> {
        let target = self.path(state.step);
        let staged = AtomicDir::new(&target)?;
        format.save(model, staged.path())?;
        optimizer.save(&staged.path().join(OPTIMIZER))?;
        let json = serde_json::to_vec_pretty(state).expect("the state has no value that JSON cannot express");
        glm4v_weights::write_file(&staged.path().join(TRAINER), &json)?;
        staged.publish()?;
        let all = self.list()?;
        for (_, old) in &all[..all.len().saturating_sub(save_total_limit)] {
            // Removal is only a matter of disk space, so a failure must not end the run.
            let _ = fs::remove_dir_all(old);
        }
        Ok(target)
    }

    /// Reads the `trainer.json` of a checkpoint.
    ///
    /// # Errors
    ///
    /// When the file is missing or cannot be parsed.
    pub(crate) fn read_state(checkpoint: &Path) -> Result<TrainerState, TrainError> {
        let path = checkpoint.join(TRAINER);
        let text = read_text(&path, LONGEST_CONFIG).map_err(WeightsError::from)?;
        serde_json::from_str(&text).map_err(|source| TrainError::State { path, source })
    }
}
