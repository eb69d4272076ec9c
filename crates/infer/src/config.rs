//! Settings of generation, by default from the checkpoint's `generation_config.json`.

use std::path::{Path, PathBuf};

use glm4v_files::{FileError, LONGEST_CONFIG, read_text};
use glm4v_model::{Glm4vConfig, OneOrMany};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::logits_processors::LogitsProcessors;
use crate::sampling::SamplingParams;

/// Error of a `generation_config.json`, or of a setting out of range.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerationConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Invalid JSON, or a value of the wrong type.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Error of the parser, with line and column.
        source: serde_json::Error,
    },
    /// A key that is not supported here and would change the result.
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
        /// A value that has no effect.
        needed: String,
    },
    /// A setting out of range.
    #[error("{name} is {found}; needed: {needed}")]
    Range {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        found: f64,
        /// The valid range.
        needed: &'static str,
    },
}

/// Settings of one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// Maximum number of generated tokens.
    pub max_new_tokens: usize,
    /// Parameters of sampling.
    pub sampling: SamplingParams,
    /// Random seed.
    pub seed: u64,
    /// Tokens that end generation.
    pub eos_token_ids: Vec<u32>,
    /// Logits processors that forbid or force tokens.
    pub logits_processors: LogitsProcessors,
}

#[derive(Deserialize, Default)]
#[serde(expecting = "an object")]
struct RawGenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    eos_token_id: Option<OneOrMany<u32>>,
    no_repeat_ngram_size: Option<usize>,
    bad_words_ids: Option<Vec<Vec<u32>>>,
    min_length: Option<usize>,
    min_new_tokens: Option<usize>,
    forced_eos_token_id: Option<OneOrMany<u32>>,
    suppress_tokens: Option<Vec<u32>>,
    begin_suppress_tokens: Option<Vec<u32>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Keys that are not supported here and change what transformers generates, with a number that has no effect, if any. Null and false
/// have no effect for all.
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

/// Keys that would be ignored otherwise are errors.
fn check_unsupported(rest: &Map<String, Value>, path: &Path) -> Result<(), GenerationConfigError> {
    for (key, neutral) in UNSUPPORTED {
        let Some(found) = rest.get(key) else { continue };
        let is_off = matches!(found, Value::Null | Value::Bool(false))
            || (neutral.is_some() && found.as_f64() == neutral);
        if !is_off {
            let (path, found) = (path.to_owned(), found.to_string());
            let needed = neutral.map_or_else(|| "null".to_owned(), |number| number.to_string());
            return Err(GenerationConfigError::Unsupported { path, key, found, needed });
        }
    }
    Ok(())
}

impl GenerationConfig {
    /// Greedy decoding of up to `max_new_tokens`, with the EOS tokens of the model's config.
    pub fn greedy(config: &Glm4vConfig, max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            sampling: SamplingParams::greedy(),
            seed: 0,
            eos_token_ids: config.text.eos_token_id.clone(),
            logits_processors: LogitsProcessors::default(),
        }
    }

    /// The settings of a checkpoint: `generation_config.json` if the folder has one, else greedy decoding. Its `max_length` and
    /// `max_new_tokens` are ignored in favor of the argument.
    ///
    /// # Errors
    ///
    /// When the file exists but cannot be read, or has unsupported or invalid settings.
    pub fn from_folder(
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
            settings.eos_token_ids = ids.into_vec();
        }
        settings.logits_processors = LogitsProcessors {
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

    /// Checks the range of every number.
    ///
    /// # Errors
    ///
    /// The first setting out of range, with its value and range.
    pub fn check(&self) -> Result<(), GenerationConfigError> {
        let SamplingParams { temperature, top_p, min_p, repetition_penalty, .. } = self.sampling;
        // Lower temperatures would overflow f32 in the division.
        let is_temperature = temperature == 0.0 || (temperature.is_finite() && temperature >= 1e-6);
        check_range(is_temperature, "temperature", temperature, "0 (greedy), or 1e-6 and more")?;
        check_range(top_p > 0.0 && top_p <= 1.0, "top_p", top_p, "more than 0, at most 1")?;
        check_range((0.0..=1.0).contains(&min_p), "min_p", min_p, "0 to 1")?;
        let is_penalty = repetition_penalty.is_finite() && repetition_penalty > 0.0;
        let needed = "more than 0; 1 changes nothing";
        check_range(is_penalty, "repetition_penalty", repetition_penalty, needed)?;
        check_range(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens as f64, "at least 1")
    }
}

fn check_range(
    is_valid: bool,
    name: &'static str,
    found: f64,
    needed: &'static str,
) -> Result<(), GenerationConfigError> {
    if is_valid { Ok(()) } else { Err(GenerationConfigError::Range { name, found, needed }) }
}
