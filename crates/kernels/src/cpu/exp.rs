//! The exponential function in vector instructions: libm's, one value at a time, takes longer than the rest of a softmax.

use pulp::Simd;

/// `e^x` for `x <= 0`, within 1e-7 of itself; 0 below -87, where results leave the normal numbers, and NaN for NaN.
///
/// Cody-Waite reduction to `[-ln 2 / 2, ln 2 / 2]` and the polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    // 1.5 · 2^23: adding it rounds to an integer, which the low bits of the sum then hold.
    let shift = splat(12_582_912.0);
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), shift);
    let whole = simd.sub_f32s(shifted, shift);
    // ln 2 in two parts, of which the first has few bits, so that its product is exact.
    let rest = simd.mul_add_f32s(whole, splat(-0.693_359_4), x);
    let rest = simd.mul_add_f32s(whole, splat(2.121_944_4e-4), rest);
    let mut sum = splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        sum = simd.mul_add_f32s(sum, rest, splat(coefficient));
    }
    // Times 2^whole, by addition to the exponent's bits.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(sum), exponent));
    simd.select_f32s(simd.less_than_f32s(x, splat(-87.0)), splat(0.0), power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::WithSimd;

    struct Exp(Vec<f32>);

    impl WithSimd for Exp {
        type Output = Vec<f32>;

        #[inline(always)]
        fn with_simd<S: Simd>(mut self, simd: S) -> Vec<f32> {
            for values in self.0.chunks_mut(S::F32_LANES) {
                let powers = exp(simd, simd.partial_load_f32s(values));
                simd.partial_store_f32s(values, powers);
            }
            self.0
        }
    }

    #[test]
    fn powers_are_those_of_double_precision_on_every_instruction_set() {
        let inputs: Vec<f32> = (0..200_000).map(|at| at as f32 * -87.0 / 200_000.0).collect();

        for found in [
            pulp::Arch::new().dispatch(Exp(inputs.clone())),
            pulp::Scalar::new().vectorize(Exp(inputs.clone())),
        ] {
            for (x, found) in inputs.iter().zip(found) {
                let expected = f64::from(*x).exp();
                assert!(
                    (f64::from(found) - expected).abs() <= 1.2e-7 * expected,
                    "{x}: {found}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn hidden_scores_vanish_and_broken_ones_stay_broken() {
        let found = pulp::Arch::new().dispatch(Exp(vec![f32::NEG_INFINITY, f32::MIN, -87.5, 0.0, f32::NAN]));

        assert_eq!(found[..4], [0.0, 0.0, 0.0, 1.0]);
        assert!(found[4].is_nan());
    }
}
