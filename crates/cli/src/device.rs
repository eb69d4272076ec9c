//! Device, placement and data type according to the global flags.

use anyhow::bail;
use glm4v_model::{DeviceSpec, Precision};

use crate::args::{Dtype, Global};
use crate::kernels::{self, Tuning};

/// Device and data type of the network.
pub(crate) fn open(global: &Global) -> anyhow::Result<(DeviceSpec, Precision)> {
    kernels::install(Tuning::Quick); // of a command that asked for another, that one holds
    let device = global.backend.open()?;
    let precision = precision(global)?;
    precision.check(global.backend.resolve(), &device)?;
    if global.verbose > 0 {
        print_status!("backend {}, dtype {precision}", global.backend.resolve());
    }
    if !global.quiet && kernels::summary().is_some_and(|cache| cache.entries == 0) {
        print_status!(
            "first run on this device: kernels are chosen and compiled, which takes a while; glm4v warmup does it ahead"
        );
    }
    Ok((DeviceSpec::for_backend(global.backend, &device, precision.dtype()), precision))
}

/// Data type of weights and activations: `--dtype`, or the default of the backend.
pub(crate) fn precision(global: &Global) -> anyhow::Result<Precision> {
    match global.dtype {
        None => Ok(global.backend.default_precision()),
        Some(Dtype::Precision(precision)) => Ok(precision),
        Some(Dtype::Keep) => {
            bail!("--dtype keep is for glm4v convert and merge; needed here: f32, bf16 or f16")
        }
    }
}
