//! Limits of time and memory for a template, which runs on a thread of its own with a deep stack.
//!
//! Counting steps does not bound a single operation: ten doublings of a string are ten steps. So the caller polls the clock and
//! the memory of the process while it waits for the thread, and returns an error when a limit is exceeded. A thread cannot be
//! killed; it runs on until the process exits, which the error is expected to bring about.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use memory_stats::memory_stats;

/// Seconds that a template may take.
const MAX_SECONDS: u64 = 20;

/// Bytes by which the process may grow meanwhile. Generous, since other threads allocate too.
const MAX_GROWTH: usize = 1 << 30;

/// Stack of the thread: room for nested expressions and values of the longest template. Only touched pages take memory.
const STACK_BYTES: usize = 512 << 20;

/// No check before: almost every template is done by then.
const FIRST_POLL: Duration = Duration::from_millis(100);
const NEXT_POLL: Duration = Duration::from_millis(10);

/// Reason why rendering a template was aborted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenderAborted {
    /// It exceeded the time limit.
    #[error("no end after {seconds} seconds; does it loop?")]
    Timeout {
        /// Seconds allowed.
        seconds: u64,
    },
    /// The process exceeded the memory limit meanwhile.
    #[error("takes more than {megabytes} MB of memory; does it double something?")]
    Memory {
        /// Growth allowed.
        megabytes: usize,
    },
    /// Its thread could not be started.
    #[error("no thread can be started: {source}")]
    Thread {
        /// Error of the operating system.
        source: std::io::Error,
    },
}

/// Runs `work` on a thread and returns its result, or an error once a limit is exceeded.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RenderAborted> {
    let start = Instant::now();
    let before = process_bytes();
    let (sender, receiver) = sync_channel(1);
    let work = move || {
        // Fails after an abort, when nobody needs the result.
        let _ = sender.send(work());
    };
    let builder = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
    let thread = builder.spawn(work).map_err(|source| RenderAborted::Thread { source })?;
    let mut poll = FIRST_POLL;
    loop {
        match receiver.recv_timeout(poll) {
            Ok(result) => {
                // Frees its stack before the next one is allocated.
                let _ = thread.join();
                return Ok(result);
            }
            Err(RecvTimeoutError::Timeout) => check_limits(start, before)?,
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Ok(()) => unreachable!("a thread that ends without a panic has sent its result"),
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
        poll = NEXT_POLL;
    }
}

fn check_limits(start: Instant, before: usize) -> Result<(), RenderAborted> {
    if start.elapsed().as_secs() >= MAX_SECONDS {
        return Err(RenderAborted::Timeout { seconds: MAX_SECONDS });
    }
    if process_bytes() > before.saturating_add(MAX_GROWTH) {
        return Err(RenderAborted::Memory { megabytes: MAX_GROWTH >> 20 });
    }
    Ok(())
}

/// Resident memory of the process; 0 where the system does not report it.
fn process_bytes() -> usize {
    memory_stats().map_or(0, |memory| memory.physical_mem)
}
