//! Layers that both towers are built from, each usable alone.

pub(crate) mod attention;
pub(crate) mod forward_context;
pub(crate) mod linear;
pub(crate) mod lora;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod param;
pub(crate) mod positions;
pub(crate) mod recorder;
pub(crate) mod rope;
pub(crate) mod weight;

pub use attention::{AttentionImplementation, CausalMask, bidirectional_attention, causal_attention};
pub use forward_context::ForwardContext;
pub use linear::{Linear, LinearConfig};
pub use lora::{Lora, LoraLayerConfig};
pub use mlp::{GateUpMlp, GatedMlp};
pub use norm::{LayerNorm, RmsNorm};
pub use positions::{PositionError, PositionIds};
pub use recorder::{ActivationRecorder, copy_tensor_data};
pub use rope::RotaryTable;
pub use weight::WeightMatrix;
