//! Errors of the data loader.

use crate::sample::SampleError;

/// Error of the next batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataLoaderError {
    /// A record cannot be used.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Two epochs without a usable record, most of them bad.
    #[error("left out {skipped} records in a row that cannot be used, and no other was met")]
    EverythingSkipped {
        /// Number of records left out.
        skipped: usize,
    },
    /// Two epochs without a usable record, most of them too long.
    #[error(
        "dropped {dropped} records in a row as longer than max_length; raise it or make the images smaller"
    )]
    EverythingDropped {
        /// Number of records dropped.
        dropped: usize,
    },
    /// A thread cannot be started.
    #[error("worker {worker} could not be started; use fewer workers")]
    Start {
        /// Index of the worker.
        worker: usize,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A worker panicked, which is a bug.
    #[error("worker {worker} died; see the message of its panic")]
    Died {
        /// Index of the worker.
        worker: usize,
    },
}
