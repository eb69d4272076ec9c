#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! A [`Stopwatch`] measures any work; [`Measurement`] is its result. [`Ceilings`] and [`Machine`] describe the device. Nothing
//! is printed here.

mod ceilings;
mod error;
mod fit;
mod inference;
mod kernel_time;
mod kernels;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod launch_observer;
mod loading;
mod machine;
mod peak_memory;
mod preprocessing;
mod random_weights;
mod samples;
mod shape;
mod stopwatch;
mod training;

pub use ceilings::Ceilings;
pub use error::MeasureError;
pub use fit::{FreeMemory, check_fits};
pub use inference::{decode, prefill, vision};
pub use kernel_time::KernelTime;
pub use loading::load;
pub use machine::{DeviceInfo, Machine};
pub use peak_memory::PeakMemory;
pub use preprocessing::{PreprocessInput, preprocess};
pub use random_weights::random_weights;
pub use samples::Samples;
pub use shape::{InputShape, check_length, grid_for};
pub use stopwatch::{Measurement, Rounds, Stopwatch};
pub use training::{TrainingMethod, TrainingSetup, training};
