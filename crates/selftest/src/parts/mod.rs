//! One module per part. Each compares with the reference and returns rows of the table.

mod attention;
mod capture;
mod forward;
mod generation;
mod gradients;
mod lora;
mod operations;
mod products;
mod rounding;
mod training;

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::ComputeError;

use crate::comparison::Comparison;
use crate::error::CheckError;
use crate::part::Part;
use crate::setup::Setup;

/// Runs a part.
pub(crate) fn run(part: Part, setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    match part {
        Part::Products => products::run(setup),
        Part::Attention => attention::run(setup),
        Part::Operations => operations::run(setup),
        Part::Rounding => rounding::run(setup),
        Part::Forward => forward::run(setup),
        Part::Generation => generation::run(setup),
        Part::Gradients => gradients::run(setup),
        Part::Training => training::run(setup),
        Part::Lora => lora::run(setup),
        Part::Capture => capture::run(setup),
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
