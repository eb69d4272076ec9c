#![cfg_attr(feature = "cpu", doc = include_str!("../README.md"))]

mod attention;
#[cfg(feature = "cpu")]
mod cpu;
mod device;
mod linear;

pub use attention::attention;
pub use device::is_cpu;
pub use linear::linear;
