//! Time limit of reading a video.

use std::time::{Duration, Instant};

use super::error::VideoError;

/// End of the time for reading a video.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    end: Instant,
    seconds: u64,
}

impl Deadline {
    /// A deadline in `seconds` from now.
    pub(super) fn after(seconds: u64) -> Self {
        Self { end: Instant::now() + Duration::from_secs(seconds), seconds }
    }

    /// Time left, zero after the deadline.
    pub(super) fn remaining(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// The error for the video `name` after the deadline.
    pub(super) fn exceeded(&self, name: &str) -> VideoError {
        VideoError::Timeout { name: name.to_owned(), seconds: self.seconds }
    }

    pub(super) fn check(&self, name: &str) -> Result<(), VideoError> {
        if self.remaining().is_zero() { Err(self.exceeded(name)) } else { Ok(()) }
    }
}
