//! Warnings about single files that a dataset may bring by the thousand.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is worth a warning, and says when to give one.
#[derive(Debug, Default)]
pub(crate) struct Notice(AtomicUsize);

impl Notice {
    pub(crate) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// How often it happened in this process, at the first time, the tenth, the hundredth and so on.
    pub(crate) fn due(&self) -> Option<usize> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let power = std::iter::successors(Some(count), |n| n.is_multiple_of(10).then(|| n / 10)).last();
        (power == Some(1)).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_times_are_four_warnings() {
        let notice = Notice::new();

        let due: Vec<usize> = (0..1000).filter_map(|_| notice.due()).collect();

        assert_eq!(due, [1, 10, 100, 1000]);
    }
}
