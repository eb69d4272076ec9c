//! Random weights made on the device.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, Distribution};
use glm4v_model::{Glm4v, NamedMapper, ParamName, Precision, map_named};

/// Fills every parameter on its own device and in its own type: matrices normal, norms one, biases zero.
///
/// Unlike [`glm4v_model::initialize`], whose values are the same on every backend and are made on the host, this is as fast as
/// the device, and takes no memory beside the weights. The values depend on backend, seed and order.
pub fn random_weights(model: Glm4v, precision: Precision, seed: u64) -> Glm4v {
    let mut filler = Filler {
        dtype: precision.dtype(),
        text_range: model.config.text.initializer_range,
        vision_range: model.config.vision.initializer_range,
        seed: Some(seed),
    };
    map_named(model, &mut filler)
}

struct Filler {
    dtype: DType,
    text_range: f64,
    vision_range: f64,
    /// Until the first parameter, whose device has the generator.
    seed: Option<u64>,
}

impl NamedMapper for Filler {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (shape, device, name) = (param.lazy_shape(), param.lazy_device(), ParamName(name));
        if let Some(seed) = self.seed.take() {
            device.seed(seed);
        }
        // The router's correction is f32 in every network.
        let dtype = if name.is_e_score_correction_bias() { DType::F32 } else { self.dtype };
        let options = (&device, dtype);
        let value = if name.is_norm_weight() {
            Tensor::ones(shape, options)
        } else if name.is_bias() {
            Tensor::zeros(shape, options)
        } else {
            let range = if name.is_visual() { self.vision_range } else { self.text_range };
            Tensor::random(shape, Distribution::Normal(0.0, range), options)
        };
        let id = param.id;
        param.transform_for_load(value, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_model::{Backend, Glm4vConfig, NamedVisitor, visit_named};

    #[test]
    fn every_parameter_has_values_of_the_type_that_was_asked_for() {
        struct Check(usize);
        impl NamedVisitor for Check {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                let path = ParamName(name);
                let value = param.val();
                let correction = path.is_e_score_correction_bias();
                assert_eq!(value.dtype(), if correction { DType::F32 } else { DType::BF16 }, "{name}");
                let values: Vec<f32> = value.cast(DType::F32).into_data().try_to_vec().unwrap();
                let constant = values.iter().all(|value| *value == values[0]);
                assert_eq!(constant, path.is_norm_weight() || path.is_bias(), "{name}");
                assert!(values.iter().all(|value| value.abs() <= 1.0), "{name}");
                self.0 += 1;
            }
        }
        let device = Backend::Cpu.open().unwrap();

        let model = random_weights(Glm4vConfig::tiny().init(&device), Precision::Bf16, 0);

        let mut check = Check(0);
        visit_named(&model, &mut check);
        assert!(check.0 > 30, "{}", check.0);
    }
}
