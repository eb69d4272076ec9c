//! Attention as the network calls it, fused and eager, at several lengths, head sizes and masks.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_model::Precision;
use glm4v_model::nn::{AttentionImplementation, CausalMask, bidirectional_attention, causal_attention};

use super::read;
use crate::comparison::{Comparison, Deviation, relative_l2};
use crate::error::CheckError;
use crate::exact::Attention;
use crate::setup::Setup;
use crate::tolerance::{ACTIVATIONS, tolerance};
use crate::values::values;

/// Heads, key heads, queries, keys, head dimension.
type Sizes = [usize; 5];

/// Two rows each. Lengths within a tile, of several, and one past it; decoding, and a prompt that continues a cache.
const CAUSAL: [Sizes; 7] = [
    [4, 2, 17, 17, 16],
    [4, 2, 65, 65, 32],
    [8, 2, 130, 130, 128],
    [2, 2, 256, 256, 64],
    [8, 2, 1, 90, 128],
    [4, 1, 1, 33, 24],
    [4, 2, 5, 40, 64],
];

const BIDIRECTIONAL: [Sizes; 4] =
    [[4, 4, 16, 16, 16], [2, 2, 100, 100, 64], [2, 2, 144, 144, 128], [3, 3, 72, 72, 80]];

/// Queries of a head that are compared: every so many.
const EVERY: usize = 5;

/// Padding of the keys, or several samples in a row.
#[derive(Debug, Clone, Copy)]
enum Mask {
    None,
    LeftPadded,
    Packed,
}

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    let mut rows = Vec::new();
    for eager in [false, true] {
        let kind = if eager { "eager" } else { "fused" };
        for mask in [Mask::None, Mask::LeftPadded, Mask::Packed] {
            let deviations = CAUSAL
                .into_iter()
                // A packed row is a whole one: generation refuses it.
                .filter(|sizes| sizes[2] == sizes[3] || !matches!(mask, Mask::Packed))
                .map(|sizes| causal(setup, sizes, mask, eager));
            let name = match mask {
                Mask::None => format!("{kind}, causal"),
                Mask::LeftPadded => format!("{kind}, causal, left padding"),
                Mask::Packed => format!("{kind}, causal, packed"),
            };
            rows.push(Comparison::worst(name, deviations.collect::<Result<Vec<_>, CheckError>>()?));
        }
        let deviations = BIDIRECTIONAL.into_iter().map(|sizes| bidirectional(setup, sizes, eager));
        let deviations = deviations.collect::<Result<Vec<_>, CheckError>>()?;
        rows.push(Comparison::worst(format!("{kind}, bidirectional"), deviations));
    }
    Ok(rows)
}

fn causal(setup: &Setup, sizes: Sizes, mask: Mask, eager: bool) -> Result<Deviation, CheckError> {
    let [_, _, queries, keys, _] = sizes;
    let row = |row: usize| {
        (0..keys).map(move |key| match mask {
            Mask::None => 1,
            Mask::LeftPadded => u32::from(key >= row * keys / 3), // the second row
            Mask::Packed => 1 + u32::from(key >= keys / (row + 2)),
        })
    };
    let segments: Vec<u32> = (0..2).flat_map(row).collect();
    let attention = attention_of(sizes, true, segments);
    let device = setup.device_spec.device.clone();
    let implementation = if eager { AttentionImplementation::Eager } else { AttentionImplementation::Fused };
    let mask = CausalMask::new(&attention.segments, [2, keys], queries, implementation, &device);
    compare(setup, &attention, &device, |q, k, v| causal_attention(q, k, v, &mask))
}

fn bidirectional(setup: &Setup, sizes: Sizes, eager: bool) -> Result<Deviation, CheckError> {
    let attention = attention_of(sizes, false, vec![1; 2 * sizes[3]]);
    // Where gradients are tracked it is eager.
    let device = setup.device_spec.device.clone();
    let device = if eager { device.autodiff() } else { device };
    compare(setup, &attention, &device, |q, k, v| {
        let output = bidirectional_attention(q, k, v);
        if eager { output.inner() } else { output }
    })
}

fn attention_of(
    [heads, key_heads, queries, keys, head_dim]: Sizes,
    causal: bool,
    segments: Vec<u32>,
) -> Attention {
    Attention { rows: 2, heads, key_heads, queries, keys, head_dim, causal, segments }
}

fn compare(
    setup: &Setup,
    attention: &Attention,
    device: &Device,
    forward: impl FnOnce(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>,
) -> Result<Deviation, CheckError> {
    let Attention { rows, heads, key_heads, queries, keys, head_dim, .. } = *attention;
    let shapes = [
        [rows, heads, queries, head_dim],
        [rows, key_heads, keys, head_dim],
        [rows, key_heads, keys, head_dim],
    ];
    let inputs = [("q", 0), ("k", 1), ("v", 2)]
        .map(|(name, at)| values(name, 0, shapes[at].iter().product(), 0.0, 1.0));
    let [q, k, v] = [0, 1, 2].map(|at| {
        let data = TensorData::new(inputs[at].clone(), shapes[at]);
        Tensor::<4>::from_data(data, (device, DType::F32)).cast(setup.precision.dtype())
    });
    let output = read(forward(q, k, v))?;

    let inputs = [0, 1, 2].map(|at| inputs[at].as_slice());
    let (places, exact): (Vec<usize>, Vec<f64>) =
        attention.output(inputs, EVERY, Precision::F32).into_iter().unzip();
    let rounded = attention.output(inputs, EVERY, setup.precision);
    let rounded: Vec<f64> = rounded.into_iter().map(|(_, value)| value).collect();
    let found: Vec<f32> = places.iter().map(|at| output.get(*at).copied().unwrap_or(f32::NAN)).collect();
    Ok(Deviation {
        tensor: format!("{queries} x {keys}, {heads} heads of {head_dim}"),
        deviation: relative_l2(&found, &exact),
        tolerance: tolerance(setup.precision, ACTIVATIONS, relative_l2(&rounded, &exact)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::tests::on_cpu;

    fn right(precision: Precision, forward: impl Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>) -> bool {
        let setup = on_cpu(precision);
        let sizes = [2, 2, 144, 144, 128];
        let attention = attention_of(sizes, false, vec![1; 2 * 144]);
        let deviation = compare(&setup, &attention, &setup.device_spec.device, forward).unwrap();
        Comparison::worst(String::new(), [deviation]).ok()
    }

    /// Softmax of the scores, in a type.
    fn composed(dtype: DType, scale: f64) -> impl Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4> {
        move |q, k, v| {
            let own = q.dtype();
            let scores = (q * scale).matmul(k.transpose()).cast(dtype);
            let weights = (scores.clone() - scores.max_dim(3)).exp();
            let mut sum = weights.clone().narrow(3, 0, 1);
            for key in 1..weights.dims()[3] {
                sum = sum + weights.clone().narrow(3, key, 1); // rounded each time, as a sum in 16 bits is
            }
            (weights / sum).cast(own).matmul(v)
        }
    }

    #[test]
    fn a_softmax_in_16_bits_or_another_scale_is_wrong() {
        let scale = 128f64.powf(-0.5);
        for (precision, dtype) in [(Precision::Bf16, DType::BF16), (Precision::F16, DType::F16)] {
            assert!(right(precision, composed(DType::F32, scale)), "{precision}");
            assert!(!right(precision, composed(dtype, scale)), "{precision}");
            assert!(!right(precision, composed(DType::F32, scale * 1.05)), "{precision}");
        }
        assert!(right(Precision::F32, composed(DType::F32, scale)));
        assert!(!right(Precision::F32, composed(DType::F32, scale * 1.0001)));
    }
}
