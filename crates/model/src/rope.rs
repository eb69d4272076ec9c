//! Rotary positions: tables of cosines and sines, and the rotations.
//!
//! Tables are computed on the host in f32, step by step as transformers does. The graphics backends promise little
//! about the accuracy of their cosine for large angles, and the tables are small.
//!
//! Dimensions: `B` rows, `S` sequence length, `H` heads, `Dh` width of a head, `P` patches.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use crate::batch::Grid;
use crate::config::{TextRopeConfig, VISION_ROPE_THETA};
use crate::positions::Positions;

/// Cosines and sines by which a sequence is rotated, one value for each dimension of a head.
///
/// A rotation turns pairs of dimensions `(a, b)` into `(a cos - b sin, b cos + a sin)`. With the sign of the sine in the
/// table and the partners of a pair swapped, that is `x · cos + swapped · sin`: two products and a sum of whole tensors.
#[derive(Debug, Clone)]
pub struct RotaryTable<const D: usize> {
    /// Cosines; 1 where a dimension is not rotated.
    pub cos: Tensor<D>,
    /// Sines, negative for the first of a pair; 0 where a dimension is not rotated.
    pub sin: Tensor<D>,
}

/// `theta^(-2k/dim)` for `k` in `0..dim/2`, rounded as torch does in f32.
fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|k| 1.0 / (theta as f32).powf((2 * k) as f32 / dim as f32)).collect()
}

impl RotaryTable<4> {
    /// Table of the text decoder: frequency `k` turns dimensions `2k` and `2k + 1` and follows the axis that
    /// `mrope_section` gives it.
    ///
    /// Values are rounded to `dtype`, the type of the activations, before use, as the reference does.
    ///
    /// # Shapes
    ///
    /// - output: `[B, S, 1, Dh]`
    pub fn text(
        config: &TextRopeConfig,
        head_dim: usize,
        positions: &Positions,
        device: &Device,
        dtype: DType,
    ) -> Self {
        let frequencies = inverse_frequencies(config.rope_theta, config.rotary_dim);
        let axis_of: Vec<usize> =
            (0..3).flat_map(|axis| std::iter::repeat_n(axis, config.mrope_section[axis])).collect();
        let [rows, width] = positions.shape;
        let mut cos = vec![1.0; rows * width * head_dim];
        let mut sin = vec![0.0; rows * width * head_dim];
        for slot in 0..rows * width {
            for (k, (frequency, &axis)) in frequencies.iter().zip(&axis_of).enumerate() {
                let angle = positions.axes[axis][slot] as f32 * frequency;
                let first = slot * head_dim + 2 * k;
                cos[first..first + 2].fill(angle.cos());
                sin[first..first + 2].copy_from_slice(&[-angle.sin(), angle.sin()]);
            }
        }
        Self::from_values(cos, sin, [rows, width, 1, head_dim], device, dtype)
    }
}

impl RotaryTable<3> {
    /// Table of the vision tower: dimension `k` is paired with `k + Dh / 2`; the first half of the pairs follows the
    /// patch's row, the second its column.
    ///
    /// Always f32: the tower rotates in f32 whatever the type of its weights.
    ///
    /// # Shapes
    ///
    /// - output: `[P, 1, Dh]`, patches in block order, the frames of a grid one after another
    pub fn vision(head_dim: usize, merge: usize, grids: &[Grid], device: &Device) -> Self {
        let frequencies = inverse_frequencies(VISION_ROPE_THETA, head_dim / 2);
        let patches: usize = grids.iter().map(Grid::patches).sum();
        let mut cos = Vec::with_capacity(patches * head_dim);
        let mut sin = Vec::with_capacity(patches * head_dim);
        for grid in grids {
            for _ in 0..grid.t {
                for (row, column) in block_order(grid.h, grid.w, merge) {
                    for sign in [-1.0, 1.0] {
                        for position in [row, column] {
                            let angles = frequencies.iter().map(|f| position as f32 * f);
                            cos.extend(angles.clone().map(f32::cos));
                            sin.extend(angles.map(|angle| sign * angle.sin()));
                        }
                    }
                }
            }
        }
        Self::from_values(cos, sin, [patches, 1, head_dim], device, DType::F32)
    }
}

impl<const D: usize> RotaryTable<D> {
    fn from_values(cos: Vec<f32>, sin: Vec<f32>, shape: [usize; D], device: &Device, dtype: DType) -> Self {
        let table =
            |values| Tensor::<D>::from_data(TensorData::new(values, shape), (device, DType::F32)).cast(dtype);
        Self { cos: table(cos), sin: table(sin) }
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

/// Rotates neighbouring pairs (`2k`, `2k + 1`).
///
/// # Shapes
///
/// - x, output: `[B, S, H, Dh]`
/// - table: `[B, S, 1, Dh]`
pub(crate) fn rotate_pairs(x: Tensor<4>, table: &RotaryTable<4>) -> Tensor<4> {
    let [rows, width, heads, head_dim] = x.dims();
    let swapped = x
        .clone()
        .reshape([rows, width, heads, head_dim / 2, 2])
        .flip([4])
        .reshape([rows, width, heads, head_dim]);
    x * table.cos.clone() + swapped * table.sin.clone()
}

/// Rotates the pairs (`k`, `k + Dh / 2`) of whole heads in f32 and returns the type of `x`.
///
/// # Shapes
///
/// - x, output: `[P, H, Dh]`
/// - table: `[P, 1, Dh]`
pub(crate) fn rotate_halves(x: Tensor<3>, table: &RotaryTable<3>) -> Tensor<3> {
    let dtype = x.dtype();
    let [patches, heads, head_dim] = x.dims();
    let x = x.cast(DType::F32);
    let swapped =
        x.clone().reshape([patches, heads, 2, head_dim / 2]).flip([2]).reshape([patches, heads, head_dim]);
    (x * table.cos.clone() + swapped * table.sin.clone()).cast(dtype)
}

#[cfg(test)]
#[cfg(feature = "cpu")]
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
        RotaryTable::text(&config, 10, &positions, &Device::flex(), DType::F32)
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
