//! What went wrong, in words.

use std::io;
use std::panic::{self, PanicHookInfo};
use std::sync::Mutex;

use crate::remedy::FEWER_THREADS;

/// An error with its causes, each said once.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if said.contains(&text) {
            continue; // many errors quote their cause
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(&text);
    }
    printable(&said)
}

/// Text of files and libraries for the terminal: control characters, which could move the cursor or change colours, are spelled out,
/// and further lines are indented, so that none of them passes for an error of its own.
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

/// Whether whoever read our output went away, as `head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Turns a panic, ours or the tensor library's, into an error line and exit code 1.
pub(crate) fn report_panics() {
    panic::set_hook(Box::new(|info| {
        // The first of several threads speaks; the others wait for the end.
        let alone = HELD.lock();
        say!("error: {}", describe(info));
        // Whatever state the other threads are in, files are written whole or not at all.
        glm4v_weights::remove_unpublished();
        std::mem::forget(alone);
        std::process::exit(1);
    }));
}

/// Held by the thread whose panic ends the program.
static HELD: Mutex<()> = Mutex::new(());

fn describe(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    if is_exhaustion(&text) {
        return format!("no room for another thread: {text}; {FEWER_THREADS}");
    }
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
    format!(
        "internal error, a bug in glm4v: {text}{}; please report it with the command that led to it",
        place.unwrap_or_default()
    )
}

/// Whether libraries panic because the system refuses a thread or its stack: EAGAIN and ENOMEM, in the two ways that Rust
/// prints them.
fn is_exhaustion(text: &str) -> bool {
    ["(os error 11)", "(os error 12)", "Os { code: 11,", "Os { code: 12,"]
        .iter()
        .any(|code| text.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_the_system_refuses_is_no_fault_of_the_program() {
        let refused = std::io::Error::from_raw_os_error(11);

        assert!(is_exhaustion(&format!("failed to spawn thread: {refused}")));
        assert!(is_exhaustion(&format!("failed to spawn thread: {refused:?}")));
        assert!(!is_exhaustion("attempt to divide by zero"));
    }

    #[test]
    fn a_cause_that_was_quoted_is_not_said_twice() {
        let error =
            anyhow::anyhow!("no such file").context("a.json: cannot read: no such file").context("outer");

        assert_eq!(chain(&error), "outer: a.json: cannot read: no such file");
    }

    #[test]
    fn words_of_a_file_pass_for_no_error_of_ours() {
        let error = anyhow::anyhow!("template: a\nerror: b\x1b[2J");

        assert_eq!(chain(&error), "template: a\n  error: b\\u{1b}[2J");
    }
}
