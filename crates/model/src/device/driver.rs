//! Questions to a device's driver that the tensor library does not ask.

use burn::prelude::Device;

use super::fault::{DeviceFault, guard};

impl DeviceFault {
    /// Adds what the device tells of its memory, to a fault of memory.
    pub fn with_memory(self, device: &Device) -> Self {
        match self {
            Self::OutOfMemory { requested, .. } => {
                // The device may not answer any more.
                let held = guard(|| device.memory_pool_usage()).ok().flatten();
                let held = held.map(|usage| usage.bytes_reserved);
                Self::OutOfMemory { requested, held, free: free_memory(device) }
            }
            other => other,
        }
    }
}

/// Why CUDA has no devices, if there is a driver that says so; none where no driver is installed.
#[cfg(feature = "cuda")]
pub(super) fn cuda_refusal() -> Option<DeviceFault> {
    use cudarc::driver::{DriverError, result, sys::CUresult};
    match guard(result::init) {
        Ok(Ok(()) | Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE))) => None,
        Ok(Err(error)) => {
            let text = error.to_string();
            match DeviceFault::from_text(&text) {
                // Of a device that was never there.
                Some(DeviceFault::Lost { reason } | DeviceFault::Other { reason }) => {
                    Some(DeviceFault::Driver { reason })
                }
                fault => fault,
            }
        }
        // No driver at all: the ordinary machine without a GPU.
        Err(DeviceFault::MissingLibrary { .. }) => None,
        Err(fault) => Some(fault),
    }
}

/// Bytes that no process holds; none where the driver does not tell.
#[cfg(feature = "cuda")]
fn free_memory(device: &Device) -> Option<u64> {
    use burn::backend::DispatchDevice;
    let device = device.clone().inner();
    let DispatchDevice::Cube(cubecl::Device::Cuda(device)) = device.as_dispatch() else { return None };
    let index = device.index;
    let free = guard(|| cudarc::driver::CudaContext::new(index)?.mem_get_info());
    free.ok()?.ok().map(|(free, _)| free as u64)
}

/// Bytes that no process holds; none where the driver does not tell.
#[cfg(not(feature = "cuda"))]
fn free_memory(_device: &Device) -> Option<u64> {
    None
}

/// Name and version of the driver of a device, as far as they are known.
#[cfg(feature = "kernel-cache")]
pub(super) fn version(device: &Device) -> Option<String> {
    // That of the kernel module, whichever API is used: NVIDIA's Vulkan is part of it.
    let nvidia =
        || std::fs::read_to_string("/sys/module/nvidia/version").ok().map(|text| text.trim().to_owned());
    adapter_driver(device).or_else(nvidia)
}

#[cfg(all(feature = "kernel-cache", feature = "wgpu"))]
fn adapter_driver(device: &Device) -> Option<String> {
    use burn::backend::DispatchDevice;
    use cubecl::wgpu::wgpu;
    let device = device.clone().inner();
    let DispatchDevice::Cube(device @ cubecl::Device::Wgpu(_)) = device.as_dispatch() else { return None };
    let name = device.client().properties().identity.name.clone();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let infos = adapters.iter().map(wgpu::Adapter::get_info);
    let info = infos.into_iter().find(|info| info.name == name)?;
    Some(format!("{} {}", info.driver, info.driver_info))
}

#[cfg(all(feature = "kernel-cache", not(feature = "wgpu")))]
fn adapter_driver(_device: &Device) -> Option<String> {
    None
}
