//! Which hardware to run on, chosen at run time.
//!
//! Burn opens devices lazily and panics in a worker thread when there is none; so the requested
//! device is looked up first, and one kernel is run on it: an absent compiler shows now, and not after the weights are loaded.

pub(crate) mod device_spec;
mod driver;
pub mod fault;
#[cfg(feature = "kernel-cache")]
pub mod kernel_cache;

pub use device_spec::DeviceSpec;
pub use fault::DeviceFault;
pub use glm4v_kernels::is_cpu;

use std::fmt;
use std::str::FromStr;

use burn::prelude::*;
use burn::tensor::{DType, DataError, ExecutionError, TensorReadError};

/// A backend as named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// CUDA if it is compiled in and a GPU answers, else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// Any GPU, through Vulkan, Metal or DirectX; the number picks one of several.
    Wgpu(Option<usize>),
    /// An NVIDIA GPU; the number picks one of several.
    Cuda(Option<usize>),
}

/// Why a backend cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No such name.
    #[error("backend \"{found}\" is unknown; needed: auto, cpu, wgpu, cuda, or one of several as cuda:1")]
    Unknown {
        /// The requested value.
        found: String,
    },
    /// This binary was built without it.
    #[error("backend {backend} is not compiled into this binary; needed: the cargo feature {backend}")]
    NotCompiled {
        /// "cpu", "wgpu" or "cuda", which is also the feature's name.
        backend: &'static str,
    },
    /// No hardware or no driver for it.
    #[error("backend {backend} finds no device; needed: {needed}")]
    NoDevice {
        /// "wgpu" or "cuda".
        backend: &'static str,
        /// What has to be there.
        needed: &'static str,
    },
    /// Fewer devices than the index asks for.
    #[error("backend {backend}:{index}: only {found} device(s) found, counted from 0")]
    NoSuchIndex {
        /// "wgpu" or "cuda".
        backend: &'static str,
        /// The requested value.
        index: usize,
        /// Devices found.
        found: usize,
    },
    /// There is a device, or a driver for one, that does not work.
    #[error("backend {backend} cannot be used: {fault}")]
    Fault {
        /// "wgpu" or "cuda".
        backend: &'static str,
        /// What is wrong with it.
        fault: DeviceFault,
    },
    /// A tensor that the device cannot hold in one piece, nor the network in several.
    #[error("{name} takes {bytes} bytes, and this device binds tensors of at most {most}")]
    TooLarge {
        /// The parameter.
        name: String,
        /// What it takes.
        bytes: u64,
        /// What the device takes.
        most: u64,
    },
    /// No such name.
    #[error("dtype \"{found}\" is unknown; needed: f32, bf16 or f16")]
    UnknownDtype {
        /// The requested value.
        found: String,
    },
    /// The device does not compute in this type.
    #[error("dtype {dtype} is not supported by {backend} here")]
    Dtype {
        /// "f32", "bf16" or "f16".
        dtype: Precision,
        /// The backend.
        backend: Backend,
    },
}

/// The device failed while it computed, which shows when results are read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the device failed while computing")]
pub struct ComputeError {
    /// What failed.
    #[source]
    pub fault: DeviceFault,
}

impl ComputeError {
    /// Adds what the device tells of its memory, where that is what failed.
    pub fn with_memory(self, device: &Device) -> Self {
        Self { fault: self.fault.with_memory(device) }
    }
}

impl From<DeviceFault> for ComputeError {
    fn from(fault: DeviceFault) -> Self {
        Self { fault }
    }
}

impl From<TensorReadError> for ComputeError {
    fn from(error: TensorReadError) -> Self {
        DeviceFault::from_error(&error.to_string()).into()
    }
}

impl From<ExecutionError> for ComputeError {
    fn from(error: ExecutionError) -> Self {
        TensorReadError::from(error).into()
    }
}

impl From<DataError> for ComputeError {
    fn from(error: DataError) -> Self {
        TensorReadError::from(error).into()
    }
}

impl FromStr for Backend {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { found: text.to_owned() };
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            ("cuda", index) => Ok(Self::Cuda(index)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, index) = match self {
            Self::Auto => ("auto", None),
            Self::Cpu => ("cpu", None),
            Self::Wgpu(index) => ("wgpu", *index),
            Self::Cuda(index) => ("cuda", *index),
        };
        match index {
            Some(index) => write!(f, "{name}:{index}"),
            None => f.write_str(name),
        }
    }
}

impl Backend {
    /// What [`Auto`](Self::Auto) means on this machine; others stay what they are.
    pub fn resolve(self) -> Self {
        match self {
            Self::Auto if cuda_count() > 0 => Self::Cuda(None),
            Self::Auto => Self::Cpu,
            other => other,
        }
    }

    /// Opens the device, and runs a first kernel on a GPU.
    ///
    /// # Errors
    ///
    /// When the backend is not compiled in, the machine has no device for it, or the device does not work.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self.resolve() {
            Self::Auto | Self::Cpu => open_cpu(),
            Self::Wgpu(index) => begin("wgpu", open_wgpu(index)?),
            Self::Cuda(index) => begin("cuda", open_cuda(index)?),
        }
    }

    /// The type of weights and activations that suits the backend if none is asked for.
    pub fn default_precision(self) -> Precision {
        match self.resolve() {
            Self::Cuda(_) => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// Every device that this binary can use here: its name on the command line, and what it is.
    pub fn available() -> Vec<(Self, String)> {
        let mut found = Vec::new();
        if open_cpu().is_ok() {
            found.push((Self::Cpu, "processor".to_owned()));
        }
        #[cfg(feature = "cuda")]
        for (index, device) in devices(burn::tensor::DeviceType::Cuda).iter().enumerate() {
            found.push((Self::Cuda(Some(index)), name_of(device)));
        }
        #[cfg(feature = "cuda")]
        if cuda_count() == 0
            && let Some(fault) = driver::cuda_refusal()
        {
            found.push((Self::Cuda(None), format!("cannot be used: {fault}")));
        }
        #[cfg(feature = "wgpu")]
        for (index, device) in devices(burn::tensor::DeviceType::Wgpu).iter().enumerate() {
            found.push((Self::Wgpu(Some(index)), name_of(device)));
        }
        found
    }
}

/// The devices of a kind that answer; none if its driver is broken.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn devices(kind: burn::tensor::DeviceType) -> Vec<Device> {
    fault::guard(|| Device::enumerate(kind).into_vec()).unwrap_or_default()
}

/// What a device calls itself, or why it does not answer; opens it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn name_of(device: &Device) -> String {
    match fault::guard(|| device.identity()) {
        Ok(identity) => identity.map_or_else(|| format!("{device:?}"), |identity| identity.name),
        Err(fault) => format!("cannot be used: {fault}"),
    }
}

/// Starts a device, turns to its kernel cache, and sees a kernel through from its compilation to its result.
fn begin(backend: &'static str, device: Device) -> Result<Device, DeviceError> {
    let failed = |fault: DeviceFault| DeviceError::Fault { backend, fault: fault.with_memory(&device) };
    #[cfg(feature = "kernel-cache")]
    if let Err(error) = fault::guard(|| kernel_cache::select(&device)).map_err(failed)? {
        tracing::warn!("{error}; kernels are chosen and compiled anew in each run");
    }
    let sum = fault::guard(|| (Tensor::<1>::ones([3], &device) + 1.0).sum().try_into_scalar::<f32>());
    match sum.map_err(failed)?.map_err(ComputeError::from) {
        Ok(6.0) => Ok(device),
        Ok(found) => Err(failed(DeviceFault::Other { reason: format!("2 + 2 + 2 gives {found}") })),
        Err(error) => Err(failed(error.fault)),
    }
}

#[cfg(feature = "cpu")]
fn open_cpu() -> Result<Device, DeviceError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "cpu"))]
fn open_cpu() -> Result<Device, DeviceError> {
    Err(DeviceError::NotCompiled { backend: "cpu" })
}

#[cfg(feature = "wgpu")]
fn open_wgpu(index: Option<usize>) -> Result<Device, DeviceError> {
    let devices = fault::guard(|| Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec());
    let devices = devices.map_err(|fault| DeviceError::Fault { backend: "wgpu", fault })?;
    pick("wgpu", "a GPU with a Vulkan, Metal or DirectX 12 driver", devices, index)
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_index: Option<usize>) -> Result<Device, DeviceError> {
    Err(DeviceError::NotCompiled { backend: "wgpu" })
}

#[cfg(feature = "cuda")]
fn open_cuda(index: Option<usize>) -> Result<Device, DeviceError> {
    let devices = fault::guard(|| Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec());
    let devices = devices.map_err(|fault| DeviceError::Fault { backend: "cuda", fault })?;
    // A driver that refuses to begin looks like one without devices.
    if devices.is_empty()
        && let Some(fault) = driver::cuda_refusal()
    {
        return Err(DeviceError::Fault { backend: "cuda", fault });
    }
    pick("cuda", "an NVIDIA GPU with driver 580 or later and the CUDA 13 toolkit (NVRTC)", devices, index)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_index: Option<usize>) -> Result<Device, DeviceError> {
    Err(DeviceError::NotCompiled { backend: "cuda" })
}

#[cfg(feature = "cuda")]
fn cuda_count() -> usize {
    devices(burn::tensor::DeviceType::Cuda).len()
}

#[cfg(not(feature = "cuda"))]
fn cuda_count() -> usize {
    0
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn pick(
    backend: &'static str,
    needed: &'static str,
    devices: Vec<Device>,
    index: Option<usize>,
) -> Result<Device, DeviceError> {
    let found = devices.len();
    if found == 0 {
        return Err(DeviceError::NoDevice { backend, needed });
    }
    let index = index.unwrap_or(0);
    let none = DeviceError::NoSuchIndex { backend, index, found };
    devices.into_iter().nth(index).ok_or(none)
}

/// Type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits.
    F16,
}

impl Precision {
    /// The same for tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Refuses a type that the device cannot compute in.
    ///
    /// # Errors
    ///
    /// Names the type and the backend.
    pub fn check(self, backend: Backend, device: &Device) -> Result<(), DeviceError> {
        if device.supports_dtype(self.dtype()) {
            return Ok(());
        }
        Err(DeviceError::Dtype { dtype: self, backend })
    }
}

impl FromStr for Precision {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(DeviceError::UnknownDtype { found: text.to_owned() }),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in ["auto", "cpu", "wgpu", "cuda:1"] {
            assert_eq!(name.parse::<Backend>().unwrap().to_string(), name);
        }
        for name in ["gpu", "cpu:0", "cuda:", "cuda:x", ""] {
            assert!(name.parse::<Backend>().is_err(), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_is_not_compiled_in_says_which_feature_it_needs() {
        assert_eq!(
            Backend::Cuda(None).open().unwrap_err().to_string(),
            "backend cuda is not compiled into this binary; needed: the cargo feature cuda"
        );
    }
}
