//! A run from its config to its last weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_data::{
    Dataset, DatasetOptions, LoadedBatch, OnBad, Order, Overlong, Prefetch, Registry, Sampler, SamplerState,
};
use glm4v_model::{ComputeError, Glm4v, Precision, Site, initialize};
use glm4v_processor::Processor;
use glm4v_weights::{
    AdapterConfig, AdapterFolder, ModelFolder, StagedFolder, Watch, WeightsError, attach, remove_leftovers,
    write_file,
};

use crate::adamw::{AdamW, AdamWConfig};
use crate::checkpoint::{CHECKPOINTS, Checkpoints, Learned, OPTIMIZER, TrainerState};
use crate::config::{Init, OnBadChoice, OverlongChoice, RunConfig};
use crate::eval::{Answering, EvalReport, evaluate};
use crate::gradients::NamedGradients;
use crate::learn::{freeze, freeze_all_but};
use crate::loss::{Targets, balanced_loss};
use crate::metrics::{EvalSummary, Metrics, StepReport, last_step};
use crate::schedule::Schedule;
use crate::{Remains, TrainError};

/// Hears what a run does, to show it to people.
pub trait Observer {
    /// A run is about to begin, or to go on after `state.step` steps.
    fn started(&mut self, plan: &Plan);
    /// A step is done.
    fn stepped(&mut self, report: &StepReport);
    /// Records were left out as too long.
    fn dropped(&mut self, records: usize);
    /// An examination goes on: answers so far, of how many.
    fn examining(&mut self, done: usize, of: usize);
    /// An examination is over.
    fn examined(&mut self, summary: &EvalSummary);
    /// A folder with weights appeared.
    fn saved(&mut self, folder: &Path);
}

/// What a run is going to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Steps done before.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Parameters of the network.
    pub parameters: usize,
    /// Parameters that learn.
    pub learning: usize,
    /// Records to learn from.
    pub train_records: usize,
    /// Records to be examined on.
    pub eval_records: usize,
    /// Modules with an adapter; the experts of a layer count once.
    pub adapted: Vec<String>,
}

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// The last examination, if the config names a data set for it.
    pub report: Option<EvalReport>,
    /// Folder with the final weights.
    pub folder: PathBuf,
    /// Whether they are an adapter's, to be used with the model that the run began with.
    pub adapter: bool,
}

/// A run, ready to start or to go on.
#[derive(Debug)]
pub struct Session {
    config: RunConfig,
    learned: Learned,
    adapted: Vec<String>,
    /// Whether any adapter leaves inputs out at random.
    drops_out: bool,
    model: Option<Glm4v>,
    optimizer: AdamW,
    schedule: Schedule,
    train: Arc<Dataset>,
    eval: Option<Dataset>,
    sampler: Sampler,
    sampler_state: Option<SamplerState>,
    step: usize,
    learning: usize,
}

const METRICS: &str = "metrics.jsonl";
const FINAL: &str = "final";

/// The model is away only while the optimizer rebuilds it.
const PRESENT: &str = "the model is there between two steps";

impl Session {
    /// Reads data and weights, and claims the run folder.
    ///
    /// With `resume`, the run goes on from its newest checkpoint; without, the run folder must not hold a run. `watch`
    /// hears how much of the weights is there.
    ///
    /// # Errors
    ///
    /// When anything that the config names cannot be used; nothing is written then but the run folder.
    pub fn open(
        config: RunConfig,
        site: &Site,
        precision: Precision,
        resume: bool,
        watch: Watch<'_>,
    ) -> Result<Self, TrainError> {
        let checkpoint = find_checkpoint(&config, resume)?;
        let origin = ModelFolder::open(&config.model.folder)?;
        let processor = Arc::new(Processor::load(&config.model.folder)?);
        let registry = Registry::load(&config.data.folder)?;
        let longest = origin.config().text.max_position_embeddings;
        let open = |name: &str| dataset(&config, &registry, name, &processor, longest);
        let train = Arc::new(open(&config.data.train)?);
        let eval = (!config.data.eval.is_empty()).then(|| open(&config.data.eval)).transpose()?;
        let mut sampler = sampler(&config, train.len())?;
        let settings = AdamWConfig {
            betas: config.optim.betas,
            eps: config.optim.eps,
            weight_decay: config.optim.weight_decay,
        };
        let steps = match config.schedule.steps {
            0 => (config.schedule.epochs * sampler.batches_per_epoch() as f64).ceil() as usize,
            steps => steps,
        };
        let found = sampler.batches_per_epoch();
        if sampler.state().order == Order::Fixed && found < steps {
            return Err(TrainError::OrderEnds { path: config.data.order, found, needed: steps });
        }
        let run = &config.run.folder;
        if resume && run.join(FINAL).exists() && last_step(&run.join(METRICS)) >= steps {
            return Err(TrainError::NoCheckpoint { folder: run.clone(), remains: Remains::Final });
        }
        claim(run)?;

        let start = Start { config: &config, origin: &origin, site: site.clone().autodiff(), precision };
        let (mut step, mut sampler_state) = (0, None);
        if let Some(folder) = &checkpoint {
            let state = Checkpoints::state(folder)?;
            step = state.step;
            sampler_state = state.sampler;
            if let Some(state) = state.sampler {
                sampler.restore(state)?;
            }
        }
        let Started { model, learned, adapted, learning } = match config.lora.is_on() {
            true => start.adapter(checkpoint.as_deref(), watch)?,
            false => start.whole(checkpoint.as_deref(), watch)?,
        };
        if learning == 0 {
            return Err(TrainError::NothingLearns);
        }
        let drops_out = matches!(&learned, Learned::Adapter(config) if config.lora_dropout > 0.0);
        let optimizer = match &checkpoint {
            Some(folder) => AdamW::load(settings, &folder.join(OPTIMIZER), &model)?,
            None => AdamW::new(settings),
        };
        let schedule = Schedule {
            kind: config.schedule.kind,
            lr: config.optim.lr,
            warmup_steps: config.schedule.warmup_steps,
            steps,
        };
        write_file(&config.run.folder.join("config.toml"), config.to_toml().as_bytes())?;
        Ok(Self {
            config,
            learned,
            adapted,
            drops_out,
            model: Some(model),
            optimizer,
            schedule,
            train,
            eval,
            sampler,
            sampler_state,
            step,
            learning,
        })
    }

    fn model(&self) -> &Glm4v {
        self.model.as_ref().expect(PRESENT)
    }

    /// What is going to happen.
    pub fn plan(&self) -> Plan {
        Plan {
            step: self.step,
            steps: self.schedule.steps,
            parameters: self.model().num_params(),
            learning: self.learning,
            train_records: self.train.len(),
            eval_records: self.eval.as_ref().map_or(0, Dataset::len),
            adapted: self.adapted.clone(),
        }
    }

    /// Trains to the end, examines, and writes the final model folder.
    ///
    /// When `stop` turns true the step under way is finished, a checkpoint written, and
    /// [`TrainError::Interrupted`] returned.
    ///
    /// # Errors
    ///
    /// When a record cannot be used, a number is not finite, or nothing can be written.
    pub fn run<A: Answering>(
        mut self,
        answering: &mut A,
        observer: &mut impl Observer,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        observer.started(&self.plan());
        let mut metrics = Metrics::open(&self.config.run.folder.join(METRICS), self.step)?;
        let mut batches = Prefetch::new(self.train.clone(), self.sampler.clone(), self.config.data.workers)?;
        while self.step < self.schedule.steps {
            // A given order may still end early: batches whose records were all dropped make no step.
            let ended = || TrainError::OrderEnds {
                path: self.config.data.order.clone(),
                found: self.step,
                needed: self.schedule.steps,
            };
            let loaded = match batches.next().ok_or_else(ended)? {
                Ok(loaded) => loaded,
                Err(error) => {
                    // A record that cannot be used must not cost what was learned from the others.
                    if self.sampler_state.is_some() {
                        observer.saved(&self.save()?);
                    }
                    return Err(error.into());
                }
            };
            let done = self.learn(loaded, observer)?;
            metrics.write(&done)?;
            observer.stepped(&done);
            let last = self.step == self.schedule.steps;
            let due = |every: usize| every > 0 && self.step.is_multiple_of(every);
            if !stop.load(Ordering::Relaxed) && due(self.config.run.eval_every) && !last {
                self.examine(answering, observer, &mut metrics, stop)?;
            }
            if stop.load(Ordering::Relaxed) {
                return Err(self.interrupt(observer)?);
            }
            if due(self.config.run.save_every) && !last {
                observer.saved(&self.save()?);
            }
        }
        drop(batches);
        let report = self.examine(answering, observer, &mut metrics, stop)?;
        if stop.load(Ordering::Relaxed) {
            return Err(self.interrupt(observer)?);
        }
        let folder = self.finish()?;
        observer.saved(&folder);
        let adapter = matches!(self.learned, Learned::Adapter(_));
        Ok(Outcome { report, folder, adapter })
    }

    /// Saves everything for a later `--resume`.
    fn interrupt(&self, observer: &mut impl Observer) -> Result<TrainError, TrainError> {
        let folder = self.save()?;
        observer.saved(&folder);
        Ok(TrainError::Interrupted { step: self.step, folder })
    }

    /// One step: forward, backward, clip, move.
    fn learn(&mut self, loaded: LoadedBatch, observer: &mut impl Observer) -> Result<StepReport, TrainError> {
        let start = Instant::now();
        if !loaded.dropped.is_empty() {
            observer.dropped(loaded.dropped.len());
        }
        let targets = Targets::of(&loaded.batch);
        if self.drops_out {
            // Every step begins its own random numbers: a run that goes on draws what it would have drawn.
            self.model().device().seed(self.config.run.seed ^ (self.step as u64 + 1).rotate_left(32));
        }
        let loss = balanced_loss(self.model(), &loaded.batch, &targets, self.config.optim.router_aux_loss)?;
        let gradients = NamedGradients::backward(self.model(), &loss);
        // A batch without pictures moves nothing where the vision tower alone learns.
        let norm = gradients.norm().unwrap_or_else(|| Tensor::zeros([1], &loss.device().inner()));
        // One read for both: each makes the device wait.
        let numbers = Tensor::cat(vec![loss.inner(), norm.inner()], 0).cast(DType::F32).try_into_data();
        let numbers = numbers.map_err(ComputeError::from)?;
        let numbers: Vec<f32> = numbers.try_to_vec().map_err(ComputeError::from)?;
        let (loss, grad_norm) = (f64::from(numbers[0]), f64::from(numbers[1]));
        if !loss.is_finite() || !grad_norm.is_finite() {
            let checkpoint = Checkpoints::of(&self.config.run.folder).list()?.pop().map(|(_, path)| path);
            let (step, lr) = (self.step + 1, self.schedule.rate(self.step));
            return Err(TrainError::NotFinite { step, loss, grad_norm, lr, checkpoint });
        }
        let lr = self.schedule.rate(self.step);
        let scale = match self.config.optim.clip_norm {
            0.0 => 1.0,
            most => (most / (grad_norm + 1e-6)).min(1.0), // torch's clip_grad_norm_
        };
        // Taken out, so that old and new weights need not both be whole in memory.
        let model = self.model.take().expect(PRESENT);
        self.model = Some(self.optimizer.step(model, gradients, lr, scale));
        self.step += 1;
        self.sampler_state = Some(loaded.state);
        let tokens = loaded.batch.tokens();
        Ok(StepReport {
            step: self.step,
            epoch: loaded.epochs,
            loss,
            grad_norm,
            lr,
            tokens,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64(),
        })
    }

    /// None without a data set for it, and when `stop` turns true.
    fn examine<A: Answering>(
        &self,
        answering: &mut A,
        observer: &mut impl Observer,
        metrics: &mut Metrics,
        stop: &AtomicBool,
    ) -> Result<Option<EvalReport>, TrainError> {
        let Some(eval) = &self.eval else { return Ok(None) };
        let model = self.model().valid();
        let size = self.config.run.eval_batch_size;
        let progress = |done| observer.examining(done, eval.len());
        let Some(report) = evaluate(&model, eval, size, answering, stop, progress)? else { return Ok(None) };
        let summary = EvalSummary {
            step: self.step,
            eval_loss: report.loss,
            exact_match: report.exact_match(),
            samples: report.examined.len(),
        };
        metrics.write(&summary)?;
        observer.examined(&summary);
        Ok(Some(report))
    }

    fn save(&self) -> Result<PathBuf, WeightsError> {
        let state = TrainerState {
            step: self.step,
            steps: self.schedule.steps,
            sampler: self.sampler_state,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Checkpoints::of(&self.config.run.folder).save(
            self.model(),
            &self.learned,
            &self.optimizer,
            &state,
            self.config.run.keep,
        )
    }

    fn finish(&self) -> Result<PathBuf, WeightsError> {
        let folder = self.config.run.folder.join(FINAL);
        let staged = StagedFolder::new(&folder)?;
        self.learned.save(self.model(), staged.path())?;
        staged.publish()?;
        Ok(folder)
    }
}

/// What the first weights of a run are made from.
struct Start<'a> {
    config: &'a RunConfig,
    origin: &'a ModelFolder,
    site: Site,
    precision: Precision,
}

/// A network that is ready to learn.
struct Started {
    model: Glm4v,
    learned: Learned,
    adapted: Vec<String>,
    learning: usize,
}

impl Start<'_> {
    /// The model's own weights learn: those of the checkpoint, of the folder, or fresh ones.
    fn whole(&self, checkpoint: Option<&Path>, watch: Watch<'_>) -> Result<Started, TrainError> {
        let model = match checkpoint {
            Some(folder) => {
                let other = || TrainError::OtherModel {
                    checkpoint: folder.to_owned(),
                    folder: self.origin.path().to_owned(),
                };
                if !folder.join("config.json").exists() {
                    return Err(other()); // an adapter's
                }
                let saved = ModelFolder::open(folder)?;
                if saved.config() != self.origin.config() {
                    return Err(other());
                }
                saved.load_on(&self.site, self.precision, watch)?
            }
            None => self.base(watch)?,
        };
        let (model, learning) = freeze(model, self.config.model.learn);
        let learned = Learned::Model { origin: self.origin.path().to_owned(), precision: self.precision };
        Ok(Started { model, learned, adapted: Vec::new(), learning })
    }

    /// Adapters learn: those of the checkpoint, of `lora.adapter`, or fresh ones.
    fn adapter(&self, checkpoint: Option<&Path>, watch: Watch<'_>) -> Result<Started, TrainError> {
        let lora = &self.config.lora;
        let given =
            (!lora.adapter.as_os_str().is_empty()).then(|| AdapterFolder::open(&lora.adapter)).transpose()?;
        let config = match &given {
            Some(folder) => AdapterConfig {
                base_model_name_or_path: Some(self.origin.path().to_string_lossy().into_owned()),
                ..folder.config().clone()
            },
            None => lora.to_peft(self.origin.path()),
        };
        // Attached first in any case: this is what finds out whether the targets are there.
        let (model, adapted) = attach(self.base(watch)?, &config, self.config.run.seed, self.precision)?;
        let saved = checkpoint.map(AdapterFolder::open).transpose()?;
        let model = match saved.or(given) {
            Some(folder) => folder.apply(model, self.precision)?,
            None => model,
        };
        let (model, learning) = freeze_all_but(model, &config);
        Ok(Started { model, learned: Learned::Adapter(Box::new(config)), adapted, learning })
    }

    /// The folder's weights, or fresh ones.
    fn base(&self, watch: Watch<'_>) -> Result<Glm4v, TrainError> {
        Ok(match self.config.model.init {
            Init::Weights => self.origin.load_on(&self.site, self.precision, watch)?,
            Init::Fresh => {
                let network = self.site.build(self.origin.config()).map_err(WeightsError::from)?;
                initialize(network, self.config.run.seed, self.precision.dtype())
            }
        })
    }
}

/// The newest checkpoint if the run is to go on; an error if a run would be overwritten.
fn find_checkpoint(config: &RunConfig, resume: bool) -> Result<Option<PathBuf>, TrainError> {
    let folder = config.run.folder.clone();
    let newest = Checkpoints::of(&folder).list()?.pop().map(|(_, path)| path);
    let holds_steps = fs::metadata(folder.join(METRICS)).is_ok_and(|file| file.len() > 0);
    if resume && newest.is_some() {
        return Ok(newest); // a finished run may go on to more steps
    }
    let remains = match newest {
        _ if folder.join(FINAL).exists() => Remains::Final,
        Some(_) => Remains::Checkpoints,
        None if holds_steps => Remains::Metrics,
        None => Remains::Nothing,
    };
    match (resume, remains) {
        (true, remains) => Err(TrainError::NoCheckpoint { folder, remains }),
        (false, Remains::Nothing) => Ok(None),
        (false, remains) => Err(TrainError::RunExists { folder, remains }),
    }
}

/// Makes the run folder and shows that it can be written to, before hours are spent.
fn claim(folder: &Path) -> Result<(), TrainError> {
    fs::create_dir_all(folder)
        .map_err(|source| TrainError::RunFolder { folder: folder.to_owned(), source })?;
    let probe = folder.join(format!(".{}.probe", std::process::id()));
    fs::write(&probe, "")
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|source| TrainError::RunFolder { folder: folder.to_owned(), source })?;
    remove_leftovers(folder);
    remove_leftovers(&folder.join(CHECKPOINTS));
    Ok(())
}

fn dataset(
    config: &RunConfig,
    registry: &Registry,
    name: &str,
    processor: &Arc<Processor>,
    longest: usize,
) -> Result<Dataset, TrainError> {
    let media = &config.data.media_folder;
    let media = (!media.as_os_str().is_empty()).then_some(media.as_path());
    let options = DatasetOptions {
        max_length: Some(match config.data.max_length {
            0 => longest,
            most => most.min(longest),
        }),
        overlong: match config.data.overlong {
            OverlongChoice::Error => Overlong::Error,
            OverlongChoice::Drop => Overlong::Drop,
        },
        on_bad: match config.data.on_bad {
            OnBadChoice::Stop => OnBad::Stop,
            OnBadChoice::Skip => OnBad::Skip,
        },
        ..DatasetOptions::default()
    };
    Ok(Dataset::open(&registry.find(name)?, media, processor.clone(), options)?)
}

fn sampler(config: &RunConfig, records: usize) -> Result<Sampler, TrainError> {
    let path = &config.data.order;
    if path.as_os_str().is_empty() {
        return Ok(Sampler::shuffled(records, config.data.batch_size, config.run.seed)?);
    }
    let text = fs::read_to_string(path).map_err(|source| WeightsError::Io {
        path: path.clone(),
        action: "read",
        source,
    })?;
    let batches =
        serde_json::from_str(&text).map_err(|source| TrainError::State { path: path.clone(), source })?;
    Sampler::fixed(batches, records).map_err(|source| TrainError::Order { path: path.clone(), source })
}
