//! Options of mimalloc, for programs whose allocator it is.

use std::time::Duration;

/// How long freed memory is kept for reuse by [`keep_freed_memory`].
pub const KEPT: Duration = Duration::from_secs(60);

/// `mi_option_purge_delay` of mimalloc 3, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps freed memory for reuse for [`KEPT`], and returns what is free then to the system.
///
/// By default it goes back within a second, and the kernel clears it page by page when it is used again: that was nearly half of the
/// time of a training step, whose tensors are freed and allocated again all the time. A minute is several steps, so that the
/// clearing no longer shows, and memory of a finished piece of work does not stay forever.
pub fn keep_freed_memory() {
    let milliseconds = KEPT.as_millis() as std::ffi::c_long;
    #[expect(unsafe_code, reason = "a function of a C library")]
    // SAFETY: sets a number that mimalloc reads when memory is freed; it can be called at any time, from any thread.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_delay() {
        #[expect(unsafe_code, reason = "a function of a C library")]
        // SAFETY: reads a number.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        // The default of mimalloc 3.3, which no other option has.
        assert_eq!(delay(), 1000);

        keep_freed_memory();

        assert_eq!(delay(), 60_000);
    }
}
