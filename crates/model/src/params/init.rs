//! Random weights.
//!
//! Matrices and tables are normal with the config's `initializer_range`, norms one, biases zero, the padding token's
//! vector zero (transformers, `PreTrainedModel._init_weights`). Values depend on the seed and the parameter's name
//! alone: the same on every backend, whatever the number of threads.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_inputs::SplitMix64;

use crate::config::Glm4vConfig;
use crate::glm4v::Glm4v;
use crate::params::named::{NamedMapper, map_named};
use crate::params::param_name::{ModelPart, ParamName};

/// Fills every parameter with random values of `dtype`; a router's correction stays f32.
pub fn initialize(model: Glm4v, seed: u64, dtype: DType) -> Glm4v {
    let values = ParamInit::new(&model.config, seed);
    map_named(model, &mut Filler { values, dtype, tensor: String::new(), rows: 0 })
}

/// The initial values of parameters, any part of one at a time.
#[derive(Debug)]
pub struct ParamInit {
    seed: u64,
    text_range: f64,
    vision_range: f64,
    pad: Option<u32>,
}

impl ParamInit {
    /// Values for the network of a config.
    pub fn new(config: &Glm4vConfig, seed: u64) -> Self {
        Self {
            seed,
            text_range: config.text.initializer_range,
            vision_range: config.vision.initializer_range,
            pad: config.text.pad_token_id,
        }
    }

    /// Fills `values` with those of the parameter `name` from value `first` on; its rows have `row_len` values.
    ///
    /// Shards have the values of the tensor that they are shards of: `name` is then that tensor's.
    pub fn fill(&self, name: &str, row_len: usize, first: usize, values: &mut [f32]) {
        let path = ParamName(name);
        if path.is_norm_weight() {
            values.fill(1.0);
        } else if path.is_bias() || name.ends_with(".lora.b") {
            values.fill(0.0);
        } else {
            let range = if path.is_visual() { self.vision_range } else { self.text_range };
            Normal::new(self.seed, name).fill(first, values, range);
        }
        if let (ModelPart::Embeddings, Some(pad)) = (path.part(), self.pad) {
            // The token's row, as far as it is among these.
            let row = pad as usize * row_len;
            let place = |value: usize| value.saturating_sub(first).min(values.len());
            let (start, end) = (place(row), place(row + row_len));
            values[start..end].fill(0.0);
        }
    }
}

/// Fills every adapter with the values that training starts from: `a` uniform within `1 / √I`, as PEFT has it
/// (`kaiming_uniform_(a=√5)`), `b` zero, so that a new adapter changes nothing.
pub fn initialize_lora(model: Glm4v, seed: u64, dtype: DType) -> Glm4v {
    map_named(model, &mut LoraFiller { seed, dtype })
}

struct LoraFiller {
    seed: u64,
    dtype: DType,
}

impl NamedMapper for LoraFiller {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let mut values = vec![0.0f32; shape.num_elements()];
        if name.ends_with(".lora.a") {
            let bound = 1.0 / (shape[1] as f64).sqrt();
            let mut random = Normal::new(self.seed, name);
            values.fill_with(|| ((2.0 * random.uniform() - 1.0) * bound) as f32);
        } else if !name.ends_with(".lora.b") {
            return param;
        }
        let value =
            Tensor::<D>::from_data(TensorData::new(values, shape), (&param.lazy_device(), DType::F32));
        let id = param.id;
        param.transform_for_load(value.cast(self.dtype), id)
    }
}

struct Filler {
    values: ParamInit,
    dtype: DType,
    /// The tensor whose shards are being filled, and its rows so far.
    tensor: String,
    rows: usize,
}

impl NamedMapper for Filler {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let row_len: usize = shape.iter().skip(1).product();
        // Shards come one after another, as `lm_head.weight.0` and so on.
        let (tensor, shard) = ParamName(name).shard();
        if shard.is_none() || self.tensor != tensor {
            self.tensor = tensor.to_owned();
            self.rows = 0;
        }
        let mut values = vec![0.0f32; shape.num_elements()];
        self.values.fill(tensor, row_len, self.rows * row_len, &mut values);
        self.rows += shape.first().copied().unwrap_or(1);
        let dtype = ParamName(name).dtype(self.dtype);
        // Rounded on the host, and so alike on every backend and in files.
        let data = TensorData::new(values, shape).convert_dtype(dtype);
        let id = param.id;
        let value = Tensor::<D>::from_data(data, (&param.lazy_device(), dtype));
        param.transform_for_load(value, id)
    }
}

/// Normal values from SplitMix64 and the Box-Muller transform.
struct Normal {
    random: SplitMix64,
}

impl Normal {
    /// Starts a stream of its own for each name (FNV-1a).
    fn new(seed: u64, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self { random: SplitMix64::new(hash ^ seed.wrapping_mul(SplitMix64::INCREMENT)) }
    }

    /// A number in (0, 1], whose logarithm is finite.
    fn uniform(&mut self) -> f64 {
        ((self.random.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// The stream's values from `first` on, without making those before.
    fn fill(mut self, first: usize, values: &mut [f32], deviation: f64) {
        // Two values a pair, two numbers a pair.
        self.random.skip((first / 2 * 2) as u64);
        let (odd, even) = values.split_at_mut((first % 2).min(values.len()));
        for value in odd {
            *value = self.pair(deviation)[1];
        }
        for values in even.chunks_mut(2) {
            let pair = self.pair(deviation);
            values.copy_from_slice(&pair[..values.len()]);
        }
    }

    fn pair(&mut self, deviation: f64) -> [f32; 2] {
        let radius = deviation * (-2.0 * self.uniform().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::DeviceSpec;

    fn table(seed: u64) -> Vec<f32> {
        let model = initialize(Glm4vConfig::tiny().init(&Device::flex()), seed, DType::F32);
        let every: Vec<u32> = (0..50).collect();
        model.model.language_model.embed_tokens.weight.embedding(&every).into_data().try_to_vec().unwrap()
    }

    #[test]
    fn the_seed_alone_decides() {
        assert_eq!(table(3), table(3));
        assert_ne!(table(3), table(4));
    }

    #[test]
    fn any_part_of_a_parameter_has_the_values_that_the_whole_has() {
        let values = ParamInit::new(&Glm4vConfig::tiny(), 3);
        let name = "model.language_model.embed_tokens.weight";
        let whole = table(3);
        // From before there were parts: a seed keeps its meaning.
        assert_eq!(whole[48..52], [-0.005_722_139, 0.049_376_51, -0.016_482_435, 0.032_475_002]);

        for (first, count) in [(0, 2400), (0, 7), (7, 9), (13, 1), (40, 20), (47, 3), (2399, 1), (50, 0)] {
            let mut part = vec![f32::NAN; count];
            values.fill(name, 48, first, &mut part);
            assert_eq!(part, whole[first..first + count], "{count} from {first} on");
        }
    }

    #[test]
    fn shards_have_the_values_of_the_tensor_that_they_are_shards_of() {
        use crate::text::FeedForward;
        let gate_up = |device_spec: &DeviceSpec| {
            let model = initialize(Glm4vConfig::tiny().init_on(device_spec).unwrap(), 3, DType::F32);
            let FeedForward::GateUp(mlp) = &model.model.language_model.layers[1].mlp else { unreachable!() };
            let weight = &mlp.gate_up_proj.weight;
            let sharded = matches!(weight, crate::WeightMatrix::RowSharded(_));
            (sharded, weight.embedding(&(0..160).collect::<Vec<_>>()).into_data())
        };
        let device = Device::flex();

        let sharded = gate_up(&DeviceSpec::bounded(&device, 25_000, DType::F32)); // of 30,720 bytes

        let dense = gate_up(&DeviceSpec::unbounded(&device));
        assert_eq!((sharded.0, dense.0), (true, false));
        assert_eq!(sharded.1, dense.1);
    }

    #[test]
    fn values_are_normal_with_the_config_s_deviation() {
        let values = &table(0)[48..]; // without the padding token's row
        let count = values.len() as f32;
        let mean = values.iter().sum::<f32>() / count;
        let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count).sqrt();
        let beyond_two = values.iter().filter(|x| x.abs() > 0.04).count() as f32 / count;

        assert!(mean.abs() < 0.002 && (deviation - 0.02).abs() < 0.001, "{mean} {deviation}");
        assert!((0.03..0.06).contains(&beyond_two), "{beyond_two}"); // 4.6 % of a normal distribution
    }

    #[test]
    fn norms_are_one_biases_and_the_padding_token_zero() {
        let model = initialize(Glm4vConfig::tiny().init(&Device::flex()), 0, DType::F32).model;
        let all = |values: Tensor<1>, wanted: f32| {
            values.into_data().try_to_vec::<f32>().unwrap().iter().all(|value| *value == wanted)
        };

        assert!(all(model.language_model.norm.weight.val(), 1.0));
        assert!(all(model.visual.blocks[0].norm2.weight.val(), 1.0));
        assert!(all(model.visual.merger.post_projection_norm.weight.val(), 1.0));
        assert!(all(model.visual.merger.post_projection_norm.bias.val(), 0.0));
        assert!(all(model.language_model.embed_tokens.weight.embedding(&[0]).reshape([48]), 0.0));
    }
}
