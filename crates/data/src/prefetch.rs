//! Batches that are ready before they are asked for.
//!
//! Every worker walks the same order by itself and encodes each n-th batch of it, so the batches come
//! as they would without workers, and workers share nothing but the dataset.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use glm4v_model::Batch;

use crate::dataset::{Collated, Dataset};
use crate::sample::SampleError;
use crate::sampler::{Sampler, SamplerState};

/// Batches that a worker may be ahead.
const AHEAD: usize = 2;

/// Why there is no next batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A record cannot be used.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// Nothing is left to train on.
    #[error("left out {skipped} records in a row that cannot be used, and no other was met")]
    EverythingSkipped {
        /// Records left out.
        skipped: usize,
    },
    /// Nothing is left to train on.
    #[error(
        "dropped {dropped} records in a row as longer than max_length; raise it or make the images smaller"
    )]
    EverythingDropped {
        /// Records dropped.
        dropped: usize,
    },
    /// No thread could be started.
    #[error("worker {worker} could not be started; use fewer workers")]
    Start {
        /// Index of the worker.
        worker: usize,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A worker ended without a word: a fault of this program, which its panic message describes.
    #[error("worker {worker} died; see the message of its panic")]
    Died {
        /// Index of the worker.
        worker: usize,
    },
}

/// A batch with what a training loop wants to know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedBatch {
    /// The batch, padded on the right.
    pub batch: Batch,
    /// The records in it, in the order of its rows.
    pub indices: Vec<usize>,
    /// Records that were left out as too long since the batch before.
    pub dropped: Vec<usize>,
    /// Records that were left out since the batch before as they cannot be used.
    pub skipped: Vec<usize>,
    /// The state to save once this batch is learned: the sampler itself is further ahead.
    pub state: SamplerState,
    /// Epochs drawn with this batch, the current one as a fraction.
    pub epochs: f64,
}

/// What a worker hands over; nothing at the end of the order.
type Handed = Option<(Result<Collated, SampleError>, SamplerState, f64)>;

#[derive(Debug)]
enum Source {
    /// The caller encodes.
    Here { dataset: Arc<Dataset>, sampler: Sampler },
    /// Threads encode; the next batch comes from the channel of worker `next`.
    Threads { channels: Vec<Receiver<Handed>>, next: usize, handles: Vec<JoinHandle<()>> },
    /// Over, after the last batch or an error.
    Done,
}

/// Iterates over the batches of a dataset, encoding them ahead of time.
///
/// Ends after the last batch of a finite order, and after the first error.
///
/// # Examples
///
/// See the [crate's example](crate#examples).
#[derive(Debug)]
pub struct Prefetch {
    source: Source,
    /// Records after which it is clear that all are too long.
    patience: usize,
}

impl Prefetch {
    /// Starts `workers` threads; with 0 the caller encodes each batch when it asks for it.
    ///
    /// The sampler may have been restored: batches begin behind its state.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    ///
    /// # Panics
    ///
    /// When the sampler was made for a longer dataset.
    pub fn new(dataset: Arc<Dataset>, sampler: Sampler, workers: usize) -> Result<Self, LoadError> {
        assert!(sampler.state().len <= dataset.len(), "the sampler draws from this dataset");
        let patience = 2 * dataset.len();
        if workers == 0 {
            return Ok(Self { source: Source::Here { dataset, sampler }, patience });
        }
        let (mut channels, mut handles) = (Vec::new(), Vec::new());
        for worker in 0..workers {
            let (sender, receiver) = sync_channel(AHEAD);
            let (dataset, sampler) = (dataset.clone(), sampler.clone());
            let handle = std::thread::Builder::new()
                .name(format!("data-{worker}"))
                .spawn(move || work(&dataset, sampler, worker, workers, &sender))
                .map_err(|source| LoadError::Start { worker, source })?;
            channels.push(receiver);
            handles.push(handle);
        }
        Ok(Self { source: Source::Threads { channels, next: 0, handles }, patience })
    }

    fn receive(&mut self) -> Result<Handed, LoadError> {
        match &mut self.source {
            Source::Here { dataset, sampler } => Ok(draw(dataset, sampler)),
            Source::Threads { channels, next, .. } => {
                let worker = *next;
                *next = (worker + 1) % channels.len();
                channels[worker].recv().map_err(|_| LoadError::Died { worker })
            }
            Source::Done => Ok(None),
        }
    }

    fn load(&mut self) -> Result<Option<LoadedBatch>, LoadError> {
        let (mut dropped, mut skipped) = (Vec::new(), Vec::new());
        while let Some((collated, state, epochs)) = self.receive()? {
            let collated = collated?;
            dropped.extend(collated.dropped);
            skipped.extend(collated.skipped);
            if let Some(batch) = collated.batch {
                let indices = collated.indices;
                return Ok(Some(LoadedBatch { batch, indices, dropped, skipped, state, epochs }));
            }
            if dropped.len() + skipped.len() >= self.patience && dropped.len() < skipped.len() {
                return Err(LoadError::EverythingSkipped { skipped: skipped.len() });
            }
            if dropped.len() + skipped.len() >= self.patience {
                return Err(LoadError::EverythingDropped { dropped: dropped.len() });
            }
        }
        Ok(None)
    }

    /// Stops the threads and waits for the batches that they are at.
    fn stop(&mut self) {
        if let Source::Threads { channels, handles, .. } = std::mem::replace(&mut self.source, Source::Done) {
            // A worker that waits to hand over finds nobody there, and ends.
            drop(channels);
            for handle in handles {
                // A panic was reported when it happened; dropping must not raise it again.
                let _ = handle.join();
            }
        }
    }
}

impl Iterator for Prefetch {
    type Item = Result<LoadedBatch, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let loaded = self.load();
        if !matches!(loaded, Ok(Some(_))) {
            self.stop();
        }
        loaded.transpose()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop();
    }
}

fn draw(dataset: &Dataset, sampler: &mut Sampler) -> Handed {
    let indices = sampler.next()?;
    Some((dataset.batch(&indices), sampler.state(), sampler.epochs()))
}

/// Encodes the batches `worker`, `worker + workers`, … until there are no more or nobody wants them.
fn work(dataset: &Dataset, mut sampler: Sampler, worker: usize, workers: usize, sender: &SyncSender<Handed>) {
    let mut skip = worker;
    loop {
        if sampler.by_ref().take(skip).count() < skip {
            let _ = sender.send(None);
            return;
        }
        skip = workers - 1;
        let handed = draw(dataset, &mut sampler);
        let last = !matches!(&handed, Some((Ok(_), ..)));
        if sender.send(handed).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dataset::{DatasetOptions, Overlong};
    use crate::fixture::{mixed, processor, record, records};

    fn loaded(dataset: &Arc<Dataset>, sampler: Sampler, workers: usize, count: usize) -> Vec<LoadedBatch> {
        let batches = Prefetch::new(dataset.clone(), sampler, workers).unwrap().take(count);
        batches.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn any_number_of_workers_gives_the_same_batches() {
        let sampler = Sampler::shuffled(12, 5, 1).unwrap();
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
            let sampler = Sampler::once(dataset.len(), 5).unwrap();
            let mut batches = Prefetch::new(dataset.clone(), sampler, workers).unwrap();
            let seen: Vec<usize> = batches.by_ref().flat_map(|b| b.unwrap().indices).collect();
            assert_eq!(seen, (0..12).collect::<Vec<_>>(), "{workers} workers");
            assert!(batches.next().is_none());
        }
    }

    #[test]
    fn resuming_behind_any_batch_gives_the_batches_that_follow() {
        let dataset = mixed(DatasetOptions::default());
        let sampler = Sampler::shuffled(12, 5, 1).unwrap();
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
            let sampler = Sampler::in_order(6, 2).unwrap();
            let mut batches = Prefetch::new(dataset.clone(), sampler, workers).unwrap();
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
            DatasetOptions { max_length: Some(short), overlong: Overlong::Drop, ..Default::default() };
        let dataset = mixed(options);
        let batches = vec![vec![9], vec![10, 9], vec![0, 10], vec![1]];

        for workers in [0, 1, 2] {
            let sampler = Sampler::fixed(batches.clone(), 12).unwrap();
            let loaded = loaded(&dataset, sampler, workers, 9);
            let found: Vec<_> =
                loaded.into_iter().map(|b| (b.indices, b.dropped, b.state.position)).collect();
            assert_eq!(found, [(vec![0], vec![9, 10, 9, 10], 3), (vec![1], vec![], 4)]);
        }
    }

    #[test]
    fn dropping_every_record_is_an_error_and_no_endless_loop() {
        let options = DatasetOptions { max_length: Some(3), overlong: Overlong::Drop, ..Default::default() };
        let dataset = mixed(options);

        for workers in [0, 2] {
            let sampler = Sampler::shuffled(12, 4, 1).unwrap();
            let mut batches = Prefetch::new(dataset.clone(), sampler, workers).unwrap();
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
        let mut batches = Prefetch::new(dataset.clone(), Sampler::shuffled(12, 4, 1).unwrap(), 3).unwrap();
        batches.next().unwrap().unwrap();

        drop(batches);

        assert_eq!(Arc::strong_count(&dataset), 1);
    }

    #[test]
    fn a_worker_that_panics_is_an_error_of_the_caller() {
        let (sender, receiver) = sync_channel::<Handed>(AHEAD);
        let handle = std::thread::spawn(move || {
            let _sender = sender;
            std::panic::resume_unwind(Box::new("a fault"));
        });
        let source = Source::Threads { channels: vec![receiver], next: 0, handles: vec![handle] };
        let mut batches = Prefetch { source, patience: 1 };

        let error = batches.next().unwrap().unwrap_err().to_string();

        assert_eq!(error, "worker 0 died; see the message of its panic");
        assert!(batches.next().is_none());
    }
}
