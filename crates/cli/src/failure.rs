//! Text of errors and panics for the terminal.

use std::io;
use std::panic::{self, PanicHookInfo};
use std::sync::Mutex;

use glm4v_model::{DeviceFault, fault};

use crate::threads::FEWER_THREADS;

/// An error with its causes. A cause that an outer error already quotes is not repeated.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    printable(&line)
}

/// Escapes text of untrusted files for the terminal: control characters could move the cursor or change colors, and a further
/// line, which is indented here, could imitate an error of ours.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\n  "),
            '\t' => out.push(character),
            _ if character.is_control() => out.extend(character.escape_default()),
            _ => out.push(character),
        }
    }
    out
}

/// Whether the reader of our output has exited, as `head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Turns panics, including those of the tensor library, into an error line and exit code 1.
pub(crate) fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        // Of a GPU, and reported as an error where its result is read.
        if fault::is_handled(info.payload()) {
            return;
        }
        // Several threads can panic at once: the first reports, the others block until the process exits.
        let guard = PANICKING.lock();
        print_status!("error: {}", describe(info));
        // Other threads may be in the middle of a file; published files are complete, all others are removed.
        glm4v_weights::remove_unpublished();
        std::mem::forget(guard);
        std::process::exit(1);
    }));
}

/// Held by the thread whose panic ends the process.
static PANICKING: Mutex<()> = Mutex::new(());

fn describe(info: &PanicHookInfo<'_>) -> String {
    let text = fault::panic_text(info.payload()).unwrap_or_default();
    if let Some(fault) = DeviceFault::from_panic(info.payload()) {
        return fault.to_string();
    }
    if is_exhaustion(text) {
        return format!("no room for another thread: {text}; {FEWER_THREADS}");
    }
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
    format!(
        "internal error, a bug in glm4v: {text}{}; please report it with the command that led to it",
        place.unwrap_or_default()
    )
}

/// Whether the system refused a thread or its stack: EAGAIN or ENOMEM, in `Display` or `Debug` form.
fn is_exhaustion(text: &str) -> bool {
    ["(os error 11)", "(os error 12)", "Os { code: 11,", "Os { code: 12,"]
        .iter()
        .any(|code| text.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_the_system_refuses_is_not_an_internal_error() {
        let refused = std::io::Error::from_raw_os_error(11);

        assert!(is_exhaustion(&format!("failed to spawn thread: {refused}")));
        assert!(is_exhaustion(&format!("failed to spawn thread: {refused:?}")));
        assert!(!is_exhaustion("attempt to divide by zero"));
    }

    #[test]
    fn a_cause_that_was_quoted_is_not_repeated() {
        let error =
            anyhow::anyhow!("no such file").context("a.json: cannot read: no such file").context("outer");

        assert_eq!(chain(&error), "outer: a.json: cannot read: no such file");
    }

    #[test]
    fn control_characters_and_new_lines_of_a_file_are_escaped() {
        let error = anyhow::anyhow!("template: a\nerror: b\x1b[2J");

        assert_eq!(chain(&error), "template: a\n  error: b\\u{1b}[2J");
    }
}
