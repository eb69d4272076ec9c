//! Weights that are still numbers: the gradients of a step may be fine, and what it made of the weights not.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_model::{ComputeError, Glm4v, NamedVisitor, visit_named};

/// Names of the trainable parameters that hold something else than finite numbers.
///
/// Looked at on the device, with one read for all.
pub(crate) fn not_finite(model: &Glm4v) -> Result<Vec<String>, ComputeError> {
    let mut look = Look { names: Vec::new(), finite: Vec::new() };
    visit_named(model, &mut look);
    if look.finite.is_empty() {
        return Ok(Vec::new());
    }
    let finite = Tensor::cat(look.finite, 0).try_into_data()?;
    let finite: Vec<f32> = finite.try_to_vec()?;
    let broken = look.names.into_iter().zip(finite).filter(|(_, finite)| *finite != 1.0);
    Ok(broken.map(|(name, _)| name).collect())
}

struct Look {
    names: Vec<String>,
    /// For each of them 1 if all is finite, `[1]`.
    finite: Vec<Tensor<1>>,
}

impl NamedVisitor for Look {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            self.names.push(name.to_owned());
            self.finite.push(param.val().inner().is_finite().all().float().cast(DType::F32));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use glm4v_model::{Backend, Glm4vConfig, NamedMapper, Precision, initialize, map_named};

    use super::*;

    /// Puts one value into a parameter.
    struct Spoil(&'static str, f32);

    impl NamedMapper for Spoil {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if name != self.0 {
                return param;
            }
            let (id, value, mapper) = param.consume();
            let place: [_; D] = std::array::from_fn(|_| 0..1);
            let one = Tensor::full([1; D], self.1, &value.device().inner());
            let value = value.inner().slice_assign(place, one);
            Param::from_mapped_value(id, Tensor::from_inner(value).require_grad(), mapper)
        }
    }

    #[test]
    fn a_single_value_that_is_no_number_is_found_where_weights_learn() {
        let device = Backend::Cpu.open().unwrap().autodiff();
        let model = initialize(Glm4vConfig::tiny().init(&device), 0, Precision::F32.dtype());
        assert_eq!(not_finite(&model).unwrap(), Vec::<String>::new());

        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let spoiled = map_named(model.clone(), &mut Spoil("lm_head.weight", value));

            assert_eq!(not_finite(&spoiled).unwrap(), ["lm_head.weight"], "{value}");
            assert_eq!(not_finite(&spoiled.no_grad()).unwrap(), Vec::<String>::new(), "frozen: not ours");
        }
    }
}
