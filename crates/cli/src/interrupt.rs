//! Signals that ask the program to end: Ctrl-C, and where there are such, termination and the end of the terminal.
//!
//! What is half-written is removed, and the exit code is 128 and the signal's number, as shells have it. A command that can
//! end at a good place says so ([`gently`]): the first signal then raises a flag, and the second ends the program.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use glm4v_train::TrainError;

/// Number of the signal that was heard first, 0 before.
static HEARD: AtomicU8 = AtomicU8::new(0);

/// True once a command that ends at a good place should.
static STOP: AtomicBool = AtomicBool::new(false);

/// What the command at hand does about a signal; none if it ends at once.
static GENTLY: Mutex<Option<&'static str>> = Mutex::new(None);

/// A command that was ended before its result was whole.
#[derive(Debug, thiserror::Error)]
#[error("{missing}")]
pub(crate) struct Stopped {
    /// What the user does not get.
    pub(crate) missing: &'static str,
}

/// From now on a signal turns the flag true instead of ending the program; `what_happens` is said then.
pub(crate) fn gently(what_happens: &'static str) -> &'static AtomicBool {
    *GENTLY.lock().unwrap_or_else(PoisonError::into_inner) = Some(what_happens);
    &STOP
}

/// The exit code for an error, if a signal was its cause.
pub(crate) fn exit_code(error: &anyhow::Error) -> Option<ExitCode> {
    let stopped = error.chain().any(|cause| {
        cause.is::<Stopped>() || matches!(cause.downcast_ref(), Some(TrainError::Interrupted { .. }))
    });
    let signal = HEARD.load(Ordering::Relaxed);
    (stopped && signal != 0).then(|| ExitCode::from(128 + signal))
}

fn heard(signal: u8) {
    let first = HEARD.swap(signal, Ordering::Relaxed) == 0;
    let gently = *GENTLY.lock().unwrap_or_else(PoisonError::into_inner);
    match gently {
        Some(what_happens) if first => {
            STOP.store(true, Ordering::Relaxed);
            say!("\n{what_happens}; Ctrl-C again ends at once");
        }
        _ => {
            glm4v_weights::remove_unpublished();
            std::process::exit(128 + i32::from(signal));
        }
    }
}

/// Listens to signals, on a thread of its own; to be called before there are others.
#[cfg(unix)]
pub(crate) fn listen() -> anyhow::Result<()> {
    use anyhow::Context;
    use nix::sys::signal::{SigSet, Signal};

    let mut signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    if !is_ignored(Signal::SIGHUP as u8) {
        signals.add(Signal::SIGHUP);
    }
    // Threads inherit it: whichever there are, signals wait for the one that asks for them.
    signals.thread_block().context("signals cannot be held back")?;
    exit_where_others_abort().context("signals cannot be listened to")?;
    let listen = move || {
        while let Ok(signal) = signals.wait() {
            heard(signal as u8);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .context("the thread that listens to signals cannot be started")?;
    Ok(())
}

/// Exit code 1 where the allocator or a stack that is full aborts the program: what it says of it is an error like others.
#[cfg(unix)]
fn exit_where_others_abort() -> std::io::Result<()> {
    use std::sync::Arc;

    use signal_hook::consts::SIGABRT;
    use signal_hook::flag::register_conditional_shutdown;

    register_conditional_shutdown(SIGABRT, 1, Arc::new(AtomicBool::new(true))).map(drop)
}

/// Whether the program was started to live on, as `nohup` does for the end of the terminal: then it stays so. Where that
/// cannot be seen, it is taken for granted.
#[cfg(unix)]
fn is_ignored(signal: u8) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask & 1 << (signal - 1) != 0)
}

/// Listens to Ctrl-C and its kin, on a thread of its own.
#[cfg(not(unix))]
pub(crate) fn listen() -> anyhow::Result<()> {
    const INTERRUPT: u8 = 2;
    Ok(ctrlc::set_handler(|| heard(INTERRUPT))?)
}
