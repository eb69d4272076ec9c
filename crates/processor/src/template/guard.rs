//! Where a template can do little harm: a thread with a deep stack, watched for time and memory.
//!
//! Steps do not bound what one operation does: ten doublings of a string are ten steps. So whoever waits for the
//! thread looks at the clock and at what the process holds, and leaves when it is too much. The thread
//! itself cannot be ended from outside; it runs on until the process ends, which the error is about to bring about.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use memory_stats::memory_stats;

/// Longest time that a template may take.
pub(super) const SECONDS: u64 = 20;

/// How much the process may grow meanwhile. Generous, since other threads grow too.
pub(super) const GROWTH: usize = 1 << 30;

/// Stack of the thread: nested expressions and values of [`MAX_SOURCE`](super::MAX_SOURCE) bytes fit. Only what is used takes memory.
const STACK: usize = 512 << 20;

/// Nobody looks before: almost every template is done by then.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const NEXT_LOOK: Duration = Duration::from_millis(10);

/// Why a template was left alone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateStopped {
    /// It did not end in time.
    #[error("no end after {seconds} seconds; does it loop?")]
    Time {
        /// Seconds allowed.
        seconds: u64,
    },
    /// The process grew too much meanwhile.
    #[error("takes more than {megabytes} MB of memory; does it double something?")]
    Memory {
        /// Growth allowed.
        megabytes: usize,
    },
    /// Nowhere to run it.
    #[error("no thread can be started: {source}")]
    Thread {
        /// What the system says.
        source: std::io::Error,
    },
}

/// Runs `work` to its end, or leaves it alone.
pub(super) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TemplateStopped> {
    let start = Instant::now();
    let held = || memory_stats().map_or(0, |memory| memory.physical_mem);
    let before = held();
    let (done, wait) = sync_channel(1);
    let work = move || {
        // Nobody waits any more: the result has no use.
        let _ = done.send(work());
    };
    let builder = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
    let thread = builder.spawn(work).map_err(|source| TemplateStopped::Thread { source })?;
    let mut look = FIRST_LOOK;
    loop {
        match wait.recv_timeout(look) {
            Ok(result) => {
                // Its stack is given back before the next one is asked for.
                let _ = thread.join();
                return Ok(result);
            }
            Err(RecvTimeoutError::Timeout) if start.elapsed().as_secs() >= SECONDS => {
                return Err(TemplateStopped::Time { seconds: SECONDS });
            }
            Err(RecvTimeoutError::Timeout) if held() > before.saturating_add(GROWTH) => {
                return Err(TemplateStopped::Memory { megabytes: GROWTH >> 20 });
            }
            Err(RecvTimeoutError::Timeout) => look = NEXT_LOOK,
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Ok(()) => unreachable!("a thread that ends without a panic has sent its result"),
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
}
