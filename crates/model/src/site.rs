//! Where a network is built, and how large a tensor may be there.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::DType;

use crate::config::Glm4vConfig;
use crate::device::{Backend, DeviceError};
use crate::glm4v::Glm4v;
use crate::named::{NamedVisitor, visit_named};

/// A device and the size of the largest tensor that it takes.
///
/// CPU and CUDA are bound by memory alone. wgpu binds what a kernel may see of one buffer, whatever the memory: software
/// Vulkan 128 MiB, most GPUs 2 to 4 GiB.
#[derive(Debug, Clone)]
pub struct Site {
    /// The device.
    pub device: Device,
    /// Bytes that one tensor may take; none if memory is the only bound.
    pub most_bytes: Option<u64>,
    /// Type of the tensors.
    pub dtype: DType,
}

/// Overrules what the device says, to try a small bound where there is none. For tests.
const BOUND: &str = "GLM4V_LARGEST_TENSOR_BYTES";

impl Site {
    /// A device that takes tensors of any size.
    pub fn unbounded(device: &Device) -> Self {
        Self { device: device.clone(), most_bytes: None, dtype: DType::F32 }
    }

    /// A device that takes tensors of at most `bytes`, filled with values of `dtype`.
    pub fn bounded(device: &Device, bytes: u64, dtype: DType) -> Self {
        Self { device: device.clone(), most_bytes: Some(bytes), dtype }
    }

    /// What a backend's device says of itself.
    pub fn of(backend: Backend, device: &Device, dtype: DType) -> Self {
        let told = std::env::var(BOUND).ok().and_then(|bytes| bytes.parse().ok());
        let most_bytes = told.or_else(|| match backend.resolve() {
            Backend::Wgpu(_) => largest_binding(device),
            _ => None,
        });
        Self { device: device.clone(), most_bytes, dtype }
    }

    /// Values that one tensor may have.
    pub(crate) fn most_values(&self) -> Option<usize> {
        let values = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX) / self.dtype.size();
        self.most_bytes.map(|bytes| values(bytes).max(1))
    }

    /// The same for training.
    pub fn autodiff(self) -> Self {
        Self { device: self.device.autodiff(), ..self }
    }

    /// Builds the network here, matrices in pieces where they are too large for one tensor; its weights wait for
    /// [`initialize`](crate::initialize) or a checkpoint.
    ///
    /// # Errors
    ///
    /// When a tensor is too large that cannot be split: found out before anything is allocated.
    pub fn build(&self, config: &Glm4vConfig) -> Result<Glm4v, DeviceError> {
        let model = config.init_on(self);
        let Some(most) = self.most_bytes else { return Ok(model) };
        let mut largest = Largest { size: self.dtype.size() as u64, bytes: 0, name: String::new() };
        visit_named(&model, &mut largest);
        if largest.bytes <= most {
            return Ok(model);
        }
        Err(DeviceError::TooLarge { name: largest.name, bytes: largest.bytes, most })
    }
}

/// Finds the parameter that takes the most bytes.
struct Largest {
    size: u64,
    bytes: u64,
    name: String,
}

impl NamedVisitor for Largest {
    fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
        let bytes = param.lazy_shape().num_elements() as u64 * self.size;
        if bytes > self.bytes {
            (self.bytes, self.name) = (bytes, name.to_owned());
        }
    }
}

#[cfg(feature = "wgpu")]
fn largest_binding(device: &Device) -> Option<u64> {
    use burn::backend::DispatchDevice;
    match device.clone().inner().as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.client().properties().memory.max_page_size),
        #[allow(unreachable_patterns, reason = "the only kind where wgpu alone is compiled in")]
        _ => None,
    }
}

#[cfg(not(feature = "wgpu"))]
fn largest_binding(_device: &Device) -> Option<u64> {
    None
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_split_is_refused_with_the_numbers() {
        let site = Site::bounded(&Device::flex(), 1000, DType::F32);

        let error = site.build(&Glm4vConfig::tiny()).unwrap_err();

        assert_eq!(
            error.to_string(),
            "model.visual.downsample.weight takes 24576 bytes, and this device binds tensors of at most 1000"
        );
    }

    #[test]
    fn a_network_in_pieces_has_the_same_shapes_by_name() {
        let device = Device::flex();
        let split = Site::bounded(&device, 25_000, DType::F32).build(&Glm4vConfig::tiny()).unwrap();
        let whole = Site::unbounded(&device).build(&Glm4vConfig::tiny()).unwrap();

        assert_eq!(split.num_params(), whole.num_params());
        let pieces = |model: &Glm4v| {
            let mut count = Count(0);
            visit_named(model, &mut count);
            count.0
        };
        assert!(pieces(&split) > pieces(&whole), "{} of {}", pieces(&split), pieces(&whole));
    }

    struct Count(usize);

    impl NamedVisitor for Count {
        fn visit<const D: usize>(&mut self, _name: &str, _param: &Param<Tensor<D>>) {
            self.0 += 1;
        }
    }
}
