//! Throttling of warnings about single files, which a dataset may raise by the thousand.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Lets the first, tenth, hundredth … of equal warnings through.
#[derive(Debug, Default)]
pub(crate) struct WarningThrottle(AtomicUsize);

impl WarningThrottle {
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Counts an event; the count if it is to be logged, a power of ten.
    pub(crate) fn count_if_due(&self) -> Option<usize> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let power = std::iter::successors(Some(count), |n| n.is_multiple_of(10).then(|| n / 10)).last();
        (power == Some(1)).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_events_are_four_warnings() {
        let throttle = WarningThrottle::new();

        let due: Vec<usize> = (0..1000).filter_map(|_| throttle.count_if_due()).collect();

        assert_eq!(due, [1, 10, 100, 1000]);
    }
}
