//! The machine and the device on which something was measured.

use burn::tensor::Device;
use glm4v_model::Backend;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// What decides how fast a machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Model name of the processor.
    pub cpu: String,
    /// Processors of the system that this process may use.
    pub cores: usize,
    /// Worker threads of the CPU backend.
    pub threads: usize,
    /// Memory, or what a container may take of it.
    pub memory_bytes: u64,
    /// Operating system with its version.
    pub os: String,
    /// The GPU; none for the CPU.
    pub device: Option<DeviceInfo>,
}

/// A GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As it names itself.
    pub name: String,
    /// Version of its driver, where it is known.
    pub driver: Option<String>,
    /// All of its memory, where it is known.
    pub memory_bytes: Option<u64>,
    /// What of it is free, where it is known.
    pub free_bytes: Option<u64>,
}

impl Machine {
    /// Describes this machine, and the device of a backend on it.
    pub fn new(backend: Backend, device: &Device) -> Self {
        let cpu = CpuRefreshKind::nothing();
        let system = System::new_with_specifics(
            RefreshKind::nothing().with_cpu(cpu).with_memory(MemoryRefreshKind::nothing().with_ram()),
        );
        let memory = system.total_memory();
        Self {
            cpu: system.cpus().first().map_or_else(String::new, |cpu| cpu.brand().trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            memory_bytes: system.cgroup_limits().map_or(memory, |limits| limits.total_memory.min(memory)),
            os: System::long_os_version().unwrap_or_else(|| std::env::consts::OS.to_owned()),
            device: device_info(backend, device),
        }
    }
}

/// Memory of the machine that is free, or that its container leaves, in bytes.
pub(crate) fn free_memory() -> u64 {
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
    let free = system.available_memory();
    system.cgroup_limits().map_or(free, |limits| limits.free_memory.min(free))
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn device_info(backend: Backend, device: &Device) -> Option<DeviceInfo> {
    let identity = device.identity()?;
    let info = match backend.resolve() {
        Backend::Cuda(_) => {
            identity.physical.as_ref().and_then(|card| card.pci_address.as_ref()).map(ToString::to_string)
        }
        _ => None,
    };
    let info = info.and_then(|address| nvidia(&address)).unwrap_or_default();
    Some(DeviceInfo { name: identity.name, ..info })
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub(crate) fn device_info(_backend: Backend, _device: &Device) -> Option<DeviceInfo> {
    None
}

/// What NVIDIA's management library tells of the card at a PCI address.
#[cfg(feature = "cuda")]
fn nvidia(pci_address: &str) -> Option<DeviceInfo> {
    let library = nvml_wrapper::Nvml::init().ok()?;
    let card = library.device_by_pci_bus_id(pci_address).ok()?;
    let memory = card.memory_info().ok();
    Some(DeviceInfo {
        name: String::new(),
        driver: library.sys_driver_version().ok(),
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        free_bytes: memory.map(|memory| memory.free),
    })
}

#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
fn nvidia(_pci_address: &str) -> Option<DeviceInfo> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_and_its_memory_are_described() {
        let machine = Machine::new(Backend::Cpu, &Backend::Cpu.open().unwrap());

        assert!(machine.cores >= 1 && machine.threads >= 1);
        assert!(machine.memory_bytes >= free_memory() && free_memory() > 1 << 20);
        assert_eq!(machine.device, None);
    }
}
