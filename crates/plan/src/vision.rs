//! Memory of vision tower and merger.
//!
//! Dimensions: `P` patches of the batch, `D` hidden size of the tower, `F` intermediate size of its blocks, `O` hidden size
//! of the decoder, `M` intermediate size of the merger.

use glm4v_model::{ModelPart, VisionConfig};

use crate::cost_model::{CostModel, F32_BYTES};
use crate::saved::SavedTensors;
use crate::tuning::{AdapterPlace, TuningMode};

/// Linear layers of a block: `qkv`, `proj`, `gate_proj`, `up_proj`, `down_proj`.
const BLOCK_LINEARS: u64 = 5;
/// Linear layers of the merger: `proj`, `gate_proj`, `up_proj`, `down_proj`.
const MERGER_LINEARS: u64 = 4;

impl CostModel<'_> {
    /// Bytes that vision tower and merger save for the backward pass; 0 if they are frozen.
    pub(crate) fn vision_saved_activations(&self, tuning: TuningMode) -> u64 {
        let patches = self.workload.patches();
        if !tuning.trains_merger() || patches == 0 {
            return 0;
        }
        let vision = &self.config.vision;
        let merger = SavedTensors::new(self, tuning, ModelPart::Merger);
        if !tuning.trains_vision_tower() {
            return merger_saved(vision, merger, patches);
        }
        let saved = SavedTensors::new(self, tuning, ModelPart::VisionTower);
        let rows = patches * vision.num_heads as u64;
        let block = patches * block_saved_per_patch(vision, saved)
            + saved.attention(rows, self.workload.patches_per_frame());
        patches * embed_saved_per_patch(vision, saved)
            + vision.depth as u64 * block
            + merger_saved(vision, merger, patches)
    }

    /// Workspace of the tower's forward pass without gradients: the largest of patch embedding, attention and feed-forward.
    /// `tiled` attention does not materialize its scores.
    pub(crate) fn vision_forward_workspace(&self, tiled: bool) -> u64 {
        let (vision, bytes, patches) = (&self.config.vision, self.dtype_bytes, self.workload.patches());
        let [d, f] = [vision.hidden_size, vision.block_intermediate_size].map(|width| width as u64);
        let embed = 2 * F32_BYTES * vision.patch_values() as u64 + d * bytes; // the batch's pixels are copied
        // Queries and keys, before and after, as RoPE is applied in f32; our kernel rotates them in one pass.
        let rotated = if self.has_own_kernels() { 0 } else { 4 * d * F32_BYTES };
        let scores = if tiled { 0 } else { 2 * self.vision_scores() * F32_BYTES };
        let attention = patches * (11 * d * bytes + rotated) + scores;
        let mlp = patches * ((2 * d + 3 * f) * bytes + self.activation_copy(d + f));
        (patches * embed).max(attention).max(mlp)
    }
}

/// Patch embedding: pixels in f32, and the norm of the embedding where positions are learned. Nothing before it is
/// trainable, so that LoRA saves nothing here.
fn embed_saved_per_patch(vision: &VisionConfig, saved: SavedTensors) -> u64 {
    if !saved.trainable {
        return 0;
    }
    let norm = if vision.learned_positions { saved.rms_norm(vision.hidden_size as u64) } else { 0 };
    F32_BYTES * vision.patch_values() as u64 + norm
}

fn block_saved_per_patch(vision: &VisionConfig, saved: SavedTensors) -> u64 {
    let [d, f] = [vision.hidden_size, vision.block_intermediate_size].map(|width| width as u64);
    let attention = saved.tensor(3 * d) + saved.tensor(d); // queries, keys and values; input of proj
    // In f32 without our kernel the normalized queries and keys need no copy for RoPE, and are then saved beside the rotated ones.
    let unrotated = if saved.dtype_bytes == F32_BYTES && !saved.own_kernels { saved.tensor(d) } else { 0 };
    let qk_norm = if vision.qk_norm { 2 * saved.rms_norm(d) + unrotated } else { 0 };
    2 * saved.pre_norm(d)
        + attention
        + qk_norm
        + saved.swiglu(f)
        + saved.lora(AdapterPlace::Vision, BLOCK_LINEARS)
}

/// Final norm of the tower, downsampling convolution and merger.
fn merger_saved(vision: &VisionConfig, saved: SavedTensors, patches: u64) -> u64 {
    let [d, o, m] = [vision.hidden_size, vision.out_hidden_size, vision.merger_intermediate_size]
        .map(|width| width as u64);
    let tokens = patches / vision.merged_patches() as u64;
    let downsampled = saved.rms_norm(d) + saved.weight_factor(d); // post_layernorm; input of downsample
    let gelu = 3 * F32_BYTES * o;
    let projected = saved.tensor(o) + saved.layer_norm(o) + gelu + saved.tensor(o); // inputs of proj and of the gate
    let permuted_weight = saved.tensor(4 * d * o); // of downsample, as a matrix product needs it
    patches * downsampled
        + tokens * (projected + saved.swiglu(m) + saved.lora(AdapterPlace::Vision, MERGER_LINEARS))
        + permuted_weight
}
