#![cfg_attr(feature = "cpu", doc = include_str!("../README.md"))]

mod attention;
mod capture;
#[cfg(feature = "cpu")]
mod cpu;
mod device;
mod linear;

pub use attention::attention;
pub use capture::{Replayed, replay};
pub use device::is_cpu;
pub use linear::linear;
