//! Gradients by parameter name, and their global norm.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::{DType, Gradients};
use glm4v_model::{NamedVisitor, is_cpu, visit_named};

/// Gradients of a network's trainable parameters, flattened, by name.
#[derive(Debug, Default)]
pub struct NamedGradients {
    by_name: BTreeMap<String, Tensor<1>>,
}

impl FromIterator<(String, Tensor<1>)> for NamedGradients {
    /// Collects flattened gradients by parameter name.
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
    pub fn from_gradients(model: &impl Module, gradients: Gradients) -> Self {
        let mut collector = GradientCollector { gradients, by_name: BTreeMap::new() };
        visit_named(model, &mut collector);
        Self { by_name: collector.by_name }
    }

    /// Runs a backward pass and takes the gradients of `model`; none if no trainable parameter had a part in the loss.
    pub fn backward(model: &impl Module, loss: &Tensor<1>) -> Self {
        if loss.is_tracked() { Self::from_gradients(model, loss.backward()) } else { Self::default() }
    }

    /// Removes and returns the gradient of a parameter; none if the loss does not depend on it.
    pub fn remove(&mut self, name: &str) -> Option<Tensor<1>> {
        self.by_name.remove(name)
    }

    /// `own · self + others · other`; a gradient that only one of them has counts as zero in the other.
    #[must_use]
    pub fn weighted_sum(self, own: f64, mut other: Self, others: f64) -> Self {
        let mut by_name = BTreeMap::new();
        for (name, gradient) in self.by_name {
            let sum = match other.by_name.remove(&name) {
                Some(more) => gradient * own + more * others,
                None => gradient * own,
            };
            by_name.insert(name, sum);
        }
        by_name.extend(other.by_name.into_iter().map(|(name, gradient)| (name, gradient * others)));
        Self { by_name }
    }

    /// Names of the parameters that have a gradient, sorted.
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

/// Values per partial sum of [`sum_of_squares`]. It determines the order of summation, and so the last bits of a norm.
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

struct GradientCollector {
    gradients: Gradients,
    by_name: BTreeMap<String, Tensor<1>>,
}

impl NamedVisitor for GradientCollector {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        // Removed, not read: the tape must not keep a second handle of every gradient.
        if let Some(gradient) = param.val().grad_remove(&mut self.gradients) {
            let size = gradient.shape().num_elements();
            self.by_name.insert(name.to_owned(), gradient.reshape([size]));
        }
    }
}
