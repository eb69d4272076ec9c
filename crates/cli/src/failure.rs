//! What went wrong, in words.

use std::io;
use std::panic;

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
    said
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
        let payload = info.payload();
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
        say!(
            "error: glm4v hit a fault of its own: {text}{}; please report it with the command that led to it",
            place.unwrap_or_default()
        );
        // Whatever state the other threads are in, files are written whole or not at all.
        glm4v_weights::remove_unpublished();
        std::process::exit(1);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_was_quoted_is_not_said_twice() {
        let error =
            anyhow::anyhow!("no such file").context("a.json: cannot read: no such file").context("outer");

        assert_eq!(chain(&error), "outer: a.json: cannot read: no such file");
    }
}
