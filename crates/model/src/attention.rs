//! Scaled dot-product attention, for the vision tower and the text decoder.
//!
//! Dimensions: `B` rows, `H` query heads, `Hk` key heads, `G = H / Hk`, `S` queries, `Sk` keys, `Dh` width of a head.

use burn::prelude::*;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, TensorData};

/// Every query looks at every key.
///
/// # Shapes
///
/// - q, k, v, output: `[B, H, S, Dh]`
pub(crate) fn attend_all(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    if q.is_autodiff() {
        differentiable(q, k, v, None)
    } else {
        attention(q, k, v, None, None, AttentionModuleOptions::default())
    }
}

/// Which keys the queries of a sequence may look at: none that come later, none that are padding.
///
/// Made once for a forward pass and shared by its layers.
#[derive(Debug, Clone)]
pub(crate) struct CausalMask {
    /// True where a key is padding, `[B, Sk]`; none if no query could see one.
    hidden: Option<Tensor<2, Bool>>,
    /// What is added to the scores of a differentiable pass, `[B or 1, 1, S, Sk]`.
    added: Option<Tensor<4>>,
}

impl CausalMask {
    /// Builds the mask for the last `queries` of `keys` positions.
    ///
    /// `real` is false where a key is padding, `[B, Sk]`. With `tracked`, the pass is to be differentiated.
    pub(crate) fn new(
        real: &[bool],
        [rows, keys]: [usize; 2],
        queries: usize,
        tracked: bool,
        device: &Device,
    ) -> Self {
        // A row padded on the right hides nothing: its real queries come before the padding.
        let padded_on_the_left = |row: &[bool]| row.iter().skip_while(|real| **real).any(|real| *real);
        let padded = real.chunks(keys.max(1)).any(padded_on_the_left);
        if !tracked {
            let hidden: Vec<bool> = real.iter().map(|real| !real).collect();
            return Self {
                hidden: padded.then(|| Tensor::from_data(TensorData::new(hidden, [rows, keys]), device)),
                added: None,
            };
        }
        let rows = if padded { rows } else { 1 };
        let mut added = Vec::with_capacity(rows * queries * keys);
        for row in 0..rows {
            for query in keys - queries..keys {
                added.extend((0..keys).map(|key| {
                    let seen = key <= query && (!padded || real[row * keys + key]);
                    // Not -inf: a padded query sees nothing, and its softmax must stay finite.
                    if seen { 0.0 } else { f32::MIN }
                }));
            }
        }
        let shape = [rows, 1, queries, keys];
        Self {
            hidden: None,
            added: Some(Tensor::from_data(TensorData::new(added, shape), (device, DType::F32))),
        }
    }
}

/// Every query looks at the keys up to its own position; key head `g` serves query heads `g · G` to `g · G + G - 1`.
///
/// # Shapes
///
/// - q, output: `[B, H, S, Dh]`
/// - k, v: `[B, Hk, Sk, Dh]`, the last `S` of them at the positions of the queries
pub(crate) fn attend_causal(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: &CausalMask) -> Tensor<4> {
    let [rows, heads, queries, width] = q.dims();
    let [_, key_heads, keys, _] = k.dims();
    let groups = heads / key_heads;
    // Heads that share a key head become more queries of it: no key is copied.
    let fold = |q: Tensor<4>| q.reshape([rows, key_heads, groups * queries, width]);
    let unfold = |out: Tensor<4>| out.reshape([rows, heads, queries, width]);
    if let Some(added) = &mask.added {
        return unfold(differentiable(fold(q), k, v, Some(added.clone())));
    }
    let hidden = |heads: usize, queries: usize| {
        mask.hidden.clone().map(|hidden| {
            hidden
                .unsqueeze_dims::<4>(&[1, 1]) // [B, 1, 1, Sk]
                .expand([rows, heads, queries, keys])
        })
    };
    if queries == 1 {
        let hidden = hidden(key_heads, groups);
        return unfold(attention(fold(q), k, v, hidden, None, AttentionModuleOptions::default()));
    }
    // Folded queries would need a mask of the size of the scores; copied keys are smaller, and a flash kernel can
    // take the causal flag.
    let repeat = |x: Tensor<4>| {
        x.unsqueeze_dim::<5>(2)
            .expand([rows, key_heads, groups, keys, width])
            .reshape([rows, heads, keys, width])
    };
    let causal = AttentionModuleOptions { is_causal: true, ..Default::default() };
    attention(q, repeat(k), repeat(v), hidden(heads, queries), None, causal)
}

/// Attention made of operations whose gradients are cheap.
///
/// Burn's own differentiable fallback sends gradients through the row maximum and two clamps, which change nothing.
fn differentiable(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, added: Option<Tensor<4>>) -> Tensor<4> {
    let dtype = q.dtype();
    let width = q.dims()[3];
    let q = q * (width as f64).powf(-0.5);
    let scores = q.matmul(k.transpose()).cast(DType::F32); // [B, Hk, S, Sk]; f32: softmax as the reference
    let scores = match added {
        Some(added) => {
            // Queries of several heads may be folded into one: the same mask for each of them.
            let [rows, heads, folded, keys] = scores.dims();
            let queries = added.dims()[2];
            let scores = scores.reshape([rows, heads, folded / queries, queries, keys]);
            (scores + added.unsqueeze_dim::<5>(2)).reshape([rows, heads, folded, keys])
        }
        None => scores,
    };
    let top = scores.clone().detach().max_dim(3);
    let weights = (scores - top).exp();
    let weights = weights.clone() / weights.sum_dim(3);
    weights.cast(dtype).matmul(v)
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    /// Rows of 5 keys, the second padded on the left by 2; 4 query heads on 2 key heads.
    fn inputs() -> ([Tensor<4>; 3], Vec<bool>) {
        let random = |shape| Tensor::<4>::random(shape, Distribution::Default, &Device::flex());
        let real = vec![true, true, true, true, true, false, false, true, true, true];
        ([random([2, 4, 5, 6]), random([2, 2, 5, 6]), random([2, 2, 5, 6])], real)
    }

    #[test]
    fn the_differentiable_path_equals_the_kernel_at_real_positions() {
        let device = Device::flex();
        let ([q, k, v], real) = inputs();
        let mask = |tracked| CausalMask::new(&real, [2, 5], 5, tracked, &device);

        let kernel = attend_causal(q.clone(), k.clone(), v.clone(), &mask(false));
        let composed = attend_causal(q, k, v, &mask(true));

        for (row, first) in [(0, 0), (1, 2)] {
            let valid = |t: Tensor<4>| t.slice([row..row + 1, 0..4, first..5, 0..6]).into_data();
            valid(kernel.clone())
                .assert_approx_eq::<f32>(&valid(composed.clone()), Tolerance::absolute(1e-6));
        }
    }

    #[test]
    fn one_query_at_a_time_equals_the_whole_sequence() {
        let device = Device::flex();
        let ([q, k, v], real) = inputs();
        let whole = attend_causal(
            q.clone(),
            k.clone(),
            v.clone(),
            &CausalMask::new(&real, [2, 5], 5, false, &device),
        );

        for at in 2..5 {
            let seen: Vec<bool> = real.chunks(5).flat_map(|row| row[..=at].to_vec()).collect();
            let mask = CausalMask::new(&seen, [2, at + 1], 1, false, &device);
            let step = attend_causal(
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
