#![doc = include_str!("../README.md")]
//!
//! # Where to start
//!
//! [`SelfTest::run`] runs [`Part`]s on a device and hands out a [`PartReport`] each, whatever panics on the way.

mod comparison;
mod error;
mod exact;
mod family;
mod guard;
mod part;
mod parts;
mod self_test;
mod setup;
mod tolerance;
mod values;

pub use comparison::Comparison;
pub use error::CheckError;
pub use part::{Part, UnknownPart};
pub use self_test::{Failure, PartReport, SelfTest};
