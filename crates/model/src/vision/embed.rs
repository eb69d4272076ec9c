//! Patch embedding (a convolution with kernel = stride), and learned positions interpolated to the size of the image.
//!
//! Checkpoint names: `model.visual.patch_embed.*`, `model.visual.embeddings.*`.
//!
//! Dimensions: `P` patches, `V` values a patch, `H` hidden size, `G` side of the grid of learned positions,
//! `h` x `w` patches of an image.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use glm4v_inputs::Grid;
use glm4v_kernels as kernels;

use crate::config::VisionConfig;
use crate::nn::param::{normal, zeros};

/// Patch embedding.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// The convolution, which is one matrix product as its kernel is its stride.
    pub proj: PatchProjection,
}

/// The convolution's weights in the published shape.
#[derive(Module, Debug)]
pub struct PatchProjection {
    /// `[H, channels, frames, height, width]`
    pub weight: Param<Tensor<5>>,
    /// `[H]`
    pub bias: Param<Tensor<1>>,
}

impl PatchEmbed {
    /// Builds the layer with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &VisionConfig, device: &Device) -> Self {
        let shape = [
            config.hidden_size,
            config.in_channels,
            config.temporal_patch_size,
            config.patch_size,
            config.patch_size,
        ];
        Self {
            proj: PatchProjection {
                weight: normal(shape, device),
                bias: zeros([config.hidden_size], device),
            },
        }
    }

    /// Embeds patches, in the type of the weights.
    ///
    /// # Shapes
    ///
    /// - pixels: `[P, V]`
    /// - output: `[P, H]`
    pub fn forward(&self, pixels: Tensor<2>) -> Tensor<2> {
        let weight = self.proj.weight.val();
        let [hidden, ..] = weight.dims();
        let values = pixels.dims()[1];
        let pixels = pixels.cast(weight.dtype());
        kernels::linear(pixels, weight.reshape([hidden, values]), Some(self.proj.bias.val()))
    }
}

/// Learned positions on a square grid.
#[derive(Module, Debug)]
pub struct PositionEmbedding {
    /// The table.
    pub position_embedding: PositionEmbeddingWeight,
    /// `G`
    pub side: usize,
    /// Side of the blocks in which patches are ordered.
    pub merge: usize,
}

/// The table's weights.
#[derive(Module, Debug)]
pub struct PositionEmbeddingWeight {
    /// `[G · G, H]`
    pub weight: Param<Tensor<2>>,
}

impl PositionEmbedding {
    /// Builds the layer with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    pub fn init(config: &VisionConfig, device: &Device) -> Self {
        let side = config.position_side();
        Self {
            position_embedding: PositionEmbeddingWeight {
                weight: normal([side * side, config.hidden_size], device),
            },
            side,
            merge: config.spatial_merge_size,
        }
    }

    /// Adds every patch's position, read from the table by bicubic interpolation in f32.
    ///
    /// The reference gathers 16 neighbours a patch (`grid_sample`, bicubic, border padding, no aligned corners).
    /// The same weights as two small matrices, rows times table times columns, need no scatter for the gradient.
    ///
    /// # Shapes
    ///
    /// - patches, output: `[P, H]`, the images of `grids` one after another in block order
    pub fn forward(&self, patches: Tensor<2>, grids: &[Grid]) -> Tensor<2> {
        let [_, hidden] = patches.dims();
        let table = self.position_embedding.weight.val();
        let dtype = table.dtype();
        let table = table.cast(DType::F32).reshape([self.side, self.side, hidden]);
        let mut parts = Vec::new();
        for run in grids.chunk_by(|a, b| (a.h, a.w) == (b.h, b.w)) {
            let frames: usize = run.iter().map(|grid| grid.t).sum();
            let one = self.interpolate(table.clone(), run[0].h, run[0].w).cast(dtype); // [h·w, H]
            let count = one.dims()[0];
            parts.push(
                one.unsqueeze_dim::<3>(0).expand([frames, count, hidden]).reshape([frames * count, hidden]),
            );
        }
        patches + Tensor::cat(parts, 0)
    }

    /// The table read at the patches of an `h` x `w` image, in block order.
    ///
    /// # Shapes
    ///
    /// - table: `[G, G, H]`
    /// - output: `[h · w, H]`
    fn interpolate(&self, table: Tensor<3>, h: usize, w: usize) -> Tensor<2> {
        let hidden = table.dims()[2];
        let device = table.device();
        let weights = |size: usize| {
            let values = bicubic_weights(size, self.side);
            Tensor::<2>::from_data(TensorData::new(values, [size, self.side]), (&device, DType::F32))
        };
        // Along the rows first, as the reference sums.
        let columns = weights(w).unsqueeze_dim::<3>(0).expand([self.side, w, self.side]).matmul(table); // [G, w, H]
        let image = weights(h).matmul(columns.reshape([self.side, w * hidden])); // [h, w·H]
        let merge = self.merge;
        image
            .reshape([h / merge, merge, w / merge, merge * hidden])
            .swap_dims(1, 2) // [h/m, w/m, m, m·H]
            .reshape([h * w, hidden])
    }
}

/// How much each of `side` table entries counts for each of `size` positions, `[size, side]` row-major.
fn bicubic_weights(size: usize, side: usize) -> Vec<f32> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let mut weights = vec![0.0; size * side];
    for (position, row) in weights.chunks_mut(side).enumerate() {
        let normal = (position as f32 + 0.5) / size as f32 * 2.0 - 1.0;
        let source = ((normal + 1.0) * side as f32 - 1.0) / 2.0;
        let first = source.floor();
        let t = source - first;
        let taps = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        for (offset, tap) in taps.into_iter().enumerate() {
            // Border padding clamps each tap, not the coordinate.
            let index = (first as i64 - 1 + offset as i64).clamp(0, side as i64 - 1);
            row[index as usize] += tap;
        }
    }
    weights
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;

    /// A table with the value `sin(0.1 · (24 r + c))`, as in the reference's worked example.
    fn embedding() -> PositionEmbedding {
        let values: Vec<f32> = (0..576).map(|i| (0.1 * i as f32).sin()).collect();
        let table = Tensor::from_data(TensorData::new(values, [576, 1]), &Device::flex());
        PositionEmbedding {
            position_embedding: PositionEmbeddingWeight { weight: Param::from_tensor(table) },
            side: 24,
            merge: 2,
        }
    }

    fn at(h: usize, w: usize, patch: (usize, usize)) -> f32 {
        let zeros = Tensor::<2>::zeros([h * w, 1], &Device::flex());
        let values =
            embedding().forward(zeros, &[Grid::new(1, h, w)]).into_data().try_to_vec::<f32>().unwrap();
        let index = crate::nn::rope::block_order(h, w, 2).position(|p| p == patch).unwrap();
        values[index]
    }

    #[test]
    fn positions_are_read_as_grid_sample_reads_them() {
        for (grid, patch, expected) in [
            ((8, 6), (0, 0), 0.5580301),
            ((8, 6), (1, 1), -0.6637138),
            ((8, 6), (0, 2), -0.2070306),
            ((8, 6), (7, 5), -1.0002328),
            ((74, 74), (0, 0), -0.0883147),
            ((74, 74), (73, 73), 1.0224801),
            ((74, 74), (10, 33), 0.9299327),
        ] {
            let found = at(grid.0, grid.1, patch);
            assert!((found - expected).abs() < 2e-5, "{grid:?} {patch:?}: {found}, not {expected}");
        }
    }

    #[test]
    fn a_image_of_the_table_s_own_size_reads_it_as_it_is() {
        let expected = (0.1f32 * (3 * 24 + 5) as f32).sin();
        assert!((at(24, 24, (3, 5)) - expected).abs() < 2e-6);
    }
}
