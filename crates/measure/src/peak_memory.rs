//! Largest memory use of the process and of the device.

use burn::tensor::Device;

/// Memory at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeakMemory {
    /// Largest resident size of the process; none where the system does not tell.
    pub process_bytes: Option<u64>,
    /// Whether `process_bytes` is the peak since the start of the process: some systems do not allow it to be reset.
    pub process_since_start: bool,
    /// What the backend holds of the device's memory afterwards: pages are kept for reuse, so that it is the peak. None on the
    /// CPU, whose tensors are part of the process.
    pub device_bytes: Option<u64>,
}

/// A measurement of the peak that has begun.
pub(crate) struct PeakMeter {
    device: Device,
    since_start: bool,
}

impl PeakMeter {
    pub(crate) fn start(device: &Device) -> Self {
        device.memory_cleanup(); // pages of earlier work
        Self { device: device.clone(), since_start: !reset_process_peak() }
    }

    pub(crate) fn stop(self) -> PeakMemory {
        PeakMemory {
            process_bytes: process_peak(),
            process_since_start: self.since_start,
            device_bytes: self.device.memory_pool_usage().map(|usage| usage.bytes_reserved),
        }
    }
}

/// `VmHWM` of `/proc/self/status`, in bytes.
fn process_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Sets the peak to the present size; false where the system does not allow it. See proc(5), `clear_refs`.
fn reset_process_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use glm4v_model::Backend;

    #[test]
    fn the_peak_is_at_least_what_is_held() {
        // Of the process: tests beside this one may reset it, but never below what is held at that time.
        let meter = PeakMeter::start(&Backend::Cpu.open().unwrap());
        let size = 256 << 20;
        let block = std::hint::black_box(vec![1u8; size]);

        let peak = meter.stop();

        assert!(peak.process_bytes.unwrap() >= size as u64, "{peak:?}");
        assert_eq!((peak.device_bytes, block.len()), (None, size));
    }
}
