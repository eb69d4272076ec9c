//! What the layers of the text decoder share in one forward pass.

use burn::prelude::*;

use super::kv_cache::KvCache;
use crate::nn::attention::CausalMask;
use crate::nn::forward_context::ForwardContext;
use crate::nn::rope::RotaryTable;

/// A [`ForwardContext`] through the text decoder.
pub type TextForwardContext<'a> = ForwardContext<'a, TextLayerInputs<'a>>;

/// Inputs that all layers of the text decoder share, and outputs that they leave.
#[derive(Debug)]
pub struct TextLayerInputs<'a> {
    /// `[B, S, 1, Dh]`
    pub rotary: RotaryTable<4>,
    /// Which keys each query attends to.
    pub mask: CausalMask,
    /// Keys and values of earlier positions; new ones are appended.
    pub cache: Option<&'a mut KvCache>,
    /// Index of the layer that runs, which is its place in the cache.
    pub layer: usize,
    /// Logits of the routers, one `[B · S, E]` a layer with experts; none unless asked for (`output_router_logits`).
    pub router_logits: Option<Vec<Tensor<2>>>,
}

impl TextLayerInputs<'_> {
    /// The context of a single layer without cache.
    pub fn new(rotary: RotaryTable<4>, mask: CausalMask) -> Self {
        Self { rotary, mask, cache: None, layer: 0, router_logits: None }
    }
}
