//! Scaled dot-product attention with a backward pass, whose scores are never held.
//!
//! The plain version keeps the weights `[B, H, S, Sk]` for the backward pass and forms several temporaries of their size: of 1024
//! patches in 8 heads, 34 MB each. Here a thread holds the scores of a few queries at a time, and the backward pass computes them
//! anew from maximum and sum of each row.
//!
//! Source: Dao, "FlashAttention-2" (2023); the rows are whole, so that no sum is corrected later.
//!
//! Dimensions: `B` rows, `H` query heads, `Hk` key heads, `S` queries, `Sk` keys, `Dh` head dimension, `N` positions of all sequences.

#[cfg(feature = "cpu")]
mod block;

use burn::tensor::{DType, Tensor, TensorData};

use crate::attention::attention;
use crate::rotary::{RotaryPairs, rotary_of_heads};

/// Which keys a query attends to.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "a tensor's size goes with the backends; a mask is moved once a layer"
)]
pub enum AttentionMask {
    /// All.
    None,
    /// Those at its own position and before; the queries are at the last `S` of `Sk` positions.
    Causal,
    /// Those to whose scores nothing large and negative is added, `[B or 1, 1, S, Sk]`, f32.
    Bias(Tensor<4>),
}

/// Attention; key head `g` serves query heads `g · H / Hk` up to the next one's.
///
/// # Shapes
///
/// - q, output: `[B, H, S, Dh]`
/// - k, v: `[B, Hk, Sk, Dh]`
pub fn tracked_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: AttentionMask) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    if [&q, &k, &v].into_iter().all(crate::device::is_cpu_f32) {
        return cpu::attention(q, k, v, mask);
    }
    attention_with_weights(q, k, v, mask).0
}

/// Bidirectional attention within each of several sequences, whose queries, keys and values lie side by side. Queries and keys are
/// rotated first, in f32 whatever their type.
///
/// # Shapes
///
/// - qkv: `[N, 3H, Dh]`, queries first
/// - cos, sin: `[N, 1, Dh]`, as [`rotary`](crate::rotary) takes them
/// - lengths: sum to `N`
/// - output: `[N, H · Dh]`
pub fn packed_attention(
    qkv: Tensor<3>,
    [cos, sin]: [Tensor<3>; 2],
    pairs: RotaryPairs,
    lengths: &[usize],
) -> Tensor<2> {
    let tables = [cos.unsqueeze::<4>(), sin.unsqueeze()];
    #[cfg(feature = "cpu")]
    if qkv.is_autodiff() && crate::device::is_cpu_f32(&qkv) {
        let heads = qkv.dims()[1] / 3;
        let qkv = rotary_of_heads(qkv.unsqueeze::<4>(), tables, pairs, 2 * heads);
        return cpu::packed_attention(qkv.squeeze_dim::<3>(0), lengths);
    }
    plain_packed_attention(qkv, tables, pairs, lengths)
}

/// As [`packed_attention`]; sequences of one length that follow each other are rows of one batch.
fn plain_packed_attention(
    qkv: Tensor<3>,
    tables: [Tensor<4>; 2],
    pairs: RotaryPairs,
    lengths: &[usize],
) -> Tensor<2> {
    let [_, all_heads, head_dim] = qkv.dims();
    let (dtype, heads) = (qkv.dtype(), all_heads / 3);
    let q_and_k = qkv.clone().narrow(1, 0, 2 * heads).cast(DType::F32).unsqueeze::<4>();
    let rotated = rotary_of_heads(q_and_k, tables, pairs, 2 * heads).squeeze_dim::<3>(0).cast(dtype);
    let values = qkv.narrow(1, 2 * heads, heads);
    let mut first = 0;
    let outputs = lengths.chunk_by(|a, b| a == b).filter(|group| group[0] > 0).map(|group| {
        let (rows, length) = (group.len(), group[0]);
        let part = |x: &Tensor<3>, first_head: usize| {
            let part = x.clone().narrow(0, first, rows * length).narrow(1, first_head, heads);
            part.reshape([rows, length, heads, head_dim]).swap_dims(1, 2)
        };
        let [q, k, v] = [part(&rotated, 0), part(&rotated, heads), part(&values, 0)];
        first += rows * length;
        let output = if q.is_autodiff() {
            attention_with_weights(q, k, v, AttentionMask::None).0
        } else {
            attention(q, k, v, false, None)
        };
        output.swap_dims(1, 2).reshape([rows * length, heads * head_dim])
    });
    Tensor::cat(outputs.collect(), 0)
}

/// As [`attention`], with the attention weights, made of Burn's operations.
///
/// Burn's own differentiable fallback sends gradients through the row maximum and two clamps, which change nothing.
///
/// # Shapes
///
/// - output: `[B, H, S, Dh]`
/// - weights: `[B, H, S, Sk]`
pub fn attention_with_weights(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: AttentionMask,
) -> (Tensor<4>, Tensor<4>) {
    let (dtype, [_, heads, queries, head_dim]) = (q.dtype(), q.dims());
    let [_, key_heads, keys, _] = k.dims();
    let bias = match mask {
        AttentionMask::None => None,
        AttentionMask::Causal => Some(causal_bias(queries, keys, &q)),
        AttentionMask::Bias(bias) => Some(bias),
    };
    // Scaled before the product: fewer values than the scores, and no overflow in f16.
    let q = fold_groups(q, key_heads) * (head_dim as f64).powf(-0.5);
    let scores = q.matmul(k.transpose()).cast(DType::F32); // [B, Hk, G·S, Sk]; f32: softmax as the reference
    let scores = match bias {
        Some(bias) => {
            // Queries of several heads are folded into one: the same mask for each of them.
            let [rows, key_heads, folded, keys] = scores.dims();
            let scores = scores.reshape([rows, key_heads, folded / queries, queries, keys]);
            (scores + bias.unsqueeze_dim::<5>(2)).reshape([rows, key_heads, folded, keys])
        }
        None => scores,
    };
    // Detached: the maximum cancels in the quotient, and has no gradient.
    let row_max = scores.clone().detach().max_dim(3);
    let weights = (scores - row_max).exp();
    let weights = (weights.clone() / weights.sum_dim(3)).cast(dtype);
    (unfold_groups(weights.clone().matmul(v), heads), unfold_groups(weights, heads))
}

/// What hides the keys after each query, `[1, 1, S, Sk]`.
fn causal_bias(queries: usize, keys: usize, like: &Tensor<4>) -> Tensor<4> {
    let hidden = |query: usize| {
        let visible = keys - queries + query;
        (0..keys).map(move |key| if key <= visible { 0.0 } else { f32::MIN })
    };
    let bias: Vec<f32> = (0..queries).flat_map(hidden).collect();
    Tensor::from_data(TensorData::new(bias, [1, 1, queries, keys]), (&like.device(), DType::F32))
}

/// Heads that share a key head become more queries of it, so that no key is copied: `[B, H, S, _]` to `[B, Hk, G·S, _]`.
fn fold_groups(x: Tensor<4>, key_heads: usize) -> Tensor<4> {
    let [rows, heads, queries, last] = x.dims();
    x.reshape([rows, key_heads, heads / key_heads * queries, last])
}

/// The reverse of [`fold_groups`].
fn unfold_groups(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [rows, key_heads, folded, last] = x.dims();
    x.reshape([rows, heads, key_heads * folded / heads, last])
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::{DType, Shape, Tensor};
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::cpu::{Rows, contiguous, tensor, values, with_rows};
    use crate::tracked_attention::AttentionMask;
    use crate::tracked_attention::block::{Attention, Rule, Sequence, Statistics};

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
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::check::{self, Inputs};

    /// Rows, query heads, key heads, queries, keys, head dimension.
    type Dims = [usize; 6];

    /// More queries than a block holds, grouped heads, cached keys, one of everything.
    const DIMS: [Dims; 5] = [
        [1, 1, 1, 1, 1, 1],
        [2, 4, 2, 5, 5, 6],
        [2, 3, 3, 7, 12, 5],
        [1, 6, 2, 150, 150, 8],
        [2, 2, 1, 33, 700, 3],
    ];

    fn shapes([rows, heads, key_heads, queries, keys, width]: Dims) -> [[usize; 4]; 3] {
        [[rows, heads, queries, width], [rows, key_heads, keys, width], [rows, key_heads, keys, width]]
    }

    /// Hides every third key of the first row, and with one row more, later keys of the second.
    fn bias([rows, _, _, queries, keys, _]: Dims) -> Tensor<4> {
        let hides = |row: usize, query: usize, key: usize| if row == 0 { key % 3 == 2 } else { key > query };
        let values = (0..rows).flat_map(|row| {
            (0..queries).flat_map(move |query| {
                (0..keys).map(move |key| if hides(row, query, key) { f32::MIN } else { 0.0 })
            })
        });
        let data = TensorData::new(values.collect::<Vec<f32>>(), [rows, 1, queries, keys]);
        Tensor::from_data(data, &burn::tensor::Device::flex().autodiff())
    }

    fn qkv(inputs: &Inputs) -> [Tensor<4>; 3] {
        [inputs.get(0), inputs.get(1), inputs.get(2)]
    }

    #[test]
    fn value_and_gradients_equal_the_plain_version_with_every_mask() {
        for dims in DIMS {
            let shapes = shapes(dims);
            let one_row = [1, dims[1], dims[2], dims[3], dims[4], dims[5]];
            let masks = [
                AttentionMask::None,
                AttentionMask::Causal,
                AttentionMask::Bias(bias(dims)),
                AttentionMask::Bias(bias(one_row)),
            ];
            for mask in masks {
                check::equals_plain(
                    &shapes.each_ref().map(|shape| shape.as_slice()),
                    |inputs| {
                        let [q, k, v] = qkv(inputs);
                        tracked_attention(q, k, v, mask.clone())
                    },
                    |inputs| {
                        let [q, k, v] = qkv(inputs);
                        attention_with_weights(q, k, v, mask.clone()).0
                    },
                );
            }
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_value() {
        for mask in [AttentionMask::None, AttentionMask::Causal] {
            check::equals_finite_differences(&[&[1, 4, 3, 5], &[1, 2, 4, 5], &[1, 2, 4, 5]], |inputs| {
                let [q, k, v] = qkv(inputs);
                tracked_attention(q, k, v, mask.clone())
            });
        }
    }

    #[test]
    fn a_query_that_sees_no_key_has_the_gradients_of_the_plain_version() {
        let hidden = Tensor::full([1, 1, 3, 4], f32::MIN, &burn::tensor::Device::flex().autodiff());
        check::equals_plain(
            &[&[1, 2, 3, 5], &[1, 2, 4, 5], &[1, 2, 4, 5]],
            |inputs| {
                let [q, k, v] = qkv(inputs);
                tracked_attention(q, k, v, AttentionMask::Bias(hidden.clone()))
            },
            |inputs| {
                let [q, k, v] = qkv(inputs);
                attention_with_weights(q, k, v, AttentionMask::Bias(hidden.clone())).0
            },
        );
    }

    /// A table that rotates nothing, and one that does, `[N, 1, Dh]`.
    fn tables(positions: usize, width: usize) -> [[Tensor<3>; 2]; 2] {
        let table = |of: fn(f32) -> f32, sign: f32| {
            let value = move |at: usize| {
                let first = at % width < width / 2;
                of((at / width) as f32 * 0.1) * if first { sign } else { 1.0 }
            };
            let values: Vec<f32> = (0..positions * width).map(value).collect();
            let data = TensorData::new(values, [positions, 1, width]);
            Tensor::<3>::from_data(data, &burn::tensor::Device::flex().autodiff())
        };
        let rotating = [table(f32::cos, 1.0), table(f32::sin, -1.0)];
        [[rotating[0].ones_like(), rotating[1].zeros_like()], rotating]
    }

    #[test]
    fn sequences_side_by_side_attend_to_themselves_alone() {
        for (lengths, heads, width) in [(vec![4, 4, 3, 1], 2, 6), (vec![700], 1, 4), (vec![90, 0, 200], 3, 4)]
        {
            let positions: usize = lengths.iter().sum();
            let pairs = RotaryPairs { distance: width / 2, rotary_dim: width };
            let [still, _] = tables(positions, width);
            check::equals_plain(
                &[&[positions, 3 * heads, width]],
                |inputs| packed_attention(inputs.get(0), still.clone(), pairs, &lengths),
                |inputs| {
                    let qkv = inputs.get::<3>(0);
                    let mut first = 0;
                    let outputs = lengths.iter().filter(|length| **length > 0).map(|length| {
                        let sequence = qkv.clone().narrow(0, first, *length).swap_dims(0, 1).unsqueeze::<4>();
                        first += length;
                        let part = |at: usize| sequence.clone().narrow(1, at * heads, heads);
                        let (output, _) =
                            attention_with_weights(part(0), part(1), part(2), AttentionMask::None);
                        output.swap_dims(1, 2).reshape([*length, heads * width])
                    });
                    Tensor::cat(outputs.collect(), 0)
                },
            );
        }
    }

    #[test]
    fn packed_attention_equals_the_plain_version() {
        let lengths = [4, 4, 3, 1, 0];
        let pairs = RotaryPairs { distance: 3, rotary_dim: 6 };
        for tables in tables(12, 6) {
            check::equals_plain(
                &[&[12, 6, 6]],
                |inputs| packed_attention(inputs.get(0), tables.clone(), pairs, &lengths),
                |inputs| {
                    let tables = tables.clone().map(|table| table.unsqueeze::<4>());
                    plain_packed_attention(inputs.get(0), tables, pairs, &lengths)
                },
            );
        }
    }

    #[test]
    fn threads_change_no_bit() {
        check::has_same_bits_on_any_threads(
            &[&[2, 4, 150, 16], &[2, 2, 150, 16], &[2, 2, 150, 16]],
            |inputs| {
                let [q, k, v] = qkv(inputs);
                tracked_attention(q, k, v, AttentionMask::Causal)
            },
        );
    }
}
