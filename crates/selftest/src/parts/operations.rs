//! Single operations and their gradients, at sizes that networks of this crate do not have, against the same composed of plain operations
//! in f32.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::{DType, TensorData};
use glm4v_model::nn::{
    AttentionImplementation, CausalMask, ForwardContext, GateUpMlp, GatedMlp, LayerNorm, Linear, Lora,
    RmsNorm, WeightMatrix, bidirectional_attention, causal_attention,
};
use glm4v_model::{ComputeError, Precision};
use glm4v_train::cross_entropy;

use super::read;
use crate::comparison::{Comparison, Deviation, relative_l2};
use crate::error::CheckError;
use crate::setup::Setup;
use crate::tolerance::{ACTIVATIONS, GRADIENTS, tolerance};
use crate::values::values;

/// An operation of the network, and the same in plain operations.
struct Operation {
    name: &'static str,
    /// Shapes of its inputs, weights among them.
    shapes: &'static [&'static [usize]],
    ours: fn(&Inputs) -> Tensor<1>,
    plain: fn(&Inputs) -> Tensor<1>,
}

const OPERATIONS: [Operation; 9] = [
    Operation { name: "rms norm", shapes: &[&[37, 515], &[515]], ours: rms_norm, plain: plain_rms_norm },
    Operation {
        name: "layer norm",
        shapes: &[&[37, 515], &[515], &[515]],
        ours: layer_norm,
        plain: plain_layer_norm,
    },
    Operation { name: "linear", shapes: &[&[33, 130], &[70, 130], &[70]], ours: linear, plain: plain_linear },
    Operation {
        name: "linear with an adapter",
        shapes: &[&[33, 130], &[70, 130], &[4, 130], &[70, 4]],
        ours: adapted,
        plain: plain_adapted,
    },
    Operation {
        name: "gated feed-forward",
        shapes: &[&[33, 48], &[129, 48], &[129, 48], &[40, 129]],
        ours: gated,
        plain: plain_gated,
    },
    Operation {
        name: "gated feed-forward, fused",
        shapes: &[&[33, 48], &[258, 48], &[40, 129]],
        ours: gate_up,
        plain: plain_gate_up,
    },
    Operation {
        name: "causal attention",
        shapes: &[&[2, 4, 67, 32], &[2, 2, 67, 32], &[2, 2, 67, 32]],
        ours: causal,
        plain: plain_causal,
    },
    Operation {
        name: "bidirectional attention",
        shapes: &[&[2, 3, 67, 40], &[2, 3, 67, 40], &[2, 3, 67, 40]],
        ours: bidirectional,
        plain: plain_bidirectional,
    },
    Operation { name: "cross entropy", shapes: &[&[29, 1031]], ours: loss, plain: plain_loss },
];

pub(super) fn run(setup: &Setup) -> Result<Vec<Comparison>, CheckError> {
    OPERATIONS.iter().map(|operation| compare(setup, operation)).collect()
}

fn compare(setup: &Setup, operation: &Operation) -> Result<Comparison, CheckError> {
    let device = setup.device_spec.device.clone().autodiff();
    let evaluate = |precision, function| evaluate(&device, precision, operation.shapes, function);
    let found = evaluate(setup.precision, operation.ours)?;
    let exact = evaluate(Precision::F32, operation.plain)?;
    let rounded = evaluate(setup.precision, operation.plain)?;
    let deviations = exact.iter().enumerate().map(|(at, exact)| {
        let of_input = at.checked_sub(1);
        Deviation {
            tensor: of_input.map_or("output".to_owned(), |input| format!("gradient of input {input}")),
            deviation: relative_l2(&found[at], exact),
            tolerance: tolerance(
                setup.precision,
                if of_input.is_some() { GRADIENTS } else { ACTIVATIONS },
                relative_l2(&rounded[at], exact),
            ),
        }
    });
    Ok(Comparison::worst(operation.name.to_owned(), deviations))
}

/// The output, and the gradient of a weighted sum of it with respect to each input.
fn evaluate(
    device: &Device,
    precision: Precision,
    shapes: &'static [&'static [usize]],
    function: fn(&Inputs) -> Tensor<1>,
) -> Result<Vec<Vec<f32>>, ComputeError> {
    let inputs = Inputs::new(device, precision, shapes);
    let output = function(&inputs);
    let [size] = output.dims();
    let weights = TensorData::new(values("weights", 0, size, 0.0, 1.0), [size]);
    let weights = Tensor::<1>::from_data(weights, (device, DType::F32));
    let gradients = (output.clone().cast(DType::F32) * weights).sum().backward();
    let gradient = |input: &Tensor<1>| input.grad(&gradients).map_or(Ok(Vec::new()), read);
    let results = std::iter::once(read(output.inner())).chain(inputs.flat.iter().map(gradient));
    results.collect()
}

/// Flat tensors whose gradients are wanted.
struct Inputs {
    flat: Vec<Tensor<1>>,
    shapes: &'static [&'static [usize]],
}

impl Inputs {
    fn new(device: &Device, precision: Precision, shapes: &'static [&'static [usize]]) -> Self {
        let input = |(index, shape): (usize, &&[usize])| {
            let size = shape.iter().product();
            // Of weights, so that sums of their products have the scale of the inputs.
            let deviation = if index == 0 || shape.len() != 2 { 1.0 } else { (shape[1] as f64).powf(-0.5) };
            let data = TensorData::new(values(&format!("input.{index}"), 0, size, 0.1, deviation), [size]);
            let dtype = precision.dtype();
            Tensor::<1>::from_data(data.convert_dtype(dtype), (device, dtype)).require_grad()
        };
        Self { flat: shapes.iter().enumerate().map(input).collect(), shapes }
    }

    fn get<const D: usize>(&self, index: usize) -> Tensor<D> {
        self.flat[index].clone().reshape(Shape::from(self.shapes[index].to_vec()))
    }

    fn param<const D: usize>(&self, index: usize) -> Param<Tensor<D>> {
        Param::initialized(ParamId::new(), self.get(index))
    }

    fn linear(&self, weight: usize, bias: Option<usize>) -> Linear {
        let bias = bias.map(|index| self.param(index));
        Linear { weight: WeightMatrix::Dense(self.param(weight)), bias, lora: None }
    }

    /// `x · weightᵀ`
    fn product(&self, x: Tensor<2>, weight: usize) -> Tensor<2> {
        x.matmul(self.get::<2>(weight).transpose())
    }
}

fn flat<const D: usize>(output: Tensor<D>) -> Tensor<1> {
    output.reshape([-1])
}

const EPS: f64 = 1e-5;

fn rms_norm(inputs: &Inputs) -> Tensor<1> {
    flat(RmsNorm { weight: inputs.param(1), eps: EPS }.forward(inputs.get::<2>(0)))
}

fn plain_rms_norm(inputs: &Inputs) -> Tensor<1> {
    let x = inputs.get::<2>(0);
    let mean_square = (x.clone() * x.clone()).mean_dim(1);
    flat(x / (mean_square + EPS).sqrt() * inputs.get::<1>(1).unsqueeze())
}

fn layer_norm(inputs: &Inputs) -> Tensor<1> {
    let norm = LayerNorm { weight: inputs.param(1), bias: inputs.param(2), eps: EPS };
    flat(norm.forward(inputs.get::<2>(0)))
}

fn plain_layer_norm(inputs: &Inputs) -> Tensor<1> {
    let x = inputs.get::<2>(0);
    let centered = x.clone() - x.mean_dim(1);
    let variance = (centered.clone() * centered.clone()).mean_dim(1);
    let normal = centered / (variance + EPS).sqrt();
    flat(normal * inputs.get::<1>(1).unsqueeze() + inputs.get::<1>(2).unsqueeze())
}

fn linear(inputs: &Inputs) -> Tensor<1> {
    flat(inputs.linear(1, Some(2)).forward(inputs.get::<2>(0)))
}

fn plain_linear(inputs: &Inputs) -> Tensor<1> {
    flat(inputs.product(inputs.get(0), 1) + inputs.get::<1>(2).unsqueeze())
}

/// Alpha over rank.
const SCALE: f64 = 2.0;

fn adapted(inputs: &Inputs) -> Tensor<1> {
    let lora = Lora { a: inputs.param(2), b: inputs.param(3), scale: SCALE, dropout: 0.0 };
    flat(Linear { lora: Some(lora), ..inputs.linear(1, None) }.forward(inputs.get::<2>(0)))
}

fn plain_adapted(inputs: &Inputs) -> Tensor<1> {
    let low_rank = inputs.product(inputs.product(inputs.get(0), 2), 3);
    flat(inputs.product(inputs.get(0), 1) + low_rank * SCALE)
}

fn gated(inputs: &Inputs) -> Tensor<1> {
    let [gate_proj, up_proj, down_proj] = [1, 2, 3].map(|weight| inputs.linear(weight, None));
    let mlp = GatedMlp { gate_proj, up_proj, down_proj };
    flat(mlp.forward(inputs.get::<2>(0), &mut ForwardContext::<()>::default()))
}

fn plain_gated(inputs: &Inputs) -> Tensor<1> {
    let [gate, up] = [1, 2].map(|weight| inputs.product(inputs.get(0), weight));
    flat(inputs.product(gate.clone() * sigmoid(gate) * up, 3))
}

fn gate_up(inputs: &Inputs) -> Tensor<1> {
    let mlp = GateUpMlp { gate_up_proj: inputs.linear(1, None), down_proj: inputs.linear(2, None) };
    flat(mlp.forward(inputs.get::<2>(0), &mut ForwardContext::<()>::default()))
}

fn plain_gate_up(inputs: &Inputs) -> Tensor<1> {
    let gate_up = inputs.product(inputs.get(0), 1);
    let half = gate_up.dims()[1] / 2;
    let gate = gate_up.clone().narrow(1, 0, half);
    flat(inputs.product(gate.clone() * sigmoid(gate) * gate_up.narrow(1, half, half), 2))
}

/// 0 for padding: the second row has some on the left.
fn segments([rows, keys]: [usize; 2]) -> Vec<u32> {
    (0..rows * keys).map(|at| u32::from(at < keys || at >= keys + keys / 4)).collect()
}

/// What queries of padding give is undefined.
fn at_tokens(output: Tensor<4>) -> Tensor<1> {
    let [rows, heads, queries, head_dim] = output.dims();
    let keep: Vec<f32> = segments([rows, queries]).into_iter().map(|segment| segment as f32).collect();
    let keep = TensorData::new(keep, [rows, 1, queries, 1]);
    let keep = Tensor::<4>::from_data(keep, (&output.device(), DType::F32)).cast(output.dtype());
    flat(output * keep.expand([rows, heads, queries, head_dim]))
}

fn causal(inputs: &Inputs) -> Tensor<1> {
    let [q, k, v] = [0, 1, 2].map(|input| inputs.get::<4>(input));
    let [rows, _, keys, _] = k.dims();
    let implementation = AttentionImplementation::Eager;
    let mask = CausalMask::new(&segments([rows, keys]), [rows, keys], keys, implementation, &q.device());
    at_tokens(causal_attention(q, k, v, &mask))
}

fn plain_causal(inputs: &Inputs) -> Tensor<1> {
    let [q, k, v] = [0, 1, 2].map(|input| inputs.get::<4>(input));
    let ([rows, heads, ..], [_, key_heads, keys, head_dim]) = (q.dims(), k.dims());
    let groups = heads / key_heads;
    let repeat = |x: Tensor<4>| {
        let x = x.unsqueeze_dim::<5>(2).expand([rows, key_heads, groups, keys, head_dim]);
        x.reshape([rows, heads, keys, head_dim])
    };
    let segments = segments([rows, keys]);
    let hidden = |at: usize| {
        let (row, query, key) = (at / (keys * keys), at / keys % keys, at % keys);
        let own = key == query; // a query of padding sees something, and its softmax stays finite
        !own && (key > query || segments[row * keys + key] == 0)
    };
    let bias: Vec<f32> = (0..rows * keys * keys).map(|at| if hidden(at) { -1e4 } else { 0.0 }).collect();
    let bias =
        Tensor::<4>::from_data(TensorData::new(bias, [rows, 1, keys, keys]), (&q.device(), DType::F32));
    at_tokens(plain_attention(q, repeat(k), repeat(v), Some(bias)))
}

fn bidirectional(inputs: &Inputs) -> Tensor<1> {
    let [q, k, v] = [0, 1, 2].map(|input| inputs.get::<4>(input));
    flat(bidirectional_attention(q, k, v))
}

fn plain_bidirectional(inputs: &Inputs) -> Tensor<1> {
    let [q, k, v] = [0, 1, 2].map(|input| inputs.get::<4>(input));
    flat(plain_attention(q, k, v, None))
}

fn plain_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>) -> Tensor<4> {
    let (dtype, head_dim) = (q.dtype(), q.dims()[3]);
    let scores = q.matmul(k.transpose()).cast(DType::F32) * (head_dim as f64).powf(-0.5);
    let scores = match bias {
        Some(bias) => scores + bias,
        None => scores,
    };
    softmax(scores, 3).cast(dtype).matmul(v)
}

fn labels(count: usize) -> Vec<u32> {
    (0..count as u32).map(|row| row * 31).collect()
}

fn loss(inputs: &Inputs) -> Tensor<1> {
    let logits = inputs.get::<2>(0);
    let count = logits.dims()[0];
    cross_entropy(logits, &labels(count)).sum
}

fn plain_loss(inputs: &Inputs) -> Tensor<1> {
    let logits = inputs.get::<2>(0).cast(DType::F32);
    let count = logits.dims()[0];
    let labels: Vec<i32> = labels(count).into_iter().map(|label| label as i32).collect();
    let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [count, 1]), &logits.device());
    -log_softmax(logits, 1).gather(1, labels).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::tests::on_cpu;

    #[test]
    fn a_gradient_that_is_left_out_is_wrong() {
        fn detached(inputs: &Inputs) -> Tensor<1> {
            let x = inputs.get::<2>(0);
            let mean_square = (x.clone() * x.clone()).mean_dim(1).detach();
            flat(x / (mean_square + EPS).sqrt() * inputs.get::<1>(1).unsqueeze())
        }
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let wrong = Operation { ours: detached, ..OPERATIONS[0] };

            let row = compare(&on_cpu(precision), &wrong).unwrap();

            assert!(
                !row.ok() && row.tensor.as_deref() == Some("gradient of input 0"),
                "{precision}: {row:?}"
            );
        }
    }
}
