//! Causal attention, and its masks.
//!
//! Dimensions: `B` rows, `H` query heads, `Hk` key heads, `G = H / Hk`, `S` queries, `Sk` keys, `Dh` head dimension.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_kernels::{self as kernels, AttentionMask};

/// How attention runs, which determines what a [`CausalMask`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionImplementation {
    /// Burn's fused kernels, which keep nothing for a backward pass.
    Fused,
    /// The kernel of `glm4v-kernels`, which has a backward pass, where there is one.
    OwnKernel,
    /// Operations that have gradients and attention weights everywhere.
    Eager,
}

/// Bidirectional attention: every query attends to every key.
///
/// # Shapes
///
/// - q, k, v, output: `[B, H, S, Dh]`
pub fn bidirectional_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    if q.is_autodiff() {
        kernels::tracked_attention(q, k, v, AttentionMask::None)
    } else {
        kernels::attention(q, k, v, false, None)
    }
}

/// Which keys the queries of a sequence attend to: no later ones, no padding, none of another segment.
///
/// Made once for a forward pass and shared by its layers.
#[derive(Debug, Clone)]
pub struct CausalMask {
    /// True where a key is padding, `[B, Sk]`; none if no query could see one. For fused kernels.
    key_padding_mask: Option<Tensor<2, Bool>>,
    /// What is added to the scores, `[B or 1, 1, S, Sk]`; none where causality is the whole mask, unless attention is eager.
    attn_bias: Option<Tensor<4>>,
}

impl CausalMask {
    /// Builds the mask for the last `queries` of `keys` positions.
    ///
    /// `segment_ids`, `[B, Sk]` row-major, are 0 for padding. Packed rows have no fused kernel, and get an eager mask.
    pub fn new(
        segment_ids: &[u32],
        [rows, keys]: [usize; 2],
        queries: usize,
        implementation: AttentionImplementation,
        device: &Device,
    ) -> Self {
        let mut segments = segment_ids.chunks(keys.max(1));
        let packed = segments.clone().any(is_packed);
        let left_padded = segments.any(is_left_padded);
        // Right padding hides nothing that causality does not.
        let causal_only = !packed && !left_padded;
        match implementation {
            AttentionImplementation::Fused if !packed => {
                let padding: Vec<bool> = segment_ids.iter().map(|segment| *segment == 0).collect();
                let padding = || Tensor::from_data(TensorData::new(padding, [rows, keys]), device);
                return Self { key_padding_mask: left_padded.then(padding), attn_bias: None };
            }
            AttentionImplementation::OwnKernel if causal_only => {
                return Self { key_padding_mask: None, attn_bias: None };
            }
            _ => {}
        }
        // One mask for all rows where they do not differ.
        let rows = if causal_only { 1 } else { rows };
        let mut bias = Vec::with_capacity(rows * queries * keys);
        for segments in segment_ids.chunks(keys.max(1)).take(rows) {
            for query in keys - queries..keys {
                let attends = |key: usize| {
                    let own = segments[query] == 0 || segments[key] == segments[query];
                    key <= query && (causal_only || segments[key] != 0 && own)
                };
                // Not -inf: a padded query attends to nothing, and its softmax must stay finite.
                bias.extend((0..keys).map(|key| if attends(key) { 0.0 } else { f32::MIN }));
            }
        }
        let bias = TensorData::new(bias, [rows, 1, queries, keys]);
        Self { key_padding_mask: None, attn_bias: Some(Tensor::from_data(bias, (device, DType::F32))) }
    }
}

/// Whether a row has padding before a token. Padding on the right is hidden by causality.
fn is_left_padded(segments: &[u32]) -> bool {
    segments.windows(2).any(|pair| pair[0] == 0 && pair[1] != 0)
}

/// Whether a row holds more than one sample.
fn is_packed(segments: &[u32]) -> bool {
    segments.windows(2).any(|pair| pair[0] != 0 && pair[1] != 0 && pair[0] != pair[1])
}

/// Causal attention with grouped queries: key head `g` serves query heads `g · G` to `g · G + G - 1`.
///
/// # Shapes
///
/// - q, output: `[B, H, S, Dh]`
/// - k, v: `[B, Hk, Sk, Dh]`, the last `S` of them at the positions of the queries
pub fn causal_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &CausalMask) -> Tensor<4> {
    if let Some(bias) = &mask.attn_bias {
        return kernels::tracked_attention(q, k, v, AttentionMask::Bias(bias.clone()));
    }
    if q.is_autodiff() {
        return kernels::tracked_attention(q, k, v, AttentionMask::Causal);
    }
    kernels::attention(q, k, v, true, mask.key_padding_mask.clone())
}

/// As [`causal_attention`], of an eager mask, with the attention weights.
///
/// # Shapes
///
/// - output: `[B, H, S, Dh]`
/// - weights: `[B, H, S, Sk]`
///
/// # Panics
///
/// When the mask is not eager.
pub(crate) fn causal_attention_with_weights(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: &CausalMask,
) -> (Tensor<4>, Tensor<4>) {
    let bias = mask.attn_bias.clone().expect("a recorded pass has an eager mask");
    kernels::attention_with_weights(q, k, v, AttentionMask::Bias(bias))
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::AttentionImplementation::{Eager, Fused, OwnKernel};
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    /// Rows of 5 keys, the second padded on the left by 2; 4 query heads on 2 key heads.
    fn inputs() -> ([Tensor<4>; 3], Vec<u32>) {
        let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &Device::flex());
        let segments = vec![1, 1, 1, 1, 1, 0, 0, 1, 1, 1];
        ([random([2, 4, 5, 6]), random([2, 2, 5, 6]), random([2, 2, 5, 6])], segments)
    }

    #[test]
    fn the_eager_path_equals_the_kernel_where_there_is_no_padding() {
        let device = Device::flex();
        let ([q, k, v], segments) = inputs();
        let mask = |implementation| CausalMask::new(&segments, [2, 5], 5, implementation, &device);

        let kernel = causal_attention(q.clone(), k.clone(), v.clone(), &mask(Fused));
        let composed = causal_attention(q, k, v, &mask(Eager));

        for (row, first) in [(0, 0), (1, 2)] {
            let valid = |t: Tensor<4>| t.slice([row..row + 1, 0..4, first..5, 0..6]).into_data();
            valid(kernel.clone())
                .assert_approx_eq::<f32>(&valid(composed.clone()), Tolerance::absolute(1e-6));
        }
    }

    #[test]
    fn packed_segments_attend_as_if_they_were_alone() {
        let device = Device::flex();
        let ([q, k, v], _) = inputs();
        let whole = |implementation| {
            let mask = CausalMask::new(&[1, 1, 2, 2, 2, 1, 1, 1, 1, 0], [2, 5], 5, implementation, &device);
            causal_attention(q.clone(), k.clone(), v.clone(), &mask)
        };
        let part = |x: &Tensor<4>, row: usize, at: std::ops::Range<usize>| {
            x.clone().narrow(0, row, 1).narrow(2, at.start, at.len())
        };

        // A batch of one row has its own segments too, and its padding.
        for segments in [[1, 1, 2, 2, 2], [0, 0, 1, 1, 1]] {
            let [q, k, v] = [&q, &k, &v].map(|x| part(x, 0, 0..5));
            let mask = CausalMask::new(&segments, [1, 5], 5, Eager, &device);
            let last = part(&causal_attention(q.clone(), k.clone(), v.clone(), &mask), 0, 2..5).into_data();
            let [q, k, v] = [&q, &k, &v].map(|x| part(x, 0, 2..5));
            let alone = CausalMask::new(&[1; 3], [1, 3], 3, Fused, &device);
            last.assert_approx_eq::<f32>(
                &causal_attention(q, k, v, &alone).into_data(),
                Tolerance::absolute(1e-6),
            );
        }
        for (row, at) in [(0, 0..2), (0, 2..5), (1, 0..4)] {
            let segment = CausalMask::new(&vec![1; at.len()], [1, at.len()], at.len(), Fused, &device);
            let [q, k, v] = [&q, &k, &v].map(|x| part(x, row, at.clone()));
            let alone = causal_attention(q, k, v, &segment).into_data();
            for implementation in [Fused, OwnKernel, Eager] {
                let packed = part(&whole(implementation), row, at.clone()).into_data();
                packed.assert_approx_eq::<f32>(&alone, Tolerance::absolute(1e-6));
            }
        }
    }

    #[test]
    fn one_query_at_a_time_equals_the_whole_sequence() {
        let device = Device::flex();
        let ([q, k, v], segments) = inputs();
        let whole = causal_attention(
            q.clone(),
            k.clone(),
            v.clone(),
            &CausalMask::new(&segments, [2, 5], 5, Fused, &device),
        );

        for at in 2..5 {
            let seen: Vec<u32> = segments.chunks(5).flat_map(|row| row[..=at].to_vec()).collect();
            let mask = CausalMask::new(&seen, [2, at + 1], 1, Fused, &device);
            let step = causal_attention(
                q.clone().narrow(2, at, 1),
                k.clone().narrow(2, 0, at + 1),
                v.clone().narrow(2, 0, at + 1),
                &mask,
            );

            let expected = whole.clone().narrow(2, at, 1).into_data();
            step.into_data().assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
        }
    }
}
