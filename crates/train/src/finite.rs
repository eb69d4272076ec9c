//! Detection of NaN and infinite weights: an update can overflow although its gradients are finite.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;
use glm4v_model::{ComputeError, Glm4v, NamedVisitor, visit_named};

/// Names of the trainable parameters with a value that is NaN or infinite.
///
/// Checked on the device, with one transfer to the host for all of them.
pub(crate) fn non_finite_params(model: &Glm4v) -> Result<Vec<String>, ComputeError> {
    let mut visitor = FiniteVisitor { names: Vec::new(), finite: Vec::new() };
    visit_named(model, &mut visitor);
    if visitor.finite.is_empty() {
        return Ok(Vec::new());
    }
    let finite = Tensor::cat(visitor.finite, 0).try_into_data()?;
    let finite: Vec<f32> = finite.try_to_vec()?;
    let broken = visitor.names.into_iter().zip(finite).filter(|(_, finite)| *finite != 1.0);
    Ok(broken.map(|(name, _)| name).collect())
}

struct FiniteVisitor {
    names: Vec<String>,
    /// For each name 1 if all values are finite, else 0; `[1]`.
    finite: Vec<Tensor<1>>,
}

impl NamedVisitor for FiniteVisitor {
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

    /// Replaces the first value of the parameter with this name.
    struct SetFirstValue(&'static str, f32);

    impl NamedMapper for SetFirstValue {
        fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if name != self.0 {
                return param;
            }
            let (id, value, mapper) = param.consume();
            let first: [_; D] = std::array::from_fn(|_| 0..1);
            let one = Tensor::full([1; D], self.1, &value.device().inner());
            let value = value.inner().slice_assign(first, one);
            Param::from_mapped_value(id, Tensor::from_inner(value).require_grad(), mapper)
        }
    }

    #[test]
    fn one_non_finite_value_is_found_in_trainable_parameters_only() {
        let device = Backend::Cpu.open().unwrap().autodiff();
        let model = initialize(Glm4vConfig::tiny().init(&device), 0, Precision::F32.dtype());
        assert_eq!(non_finite_params(&model).unwrap(), Vec::<String>::new());

        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let broken = map_named(model.clone(), &mut SetFirstValue("lm_head.weight", value));

            assert_eq!(non_finite_params(&broken).unwrap(), ["lm_head.weight"], "{value}");
            assert_eq!(non_finite_params(&broken.no_grad()).unwrap(), Vec::<String>::new(), "frozen");
        }
    }
}
