//! Kernel launches: how many, and how long each takes.

use burn::tensor::Device;
use glm4v_model::is_cpu;

use crate::error::MeasureError;
use crate::kernel_time::KernelTime;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::launch_observer;

/// Number of kernels that `work` launches; none on the CPU, where the work is not run.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn count(
    device: &Device,
    work: impl FnOnce() -> Result<(), MeasureError>,
) -> Result<Option<u64>, MeasureError> {
    if is_cpu(device) { Ok(None) } else { launch_observer::count(work).map(Some) }
}

/// Times of the kernels that `work` launches, longest first; empty on the CPU, where the work is not run.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn profile(
    device: &Device,
    work: impl FnOnce() -> Result<(), MeasureError>,
) -> Result<Vec<KernelTime>, MeasureError> {
    if is_cpu(device) { Ok(Vec::new()) } else { launch_observer::profile(work) }
}

/// None: without a GPU backend there are no kernels, and the work is not run.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn count(
    device: &Device,
    _work: impl FnOnce() -> Result<(), MeasureError>,
) -> Result<Option<u64>, MeasureError> {
    debug_assert!(is_cpu(device));
    Ok(None)
}

/// Empty: without a GPU backend there are no kernels, and the work is not run.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn profile(
    device: &Device,
    _work: impl FnOnce() -> Result<(), MeasureError>,
) -> Result<Vec<KernelTime>, MeasureError> {
    debug_assert!(is_cpu(device));
    Ok(Vec::new())
}
