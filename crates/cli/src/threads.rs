//! Worker threads of the CPU backend.

/// Runs `work` in a pool of the given number of threads.
///
/// The work itself is one of the pool's threads: a matrix product that it starts runs on, instead of waking a sleeping
/// worker and waiting for it. Threads that prepare batches use the ordinary pool beside it.
pub(crate) fn with_threads<T: Send>(
    threads: Option<u16>,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let threads = threads.map_or_else(default_threads, |threads| Ok(usize::from(threads)))?;
    let builder = || rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(16 << 20);
    let failed = |source| ThreadsError::Start { threads, source };
    builder().build_global().map_err(failed)?;
    builder().build().map_err(failed)?.install(work)
}

/// Why no thread pool can be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ThreadsError {
    /// The system refuses the threads or their stacks.
    #[error("{threads} worker threads cannot be started")]
    Start {
        /// Number of threads requested.
        threads: usize,
        /// Error of rayon, with that of the operating system.
        source: rayon::ThreadPoolBuildError,
    },
    /// `RAYON_NUM_THREADS` is above the limit of `--threads`.
    #[error("{VARIABLE} is {found}; needed: 1 to {MAX_THREADS}, or 0 for one a core")]
    Variable {
        /// Value of the variable.
        found: usize,
    },
}

/// Maximum of `--threads`.
pub(crate) const MAX_THREADS: u16 = 1024;

/// Remedy where the system refuses threads.
pub(crate) const FEWER_THREADS: &str = "ask for fewer with --threads or RAYON_NUM_THREADS, or raise the limits of processes and \
                                        memory (ulimit -u, ulimit -v)";

/// Environment variable of rayon.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Rayon's default: its environment variable, or one thread per core.
fn default_threads() -> Result<usize, ThreadsError> {
    let requested = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    match requested {
        0 => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        found if found > usize::from(MAX_THREADS) => Err(ThreadsError::Variable { found }),
        threads => Ok(threads),
    }
}
