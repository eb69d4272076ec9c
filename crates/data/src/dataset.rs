//! Records with the processor that encodes them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use glm4v_model::{Batch, PaddingSide, Sample};
use glm4v_processor::{Processor, Segment, TemplateError};

use crate::cache::Cache;
use crate::check::{BadRecord, BadRecords, sift};
use crate::eval::EvalItem;
use crate::reader::ReadError;
use crate::record::Record;
use crate::registry::Source;
use crate::sample::{SampleError, encode, label};

/// What happens to a record with more tokens than `max_length`. It is never cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overlong {
    /// The run ends with an error that names the record.
    #[default]
    Error,
    /// The record is left out of its batch, which gets smaller, and is reported.
    Drop,
}

/// What happens to a record that cannot be used: one that is not understood, or whose media are missing or damaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnBad {
    /// The run ends with an error that names the record.
    #[default]
    Stop,
    /// The record is left out, named in a warning and counted.
    Skip,
}

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Records that cannot be used, all of them or more than [`OnBad`] allows.
    #[error(transparent)]
    Bad(#[from] BadRecords),
    /// The chat template takes too much.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// How records are encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetOptions {
    /// Most tokens of a record, images included; `None` allows any number.
    pub max_length: Option<usize>,
    /// What happens to longer records.
    pub overlong: Overlong,
    /// What happens to records that cannot be used.
    pub on_bad: OnBad,
    /// Bytes of encoded samples to keep in memory.
    pub cache_bytes: usize,
    /// Handed to the chat template, which decides without it.
    pub enable_thinking: Option<bool>,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            overlong: Overlong::Error,
            on_bad: OnBad::Stop,
            cache_bytes: 512 << 20,
            enable_thinking: None,
        }
    }
}

/// The samples of a batch, joined.
#[derive(Debug, Clone, PartialEq)]
pub struct Collated {
    /// The batch, padded on the right; `None` when every record was dropped.
    pub batch: Option<Batch>,
    /// The records in it, in the order of its rows.
    pub indices: Vec<usize>,
    /// The records that were too long.
    pub dropped: Vec<usize>,
    /// The records that could not be used.
    pub skipped: Vec<usize>,
}

/// Encodes records when they are asked for, and keeps what fits into memory.
///
/// Shared between threads by reference.
#[derive(Debug)]
pub struct Dataset {
    records: Vec<Record>,
    processor: Arc<Processor>,
    options: DatasetOptions,
    cache: Mutex<Cache>,
    /// Records left out when the dataset was opened.
    left_out: usize,
    /// Records left out since, which have been named.
    named: Mutex<BTreeSet<usize>>,
}

/// Records that are named one by one when they are left out.
const NAMED: usize = 10;

impl Dataset {
    /// Joins records, of one dataset or of several, with the processor of the model that learns them.
    pub fn new(records: Vec<Record>, processor: Arc<Processor>, options: DatasetOptions) -> Self {
        let cache = Mutex::new(Cache::new(options.cache_bytes));
        Self { records, processor, options, cache, left_out: 0, named: Mutex::default() }
    }

    /// Reads a dataset and checks every record, without decoding media.
    ///
    /// With [`OnBad::Skip`] the records that cannot be used are left out, so that the others are numbered without them.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, all records are bad, or with [`OnBad::Stop`] any.
    pub fn open(
        source: &Source,
        media_dir: Option<&Path>,
        processor: Arc<Processor>,
        options: DatasetOptions,
    ) -> Result<Self, DatasetError> {
        let read = source.read_all(media_dir)?;
        let records = read.len();
        let (good, bad) = sift(read, &processor, &options)?;
        let bad = BadRecords { name: source.name.clone(), records, bad };
        if good.is_empty() || (options.on_bad == OnBad::Stop && !bad.bad.is_empty()) {
            return Err(bad.into());
        }
        if !bad.bad.is_empty() {
            tracing::warn!("left out: {bad}");
        }
        Ok(Self { left_out: bad.bad.len(), ..Self::new(good, processor, options) })
    }

    /// Records left out as they cannot be used, when the dataset was opened and since.
    pub fn left_out(&self) -> usize {
        self.left_out + self.named.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What encodes them.
    pub fn processor(&self) -> &Arc<Processor> {
        &self.processor
    }

    /// How they are encoded.
    pub fn options(&self) -> &DatasetOptions {
        &self.options
    }

    /// Encodes a record, or finds it encoded.
    ///
    /// # Errors
    ///
    /// When the record cannot be encoded, or is too long, whatever [`Overlong`] says.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn sample(&self, index: usize) -> Result<Arc<Sample>, SampleError> {
        // A thread that died with the lock left a cache that is whole: it only ever inserts.
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cache().get(index);
        let sample = match found {
            Some(sample) => sample,
            None => {
                let record = &self.records[index];
                let sample = Arc::new(encode(record, &self.processor, self.options.enable_thinking)?);
                cache().offer(index, &sample);
                sample
            }
        };
        let tokens = sample.input_ids.len();
        match self.options.max_length {
            Some(max_length) if tokens > max_length => {
                Err(SampleError::TooLong { at: self.records[index].at.clone(), tokens, max_length })
            }
            _ => Ok(sample),
        }
    }

    /// The rendered record in the pieces that carry loss or not, for people to read.
    ///
    /// # Errors
    ///
    /// When it is not clear what the record trains.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn segments(&self, index: usize) -> Result<Vec<Segment>, SampleError> {
        label(&self.records[index], &self.processor, self.options.enable_thinking)
    }

    /// Encodes records and pads them on the right into one batch.
    ///
    /// # Errors
    ///
    /// The first record that cannot be encoded, or is too long and may not be dropped.
    ///
    /// # Panics
    ///
    /// When there is no record of one of the indices.
    pub fn batch(&self, indices: &[usize]) -> Result<Collated, SampleError> {
        let (mut samples, mut kept) = (Vec::new(), Vec::new());
        let (mut dropped, mut skipped) = (Vec::new(), Vec::new());
        for &index in indices {
            match self.sample(index) {
                Ok(sample) => {
                    samples.push(sample);
                    kept.push(index);
                }
                Err(error) if error.is_too_long() && self.options.overlong == Overlong::Drop => {
                    dropped.push(index);
                }
                Err(error) if self.may_leave_out(&error) => {
                    self.name(index, error);
                    skipped.push(index);
                }
                Err(error) => return Err(error),
            }
        }
        let pad = self.processor.tokenizer().special().end_of_text;
        let batch = (!samples.is_empty()).then(|| Batch::collate(&samples, pad, PaddingSide::Right));
        Ok(Collated { batch, indices: kept, dropped, skipped })
    }

    fn may_leave_out(&self, error: &SampleError) -> bool {
        let fatal = matches!(error, SampleError::Render { source: TemplateError::Stopped { .. }, .. });
        self.options.on_bad == OnBad::Skip && !fatal && !error.is_too_long()
    }

    /// Says that a record is left out, once for each record, and for a few of them only.
    fn name(&self, index: usize, error: SampleError) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if !named.insert(index) {
            return;
        }
        match named.len() {
            count if count <= NAMED => tracing::warn!("left out: {}", BadRecord::from(error).chain()),
            count if count.is_power_of_two() => tracing::warn!("{count} records left out so far"),
            _ => {}
        }
    }

    /// Every record as a question with a known answer.
    pub fn eval_items(&self) -> impl Iterator<Item = EvalItem> {
        self.records.iter().filter_map(EvalItem::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::mixed;

    #[test]
    fn a_sample_that_fits_is_encoded_once() {
        let kept = mixed(DatasetOptions::default());
        let forgotten = mixed(DatasetOptions { cache_bytes: 0, ..Default::default() });
        let twice = |data: &Dataset| (data.sample(3).unwrap(), data.sample(3).unwrap());

        let (first, second) = twice(&kept);
        let (third, fourth) = twice(&forgotten);

        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&third, &fourth));
        assert_eq!([&second, &third], [&first, &fourth]);
    }

    #[test]
    fn a_batch_is_padded_on_the_right_and_teaches_only_answers() {
        let data = mixed(DatasetOptions::default());

        let collated = data.batch(&[9, 0]).unwrap();

        let batch = collated.batch.unwrap();
        let lengths = [9, 0].map(|index| data.sample(index).unwrap().input_ids.len());
        assert!(lengths[0] > lengths[1]);
        assert_eq!(batch.shape, [2, lengths[0]]);
        assert_eq!(batch.tokens(), lengths[0] + lengths[1]);
        assert_eq!(batch.images.grids.len(), 3);
        let padding = &batch.input_ids[lengths[0] + lengths[1]..];
        let pad = data.processor().tokenizer().special().end_of_text;
        assert!(padding.iter().all(|id| *id == pad) && !padding.is_empty());
        assert!(!batch.loss_mask[lengths[0] + lengths[1]..].contains(&true));
    }

    #[test]
    fn a_long_record_is_an_error_or_is_dropped_but_never_cut() {
        let exact = mixed(DatasetOptions::default()).sample(0).unwrap().input_ids.len();
        let with = |overlong, max_length| {
            mixed(DatasetOptions { max_length: Some(max_length), overlong, ..Default::default() })
        };

        let error = with(Overlong::Error, exact).batch(&[0, 9]).unwrap_err().to_string();
        let dropped = with(Overlong::Drop, exact).batch(&[9, 0, 10]).unwrap();
        let nothing = with(Overlong::Drop, exact - 1).batch(&[0, 9]).unwrap();

        assert!(error.contains("demo.json: record [1] (line 9): takes "), "{error}");
        assert!(error.contains(&format!(" tokens, max_length is {exact}; raise it")), "{error}");
        assert_eq!((dropped.indices, dropped.dropped), (vec![0], vec![9, 10]));
        assert_eq!(dropped.batch.unwrap().shape, [1, exact]);
        assert_eq!((nothing.batch, nothing.dropped), (None, vec![0, 9]));
    }

    #[test]
    fn the_prompt_of_an_eval_item_is_what_the_sample_has_before_the_answer() {
        let data = mixed(DatasetOptions::default());
        let item = data.eval_items().next().unwrap();

        let prompt =
            data.processor().encode(&item.prompt, &glm4v_processor::RenderOptions::prompt()).unwrap();

        let sample = data.sample(0).unwrap();
        let loss_mask = sample.loss_mask.iter().position(|label| *label).unwrap();
        assert_eq!(prompt.input_ids, sample.input_ids[..loss_mask]);
        assert_eq!(prompt.pixel_values, sample.images.values);
    }
}
