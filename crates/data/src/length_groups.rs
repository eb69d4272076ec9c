//! Batches of records of similar length, so that less of a batch is padding.
//!
//! The shuffled order is cut into windows of a number of batches. The records of a window are sorted by length and cut into batches,
//! whose order is drawn anew: so each record is still drawn once an epoch, and long batches come at any time.

use std::fmt;
use std::sync::Arc;

use glm4v_inputs::SplitMix64;
use rayon::prelude::*;

use crate::shuffle::permutation;

/// Batches in a window, as in transformers' `group_by_length`.
pub(crate) const WINDOW_BATCHES: usize = 50;

/// Lengths of records, and the window that is being drawn.
#[derive(Clone)]
pub(crate) struct LengthGroups {
    length: Arc<dyn Fn(usize) -> usize + Send + Sync>,
    window: Option<Window>,
}

#[derive(Clone)]
struct Window {
    epoch: u64,
    number: usize,
    batches: Arc<Vec<Vec<usize>>>,
}

impl fmt::Debug for LengthGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LengthGroups").finish_non_exhaustive()
    }
}

impl LengthGroups {
    pub(crate) fn new(length: impl Fn(usize) -> usize + Send + Sync + 'static) -> Self {
        Self { length: Arc::new(length), window: None }
    }

    /// Batch `batch` of an epoch, whose records in shuffled order are `order`.
    pub(crate) fn batch(
        &mut self,
        batch: usize,
        batch_size: usize,
        order: &[usize],
        seed: (u64, u64),
    ) -> &[usize] {
        let (number, place) = (batch / WINDOW_BATCHES, batch % WINDOW_BATCHES);
        let epoch = seed.1;
        if self.window.as_ref().is_none_or(|window| (window.epoch, window.number) != (epoch, number)) {
            let first = number * WINDOW_BATCHES * batch_size;
            // The rest of an epoch that makes no batch is not drawn, so it must not be sorted into one.
            let end = (first + WINDOW_BATCHES * batch_size).min(order.len() - order.len() % batch_size);
            let batches = self.sorted_batches(&order[first..end], batch_size, number, seed);
            self.window = Some(Window { epoch, number, batches: Arc::new(batches) });
        }
        let window = self.window.as_ref().expect("it was made above");
        &window.batches[place]
    }

    fn sorted_batches(
        &self,
        records: &[usize],
        batch_size: usize,
        number: usize,
        (seed, epoch): (u64, u64),
    ) -> Vec<Vec<usize>> {
        let mut by_length: Vec<(usize, usize)> =
            records.par_iter().map(|record| ((self.length)(*record), *record)).collect();
        // Stable: records of one length stay in the shuffled order.
        by_length.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        let batches: Vec<Vec<usize>> = by_length
            .chunks(batch_size)
            .map(|batch| batch.iter().map(|(_, record)| *record).collect())
            .collect();
        let seed = SplitMix64::mix(seed.wrapping_add(number as u64 + 1));
        permutation(batches.len(), seed, epoch).into_iter().map(|place| batches[place].clone()).collect()
    }
}
