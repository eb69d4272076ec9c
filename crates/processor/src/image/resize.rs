//! Bicubic resampling of 8-bit images with antialiasing, bit for bit as in torchvision.
//!
//! The published processors resize with `torchvision.transforms.v2.functional.resize(uint8, BICUBIC,
//! antialias=True)`, which on a CPU is PyTorch's fixed-point kernel. Its arithmetic, which decides the
//! last bit of every pixel:
//!
//! - the cubic kernel with `a = -0.5`, widened by the scale when shrinking, weights normalized in f64;
//! - weights rounded to i16 (half away from zero) with as many fraction bits, per axis, as keep the
//!   largest weight below 2^15;
//! - the horizontal pass first, rounded to 8 bits, then the vertical pass; an axis that keeps its
//!   length is skipped.
//!
//! Pillow's own resize uses 22 fraction bits and, since version 13, sometimes the other order of
//! passes; its pixels differ by up to 15 levels on the images of our golden data.
//!
//! The fast_image_resize crate has the same arithmetic in SIMD, given one axis at a time and our kernel: both descend from
//! Pillow-SIMD. It differs where an axis shrinks over 128 times, since it stops one fraction bit earlier; such an axis goes to the
//! scalar pass of this file.
//!
//! Proof: `crates/processor/tests/image_golden.rs`, and the tests below for the two against each other.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{Filter, FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::media::Rgb;

/// Shrinking by this factor or more takes the scalar pass: the largest weight needs all fraction bits.
const MAX_SIMD_SHRINK: f64 = 100.0;

/// Resamples `source` to `height` x `width`.
///
/// # Panics
///
/// When a side of the target is zero.
pub fn resize_bicubic(source: &Rgb, height: usize, width: usize) -> Rgb {
    assert!(height > 0 && width > 0, "the target of a resize has pixels");
    let (from_height, from_width) = (source.height(), source.width());
    let wide =
        (width != from_width).then(|| pass(source.pixels(), [from_height, from_width], [from_height, width]));
    let rows = wide.as_deref().unwrap_or(source.pixels());
    let tall = (height != from_height).then(|| pass(rows, [from_height, width], [height, width]));
    let pixels = tall.or(wide).unwrap_or_else(|| source.pixels().to_vec());
    Rgb::new(height, width, pixels).expect("a pass writes every pixel")
}

/// Resamples along the one axis whose length changes.
fn pass(source: &[u8], from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    let shrinks = (from[0] as f64 / to[0] as f64).max(from[1] as f64 / to[1] as f64);
    if shrinks < MAX_SIMD_SHRINK { simd_pass(source, from, to) } else { scalar_pass(source, from, to) }
}

fn simd_pass(source: &[u8], from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    // Typed images: dynamically typed ones compile the code of all pixel types, for a minute and a half.
    let source = TypedImageRef::<U8x3>::from_buffer(from[1] as u32, from[0] as u32, source);
    let mut pixels = vec![0; to[0] * to[1] * 3];
    let mut out = TypedImage::<U8x3>::from_buffer(to[1] as u32, to[0] as u32, &mut pixels)
        .expect("as long as its sides say");
    let kernel = Filter::new("Keys", cubic, 2.0).expect("the support is a number");
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Custom(kernel))).use_alpha(false);
    let resized = Resizer::new().resize_typed(&source.expect("sizes and bytes agree"), &mut out, &options);
    resized.expect("nothing is cropped");
    pixels
}

/// The same without SIMD, and with all fraction bits.
fn scalar_pass(source: &[u8], from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    // A step along the axis is a whole row, or a pixel of a row; a line is all steps that contribute to the same outputs.
    let (axis, step, line) = if from[0] == to[0] {
        (AxisWeights::new(from[1], to[1]), 3, from[1] * 3)
    } else {
        (AxisWeights::new(from[0], to[0]), from[1] * 3, source.len())
    };
    let mut out = Vec::with_capacity(to[0] * to[1] * 3);
    let mut sums = vec![0i32; step];
    for line in source.chunks_exact(line) {
        for (first, weights) in axis.outputs() {
            sums.fill(axis.half());
            for (values, &weight) in line[first * step..].chunks_exact(step).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum += i32::from(weight) * i32::from(value);
                }
            }
            out.extend(sums.iter().map(|&sum| clip8(sum, axis.precision)));
        }
    }
    out
}

/// The fixed-point filter of one axis.
struct AxisWeights {
    /// First input and number of inputs of each output.
    spans: Vec<(usize, usize)>,
    /// Weights, `taps` for each output.
    weights: Vec<i16>,
    /// Maximum number of inputs of one output.
    taps: usize,
    /// Fraction bits of the weights.
    precision: u32,
}

impl AxisWeights {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let inv_filter_scale = 1.0 / filter_scale;
        let taps = support.ceil() as usize * 2 + 1;
        let mut spans = Vec::with_capacity(output);
        let mut exact = vec![0.0f64; output * taps];
        let mut largest = 0.0f64;
        for (i, weights) in exact.chunks_exact_mut(taps).enumerate() {
            let center = scale * (i as f64 + 0.5);
            // `as` truncates and stops at zero, like the kernel's cast and max.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let count = (end - first).min(taps);
            let weights = &mut weights[..count];
            for (k, weight) in weights.iter_mut().enumerate() {
                *weight = cubic(((k + first) as f64 - center + 0.5) * inv_filter_scale);
            }
            let total: f64 = weights.iter().sum();
            for weight in weights {
                *weight /= total;
                largest = largest.max(*weight);
            }
            spans.push((first, count));
        }
        let precision = fraction_bits(largest);
        let weights = exact.iter().map(|weight| to_fixed_point(*weight, precision)).collect();
        Self { spans, weights, taps, precision }
    }

    /// First input and weights of every output.
    fn outputs(&self) -> impl Iterator<Item = (usize, &[i16])> {
        let weights = self.weights.chunks_exact(self.taps);
        let spans = self.spans.iter().zip(weights);
        spans.map(|(&(first, count), weights)| (first, &weights[..count]))
    }

    /// Initial value of a sum: half a unit, so that dropping the fraction bits rounds.
    fn half(&self) -> i32 {
        (1 << self.precision) >> 1
    }
}

/// The most fraction bits that keep the largest weight below 2^15.
fn fraction_bits(largest: f64) -> u32 {
    let fits = |bits: &u32| 0.5 + largest * f64::from(1u32 << (bits + 1)) < 32_768.0;
    (0..22).take_while(fits).count() as u32
}

/// Rounds half away from zero.
fn to_fixed_point(weight: f64, precision: u32) -> i16 {
    let one = f64::from(1u32 << precision);
    (weight * one + 0.5f64.copysign(weight)) as i16
}

/// Keys' cubic convolution kernel with `a = -0.5`.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

/// Drops the fraction bits and clamps to 8 bits.
fn clip8(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(height: usize, width: usize) -> Rgb {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let pixels = (0..height * width * 3).map(|_| next()).collect();
        Rgb::new(height, width, pixels).unwrap()
    }

    #[test]
    fn an_unchanged_size_changes_nothing() {
        let image = noise(5, 7);
        assert_eq!(resize_bicubic(&image, 5, 7), image);
    }

    #[test]
    fn a_uniform_color_stays_uniform() {
        let image = Rgb::new(30, 50, [10, 200, 255].repeat(30 * 50)).unwrap();
        for (height, width) in [(28, 28), (84, 140), (30, 51), (1, 1)] {
            let resized = resize_bicubic(&image, height, width);
            assert_eq!(resized.pixels(), [10, 200, 255].repeat(height * width));
        }
    }

    #[test]
    fn simd_and_scalar_passes_agree() {
        // Every remainder of the vector widths, growing and shrinking, up to the factor where they differ.
        let sizes = (1..40).chain([63, 64, 65, 99, 100, 127, 250, 299]);
        for (index, length) in sizes.enumerate() {
            for target in [1, 3, 4, 7, 28, 33, 64, 100].map(|target| target + index % 3) {
                if length == target || length >= 100 * target {
                    continue;
                }
                let image = noise(5, length);
                let (from, to) = ([5, length], [5, target]);
                assert_eq!(
                    simd_pass(image.pixels(), from, to),
                    scalar_pass(image.pixels(), from, to),
                    "{length} to {target} columns"
                );
                let (from, to) = ([length, 5], [target, 5]);
                assert_eq!(
                    simd_pass(image.pixels(), from, to),
                    scalar_pass(image.pixels(), from, to),
                    "{length} to {target} rows"
                );
            }
        }
    }
}
