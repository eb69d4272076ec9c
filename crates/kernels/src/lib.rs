#![cfg_attr(feature = "cpu", doc = include_str!("../README.md"))]

mod adamw;
#[cfg(feature = "mimalloc")]
pub mod allocator;
mod attention;
mod capture;
#[cfg(test)]
#[cfg(feature = "cpu")]
mod check;
#[cfg(feature = "cpu")]
mod cpu;
mod cross_entropy;
mod device;
mod linear;
mod norm;
mod rotary;
mod swiglu;
#[cfg(feature = "cpu")]
mod tracked_linear;

pub use adamw::{AdamWState, AdamWUpdate, adamw};
pub use attention::attention;
pub use attention::tracked::{AttentionMask, attention_with_weights, packed_attention, tracked_attention};
pub use capture::{Replayed, replay};
pub use cross_entropy::{cross_entropy, weighted_cross_entropy};
pub use device::{has_own_kernel, is_cpu};
pub use linear::linear;
pub use norm::rms_norm;
pub use rotary::{RotaryPairs, rotary};
pub use swiglu::{swiglu, swiglu_fused};
