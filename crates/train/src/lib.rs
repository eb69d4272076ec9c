//! WIP
mod adamw;
mod gradients;
mod loss;
mod schedule;
pub use adamw::*;
pub use gradients::*;
pub use loss::*;
pub use schedule::*;
