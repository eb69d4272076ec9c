//! Scaled dot-product attention, without the matrix of its scores.
//!
//! Two kernels, as two things are wanted: where no gradient is, scores stay in registers and one pass over the keys is all; one that is
//! differentiated ([`tracked`]) holds whole rows of scores, so that products go through `gemm` and the backward pass repeats them.
//!
//! Dimensions: `B` rows, `H` query heads, `Hk` key heads, `G = H / Hk`, `S` queries, `T` keys, `Dh` head dimension.

#[cfg(feature = "cpu")]
mod block;
#[cfg(feature = "cpu")]
mod cpu;
pub(crate) mod tracked;

use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Tensor, module};

/// Attention with grouped queries: key head `g` serves query heads `g · G` to `g · G + G - 1`.
///
/// If `causal`, the queries stand at the last `S` of the `T` positions and attend to no later ones. `padding` is true where no query
/// attends to a key. The result of a query that attends to nothing is finite and undefined.
///
/// # Shapes
///
/// - q, output: `[B, H, S, Dh]`
/// - k, v: `[B, Hk, T, Dh]`
/// - padding: `[B, T]`
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    causal: bool,
    padding: Option<Tensor<2, Bool>>,
) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    if [&q, &k, &v].into_iter().all(crate::device::is_plain_cpu_f32) {
        return cpu::attention(q, k, v, causal, padding);
    }
    plain_attention(q, k, v, causal, padding)
}

fn plain_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    causal: bool,
    padding: Option<Tensor<2, Bool>>,
) -> Tensor<4> {
    let [rows, heads, queries, _] = q.dims();
    let [_, key_heads, keys, head_dim] = k.dims();
    let groups = heads / key_heads;
    let hidden = |heads: usize, queries: usize| {
        padding.clone().map(|padding| {
            padding
                .unsqueeze_dims::<4>(&[1, 1]) // [B, 1, 1, T]
                .expand([rows, heads, queries, keys])
        })
    };
    if queries == 1 {
        // Heads that share a key head become more queries of it, so that no key is copied.
        let folded = q.reshape([rows, key_heads, groups, head_dim]);
        let options = AttentionModuleOptions::default();
        let output = module::attention(folded, k, v, hidden(key_heads, groups), None, options);
        return output.reshape([rows, heads, 1, head_dim]);
    }
    // Folded queries would need a mask of the size of the scores; copied keys are smaller, and a flash kernel can
    // take the causal flag.
    let repeat = |x: Tensor<4>| {
        x.unsqueeze_dim::<5>(2)
            .expand([rows, key_heads, groups, keys, head_dim])
            .reshape([rows, heads, keys, head_dim])
    };
    let (k, v) = if groups == 1 { (k, v) } else { (repeat(k), repeat(v)) };
    let options = AttentionModuleOptions { is_causal: causal, ..Default::default() };
    module::attention(q, k, v, hidden(heads, queries), None, options)
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, TensorData, Tolerance};

    fn random(shape: [usize; 4]) -> Tensor<4> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    /// Queries, keys and values of two rows.
    fn inputs([heads, key_heads, queries, keys, dim]: [usize; 5]) -> [Tensor<4>; 3] {
        [[2, heads, queries, dim], [2, key_heads, keys, dim], [2, key_heads, keys, dim]].map(random)
    }

    #[track_caller]
    fn assert_equals_plain([q, k, v]: [Tensor<4>; 3], causal: bool, padding: Option<Tensor<2, Bool>>) {
        let plain = plain_attention(q.clone(), k.clone(), v.clone(), causal, padding.clone()).into_data();
        let own = attention(q, k, v, causal, padding).into_data();
        own.assert_approx_eq::<f32>(&plain, Tolerance::absolute(2e-6));
    }

    #[test]
    fn blocks_equal_the_plain_attention_on_odd_shapes() {
        for shape in [
            [1, 1, 1, 1, 1],
            [4, 2, 1, 97, 5],
            [6, 2, 3, 3, 16],
            [3, 1, 70, 70, 33],
            [2, 2, 131, 131, 64],
            [12, 2, 20, 203, 24],
            [70, 1, 2, 5, 8],
        ] {
            for causal in [false, true] {
                assert_equals_plain(inputs(shape), causal, None);
            }
        }
    }

    #[test]
    fn padding_is_not_attended_to() {
        let hidden = |at: usize| at < 40 || at == 103;
        let mask: Vec<bool> = (0..2 * 110).map(|at| at >= 110 && hidden(at - 110)).collect();
        let padding = Tensor::<2, Bool>::from_data(TensorData::new(mask, [2, 110]), &Device::flex());

        for causal in [false, true] {
            assert_equals_plain(inputs([4, 2, 60, 110, 20]), causal, Some(padding.clone()));
        }
    }

    #[test]
    fn a_query_without_keys_is_finite() {
        let [q, k, v] = inputs([2, 1, 3, 3, 8]);
        let padding =
            Tensor::<2, Bool>::from_data([[true, false, false], [true, true, true]], &Device::flex());

        let found: Vec<f32> = attention(q, k, v, true, Some(padding)).into_data().try_to_vec().unwrap();

        assert!(found.iter().all(|value| value.is_finite()), "{found:?}");
    }

    #[test]
    fn views_are_read_where_they_lie() {
        let [q, k, v] = [random([2, 9, 4, 12]), random([2, 30, 2, 12]), random([2, 2, 40, 14])];
        let (q, k, v) = (q.swap_dims(1, 2), k.swap_dims(1, 2), v.slice([0..2, 0..2, 5..35, 1..13]));

        assert_equals_plain([q.clone(), k.clone(), v.clone()], true, None);
        assert_equals_plain([q.flip([2]), k.swap_dims(2, 3).swap_dims(2, 3).flip([3]), v], false, None);
    }

    #[test]
    fn broken_scores_show() {
        let [q, k, v] = inputs([1, 1, 2, 3, 4]);
        let k = k.slice_fill([0..1, 0..1, 1..2, 0..1], f32::NAN);

        let found: Vec<f32> = attention(q, k, v, false, None).into_data().try_to_vec().unwrap();

        assert!(
            found[..8].iter().all(|value| value.is_nan()) && found[8..].iter().all(|value| value.is_finite())
        );
    }

    #[test]
    fn values_do_not_depend_on_the_number_of_threads() {
        let [q, k, v] = inputs([6, 2, 150, 180, 32]);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| attention(q.clone(), k.clone(), v.clone(), true, None).into_data())
        };

        assert_eq!(run(1), run(3));
    }

    #[test]
    fn nothing_in_is_nothing_out() {
        assert_eq!(
            attention(random([1, 2, 0, 4]), random([1, 1, 3, 4]), random([1, 1, 3, 4]), false, None).dims(),
            [1, 2, 0, 4]
        );
        assert_eq!(
            attention(random([0, 2, 3, 4]), random([0, 1, 3, 4]), random([0, 1, 3, 4]), true, None).dims(),
            [0, 2, 3, 4]
        );
    }
}
