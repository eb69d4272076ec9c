//! Panics of the work, its worker threads and the device's, kept instead of ending the process.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Panics since the last look.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Held while the hook is ours: it belongs to the process.
static OWNER: Mutex<()> = Mutex::new(());

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// Replaces the process's panic hook as long as it lives: panics are kept and not reported.
pub(crate) struct PanicGuard {
    previous: Option<Hook>,
    _owner: MutexGuard<'static, ()>,
}

impl PanicGuard {
    pub(crate) fn new() -> Self {
        let owner = OWNER.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = panic::take_hook();
        panics().clear();
        panic::set_hook(Box::new(|info| panics().push(describe(info))));
        Self { previous: Some(previous), _owner: owner }
    }

    /// Runs work; the error is the panics of all threads while it ran, the first one first.
    ///
    /// Burn and CubeCL panic on threads of their own, which the caller then learns of by a closed channel: the first is the cause.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, Vec<String>> {
        let result = panic::catch_unwind(AssertUnwindSafe(work));
        let found = std::mem::take(&mut *panics());
        match result {
            Ok(output) if found.is_empty() => Ok(output),
            Err(payload) if found.is_empty() => Err(vec![text(&*payload)]), // passed on by another thread
            _ => Err(found),
        }
    }
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if let Some(previous) = self.previous.take().filter(|_| !std::thread::panicking()) {
            panic::set_hook(previous);
        }
    }
}

fn panics() -> MutexGuard<'static, Vec<String>> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
    format!("{}{}", text(info.payload()), place.unwrap_or_default())
}

/// The message of a panic.
fn text(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_the_caller_and_of_other_threads_are_kept() {
        let guard = PanicGuard::new();

        let own = guard.run(|| panic!("own {}", 1)).map(|(): ()| ());
        let of_worker = guard.run(|| {
            let worker = std::thread::spawn(|| panic!("in the worker"));
            worker.join().expect("the channel is open");
        });
        let unnoticed = guard.run(|| drop(std::thread::spawn(|| panic!("unnoticed")).join()));

        assert!(own.unwrap_err()[0].starts_with("own 1 ("));
        let both = of_worker.unwrap_err();
        assert!(
            both[0].starts_with("in the worker (") && both[1].contains("the channel is open"),
            "{both:?}"
        );
        assert_eq!(unnoticed.unwrap_err().len(), 1, "a result after a panic proves nothing");
        assert_eq!(guard.run(|| 7), Ok(7));
    }
}
