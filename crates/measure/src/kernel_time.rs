//! Time that a kernel takes.

/// Time of all launches of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// Name of the kernel.
    pub name: String,
    /// Number of launches.
    pub launches: u64,
    /// Seconds on the device, all launches together.
    pub seconds: f64,
}
