//! Weights and inputs, drawn from names: the same in `tests/fixtures/oracle/selftest.py`.
//!
//! Uniform values, because integers divided by a power of two are the same numbers in every language; logarithms and cosines, which normal
//! values take, are not. All are rounded to bf16, so that networks of every type have the same weights.

use glm4v_inputs::SplitMix64;
use half::bf16;

/// `count` values of this mean and standard deviation.
pub(crate) fn values(name: &str, seed: u64, count: usize, center: f64, deviation: f64) -> Vec<f32> {
    let mut random = SplitMix64::new(state(name, seed));
    let half_width = deviation * 3.0f64.sqrt();
    let mut draw = || {
        let unit = ((random.next_u64() >> 48) as f64 - 32767.5) / 32768.0;
        bf16::from_f32((center + half_width * unit) as f32).to_f32()
    };
    (0..count).map(|_| draw()).collect()
}

/// A stream of its own for each name (FNV-1a) and seed.
fn state(name: &str, seed: u64) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    hash ^ seed.wrapping_mul(SplitMix64::INCREMENT)
}

/// The values of a parameter: matrices keep the scale of their input, norms scatter around 1, biases around 0.
pub(crate) fn weight(name: &str, seed: u64, shape: &[usize]) -> Vec<f32> {
    let (center, deviation) = distribution(name, shape);
    values(name, seed, shape.iter().product(), center, deviation)
}

/// Mean and standard deviation of a parameter.
fn distribution(name: &str, shape: &[usize]) -> (f64, f64) {
    let fan_in = shape.iter().skip(1).product::<usize>() as f64;
    match name {
        // Wide, so that no choice of experts is close.
        _ if name.ends_with("e_score_correction_bias") => (0.0, 1.0),
        _ if name.ends_with("bias") => (0.0, 0.2),
        _ if shape.len() == 1 => (1.0, 0.2),
        _ if name.contains("position_embedding") => (0.0, 0.5),
        _ if name.contains("embed_tokens") => (0.0, 0.7),
        _ if name.ends_with("mlp.gate.weight") => (0.0, 2.0 / fan_in.sqrt()),
        _ if name.ends_with(".lora.a") => (0.0, 1.0 / fan_in.sqrt()),
        _ if name.ends_with(".lora.b") => (0.0, 0.1),
        _ if name.starts_with("lm_head") => (0.0, 2.0 / fan_in.sqrt()),
        _ => (0.0, 1.4 / fan_in.sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_script() {
        // Printed by selftest.py: values("x", (4,), 0.5, 2.0) with SEED = 3.
        assert_eq!(values("x", 3, 4, 0.5, 2.0), [1.6171875, 2.25, -0.47265625, -1.140625]);
    }

    #[test]
    fn values_have_their_mean_and_deviation() {
        let values = values("pixels", 1, 4000, 0.5, 2.0);
        let mean = values.iter().sum::<f32>() / 4000.0;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 4000.0;

        assert!((mean - 0.5).abs() < 0.1 && (variance.sqrt() - 2.0).abs() < 0.05, "{mean} {variance}");
    }
}
