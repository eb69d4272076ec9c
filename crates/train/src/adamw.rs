//! AdamW with decoupled weight decay.
//!
//! Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); steps and rounding as in
//! `torch.optim.AdamW`.
//!
//! Our own instead of Burn's: its state is kept in the type of the weights, so that bf16 training would lose small
//! updates; its record is keyed by ids that do not outlive the process, and is loaded onto the default device.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_kernels::{AdamWState, AdamWUpdate, adamw};
use glm4v_model::{NamedMapper, ParamName, map_named, param_infos};
use glm4v_weights::{TensorFile, WeightsError, write_tensors};

use crate::gradients::NamedGradients;

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Exponential decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The optimizer and its state, by parameter name.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

/// State of one parameter, flattened, in f32.
#[derive(Debug, Clone)]
struct Moments {
    /// Updates so far, which the correction of the moments' bias is made of. Each parameter has its own count: the vision tower has
    /// no gradient in a batch of text alone.
    steps: usize,
    exp_avg: Tensor<1>,
    exp_avg_sq: Tensor<1>,
    /// The weight itself, if the model keeps it in fewer than 32 bits.
    master: Option<Tensor<1>>,
}

impl AdamW {
    /// An optimizer without state.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, moments: BTreeMap::new() }
    }

    /// Updates every parameter that has a gradient. Gradients are multiplied by `scale` first, which is how they are
    /// clipped.
    ///
    /// An expert that no token chose has no gradient, and yet moves with those of its layer that have one: transformers keeps
    /// the experts of a layer in one tensor, whose gradient is zero there, so that momentum and decay go on.
    pub fn step<M: Module>(&mut self, model: M, gradients: NamedGradients, lr: f64, scale: f64) -> M {
        let expert_groups = gradients.names().filter_map(expert_group).collect();
        let mut update = Update { optimizer: self, gradients, expert_groups, lr, scale };
        map_named(model, &mut update)
    }

    /// Writes the state to a safetensors file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), WeightsError> {
        let mut tensors = Vec::new();
        for (name, moments) in &self.moments {
            tensors.push((format!("exp_avg.{name}"), moments.exp_avg.to_data()));
            tensors.push((format!("exp_avg_sq.{name}"), moments.exp_avg_sq.to_data()));
            if let Some(master) = &moments.master {
                tensors.push((format!("master.{name}"), master.to_data()));
            }
        }
        let steps: BTreeMap<&str, usize> =
            self.moments.iter().map(|(name, moments)| (name.as_str(), moments.steps)).collect();
        let steps = serde_json::to_string(&steps).expect("names and numbers are json");
        write_tensors(path, tensors, &[(STEPS, steps)])
    }

    /// Reads the state that [`save`](Self::save) wrote for `model`, onto its device.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or does not hold the state of this optimizer.
    pub fn load(config: AdamWConfig, path: &Path, model: &impl Module) -> Result<Self, WeightsError> {
        let file = TensorFile::open(path)?;
        let malformed = || WeightsError::NotOptimizer { path: path.to_owned() };
        let steps = file.metadata().get(STEPS).and_then(|steps| serde_json::from_str(steps).ok());
        let steps: BTreeMap<String, usize> = steps.ok_or_else(malformed)?;
        check_sizes(&file, path, model)?;
        let device = &model.devices().into_iter().next().unwrap_or_default().inner();
        let names = file.names();
        let mut moments = BTreeMap::new();
        for name in names.iter().filter_map(|name| name.strip_prefix("exp_avg.")) {
            let master = format!("master.{name}");
            let state = Moments {
                steps: steps.get(name).copied().filter(|steps| *steps > 0).ok_or_else(malformed)?,
                exp_avg: read_flat(&file, &format!("exp_avg.{name}"), device)?,
                exp_avg_sq: read_flat(&file, &format!("exp_avg_sq.{name}"), device)?,
                master: file
                    .shape(&master)
                    .is_some()
                    .then(|| read_flat(&file, &master, device))
                    .transpose()?,
            };
            moments.insert(name.to_owned(), state);
        }
        Ok(Self { config, moments })
    }
}

/// A tensor of the file, flattened, in f32.
fn read_flat(file: &TensorFile, name: &str, device: &Device) -> Result<Tensor<1>, WeightsError> {
    let data = file.float(name, DType::F32)?;
    let size = data.num_elements();
    let data = TensorData::from_bytes(data.into_bytes(), [size], DType::F32);
    Ok(Tensor::from_data(data, (device, DType::F32)))
}

/// Checks that the state of each parameter has the parameter's size.
///
/// A parameter without state is allowed: it has had no gradient yet.
fn check_sizes(file: &TensorFile, path: &Path, model: &impl Module) -> Result<(), WeightsError> {
    let mut misshapen = Vec::new();
    for param in param_infos(model) {
        let needed = vec![param.shape.num_elements()];
        for part in ["exp_avg", "exp_avg_sq", "master"] {
            let name = format!("{part}.{}", param.name);
            if let Some(found) = file.shape(&name).filter(|found| *found != needed) {
                misshapen.push((name, found.to_vec(), needed.clone()));
            }
        }
    }
    if misshapen.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Mismatch { dir: path.to_owned(), missing: Vec::new(), misshapen })
}

/// Metadata key of the update counts: a JSON object by parameter name.
const STEPS: &str = "steps";

/// Layer and parameter of an expert, which all experts of the layer share; none for other parameters.
fn expert_group(name: &str) -> Option<(String, String)> {
    let expert = ParamName(name).expert()?;
    Some((expert.experts.to_owned(), expert.parameter.to_owned()))
}

struct Update<'a> {
    optimizer: &'a mut AdamW,
    gradients: NamedGradients,
    /// Groups in which at least one expert has a gradient.
    expert_groups: BTreeSet<(String, String)>,
    lr: f64,
    scale: f64,
}

impl Update<'_> {
    /// Update number `step` of a parameter.
    fn update(&self, step: usize) -> AdamWUpdate {
        let AdamWConfig { betas, eps, weight_decay } = self.optimizer.config;
        AdamWUpdate { lr: self.lr, betas, eps, weight_decay, step, grad_scale: self.scale }
    }
}

impl NamedMapper for Update<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.gradients.remove(name);
        let is_in_active_group =
            || expert_group(name).is_some_and(|parameter| self.expert_groups.contains(&parameter));
        if gradient.is_none() && !is_in_active_group() {
            return param;
        }
        let (id, value, mapper) = param.consume();
        let (shape, dtype) = (value.dims(), value.dtype());
        let size = value.shape().num_elements();
        let value = value.inner().reshape([size]);
        let mut moments = self.optimizer.moments.remove(name).unwrap_or_else(|| Moments {
            steps: 0,
            exp_avg: Tensor::zeros([size], (&value.device(), DType::F32)),
            exp_avg_sq: Tensor::zeros([size], (&value.device(), DType::F32)),
            // bf16 has 8 bits of mantissa: an update below 1/256 of the weight would be lost without a master.
            master: (dtype != DType::F32).then(|| value.clone().cast(DType::F32)),
        });
        moments.steps += 1;
        let state = AdamWState {
            // Taken out of the moments and of the model, so that the update can change it where it lies.
            param: moments.master.take().unwrap_or(value),
            exp_avg: moments.exp_avg,
            exp_avg_sq: moments.exp_avg_sq,
        };
        let state =
            adamw(state, gradient.map(|gradient| gradient.cast(DType::F32)), &self.update(moments.steps));
        let moments = Moments {
            steps: moments.steps,
            exp_avg: state.exp_avg,
            exp_avg_sq: state.exp_avg_sq,
            master: (dtype != DType::F32).then(|| state.param.clone()),
        };
        self.optimizer.moments.insert(name.to_owned(), moments);
        let weight = state.param.cast(dtype).reshape(shape);
        Param::from_mapped_value(id, Tensor::from_inner(weight).require_grad(), mapper)
    }
}
