//! Config of a run: a TOML file, parsed and checked.
//!
//! Sections in order: model, lora, data, optim, schedule, eval, run. Every key has its default here and nowhere else. Paths are
//! relative to the current directory. An unknown key is an error that suggests the nearest known one.

use std::path::{Path, PathBuf};

use glm4v_data::{BadRecordPolicy, LengthPolicy, LossPolicy, TruncateFrom};
use glm4v_files::{FileError, LONGEST_CONFIG, did_you_mean, read_text};
use glm4v_model::Architecture;
use glm4v_weights::{AdapterConfig, TargetModules};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::dataset_list::DatasetList;
use crate::schedule::ScheduleKind;

/// Config of a run; every key has a default except `model.path` and `data.train`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct RunConfig {
    /// Model.
    pub model: ModelSection,
    /// LoRA; the section switches it on, even if it is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSection>,
    /// Training data.
    pub data: DataSection,
    /// Optimizer (AdamW).
    pub optim: OptimSection,
    /// Length of the run, and learning rate schedule.
    pub schedule: ScheduleSection,
    /// Evaluation.
    pub eval: EvalSection,
    /// Output directory, seed, checkpoints.
    pub run: RunSection,
}

/// Model and trainable parts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct ModelSection {
    /// A model directory, or `ORG/NAME` in the Hugging Face cache: a checkpoint, or for `init = "random"` config and tokenizer
    /// without weights.
    pub path: PathBuf,
    /// Source of the initial weights.
    pub init: WeightInit,
    /// Parts that are not trained.
    pub freeze: Vec<FreezeTarget>,
}

/// Source of the initial weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightInit {
    /// The checkpoint.
    #[default]
    Pretrained,
    /// Random initialization with the run's seed.
    Random,
}

/// A part of the network that can be frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FreezeTarget {
    /// The vision tower up to its last norm.
    Vision,
    /// Patches to tokens: downsampling and merger.
    Merger,
    /// The text decoder with embeddings and head.
    Text,
    /// The token embeddings.
    Embeddings,
    /// The language model head.
    Head,
}

/// LoRA adapters: besides them, only the modules of `modules_to_save` are trained. Keys are PEFT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct LoraSection {
    /// An adapter directory to continue from; its config replaces all keys below. New adapters if empty.
    pub adapter_path: PathBuf,
    /// Linear layers: a list of names or their ends, as `["q_proj", "v_proj"]`; one regular expression for whole names; or
    /// `"all-linear"`, every one but the head. Those of the text decoder, or with experts those of its attention, if neither
    /// this nor `target_parameters` is given.
    pub target_modules: TargetModules,
    /// Experts, as `["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]`.
    pub target_parameters: Vec<String>,
    /// Linear layers to exclude from `target_modules`.
    pub exclude_modules: TargetModules,
    /// Modules that are fully trained and saved with the adapter, as `["lm_head"]` or `["model.visual.merger"]`.
    pub modules_to_save: Vec<String>,
    /// Rank of the low-rank matrices.
    pub r: usize,
    /// Scaling numerator: the update is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout probability of the adapter inputs.
    pub lora_dropout: f64,
    /// Whether the scale is `lora_alpha / √r` instead (rank-stabilized LoRA).
    pub use_rslora: bool,
    /// Ranks by module: regular expressions for the end of a name; the first match counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas by module: regular expressions for the end of a name; the first match counts.
    pub alpha_pattern: IndexMap<String, f64>,
}

impl Default for LoraSection {
    fn default() -> Self {
        Self {
            adapter_path: PathBuf::new(),
            target_modules: TargetModules::default(),
            target_parameters: Vec::new(),
            exclude_modules: TargetModules::default(),
            modules_to_save: Vec::new(),
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            use_rslora: false,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
        }
    }
}

/// The linear layers of the text decoder as a regular expression.
const TEXT_DECODER: &str = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.[a-z_]+_proj";

/// The same for a text decoder with experts: PEFT takes every other linear layer for an expert's.
const TEXT_ATTENTION: &str = r"model\.language_model\.layers\.\d+\.self_attn\.[a-z_]+_proj";

impl LoraSection {
    /// The adapter config in PEFT's format, with the default targets of an architecture.
    pub fn to_adapter_config(&self, architecture: Architecture) -> AdapterConfig {
        // PEFT's files have null instead of an empty list.
        let list = |names: &Vec<String>| (!names.is_empty()).then(|| names.clone());
        let modules = |names: &TargetModules| (!names.is_empty()).then(|| names.clone());
        let pattern = if architecture == Architecture::Glm4vMoe { TEXT_ATTENTION } else { TEXT_DECODER };
        let default_targets =
            || self.target_parameters.is_empty().then(|| TargetModules::Pattern(pattern.into()));
        AdapterConfig {
            lora_dropout: self.lora_dropout,
            use_rslora: self.use_rslora,
            target_modules: modules(&self.target_modules).or_else(default_targets),
            target_parameters: list(&self.target_parameters),
            exclude_modules: modules(&self.exclude_modules),
            modules_to_save: list(&self.modules_to_save),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            ..AdapterConfig::new(self.r, self.lora_alpha)
        }
    }
}

/// Training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct DataSection {
    /// Directory with `dataset_info.json`.
    pub dir: PathBuf,
    /// Directory in which images and videos are looked up first; relative to their file if empty.
    pub media_dir: PathBuf,
    /// Training dataset: `NAME`, `NAME:SPLIT`, or the path of a file or directory; or a list of them, in which
    /// `{name = "b", weight = 2.0, samples = 500}` takes 500 records by the seed, each of them twice an epoch.
    pub train: DatasetList,
    /// Fraction of each training dataset that is held out by the seed, and evaluated in place of `eval.data`; 0 holds out none.
    pub eval_fraction: f64,
    /// What carries loss: `assistant`, every turn of the assistant; `last`, the last one; `all`, the whole text.
    pub loss: LossPolicy,
    /// Records per training step.
    pub batch_size: usize,
    /// Maximum number of tokens per record, images included; 0 means the model's `max_position_embeddings`. See `on_long`.
    pub max_length: usize,
    /// Policy for longer records: `error`; `drop`; `shrink_images`, smaller images; `truncate`, fewer turns. What does not fit then is
    /// dropped. Everything is counted and logged.
    pub on_long: LengthPolicy,
    /// Tokens to which `on_long = "shrink_images"` may shrink an image.
    pub min_image_tokens: usize,
    /// Turns that `on_long = "truncate"` removes: from the `end`, or from the `start` up to the first image or video.
    pub truncate_from: TruncateFrom,
    /// Policy for bad records: malformed ones, and those whose media are missing or damaged.
    pub on_bad: BadRecordPolicy,
    /// Maximum number of bad records that `on_bad = "skip"` leaves out, of each dataset; 0 for no limit.
    pub max_bad: usize,
    /// A json file with the record numbers of every batch, `[[3, 1, …], …]`, to repeat another run's order; the order
    /// is drawn from the seed if empty.
    pub batch_order: PathBuf,
    /// Number of threads that prepare batches; 0 prepares them between the steps.
    pub workers: usize,
    /// Maximum bytes of batches that are prepared ahead; the next one is prepared whatever its size.
    pub prefetch_bytes: usize,
    /// Puts several records of a batch in one row, so that less of it is padding. Each keeps the loss and the gradients that it has
    /// alone.
    pub packing: bool,
    /// Tokens in a packed row; 0 means those of the batch's longest record. Longer rows have less padding, and cost memory for
    /// attention by the square of their length.
    pub packing_length: usize,
    /// Draws records of similar length together: the cheaper way to less padding, as it only reads the headers of images ahead.
    pub group_by_length: bool,
    /// Directory that keeps decoded and resized images for later epochs and runs; none if empty. Frames of videos are not kept.
    pub cache_dir: PathBuf,
    /// Maximum bytes of `cache_dir`. A full cache takes no more images, and removes none.
    pub cache_bytes: u64,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            dir: "datasets".into(),
            media_dir: PathBuf::new(),
            train: DatasetList::default(),
            eval_fraction: 0.0,
            loss: LossPolicy::Assistant,
            batch_size: 8,
            max_length: 0,
            on_long: LengthPolicy::Error,
            min_image_tokens: 64,
            truncate_from: TruncateFrom::End,
            on_bad: BadRecordPolicy::Stop,
            max_bad: 0,
            batch_order: PathBuf::new(),
            workers: 1,
            prefetch_bytes: 512 << 20,
            packing: false,
            packing_length: 0,
            group_by_length: false,
            cache_dir: PathBuf::new(),
            cache_bytes: 100 << 30,
        }
    }
}

/// Optimizer: AdamW, and clipping of gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct OptimSection {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay rates of AdamW's moments.
    pub betas: [f64; 2],
    /// AdamW's epsilon, added to the denominator.
    pub eps: f64,
    /// AdamW's decoupled weight decay, on all parameters.
    pub weight_decay: f64,
    /// Maximum global norm of the gradients, by scaling; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Coefficient of the load balancing loss of experts (1e-4 in published configs); 0 switches it off, as transformers does by
    /// default. For models with experts.
    pub router_aux_loss_coef: f64,
}

impl Default for OptimSection {
    fn default() -> Self {
        Self {
            lr: 1e-5,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            router_aux_loss_coef: 0.0,
        }
    }
}

/// Length of the run, and learning rate schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct ScheduleSection {
    /// Decay after the warm-up.
    pub r#type: ScheduleKind,
    /// Steps of linear warm-up from zero.
    pub warmup_steps: usize,
    /// Number of steps; 0 means `epochs` epochs.
    pub max_steps: usize,
    /// Number of epochs, if `max_steps` is 0.
    pub epochs: f64,
}

impl Default for ScheduleSection {
    fn default() -> Self {
        Self { r#type: ScheduleKind::Cosine, warmup_steps: 0, max_steps: 0, epochs: 1.0 }
    }
}

/// Evaluation between steps and at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct EvalSection {
    /// Evaluation dataset, or a list as `data.train`; none if empty.
    pub data: DatasetList,
    /// Steps between evaluations; 0 evaluates at the end only. A checkpoint is written before each, unless
    /// `run.save_steps` is 0.
    pub steps: usize,
    /// Evaluation batch size.
    pub batch_size: usize,
    /// Maximum number of new tokens per answer.
    pub max_new_tokens: usize,
    /// Number of predictions to print at the end.
    pub log_samples: usize,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self { data: DatasetList::default(), steps: 0, batch_size: 32, max_new_tokens: 64, log_samples: 8 }
    }
}

/// Output directory, seed, checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[serde(expecting = "a section")]
pub struct RunSection {
    /// Run directory; created if it does not exist.
    pub output_dir: PathBuf,
    /// Random seed.
    pub seed: u64,
    /// Steps between checkpoints; one more is written at the end, from which the run can be extended. 0 writes none unless
    /// the run is interrupted.
    pub save_steps: usize,
    /// Maximum number of checkpoints; older ones are removed.
    pub save_total_limit: usize,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { output_dir: "runs/run".into(), seed: 0, save_steps: 500, save_total_limit: 2 }
    }
}

/// Why a config cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not TOML, or a value of the wrong type.
    #[error("{}: {problem}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Error of the parser, with line and column.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{}: unknown key \"{key}\"; {hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key with its section.
        key: String,
        /// The nearest key, or all of them.
        hint: String,
    },
    /// A setting without a key or a value.
    #[error("setting \"{found}\": needed: section.key=value")]
    Set {
        /// The setting as given.
        found: String,
    },
    /// A value out of range.
    #[error("{}: {key} is {found}; needed: {needed}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key with its section.
        key: &'static str,
        /// The value.
        found: String,
        /// Valid values.
        needed: &'static str,
    },
}

impl RunConfig {
    /// Reads a config file, applies `section.key=value` settings, and checks the result.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, a key is unknown, or a value makes no run.
    pub fn read(path: &Path, settings: &[String]) -> Result<Self, RunConfigError> {
        let text = read_text(path, LONGEST_CONFIG)?;
        Self::parse(path, &text, settings)
    }

    fn parse(path: &Path, text: &str, settings: &[String]) -> Result<Self, RunConfigError> {
        let problem = |error: toml::de::Error| RunConfigError::Toml {
            path: path.to_owned(),
            // Without a text to show, only the place follows on a line of its own.
            problem: error.to_string().trim_end().replace("\nin `", " in `"),
        };
        let mut table: Table = text.parse().map_err(problem)?;
        for setting in settings {
            apply(&mut table, setting)?;
        }
        check_keys(path, &table)?;
        // From the text if nothing was set, so that an error shows its line.
        let config: Self = match settings {
            [] => toml::from_str(text).map_err(problem)?,
            _ => table.try_into().map_err(problem)?,
        };
        config.check(path)?;
        Ok(config)
    }

    /// Whether the run evaluates.
    pub fn evaluates(&self) -> bool {
        !self.eval.data.is_empty() || self.data.eval_fraction > 0.0
    }

    /// The config with every key written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a run has no value that TOML cannot express")
    }

    fn check(&self, path: &Path) -> Result<(), RunConfigError> {
        let check = ValueCheck { path };
        self.model.check(check)?;
        self.data.check(check)?;
        self.optim.check(check)?;
        if let Some(lora) = &self.lora {
            lora.check(check, &self.model.freeze)?;
        }
        self.schedule.check(check)?;
        self.run.check(check)?;
        let both = self.data.eval_fraction > 0.0 && !self.eval.data.is_empty();
        check.require(
            !both,
            "eval.data",
            format!("\"{}\"", self.eval.data),
            "left out beside data.eval_fraction",
        )?;
        self.eval.check(check)
    }
}

/// Checks of single values in a config file.
#[derive(Clone, Copy)]
struct ValueCheck<'a> {
    path: &'a Path,
}

impl ValueCheck<'_> {
    /// An error about `key` unless `valid`.
    fn require(
        self,
        valid: bool,
        key: &'static str,
        found: impl ToString,
        needed: &'static str,
    ) -> Result<(), RunConfigError> {
        if valid {
            return Ok(());
        }
        Err(RunConfigError::Value { path: self.path.to_owned(), key, found: found.to_string(), needed })
    }

    fn not_empty(self, value: &Path, key: &'static str, needed: &'static str) -> Result<(), RunConfigError> {
        self.require(!value.as_os_str().is_empty(), key, format!("\"{}\"", value.display()), needed)
    }

    fn at_least_one(self, value: usize, key: &'static str) -> Result<(), RunConfigError> {
        self.require(value > 0, key, value, "at least 1")
    }

    fn positive(self, value: f64, key: &'static str) -> Result<(), RunConfigError> {
        self.require(positive(value), key, value, "a positive number")
    }

    fn not_negative(self, value: f64, key: &'static str, needed: &'static str) -> Result<(), RunConfigError> {
        self.require(value.is_finite() && value >= 0.0, key, value, needed)
    }
}

impl ModelSection {
    fn check(&self, check: ValueCheck<'_>) -> Result<(), RunConfigError> {
        check.not_empty(&self.path, "model.path", "the path of a model directory")
    }
}

impl DataSection {
    fn check(&self, check: ValueCheck<'_>) -> Result<(), RunConfigError> {
        let needed = match self.train.is_empty() {
            true => Some("the name of a dataset, as digits:train"),
            false => self.train.problem(),
        };
        let found = format!("\"{}\"", self.train);
        check.require(needed.is_none(), "data.train", found, needed.unwrap_or_default())?;
        check.require(
            fraction(self.eval_fraction),
            "data.eval_fraction",
            self.eval_fraction,
            "from 0 to below 1",
        )?;
        check.at_least_one(self.batch_size, "data.batch_size")?;
        let order = self.batch_order.display();
        let drawn = self.batch_order.as_os_str().is_empty() || !self.group_by_length;
        check.require(
            drawn,
            "data.batch_order",
            order,
            "none, as data.group_by_length draws an order of its own",
        )?;
        check.at_least_one(self.min_image_tokens, "data.min_image_tokens")?;
        check.require(self.workers <= 64, "data.workers", self.workers, "0 to 64")
    }
}

impl OptimSection {
    fn check(&self, check: ValueCheck<'_>) -> Result<(), RunConfigError> {
        check.positive(self.lr, "optim.lr")?;
        let [beta1, beta2] = self.betas;
        let found = format!("[{beta1}, {beta2}]");
        let needed = "two numbers from 0 to below 1";
        check.require(fraction(beta1) && fraction(beta2), "optim.betas", found, needed)?;
        check.positive(self.eps, "optim.eps")?;
        check.not_negative(self.weight_decay, "optim.weight_decay", "0 or more")?;
        check.not_negative(self.max_grad_norm, "optim.max_grad_norm", "0 (off) or more")?;
        check.not_negative(self.router_aux_loss_coef, "optim.router_aux_loss_coef", "0 (off) or more")
    }
}

impl ScheduleSection {
    fn check(&self, check: ValueCheck<'_>) -> Result<(), RunConfigError> {
        let valid = self.max_steps > 0 || (positive(self.epochs) && self.epochs <= 1e6);
        check.require(valid, "schedule.epochs", self.epochs, "more than 0, at most a million")
    }
}

impl EvalSection {
    fn check(&self, check: ValueCheck<'_>) -> Result<(), RunConfigError> {
        let problem = self.data.problem();
        check.require(
            problem.is_none(),
            "eval.data",
            format!("\"{}\"", self.data),
            problem.unwrap_or_default(),
        )?;
        check.at_least_one(self.batch_size, "eval.batch_size")?;
        check.at_least_one(self.max_new_tokens, "eval.max_new_tokens")
    }
}

impl RunSection {
    fn check(&self, check: ValueCheck<'_>) -> Result<(), RunConfigError> {
        check.not_empty(&self.output_dir, "run.output_dir", "the path of a directory")?;
        check.at_least_one(self.save_total_limit, "run.save_total_limit")?;
        // TOML has no larger integers.
        check.require(self.seed <= i64::MAX as u64, "run.seed", self.seed, "at most 2^63 - 1")
    }
}

impl LoraSection {
    fn check(&self, check: ValueCheck<'_>, freeze: &[FreezeTarget]) -> Result<(), RunConfigError> {
        let ranks = 1..=1 << 16;
        check.require(ranks.contains(&self.r), "lora.r", self.r, "1 to 65536")?;
        check.require(
            self.rank_pattern.values().all(|rank| ranks.contains(rank)),
            "lora.rank_pattern",
            format!("{:?}", self.rank_pattern),
            "ranks from 1 to 65536",
        )?;
        check.positive(self.lora_alpha, "lora.lora_alpha")?;
        let dropout = self.lora_dropout;
        check.require(fraction(dropout), "lora.lora_dropout", dropout, "from 0 to below 1")?;
        let path_only = Self { adapter_path: self.adapter_path.clone(), ..Self::default() };
        check.require(
            self.adapter_path.as_os_str().is_empty() || *self == path_only,
            "lora.adapter_path",
            format!("\"{}\"", self.adapter_path.display()),
            "nothing beside other keys of [lora], as the adapter's own config stands for them",
        )?;
        check.require(
            freeze.is_empty(),
            "model.freeze",
            format!("{freeze:?}").to_lowercase(),
            "left out beside [lora]: the model's weights are frozen, and lora.modules_to_save names modules that are trained",
        )
    }
}

fn positive(x: f64) -> bool {
    x.is_finite() && x > 0.0
}

/// Whether a number is a probability below 1.
fn fraction(x: f64) -> bool {
    (0.0..1.0).contains(&x)
}

/// Puts `section.key=value` into a table. A value that is not TOML is taken as text.
fn apply(table: &mut Table, setting: &str) -> Result<(), RunConfigError> {
    let wrong = || RunConfigError::Set { found: setting.to_owned() };
    let (keys, text) = setting.split_once('=').ok_or_else(wrong)?;
    let mut keys: Vec<&str> = keys.trim().split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty() && !keys.is_empty()).ok_or_else(wrong)?;
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(text.trim().to_owned()));
    let mut place = table;
    for key in keys {
        let inner = place.entry(key).or_insert_with(|| Value::Table(Table::new()));
        place = inner.as_table_mut().ok_or_else(wrong)?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

/// Looks every key up among those of the default config.
fn check_keys(path: &Path, table: &Table) -> Result<(), RunConfigError> {
    let every = RunConfig { lora: Some(LoraSection::default()), ..RunConfig::default() };
    let known = Value::try_from(every).expect("a run has no value that TOML cannot express");
    check_table(path, table, known.as_table().expect("a run is a table"), "")
}

/// Keys of the first schema and their successors.
const RENAMED: [(&str, &str); 23] = [
    ("model.folder", "model.path"),
    ("model.learn", "model.freeze"),
    ("lora.adapter", "lora.adapter_path"),
    ("lora.alpha", "lora.lora_alpha"),
    ("lora.rank", "lora.r"),
    ("lora.dropout", "lora.lora_dropout"),
    ("lora.rslora", "lora.use_rslora"),
    ("data.folder", "data.dir"),
    ("data.media_folder", "data.media_dir"),
    ("data.eval", "eval.data"),
    ("data.overlong", "data.on_long"),
    ("data.order", "data.batch_order"),
    ("optim.clip_norm", "optim.max_grad_norm"),
    ("optim.router_aux_loss", "optim.router_aux_loss_coef"),
    ("schedule.kind", "schedule.type"),
    ("schedule.steps", "schedule.max_steps"),
    ("run.folder", "run.output_dir"),
    ("run.eval_every", "eval.steps"),
    ("run.eval_batch_size", "eval.batch_size"),
    ("run.eval_tokens", "eval.max_new_tokens"),
    ("run.save_every", "run.save_steps"),
    ("run.keep", "run.save_total_limit"),
    ("run.show", "eval.log_samples"),
];

fn check_table(path: &Path, table: &Table, known: &Table, prefix: &str) -> Result<(), RunConfigError> {
    for (key, value) in table {
        match (known.get(key), value) {
            // Keys of these tables are names of modules.
            _ if prefix == "lora." && key.ends_with("_pattern") => {}
            (Some(Value::Table(known)), Value::Table(table)) => {
                check_table(path, table, known, &format!("{prefix}{key}."))?;
            }
            (Some(_), _) => {}
            (None, _) => {
                let hint = unknown_key_hint(prefix, key, known);
                let key = format!("{prefix}{key}");
                return Err(RunConfigError::UnknownKey { path: path.to_owned(), key, hint });
            }
        }
    }
    Ok(())
}

/// The key's new name, or the nearest key of its section, or all of them.
fn unknown_key_hint(prefix: &str, key: &str, section: &Table) -> String {
    let full_key = format!("{prefix}{key}");
    if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == full_key) {
        return format!("its name is \"{new}\" now");
    }
    let names: Vec<&str> = section.keys().map(String::as_str).collect();
    did_you_mean(key, names.iter().copied()).unwrap_or_else(|| format!("known here: {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[model]\npath = \"m\"\n[data]\ntrain = \"d\"\n[optim]\nlr = 1e-3\n";

    fn read(text: &str, settings: &[&str]) -> Result<RunConfig, String> {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        RunConfig::parse(Path::new("x.toml"), text, &settings).map_err(|error| error.to_string())
    }

    #[test]
    fn a_misspelled_key_is_refused_with_the_nearest() {
        let text = format!("{TEXT}wieght_decay = 0.1\n");

        assert_eq!(
            read(&text, &[]).unwrap_err(),
            "x.toml: unknown key \"optim.wieght_decay\"; did you mean \"weight_decay\"?"
        );
        assert_eq!(
            read(TEXT, &["optm.lr=1"]).unwrap_err(),
            "x.toml: unknown key \"optm\"; did you mean \"optim\"?"
        );
        assert!(
            read(TEXT, &["run.something_else=1"]).unwrap_err().contains("known here: output_dir, seed, ")
        );
    }

    #[test]
    fn a_renamed_key_is_refused_with_its_new_name() {
        for (old, new) in RENAMED {
            let error = read(TEXT, &[&format!("{old}=1")]).unwrap_err();
            assert_eq!(error, format!("x.toml: unknown key \"{old}\"; its name is \"{new}\" now"));
            let known = read(TEXT, &[&format!("{new}=1")]);
            assert!(known.is_ok() || !known.unwrap_err().contains("unknown key"), "{new}");
        }
    }

    #[test]
    fn settings_change_single_values() {
        let config =
            read(TEXT, &["optim.lr=2e-4", "run.seed = 7", "eval.data=digits:test", "model.freeze=['text']"]);

        let config = config.unwrap();
        assert_eq!((config.optim.lr, config.run.seed), (2e-4, 7));
        assert_eq!(config.eval.data, "digits:test".into());
        assert_eq!(config.model.freeze, [FreezeTarget::Text]);
        for wrong in ["lr", "optim.lr", "=1", "lr=1", "optim.=1"] {
            let error = read(TEXT, &[wrong]).unwrap_err();
            assert!(error.starts_with(&format!("setting \"{wrong}\": needed: section.key=value")), "{error}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_is_shown_with_its_line() {
        let error = read(&TEXT.replace("1e-3", "\"fast\""), &[]).unwrap_err();

        assert!(error.contains("line 6") && error.contains("fast"), "{error}");
        let error = read(TEXT, &["model.freeze=['txt']"]).unwrap_err();
        assert_eq!(
            error,
            "x.toml: unknown variant `txt`, expected one of `vision`, `merger`, `text`, `embeddings`, `head` in `model.freeze`"
        );
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_key() {
        assert_eq!(
            read(TEXT, &["data.batch_size=0"]).unwrap_err(),
            "x.toml: data.batch_size is 0; needed: at least 1"
        );
        assert_eq!(
            read(TEXT, &["data.batch_order=o.json", "data.group_by_length=true"]).unwrap_err(),
            "x.toml: data.batch_order is o.json; needed: none, as data.group_by_length draws an order of its own"
        );
        assert!(read(TEXT, &["optim.betas=[0.9, 1.0]"]).unwrap_err().contains("optim.betas is [0.9, 1]"));
        assert!(read("", &[]).unwrap_err().contains("model.path"));
    }

    #[test]
    fn bad_records_stop_a_run_unless_it_skips_them() {
        let on_bad = |settings: &[&str]| read(TEXT, settings).map(|config| config.data.on_bad);

        assert_eq!(on_bad(&[]), Ok(BadRecordPolicy::Stop));
        assert_eq!(on_bad(&["data.on_bad=skip"]), Ok(BadRecordPolicy::Skip));
        let unknown = "x.toml: unknown variant `drop`, expected `stop` or `skip` in `data.on_bad`";
        assert_eq!(on_bad(&["data.on_bad=drop"]).unwrap_err(), unknown);
        let misspelled = "x.toml: unknown key \"data.onbad\"; did you mean \"on_bad\"?";
        assert_eq!(on_bad(&["data.onbad=skip"]).unwrap_err(), misspelled);
    }

    #[test]
    fn datasets_are_mixed_by_weight_and_number() {
        let mixed = r#"data.train=["a", {name = "b:train", weight = 2.5, samples = 500}]"#;
        let config = read(TEXT, &[mixed]).unwrap();

        let shares: Vec<_> =
            config.data.train.0.iter().map(|entry| (entry.name.as_str(), entry.share())).collect();
        let share = |weight, samples| glm4v_data::Share { weight, samples };
        assert_eq!(shares, [("a", share(1.0, None)), ("b:train", share(2.5, Some(500)))]);
        assert_eq!(config.data.train.to_string(), "a, b:train");
        assert_eq!(read(&config.to_toml(), &[]).unwrap(), config);
        let lone = read(TEXT, &["data.train={name = 'a', samples = 3}"]).unwrap();
        assert_eq!(read(&lone.to_toml(), &[]).unwrap(), lone);

        let refused = |setting: &str| read(TEXT, &[setting]).unwrap_err();
        assert_eq!(
            refused("data.train=[]"),
            "x.toml: data.train is \"\"; needed: the name of a dataset, as digits:train"
        );
        assert!(
            refused("data.train=[{name = 'a', weight = 0}]")
                .ends_with("needed: a weight above 0, at most a million")
        );
        assert!(refused("eval.data=[{name = 'a', samples = 0}]").ends_with("needed: samples of 1 or more"));
        assert!(refused("data.train=[{name = 'a', wieght = 2.0}]").contains("unknown field `wieght`"));
        assert!(refused("data.train=[{weight = 2.0}]").contains("missing field `name`"));
        assert!(refused("data.train=[3]").contains("expected the name of a dataset"));
    }

    #[test]
    fn a_part_of_the_training_data_may_be_held_out_instead_of_eval_data() {
        let config = read(TEXT, &["data.eval_fraction=0.1"]).unwrap();
        assert!(config.evaluates() && !read(TEXT, &[]).unwrap().evaluates());

        let both = read(TEXT, &["data.eval_fraction=0.1", "eval.data=d:test"]).unwrap_err();
        assert_eq!(both, "x.toml: eval.data is \"d:test\"; needed: left out beside data.eval_fraction");
        let whole = read(TEXT, &["data.eval_fraction=1.0"]).unwrap_err();
        assert_eq!(whole, "x.toml: data.eval_fraction is 1; needed: from 0 to below 1");
    }

    #[test]
    fn to_toml_and_back_is_the_same_config() {
        let config = read(TEXT, &["schedule.max_steps=10"]).unwrap();

        assert_eq!(read(&config.to_toml(), &[]).unwrap(), config);
        assert!(!config.to_toml().contains("[lora"), "without the section there are no adapters");
    }

    #[test]
    fn any_lora_key_or_an_empty_section_enables_lora_on_the_text_decoder() {
        let sections: [(&str, &[&str]); 4] = [
            ("[lora]\n", &[]),
            ("", &["lora.r=8"]),
            ("", &["lora.lora_alpha=4"]),
            ("", &["lora.lora_dropout=0.1"]),
        ];
        for (section, settings) in sections {
            let config = read(&format!("{TEXT}{section}"), settings).unwrap();

            let written = read(&config.to_toml(), &[]).unwrap();
            let lora = config.lora.clone().unwrap_or_else(|| panic!("{section}{settings:?} has adapters"));
            assert_eq!(written, config);
            let targets = lora.to_adapter_config(Architecture::Glm4v).target_modules;
            assert!(
                matches!(&targets, Some(TargetModules::Pattern(all)) if all.contains("language_model")),
                "{targets:?}"
            );
        }
        let experts = read(TEXT, &["lora.target_parameters=[\"mlp.experts.down_proj\"]"]).unwrap();
        assert_eq!(experts.lora.unwrap().to_adapter_config(Architecture::Glm4vMoe).target_modules, None);
    }

    #[test]
    fn adapter_path_excludes_other_lora_keys() {
        let error = read(TEXT, &["lora.adapter_path=a", "lora.r=4"]).unwrap_err();

        assert!(
            error.starts_with("x.toml: lora.adapter_path is \"a\"; needed: nothing beside other keys"),
            "{error}"
        );
        assert!(read(TEXT, &["lora.adapter_path=a"]).is_ok());
    }
}
