//! Datasets mixed into one: how many records of each, and how often in an epoch.
//!
//! What is drawn depends on the seed, the dataset's name and its number of records alone, so that a resumed run has the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::location::RecordLocation;
use crate::reader::ReadError;
use crate::record::Record;
use crate::records::Records;
use crate::shuffle::permutation;

/// How much of a dataset is in a mixture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// How often each record comes in an epoch; of the fraction, a part of the records that the seed draws.
    pub weight: f64,
    /// Number of records, drawn by the seed; more than there are take each as often. All of them without.
    pub samples: Option<usize>,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1.0, samples: None }
    }
}

/// The part of a dataset before it is held out for evaluation, or what is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Train,
    HeldOut,
}

/// Records of one or several datasets, by one index.
#[derive(Debug, Clone, Default)]
pub struct Mixture {
    parts: Vec<MixturePart>,
}

/// The chosen records of one dataset.
#[derive(Debug, Clone)]
struct MixturePart {
    records: Arc<Records>,
    chosen: Chosen,
}

/// Records of a dataset with repetitions.
#[derive(Debug, Clone)]
struct Chosen {
    /// Indices of the dataset; all of them without.
    list: Option<Vec<usize>>,
    /// Number of records before any is repeated.
    distinct: usize,
    /// How often each of them comes.
    copies: usize,
    /// Those that come once more, as positions among the distinct ones.
    extra: Vec<usize>,
}

impl Chosen {
    fn all(len: usize) -> Self {
        Self { list: None, distinct: len, copies: 1, extra: Vec::new() }
    }

    fn of(list: Vec<usize>) -> Self {
        Self { distinct: list.len(), list: Some(list), copies: 1, extra: Vec::new() }
    }

    fn len(&self) -> usize {
        self.distinct * self.copies + self.extra.len()
    }

    /// Position among the distinct records.
    fn position(&self, at: usize) -> usize {
        let repeated = self.distinct * self.copies;
        if at < repeated { at % self.distinct } else { self.extra[at - repeated] }
    }

    /// Index in the dataset.
    fn record(&self, position: usize) -> usize {
        self.list.as_ref().map_or(position, |list| list[position])
    }

    /// As many records as given, each as often as any other but for one time.
    fn repeat_to(self, len: usize, seed: u64) -> Self {
        if self.distinct == 0 {
            return self;
        }
        let (copies, more) = (len / self.distinct, len % self.distinct);
        let mut extra = permutation(self.distinct, seed, 0);
        extra.truncate(more);
        extra.sort();
        extra.shrink_to_fit();
        Self { copies, extra, ..self }
    }

    /// As many records as given, without repetition unless there are fewer.
    fn draw(self, samples: usize, seed: u64) -> Self {
        let drawn = self.repeat_to(samples, seed);
        if drawn.copies > 0 {
            return drawn;
        }
        Self::of(drawn.extra.iter().map(|position| drawn.record(*position)).collect())
    }

    /// Leaves out distinct records, by position.
    fn without(&self, positions: &BTreeSet<usize>) -> Self {
        let kept = (0..self.distinct).filter(|position| !positions.contains(position));
        let list: Vec<usize> = kept.map(|position| self.record(position)).collect();
        let still = self.extra.iter().filter(|position| !positions.contains(position));
        let extra = still.map(|position| position - positions.range(..position).count()).collect();
        Self { distinct: list.len(), list: Some(list), copies: self.copies, extra }
    }
}

impl Mixture {
    /// No records, to which [`add`](Self::add) adds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a share of a dataset.
    ///
    /// `held_out` is the fraction of the dataset that [`add_held_out`](Self::add_held_out) adds to another mixture with the same seed;
    /// it is taken away before anything is drawn.
    pub fn add(&mut self, records: Arc<Records>, share: Share, held_out: f64, seed: u64) {
        let seed = seed_of(seed, records.name());
        let mut chosen = side(records.len(), held_out, seed, Side::Train);
        if let Some(samples) = share.samples {
            chosen = chosen.draw(samples, seed.wrapping_add(1));
        }
        if share.weight != 1.0 {
            let len = chosen.len() as f64 * share.weight;
            chosen = chosen.repeat_to(len.round() as usize, seed.wrapping_add(2));
        }
        self.parts.push(MixturePart { records, chosen });
    }

    /// Adds the fraction of a dataset that is held out, each record once.
    pub fn add_held_out(&mut self, records: Arc<Records>, fraction: f64, seed: u64) {
        let chosen = side(records.len(), fraction, seed_of(seed, records.name()), Side::HeldOut);
        self.parts.push(MixturePart { records, chosen });
    }

    /// Number of records, repeated ones counted as often as they come.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.chosen.len()).sum()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part that holds an index, and the index there.
    fn find(&self, index: usize) -> (&MixturePart, usize) {
        let mut at = index;
        for part in &self.parts {
            match at.checked_sub(part.chosen.len()) {
                Some(rest) => at = rest,
                None => return (part, at),
            }
        }
        panic!("record {index} of {}", self.len());
    }

    /// The least index that has the same record.
    pub(crate) fn first_index(&self, index: usize) -> usize {
        let (part, at) = self.find(index);
        index - at + part.chosen.position(at)
    }

    /// The record as its dataset has it.
    fn source(&self, index: usize) -> (&Records, usize) {
        let (part, at) = self.find(index);
        (&part.records, part.chosen.record(part.chosen.position(at)))
    }

    /// Reads a record, and warns if it is the first with an unknown key.
    pub(crate) fn read(&self, index: usize) -> Result<Record, ReadError> {
        let (records, index) = self.source(index);
        let record = records.read(index)?;
        if !record.unknown_keys.is_empty() {
            records.warn_of_unknown_keys([(record.unknown_keys.as_slice(), record.location.clone())]);
        }
        Ok(record)
    }

    /// The location of a record, without reading it.
    pub(crate) fn location(&self, index: usize) -> RecordLocation {
        let (records, index) = self.source(index);
        records.location(index)
    }

    /// The chosen records of each dataset without repetitions, for a check.
    pub(crate) fn distinct(&self) -> impl Iterator<Item = (&Records, DistinctRecords<'_>)> {
        self.parts.iter().map(|part| (part.records.as_ref(), DistinctRecords(&part.chosen)))
    }

    /// Leaves out records of each dataset, by their positions among the distinct ones.
    pub(crate) fn without(&self, positions: &[BTreeSet<usize>]) -> Self {
        let parts = self.parts.iter().zip(positions).map(|(part, positions)| match positions.is_empty() {
            true => part.clone(),
            false => MixturePart { records: part.records.clone(), chosen: part.chosen.without(positions) },
        });
        Self { parts: parts.collect() }
    }

    /// SHA-256 of the files' contents and of what is chosen of them, in hexadecimal digits, with which a resumed run detects changed
    /// data. Paths have no part in it, nor do images and videos beside the records.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for part in &self.parts {
            part.records.hash(&mut hash);
            let chosen = &part.chosen;
            let list = chosen.list.as_deref().unwrap_or_default();
            for number in [chosen.distinct, chosen.copies, chosen.extra.len(), list.len()] {
                hash.update((number as u64).to_le_bytes());
            }
            for number in list.iter().chain(&chosen.extra) {
                hash.update((*number as u64).to_le_bytes());
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl From<Records> for Mixture {
    fn from(records: Records) -> Self {
        let chosen = Chosen::all(records.len());
        Self { parts: vec![MixturePart { records: Arc::new(records), chosen }] }
    }
}

/// Chosen records of one dataset, each once.
pub(crate) struct DistinctRecords<'a>(&'a Chosen);

impl DistinctRecords<'_> {
    pub(crate) fn len(&self) -> usize {
        self.0.distinct
    }

    /// Index in the dataset.
    pub(crate) fn record(&self, position: usize) -> usize {
        self.0.record(position)
    }
}

/// The seed of a dataset: two of the same size must not lose the same records.
fn seed_of(seed: u64, name: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name.as_bytes()).finalize();
    u64::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

/// One side of a dataset that is divided by the seed. At least one record stays on each side if there are two.
fn side(len: usize, held_out: f64, seed: u64, side: Side) -> Chosen {
    if held_out <= 0.0 {
        return match side {
            Side::Train => Chosen::all(len),
            Side::HeldOut => Chosen::of(Vec::new()),
        };
    }
    let count = ((len as f64 * held_out).round() as usize).max(1).min(len.saturating_sub(1));
    let mut order = permutation(len, seed, 0);
    let mut list = match side {
        Side::HeldOut => order[..count].to_vec(),
        Side::Train => order.split_off(count),
    };
    list.sort();
    Chosen::of(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::RecordLocation;

    /// Records of lines 0, 1, ….
    fn records(len: usize) -> Arc<Records> {
        let record = |line| Record {
            location: RecordLocation::line("x".as_ref(), line),
            messages: Vec::new(),
            tools: None,
            unknown_keys: Vec::new(),
        };
        Arc::new(Records::from((0..len).map(record).collect::<Vec<_>>()))
    }

    fn lines(mixture: &Mixture) -> Vec<usize> {
        let line = |index| match mixture.read(index).unwrap().location.position {
            crate::location::RecordPosition::Line(line) => line,
            _ => unreachable!("records of lines"),
        };
        (0..mixture.len()).map(line).collect()
    }

    fn drawn(len: usize, weight: f64, samples: Option<usize>, seed: u64) -> Vec<usize> {
        let mut mixture = Mixture::new();
        mixture.add(records(len), Share { weight, samples }, 0.0, seed);
        lines(&mixture)
    }

    fn counts(lines: &[usize], len: usize) -> Vec<usize> {
        (0..len).map(|line| lines.iter().filter(|found| **found == line).count()).collect()
    }

    #[test]
    fn a_weight_repeats_every_record_and_its_fraction_a_part_of_them() {
        let found = drawn(10, 2.5, None, 3);
        let counts = counts(&found, 10);

        assert_eq!(found.len(), 25);
        assert_eq!(
            (counts.iter().filter(|n| **n == 2).count(), counts.iter().filter(|n| **n == 3).count()),
            (5, 5)
        );
        assert_eq!(drawn(10, 2.5, None, 3), found);
        assert_ne!(drawn(10, 2.5, None, 4), found);
        assert_eq!(drawn(10, 1.0, None, 4), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn samples_are_drawn_by_the_seed_and_more_than_there_are_take_each_as_often() {
        let five = drawn(100, 1.0, Some(5), 1);
        assert!(five.len() == 5 && five.is_sorted_by(|a, b| a < b), "{five:?}");
        assert_ne!(drawn(100, 1.0, Some(5), 2), five);
        assert_eq!(drawn(100, 1.0, Some(5), 1), five);

        let more = counts(&drawn(10, 1.0, Some(23), 1), 10);
        assert!(more.iter().all(|count| [2, 3].contains(count)) && more.iter().sum::<usize>() == 23);
        let repeated = drawn(100, 3.0, Some(5), 1);
        assert_eq!(repeated, five.repeat(3));
    }

    #[test]
    fn what_is_held_out_is_never_trained_on_and_nothing_is_lost() {
        for (len, fraction, expected) in [(10, 0.2, 2), (2, 0.01, 1), (1000, 0.015, 15), (3, 0.9, 2)] {
            let records = records(len);
            let (mut train, mut held_out) = (Mixture::new(), Mixture::new());
            train.add(records.clone(), Share::default(), fraction, 7);
            held_out.add_held_out(records, fraction, 7);

            let (train, held_out) = (lines(&train), lines(&held_out));

            assert_eq!(held_out.len(), expected);
            let mut all = [train, held_out].concat();
            all.sort();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn datasets_follow_each_other_and_a_repeated_record_has_one_first_index() {
        let mut mixture = Mixture::new();
        mixture.add(records(3), Share { weight: 2.0, samples: None }, 0.0, 0);
        mixture.add(records(2), Share { weight: 1.5, samples: None }, 0.0, 0);

        let lines = lines(&mixture);

        assert_eq!(lines[..8], [0, 1, 2, 0, 1, 2, 0, 1]);
        for (index, line) in lines.iter().enumerate() {
            let first = mixture.first_index(index);
            assert!(first <= index && lines[first] == *line && (first < 3) == (index < 6));
        }
    }

    #[test]
    fn records_that_are_left_out_have_no_index() {
        let mut mixture = Mixture::new();
        mixture.add(records(4), Share { weight: 2.75, samples: None }, 0.0, 0);
        let before = lines(&mixture);

        let left = mixture.without(&[BTreeSet::from([1])]);

        let after: Vec<usize> = before.into_iter().filter(|line| *line != 1).collect();
        assert_eq!(lines(&left), after);
        assert_ne!(left.fingerprint(), mixture.fingerprint());
    }

    #[test]
    fn datasets_with_other_names_are_divided_in_other_ways() {
        assert_ne!(seed_of(0, "a"), seed_of(0, "b"));
        assert_ne!(seed_of(0, "a"), seed_of(1, "a"));
    }
}
