//! Where tensors are placed, and how large one may be there.

use burn::prelude::*;
use burn::tensor::DType;

use super::Backend;

/// A device with the type of its tensors and the size of the largest.
///
/// The CPU is limited by memory alone. wgpu limits what a kernel may bind of one buffer, whatever the memory: software Vulkan to
/// 128 MiB, most GPUs to 2 to 4 GiB. On CUDA the tensor library makes no buffer larger than a quarter of the memory.
#[derive(Debug, Clone)]
pub struct DeviceSpec {
    /// The device.
    pub device: Device,
    /// Bytes of the largest tensor; none if memory is the only limit.
    pub max_tensor_bytes: Option<u64>,
    /// Type of the tensors.
    pub dtype: DType,
}

/// Overrules the device's limit, to try a small one where there is none. For tests.
const LIMIT: &str = "GLM4V_LARGEST_TENSOR_BYTES";

impl DeviceSpec {
    /// A device without a limit.
    pub fn unbounded(device: &Device) -> Self {
        Self { device: device.clone(), max_tensor_bytes: None, dtype: DType::F32 }
    }

    /// A device with tensors of `dtype` and at most `bytes`.
    pub fn bounded(device: &Device, bytes: u64, dtype: DType) -> Self {
        Self { device: device.clone(), max_tensor_bytes: Some(bytes), dtype }
    }

    /// The limit that the driver reports for a backend's device.
    pub fn for_backend(backend: Backend, device: &Device, dtype: DType) -> Self {
        let limit = std::env::var(LIMIT).ok().and_then(|bytes| bytes.parse().ok());
        let max_tensor_bytes = limit.or_else(|| match backend.resolve() {
            Backend::Wgpu(_) | Backend::Cuda(_) => largest_buffer(device),
            _ => None,
        });
        Self { device: device.clone(), max_tensor_bytes, dtype }
    }

    /// Values of the largest tensor.
    pub(crate) fn max_tensor_values(&self) -> Option<usize> {
        let values = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX) / self.dtype.size();
        self.max_tensor_bytes.map(|bytes| values(bytes).max(1))
    }

    /// The same device with gradients.
    pub fn autodiff(self) -> Self {
        Self { device: self.device.autodiff(), ..self }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn largest_buffer(device: &Device) -> Option<u64> {
    use burn::backend::DispatchDevice;
    match device.clone().inner().as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.client().properties().memory.max_page_size),
        #[allow(unreachable_patterns, reason = "the only kind where no CPU is compiled in")]
        _ => None,
    }
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn largest_buffer(_device: &Device) -> Option<u64> {
    None
}
