//! One module per part. Each compares with the reference and returns rows of the table.

mod attention;
mod forward;
mod generation;
mod gradients;
mod lora;
mod products;
mod rounding;
mod training;

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::ComputeError;

use crate::comparison::Comparison;
use crate::error::CheckError;
use crate::part::Part;
use crate::self_test::SelfTest;

/// Runs a part.
pub(crate) fn run(part: Part, test: &SelfTest) -> Result<Vec<Comparison>, CheckError> {
    match part {
        Part::Products => products::run(test),
        Part::Attention => attention::run(test),
        Part::Rounding => rounding::run(test),
        Part::Forward => forward::run(test),
        Part::Generation => generation::run(test),
        Part::Gradients => gradients::run(test),
        Part::Training => training::run(test),
        Part::Lora => lora::run(test),
    }
}

/// The values of a tensor as f32, in row-major order.
fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, ComputeError> {
    // Cast on the host: what the device stores is what is compared.
    Ok(to_f32(tensor.try_into_data()?))
}

fn to_f32(data: TensorData) -> Vec<f32> {
    data.convert_dtype(DType::F32).try_to_vec().expect("data cast to f32 are f32")
}

/// The values at positions that are no padding; `values` has as many for each of the mask's. None if there are none.
fn at_tokens(values: &[f32], mask: &[bool]) -> Vec<f32> {
    let rows = values.chunks((values.len() / mask.len()).max(1)).zip(mask);
    rows.filter(|(_, keep)| **keep).flat_map(|(row, _)| row.iter().copied()).collect()
}
