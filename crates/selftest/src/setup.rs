//! What all parts share.

use glm4v_model::{DeviceSpec, Precision};

use crate::error::CheckError;
use crate::family::Family;

/// A device, a type, and the networks.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) device_spec: DeviceSpec,
    pub(crate) precision: Precision,
    pub(crate) families: Vec<Family>,
}

impl Setup {
    pub(crate) fn new(device_spec: DeviceSpec, precision: Precision) -> Result<Self, CheckError> {
        Ok(Self { device_spec, precision, families: Family::all()? })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use glm4v_model::Backend;

    use super::*;

    /// The CPU.
    pub(crate) fn on_cpu(precision: Precision) -> Setup {
        Setup::new(DeviceSpec::unbounded(&Backend::Cpu.open().unwrap()), precision).unwrap()
    }
}
