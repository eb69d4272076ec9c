//! How to generate: the checkpoint's `generation_config.json`, and what the caller wants otherwise.

use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_CONFIG, read_text};
use glm4v_model::Glm4vConfig;
use serde::Deserialize;

use crate::sampling::Sampling;

/// Why a `generation_config.json` cannot be used, or a setting makes no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not what it should be.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A number out of its range.
    #[error("{name} is {found}; needed: {needed}")]
    Range {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        found: f64,
        /// What it may be.
        needed: &'static str,
    },
}

/// Settings of one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Most tokens to produce.
    pub max_new_tokens: usize,
    /// How the next token is drawn.
    pub sampling: Sampling,
    /// Start of the random numbers.
    pub seed: u64,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
}

#[derive(Deserialize, Default)]
struct RawGenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationConfig {
    /// Greedy generation of up to `max_new_tokens`, ending at the tokens of the model's config.
    pub fn greedy(config: &Glm4vConfig, max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::greedy(),
            seed: 0,
            stop_ids: config.text.eos_token_id.clone(),
        }
    }

    /// The settings of a checkpoint: `generation_config.json` if the folder has one, else greedy.
    ///
    /// # Errors
    ///
    /// When the file is there but cannot be read.
    pub fn of_folder(
        folder: &Path,
        config: &Glm4vConfig,
        max_new_tokens: usize,
    ) -> Result<Self, GenerationConfigError> {
        let mut settings = Self::greedy(config, max_new_tokens);
        let path = folder.join("generation_config.json");
        if !path.exists() {
            return Ok(settings);
        }
        let json = read_text(&path, LONGEST_CONFIG)?;
        let raw: RawGenerationConfig =
            serde_json::from_str(&json).map_err(|source| GenerationConfigError::Json { path, source })?;
        settings.sampling.repetition_penalty = raw.repetition_penalty.unwrap_or(1.0);
        if raw.do_sample.unwrap_or(false) {
            settings.sampling.temperature = raw.temperature.unwrap_or(1.0);
            settings.sampling.top_p = raw.top_p.unwrap_or(1.0);
            settings.sampling.top_k = raw.top_k.unwrap_or(50); // transformers' own default
            settings.sampling.min_p = raw.min_p.unwrap_or(0.0);
        }
        match raw.eos_token_id {
            Some(OneOrMany::One(id)) => settings.stop_ids = vec![id],
            Some(OneOrMany::Many(ids)) => settings.stop_ids = ids,
            None => {}
        }
        settings.check()?;
        Ok(settings)
    }

    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    ///
    /// Names the setting, its value and its range.
    pub fn check(&self) -> Result<(), GenerationConfigError> {
        let sampling = &self.sampling;
        let range = |good: bool, name, found, needed| match good {
            true => Ok(()),
            false => Err(GenerationConfigError::Range { name, found, needed }),
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let t = sampling.temperature;
        // Less would divide scores beyond what f32 holds.
        range(t == 0.0 || (t.is_finite() && t >= 1e-6), "temperature", t, "0 (greedy), or 1e-6 and more")?;
        range(
            sampling.top_p > 0.0 && sampling.top_p <= 1.0,
            "top_p",
            sampling.top_p,
            "more than 0, at most 1",
        )?;
        range((0.0..=1.0).contains(&sampling.min_p), "min_p", sampling.min_p, "0 to 1")?;
        let penalty = sampling.repetition_penalty;
        range(positive(penalty), "repetition_penalty", penalty, "more than 0; 1 changes nothing")?;
        range(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens as f64, "at least 1")
    }
}
