//! How to generate: the checkpoint's `generation_config.json`, and what the caller wants otherwise.

use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_CONFIG, read_text};
use glm4v_model::Glm4vConfig;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::rules::Rules;
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
    /// A key whose meaning is not obeyed.
    #[error(
        "{}: \"{key}\" is {found}, and this version does not do what it asks for; needed: no such key, or {needed}",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// A value that asks for nothing.
        needed: String,
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
    /// Tokens that are forbidden or forced.
    pub rules: Rules,
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
    no_repeat_ngram_size: Option<usize>,
    bad_words_ids: Option<Vec<Vec<u32>>>,
    min_length: Option<usize>,
    min_new_tokens: Option<usize>,
    forced_eos_token_id: Option<OneOrMany>,
    suppress_tokens: Option<Vec<u32>>,
    begin_suppress_tokens: Option<Vec<u32>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// Keys that change what transformers generates and are not obeyed here, with the number that asks for nothing, where one does.
/// Null and false ask for nothing in any case.
const UNSUPPORTED: [(&str, Option<f64>); 23] = [
    ("constraints", None),
    ("diversity_penalty", Some(0.0)),
    ("dola_layers", None),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("exponential_decay_length_penalty", None),
    ("force_words_ids", None),
    ("forced_bos_token_id", None),
    ("forced_decoder_ids", None),
    ("guidance_scale", Some(1.0)),
    ("max_time", None),
    ("num_beam_groups", Some(1.0)),
    ("num_beams", Some(1.0)),
    ("num_return_sequences", Some(1.0)),
    ("penalty_alpha", Some(0.0)),
    ("remove_invalid_values", None),
    ("sequence_bias", None),
    ("stop_strings", None),
    ("top_h", None),
    ("typical_p", Some(1.0)),
    ("watermarking_config", None),
];

/// Refuses what would be ignored otherwise.
fn check_unsupported(rest: &Map<String, Value>, path: &Path) -> Result<(), GenerationConfigError> {
    for (key, neutral) in UNSUPPORTED {
        let Some(found) = rest.get(key) else { continue };
        let off = matches!(found, Value::Null | Value::Bool(false))
            || (neutral.is_some() && found.as_f64() == neutral);
        if !off {
            let (path, found) = (path.to_owned(), found.to_string());
            let needed = neutral.map_or_else(|| "null".to_owned(), |number| number.to_string());
            return Err(GenerationConfigError::Unsupported { path, key, found, needed });
        }
    }
    Ok(())
}

impl GenerationConfig {
    /// Greedy generation of up to `max_new_tokens`, ending at the tokens of the model's config.
    pub fn greedy(config: &Glm4vConfig, max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::greedy(),
            seed: 0,
            stop_ids: config.text.eos_token_id.clone(),
            rules: Rules::default(),
        }
    }

    /// The settings of a checkpoint: `generation_config.json` if the folder has one, else greedy. Its `max_length` and
    /// `max_new_tokens` give way to `max_new_tokens`.
    ///
    /// # Errors
    ///
    /// When the file is there but cannot be read, or asks for what is not supported.
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
        let problem = |source| GenerationConfigError::Json { path: path.clone(), source };
        let raw: RawGenerationConfig = serde_json::from_str(&json).map_err(problem)?;
        check_unsupported(&raw.rest, &path)?;
        settings.sampling.repetition_penalty = raw.repetition_penalty.unwrap_or(1.0);
        if raw.do_sample.unwrap_or(false) {
            settings.sampling.temperature = raw.temperature.unwrap_or(1.0);
            settings.sampling.top_p = raw.top_p.unwrap_or(1.0);
            settings.sampling.top_k = raw.top_k.unwrap_or(50); // transformers' own default
            settings.sampling.min_p = raw.min_p.unwrap_or(0.0);
        }
        if let Some(ids) = raw.eos_token_id {
            settings.stop_ids = ids.into_vec();
        }
        settings.rules = Rules {
            no_repeat_ngram_size: raw.no_repeat_ngram_size.unwrap_or(0),
            bad_words_ids: raw.bad_words_ids.unwrap_or_default(),
            min_length: raw.min_length.unwrap_or(0),
            min_new_tokens: raw.min_new_tokens.unwrap_or(0),
            forced_eos_token_id: raw.forced_eos_token_id.map(OneOrMany::into_vec).unwrap_or_default(),
            suppress_tokens: raw.suppress_tokens.unwrap_or_default(),
            begin_suppress_tokens: raw.begin_suppress_tokens.unwrap_or_default(),
        };
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
