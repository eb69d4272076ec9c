//! AdamW with decoupled weight decay.
//!
//! Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); steps and rounding as in
//! `torch.optim.AdamW`.
//!
//! Our own instead of Burn's: its state is kept in the type of the weights, so that bf16 training would lose small
//! updates; its record is keyed by ids that do not outlive the process, and is loaded onto the default device.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::{Glm4v, NamedMapper, NamedVisitor, map_named, visit_named};
use glm4v_weights::{TensorFile, WeightsError, write_tensors};

use crate::gradients::NamedGradients;

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight, times the rate, that is taken off at every step.
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
    first: Tensor<1>,
    second: Tensor<1>,
    /// The weight itself, if the model keeps it in fewer than 32 bits.
    master: Option<Tensor<1>>,
}

impl AdamW {
    /// A fresh optimizer.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, moments: BTreeMap::new() }
    }

    /// Moves every parameter that has a gradient. Gradients are multiplied by `scale` first, which is how they are
    /// clipped.
    ///
    /// An expert that no token chose has no gradient, and yet moves with those of its layer that have one: transformers keeps
    /// the experts of a layer in one tensor, whose gradient is zero there, so that momentum and decay go on.
    pub fn step(&mut self, model: Glm4v, gradients: NamedGradients, lr: f64, scale: f64) -> Glm4v {
        let layers = gradients.names().filter_map(of_all_experts).collect();
        let mut update = Update { optimizer: self, gradients, layers, lr, scale };
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
            tensors.push((format!("exp_avg.{name}"), moments.first.to_data()));
            tensors.push((format!("exp_avg_sq.{name}"), moments.second.to_data()));
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
    /// When the file cannot be read or is not such a state.
    pub fn load(config: AdamWConfig, path: &Path, model: &Glm4v) -> Result<Self, WeightsError> {
        let file = TensorFile::open(path)?;
        let not_ours = || WeightsError::NotOptimizer { path: path.to_owned() };
        let steps = file.metadata().get(STEPS).and_then(|steps| serde_json::from_str(steps).ok());
        let steps: BTreeMap<String, usize> = steps.ok_or_else(not_ours)?;
        check_sizes(&file, path, model)?;
        let device = &model.device().inner();
        let read = |name: String| -> Result<Tensor<1>, WeightsError> {
            let data = file.float(&name, DType::F32)?;
            let size = data.num_elements();
            Ok(Tensor::from_data(
                TensorData::from_bytes(data.into_bytes(), [size], DType::F32),
                (device, DType::F32),
            ))
        };
        let names = file.names();
        let mut moments = BTreeMap::new();
        for name in names.iter().filter_map(|name| name.strip_prefix("exp_avg.")) {
            let master = format!("master.{name}");
            let state = Moments {
                steps: steps.get(name).copied().filter(|steps| *steps > 0).ok_or_else(not_ours)?,
                first: read(format!("exp_avg.{name}"))?,
                second: read(format!("exp_avg_sq.{name}"))?,
                master: file.shape(&master).is_some().then(|| read(master)).transpose()?,
            };
            moments.insert(name.to_owned(), state);
        }
        Ok(Self { config, moments })
    }
}

/// Makes sure that what a file holds of each parameter is as large as the parameter.
///
/// A parameter without state is no fault: one that nothing reached yet has none.
fn check_sizes(file: &TensorFile, path: &Path, model: &Glm4v) -> Result<(), WeightsError> {
    struct Check<'a> {
        file: &'a TensorFile,
        misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    }
    impl NamedVisitor for Check<'_> {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            let needed = vec![param.lazy_shape().num_elements()];
            for part in ["exp_avg", "exp_avg_sq", "master"] {
                let name = format!("{part}.{name}");
                if let Some(found) = self.file.shape(&name).filter(|found| *found != needed) {
                    self.misshapen.push((name, found.to_vec(), needed.clone()));
                }
            }
        }
    }
    let mut check = Check { file, misshapen: Vec::new() };
    visit_named(model, &mut check);
    if check.misshapen.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Mismatch { folder: path.to_owned(), missing: Vec::new(), misshapen: check.misshapen })
}

/// The key of the metadata that counts each parameter's updates, as json.
const STEPS: &str = "steps";

/// The name of an expert's parameter with the number of the expert taken out.
fn of_all_experts(name: &str) -> Option<(String, String)> {
    let (layer, expert) = name.split_once(".mlp.experts.")?;
    let (_, parameter) = expert.split_once('.')?;
    Some((layer.to_owned(), parameter.to_owned()))
}

struct Update<'a> {
    optimizer: &'a mut AdamW,
    gradients: NamedGradients,
    /// Parameters of experts of which one has a gradient at least.
    layers: BTreeSet<(String, String)>,
    lr: f64,
    scale: f64,
}

impl NamedMapper for Update<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.gradients.remove(name);
        let idle = || of_all_experts(name).is_some_and(|parameter| self.layers.contains(&parameter));
        if gradient.is_none() && !idle() {
            return param;
        }
        let (id, value, mapper) = param.consume();
        let (shape, dtype) = (value.dims(), value.dtype());
        let size = value.shape().num_elements();
        let value = value.inner().reshape([size]);
        let AdamWConfig { betas: [beta1, beta2], eps, weight_decay } = self.optimizer.config;

        let mut state = self.optimizer.moments.remove(name).unwrap_or_else(|| Moments {
            steps: 0,
            first: Tensor::zeros([size], (&value.device(), DType::F32)),
            second: Tensor::zeros([size], (&value.device(), DType::F32)),
            master: (dtype != DType::F32).then(|| value.clone().cast(DType::F32)),
        });
        state.steps += 1;
        state.first = state.first * beta1;
        state.second = state.second * beta2;
        if let Some(gradient) = gradient {
            let gradient = gradient.cast(DType::F32);
            let gradient = if self.scale == 1.0 { gradient } else { gradient * self.scale };
            state.first = state.first + gradient.clone() * (1.0 - beta1);
            state.second = state.second + gradient.clone() * gradient * (1.0 - beta2);
        }
        let [left1, left2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(state.steps as f64));
        let root = state.second.clone().sqrt() * (1.0 / left2.sqrt()) + eps;
        let change = state.first.clone() / root * (self.lr / left1);
        let weight = state.master.unwrap_or_else(|| value.cast(DType::F32)) * (1.0 - self.lr * weight_decay);
        let weight = weight - change;
        state.master = (dtype != DType::F32).then(|| weight.clone());
        self.optimizer.moments.insert(name.to_owned(), state);
        let weight = weight.cast(dtype).reshape(shape);
        Param::from_mapped_value(id, Tensor::from_inner(weight).require_grad(), mapper)
    }
}
