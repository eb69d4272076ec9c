//! Threads that encode batches ahead of their use, within a number of bytes.
//!
//! A worker draws the next batch from the one sampler and encodes it alone; finished batches wait under their number until the caller
//! has taken those before. So batches do not depend on the number of workers, and a batch that takes long delays no other worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::error::DataLoaderError;
use crate::cache::batch_bytes;
use crate::dataset::{CollatedBatch, Dataset};
use crate::sample::SampleError;
use crate::sampler::{BatchSampler, BatchSamplerState};

/// Batches ahead of the caller for each worker. More would not help: bytes are what a slow batch needs time for, not numbers.
const BATCHES_PER_WORKER: usize = 8;

/// A batch of the sampler, encoded.
#[derive(Debug)]
pub(crate) struct EncodedBatch {
    pub(crate) batch: Result<CollatedBatch, SampleError>,
    pub(crate) state: BatchSamplerState,
    pub(crate) epochs: f64,
}

/// Encodes the batches that a sampler draws.
#[derive(Debug)]
pub(crate) struct BatchEncoder {
    dataset: Arc<Dataset>,
    packing_length: Option<usize>,
}

impl BatchEncoder {
    pub(crate) fn new(dataset: Arc<Dataset>, packing_length: Option<usize>) -> Self {
        Self { dataset, packing_length }
    }

    pub(crate) fn encode(&self, indices: &[usize]) -> Result<CollatedBatch, SampleError> {
        match self.packing_length {
            Some(length) => self.dataset.packed_batch(indices, length),
            None => self.dataset.batch(indices),
        }
    }
}

/// How far workers run ahead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PrefetchLimits {
    /// Bytes of batches that wait, or are being encoded.
    bytes: usize,
    /// Number of these batches.
    batches: usize,
}

impl PrefetchLimits {
    pub(crate) fn new(workers: usize, bytes: usize) -> Self {
        Self { bytes, batches: workers.saturating_mul(BATCHES_PER_WORKER) }
    }
}

/// What workers and caller share.
#[derive(Debug)]
struct Queue {
    state: Mutex<QueueState>,
    /// A batch was finished or taken, or the order ended.
    changed: Condvar,
}

#[derive(Debug)]
struct QueueState {
    sampler: BatchSampler,
    limits: PrefetchLimits,
    /// Finished batches with their bytes, by number.
    finished: BTreeMap<usize, (EncodedBatch, usize)>,
    /// Number of batches drawn from the sampler.
    drawn: usize,
    /// Number of batches that the caller took.
    taken: usize,
    /// Bytes of finished batches, and of those being encoded as far as they can be known.
    bytes: usize,
    /// Bytes of the largest batch so far; 0 before the first, when no other is begun because nothing is known of its size.
    largest: usize,
    /// Whether no batch is drawn any more: the order ended, a record was an error, or the caller is gone.
    is_closed: bool,
    /// A worker that panicked.
    died: Option<usize>,
}

/// A batch that a worker has to encode.
struct Job {
    number: usize,
    indices: Vec<usize>,
    state: BatchSamplerState,
    epochs: f64,
    /// Bytes counted for it until its own are known.
    reserved: usize,
}

impl QueueState {
    /// Whether another batch may be begun. The one that the caller waits for always may.
    fn has_room(&self) -> bool {
        let within = self.largest > 0
            && self.bytes.saturating_add(self.largest) <= self.limits.bytes
            && self.drawn - self.taken < self.limits.batches;
        within || self.drawn == self.taken
    }

    fn draw(&mut self) -> Option<Job> {
        let indices = self.sampler.next()?;
        let job = Job {
            number: self.drawn,
            indices,
            state: self.sampler.state(),
            epochs: self.sampler.epochs(),
            reserved: self.largest,
        };
        self.drawn += 1;
        self.bytes += job.reserved;
        Some(job)
    }

    fn finish(&mut self, job: &Job, batch: EncodedBatch) {
        let bytes = match &batch.batch {
            Ok(collated) => collated.batch.as_ref().map_or(0, batch_bytes),
            Err(_) => {
                self.is_closed = true;
                0
            }
        };
        self.bytes = self.bytes - job.reserved + bytes;
        self.largest = self.largest.max(bytes);
        self.finished.insert(job.number, (batch, bytes));
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // Nothing panics while the lock is held, except for a bug that is reported as a worker's death.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, QueueState>) -> MutexGuard<'a, QueueState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch to encode, as soon as there is room; none when there is no more to do.
    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        while !state.is_closed && !state.has_room() {
            state = self.wait(state);
        }
        if state.is_closed {
            return None;
        }
        let job = state.draw();
        if job.is_none() {
            state.is_closed = true;
            self.changed.notify_all();
        }
        job
    }

    fn finish(&self, job: &Job, batch: EncodedBatch) {
        self.lock().finish(job, batch);
        self.changed.notify_all();
    }

    fn work(&self, encoder: &BatchEncoder) {
        while let Some(job) = self.next_job() {
            let batch = encoder.encode(&job.indices);
            self.finish(&job, EncodedBatch { batch, state: job.state, epochs: job.epochs });
        }
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

/// Reports the panic of its thread to the caller, who would wait for a batch that never comes.
struct DeathNotice {
    queue: Arc<Queue>,
    worker: usize,
}

impl Drop for DeathNotice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.queue.lock().died = Some(self.worker);
            self.queue.close();
        }
    }
}

/// Batches in order, encoded by threads. Dropped, it stops them after their current batches.
#[derive(Debug)]
pub(crate) struct Prefetch {
    queue: Arc<Queue>,
    handles: Vec<JoinHandle<()>>,
}

impl Prefetch {
    pub(crate) fn start(
        encoder: BatchEncoder,
        sampler: BatchSampler,
        workers: usize,
        limits: PrefetchLimits,
    ) -> Result<Self, DataLoaderError> {
        let mut prefetch = Self { queue: Arc::new(Queue::new(sampler, limits)), handles: Vec::new() };
        let encoder = Arc::new(encoder);
        for worker in 0..workers {
            let encoder = encoder.clone();
            prefetch.spawn(worker, move |queue| queue.work(&encoder))?;
        }
        Ok(prefetch)
    }

    fn spawn(
        &mut self,
        worker: usize,
        work: impl FnOnce(&Queue) + Send + 'static,
    ) -> Result<(), DataLoaderError> {
        let queue = self.queue.clone();
        let handle = std::thread::Builder::new()
            .name(format!("data-{worker}"))
            .spawn(move || {
                let notice = DeathNotice { queue, worker };
                work(&notice.queue);
            })
            .map_err(|source| DataLoaderError::Start { worker, source })?;
        self.handles.push(handle);
        Ok(())
    }

    /// The next batch; none after the last of a finite order.
    pub(crate) fn receive(&mut self) -> Result<Option<EncodedBatch>, DataLoaderError> {
        let mut state = self.queue.lock();
        loop {
            let next = state.taken;
            if let Some((batch, bytes)) = state.finished.remove(&next) {
                state.taken += 1;
                state.bytes -= bytes;
                self.queue.changed.notify_all();
                return Ok(Some(batch));
            }
            if let Some(worker) = state.died {
                return Err(DataLoaderError::Died { worker });
            }
            if state.is_closed && next == state.drawn {
                return Ok(None);
            }
            state = self.queue.wait(state);
        }
    }
}

impl Queue {
    fn new(sampler: BatchSampler, limits: PrefetchLimits) -> Self {
        let state = QueueState {
            sampler,
            limits,
            finished: BTreeMap::new(),
            drawn: 0,
            taken: 0,
            bytes: 0,
            largest: 0,
            is_closed: false,
            died: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.queue.close();
        for handle in self.handles.drain(..) {
            // A panic was reported when it happened; dropping must not raise it again.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use glm4v_inputs::{Batch, PaddingSide, Sample};

    use super::*;

    /// A queue of ten batches, and a batch of its own size for each.
    fn queue(bytes: usize) -> Queue {
        Queue::new(BatchSampler::once(10, 1).unwrap(), PrefetchLimits { bytes, batches: 100 })
    }

    fn encoded(job: &Job, tokens: usize) -> EncodedBatch {
        let sample = Sample::from_text(vec![1; tokens]);
        let batch = Some(Batch::collate(&[sample], 0, PaddingSide::Right));
        let indices = job.indices.clone();
        let batch = CollatedBatch { batch, indices, dropped: vec![], skipped: vec![] };
        EncodedBatch { batch: Ok(batch), state: job.state, epochs: job.epochs }
    }

    fn draw(queue: &Queue) -> Option<Job> {
        let mut state = queue.lock();
        if state.has_room() { state.draw() } else { None }
    }

    #[test]
    fn workers_stop_at_the_bytes_and_go_on_when_a_batch_is_taken() {
        let probe = queue(0);
        let job = draw(&probe).unwrap();
        let size = batch_bytes(encoded(&job, 100).batch.unwrap().batch.as_ref().unwrap());

        let queue = Arc::new(queue(3 * size));
        let mut prefetch = Prefetch { queue: queue.clone(), handles: Vec::new() };
        let first = draw(&queue).unwrap();
        queue.finish(&first, encoded(&first, 100));
        let jobs: Vec<Job> = std::iter::from_fn(|| draw(&queue)).collect();

        assert_eq!(jobs.len(), 2, "one is finished, two in work: three times the largest");
        assert_eq!(queue.lock().bytes, 3 * size);
        for job in &jobs {
            queue.finish(job, encoded(job, 50));
        }
        assert!(queue.lock().bytes < 3 * size && queue.lock().bytes >= 2 * size);
        let indices = |batch: EncodedBatch| batch.batch.unwrap().indices;
        let taken = prefetch.receive().unwrap().map(indices);
        assert_eq!(taken, Some(vec![0]));
        assert!(draw(&queue).is_some());
    }

    #[test]
    fn a_batch_beyond_the_bytes_is_encoded_when_the_caller_waits_for_it() {
        let queue = Arc::new(queue(1));
        let mut prefetch = Prefetch { queue: queue.clone(), handles: Vec::new() };

        for _ in 0..3 {
            let job = draw(&queue).unwrap();
            assert!(draw(&queue).is_none());
            queue.finish(&job, encoded(&job, 100));
            assert!(draw(&queue).is_none());
            prefetch.receive().unwrap().unwrap();
        }
    }

    #[test]
    fn a_worker_that_panics_is_an_error_of_the_caller() {
        let mut prefetch = Prefetch { queue: Arc::new(queue(0)), handles: Vec::new() };
        prefetch.spawn(3, |_| std::panic::resume_unwind(Box::new("a fault"))).unwrap();

        let error = prefetch.receive().unwrap_err().to_string();

        assert_eq!(error, "worker 3 died; see the message of its panic");
    }
}
