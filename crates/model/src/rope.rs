//! Rotary positions: tables of cosines and sines, and the rotations.
//!
//! Tables are computed on the host in f32, step by step as transformers does. The graphics backends promise little
//! about the accuracy of their cosine for large angles, and the tables are small.
//!
//! Dimensions: `B` rows, `S` sequence length, `H` heads, `Dh` width of a head, `R` rotated dimensions of it,
//! `P` patches.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use crate::batch::Grid;
use crate::config::{TextRopeConfig, VISION_ROPE_THETA};
use crate::positions::Positions;

/// Cosines and sines by which a sequence is rotated.
#[derive(Debug, Clone)]
pub struct RotaryTable<const D: usize> {
    /// Cosine of each angle.
    pub cos: Tensor<D>,
    /// Sine of each angle.
    pub sin: Tensor<D>,
}

/// `theta^(-2k/dim)` for `k` in `0..dim/2`, rounded as torch does in f32.
fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|k| 1.0 / (theta as f32).powf((2 * k) as f32 / dim as f32)).collect()
}

impl RotaryTable<4> {
    /// Table of the text decoder: frequency `k` follows the axis that `mrope_section` gives it.
    ///
    /// Cosines and sines are rounded to `dtype`, the type of the activations, before use, as the reference does.
    ///
    /// # Shapes
    ///
    /// - output: `[B, S, 1, R / 2]`, one value a rotated pair
    pub fn text(config: &TextRopeConfig, positions: &Positions, device: &Device, dtype: DType) -> Self {
        let frequencies = inverse_frequencies(config.rope_theta, config.rotary_dim);
        let axis_of: Vec<usize> =
            (0..3).flat_map(|axis| std::iter::repeat_n(axis, config.mrope_section[axis])).collect();
        let [rows, width] = positions.shape;
        let mut angles = Vec::with_capacity(rows * width * frequencies.len());
        for slot in 0..rows * width {
            for (frequency, &axis) in frequencies.iter().zip(&axis_of) {
                angles.push(positions.axes[axis][slot] as f32 * frequency);
            }
        }
        Self::from_angles(&angles, [rows, width, 1, frequencies.len()], device, dtype)
    }
}

impl RotaryTable<3> {
    /// Table of the vision tower: the first half of the pairs follows the patch's row, the second its column.
    ///
    /// Always f32: the tower rotates in f32 whatever the type of its weights.
    ///
    /// # Shapes
    ///
    /// - output: `[P, 1, Dh / 2]`, patches in block order, the frames of a grid one after another
    pub fn vision(head_dim: usize, merge: usize, grids: &[Grid], device: &Device) -> Self {
        let frequencies = inverse_frequencies(VISION_ROPE_THETA, head_dim / 2);
        let mut angles = Vec::new();
        let mut patches = 0;
        for grid in grids {
            for _ in 0..grid.t {
                for (row, column) in block_order(grid.h, grid.w, merge) {
                    angles.extend(frequencies.iter().map(|f| row as f32 * f));
                    angles.extend(frequencies.iter().map(|f| column as f32 * f));
                }
            }
            patches += grid.patches();
        }
        Self::from_angles(&angles, [patches, 1, 2 * frequencies.len()], device, DType::F32)
    }
}

impl<const D: usize> RotaryTable<D> {
    fn from_angles(angles: &[f32], shape: [usize; D], device: &Device, dtype: DType) -> Self {
        let table = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
            Tensor::<D>::from_data(TensorData::new(values, shape), (device, DType::F32)).cast(dtype)
        };
        Self { cos: table(f32::cos), sin: table(f32::sin) }
    }
}

/// Rows and columns of the patches of one frame in the order of `pixel_values`: blocks of `merge` x `merge`.
pub(crate) fn block_order(h: usize, w: usize, merge: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..h / merge).flat_map(move |block_row| {
        (0..w / merge).flat_map(move |block_column| {
            (0..merge).flat_map(move |dy| {
                (0..merge).map(move |dx| (block_row * merge + dy, block_column * merge + dx))
            })
        })
    })
}

/// Rotates neighbouring pairs (`2k`, `2k + 1`) of the first `R` dimensions; the rest passes through.
///
/// # Shapes
///
/// - x: `[B, S, H, Dh]`
/// - table: `[B, S, 1, R / 2]`
/// - output: `[B, S, H, Dh]`
pub(crate) fn rotate_pairs(x: Tensor<4>, table: &RotaryTable<4>) -> Tensor<4> {
    let [rows, width, heads, head_dim] = x.dims();
    let pairs = table.cos.dims()[3];
    let cos = table.cos.clone().unsqueeze_dim::<5>(4); // [B, S, 1, R/2, 1]
    let sin = table.sin.clone().unsqueeze_dim::<5>(4);
    let turned = x.clone().narrow(3, 0, 2 * pairs).reshape([rows, width, heads, pairs, 2]);
    let even = turned.clone().narrow(4, 0, 1); // [B, S, H, R/2, 1]
    let odd = turned.narrow(4, 1, 1);
    let turned =
        Tensor::cat(vec![even.clone() * cos.clone() - odd.clone() * sin.clone(), odd * cos + even * sin], 4)
            .reshape([rows, width, heads, 2 * pairs]);
    if 2 * pairs == head_dim {
        return turned;
    }
    Tensor::cat(vec![turned, x.narrow(3, 2 * pairs, head_dim - 2 * pairs)], 3)
}

/// Rotates the pairs (`k`, `k + Dh / 2`) of whole heads in f32 and returns the type of `x`.
///
/// # Shapes
///
/// - x: `[P, H, Dh]`
/// - table: `[P, 1, Dh / 2]`
/// - output: `[P, H, Dh]`
pub(crate) fn rotate_halves(x: Tensor<3>, table: &RotaryTable<3>) -> Tensor<3> {
    let dtype = x.dtype();
    let half = x.dims()[2] / 2;
    let x = x.cast(DType::F32);
    let first = x.clone().narrow(2, 0, half); // [P, H, Dh/2]
    let second = x.narrow(2, half, half);
    let (cos, sin) = (table.cos.clone(), table.sin.clone());
    Tensor::cat(
        vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin],
        2,
    )
    .cast(dtype)
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    fn table(positions: &[i64]) -> RotaryTable<4> {
        let config = TextRopeConfig { rope_theta: 10000.0, rotary_dim: 6, mrope_section: [1, 1, 1] };
        let positions = Positions {
            shape: [1, positions.len()],
            axes: [positions.to_vec(), positions.to_vec(), positions.to_vec()],
            deltas: vec![0],
        };
        RotaryTable::text(&config, &positions, &Device::flex(), DType::F32)
    }

    #[test]
    fn scores_depend_on_the_distance_of_positions_alone() {
        let device = Device::flex();
        let q = Tensor::<4>::random([1, 1, 2, 10], Distribution::Default, &device);
        let k = Tensor::<4>::random([1, 1, 2, 10], Distribution::Default, &device);
        let score = |at_q: i64, at_k: i64| {
            let q = rotate_pairs(q.clone(), &table(&[at_q]));
            let k = rotate_pairs(k.clone(), &table(&[at_k]));
            (q * k).sum_dim(3).into_data()
        };

        score(3, 1).assert_approx_eq::<f32>(&score(103, 101), Tolerance::absolute(1e-5));
    }

    #[test]
    fn dimensions_beyond_the_rotated_ones_pass_through() {
        let x = Tensor::<4>::random([1, 2, 3, 10], Distribution::Default, &Device::flex());

        let turned = rotate_pairs(x.clone(), &table(&[5, 9]));

        let tail = |t: Tensor<4>| t.narrow(3, 6, 4).into_data();
        assert_eq!(tail(turned.clone()), tail(x.clone()));
        assert_ne!(turned.into_data(), x.into_data());
    }

    #[test]
    fn patches_come_in_blocks() {
        let order: Vec<_> = block_order(2, 4, 2).collect();

        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
    }
}
