//! Gradients by parameter name, and their global norm.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, Gradients};
use glm4v_model::{Glm4v, NamedVisitor, is_cpu, visit_named};

/// Gradients of a network's trainable parameters, flattened, by name.
#[derive(Debug, Default)]
pub struct NamedGradients {
    by_name: BTreeMap<String, Tensor<1>>,
}

impl FromIterator<(String, Tensor<1>)> for NamedGradients {
    /// Gradients made in another way, flattened, by the names of their parameters.
    fn from_iter<I: IntoIterator<Item = (String, Tensor<1>)>>(gradients: I) -> Self {
        Self { by_name: gradients.into_iter().collect() }
    }
}

impl IntoIterator for NamedGradients {
    type Item = (String, Tensor<1>);
    type IntoIter = std::collections::btree_map::IntoIter<String, Tensor<1>>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_name.into_iter()
    }
}

impl NamedGradients {
    /// Takes the gradients of `model` out of a backward pass.
    pub fn take(model: &Glm4v, gradients: Gradients) -> Self {
        let mut taker = Taker { gradients, by_name: BTreeMap::new() };
        visit_named(model, &mut taker);
        Self { by_name: taker.by_name }
    }

    /// Runs a backward pass and takes the gradients of `model`; none if nothing that learns had a part in the loss.
    pub fn backward(model: &Glm4v, loss: &Tensor<1>) -> Self {
        if loss.is_tracked() { Self::take(model, loss.backward()) } else { Self::default() }
    }

    /// The gradient of a parameter, none if nothing reached it.
    pub fn remove(&mut self, name: &str) -> Option<Tensor<1>> {
        self.by_name.remove(name)
    }

    /// Parameters that have a gradient.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Square root of the sum of all squares, as one number on the device, in f32.
    ///
    /// Global over all parameters, as `torch.nn.utils.clip_grad_norm_`; Burn's clipping takes each tensor alone.
    pub fn norm(&self) -> Option<Tensor<1>> {
        let squares: Vec<Tensor<1>> =
            self.by_name.values().map(|gradient| sum_of_squares(gradient.clone().cast(DType::F32))).collect();
        (!squares.is_empty()).then(|| Tensor::cat(squares, 0).sum().sqrt())
    }
}

/// Values that [`sum_of_squares`] takes at once: the order of the sum hangs on it, and so do the last bits of a norm.
const CHUNK: usize = 1 << 16;

/// Sum of the squares of all values, in f32.
///
/// On the CPU, Burn's sum adds the parts of a tensor of 4,194,304 values or more in the order in which threads get done.
/// Here each chunk is the product of a row and a column, which one thread forms, and the chunks are added in their order:
/// the same bits with any number of threads. Nothing of the tensor's size is made, either: 128 Mi values take 0.1 s on two
/// cores, and took 0.8 s and half a gigabyte. Other backends choose their kernels by timing, and keep Burn's sum.
fn sum_of_squares(values: Tensor<1>) -> Tensor<1> {
    let [size] = values.dims();
    let chunks = size / CHUNK;
    if chunks == 0 || !is_cpu(&values.device()) {
        return (values.clone() * values).sum();
    }
    let whole = chunks * CHUNK;
    let rows = values.clone().narrow(0, 0, whole).reshape([chunks, 1, CHUNK]);
    let mut sums = vec![rows.clone().matmul(rows.swap_dims(1, 2)).reshape([chunks])];
    if whole < size {
        let rest = values.narrow(0, whole, size - whole);
        sums.push((rest.clone() * rest).sum());
    }
    Tensor::cat(sums, 0).sum()
}

struct Taker {
    gradients: Gradients,
    by_name: BTreeMap<String, Tensor<1>>,
}

impl NamedVisitor for Taker {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(&mut self.gradients) {
            let size = gradient.shape().num_elements();
            self.by_name.insert(name.to_owned(), gradient.reshape([size]));
        }
    }
}
