//! Signals that end the program: SIGINT (Ctrl-C), and on Unix SIGTERM and SIGHUP.
//!
//! Incomplete files are removed, and the exit code is 128 plus the signal's number, as in shells. For a command that can
//! stop gracefully ([`stop_flag`]), the first signal sets a flag, and the second ends the program.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use glm4v_train::TrainError;

/// Number of the first signal received; 0 before.
static RECEIVED: AtomicU8 = AtomicU8::new(0);

/// Set by the first signal while a command can stop gracefully.
static STOP: AtomicBool = AtomicBool::new(false);

/// Message about the graceful stop of the current command; none if signals end it at once.
static GRACEFUL: Mutex<Option<&'static str>> = Mutex::new(None);

/// A command that a signal stopped before its result was complete.
#[derive(Debug, thiserror::Error)]
#[error("{missing}")]
pub(crate) struct Interrupted {
    /// The part of the result that is missing.
    pub(crate) missing: &'static str,
}

/// The flag that the first signal from now on sets, instead of ending the program; `message` is printed then.
pub(crate) fn stop_flag(message: &'static str) -> &'static AtomicBool {
    *GRACEFUL.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    &STOP
}

/// The exit code of an error that a signal caused; none for other errors.
pub(crate) fn exit_code(error: &anyhow::Error) -> Option<ExitCode> {
    let interrupted = error.chain().any(|cause| {
        cause.is::<Interrupted>() || matches!(cause.downcast_ref(), Some(TrainError::Interrupted { .. }))
    });
    let signal = RECEIVED.load(Ordering::Relaxed);
    (interrupted && signal != 0).then(|| ExitCode::from(128 + signal))
}

fn receive(signal: u8) {
    let first = RECEIVED.swap(signal, Ordering::Relaxed) == 0;
    let graceful = *GRACEFUL.lock().unwrap_or_else(PoisonError::into_inner);
    match graceful {
        Some(message) if first => {
            STOP.store(true, Ordering::Relaxed);
            print_status!("\n{message}; Ctrl-C again ends at once");
        }
        _ => {
            glm4v_weights::remove_unpublished();
            std::process::exit(128 + i32::from(signal));
        }
    }
}

/// Starts the thread that handles signals. Must be called before other threads exist, as they inherit the blocked signals.
#[cfg(unix)]
pub(crate) fn handle_signals() -> anyhow::Result<()> {
    use anyhow::Context;
    use nix::sys::signal::{SigSet, Signal};

    let mut signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    if !is_ignored(Signal::SIGHUP as u8) {
        signals.add(Signal::SIGHUP);
    }
    signals.thread_block().context("signals cannot be held back")?;
    exit_on_abort().context("signals cannot be listened to")?;
    let listen = move || {
        while let Ok(signal) = signals.wait() {
            receive(signal as u8);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .context("the thread that listens to signals cannot be started")?;
    Ok(())
}

/// Exit code 1 instead of SIGABRT, which the allocator raises without memory and the runtime on a stack overflow: both have
/// printed an error by then.
#[cfg(unix)]
fn exit_on_abort() -> std::io::Result<()> {
    use std::sync::Arc;

    use signal_hook::consts::SIGABRT;
    use signal_hook::flag::register_conditional_shutdown;

    register_conditional_shutdown(SIGABRT, 1, Arc::new(AtomicBool::new(true))).map(drop)
}

/// Whether the parent process set the signal to be ignored, as `nohup` does with SIGHUP: it must stay ignored then. Assumed where
/// `/proc` does not exist.
#[cfg(unix)]
fn is_ignored(signal: u8) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask & 1 << (signal - 1) != 0)
}

/// Starts the thread that handles Ctrl-C.
#[cfg(not(unix))]
pub(crate) fn handle_signals() -> anyhow::Result<()> {
    const INTERRUPT: u8 = 2;
    Ok(ctrlc::set_handler(|| receive(INTERRUPT))?)
}
