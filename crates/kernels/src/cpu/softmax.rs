//! Parts of a softmax, in sums whose order no vector width changes.

use super::exp::exp_of;

const LANES: usize = 32;

/// The largest value, which is none that is not a number.
#[inline(always)]
pub(crate) fn maximum(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::MIN; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    let largest = lanes.into_iter().fold(f32::MIN, larger);
    rest.iter().copied().fold(largest, larger)
}

/// Replaces values by `e^(value - largest)`; returns the sum, whose order no vector width changes.
#[inline(always)]
pub(crate) fn exponentials(values: &mut [f32], largest: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp_of(chunk[lane] - largest);
            lanes[lane] += chunk[lane];
        }
    }
    let mut sum = 0.0;
    for value in rest {
        *value = exp_of(*value - largest);
        sum += *value;
    }
    lanes.into_iter().sum::<f32>() + sum
}

/// Sum of `e^(value - largest)`.
#[inline(always)]
pub(crate) fn exponential_sum(values: &[f32], largest: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += exp_of(chunk[lane] - largest);
        }
    }
    let rest: f32 = rest.iter().map(|value| exp_of(value - largest)).sum();
    lanes.into_iter().sum::<f32>() + rest
}
