//! Progress of reading and writing weights.

/// Called with the bytes done so far and the bytes in total.
pub type ProgressFn<'a> = &'a mut dyn FnMut(u64, u64);
