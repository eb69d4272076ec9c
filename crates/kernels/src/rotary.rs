//! Rotary positions: rotation of pairs of dimensions.
//!
//! Composed of Burn's operations a rotation swaps the pairs into a copy and forms three more; here it is one pass, whose backward
//! pass keeps the table alone.
//!
//! Dimensions: `B` rows, `S` sequence length, `H` heads, `Dh` head dimension, `R` rotated dimensions of it.

use burn::tensor::Tensor;

/// Which dimensions of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotaryPairs {
    /// Distance of the two dimensions of a pair: 1 for neighbours, `R / 2` for halves.
    pub distance: usize,
    /// `R`; the dimensions after it are left alone, and the table has cosine 1 and sine 0 there.
    pub rotary_dim: usize,
}

/// Rotates all heads of each position.
///
/// A rotation maps pairs `(a, b)` to `(a cos - b sin, b cos + a sin)`. With the sign of the sine in the table, that is
/// `x · cos + partner · sin` for both.
///
/// # Shapes
///
/// - x, output: `[B, S, H, Dh]`
/// - cos, sin: `[B, S, 1, Dh]`, sines negative for the first of a pair
pub fn rotary(x: Tensor<4>, tables: [Tensor<4>; 2], pairs: RotaryPairs) -> Tensor<4> {
    let heads = x.dims()[2];
    rotary_of_heads(x, tables, pairs, heads)
}

/// As [`rotary`], of the first `heads` heads; the others are left alone.
pub(crate) fn rotary_of_heads(
    x: Tensor<4>,
    [cos, sin]: [Tensor<4>; 2],
    pairs: RotaryPairs,
    heads: usize,
) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    if [&x, &cos, &sin].into_iter().all(crate::device::is_cpu_f32) {
        return cpu::rotary(x, [cos, sin], pairs, heads);
    }
    plain_rotary(x, [cos, sin], pairs, heads)
}

/// As [`rotary_of_heads`], made of Burn's operations.
fn plain_rotary(x: Tensor<4>, tables: [Tensor<4>; 2], pairs: RotaryPairs, heads: usize) -> Tensor<4> {
    let all = x.dims()[2];
    if heads < all {
        let others = x.clone().narrow(2, heads, all - heads);
        return Tensor::cat(vec![plain_rotary(x.narrow(2, 0, heads), tables, pairs, heads), others], 2);
    }
    let [cos, sin] = tables;
    x.clone() * cos + swap_pairs(x, pairs) * sin
}

/// Exchanges the dimensions of each pair.
fn swap_pairs(x: Tensor<4>, pairs: RotaryPairs) -> Tensor<4> {
    let head_dim = x.dims()[3];
    if head_dim.is_multiple_of(2 * pairs.distance) {
        // The rest of a head is swapped too, and its sines are zero: one operation less than to leave it alone.
        return swap_runs(x, pairs.distance);
    }
    let rest = x.clone().narrow(3, pairs.rotary_dim, head_dim - pairs.rotary_dim);
    Tensor::cat(vec![swap_runs(x.narrow(3, 0, pairs.rotary_dim), pairs.distance), rest], 3)
}

/// Swaps every two adjacent runs of dimensions.
fn swap_runs(x: Tensor<4>, run: usize) -> Tensor<4> {
    let shape = x.dims();
    let [rows, length, heads, head_dim] = shape;
    x.reshape([rows, length, heads * head_dim / (2 * run), 2, run]).flip([3]).reshape(shape)
}

#[cfg(feature = "cpu")]
mod cpu {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use crate::cpu::{Rows, contiguous, rows_per_task, tensor, values, with_rows};
    use crate::rotary::RotaryPairs;

    /// Rotary positions, on backends with a kernel for them.
    #[backend_extension(Flex, Autodiff)]
    pub(super) trait RotaryOps: Backend {
        /// Rotates the first `heads` heads.
        fn rotary(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            pairs: RotaryPairs,
            heads: usize,
        ) -> FloatTensor<Self>;
    }

    pub(super) fn rotary(
        x: Tensor<4>,
        [cos, sin]: [Tensor<4>; 2],
        pairs: RotaryPairs,
        heads: usize,
    ) -> Tensor<4> {
        let [x, cos, sin] = [x, cos, sin].map(Tensor::into_dispatch);
        Tensor::from_dispatch(Dispatch::rotary(x, cos, sin, pairs, heads))
    }

    impl RotaryOps for Flex {
        fn rotary(
            x: FlexTensor,
            cos: FlexTensor,
            sin: FlexTensor,
            pairs: RotaryPairs,
            heads: usize,
        ) -> FlexTensor {
            Rotation::new([cos, sin], pairs, heads).apply::<false>(x)
        }
    }

    impl<C: CheckpointStrategy> RotaryOps for Autodiff<Flex, C> {
        fn rotary(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            pairs: RotaryPairs,
            heads: usize,
        ) -> FloatTensor<Self> {
            let (x, node) = x.into_parts();
            let tables = [cos, sin].map(|table| table.into_primitive());
            let rotation = Rotation::new(tables, pairs, heads);
            let output = rotation.apply::<false>(x);
            match RotaryBackward.prepare::<C>([node]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish(rotation, output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            }
        }
    }

    #[derive(Debug)]
    struct RotaryBackward;

    impl Backward<Flex, 1> for RotaryBackward {
        type State = Rotation;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
            let grad = grads.consume::<Flex>(&ops.node);
            let [node] = ops.parents;
            if let Some(node) = node {
                grads.register::<Flex>(node.id, ops.state.apply::<true>(grad));
            }
        }
    }

    /// Tables and pairs; without the positions, which the table has.
    #[derive(Debug, Clone)]
    struct Rotation {
        /// Cosines and sines, `[B, S, 1, Dh]`, contiguous.
        tables: [FlexTensor; 2],
        pairs: RotaryPairs,
        heads: usize,
    }

    impl Rotation {
        fn new(tables: [FlexTensor; 2], pairs: RotaryPairs, heads: usize) -> Self {
            Self { tables: tables.map(contiguous), pairs, heads }
        }

        /// The rotation, or what it does to gradients.
        fn apply<const BACKWARD: bool>(&self, x: FlexTensor) -> FlexTensor {
            let shape = x.shape();
            let x = with_rows::<3>(x);
            let x = Rows::<3>::of(&x).expect("made so that its rows are contiguous");
            let [rows, length, heads] = [shape[0], shape[1], shape[2]];
            let width = (heads * x.width).max(1);
            let positions = rows_per_task(width);
            let mut output = vec![0.0; rows * length * heads * x.width];
            output.par_chunks_mut(positions * width).enumerate().for_each(|(task, output)| {
                pulp::Arch::new().dispatch(|| {
                    for (at, output) in output.chunks_exact_mut(width).enumerate() {
                        self.apply_at::<BACKWARD>((x, length), task * positions + at, output);
                    }
                });
            });
            tensor(output, shape)
        }

        /// All heads of one of the `B · S` positions.
        #[inline(always)]
        fn apply_at<const BACKWARD: bool>(
            &self,
            (x, length): (Rows<'_, 3>, usize),
            position: usize,
            output: &mut [f32],
        ) {
            let tables = self.tables.each_ref().map(|table| &values(table)[position * x.width..][..x.width]);
            for (head, output) in output.chunks_exact_mut(x.width).enumerate() {
                let x = x.row([position / length, position % length, head]);
                if head < self.heads {
                    rotate::<BACKWARD>(x, tables, self.pairs, output);
                } else {
                    output.copy_from_slice(x);
                }
            }
        }
    }

    #[inline(always)]
    fn rotate<const BACKWARD: bool>(
        x: &[f32],
        [cos, sin]: [&[f32]; 2],
        RotaryPairs { distance, rotary_dim }: RotaryPairs,
        output: &mut [f32],
    ) {
        let run = 2 * distance;
        let (rotated, rest) = output.split_at_mut(rotary_dim);
        rest.copy_from_slice(&x[rotary_dim..]);
        if distance == 1 {
            // A step of known length, for which the compiler finds vector instructions.
            for (at, output) in rotated.chunks_exact_mut(2).enumerate() {
                let [x, cos, sin] = [x, cos, sin].map(|values| [values[2 * at], values[2 * at + 1]]);
                let sin = if BACKWARD { [sin[1], sin[0]] } else { sin };
                output[0] = x[0] * cos[0] + x[1] * sin[0];
                output[1] = x[1] * cos[1] + x[0] * sin[1];
            }
            return;
        }
        for (index, output) in rotated.chunks_exact_mut(run).enumerate() {
            let [x, cos, sin] = [x, cos, sin].map(|values| values[index * run..][..run].split_at(distance));
            let sin = if BACKWARD { (sin.1, sin.0) } else { sin };
            let (first, second) = output.split_at_mut(distance);
            for at in 0..distance {
                first[at] = x.0[at] * cos.0[at] + x.1[at] * sin.0[at];
                second[at] = x.1[at] * cos.1[at] + x.0[at] * sin.1[at];
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::check::{self, Inputs};
    use burn::tensor::{Device, TensorData};

    /// Neighbours and halves, of whole heads and of parts that do and do not divide them.
    const PAIRS: [(usize, usize, usize); 5] = [(1, 6, 10), (1, 12, 12), (3, 6, 10), (3, 6, 12), (4, 8, 8)];

    /// Tables of angles that differ by position and pair, `[B, S, 1, Dh]`.
    fn tables([rows, length]: [usize; 2], head_dim: usize, pairs: RotaryPairs) -> [Tensor<4>; 2] {
        let mut cos = vec![1.0f32; rows * length * head_dim];
        let mut sin = vec![0.0f32; rows * length * head_dim];
        for position in 0..rows * length {
            for at in 0..pairs.rotary_dim {
                let is_first = at % (2 * pairs.distance) < pairs.distance;
                let first = if is_first { at } else { at - pairs.distance };
                let angle = (position + 1) as f32 * 0.3 / (first + 1) as f32;
                cos[position * head_dim + at] = angle.cos();
                sin[position * head_dim + at] = if is_first { -angle.sin() } else { angle.sin() };
            }
        }
        let device = Device::flex().autodiff();
        [cos, sin]
            .map(|values| Tensor::from_data(TensorData::new(values, [rows, length, 1, head_dim]), &device))
    }

    #[test]
    fn value_and_gradients_equal_the_plain_version_for_all_pairs() {
        for (distance, rotary_dim, head_dim) in PAIRS {
            let pairs = RotaryPairs { distance, rotary_dim };
            for (heads, rotated) in [(1, 1), (3, 3), (6, 4)] {
                let tables = tables([2, 5], head_dim, pairs);
                check::equals_plain(
                    &[&[2, 5, heads, head_dim]],
                    |inputs| rotary_of_heads(inputs.get(0), tables.clone(), pairs, rotated),
                    |inputs| plain_rotary(inputs.get(0), tables.clone(), pairs, rotated),
                );
            }
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_value() {
        let pairs = RotaryPairs { distance: 2, rotary_dim: 4 };
        let tables = tables([1, 3], 6, pairs);
        check::equals_finite_differences(&[&[1, 3, 2, 6]], |inputs| {
            rotary_of_heads(inputs.get(0), tables.clone(), pairs, 1)
        });
    }

    #[test]
    fn heads_before_positions_are_read_by_their_strides() {
        let pairs = RotaryPairs { distance: 1, rotary_dim: 6 };
        let tables = tables([2, 5], 6, pairs);
        let swapped = |inputs: &Inputs| inputs.get::<4>(0).swap_dims(1, 2);
        check::equals_plain(
            &[&[2, 3, 5, 6]],
            |inputs| rotary(swapped(inputs), tables.clone(), pairs),
            |inputs| plain_rotary(swapped(inputs), tables.clone(), pairs, 3),
        );
    }

    #[test]
    fn threads_change_no_bit() {
        let pairs = RotaryPairs { distance: 32, rotary_dim: 64 };
        let tables = tables([2, 100], 64, pairs);
        check::has_same_bits_on_any_threads(&[&[2, 100, 5, 64]], |inputs| {
            rotary_of_heads(inputs.get(0), tables.clone(), pairs, 4)
        });
    }
}
