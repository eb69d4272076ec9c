//! Batches that worker threads encode ahead of time.
//!
//! Every worker walks the whole order and encodes each n-th batch of it, so the batches are the same for any number of workers, and
//! workers share nothing but the dataset.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use glm4v_inputs::Batch;

use crate::dataset::{CollatedBatch, Dataset};
use crate::sample::SampleError;
use crate::sampler::{BatchSampler, BatchSamplerState};

/// Batches that wait in the queue of a worker.
const QUEUE_LENGTH: usize = 2;

/// Error of the next batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataLoaderError {
    /// A record cannot be used.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Two epochs without a usable record, most of them bad.
    #[error("left out {skipped} records in a row that cannot be used, and no other was met")]
    EverythingSkipped {
        /// Number of records left out.
        skipped: usize,
    },
    /// Two epochs without a usable record, most of them too long.
    #[error(
        "dropped {dropped} records in a row as longer than max_length; raise it or make the images smaller"
    )]
    EverythingDropped {
        /// Number of records dropped.
        dropped: usize,
    },
    /// A thread cannot be started.
    #[error("worker {worker} could not be started; use fewer workers")]
    Start {
        /// Index of the worker.
        worker: usize,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A worker panicked, which is a bug.
    #[error("worker {worker} died; see the message of its panic")]
    Died {
        /// Index of the worker.
        worker: usize,
    },
}

/// A batch of a [`DataLoader`], with the state that resumes after it.
#[derive(Debug, Clone, PartialEq)]
pub struct DataLoaderBatch {
    /// The batch, padded on the right.
    pub batch: Batch,
    /// Indices of its records, in the order of rows.
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

/// The batch of one draw from the sampler; `None` in its place marks the end of the order.
struct WorkerOutput {
    batch: Result<CollatedBatch, SampleError>,
    state: BatchSamplerState,
    epochs: f64,
}

#[derive(Debug)]
enum BatchSource {
    /// The caller's thread encodes.
    Caller { dataset: Arc<Dataset>, sampler: BatchSampler },
    /// Threads encode. Worker `next` has the next batch.
    Workers { channels: Vec<Receiver<Option<WorkerOutput>>>, next: usize, handles: Vec<JoinHandle<()>> },
    /// After the last batch or an error.
    Done,
}

/// Iterates over the batches of a dataset, which worker threads encode ahead of time.
///
/// Ends after the last batch of a finite order, and after the first error.
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
    /// Starts `workers` threads; with 0 the caller's thread encodes each batch on demand.
    ///
    /// A restored sampler continues after its saved state.
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
        workers: usize,
    ) -> Result<Self, DataLoaderError> {
        assert!(sampler.state().len <= dataset.len(), "the sampler draws from this dataset");
        // Two epochs: an order that is drawn anew may need more than one to meet the only usable record.
        let max_left_out = 2 * dataset.len();
        if workers == 0 {
            return Ok(Self { source: BatchSource::Caller { dataset, sampler }, max_left_out });
        }
        let (mut channels, mut handles) = (Vec::new(), Vec::new());
        for worker in 0..workers {
            let (sender, receiver) = sync_channel(QUEUE_LENGTH);
            // Every worker walks the same order and encodes its share, so the batches do not depend on their number.
            let (dataset, sampler) = (dataset.clone(), sampler.clone());
            let handle = std::thread::Builder::new()
                .name(format!("data-{worker}"))
                .spawn(move || encode_batches(&dataset, sampler, worker, workers, &sender))
                .map_err(|source| DataLoaderError::Start { worker, source })?;
            channels.push(receiver);
            handles.push(handle);
        }
        Ok(Self { source: BatchSource::Workers { channels, next: 0, handles }, max_left_out })
    }

    fn receive(&mut self) -> Result<Option<WorkerOutput>, DataLoaderError> {
        match &mut self.source {
            BatchSource::Caller { dataset, sampler } => Ok(encode_next(dataset, sampler)),
            BatchSource::Workers { channels, next, .. } => {
                let worker = *next;
                *next = (worker + 1) % channels.len();
                channels[worker].recv().map_err(|_| DataLoaderError::Died { worker })
            }
            BatchSource::Done => Ok(None),
        }
    }

    fn load(&mut self) -> Result<Option<DataLoaderBatch>, DataLoaderError> {
        let (mut dropped, mut skipped) = (Vec::new(), Vec::new());
        while let Some(WorkerOutput { batch, state, epochs }) = self.receive()? {
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

    /// Stops the threads after their current batches.
    fn stop(&mut self) {
        if let BatchSource::Workers { channels, handles, .. } =
            std::mem::replace(&mut self.source, BatchSource::Done)
        {
            // Ends workers that wait for room in their queue.
            drop(channels);
            for handle in handles {
                // A panic was reported when it happened; dropping must not raise it again.
                let _ = handle.join();
            }
        }
    }
}

impl Iterator for DataLoader {
    type Item = Result<DataLoaderBatch, DataLoaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        let loaded = self.load();
        if !matches!(loaded, Ok(Some(_))) {
            self.stop();
        }
        loaded.transpose()
    }
}

impl Drop for DataLoader {
    fn drop(&mut self) {
        self.stop();
    }
}

fn encode_next(dataset: &Dataset, sampler: &mut BatchSampler) -> Option<WorkerOutput> {
    let indices = sampler.next()?;
    let batch = dataset.batch(&indices);
    Some(WorkerOutput { batch, state: sampler.state(), epochs: sampler.epochs() })
}

/// Encodes the batches `worker`, `worker + workers`, … until the end of the order, an error, or the end of the loader.
fn encode_batches(
    dataset: &Dataset,
    mut sampler: BatchSampler,
    worker: usize,
    workers: usize,
    sender: &SyncSender<Option<WorkerOutput>>,
) {
    let mut skip = worker;
    loop {
        if sampler.by_ref().take(skip).count() < skip {
            let _ = sender.send(None);
            return;
        }
        skip = workers - 1;
        let output = encode_next(dataset, &mut sampler);
        let is_last = !matches!(&output, Some(WorkerOutput { batch: Ok(_), .. }));
        if sender.send(output).is_err() || is_last {
            return;
        }
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
        let batches = DataLoader::new(dataset.clone(), sampler, workers).unwrap().take(count);
        batches.collect::<Result<_, _>>().unwrap()
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
            let mut batches = DataLoader::new(dataset.clone(), sampler, workers).unwrap();
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
            let mut batches = DataLoader::new(dataset.clone(), sampler, workers).unwrap();
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
            let mut batches = DataLoader::new(dataset.clone(), sampler, workers).unwrap();
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
        let mut batches =
            DataLoader::new(dataset.clone(), BatchSampler::shuffled(12, 4, 1).unwrap(), 3).unwrap();
        batches.next().unwrap().unwrap();

        drop(batches);

        assert_eq!(Arc::strong_count(&dataset), 1);
    }

    #[test]
    fn a_worker_that_panics_is_an_error_of_the_caller() {
        let (sender, receiver) = sync_channel::<Option<WorkerOutput>>(QUEUE_LENGTH);
        let handle = std::thread::spawn(move || {
            let _sender = sender;
            std::panic::resume_unwind(Box::new("a fault"));
        });
        let source = BatchSource::Workers { channels: vec![receiver], next: 0, handles: vec![handle] };
        let mut batches = DataLoader { source, max_left_out: 1 };

        let error = batches.next().unwrap().unwrap_err().to_string();

        assert_eq!(error, "worker 0 died; see the message of its panic");
        assert!(batches.next().is_none());
    }
}
