//! Whether a workload fits into memory, before anything is allocated.

use burn::tensor::Device;
use glm4v_model::{Backend, is_cpu};
use glm4v_plan::MemoryEstimate;

use crate::error::MeasureError;
use crate::machine::{device_info, free_memory};

/// Memory that a device has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeMemory {
    /// "this machine" or "the device", for messages.
    pub place: &'static str,
    /// Bytes; none where the backend does not tell.
    pub bytes: Option<u64>,
}

impl FreeMemory {
    /// What the device has left: for the CPU what the machine has, or its container.
    pub fn of(backend: Backend, device: &Device) -> Self {
        if is_cpu(device) {
            return Self { place: "this machine", bytes: Some(free_memory()) };
        }
        Self { place: "the device", bytes: device_info(backend, device).and_then(|info| info.free_bytes) }
    }
}

/// Refuses a workload whose estimated peak is more than what is free.
///
/// # Errors
///
/// With both numbers.
pub fn check_fits(workload: &str, needed: MemoryEstimate, free: FreeMemory) -> Result<(), MeasureError> {
    match free.bytes {
        Some(bytes) if needed.total() > bytes => Err(MeasureError::DoesNotFit {
            workload: workload.to_owned(),
            needed: Box::new(needed),
            place: free.place,
            free: bytes,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_what_is_free_is_refused_with_the_numbers() {
        let needed = MemoryEstimate {
            weights: 18_000_000_000,
            optimizer: 72_000_000_000,
            ..MemoryEstimate::default()
        };
        let free = |bytes| FreeMemory { place: "the device", bytes };

        let error = check_fits("training", needed, free(Some(80_000_000_000))).unwrap_err().to_string();

        assert_eq!(
            error,
            "training: needs about 90.00 GB (18.00 GB of weights, 72.00 GB of optimizer state and gradients, 0.00 GB of the rest), \
             and the device has 80.00 GB free"
        );
        assert!(check_fits("training", needed, free(Some(90_000_000_000))).is_ok());
        assert!(check_fits("training", needed, free(None)).is_ok());
    }
}
