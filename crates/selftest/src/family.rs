//! The tiny networks of this crate, their inputs, and what transformers computes with them.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::{
    Batch, DeviceSpec, Glm4v, Glm4vConfig, Grid, Modality, MultimodalInputs, NamedMapper, PaddingSide,
    ParamName, Patches, Precision, Sample, map_named,
};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;

use crate::comparison::{Deviation, largest_difference, relative_l2};
use crate::error::CheckError;
use crate::tolerance::{ACTIVATIONS, GRADIENTS, LOGITS, LOSS, TRAINING, tolerance};
use crate::values::{values, weight};

/// One member of the family of models.
#[derive(Debug, Clone)]
pub(crate) struct Family {
    /// "glm4v", "glm4v_moe" or "glm_ocr".
    pub(crate) name: &'static str,
    pub(crate) config: Glm4vConfig,
    pub(crate) meta: Meta,
    /// Results of transformers in f32, by part and name, as `gradients.lm_head.weight`; some values of each.
    pub(crate) expected: BTreeMap<String, Vec<f32>>,
}

/// What is not a tensor.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Meta {
    config: Value,
    seed: u64,
    rows: Vec<Row>,
    image_grids: Vec<[usize; 3]>,
    video_rows: Vec<Row>,
    video_grids: Vec<[usize; 3]>,
    /// Tokens of greedy decoding, for each row.
    pub(crate) generated: Vec<Vec<u32>>,
    pub(crate) adapter: Adapter,
    pub(crate) optimizer: Optimizer,
    /// Distance between two stored values of a tensor.
    strides: BTreeMap<String, usize>,
    /// By type and by names as in `expected`: how far transformers in this type is from transformers in f32.
    deviations: BTreeMap<String, BTreeMap<String, f64>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Row {
    ids: Vec<u32>,
    types: Vec<u8>,
    labels_from: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Adapter {
    pub(crate) r: usize,
    pub(crate) lora_alpha: f64,
    pub(crate) target_modules: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Optimizer {
    pub(crate) steps: usize,
    pub(crate) full_lr: f64,
    pub(crate) lora_lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) max_grad_norm: f64,
}

/// Name, config and numbers, tensors.
type Data = (&'static str, &'static str, &'static [u8]);

const DATA: [Data; 3] = [
    ("glm4v", include_str!("../data/glm4v.json"), include_bytes!("../data/glm4v.safetensors")),
    ("glm4v_moe", include_str!("../data/glm4v_moe.json"), include_bytes!("../data/glm4v_moe.safetensors")),
    ("glm_ocr", include_str!("../data/glm_ocr.json"), include_bytes!("../data/glm_ocr.safetensors")),
];

/// The data are part of the binary, and every test reads all of them.
const OURS: &str = "the data of this crate are whole";

impl Family {
    /// All families.
    pub(crate) fn all() -> Result<Vec<Self>, CheckError> {
        DATA.into_iter().map(Self::read).collect()
    }

    fn read((name, meta, tensors): Data) -> Result<Self, CheckError> {
        let meta: Meta = serde_json::from_str(meta).expect(OURS);
        let config = Glm4vConfig::from_json(&meta.config.to_string())
            .map_err(|source| CheckError::Config { family: name, source })?;
        let tensors = SafeTensors::deserialize(tensors).expect(OURS);
        let floats =
            |bytes: &[u8]| bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        let expected =
            tensors.iter().map(|(name, tensor)| (name.to_owned(), floats(tensor.data()))).collect();
        Ok(Self { name, config, meta, expected })
    }

    /// The network with its weights.
    pub(crate) fn model(&self, device_spec: &DeviceSpec, precision: Precision) -> Result<Glm4v, CheckError> {
        Ok(self.fill(self.config.init_on(device_spec)?, precision, |_| true))
    }

    /// As [`model`](Self::model), with gradients.
    pub(crate) fn trainable(
        &self,
        device_spec: &DeviceSpec,
        precision: Precision,
    ) -> Result<Glm4v, CheckError> {
        self.model(&device_spec.clone().autodiff(), precision)
    }

    /// Sets the parameters that `of` selects to the values that their names stand for.
    pub(crate) fn fill(&self, model: Glm4v, precision: Precision, of: impl Fn(&str) -> bool) -> Glm4v {
        let dtype = precision.dtype();
        map_named(model, &mut Filler { seed: self.meta.seed, dtype, of, tensor: String::new(), rows: 0 })
    }

    /// Two prompts with an image each.
    pub(crate) fn batch(&self, side: PaddingSide) -> Batch {
        let rows = self.meta.rows.iter().enumerate();
        let rows: Vec<Sample> = rows
            .map(|(index, row)| {
                self.sample(row, Modality::Image, index, &self.meta.image_grids[index..=index])
            })
            .collect();
        self.collate(&rows, side)
    }

    /// A prompt with a video.
    pub(crate) fn video(&self) -> Batch {
        let grids = &self.meta.video_grids;
        let rows = self.meta.video_rows.iter().map(|row| self.sample(row, Modality::Video, 0, grids));
        self.collate(&rows.collect::<Vec<_>>(), PaddingSide::Left)
    }

    fn collate(&self, rows: &[Sample], side: PaddingSide) -> Batch {
        Batch::collate(rows, self.config.text.pad_token_id.unwrap_or_default(), side)
    }

    fn sample(&self, row: &Row, modality: Modality, first: usize, grids: &[[usize; 3]]) -> Sample {
        let vision = &self.config.vision;
        let patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size.pow(2);
        let grids: Vec<Grid> = grids.iter().map(|grid| Grid::from(*grid)).collect();
        let pixels = grids.iter().enumerate().flat_map(|(index, grid)| {
            values(&format!("pixels.{}", first + index), self.meta.seed, grid.patches() * patch, 0.0, 1.0)
        });
        let patches = Patches { values: pixels.collect(), grids };
        Sample {
            input_ids: row.ids.clone(),
            modalities: row.types.iter().map(|kind| Modality::from_token_type_id(*kind)).collect(),
            loss_mask: (0..row.ids.len()).map(|at| at >= row.labels_from).collect(),
            loss_weights: None,
            media: MultimodalInputs::from_iter([(modality, patches)]),
        }
    }

    /// Names of the tensors of a part, without it.
    pub(crate) fn names(&self, part: &str) -> impl Iterator<Item = &str> {
        let rest = move |name: &'_ str| name.strip_prefix(part)?.strip_prefix('.').map(str::len);
        self.expected.keys().filter_map(move |name| rest(name).map(|length| &name[name.len() - length..]))
    }

    /// The deviation of a tensor from transformers, of which `found` has all values.
    pub(crate) fn deviation(&self, part: &str, name: &str, found: &[f32], precision: Precision) -> Deviation {
        let key = format!("{part}.{name}");
        let found: Vec<f32> = found.iter().step_by(self.stride(&key)).copied().collect();
        let missing = Vec::new();
        let expected = self.expected.get(&key).unwrap_or(&missing);
        let (deviation, f32_tolerance) = match name {
            "logits" => (largest_difference(&found, expected), LOGITS),
            "loss" => (largest_difference(&found, expected), LOSS),
            "losses" => (largest_difference(&found, expected), TRAINING),
            _ if part.ends_with("gradients") => (relative_l2(&found, expected), GRADIENTS),
            _ => (relative_l2(&found, expected), ACTIVATIONS),
        };
        let noise = self.noise(precision, &key);
        Deviation {
            tensor: name.to_owned(),
            deviation,
            tolerance: tolerance(precision, f32_tolerance, noise),
        }
    }

    /// Distance between two stored values of a tensor.
    pub(crate) fn stride(&self, key: &str) -> usize {
        self.meta.strides.get(key).copied().unwrap_or(1)
    }

    /// Inputs drawn from a name.
    pub(crate) fn values(&self, name: &str, count: usize, center: f64, deviation: f64) -> Vec<f32> {
        values(name, self.meta.seed, count, center, deviation)
    }

    /// How far transformers in a type is from transformers in f32.
    pub(crate) fn noise(&self, precision: Precision, key: &str) -> f64 {
        let of_type = self.meta.deviations.get(&precision.to_string());
        of_type.and_then(|noise| noise.get(key)).copied().unwrap_or(0.0)
    }
}

struct Filler<F> {
    seed: u64,
    dtype: DType,
    of: F,
    /// The tensor whose row shards are being filled, and its rows so far.
    tensor: String,
    rows: usize,
}

impl<F: Fn(&str) -> bool> NamedMapper for Filler<F> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !(self.of)(name) {
            return param;
        }
        let shape = param.lazy_shape().to_vec();
        let (tensor, shard) = ParamName(name).shard();
        if shard.is_none() || self.tensor != tensor {
            (self.tensor, self.rows) = (tensor.to_owned(), 0);
        }
        let row = shape.iter().skip(1).product::<usize>();
        let upto: Vec<usize> = [&[self.rows + shape[0]], &shape[1..]].concat();
        let values = weight(tensor, self.seed, &upto).split_off(self.rows * row);
        self.rows += shape[0];
        let dtype = if ParamName(name).is_e_score_correction_bias() { DType::F32 } else { self.dtype };
        // Rounded on the host: bf16 numbers stay what they are.
        let data = TensorData::new(values, shape).convert_dtype(dtype);
        let id = param.id;
        let value = Tensor::<D>::from_data(data, (&param.lazy_device(), dtype));
        param.transform_for_load(value, id)
    }
}
