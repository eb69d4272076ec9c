//! Which records make up which batch.
//!
//! The order is a function of seed and epoch, and a sampler is no more than a place in it, so that a run
//! that was stopped goes on with the batch that it would have had.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::shuffle::permutation;

/// Why batches cannot be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// Batches of nothing.
    #[error("batch size is 0, needed 1 or more")]
    EmptyBatch,
    /// Not enough records for one batch.
    #[error("dataset has {len} records, fewer than one batch of {batch_size}; lower the batch size to {len}")]
    TooSmall {
        /// Records.
        len: usize,
        /// Records in a batch.
        batch_size: usize,
    },
    /// No records.
    #[error("dataset has no records")]
    NoRecords,
    /// A given batch asks for a record that does not exist.
    #[error("batch {batch}: record {index} does not exist, the dataset has {len}")]
    OutOfRange {
        /// Index of the batch.
        batch: usize,
        /// Index of the record.
        index: usize,
        /// Records.
        len: usize,
    },
    /// A state that was saved by a run with other data or another seed.
    #[error(
        "saved sampler has {what} {saved}, this run has {now}; resume with the data and seed of the first run"
    )]
    OtherRun {
        /// What differs.
        what: &'static str,
        /// Its value in the saved state.
        saved: u64,
        /// Its value in this run.
        now: u64,
    },
    /// A state that was saved by another kind of sampler.
    #[error("saved sampler draws {saved:?}, this run draws {now:?}; resume with the order of the first run")]
    OtherOrder {
        /// The saved order.
        saved: Order,
        /// The order of this run.
        now: Order,
    },
    /// A place that the sampler cannot be at.
    #[error("saved sampler stands at {position} of {end}")]
    OutOfPlace {
        /// The saved position.
        position: usize,
        /// The last that there is.
        end: usize,
    },
}

/// How records follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Another permutation each epoch, without end.
    Shuffled,
    /// As the files have them, again each epoch, without end.
    InOrder,
    /// As the files have them, once; the last batch may be smaller.
    Once,
    /// Batches that were given, once.
    Fixed,
}

/// The place of a [`Sampler`]; written to checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerState {
    /// How records follow each other.
    pub order: Order,
    /// Seed of the permutations.
    pub seed: u64,
    /// Records in the dataset.
    pub len: usize,
    /// Epochs that are over.
    pub epoch: u64,
    /// Records of this epoch that were drawn; batches, where they were given.
    pub position: usize,
}

/// Draws batches of record indices.
///
/// # Examples
///
/// ```
/// use glm4v_data::Sampler;
///
/// let mut straight = Sampler::shuffled(10, 4, 42)?;
/// let first: Vec<_> = straight.by_ref().take(3).collect();
/// assert_eq!(straight.state().epoch, 1); // 10 records hold two batches of 4, then a new order is drawn
///
/// let mut resumed = Sampler::shuffled(10, 4, 42)?;
/// resumed.restore(straight.state())?;
/// assert_eq!(resumed.next(), straight.next());
/// # Ok::<(), glm4v_data::SamplerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    state: SamplerState,
    batch_size: usize,
    /// The order of this epoch; empty where records follow the files.
    permutation: Vec<usize>,
    fixed: Arc<[Vec<usize>]>,
}

impl Sampler {
    /// Draws `batch_size` records at a time from a permutation; when fewer are left, a new epoch begins
    /// and the rest of the old one is not drawn.
    ///
    /// # Errors
    ///
    /// When the dataset is smaller than a batch.
    pub fn shuffled(len: usize, batch_size: usize, seed: u64) -> Result<Self, SamplerError> {
        Self::endless(Order::Shuffled, len, batch_size, seed)
    }

    /// Like [`shuffled`](Self::shuffled), in the order of the files.
    ///
    /// # Errors
    ///
    /// When the dataset is smaller than a batch.
    pub fn in_order(len: usize, batch_size: usize) -> Result<Self, SamplerError> {
        Self::endless(Order::InOrder, len, batch_size, 0)
    }

    /// Draws every record once, in the order of the files; for evaluation.
    ///
    /// # Errors
    ///
    /// When there are no records.
    pub fn once(len: usize, batch_size: usize) -> Result<Self, SamplerError> {
        if len == 0 {
            return Err(SamplerError::NoRecords);
        }
        Self::new(Order::Once, len, batch_size, 0)
    }

    /// Draws exactly these batches, for a run that is compared with another program's.
    ///
    /// # Errors
    ///
    /// When a batch is empty or asks for a record that does not exist.
    pub fn fixed(batches: Vec<Vec<usize>>, len: usize) -> Result<Self, SamplerError> {
        for (batch, indices) in batches.iter().enumerate() {
            if let Some(&index) = indices.iter().find(|index| **index >= len) {
                return Err(SamplerError::OutOfRange { batch, index, len });
            }
        }
        let smallest = batches.iter().map(Vec::len).min().ok_or(SamplerError::NoRecords)?;
        let sampler = Self::new(Order::Fixed, len, smallest, 0)?;
        Ok(Self { fixed: batches.into(), ..sampler })
    }

    fn endless(order: Order, len: usize, batch_size: usize, seed: u64) -> Result<Self, SamplerError> {
        if len == 0 {
            return Err(SamplerError::NoRecords);
        }
        if len < batch_size {
            return Err(SamplerError::TooSmall { len, batch_size });
        }
        Self::new(order, len, batch_size, seed)
    }

    fn new(order: Order, len: usize, batch_size: usize, seed: u64) -> Result<Self, SamplerError> {
        if batch_size == 0 {
            return Err(SamplerError::EmptyBatch);
        }
        let state = SamplerState { order, seed, len, epoch: 0, position: 0 };
        let mut sampler = Self { state, batch_size, permutation: Vec::new(), fixed: Arc::new([]) };
        sampler.draw_order();
        Ok(sampler)
    }

    /// Where the sampler stands: what [`restore`](Self::restore) takes to go on behind the last batch.
    pub fn state(&self) -> SamplerState {
        self.state
    }

    /// Goes to where `state` was saved. The batch size may differ; the records that follow do not.
    ///
    /// # Errors
    ///
    /// When the state belongs to another dataset, seed or order.
    pub fn restore(&mut self, state: SamplerState) -> Result<(), SamplerError> {
        let now = self.state;
        if state.order != now.order {
            return Err(SamplerError::OtherOrder { saved: state.order, now: now.order });
        }
        let pairs = [("seed", state.seed, now.seed), ("records", state.len as u64, now.len as u64)];
        if let Some((what, saved, now)) = pairs.into_iter().find(|(_, saved, now)| saved != now) {
            return Err(SamplerError::OtherRun { what, saved, now });
        }
        let end = if now.order == Order::Fixed { self.fixed.len() } else { now.len };
        if state.position > end {
            return Err(SamplerError::OutOfPlace { position: state.position, end });
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

    /// Batches in an epoch, or in all where there is no second epoch.
    pub fn batches_per_epoch(&self) -> usize {
        match self.state.order {
            Order::Shuffled | Order::InOrder => self.state.len / self.batch_size,
            Order::Once => self.state.len.div_ceil(self.batch_size),
            Order::Fixed => self.fixed.len(),
        }
    }

    fn draw_order(&mut self) {
        if self.state.order == Order::Shuffled {
            self.permutation = permutation(self.state.len, self.state.seed, self.state.epoch);
        }
    }
}

impl Iterator for Sampler {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        let start = self.state.position;
        let left = self.state.len.saturating_sub(start);
        match self.state.order {
            Order::Fixed => {
                let batch = self.fixed.get(start)?.clone();
                self.state.position += 1;
                return Some(batch);
            }
            Order::Once if left == 0 => return None,
            Order::Once => {}
            Order::Shuffled | Order::InOrder if left < self.batch_size => {
                self.state.epoch += 1;
                self.state.position = 0;
                self.draw_order();
            }
            Order::Shuffled | Order::InOrder => {}
        }
        let start = self.state.position;
        let end = (start + self.batch_size).min(self.state.len);
        self.state.position = end;
        let record = |place: usize| self.permutation.get(place).copied().unwrap_or(place);
        Some((start..end).map(record).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_draws_each_record_at_most_once_and_drops_the_rest() {
        let mut sampler = Sampler::shuffled(11, 4, 3).unwrap();

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
    fn resuming_anywhere_equals_going_straight_through() {
        let batches: Vec<_> = Sampler::shuffled(11, 4, 3).unwrap().take(9).collect();

        for stop in 0..9 {
            let mut first = Sampler::shuffled(11, 4, 3).unwrap();
            let mut all: Vec<_> = first.by_ref().take(stop).collect();
            let saved = serde_json::to_string(&first.state()).unwrap();
            let mut second = Sampler::shuffled(11, 4, 3).unwrap();
            second.restore(serde_json::from_str(&saved).unwrap()).unwrap();
            all.extend(second.take(9 - stop));

            assert_eq!(all, batches, "stopped behind batch {stop}");
        }
    }

    #[test]
    fn evaluation_sees_every_record_once() {
        let batches: Vec<_> = Sampler::once(5, 2).unwrap().collect();

        assert_eq!(batches, [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(Sampler::once(5, 2).unwrap().batches_per_epoch(), 3);
    }

    #[test]
    fn the_order_of_the_files_begins_again_each_epoch() {
        let batches: Vec<_> = Sampler::in_order(5, 2).unwrap().take(3).collect();

        assert_eq!(batches, [[0, 1], [2, 3], [0, 1]]);
    }

    #[test]
    fn given_batches_are_drawn_as_they_are_and_can_be_resumed() {
        let given = vec![vec![3, 1], vec![0, 0], vec![2, 3]];
        let mut sampler = Sampler::fixed(given.clone(), 4).unwrap();
        assert_eq!(sampler.next(), Some(given[0].clone()));
        assert_eq!(sampler.epochs(), 0.5);

        let mut resumed = Sampler::fixed(given.clone(), 4).unwrap();
        resumed.restore(sampler.state()).unwrap();

        assert_eq!(resumed.collect::<Vec<_>>(), given[1..]);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_in_words() {
        let said = |r: Result<Sampler, SamplerError>| r.unwrap_err().to_string();

        let small = "dataset has 3 records, fewer than one batch of 4; lower the batch size to 3";
        assert_eq!(said(Sampler::shuffled(3, 4, 0)), small);
        assert_eq!(said(Sampler::shuffled(0, 4, 0)), "dataset has no records");
        assert_eq!(said(Sampler::once(0, 4)), "dataset has no records");
        assert_eq!(said(Sampler::in_order(3, 0)), "batch size is 0, needed 1 or more");
        let outside = "batch 1: record 9 does not exist, the dataset has 4";
        assert_eq!(said(Sampler::fixed(vec![vec![0], vec![1, 9]], 4)), outside);
        assert_eq!(said(Sampler::fixed(vec![vec![0], vec![]], 4)), "batch size is 0, needed 1 or more");
    }

    #[test]
    fn a_state_of_another_run_is_refused() {
        let saved = Sampler::shuffled(11, 4, 3).unwrap().state();
        let refused = |mut sampler: Sampler, state| sampler.restore(state).unwrap_err().to_string();

        let seed = refused(Sampler::shuffled(11, 4, 8).unwrap(), saved);
        let data = refused(Sampler::shuffled(12, 4, 3).unwrap(), saved);
        let order = refused(Sampler::in_order(11, 4).unwrap(), saved);
        let place = refused(Sampler::shuffled(11, 4, 3).unwrap(), SamplerState { position: 12, ..saved });

        assert!(seed.starts_with("saved sampler has seed 3, this run has 8;"), "{seed}");
        assert!(data.starts_with("saved sampler has records 11, this run has 12;"), "{data}");
        assert!(order.starts_with("saved sampler draws Shuffled, this run draws InOrder;"), "{order}");
        assert_eq!(place, "saved sampler stands at 12 of 11");
    }
}
