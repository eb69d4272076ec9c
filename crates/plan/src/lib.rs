#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`CostModel`] is the input, [`MemoryEstimate`] and [`Work`] are the outputs; [`CostModel::training_memory`] lists the moments of a training
//! step at which memory can peak. The bytes that autodiff saves are in `vision.rs` and `text.rs`, operation by operation in
//! the order of the forward pass, and change with the blocks in `glm4v-model`.
//!
//! The estimate counts tensors. `tests/suites/memory.rs` compares it with what the allocator hands out for tensors, on one
//! thread and without the packing buffers of matrix products, which grow with threads and caches. The resident size of whole
//! runs was up to a fifth more: `benches/memory`.

mod cost_model;
mod memory;
mod saved;
mod text;
mod tuning;
mod vision;
mod work;
mod workload;

pub use cost_model::CostModel;
pub use memory::MemoryEstimate;
pub use tuning::{FrozenParts, TuningMode};
pub use work::Work;
pub use workload::Workload;
