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
#[cfg(feature = "cpu")]
mod cpu;

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
