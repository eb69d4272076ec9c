//! Rotary positions: tables of cosines and sines, and the rotations.
//!
//! Tables are computed on the host in f32, step by step as transformers does. The graphics backends promise little
//! about the accuracy of their cosine for large angles, and the tables are small.
//!
//! Dimensions: `B` rows, `S` sequence length, `H` heads, `Dh` head dimension, `P` patches.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use glm4v_inputs::Grid;
use glm4v_kernels::{self as kernels, RotaryPairs};

use super::positions::PositionIds;
use crate::config::{RotaryLayout, TextRopeConfig};

/// Cosines and sines by which a sequence is rotated, one value for each dimension of a head.
///
/// A rotation maps pairs of dimensions `(a, b)` to `(a cos - b sin, b cos + a sin)`. With the sign of the sine in the
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
    /// Table of the text decoder: frequency `k` rotates the `k`th pair of the config's [`RotaryLayout`] and follows
    /// the axis that `mrope_section` gives it.
    ///
    /// Values are rounded to `dtype`, the type of the activations, before use, as the reference does.
    ///
    /// # Shapes
    ///
    /// - output: `[B, S, 1, Dh]`
    pub fn for_text(
        config: &TextRopeConfig,
        head_dim: usize,
        positions: &PositionIds,
        device: &Device,
        dtype: DType,
    ) -> Self {
        let frequencies = inverse_frequencies(config.rope_theta, config.rotary_dim);
        let axis_of = config.frequency_axes();
        let [rows, length] = positions.shape;
        let mut cos = vec![1.0; rows * length * head_dim];
        let mut sin = vec![0.0; rows * length * head_dim];
        for at in 0..rows * length {
            for (k, (frequency, &axis)) in frequencies.iter().zip(&axis_of).enumerate() {
                let angle = positions.position_ids[axis][at] as f32 * frequency;
                let [first, second] = pair(config.layout, k, config.rotary_dim).map(|d| at * head_dim + d);
                (cos[first], cos[second]) = (angle.cos(), angle.cos());
                (sin[first], sin[second]) = (-angle.sin(), angle.sin());
            }
        }
        Self::from_values(cos, sin, [rows, length, 1, head_dim], device, dtype)
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
    pub fn for_vision(head_dim: usize, theta: f64, merge: usize, grids: &[Grid], device: &Device) -> Self {
        let frequencies = inverse_frequencies(theta, head_dim / 2);
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

/// The two dimensions that frequency `k` rotates.
fn pair(layout: RotaryLayout, k: usize, rotary_dim: usize) -> [usize; 2] {
    match layout {
        RotaryLayout::Interleaved => [2 * k, 2 * k + 1],
        RotaryLayout::HalfSplit => [k, k + rotary_dim / 2],
    }
}

/// Rotates the heads of the text decoder.
///
/// # Shapes
///
/// - x, output: `[B, S, H, Dh]`
/// - table: `[B, S, 1, Dh]`
pub(crate) fn apply_text_rotary(x: Tensor<4>, table: &RotaryTable<4>, config: &TextRopeConfig) -> Tensor<4> {
    kernels::rotary(x, [table.cos.clone(), table.sin.clone()], rotary_pairs(config))
}

fn rotary_pairs(config: &TextRopeConfig) -> RotaryPairs {
    let distance = match config.layout {
        RotaryLayout::Interleaved => 1,
        RotaryLayout::HalfSplit => config.rotary_dim / 2,
    };
    RotaryPairs { distance, rotary_dim: config.rotary_dim }
}

/// The sines as the reference keeps them, without the sign of the rotation, `[B, S, R]`.
pub(crate) fn text_sines(table: &RotaryTable<4>, config: &TextRopeConfig) -> Tensor<3> {
    let [rows, length, _, _] = table.sin.dims();
    let rotated = table.sin.clone().narrow(3, 0, config.rotary_dim); // [B, S, 1, R]
    let run = rotary_pairs(config).distance;
    let pairs = [rows, length, config.rotary_dim / (2 * run), 2, run];
    let positive = rotated.reshape(pairs).narrow(3, 1, 1);
    positive.expand(pairs).reshape([rows, length, config.rotary_dim])
}

/// The sines of the vision tower as the reference stores them, without the sign of the rotation, `[P, Dh]`.
pub(crate) fn vision_sines(table: &RotaryTable<3>) -> Tensor<2> {
    let sines = table.sin.clone().squeeze_dim::<2>(1);
    let half = sines.dims()[1] / 2;
    let positive = sines.narrow(1, half, half);
    Tensor::cat(vec![positive.clone(), positive], 1)
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    fn config(layout: RotaryLayout, rotary_dim: usize) -> TextRopeConfig {
        let third = rotary_dim / 6;
        TextRopeConfig { layout, rope_theta: 10000.0, rotary_dim, mrope_section: Some([third, third, third]) }
    }

    fn turn(x: Tensor<4>, config: &TextRopeConfig, positions: &[i64]) -> Tensor<4> {
        let head_dim = x.dims()[3];
        let positions = PositionIds {
            shape: [1, positions.len()],
            position_ids: [positions.to_vec(), positions.to_vec(), positions.to_vec()],
            rope_deltas: vec![0],
        };
        let table = RotaryTable::for_text(config, head_dim, &positions, &Device::flex(), DType::F32);
        apply_text_rotary(x, &table, config)
    }

    /// Both kinds of pairs, with a rest that is a multiple of the rotated dimensions and one that is not.
    fn configs() -> [(TextRopeConfig, usize); 4] {
        use RotaryLayout::{HalfSplit, Interleaved};
        [(Interleaved, 10), (Interleaved, 12), (HalfSplit, 10), (HalfSplit, 12)]
            .map(|(pairs, dim)| (config(pairs, 6), dim))
    }

    #[test]
    fn scores_depend_on_the_distance_of_positions_alone() {
        for (config, head_dim) in configs() {
            let [q, k] = [0, 1].map(|_| random([1, 1, 2, head_dim]));
            let score = |at_q: i64, at_k: i64| {
                let q = turn(q.clone(), &config, &[at_q]);
                (q * turn(k.clone(), &config, &[at_k])).sum_dim(3).into_data()
            };

            score(3, 1).assert_approx_eq::<f32>(&score(103, 101), Tolerance::absolute(1e-5));
        }
    }

    #[test]
    fn the_two_kinds_of_pairs_are_one_rotation_of_reordered_dimensions() {
        let x = random([1, 2, 3, 6]);
        let order = Tensor::<1, Int>::from_data(TensorData::from([0i32, 2, 4, 1, 3, 5]), &Device::flex());
        let reordered = |x: Tensor<4>| x.select(3, order.clone());

        let halves = turn(reordered(x.clone()), &config(RotaryLayout::HalfSplit, 6), &[5, 9]);

        let neighbours = reordered(turn(x, &config(RotaryLayout::Interleaved, 6), &[5, 9]));
        halves.into_data().assert_approx_eq::<f32>(&neighbours.into_data(), Tolerance::absolute(1e-6));
    }

    fn random(shape: [usize; 4]) -> Tensor<4> {
        Tensor::random(shape, Distribution::Default, &Device::flex())
    }

    #[test]
    fn dimensions_beyond_the_rotated_ones_pass_through() {
        for (config, head_dim) in configs() {
            let x = random([1, 2, 3, head_dim]);

            let turned = turn(x.clone(), &config, &[5, 9]);

            let tail = |t: Tensor<4>| t.narrow(3, 6, head_dim - 6).into_data();
            assert_eq!(tail(turned.clone()), tail(x.clone()));
            assert_ne!(turned.into_data(), x.into_data());
        }
    }

    #[test]
    fn patches_come_in_blocks() {
        let order: Vec<_> = block_order(2, 4, 2).collect();

        assert_eq!(order, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
    }
}
