//! Fresh weights.
//!
//! Matrices and tables are normal with the config's `initializer_range`, norms one, biases zero, the padding token's
//! vector zero (transformers, `PreTrainedModel._init_weights`). Values depend on the seed and the parameter's name
//! alone: the same on every backend, whatever the number of threads.

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use crate::glm4v::Glm4v;

/// Fills every parameter with fresh values of `dtype`.
pub fn initialize(model: Glm4v, seed: u64, dtype: DType) -> Glm4v {
    let config = model.config.clone();
    let mut filler = Filler {
        path: Vec::new(),
        seed,
        dtype,
        text_range: config.text.initializer_range,
        vision_range: config.vision.initializer_range,
        pad: config.text.pad_token_id,
    };
    model.map(&mut filler)
}

struct Filler {
    path: Vec<String>,
    seed: u64,
    dtype: DType,
    text_range: f64,
    vision_range: f64,
    pad: Option<u32>,
}

impl ModuleMapper for Filler {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let shape = param.lazy_shape();
        let mut values = vec![0.0f32; shape.num_elements()];
        if name.ends_with("norm.weight") || name.ends_with("norm1.weight") || name.ends_with("norm2.weight") {
            values.fill(1.0);
        } else if !name.ends_with("bias") {
            let range = if name.starts_with("model.visual") { self.vision_range } else { self.text_range };
            Normal::new(self.seed, &name).fill(&mut values, range);
        }
        if let (true, Some(pad)) = (name.ends_with("embed_tokens.weight"), self.pad) {
            let width = shape[1];
            values[pad as usize * width..][..width].fill(0.0);
        }
        let device = param.lazy_device();
        let dtype = self.dtype;
        param.transform(move |_| {
            Tensor::<D>::from_data(TensorData::new(values, shape), (&device, DType::F32)).cast(dtype)
        })
    }
}

/// Replaces a parameter's value without computing the old one.
trait Transform<const D: usize> {
    fn transform(self, value: impl FnOnce(()) -> Tensor<D>) -> Self;
}

impl<const D: usize> Transform<D> for Param<Tensor<D>> {
    fn transform(self, value: impl FnOnce(()) -> Tensor<D>) -> Self {
        let id = self.id;
        self.transform_for_load(value(()), id)
    }
}

/// Normal values from SplitMix64 and the Box-Muller transform.
struct Normal {
    state: u64,
}

impl Normal {
    /// Starts a stream of its own for each name (FNV-1a).
    fn new(seed: u64, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self { state: hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in (0, 1].
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn fill(&mut self, values: &mut [f32], deviation: f64) {
        for pair in values.chunks_mut(2) {
            let radius = deviation * (-2.0 * self.uniform().ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
            pair[0] = (radius * cos) as f32;
            if let Some(second) = pair.get_mut(1) {
                *second = (radius * sin) as f32;
            }
        }
    }
}
