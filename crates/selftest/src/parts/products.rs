//! Matrix products of linear layers, few rows and many, sizes that fill tiles and sizes that do not.

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::LinearConfig;

use super::read;
use crate::comparison::{Comparison, Deviation, relative_l2};
use crate::error::CheckError;
use crate::exact::{dot, round};
use crate::setup::Setup;
use crate::tolerance::{ACTIVATIONS, tolerance};
use crate::values::values;

/// Rows, input and output features of a product, and whether there is a bias.
type Product = (usize, usize, usize, bool);

/// One row is decoding, some rows a small batch, many rows a prompt.
const KINDS: [(&str, &[Product]); 3] = [
    ("one row", &[(1, 1024, 1536, false), (1, 515, 260, true), (1, 96, 33, false)]),
    ("2 to 8 rows", &[(2, 1024, 512, false), (5, 515, 260, true), (8, 768, 384, false)]),
    ("many rows", &[(64, 512, 512, true), (130, 260, 515, false), (300, 768, 96, false)]),
];

/// Outputs that are compared, of all rows and columns in turn.
const SAMPLES: usize = 400;

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let row = |(kind, products): (&str, &[Product])| {
        let deviations = products.iter().map(|product| deviation(setup, *product));
        Ok(Comparison::worst(kind.to_owned(), deviations.collect::<Result<Vec<_>, CheckError>>()?))
    };
    KINDS.into_iter().map(row).collect()
}

fn deviation(setup: &Setup, (rows, inputs, outputs, bias): Product) -> Result<Deviation, CheckError> {
    let scale = (inputs as f64).powf(-0.5);
    let x = values("x", 0, rows * inputs, 0.0, 1.0);
    let weight = values("weight", 0, outputs * inputs, 0.0, scale);
    let offset = values("bias", 0, outputs, 0.0, 0.5);
    let layer = LinearConfig::new(inputs, outputs).with_bias(bias).init(&setup.device_spec);
    let mut filler =
        Filler { values: [weight.clone(), offset.clone()], dtype: setup.precision.dtype(), used: 0 };
    let layer = layer.map(&mut filler);
    let input = TensorData::new(x.clone(), [rows, inputs]);
    let input =
        Tensor::<2>::from_data(input, (&setup.device_spec.device, DType::F32)).cast(setup.precision.dtype());
    let found = read(layer.forward(input))?;

    let count = rows * outputs;
    let step = (count / SAMPLES).max(1) | 1; // odd: rows and columns are met in turn
    let row = |x: &[f32], at: usize| x[at * inputs..(at + 1) * inputs].to_vec();
    let exact: Vec<f64> = (0..count)
        .step_by(step)
        .map(|at| {
            let sum = dot(&row(&x, at / outputs), &row(&weight, at % outputs));
            if bias { sum + f64::from(offset[at % outputs]) } else { sum }
        })
        .collect();
    let found: Vec<f32> = found.into_iter().step_by(step).collect();
    let rounded: Vec<f64> = exact.iter().map(|value| round(*value, setup.precision)).collect();
    Ok(Deviation {
        tensor: format!("{rows} x {inputs} by {outputs}"),
        deviation: relative_l2(&found, &exact),
        tolerance: tolerance(setup.precision, ACTIVATIONS, relative_l2(&rounded, &exact)),
    })
}

/// Fills a layer: the weight, in shards or not, then the bias.
struct Filler {
    values: [Vec<f32>; 2],
    dtype: DType,
    /// Values of the weight that its shards have taken.
    used: usize,
}

impl ModuleMapper for Filler {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape().to_vec();
        let count = shape.iter().product::<usize>();
        let values = match D {
            1 => self.values[1].clone(),
            _ => self.values[0][self.used..self.used + count].to_vec(),
        };
        self.used += count;
        let data = TensorData::new(values, shape).convert_dtype(self.dtype);
        let (id, device) = (param.id, param.lazy_device());
        param.transform_for_load(Tensor::from_data(data, (&device, self.dtype)), id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::tests::on_cpu;
    use glm4v_model::Precision;

    #[test]
    fn a_product_of_10_bits_is_wrong_in_f32() {
        let product = (8, 768, 384, false);
        let [wide, narrow] =
            [Precision::F32, Precision::F16].map(|precision| deviation(&on_cpu(precision), product).unwrap());

        assert!(wide.deviation < wide.tolerance && narrow.deviation < narrow.tolerance);
        // Tensor cores in TF32 round inputs to the 10 bits that f16 has.
        assert!(narrow.deviation > 10.0 * wide.tolerance, "{}", narrow.deviation);
    }
}
