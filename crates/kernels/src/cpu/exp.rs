//! The exponential function in vector instructions: libm's, one value at a time, takes longer than the rest of a softmax.
//!
//! Cody-Waite reduction to `[-ln 2 / 2, ln 2 / 2]` and the polynomial of Cephes' `expf`, in two forms: over the vectors of a kernel
//! that holds its values in registers, and for loops over slices, whose bits must not depend on the width of a vector.

use pulp::Simd;

/// 1.5 · 2^23: a sum with it has no fraction left, and its low bits are the integer.
const ROUND: f32 = 12_582_912.0;
/// ln 2 as a number of few bits, whose multiples are exact, and the rest.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Of `rest^7` down to `rest^2`.
const COEFFICIENTS: [f32; 6] =
    [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x` for `x <= 0`, within 1e-7 of itself; 0 below -87, where results leave the normal numbers, and NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let whole = simd.sub_f32s(shifted, splat(ROUND));
    // Loops, not folds: a closure that is not inlined computes without vector instructions.
    let mut rest = x;
    for ln_2 in LN_2 {
        rest = simd.mul_add_f32s(whole, splat(-ln_2), rest);
    }
    let mut sum = splat(0.0);
    for coefficient in COEFFICIENTS {
        sum = simd.mul_add_f32s(sum, rest, splat(coefficient));
    }
    for coefficient in [1.0, 1.0] {
        sum = simd.mul_add_f32s(sum, rest, splat(coefficient));
    }
    // Times 2^whole, by addition to the exponent's bits.
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(sum), exponent));
    simd.select_f32s(simd.less_than_f32s(x, splat(-87.0)), splat(0.0), power)
}

/// `e^x` of both signs, within two units in the last place; 0 below -87, and `e^88` above 88.
///
/// Plain arithmetic without branches, which the compiler turns into vector instructions.
#[inline(always)]
pub(crate) fn exp_of(x: f32) -> f32 {
    let x_in_range = x.clamp(-87.0, 88.0); // not `max` and `min`, which would lose NaN
    let shifted = x_in_range * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x_in_range - whole * LN_2[0] - whole * LN_2[1]; // at most ln 2 / 2 in size
    let [first, others @ ..] = COEFFICIENTS;
    let polynomial = others.into_iter().fold(first, |sum, coefficient| sum * rest + coefficient);
    let fraction = polynomial * rest * rest + rest + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { fraction * scale }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp_of(-x))
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

    #[test]
    fn values_are_those_of_f64_within_two_units_in_the_last_place() {
        for step in -86_900..=88_000 {
            let x = step as f32 / 1000.0 + 1e-4;

            let expected = f64::from(x.min(88.0)).exp();

            let error = (f64::from(exp_of(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error:e}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_defined() {
        assert_eq!(exp_of(0.0), 1.0);
        assert_eq!(exp_of(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_of(f32::MIN), 0.0);
        assert_eq!(exp_of(f32::MAX), exp_of(88.0));
        assert!(exp_of(88.0).is_finite());
        assert!(exp_of(f32::NAN).is_nan());
        assert!(sigmoid(f32::NAN).is_nan());
        assert_eq!([sigmoid(f32::MAX), sigmoid(0.0)], [1.0, 0.5]);
        assert!(sigmoid(f32::MIN) < f32::MIN_POSITIVE);
    }
}
