//! Ctrl-C: once to stop at a good place, twice to stop at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// True once Ctrl-C was pressed.
static STOP: AtomicBool = AtomicBool::new(false);

/// Listens for Ctrl-C and termination from now on; returns what turns true.
pub(crate) fn listen(what_happens: &'static str) -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
        say!("\n{what_happens}; Ctrl-C again ends at once");
    })?;
    Ok(&STOP)
}
