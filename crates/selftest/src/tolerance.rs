//! How far a result may be from the reference; the rule is in the crate's README.

use glm4v_model::Precision;

/// Logits in f32, absolute; they have a standard deviation of about 2.
pub(crate) const LOGITS: f64 = 5e-4;
/// Activations in f32, relative L2.
pub(crate) const ACTIVATIONS: f64 = 1e-5;
/// Gradients in f32, relative L2.
pub(crate) const GRADIENTS: f64 = 5e-5;
/// A loss in f32, absolute.
pub(crate) const LOSS: f64 = 1e-4;
/// Losses of several training steps in f32, absolute: AdamW makes a step of every gradient, however small.
pub(crate) const TRAINING: f64 = 2e-3;

/// How much further than the reference's own 16-bit results a 16-bit result may be from f32.
pub(crate) const FACTOR: f64 = 3.0;
/// As [`FACTOR`], of the distance from the reference's 16-bit result, where the operation is rounded at its ends alone.
pub(crate) const SAME_ROUNDING: f64 = 0.25;

/// The tolerance of a quantity whose tolerance in f32 is `f32`, and whose deviation in 16 bits is `noise` in the reference.
pub(crate) fn tolerance(precision: Precision, f32: f64, noise: f64) -> f64 {
    match precision {
        Precision::F32 => f32,
        Precision::Bf16 | Precision::F16 => (FACTOR * noise).max(f32),
    }
}
