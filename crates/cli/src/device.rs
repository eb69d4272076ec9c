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
    let asked = threads.map_or_else(default_threads, |threads| Ok(usize::from(threads)))?;
    let builder = || rayon::ThreadPoolBuilder::new().num_threads(asked).stack_size(16 << 20);
    let failed = |source| ThreadsError::Start { asked, source };
    builder().build_global().map_err(failed)?;
    builder().build().map_err(failed)?.install(work)
}

/// Why nothing can be computed at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ThreadsError {
    /// The system has no room for them.
    #[error("{asked} worker threads cannot be started")]
    Start {
        /// How many.
        asked: usize,
        /// What the system says.
        source: rayon::ThreadPoolBuildError,
    },
    /// The environment asks for what no flag may.
    #[error("{VARIABLE} is {found}; needed: 1 to {MOST_THREADS}, or 0 for one a core")]
    Variable {
        /// Its value.
        found: usize,
    },
}

/// As many threads as a flag may ask for.
pub(crate) const MOST_THREADS: u16 = 1024;

/// What rayon reads.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// What rayon starts by itself: as many as its variable says, or one a core.
fn default_threads() -> Result<usize, ThreadsError> {
    let told = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    match told {
        0 => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        found if found > usize::from(MOST_THREADS) => Err(ThreadsError::Variable { found }),
        threads => Ok(threads),
    }
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
