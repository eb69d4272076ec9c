//! Parts of a run before its first step: datasets, processor, model, optimizer, and the state of a checkpoint.

use std::path::Path;
use std::sync::Arc;

use glm4v_data::{
    BatchSampler, DataLoaderOptions, Dataset, DatasetError, DatasetOptions, DatasetRegistry, DatasetSource,
    LabelOptions, Mixture, Order, PixelCache, Records, Share,
};
use glm4v_files::read_text;
use glm4v_model::{DeviceSpec, Glm4v, Precision, initialize};
use glm4v_processor::Processor;
use glm4v_weights::{
    AdapterConfig, AdapterFolder, ModelFolder, ProcessorProperties, ProgressFn, WeightsError, add_adapter,
};

use crate::adamw::{AdamW, AdamWConfig};
use crate::checkpoint::{CheckpointFormat, Checkpoints, TrainerState};
use crate::config::{LoraSection, RunConfig, WeightInit};
use crate::config_diff::{ChangePolicy, ConfigChange, config_diff};
use crate::dataset_list::DatasetList;
use crate::error::TrainError;
use crate::freeze::{freeze, mark_only_adapters_as_trainable};
use crate::layout::OPTIMIZER;
use crate::plan::LoraTargets;
use crate::run_dir::RunDir;
use crate::schedule::Schedule;

/// Loads the processor of a model directory, limited to the model's `max_position_embeddings`, and checks that both agree on
/// the image token and on the shape of patches.
///
/// # Errors
///
/// When a file of the processor is missing or malformed, or belongs to another model.
pub fn load_processor(model: &ModelFolder) -> Result<Processor, TrainError> {
    let max_tokens = model.config().text.max_position_embeddings;
    let processor = Processor::load(model.path())?.with_max_prompt_tokens(max_tokens);
    let image = processor.image_processor();
    model.check_processor(&ProcessorProperties {
        image_token_id: processor.tokenizer().special().image,
        patch_values: image.row_len(),
        patches_per_token: image.patches_per_token(),
    })?;
    Ok(processor)
}

/// The datasets of a run, and the order of their batches.
pub(crate) struct RunData {
    pub(crate) train: Arc<Dataset>,
    pub(crate) eval: Option<Dataset>,
    pub(crate) sampler: BatchSampler,
    /// Steps of the whole run.
    pub(crate) steps: usize,
}

impl RunData {
    pub(crate) fn open(config: &RunConfig, origin: &ModelFolder) -> Result<Self, TrainError> {
        let processor = Arc::new(with_image_cache(load_processor(origin)?, config)?);
        let registry = DatasetRegistry::load(&config.data.dir)?;
        let options = dataset_options(config, origin.config().text.max_position_embeddings);
        let (train, eval) = Mixer { config, registry, opened: Vec::new() }.mixtures()?;
        let train = Dataset::open_mixture(train, processor.clone(), options.clone())?;
        let eval = eval.map(|eval| Dataset::open_mixture(eval, processor, options)).transpose()?;
        if train.num_skipped() > 0 && !config.data.batch_order.as_os_str().is_empty() {
            let (path, skipped) = (config.data.batch_order.clone(), train.num_skipped());
            return Err(TrainError::BatchOrderSkipped { path, skipped });
        }
        let train = Arc::new(train);
        let sampler = sampler(config, &train)?;
        let found = sampler.batches_per_epoch();
        let steps = match config.schedule.max_steps {
            0 => (config.schedule.epochs * found as f64).ceil() as usize,
            steps => steps,
        };
        if sampler.state().order == Order::Fixed && found < steps {
            let path = config.data.batch_order.clone();
            return Err(TrainError::BatchOrderTooShort { path, found, needed: steps });
        }
        Ok(Self { train, eval, sampler, steps })
    }
}

/// Opens the datasets of a config and mixes them.
struct Mixer<'a> {
    config: &'a RunConfig,
    registry: DatasetRegistry,
    /// A dataset may be named more than once, and its records are found once.
    opened: Vec<(DatasetSource, Arc<Records>)>,
}

impl Mixer<'_> {
    /// The records to train on, and those to evaluate.
    fn mixtures(mut self) -> Result<(Mixture, Option<Mixture>), TrainError> {
        let config = self.config;
        let held_out = config.data.eval_fraction;
        let train = self.mixture(&config.data.train, held_out)?;
        if held_out == 0.0 {
            let eval = (!config.eval.data.is_empty()).then(|| self.mixture(&config.eval.data, 0.0));
            return Ok((train, eval.transpose()?));
        }
        let mut eval = Mixture::new();
        for (_, records) in self.opened {
            eval.add_held_out(records, held_out, config.run.seed);
        }
        if eval.is_empty() {
            let data = config.data.train.to_string();
            return Err(TrainError::NothingHeldOut { data });
        }
        Ok((train, Some(eval)))
    }

    fn mixture(&mut self, list: &DatasetList, held_out: f64) -> Result<Mixture, TrainError> {
        let mut mixture = Mixture::new();
        for entry in &list.0 {
            let (records, registered) = self.open(&entry.name)?;
            let share = entry.share();
            let share = Share { samples: share.samples.or(registered), ..share };
            mixture.add(records, share, held_out, self.config.run.seed);
        }
        Ok(mixture)
    }

    /// The records of a dataset, and `num_samples` of the registry.
    fn open(&mut self, name: &str) -> Result<(Arc<Records>, Option<usize>), TrainError> {
        let source = self.registry.find(name)?;
        let same = |known: &&(DatasetSource, Arc<Records>)| {
            known.0.files == source.files && known.0.schema == source.schema
        };
        if let Some((_, records)) = self.opened.iter().find(same) {
            return Ok((records.clone(), source.samples));
        }
        let records = Records::open(&source, media_dir(self.config)).map_err(DatasetError::from)?;
        let (records, samples) = (Arc::new(records), source.samples);
        self.opened.push((source, records.clone()));
        Ok((records, samples))
    }
}

/// Settings of a resumed run, to compare with those of its checkpoint.
pub(crate) struct ResumeSettings<'a> {
    pub(crate) config: &'a RunConfig,
    pub(crate) precision: Precision,
    /// Hash of the training records.
    pub(crate) fingerprint: &'a str,
}

/// State of the checkpoint that a run resumes from.
pub(crate) struct ResumeState {
    pub(crate) state: TrainerState,
    /// Differences to report between its config and the current one.
    pub(crate) changed: Vec<ConfigChange>,
}

impl ResumeState {
    /// Reads the state, and rejects a config, data type or data that it does not fit.
    pub(crate) fn read(
        checkpoint: &Path,
        dir: &RunDir,
        current: &ResumeSettings<'_>,
    ) -> Result<Self, TrainError> {
        let state = Checkpoints::read_state(checkpoint).map_err(|error| dir.damaged(checkpoint, error))?;
        let mut changed = config_diff(&state.config, current.config);
        let dtype = current.precision.to_string();
        if state.dtype != dtype {
            changed.push(ConfigChange::new("dtype", &state.dtype, dtype));
        }
        for change in &changed {
            if let ChangePolicy::Reject(reason) = change.policy() {
                let (checkpoint, change) = (checkpoint.to_owned(), change.clone());
                return Err(TrainError::ConfigChanged { checkpoint, change, reason });
            }
        }
        if state.data != current.fingerprint {
            let (checkpoint, data) = (checkpoint.to_owned(), current.config.data.train.to_string());
            return Err(TrainError::DataChanged { checkpoint, data });
        }
        changed.retain(|change| change.policy() == ChangePolicy::Report);
        Ok(Self { state, changed })
    }
}

/// Sources of the weights of a run, and their placement.
pub(crate) struct ModelSetup<'a> {
    pub(crate) config: &'a RunConfig,
    /// `model.path`.
    pub(crate) origin: &'a ModelFolder,
    pub(crate) dir: &'a RunDir,
    pub(crate) device_spec: DeviceSpec,
    pub(crate) precision: Precision,
}

/// A model with its trainable parameters marked.
pub(crate) struct TrainableModel {
    pub(crate) model: Glm4v,
    pub(crate) format: CheckpointFormat,
    pub(crate) lora: Option<LoraTargets>,
    /// Number of trainable parameters.
    pub(crate) trainable_params: usize,
}

impl ModelSetup<'_> {
    /// Loads the model to train, with LoRA adapters if the config has them.
    pub(crate) fn load(
        &self,
        checkpoint: Option<&Path>,
        progress: ProgressFn<'_>,
    ) -> Result<TrainableModel, TrainError> {
        let model = match &self.config.lora {
            Some(lora) => self.load_lora(lora, checkpoint, progress)?,
            None => self.load_full(checkpoint, progress)?,
        };
        if model.trainable_params == 0 {
            return Err(match self.config.lora {
                Some(_) => TrainError::NoTrainableAdapters,
                None => TrainError::NoTrainableParameters,
            });
        }
        Ok(model)
    }

    /// A model whose own weights are trained: those of the checkpoint, of the model directory, or random ones.
    fn load_full(
        &self,
        checkpoint: Option<&Path>,
        progress: ProgressFn<'_>,
    ) -> Result<TrainableModel, TrainError> {
        let model = match checkpoint {
            Some(checkpoint) => self.load_checkpoint(checkpoint, progress)?,
            None => self.load_base(progress)?,
        };
        let (model, trainable_params) = freeze(model, &self.config.model.freeze);
        let format =
            CheckpointFormat::Model { origin: self.origin.path().to_owned(), precision: self.precision };
        Ok(TrainableModel { model, format, lora: None, trainable_params })
    }

    /// The weights of a checkpoint, which must have the config of the base model.
    fn load_checkpoint(&self, checkpoint: &Path, progress: ProgressFn<'_>) -> Result<Glm4v, TrainError> {
        let damaged = |error: WeightsError| self.dir.damaged(checkpoint, error);
        let saved = ModelFolder::open(checkpoint).map_err(damaged)?;
        if saved.config() != self.origin.config() {
            let (checkpoint, model) = (checkpoint.to_owned(), self.origin.path().to_owned());
            return Err(TrainError::ModelMismatch { checkpoint, model });
        }
        saved.load_on(&self.device_spec, self.precision, progress).map_err(damaged)
    }

    /// A frozen base model with trainable adapters: those of the checkpoint, of `lora.adapter_path`, or new ones.
    fn load_lora(
        &self,
        lora: &LoraSection,
        checkpoint: Option<&Path>,
        progress: ProgressFn<'_>,
    ) -> Result<TrainableModel, TrainError> {
        let given = (!lora.adapter_path.as_os_str().is_empty())
            .then(|| AdapterFolder::open(&lora.adapter_path))
            .transpose()?;
        let config = match &given {
            Some(adapter) => adapter.config().clone(),
            None => {
                let model = self.origin.config();
                let ensure_weight_tying = model.text.tie_word_embeddings;
                AdapterConfig { ensure_weight_tying, ..lora.to_adapter_config(model.architecture) }
            }
        };
        let config = config.with_base_model(self.origin);
        // Opened first: a damaged checkpoint is reported before the base model is loaded.
        let open = |path| AdapterFolder::open(path).map_err(|error| self.dir.damaged(path, error));
        let saved = checkpoint.map(open).transpose()?;
        // Attached even if replaced below: only this checks that the target modules exist.
        let (model, modules) =
            add_adapter(self.load_base(progress)?, &config, self.config.run.seed, self.precision)?;
        let model = match saved.or(given) {
            Some(adapter) => adapter.apply(model, self.precision)?,
            None => model,
        };
        let (model, trainable_params) = mark_only_adapters_as_trainable(model, &config);
        let lora = Some(LoraTargets { r: config.r, modules });
        Ok(TrainableModel {
            model,
            format: CheckpointFormat::Adapter(Box::new(config)),
            lora,
            trainable_params,
        })
    }

    /// The optimizer of the checkpoint, or a new one without state.
    pub(crate) fn optimizer(&self, checkpoint: Option<&Path>, model: &Glm4v) -> Result<AdamW, TrainError> {
        let optim = &self.config.optim;
        let settings = AdamWConfig { betas: optim.betas, eps: optim.eps, weight_decay: optim.weight_decay };
        match checkpoint {
            Some(checkpoint) => AdamW::load(settings, &checkpoint.join(OPTIMIZER), model)
                .map_err(|error| self.dir.damaged(checkpoint, error)),
            None => Ok(AdamW::new(settings)),
        }
    }

    /// The weights of the model directory, or random ones (`model.init`).
    fn load_base(&self, progress: ProgressFn<'_>) -> Result<Glm4v, TrainError> {
        Ok(match self.config.model.init {
            WeightInit::Pretrained => self.origin.load_on(&self.device_spec, self.precision, progress)?,
            WeightInit::Random => {
                let network = self.origin.config().init_on(&self.device_spec).map_err(WeightsError::from)?;
                initialize(network, self.config.run.seed, self.precision.dtype())
            }
        })
    }
}

pub(crate) fn schedule(config: &RunConfig, steps: usize) -> Schedule {
    Schedule {
        kind: config.schedule.r#type,
        lr: config.optim.lr,
        warmup_steps: config.schedule.warmup_steps,
        steps,
    }
}

/// `data.media_dir`; none if it is empty.
fn media_dir(config: &RunConfig) -> Option<&Path> {
    let media = &config.data.media_dir;
    (!media.as_os_str().is_empty()).then_some(media)
}

fn dataset_options(config: &RunConfig, max_position_embeddings: usize) -> DatasetOptions {
    DatasetOptions {
        max_length: Some(match config.data.max_length {
            0 => max_position_embeddings,
            max => max.min(max_position_embeddings),
        }),
        on_long: config.data.on_long,
        min_image_tokens: config.data.min_image_tokens,
        truncate_from: config.data.truncate_from,
        on_bad: config.data.on_bad,
        max_bad: (config.data.max_bad > 0).then_some(config.data.max_bad),
        labels: LabelOptions { loss: config.data.loss, ..LabelOptions::default() },
        ..DatasetOptions::default()
    }
}

/// The processor with the cache of `data.cache_dir`, if there is one.
fn with_image_cache(processor: Processor, config: &RunConfig) -> Result<Processor, TrainError> {
    let dir = &config.data.cache_dir;
    if dir.as_os_str().is_empty() {
        return Ok(processor);
    }
    Ok(processor.with_image_cache(Arc::new(PixelCache::open(dir, config.data.cache_bytes)?)))
}

pub(crate) fn data_loader_options(config: &RunConfig) -> DataLoaderOptions {
    DataLoaderOptions {
        workers: config.data.workers,
        prefetch_bytes: config.data.prefetch_bytes,
        packing_length: config.data.packing.then_some(config.data.packing_length),
    }
}

/// Maximum size of a `data.batch_order` file, in bytes: a hundred million record numbers.
const MAX_BATCH_ORDER_BYTES: u64 = 1 << 30;

fn sampler(config: &RunConfig, train: &Arc<Dataset>) -> Result<BatchSampler, TrainError> {
    let path = &config.data.batch_order;
    let records = train.len();
    if path.as_os_str().is_empty() {
        let sampler = BatchSampler::shuffled(records, config.data.batch_size, config.run.seed)?;
        if !config.data.group_by_length {
            return Ok(sampler);
        }
        let train = train.clone();
        return Ok(sampler.grouped_by_length(move |index| train.estimated_len(index))?);
    }
    let text = read_text(path, MAX_BATCH_ORDER_BYTES).map_err(WeightsError::from)?;
    let batches =
        serde_json::from_str(&text).map_err(|source| TrainError::State { path: path.clone(), source })?;
    BatchSampler::fixed(batches, records)
        .map_err(|source| TrainError::BatchOrder { path: path.clone(), source })
}
