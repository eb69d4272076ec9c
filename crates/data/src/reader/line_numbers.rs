//! First lines of records.

/// The first line of each record.
///
/// Most files have one record on each line and need no memory here: an entry is kept only where a record does not begin on the line
/// after the previous one.
#[derive(Debug, Default)]
pub(super) struct LineNumbers {
    /// Index and line of records that do not follow on the next line, ascending.
    jumps: Vec<(usize, usize)>,
}

impl LineNumbers {
    /// Adds the record after all others.
    pub(super) fn push(&mut self, index: usize, line: usize) {
        if self.get(index) != line {
            self.jumps.push((index, line));
        }
    }

    /// The first line of a record, from 1.
    pub(super) fn get(&self, index: usize) -> usize {
        let after = self.jumps.partition_point(|(jump, _)| *jump <= index);
        let (from, line) = after.checked_sub(1).map_or((0, 1), |last| self.jumps[last]);
        line + (index - from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_that_were_pushed_and_equal_steps_take_no_memory() {
        let pushed = [1, 2, 3, 7, 8, 9, 9, 9, 12, 13, 2000, 2001];
        let mut lines = LineNumbers::default();
        for (index, line) in pushed.into_iter().enumerate() {
            lines.push(index, line);
        }

        assert_eq!((0..pushed.len()).map(|index| lines.get(index)).collect::<Vec<_>>(), pushed);
        assert_eq!(lines.jumps.len(), 5);
    }
}
