//! Attention with a backward pass on the CPU: what autodiff is told of it.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Shape, Tensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::AttentionMask;
use super::block::{Attention, Rule, Sequence, Statistics};
use crate::cpu::{Rows, contiguous, tensor, values, with_rows};

/// Attention, on backends with a kernel for it.
#[backend_extension(Flex, Autodiff)]
pub(super) trait AttentionOps: Backend {
    /// `[B, H, S, Dh]`
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        is_causal: bool,
    ) -> FloatTensor<Self>;

    /// `[B, H, S, Dh]` with something added to the scores.
    fn biased_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `[N, 3H, Dh]` to `[N, H · Dh]`, bidirectional within each sequence.
    fn packed_attention(qkv: FloatTensor<Self>, lengths: Vec<usize>) -> FloatTensor<Self>;
}

pub(super) fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: AttentionMask) -> Tensor<4> {
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(match mask {
        AttentionMask::None => Dispatch::attention(q, k, v, false),
        AttentionMask::Causal => Dispatch::attention(q, k, v, true),
        AttentionMask::Bias(bias) => {
            Dispatch::biased_attention(q, k, v, bias.cast(DType::F32).into_dispatch())
        }
    })
}

pub(super) fn packed_attention(qkv: Tensor<3>, lengths: &[usize]) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::packed_attention(qkv.into_dispatch(), lengths.to_vec()))
}

impl AttentionOps for Flex {
    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, is_causal: bool) -> FlexTensor {
        Inputs::new([q, k, v], None, is_causal).forward().0
    }

    fn biased_attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, bias: FlexTensor) -> FlexTensor {
        Inputs::new([q, k, v], Some(bias), false).forward().0
    }

    fn packed_attention(qkv: FlexTensor, lengths: Vec<usize>) -> FlexTensor {
        PackedInputs::new(qkv, lengths).forward().0
    }
}

impl<C: CheckpointStrategy> AttentionOps for Autodiff<Flex, C> {
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        is_causal: bool,
    ) -> FloatTensor<Self> {
        tracked::<C>([q, k, v], |qkv| Inputs::new(qkv, None, is_causal))
    }

    fn biased_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked::<C>([q, k, v], |qkv| Inputs::new(qkv, Some(bias.into_primitive()), false))
    }

    fn packed_attention(qkv: FloatTensor<Self>, lengths: Vec<usize>) -> FloatTensor<Self> {
        let (qkv, node) = qkv.into_parts();
        let inputs = PackedInputs::new(qkv, lengths);
        let (output, statistics) = inputs.forward();
        match PackedAttentionBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inputs, output.clone(), statistics), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }
}

/// Runs the forward pass and records the backward pass.
fn tracked<C: CheckpointStrategy>(
    qkv: [FloatTensor<Autodiff<Flex, C>>; 3],
    inputs: impl FnOnce([FlexTensor; 3]) -> Inputs,
) -> FloatTensor<Autodiff<Flex, C>> {
    let [(q, q_node), (k, k_node), (v, v_node)] = qkv.map(|tensor| tensor.into_parts());
    let inputs = inputs([q, k, v]);
    let (output, statistics) = inputs.forward();
    match AttentionBackward.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((inputs, output.clone(), statistics), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// The inputs of an attention, which the backward pass needs too.
#[derive(Debug, Clone)]
struct Inputs {
    /// Queries `[B, S, H, Dh]`, keys and values `[B, Sk, Hk, Dh]`.
    qkv: [FlexTensor; 3],
    /// `[B or 1, 1, S, Sk]`, contiguous.
    bias: Option<FlexTensor>,
    is_causal: bool,
}

impl Inputs {
    /// Of tensors with heads before positions.
    fn new(qkv: [FlexTensor; 3], bias: Option<FlexTensor>, is_causal: bool) -> Self {
        let qkv = qkv.map(|tensor| with_rows::<3>(tensor.transpose(1, 2)));
        Self { qkv, bias: bias.map(contiguous), is_causal }
    }

    fn dims(&self) -> [usize; 6] {
        let [q, k] = [0, 1].map(|part| self.qkv[part].layout().shape());
        [q[0], q[1], k[1], q[2], k[2], q[3]]
    }

    fn sequences(&self) -> impl Iterator<Item = Sequence> {
        let [rows, queries, keys, ..] = self.dims();
        let bias_of_row = match &self.bias {
            Some(bias) if bias.layout().shape()[0] > 1 => queries * keys,
            _ => 0,
        };
        (0..rows).map(move |row| Sequence { row, first: 0, queries, keys, bias: row * bias_of_row })
    }

    fn attention(&self) -> Attention<'_> {
        let rule = match &self.bias {
            Some(bias) => Rule::Bias(values(bias)),
            None if self.is_causal => Rule::Causal,
            None => Rule::All,
        };
        let [q, k, v] = &self.qkv;
        Attention::new([q, k, v], self.sequences().collect(), rule)
    }

    /// `[B, H, S, Dh]`, lying in memory as `[B, S, H, Dh]`, with the statistics of its rows.
    fn forward(&self) -> (FlexTensor, Statistics) {
        let (output, statistics) = self.attention().forward();
        (tensor(output, self.qkv[0].shape()).transpose(1, 2), statistics)
    }

    /// Gradients of queries, keys and values, heads before positions.
    fn backward(&self, output_and_grad: [FlexTensor; 2], statistics: &Statistics) -> [FlexTensor; 3] {
        let [rows, queries, keys, heads, key_heads, width] = self.dims();
        let output_and_grad = output_and_grad.map(|tensor| with_rows::<3>(tensor.transpose(1, 2)));
        let vectors = output_and_grad.each_ref().map(vectors);
        let attention = self.attention();
        let mut q_grad = vec![0.0; rows * heads * queries * width];
        let [mut k_grad, mut v_grad] = [0, 1].map(|_| vec![0.0; rows * heads * keys * width]);
        let [of_queries, of_keys] = [queries, keys].map(|positions| (positions * width).max(1));
        let grads = k_grad.par_chunks_mut(of_keys).zip(v_grad.par_chunks_mut(of_keys));
        let sequences: Vec<Sequence> = self.sequences().collect();
        let tasks = q_grad.par_chunks_mut(of_queries).zip(grads).enumerate();
        tasks.for_each(|(index, (q_grad, (k_grad, v_grad)))| {
            let head = (sequences[index / heads], index % heads);
            attention.backward_head(head, vectors, statistics, [q_grad, k_grad, v_grad]);
        });
        let of_group = |grad| sum_groups(grad, heads / key_heads, of_keys);
        let key_shape = Shape::new([rows, key_heads, keys, width]);
        [
            tensor(q_grad, Shape::new([rows, heads, queries, width])),
            tensor(of_group(k_grad), key_shape.clone()),
            tensor(of_group(v_grad), key_shape),
        ]
    }
}

fn vectors(tensor: &FlexTensor) -> Rows<'_, 3> {
    Rows::of(tensor).expect("made so that its rows are contiguous")
}

/// Adds up each `group` parts of `size` values, in their order.
fn sum_groups(parts: Vec<f32>, group: usize, size: usize) -> Vec<f32> {
    if group == 1 {
        return parts;
    }
    let mut sums = vec![0.0; parts.len() / group];
    sums.par_chunks_mut(size).zip(parts.par_chunks(group * size)).for_each(|(sum, parts)| {
        for part in parts.chunks_exact(size) {
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
    });
    sums
}

/// The input of an attention over sequences side by side.
#[derive(Debug, Clone)]
struct PackedInputs {
    /// `[1, N, 3H, Dh]`
    qkv: FlexTensor,
    lengths: Vec<usize>,
}

impl PackedInputs {
    fn new(qkv: FlexTensor, lengths: Vec<usize>) -> Self {
        let shape = qkv.shape();
        assert_eq!(lengths.iter().sum::<usize>(), shape[0], "the sequences are all positions");
        let qkv = contiguous(qkv).reshape(Shape::new([1, shape[0], shape[1], shape[2]]));
        Self { qkv, lengths }
    }

    /// Positions, heads of the queries, head dimension.
    fn dims(&self) -> [usize; 3] {
        let shape = self.qkv.layout().shape();
        [shape[1], shape[2] / 3, shape[3]]
    }

    /// Queries, keys and values.
    fn parts(&self) -> [FlexTensor; 3] {
        let [_, heads, _] = self.dims();
        [0, 1, 2].map(|part| self.qkv.narrow(2, part * heads, heads))
    }

    fn sequences(&self) -> Vec<Sequence> {
        let mut first = 0;
        let sequence = |length: &usize| {
            first += length;
            Sequence { row: 0, first: first - length, queries: *length, keys: *length, bias: 0 }
        };
        self.lengths.iter().map(sequence).collect()
    }

    /// `[N, H · Dh]`
    fn forward(&self) -> (FlexTensor, Statistics) {
        let [positions, heads, width] = self.dims();
        let [q, k, v] = self.parts();
        let (output, statistics) = Attention::new([&q, &k, &v], self.sequences(), Rule::All).forward();
        (tensor(output, Shape::new([positions, heads * width])), statistics)
    }

    /// `[N, 3H, Dh]`, lying in memory as `[3H, N, Dh]`.
    fn backward(&self, output_and_grad: [FlexTensor; 2], statistics: &Statistics) -> FlexTensor {
        let [positions, heads, width] = self.dims();
        let output_and_grad = output_and_grad
            .map(|tensor| contiguous(tensor).reshape(Shape::new([1, positions, heads, width])));
        let vectors = output_and_grad.each_ref().map(vectors);
        let [q, k, v] = self.parts();
        let sequences = self.sequences();
        let attention = Attention::new([&q, &k, &v], sequences.clone(), Rule::All);
        let mut grad = vec![0.0; 3 * heads * positions * width];
        let part = (heads * positions * width).max(1);
        let parts = grad.chunks_mut(part).map(|part| parts_of_heads(part, &sequences, positions, width));
        let mut parts: Vec<_> = parts.map(Vec::into_iter).collect();
        let mut next = || parts.iter_mut().map(Iterator::next).collect::<Option<Vec<_>>>();
        let tasks: Vec<_> = std::iter::from_fn(|| next()?.try_into().ok()).collect();
        tasks.into_par_iter().enumerate().for_each(|(index, grads): (usize, [&mut [f32]; 3])| {
            let head = (sequences[index % sequences.len()], index / sequences.len());
            attention.backward_head(head, vectors, statistics, grads);
        });
        tensor(grad, Shape::new([3 * heads, positions, width])).transpose(0, 1)
    }
}

/// Splits `[H, N, Dh]` into the parts of each sequence, head by head.
fn parts_of_heads<'a>(
    values: &'a mut [f32],
    sequences: &[Sequence],
    positions: usize,
    width: usize,
) -> Vec<&'a mut [f32]> {
    let split = |mut head: &'a mut [f32]| {
        let part = |sequence: &Sequence| {
            let (part, rest) = std::mem::take(&mut head).split_at_mut(sequence.queries * width);
            head = rest;
            part
        };
        sequences.iter().map(part).collect::<Vec<_>>()
    };
    values.chunks_mut((positions * width).max(1)).flat_map(split).collect()
}

#[derive(Debug)]
struct AttentionBackward;

impl Backward<Flex, 3> for AttentionBackward {
    type State = (Inputs, FlexTensor, Statistics);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (inputs, output, statistics) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node);
        let of_inputs = inputs.backward([output, grad], &statistics);
        for (node, grad) in ops.parents.into_iter().zip(of_inputs) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct PackedAttentionBackward;

impl Backward<Flex, 1> for PackedAttentionBackward {
    type State = (PackedInputs, FlexTensor, Statistics);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (inputs, output, statistics) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node);
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<Flex>(node.id, inputs.backward([output, grad], &statistics));
        }
    }
}
