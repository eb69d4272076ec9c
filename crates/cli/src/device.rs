//! Opening the hardware that the flags ask for.

use anyhow::bail;
use glm4v_model::{Precision, Site};

use crate::args::{Dtype, Global};

/// Runs `work` with the threads that were asked for.
///
/// The work itself is one of the pool's threads: a matrix product that it starts runs on, instead of waking a sleeping
/// worker and waiting for it. Threads that prepare batches use the ordinary pool beside it.
pub(crate) fn with_threads<T: Send>(
    threads: Option<u16>,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let threads = threads.map_or(0, usize::from); // 0: one a core
    let pool = |builder: rayon::ThreadPoolBuilder| builder.num_threads(threads).stack_size(16 << 20);
    pool(rayon::ThreadPoolBuilder::new()).build_global()?;
    pool(rayon::ThreadPoolBuilder::new()).build()?.install(work)
}

/// Where and in which type the flags want the network.
pub(crate) fn open(global: &Global) -> anyhow::Result<(Site, Precision)> {
    let device = global.backend.open()?;
    let precision = precision(global)?;
    precision.check(global.backend.resolve(), &device)?;
    if global.verbose > 0 {
        say!("backend {}, dtype {precision}", global.backend.resolve());
    }
    Ok((Site::of(global.backend, &device, precision.dtype()), precision))
}

/// The type that the flags ask for.
pub(crate) fn precision(global: &Global) -> anyhow::Result<Precision> {
    match global.dtype {
        None => Ok(global.backend.default_precision()),
        Some(Dtype::Of(precision)) => Ok(precision),
        Some(Dtype::Keep) => {
            bail!("--dtype keep is for glm4v convert and merge; needed here: f32, bf16 or f16")
        }
    }
}
