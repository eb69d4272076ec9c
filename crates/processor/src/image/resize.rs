//! Bicubic resampling of 8-bit pictures with antialiasing, bit for bit like torchvision.
//!
//! The published processors resize with `torchvision.transforms.v2.functional.resize(uint8, BICUBIC,
//! antialias=True)`, which on a CPU is PyTorch's fixed-point kernel. Its arithmetic, which decides the
//! last bit of every pixel:
//!
//! - the cubic kernel with `a = -0.5`, widened by the scale when shrinking, weights normalised in f64;
//! - weights rounded to i16 (half away from zero) with as many fraction bits, per axis, as keep the
//!   largest weight below 2^15;
//! - the horizontal pass first, rounded to 8 bits, then the vertical pass; an axis that keeps its
//!   length is skipped.
//!
//! Pillow's own resize uses 22 fraction bits and, since version 13, sometimes the other order of
//! passes; its pixels differ by up to 15 levels on the pictures of our golden data.
//!
//! Proof: `crates/processor/tests/image_golden.rs`.

use super::Rgb;

/// Rows that the horizontal pass works on at once: a few vector registers of i32.
const LANES: usize = 16;

/// Columns that the vertical pass works on at once.
const STRETCH: usize = 32;

/// Resamples `source` to `height` x `width`.
///
/// # Panics
///
/// When a side of the target is zero.
pub fn resize_bicubic(source: &Rgb, height: usize, width: usize) -> Rgb {
    assert!(height > 0 && width > 0, "the target of a resize has pixels");
    let wide = (width != source.width()).then(|| {
        let axis = Axis::new(source.width(), width);
        horizontal(source.pixels(), source.width() * 3, &axis)
    });
    let rows = wide.as_deref().unwrap_or(source.pixels());
    let tall = (height != source.height()).then(|| {
        let axis = Axis::new(source.height(), height);
        vertical(rows, width * 3, &axis)
    });
    let pixels = tall.or(wide).unwrap_or_else(|| source.pixels().to_vec());
    Rgb::new(height, width, pixels).expect("a pass writes every pixel")
}

/// The fixed-point filter of one axis.
struct Axis {
    /// First input and number of inputs of each output.
    spans: Vec<(usize, usize)>,
    /// Weights, `taps` for each output.
    weights: Vec<i16>,
    /// Room for the weights of one output.
    taps: usize,
    /// Fraction bits of the weights.
    precision: u32,
}

impl Axis {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = 2.0 * stretch;
        let shrink = 1.0 / stretch;
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
                *weight = cubic(((k + first) as f64 - center + 0.5) * shrink);
            }
            let total: f64 = weights.iter().sum();
            for weight in weights {
                *weight /= total;
                largest = largest.max(*weight);
            }
            spans.push((first, count));
        }
        let fits = |bits: &u32| 0.5 + largest * f64::from(1u32 << (bits + 1)) < 32_768.0;
        let precision = (0..22).take_while(fits).count() as u32;
        let one = f64::from(1u32 << precision);
        let fixed = |w: &f64| (w * one + 0.5f64.copysign(*w)) as i16;
        Self { spans, weights: exact.iter().map(fixed).collect(), taps, precision }
    }

    /// First input and weights of every output.
    fn outputs(&self) -> impl Iterator<Item = (usize, &[i16])> {
        let weights = self.weights.chunks_exact(self.taps);
        let spans = self.spans.iter().zip(weights);
        spans.map(|(&(first, count), weights)| (first, &weights[..count]))
    }

    /// What a sum starts from, so that dropping its fraction bits rounds.
    fn half(&self) -> i32 {
        (1 << self.precision) >> 1
    }
}

/// Keys' cubic with `a = -0.5`.
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

/// Resamples every row.
///
/// Neighbours in a row are three bytes apart, which no vector unit likes; so [`LANES`] rows are turned
/// on their side first and summed together.
fn horizontal(source: &[u8], row_len: usize, axis: &Axis) -> Vec<u8> {
    let out_len = axis.spans.len() * 3;
    let mut out = vec![0u8; source.len() / row_len * out_len];
    let mut turned = vec![[0u8; LANES]; row_len];
    let bands = source.chunks(row_len * LANES);
    for (band, out_band) in bands.zip(out.chunks_mut(out_len * LANES)) {
        for (lane, row) in band.chunks_exact(row_len).enumerate() {
            for (column, &value) in turned.iter_mut().zip(row) {
                column[lane] = value;
            }
        }
        for (x, (first, weights)) in axis.outputs().enumerate() {
            for channel in 0..3 {
                let mut sums = [axis.half(); LANES];
                let inputs = turned[first * 3 + channel..].iter().step_by(3);
                for (&weight, column) in weights.iter().zip(inputs) {
                    add(&mut sums, weight, column);
                }
                // The last band may have fewer rows than lanes.
                for (row, sum) in out_band.chunks_exact_mut(out_len).zip(sums) {
                    row[x * 3 + channel] = narrow(sum, axis.precision);
                }
            }
        }
    }
    out
}

/// Resamples every column.
fn vertical(source: &[u8], row_len: usize, axis: &Axis) -> Vec<u8> {
    let mut out = vec![0u8; axis.spans.len() * row_len];
    for ((first, weights), out_row) in axis.outputs().zip(out.chunks_exact_mut(row_len)) {
        let rows = &source[first * row_len..];
        // A stretch of columns at a time, so that its sums stay in registers over all taps.
        for (stretch, out) in out_row.chunks_mut(STRETCH).enumerate() {
            let mut sums = [axis.half(); STRETCH];
            for (tap, &weight) in weights.iter().enumerate() {
                let start = tap * row_len + stretch * STRETCH;
                match rows[start..].first_chunk::<STRETCH>() {
                    // May read into the next row where the last stretch is short; unused sums.
                    Some(values) => add(&mut sums, weight, values),
                    None => add(&mut sums, weight, &rows[start..start + out.len()]),
                }
            }
            for (value, sum) in out.iter_mut().zip(sums) {
                *value = narrow(sum, axis.precision);
            }
        }
    }
    out
}

/// Adds weighted values to sums.
#[inline(always)]
fn add(sums: &mut [i32], weight: i16, values: &[u8]) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += i32::from(weight) * i32::from(value);
    }
}

/// Drops the fraction bits and keeps to 8 bits.
fn narrow(sum: i32, precision: u32) -> u8 {
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
        let picture = noise(5, 7);
        assert_eq!(resize_bicubic(&picture, 5, 7), picture);
    }

    #[test]
    fn a_plain_colour_stays_plain() {
        let picture = Rgb::new(30, 50, [10, 200, 255].repeat(30 * 50)).unwrap();
        for (height, width) in [(28, 28), (84, 140), (30, 51), (1, 1)] {
            let resized = resize_bicubic(&picture, height, width);
            assert_eq!(resized.pixels(), [10, 200, 255].repeat(height * width));
        }
    }

    #[test]
    fn rows_do_not_mix_in_the_horizontal_pass() {
        // One more row than lanes, so that a second, partly filled band exists.
        let picture = noise(LANES + 1, 20);
        let whole = resize_bicubic(&picture, LANES + 1, 9);

        let last = Rgb::new(1, 20, picture.pixels()[LANES * 60..].to_vec()).unwrap();

        let alone = resize_bicubic(&last, 1, 9);
        assert_eq!(whole.pixels()[LANES * 27..], *alone.pixels());
    }
}
