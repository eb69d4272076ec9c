//! Which records of a dataset were left out or shortened.

use std::collections::HashSet;

use crate::fit::Shortening;
use crate::location::RecordLocation;

/// Numbers of records that were not used as they are, each record counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Left out as too long.
    pub dropped: usize,
    /// Left out as bad.
    pub skipped: usize,
    /// With smaller images, because they were too long.
    pub shrunk: usize,
    /// With fewer turns, because they were too long.
    pub truncated: usize,
}

impl RecordCounts {
    /// Whether every record was used as it is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What happened to a record.
#[derive(Debug)]
pub(crate) enum Outcome<'a> {
    /// Left out as too long.
    Dropped(&'a str),
    /// Left out as bad, with the reason.
    Skipped(&'a str),
    /// Made to fit.
    Shortened(&'a RecordLocation, Shortening),
}

/// Counts outcomes, with a warning for the first ones of each kind.
#[derive(Debug, Default)]
pub(crate) struct OutcomeLog {
    /// Indices of the records counted.
    seen: HashSet<usize>,
    counts: RecordCounts,
}

/// Records of a kind with a warning of their own.
const NAMED: usize = 10;

impl OutcomeLog {
    pub(crate) fn counts(&self) -> RecordCounts {
        self.counts
    }

    /// Counts the outcome of a record, unless it was counted before.
    pub(crate) fn add(&mut self, index: usize, outcome: &Outcome<'_>) {
        if !self.seen.insert(index) {
            return;
        }
        let counts = &mut self.counts;
        let (count, what) = match outcome {
            Outcome::Dropped(_) => (&mut counts.dropped, "left out as too long"),
            Outcome::Skipped(_) => (&mut counts.skipped, "left out"),
            Outcome::Shortened(_, Shortening::ShrunkImages { .. }) => {
                (&mut counts.shrunk, "with smaller images")
            }
            Outcome::Shortened(_, Shortening::Truncated { .. }) => {
                (&mut counts.truncated, "with fewer turns")
            }
        };
        *count += 1;
        match *count {
            count if count <= NAMED => tracing::warn!("{what}: {}", describe(outcome)),
            count if count.is_power_of_two() => tracing::warn!("{count} records {what} so far"),
            _ => {}
        }
    }
}

fn describe(outcome: &Outcome<'_>) -> String {
    match outcome {
        Outcome::Dropped(reason) | Outcome::Skipped(reason) => (*reason).to_owned(),
        Outcome::Shortened(location, Shortening::ShrunkImages { max_tokens }) => {
            format!("{location}: images of at most {max_tokens} tokens, to fit max_length")
        }
        Outcome::Shortened(location, Shortening::Truncated { messages }) => {
            format!("{location}: {messages} messages removed, to fit max_length")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_counted_once_over_all_epochs() {
        let mut log = OutcomeLog::default();
        for index in [3, 4, 3] {
            log.add(index, &Outcome::Skipped("bad"));
        }
        log.add(5, &Outcome::Dropped("long"));

        assert_eq!(log.counts(), RecordCounts { skipped: 2, dropped: 1, ..RecordCounts::default() });
    }
}
