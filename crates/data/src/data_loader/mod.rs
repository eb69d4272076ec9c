//! Batches that worker threads encode ahead of time.

mod error;
mod prefetch;

use std::sync::Arc;

use glm4v_inputs::Batch;

pub use self::error::DataLoaderError;
use self::prefetch::{BatchEncoder, EncodedBatch, Prefetch, PrefetchLimits};
use crate::dataset::Dataset;
use crate::sampler::{BatchSampler, BatchSamplerState};

/// How batches are prepared. None of it changes which records a batch holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataLoaderOptions {
    /// Number of threads; with 0 the caller's thread encodes each batch on demand.
    pub workers: usize,
    /// Maximum bytes of batches that wait or are being encoded, each of the latter counted as large as the largest batch so far. The
    /// batch that the caller needs next is encoded whatever its size.
    pub prefetch_bytes: usize,
    /// Puts several records in a row of this many tokens, see [`Dataset::packed_batch`]; `None` for a row each.
    pub packing_length: Option<usize>,
}

impl Default for DataLoaderOptions {
    fn default() -> Self {
        Self { workers: 1, prefetch_bytes: 512 << 20, packing_length: None }
    }
}

/// A batch of a [`DataLoader`], with the state that resumes after it.
#[derive(Debug, Clone, PartialEq)]
pub struct DataLoaderBatch {
    /// The batch, padded on the right.
    pub batch: Batch,
    /// Indices of its records, row by row.
    pub indices: Vec<usize>,
    /// Indices of records dropped as too long since the previous batch.
    pub dropped: Vec<usize>,
    /// Indices of records skipped as unusable since the previous batch.
    pub skipped: Vec<usize>,
    /// State of the sampler after this batch, for a checkpoint. The loader's own sampler is further ahead.
    pub state: BatchSamplerState,
    /// Epochs up to and including this batch, the current one as a fraction.
    pub epochs: f64,
}

#[derive(Debug)]
enum BatchSource {
    /// The caller's thread encodes.
    Caller { encoder: BatchEncoder, sampler: BatchSampler },
    /// Threads encode.
    Workers(Prefetch),
    /// After the last batch or an error.
    Done,
}

/// Iterates over the batches of a dataset, which worker threads encode ahead of time.
///
/// Batches and their order are those of the sampler, whatever the number of workers. Ends after the last batch of a finite order, and
/// after the first error.
///
/// # Examples
///
/// See the [crate's example](crate#examples).
#[derive(Debug)]
pub struct DataLoader {
    source: BatchSource,
    /// Records left out in a row after which no usable one is expected.
    max_left_out: usize,
}

impl DataLoader {
    /// Starts the worker threads. A restored sampler continues after its saved state.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    ///
    /// # Panics
    ///
    /// When the sampler was made for a longer dataset.
    pub fn new(
        dataset: Arc<Dataset>,
        sampler: BatchSampler,
        options: DataLoaderOptions,
    ) -> Result<Self, DataLoaderError> {
        assert!(sampler.state().len <= dataset.len(), "the sampler draws from this dataset");
        let DataLoaderOptions { workers, prefetch_bytes, packing_length } = options;
        // Two epochs: an order that is drawn anew may need more than one to meet the only usable record.
        let max_left_out = 2 * dataset.len();
        let encoder = BatchEncoder::new(dataset, packing_length);
        let source = match workers {
            0 => BatchSource::Caller { encoder, sampler },
            workers => {
                let limits = PrefetchLimits::new(workers, prefetch_bytes);
                BatchSource::Workers(Prefetch::start(encoder, sampler, workers, limits)?)
            }
        };
        Ok(Self { source, max_left_out })
    }

    fn receive(&mut self) -> Result<Option<EncodedBatch>, DataLoaderError> {
        match &mut self.source {
            BatchSource::Caller { encoder, sampler } => Ok(sampler.next().map(|indices| EncodedBatch {
                batch: encoder.encode(&indices),
                state: sampler.state(),
                epochs: sampler.epochs(),
            })),
            BatchSource::Workers(prefetch) => prefetch.receive(),
            BatchSource::Done => Ok(None),
        }
    }

    fn load(&mut self) -> Result<Option<DataLoaderBatch>, DataLoaderError> {
        let (mut dropped, mut skipped) = (Vec::new(), Vec::new());
        while let Some(EncodedBatch { batch, state, epochs }) = self.receive()? {
            let collated = batch?;
            dropped.extend(collated.dropped);
            skipped.extend(collated.skipped);
            if let Some(batch) = collated.batch {
                let indices = collated.indices;
                return Ok(Some(DataLoaderBatch { batch, indices, dropped, skipped, state, epochs }));
            }
            self.check_left_out(dropped.len(), skipped.len())?;
        }
        Ok(None)
    }

    /// Ends a search for a usable record that would go on without end.
    fn check_left_out(&self, dropped: usize, skipped: usize) -> Result<(), DataLoaderError> {
        match dropped + skipped >= self.max_left_out {
            true if dropped < skipped => Err(DataLoaderError::EverythingSkipped { skipped }),
            true => Err(DataLoaderError::EverythingDropped { dropped }),
            false => Ok(()),
        }
    }
}

impl Iterator for DataLoader {
    type Item = Result<DataLoaderBatch, DataLoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        let loaded = self.load();
        if !matches!(loaded, Ok(Some(_))) {
            // Stops the threads after their current batches.
            self.source = BatchSource::Done;
        }
        loaded.transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{mixed, processor, record, records};
    use crate::options::{DatasetOptions, LengthPolicy};

    fn loaded(
        dataset: &Arc<Dataset>,
        sampler: BatchSampler,
        workers: usize,
        count: usize,
    ) -> Vec<DataLoaderBatch> {
        loader(dataset, sampler, workers).take(count).collect::<Result<_, _>>().unwrap()
    }

    fn loader(dataset: &Arc<Dataset>, sampler: BatchSampler, workers: usize) -> DataLoader {
        DataLoader::new(dataset.clone(), sampler, DataLoaderOptions { workers, ..Default::default() })
            .unwrap()
    }

    #[test]
    fn any_number_of_workers_gives_the_same_batches() {
        let sampler = BatchSampler::shuffled(12, 5, 1).unwrap();
        let alone = loaded(&mixed(DatasetOptions::default()), sampler.clone(), 0, 9);

        for workers in [1, 2, 3] {
            let threaded = loaded(&mixed(DatasetOptions::default()), sampler.clone(), workers, 9);
            assert_eq!(threaded, alone, "{workers} workers");
        }
    }

    #[test]
    fn every_record_of_a_finite_order_comes_once_and_then_the_end() {
        let dataset = mixed(DatasetOptions::default());

        for workers in [0, 1, 2, 3, 8] {
            let sampler = BatchSampler::once(dataset.len(), 5).unwrap();
            let mut batches = loader(&dataset, sampler, workers);
            let seen: Vec<usize> = batches.by_ref().flat_map(|b| b.unwrap().indices).collect();
            assert_eq!(seen, (0..12).collect::<Vec<_>>(), "{workers} workers");
            assert!(batches.next().is_none());
        }
    }

    #[test]
    fn resuming_after_any_batch_gives_the_batches_that_follow() {
        let dataset = mixed(DatasetOptions::default());
        let sampler = BatchSampler::shuffled(12, 5, 1).unwrap();
        let straight = loaded(&dataset, sampler.clone(), 2, 7);

        for stop in 0..6 {
            let mut resumed = sampler.clone();
            resumed.restore(straight[stop].state).unwrap();
            assert_eq!(loaded(&dataset, resumed, 2, 6 - stop), straight[stop + 1..]);
        }
    }

    #[test]
    fn an_error_comes_in_its_place_and_ends_the_batches() {
        let mut all = records("digits:test");
        all.truncate(5);
        all.push(record(json!({"messages": [{"role": "user", "content": "<image>"},
            {"role": "assistant", "content": "a"}], "images": ["none.png"]})));
        let dataset = Arc::new(Dataset::new(all, processor(), DatasetOptions::default()));

        for workers in [0, 1, 2] {
            let sampler = BatchSampler::in_order(6, 2).unwrap();
            let mut batches = loader(&dataset, sampler, workers);
            assert!(batches.by_ref().take(2).all(|batch| batch.is_ok()), "{workers} workers");
            let error = batches.next().unwrap().unwrap_err().to_string();
            assert_eq!(error, "x.jsonl: line 7: cannot be encoded");
            assert!(batches.next().is_none());
        }
    }

    #[test]
    fn dropped_records_are_reported_with_the_next_batch() {
        let short = mixed(DatasetOptions::default()).sample(0).unwrap().input_ids.len();
        let options =
            DatasetOptions { max_length: Some(short), on_long: LengthPolicy::Drop, ..Default::default() };
        let dataset = mixed(options);
        let batches = vec![vec![9], vec![10, 9], vec![0, 10], vec![1]];

        for workers in [0, 1, 2] {
            let sampler = BatchSampler::fixed(batches.clone(), 12).unwrap();
            let loaded = loaded(&dataset, sampler, workers, 9);
            let found: Vec<_> =
                loaded.into_iter().map(|b| (b.indices, b.dropped, b.state.position)).collect();
            assert_eq!(found, [(vec![0], vec![9, 10, 9, 10], 3), (vec![1], vec![], 4)]);
        }
    }

    #[test]
    fn dropping_every_record_is_an_error() {
        let options =
            DatasetOptions { max_length: Some(3), on_long: LengthPolicy::Drop, ..Default::default() };
        let dataset = mixed(options);

        for workers in [0, 2] {
            let sampler = BatchSampler::shuffled(12, 4, 1).unwrap();
            let mut batches = loader(&dataset, sampler, workers);
            let error = batches.next().unwrap().unwrap_err().to_string();
            assert_eq!(
                error,
                "dropped 24 records in a row as longer than max_length; raise it or make the images smaller"
            );
        }
    }

    #[test]
    fn dropping_the_batches_early_stops_the_threads() {
        let dataset = mixed(DatasetOptions::default());
        let mut batches = loader(&dataset, BatchSampler::shuffled(12, 4, 1).unwrap(), 3);
        batches.next().unwrap().unwrap();

        drop(batches);

        assert_eq!(Arc::strong_count(&dataset), 1);
    }

    #[test]
    fn packed_batches_are_the_same_for_any_number_of_workers_and_resume_exactly() {
        let sampler = BatchSampler::shuffled(12, 5, 1).unwrap();
        let packed = |sampler: BatchSampler, workers, prefetch_bytes, count| -> Vec<DataLoaderBatch> {
            let options = DataLoaderOptions { workers, prefetch_bytes, packing_length: Some(200) };
            let batches = DataLoader::new(mixed(DatasetOptions::default()), sampler, options).unwrap();
            batches.take(count).collect::<Result<_, _>>().unwrap()
        };
        let alone = packed(sampler.clone(), 0, 0, 7);
        assert!(alone.iter().all(|loaded| loaded.batch.shape[0] < 5), "records share rows");

        for (workers, prefetch_bytes) in [(1, 0), (2, 100_000), (3, 1 << 30)] {
            assert_eq!(packed(sampler.clone(), workers, prefetch_bytes, 7), alone, "{workers} workers");
        }
        for stop in 0..6 {
            let mut resumed = sampler.clone();
            resumed.restore(alone[stop].state).unwrap();
            assert_eq!(packed(resumed, 2, 1 << 30, 6 - stop), alone[stop + 1..]);
        }
    }
}
