//! The exponential function of both signs, for loops that the compiler turns into vector instructions.

/// `e^x`, within two units in the last place; 0 below -87, and `e^88` above 88.
///
/// As [`exp`](super::exp()), for loops over slices: plain arithmetic without branches, which become vector instructions, with the same
/// bits whatever their width.
#[inline(always)]
pub(crate) fn exp_of(x: f32) -> f32 {
    // 1.5 · 2^23: a sum with it has no fraction left, and its low bits are the integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as a number of few bits, whose multiples are exact, and the rest.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x_in_range = x.clamp(-87.0, 88.0); // not `max` and `min`, which would lose NaN
    let shifted = x_in_range * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let rest = x_in_range - power * LN_2_HIGH - power * LN_2_LOW; // at most ln 2 / 2 in size
    // Coefficients of Cephes' expf.
    let polynomial = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]
        .into_iter()
        .fold(1.987_569_1e-4, |sum, coefficient| sum * rest + coefficient);
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
