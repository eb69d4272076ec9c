//! Which kernels a tensor can have.

use burn::tensor::{DType, Device, Tensor};

/// Whether the processor computes what is on a device.
#[cfg(feature = "cpu")]
pub fn is_cpu(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), burn::backend::DispatchDevice::Flex(_))
}

/// Whether the processor computes what is on a device.
#[cfg(not(feature = "cpu"))]
pub fn is_cpu(_device: &Device) -> bool {
    false
}

/// Whether operations that are differentiated have kernels of their own for tensors of this type on this device: today f32 on
/// the CPU.
pub fn has_own_kernel(device: &Device, dtype: DType) -> bool {
    dtype == DType::F32 && is_cpu(device)
}

/// Whether a tensor is of a type and on a device with own kernels, tracked or not.
#[cfg(feature = "cpu")]
pub(crate) fn is_cpu_f32<const D: usize>(tensor: &Tensor<D>) -> bool {
    has_own_kernel(&tensor.device(), tensor.dtype())
}

/// Whether kernels of the CPU, which compute in f32, may take a tensor that no gradient is wanted of.
#[cfg(feature = "cpu")]
pub(crate) fn is_plain_cpu_f32<const D: usize>(tensor: &Tensor<D>) -> bool {
    !tensor.is_autodiff() && is_cpu_f32(tensor)
}
