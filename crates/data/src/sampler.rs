//! The order of records, divided into batches.
//!
//! The order is a function of seed and epoch, and a sampler is a position in it, so that a resumed run continues with the next batch
//! of the interrupted one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::length_groups::LengthGroups;
use crate::shuffle::permutation;

/// Error of a sampler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchSamplerError {
    /// The batch size is 0, or a given batch is empty.
    #[error("batch size is 0, needed 1 or more")]
    EmptyBatch,
    /// The dataset is smaller than one batch.
    #[error("dataset has {len} records, fewer than one batch of {batch_size}; lower the batch size to {len}")]
    TooSmall {
        /// Number of records.
        len: usize,
        /// Records per batch.
        batch_size: usize,
    },
    /// The dataset is smaller than a batch on each rank.
    #[error(
        "dataset has {len} records, fewer than one batch of {batch_size} on each of {world_size} ranks; lower the batch size or the \
         number of ranks"
    )]
    TooSmallForRanks {
        /// Number of records.
        len: usize,
        /// Records per batch of a rank.
        batch_size: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// A given batch has fewer records than there are ranks.
    #[error(
        "batch {batch} has {len} records, fewer than {world_size} ranks; needed: one for each rank at least"
    )]
    BatchTooSmall {
        /// Index of the batch.
        batch: usize,
        /// Its records.
        len: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// The rank does not exist.
    #[error("rank is {rank} of {world_size}; needed: 0 or more, and less than the number of ranks")]
    NoRank {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// Groups by length are made of a shuffled order alone.
    #[error("batches cannot be grouped by length in the order {order:?}; needed: a shuffled order")]
    NotShuffled {
        /// The order.
        order: Order,
    },
    /// The dataset is empty.
    #[error("dataset has no records")]
    NoRecords,
    /// A given batch holds the index of a record that does not exist.
    #[error("batch {batch}: record {index} does not exist, the dataset has {len}")]
    OutOfRange {
        /// Index of the batch.
        batch: usize,
        /// Index of the record.
        index: usize,
        /// Number of records.
        len: usize,
    },
    /// The state was saved by a run with other data or another seed.
    #[error(
        "saved sampler has {setting} {saved}, this run has {now}; resume with the data and seed of the first run"
    )]
    OtherRun {
        /// The setting that differs.
        setting: &'static str,
        /// Its value in the saved state.
        saved: u64,
        /// Its value in this run.
        now: u64,
    },
    /// The state was saved by a sampler of another order.
    #[error("saved sampler draws {saved:?}, this run draws {now:?}; resume with the order of the first run")]
    OtherOrder {
        /// The saved order.
        saved: Order,
        /// The order of this run.
        now: Order,
    },
    /// The saved position is beyond the end of the order.
    #[error("saved sampler is at {position} of {end}")]
    InvalidPosition {
        /// The saved position.
        position: usize,
        /// The last valid position.
        end: usize,
    },
}

/// The order of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A new permutation each epoch, without end.
    Shuffled,
    /// The order of the files, each epoch, without end.
    InOrder,
    /// The order of the files, once; the last batch may be smaller.
    Once,
    /// Given batches, once.
    Fixed,
}

/// The position of a [`BatchSampler`], for checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSamplerState {
    /// The order of records.
    pub order: Order,
    /// Seed of the permutations.
    pub seed: u64,
    /// Number of records in the dataset.
    pub len: usize,
    /// Number of completed epochs.
    pub epoch: u64,
    /// Number of records drawn in this epoch by all ranks; number of batches for [`Order::Fixed`].
    pub position: usize,
    /// Records of a step of all ranks, where batches are grouped by length and depend on it; 0 where they are not grouped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub group_step: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Draws batches of record indices.
///
/// # Examples
///
/// ```
/// use glm4v_data::BatchSampler;
///
/// let mut straight = BatchSampler::shuffled(10, 4, 42)?;
/// let first: Vec<_> = straight.by_ref().take(3).collect();
/// assert_eq!(straight.state().epoch, 1); // 10 records hold two batches of 4, then a new order is drawn
///
/// let mut resumed = BatchSampler::shuffled(10, 4, 42)?;
/// resumed.restore(straight.state())?;
/// assert_eq!(resumed.next(), straight.next());
/// # Ok::<(), glm4v_data::BatchSamplerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct BatchSampler {
    state: BatchSamplerState,
    /// Records of a batch on each rank.
    batch_size: usize,
    rank: usize,
    world_size: usize,
    /// The order of this epoch; empty for the order of the files. Shared by clones.
    permutation: Arc<Vec<usize>>,
    fixed: Arc<[Vec<usize>]>,
    groups: Option<LengthGroups>,
}

impl BatchSampler {
    /// Draws `batch_size` records at a time from a permutation. A rest of fewer records is dropped, and a new epoch begins.
    ///
    /// # Errors
    ///
    /// When the dataset is smaller than a batch.
    pub fn shuffled(len: usize, batch_size: usize, seed: u64) -> Result<Self, BatchSamplerError> {
        Self::endless(Order::Shuffled, len, batch_size, seed)
    }

    /// Like [`shuffled`](Self::shuffled), in the order of the files.
    ///
    /// # Errors
    ///
    /// When the dataset is smaller than a batch.
    pub fn in_order(len: usize, batch_size: usize) -> Result<Self, BatchSamplerError> {
        Self::endless(Order::InOrder, len, batch_size, 0)
    }

    /// Draws every record once, in the order of the files, for evaluation.
    ///
    /// # Errors
    ///
    /// When the dataset is empty.
    pub fn once(len: usize, batch_size: usize) -> Result<Self, BatchSamplerError> {
        if len == 0 {
            return Err(BatchSamplerError::NoRecords);
        }
        Self::new(Order::Once, len, batch_size, 0)
    }

    /// Draws given batches, to compare a run with one of another program.
    ///
    /// # Errors
    ///
    /// When a batch is empty, or holds the index of a record that does not exist.
    pub fn fixed(batches: Vec<Vec<usize>>, len: usize) -> Result<Self, BatchSamplerError> {
        for (batch, indices) in batches.iter().enumerate() {
            if let Some(&index) = indices.iter().find(|index| **index >= len) {
                return Err(BatchSamplerError::OutOfRange { batch, index, len });
            }
        }
        let smallest = batches.iter().map(Vec::len).min().ok_or(BatchSamplerError::NoRecords)?;
        let sampler = Self::new(Order::Fixed, len, smallest, 0)?;
        Ok(Self { fixed: batches.into(), ..sampler })
    }

    /// The share of one of `world_size` processes that train together, each on `batch_size` records a step.
    ///
    /// The ranks divide each batch of all of them, so that no record is drawn twice in an epoch, and every rank takes equally many
    /// steps. The rest of an epoch that does not fill a batch on every rank is dropped; [`once`](Self::once) divides it as evenly as
    /// possible, and a rank may get an empty batch. A state holds for every rank, and for another number of ranks.
    ///
    /// # Errors
    ///
    /// When the rank does not exist, or the dataset or a given batch has too few records for a batch on each rank.
    pub fn for_rank(self, rank: usize, world_size: usize) -> Result<Self, BatchSamplerError> {
        if rank >= world_size {
            return Err(BatchSamplerError::NoRank { rank, world_size });
        }
        let (len, batch_size) = (self.state.len, self.batch_size);
        let endless = matches!(self.state.order, Order::Shuffled | Order::InOrder);
        if endless && len / world_size < batch_size {
            return Err(BatchSamplerError::TooSmallForRanks { len, batch_size, world_size });
        }
        if let Some((batch, given)) =
            self.fixed.iter().enumerate().find(|(_, given)| given.len() < world_size)
        {
            return Err(BatchSamplerError::BatchTooSmall { batch, len: given.len(), world_size });
        }
        Ok(Self { rank, world_size, ..self })
    }

    /// Draws records of similar `length` together: less of a batch is padding, and an epoch still draws each record once.
    ///
    /// A window of batches of the shuffled order is sorted at a time; `length` is called for each of its records, from several threads,
    /// and has to give the same number whenever it is asked.
    ///
    /// # Errors
    ///
    /// When the order is not shuffled.
    pub fn grouped_by_length(
        self,
        length: impl Fn(usize) -> usize + Send + Sync + 'static,
    ) -> Result<Self, BatchSamplerError> {
        match self.state.order {
            Order::Shuffled => Ok(Self { groups: Some(LengthGroups::new(length)), ..self }),
            order => Err(BatchSamplerError::NotShuffled { order }),
        }
    }

    /// Records that all ranks draw for a step.
    fn step_size(&self) -> usize {
        self.batch_size * self.world_size
    }

    /// The part of `len` records of a step that belongs to this rank.
    fn own(&self, len: usize) -> std::ops::Range<usize> {
        self.rank * len / self.world_size..(self.rank + 1) * len / self.world_size
    }

    fn endless(order: Order, len: usize, batch_size: usize, seed: u64) -> Result<Self, BatchSamplerError> {
        if len == 0 {
            return Err(BatchSamplerError::NoRecords);
        }
        if len < batch_size {
            return Err(BatchSamplerError::TooSmall { len, batch_size });
        }
        Self::new(order, len, batch_size, seed)
    }

    fn new(order: Order, len: usize, batch_size: usize, seed: u64) -> Result<Self, BatchSamplerError> {
        if batch_size == 0 {
            return Err(BatchSamplerError::EmptyBatch);
        }
        let state = BatchSamplerState { order, seed, len, epoch: 0, position: 0, group_step: 0 };
        let mut sampler = Self {
            state,
            batch_size,
            rank: 0,
            world_size: 1,
            permutation: Arc::default(),
            fixed: Arc::new([]),
            groups: None,
        };
        sampler.draw_order();
        Ok(sampler)
    }

    /// The position after the last batch, for [`restore`](Self::restore).
    pub fn state(&self) -> BatchSamplerState {
        let group_step = if self.groups.is_some() { self.step_size() } else { 0 };
        BatchSamplerState { group_step, ..self.state }
    }

    /// Continues after a saved state. The batch size may differ, unless batches are grouped by length; the order of the records does not.
    ///
    /// # Errors
    ///
    /// When the state belongs to another dataset, seed or order.
    pub fn restore(&mut self, state: BatchSamplerState) -> Result<(), BatchSamplerError> {
        let now = self.state();
        if state.order != now.order {
            return Err(BatchSamplerError::OtherOrder { saved: state.order, now: now.order });
        }
        let settings = [
            ("seed", state.seed, now.seed),
            ("records", state.len as u64, now.len as u64),
            ("records a step, grouped by length,", state.group_step as u64, now.group_step as u64),
        ];
        if let Some((setting, saved, now)) = settings.into_iter().find(|(_, saved, now)| saved != now) {
            return Err(BatchSamplerError::OtherRun { setting, saved, now });
        }
        let end = if now.order == Order::Fixed { self.fixed.len() } else { now.len };
        if state.position > end {
            return Err(BatchSamplerError::InvalidPosition { position: state.position, end });
        }
        self.state = state;
        self.draw_order();
        Ok(())
    }

    /// Epochs drawn so far, the current one as a fraction.
    pub fn epochs(&self) -> f64 {
        let drawn = match self.state.order {
            Order::Fixed => self.fixed[..self.state.position].iter().map(Vec::len).sum(),
            _ => self.state.position,
        };
        self.state.epoch as f64 + drawn as f64 / self.state.len as f64
    }

    /// Number of batches per epoch, or in all for orders without a second epoch.
    pub fn batches_per_epoch(&self) -> usize {
        match self.state.order {
            Order::Shuffled | Order::InOrder => self.state.len / self.step_size(),
            Order::Once => self.state.len.div_ceil(self.step_size()),
            Order::Fixed => self.fixed.len(),
        }
    }

    fn draw_order(&mut self) {
        if self.state.order == Order::Shuffled {
            self.permutation = permutation(self.state.len, self.state.seed, self.state.epoch).into();
        }
    }
}

impl Iterator for BatchSampler {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        let start = self.state.position;
        let left = self.state.len.saturating_sub(start);
        match self.state.order {
            Order::Fixed => {
                let batch = self.fixed.get(start)?;
                let own = batch[self.own(batch.len())].to_vec();
                self.state.position += 1;
                return Some(own);
            }
            Order::Once if left == 0 => return None,
            Order::Once => {}
            Order::Shuffled | Order::InOrder if left < self.step_size() => {
                self.state.epoch += 1;
                self.state.position = 0;
                self.draw_order();
            }
            Order::Shuffled | Order::InOrder => {}
        }
        let start = self.state.position;
        let (step, end) = (self.step_size(), (start + self.step_size()).min(self.state.len));
        self.state.position = end;
        let own = self.own(end - start);
        if let Some(groups) = &mut self.groups {
            let seed = (self.state.seed, self.state.epoch);
            return Some(groups.batch(start / step, step, &self.permutation, seed)[own].to_vec());
        }
        let record = |place: usize| self.permutation.get(start + place).copied().unwrap_or(start + place);
        Some(own.map(record).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_draws_each_record_at_most_once_and_drops_the_rest() {
        let mut sampler = BatchSampler::shuffled(11, 4, 3).unwrap();

        let drawn: Vec<Vec<_>> = sampler.by_ref().take(4).collect();

        for epoch in drawn.chunks(2) {
            let mut records = epoch.concat();
            records.sort();
            records.dedup();
            assert_eq!(records.len(), 8);
        }
        assert_ne!(drawn[..2], drawn[2..]);
        assert_eq!((sampler.state().epoch, sampler.state().position), (1, 8));
        assert_eq!(sampler.batches_per_epoch(), 2);
    }

    #[test]
    fn a_resumed_sampler_equals_an_uninterrupted_one() {
        let batches: Vec<_> = BatchSampler::shuffled(11, 4, 3).unwrap().take(9).collect();

        for stop in 0..9 {
            let mut first = BatchSampler::shuffled(11, 4, 3).unwrap();
            let mut all: Vec<_> = first.by_ref().take(stop).collect();
            let saved = serde_json::to_string(&first.state()).unwrap();
            let mut second = BatchSampler::shuffled(11, 4, 3).unwrap();
            second.restore(serde_json::from_str(&saved).unwrap()).unwrap();
            all.extend(second.take(9 - stop));

            assert_eq!(all, batches, "stopped after batch {stop}");
        }
    }

    #[test]
    fn ranks_divide_an_epoch_and_take_equally_many_steps() {
        for world_size in [1, 2, 3, 5] {
            let ranks: Vec<BatchSampler> = (0..world_size)
                .map(|rank| BatchSampler::shuffled(32, 2, 3).unwrap().for_rank(rank, world_size).unwrap())
                .collect();
            let steps = ranks[0].batches_per_epoch();
            assert_eq!(steps, 32 / (2 * world_size));

            let drawn: Vec<Vec<Vec<usize>>> =
                ranks.iter().map(|rank| rank.clone().take(steps).collect()).collect();

            // Together they draw what one process with the batch of all draws, step for step.
            let one = BatchSampler::shuffled(32, 2 * world_size, 3).unwrap();
            for (step, batch) in one.take(steps).enumerate() {
                assert!(drawn.iter().all(|rank| rank[step].len() == 2));
                assert_eq!(drawn.iter().flat_map(|rank| rank[step].clone()).collect::<Vec<_>>(), batch);
            }
            let mut all: Vec<usize> = drawn.concat().concat();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), 2 * world_size * steps, "no record twice");
            let ends: Vec<_> = ranks
                .into_iter()
                .map(|mut rank| (rank.by_ref().take(steps + 1).count(), rank.state()))
                .collect();
            assert!(
                ends.iter().all(|end| *end == ends[0] && end.1.epoch == 1),
                "all begin the next epoch in one step"
            );
        }
    }

    #[test]
    fn ranks_divide_the_rest_of_a_finite_order_as_evenly_as_possible() {
        let ranks = |sampler: BatchSampler| {
            [0, 1, 2].map(|rank| sampler.clone().for_rank(rank, 3).unwrap().collect::<Vec<_>>())
        };

        assert_eq!(
            ranks(BatchSampler::once(8, 2).unwrap()),
            [vec![vec![0, 1], vec![]], vec![vec![2, 3], vec![6]], vec![vec![4, 5], vec![7]]]
        );
        let fixed = BatchSampler::fixed(vec![vec![4, 0, 3, 1], vec![2, 2, 2]], 5).unwrap();
        assert_eq!(ranks(fixed), [[vec![4], vec![2]], [vec![0], vec![2]], [vec![3, 1], vec![2]]]);
    }

    #[test]
    fn a_rank_resumes_where_another_number_of_ranks_stopped() {
        let mut two = BatchSampler::shuffled(24, 3, 3).unwrap().for_rank(1, 2).unwrap();
        two.nth(1); // 12 records
        let mut four = BatchSampler::shuffled(24, 3, 3).unwrap().for_rank(2, 4).unwrap();
        four.restore(two.state()).unwrap();

        let one: Vec<usize> = BatchSampler::shuffled(24, 24, 3).unwrap().next().unwrap();
        assert_eq!(four.next().unwrap(), one[12 + 6..12 + 9]);
    }

    /// 230 records whose lengths are far from the order of the files.
    fn grouped(batch_size: usize) -> BatchSampler {
        BatchSampler::shuffled(230, batch_size, 3).unwrap().grouped_by_length(length).unwrap()
    }

    fn length(record: usize) -> usize {
        record * 37 % 101
    }

    #[test]
    fn batches_grouped_by_length_hold_similar_records_and_each_once() {
        let spread = |batches: &[Vec<usize>]| -> usize {
            let spread = |batch: &Vec<usize>| {
                let lengths = batch.iter().map(|record| length(*record));
                lengths.clone().max().unwrap() - lengths.min().unwrap()
            };
            batches.iter().map(spread).sum()
        };
        let plain: Vec<_> = BatchSampler::shuffled(230, 4, 3).unwrap().take(57).collect();

        let epochs: Vec<_> = grouped(4).take(2 * 57).collect();

        for epoch in epochs.chunks(57) {
            let mut all = epoch.concat();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), 228, "57 batches of 4, and a rest of 2");
            assert!(10 * spread(epoch) < spread(&plain), "{} of {}", spread(epoch), spread(&plain));
        }
        assert_ne!(epochs[..57], epochs[57..]);
        let mut records = [epochs[..57].concat(), plain.concat()];
        records.iter_mut().for_each(|records| records.sort());
        assert_eq!(records[0], records[1], "the rest of an epoch is that of the shuffled order");
        let falling = epochs[..50].windows(2).filter(|pair| length(pair[0][0]) >= length(pair[1][0])).count();
        assert!((10..40).contains(&falling), "long batches come at any time: {falling} of 49 steps fall");
    }

    #[test]
    fn a_grouped_sampler_resumes_in_the_middle_of_a_window_and_divides_among_ranks() {
        let straight: Vec<_> = grouped(4).take(120).collect();
        for stop in [1, 30, 50, 56, 57, 80] {
            let mut first = grouped(4);
            first.nth(stop - 1);
            let mut resumed = grouped(4);
            resumed.restore(first.state()).unwrap();
            assert_eq!(resumed.take(20).collect::<Vec<_>>(), straight[stop..stop + 20], "after {stop}");
        }

        let ranks = [0, 1].map(|rank| grouped(2).for_rank(rank, 2).unwrap().take(120).collect::<Vec<_>>());
        let joined: Vec<_> =
            ranks[0].iter().zip(&ranks[1]).map(|(a, b)| [a.clone(), b.clone()].concat()).collect();
        assert_eq!(joined, straight);

        let mut first = grouped(4);
        first.next();
        let refused = grouped(3).restore(first.state()).unwrap_err().to_string();
        assert!(
            refused.starts_with("saved sampler has records a step, grouped by length, 4, this run has 3"),
            "{refused}"
        );
        assert!(BatchSampler::shuffled(230, 4, 3).unwrap().restore(first.state()).is_err());
        assert!(BatchSampler::in_order(5, 2).unwrap().grouped_by_length(length).is_err());
    }

    #[test]
    fn evaluation_sees_every_record_once() {
        let batches: Vec<_> = BatchSampler::once(5, 2).unwrap().collect();

        assert_eq!(batches, [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(BatchSampler::once(5, 2).unwrap().batches_per_epoch(), 3);
    }

    #[test]
    fn the_order_of_the_files_begins_again_each_epoch() {
        let batches: Vec<_> = BatchSampler::in_order(5, 2).unwrap().take(3).collect();

        assert_eq!(batches, [[0, 1], [2, 3], [0, 1]]);
    }

    #[test]
    fn given_batches_are_drawn_in_order_and_can_be_resumed() {
        let given = vec![vec![3, 1], vec![0, 0], vec![2, 3]];
        let mut sampler = BatchSampler::fixed(given.clone(), 4).unwrap();
        assert_eq!(sampler.next(), Some(given[0].clone()));
        assert_eq!(sampler.epochs(), 0.5);

        let mut resumed = BatchSampler::fixed(given.clone(), 4).unwrap();
        resumed.restore(sampler.state()).unwrap();

        assert_eq!(resumed.collect::<Vec<_>>(), given[1..]);
    }

    #[test]
    fn invalid_samplers_are_refused() {
        let refusal = |r: Result<BatchSampler, BatchSamplerError>| r.unwrap_err().to_string();

        let small = "dataset has 3 records, fewer than one batch of 4; lower the batch size to 3";
        assert_eq!(refusal(BatchSampler::shuffled(3, 4, 0)), small);
        assert_eq!(refusal(BatchSampler::shuffled(0, 4, 0)), "dataset has no records");
        assert_eq!(refusal(BatchSampler::once(0, 4)), "dataset has no records");
        assert_eq!(refusal(BatchSampler::in_order(3, 0)), "batch size is 0, needed 1 or more");
        let rank = |sampler: Result<BatchSampler, _>, rank, of| refusal(sampler.unwrap().for_rank(rank, of));
        assert_eq!(
            rank(BatchSampler::shuffled(7, 2, 0), 3, 4),
            "dataset has 7 records, fewer than one batch of 2 on each of 4 ranks; lower the batch size or the number of ranks"
        );
        assert_eq!(
            rank(BatchSampler::shuffled(8, 2, 0), 4, 4),
            "rank is 4 of 4; needed: 0 or more, and less than the number of ranks"
        );
        assert_eq!(
            rank(BatchSampler::fixed(vec![vec![0, 1], vec![1]], 4), 0, 2),
            "batch 1 has 1 records, fewer than 2 ranks; needed: one for each rank at least"
        );
        let outside = "batch 1: record 9 does not exist, the dataset has 4";
        assert_eq!(refusal(BatchSampler::fixed(vec![vec![0], vec![1, 9]], 4)), outside);
        assert_eq!(
            refusal(BatchSampler::fixed(vec![vec![0], vec![]], 4)),
            "batch size is 0, needed 1 or more"
        );
    }

    #[test]
    fn a_state_of_another_run_is_refused() {
        let saved = BatchSampler::shuffled(11, 4, 3).unwrap().state();
        let refused = |mut sampler: BatchSampler, state| sampler.restore(state).unwrap_err().to_string();

        let seed = refused(BatchSampler::shuffled(11, 4, 8).unwrap(), saved);
        let data = refused(BatchSampler::shuffled(12, 4, 3).unwrap(), saved);
        let order = refused(BatchSampler::in_order(11, 4).unwrap(), saved);
        let place =
            refused(BatchSampler::shuffled(11, 4, 3).unwrap(), BatchSamplerState { position: 12, ..saved });

        assert!(seed.starts_with("saved sampler has seed 3, this run has 8;"), "{seed}");
        assert!(data.starts_with("saved sampler has records 11, this run has 12;"), "{data}");
        assert!(order.starts_with("saved sampler draws Shuffled, this run draws InOrder;"), "{order}");
        assert_eq!(place, "saved sampler is at 12 of 11");
    }
}
