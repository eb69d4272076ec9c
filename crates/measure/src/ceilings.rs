//! What the device can do: copy bandwidth, and the rate of matrix products through the same backend.

use burn::tensor::{DType, Device, Distribution, Tensor};
use glm4v_model::{DeviceSpec, Precision, is_cpu};
use memmap2::MmapMut;
use rayon::prelude::*;

use crate::error::MeasureError;
use crate::fit::FreeMemory;
use crate::samples::Samples;
use crate::stopwatch::{Rounds, Stopwatch};

/// Measured limits of a device.
#[derive(Debug, Clone)]
pub struct Ceilings {
    /// Bytes read and written a second while a large block is copied, of each round.
    pub copy_bytes_per_s: Samples,
    /// Bytes of the block.
    pub copy_bytes: u64,
    /// Operations a second in the product of two square matrices, of each round.
    pub matmul_flops_per_s: Samples,
    /// Rows of these matrices.
    pub matmul_size: usize,
}

/// The block that is copied: larger than the caches of processors and GPUs.
const COPY_BYTES: u64 = 256 << 20;

/// Rows of the smallest and of the largest matrices.
const MATMUL_SIZES: [usize; 2] = [256, 8192];

/// Seconds of a product that is long enough to be measured.
const MATMUL_SECONDS: f64 = 0.02;

impl Ceilings {
    /// Measures a device.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub fn measure(
        device_spec: &DeviceSpec,
        precision: Precision,
        free: FreeMemory,
        rounds: Rounds,
    ) -> Result<Self, MeasureError> {
        let stopwatch = Stopwatch::new(&device_spec.device, rounds);
        // Of what is free an eighth at most: the block exists twice.
        let copy_bytes = COPY_BYTES
            .min(device_spec.max_tensor_bytes.unwrap_or(u64::MAX))
            .min(free.bytes.unwrap_or(u64::MAX) / 8)
            .max(1 << 20);
        let copied = match is_cpu(&device_spec.device) {
            true => copy_on_host(copy_bytes as usize, &stopwatch)?,
            false => copy_on_device(&device_spec.device, copy_bytes as usize, &stopwatch)?,
        };
        let (matmul_size, products) = matmul(device_spec, precision.dtype(), &stopwatch)?;
        Ok(Self {
            copy_bytes_per_s: rate(&copied, 2.0 * copy_bytes as f64),
            copy_bytes,
            matmul_flops_per_s: rate(&products, 2.0 * (matmul_size as f64).powi(3)),
            matmul_size,
        })
    }
}

fn rate(seconds: &Samples, amount: f64) -> Samples {
    Samples::new(seconds.all().iter().map(|seconds| amount / seconds).collect())
}

/// All threads copy, each its own part: operations of the backend may use one thread alone, and are no limit.
fn copy_on_host(bytes: usize, stopwatch: &Stopwatch) -> Result<Samples, MeasureError> {
    let block = || MmapMut::map_anon(bytes).map_err(|source| MeasureError::NoMemory { bytes, source });
    let (mut from, mut to) = (block()?, block()?);
    from.fill(1); // pages that were never written may all be the same one
    let part = bytes.div_ceil(4 * rayon::current_num_threads());
    let measured = stopwatch.measure(|| {
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    })?;
    Ok(measured.seconds)
}

/// A sum with a number, which reads and writes a tensor once.
fn copy_on_device(device: &Device, bytes: usize, stopwatch: &Stopwatch) -> Result<Samples, MeasureError> {
    let from = Tensor::<2>::ones([bytes / 4 / 1024, 1024], (device, DType::F32));
    let measured = stopwatch.measure(|| {
        drop(from.clone() + 1.0);
        Ok(())
    })?;
    Ok(measured.seconds)
}

/// Seconds of products of a size that takes long enough, or of the largest that fits.
fn matmul(
    device_spec: &DeviceSpec,
    dtype: DType,
    stopwatch: &Stopwatch,
) -> Result<(usize, Samples), MeasureError> {
    let options = (&device_spec.device, dtype);
    let fits = |size: usize| {
        let bytes = (size * size * dtype.size()) as u64;
        size <= MATMUL_SIZES[1] && device_spec.max_tensor_bytes.is_none_or(|most| bytes <= most)
    };
    let mut size = MATMUL_SIZES[0];
    loop {
        let random = || Tensor::<2>::random([size, size], Distribution::Normal(0.0, 1.0), options);
        let (a, b) = (random(), random());
        let measured = stopwatch.measure(|| {
            drop(a.clone().matmul(b.clone()));
            Ok(())
        })?;
        if measured.seconds.median() >= MATMUL_SECONDS || !fits(2 * size) {
            return Ok((size, measured.seconds));
        }
        size *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_model::Backend;

    #[test]
    fn both_limits_are_measured() {
        let device = Backend::Cpu.open().unwrap();
        let free = FreeMemory { place: "this machine", bytes: Some(64 << 20) };
        let rounds = Rounds { warmup: 1, rounds: 3 };

        let ceilings =
            Ceilings::measure(&DeviceSpec::unbounded(&device), Precision::F32, free, rounds).unwrap();

        assert_eq!((ceilings.copy_bytes, ceilings.copy_bytes_per_s.all().len()), (8 << 20, 3));
        assert!(ceilings.copy_bytes_per_s.min() > 0.0 && ceilings.matmul_flops_per_s.min() > 0.0);
        assert!(ceilings.matmul_size >= 256);
    }
}
