//! Records with the processor of the model, which encodes them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use glm4v_inputs::{Batch, PaddingSide, Sample};
use glm4v_processor::{LabeledText, Processor, TemplateError};

use crate::cache::SampleCache;
use crate::check::{BadRecordError, BadRecordsError, check_records};
use crate::eval::EvalExample;
use crate::fit::encode_to_fit;
use crate::location::RecordLocation;
use crate::mixture::{DistinctRecords, Mixture, Share};
use crate::options::{BadRecordPolicy, DatasetOptions, LengthPolicy};
use crate::outcomes::{Outcome, OutcomeLog, RecordCounts};
use crate::packing::first_fit;
use crate::reader::ReadError;
use crate::record::Record;
use crate::records::Records;
use crate::registry::DatasetSource;
use crate::sample::{SampleError, record_spans};

/// Error of opening a dataset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// No record can be used, or [`BadRecordPolicy::Stop`] applies.
    #[error(transparent)]
    Bad(#[from] BadRecordsError),
    /// The chat template exceeds its limits.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// A batch, with the records that were left out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct CollatedBatch {
    /// The batch, padded on the right; `None` when every record was left out.
    pub batch: Option<Batch>,
    /// Indices of its records, row by row.
    pub indices: Vec<usize>,
    /// Indices of records that were too long.
    pub dropped: Vec<usize>,
    /// Indices of records that could not be used.
    pub skipped: Vec<usize>,
}

/// Encodes records on demand, with a cache of encoded samples.
///
/// Threads share it by reference.
#[derive(Debug)]
pub struct Dataset {
    records: Mixture,
    processor: Arc<Processor>,
    options: DatasetOptions,
    cache: Mutex<SampleCache>,
    /// Number of records left out by [`open`](Self::open).
    skipped_on_open: usize,
    /// Records left out of batches or shortened.
    outcomes: Mutex<OutcomeLog>,
}

/// Encoded records, and those that were left out.
struct Selection {
    samples: Vec<Arc<Sample>>,
    /// Their indices.
    indices: Vec<usize>,
    dropped: Vec<usize>,
    skipped: Vec<usize>,
}

impl Dataset {
    /// A dataset of given records, which may come from several sources.
    pub fn new(records: Vec<Record>, processor: Arc<Processor>, options: DatasetOptions) -> Self {
        Self::of(Records::from(records).into(), processor, options)
    }

    fn of(records: Mixture, processor: Arc<Processor>, options: DatasetOptions) -> Self {
        let cache = Mutex::new(SampleCache::new(options.cache_bytes));
        Self { records, processor, options, cache, skipped_on_open: 0, outcomes: Mutex::default() }
    }

    /// Opens a dataset with all its records, or as many as its source says, drawn with the seed 0; see [`open_mixture`](Self::open_mixture).
    ///
    /// # Errors
    ///
    /// When a file cannot be read, no record can be used, or with [`BadRecordPolicy::Stop`] one cannot.
    pub fn open(
        source: &DatasetSource,
        media_dir: Option<&Path>,
        processor: Arc<Processor>,
        options: DatasetOptions,
    ) -> Result<Self, DatasetError> {
        let mut records = Mixture::new();
        let share = Share { samples: source.samples, ..Share::default() };
        records.add(Records::open(source, media_dir)?.into(), share, 0.0, 0);
        Self::open_mixture(records, processor, options)
    }

    /// Opens a mixture of datasets, and checks its records without decoding media: all of a dataset of at most
    /// [`CHECKED_WHOLE`](Self::CHECKED_WHOLE) records, else a sample of [`CHECKED_SAMPLE`](Self::CHECKED_SAMPLE) over its whole
    /// length; the others are checked when they are used.
    ///
    /// With [`BadRecordPolicy::Skip`], records of the first kind that cannot be used have no index.
    ///
    /// # Errors
    ///
    /// When no record of a dataset can be used, with [`BadRecordPolicy::Stop`] one of those checked cannot, or with
    /// [`BadRecordPolicy::Skip`] more than [`DatasetOptions::max_bad`] cannot.
    pub fn open_mixture(
        records: Mixture,
        processor: Arc<Processor>,
        options: DatasetOptions,
    ) -> Result<Self, DatasetError> {
        let (mut left_out, mut skipped_on_open) = (Vec::new(), 0);
        for (dataset, chosen) in records.distinct() {
            let bad = check_dataset(dataset, &chosen, &processor, &options)?;
            skipped_on_open += bad.len();
            left_out.push(bad);
        }
        let records = records.without(&left_out);
        Ok(Self { skipped_on_open, ..Self::of(records, processor, options) })
    }

    /// Number of records up to which all of a dataset are checked when it is opened, which takes a few seconds.
    pub const CHECKED_WHOLE: usize = 20_000;

    /// Number of records of a larger dataset that are checked when it is opened.
    pub const CHECKED_SAMPLE: usize = 2_000;

    /// Number of records that were left out because they cannot be used, by [`open`](Self::open) and of batches.
    pub fn num_skipped(&self) -> usize {
        self.counts().skipped
    }

    /// Numbers of records that were not used as they are, so far.
    pub fn counts(&self) -> RecordCounts {
        let counts = self.outcomes().counts();
        RecordCounts { skipped: self.skipped_on_open + counts.skipped, ..counts }
    }

    /// A poisoned log is intact: threads only add to it.
    fn outcomes(&self) -> MutexGuard<'_, OutcomeLog> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of records, without those that [`open`](Self::open) left out.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// When its file has changed or cannot be read, or the record is bad.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn record(&self, index: usize) -> Result<Record, ReadError> {
        self.records.read(index)
    }

    /// The location of a record, without reading it.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn location(&self, index: usize) -> RecordLocation {
        self.records.location(index)
    }

    /// A hash of the records, with which a resumed run detects changed data; see [`Mixture::fingerprint`].
    pub fn fingerprint(&self) -> String {
        self.records.fingerprint()
    }

    /// The processor of the model.
    pub fn processor(&self) -> &Arc<Processor> {
        &self.processor
    }

    /// The options given on construction.
    pub fn options(&self) -> &DatasetOptions {
        &self.options
    }

    /// The encoded record, from the cache if it is there.
    ///
    /// # Errors
    ///
    /// When the record cannot be encoded, or is too long and cannot be made to fit as the [`LengthPolicy`] allows.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn sample(&self, index: usize) -> Result<Arc<Sample>, SampleError> {
        // A poisoned cache is intact: threads only insert.
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.records.first_index(index);
        let found = cache().get(key);
        Ok(match found {
            Some(sample) => sample,
            None => {
                let record = self.record(index)?;
                let (sample, shortening) = encode_to_fit(&record, &self.processor, &self.options)?;
                let sample = Arc::new(sample);
                if let Some(shortening) = shortening {
                    self.outcomes().add(key, &Outcome::Shortened(&record.location, shortening));
                }
                cache().insert_if_it_fits(key, &sample);
                sample
            }
        })
    }

    /// About the tokens of a record, from the length of its texts and the headers of its images, to group records by length. Videos
    /// count as nothing, as does a record that cannot be read, which is reported when it is encoded.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn estimated_len(&self, index: usize) -> usize {
        /// Of English text; others differ by a factor that does not change which of two records is longer.
        const BYTES_PER_TOKEN: usize = 4;
        let Ok(record) = self.record(index) else { return 0 };
        let text: usize =
            record.messages.iter().flat_map(|message| message.content.texts()).map(str::len).sum();
        let images = record.images().filter_map(|image| self.processor.probe_image_tokens(image));
        text / BYTES_PER_TOKEN + images.sum::<usize>()
    }

    /// The rendered record, split into text with and without loss.
    ///
    /// # Errors
    ///
    /// When the labels cannot be determined.
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn label_spans(&self, index: usize) -> Result<Vec<LabeledText>, SampleError> {
        record_spans(&self.record(index)?, &self.processor, self.options.labels)
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
    pub fn batch(&self, indices: &[usize]) -> Result<CollatedBatch, SampleError> {
        let Selection { samples, indices, dropped, skipped } = self.select(indices)?;
        let pad = self.processor.tokenizer().special().end_of_text;
        let batch = (!samples.is_empty()).then(|| Batch::collate(&samples, pad, PaddingSide::Right));
        Ok(CollatedBatch { batch, indices, dropped, skipped })
    }

    /// As [`batch`](Self::batch), with several records in a row of at most `row_length` tokens; no row is shorter than the longest
    /// record, which alone counts if `row_length` is 0.
    ///
    /// Records of a row have segment ids of their own, so each has the loss and the gradients that it has alone.
    ///
    /// # Errors
    ///
    /// The first record that cannot be encoded, or is too long and may not be dropped.
    ///
    /// # Panics
    ///
    /// When there is no record of one of the indices.
    pub fn packed_batch(&self, indices: &[usize], row_length: usize) -> Result<CollatedBatch, SampleError> {
        let Selection { samples, indices, dropped, skipped } = self.select(indices)?;
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.len()).collect();
        let rows = first_fit(&lengths, row_length);
        let indices = rows.iter().flatten().map(|place| indices[*place]).collect();
        let packed: Vec<Vec<&Sample>> =
            rows.iter().map(|row| row.iter().map(|place| &*samples[*place]).collect()).collect();
        let pad = self.processor.tokenizer().special().end_of_text;
        let batch = (!samples.is_empty()).then(|| Batch::pack(&packed, pad));
        Ok(CollatedBatch { batch, indices, dropped, skipped })
    }

    /// Encodes records, and leaves out those that may be.
    fn select(&self, indices: &[usize]) -> Result<Selection, SampleError> {
        let (mut samples, mut kept) = (Vec::new(), Vec::new());
        let (mut dropped, mut skipped) = (Vec::new(), Vec::new());
        for &index in indices {
            match self.sample(index) {
                Ok(sample) => {
                    samples.push(sample);
                    kept.push(index);
                }
                Err(error) if error.is_too_long() && self.options.on_long != LengthPolicy::Error => {
                    let reason = BadRecordError::from(error).chain();
                    self.outcomes().add(self.records.first_index(index), &Outcome::Dropped(&reason));
                    dropped.push(index);
                }
                Err(error) if self.may_skip(&error) => {
                    self.skip(index, error)?;
                    skipped.push(index);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Selection { samples, indices: kept, dropped, skipped })
    }

    fn may_skip(&self, error: &SampleError) -> bool {
        let fatal = matches!(error, SampleError::Render { source: TemplateError::Aborted { .. }, .. });
        self.options.on_bad == BadRecordPolicy::Skip && !fatal && !error.is_too_long()
    }

    /// Counts a record that is left out.
    fn skip(&self, index: usize, error: SampleError) -> Result<(), SampleError> {
        let last = BadRecordError::from(error).chain();
        self.outcomes().add(self.records.first_index(index), &Outcome::Skipped(&last));
        let skipped = self.counts().skipped;
        match self.options.max_bad {
            Some(max_bad) if skipped > max_bad => Err(SampleError::TooManyBad { skipped, max_bad, last }),
            _ => Ok(()),
        }
    }

    /// A record as a prompt with its reference answer.
    ///
    /// # Errors
    ///
    /// As [`record`](Self::record).
    ///
    /// # Panics
    ///
    /// When there is no record of that index.
    pub fn eval_example(&self, index: usize) -> Result<EvalExample, ReadError> {
        Ok(EvalExample::from_record(&self.record(index)?).expect("a record has an answer"))
    }
}

/// Checks one dataset of a mixture; the positions of bad records that have to be left out.
fn check_dataset(
    records: &Records,
    chosen: &DistinctRecords<'_>,
    processor: &Processor,
    options: &DatasetOptions,
) -> Result<BTreeSet<usize>, DatasetError> {
    let is_whole = chosen.len() <= Dataset::CHECKED_WHOLE;
    let positions: Vec<usize> = match is_whole {
        true => (0..chosen.len()).collect(),
        // Spread over the whole length, because files are often sorted by origin.
        false => (0..Dataset::CHECKED_SAMPLE).map(|at| at * chosen.len() / Dataset::CHECKED_SAMPLE).collect(),
    };
    let indices: Vec<usize> = positions.iter().map(|position| chosen.record(*position)).collect();
    let checked = check_records(records, &indices, processor, options)?;
    let good = indices.iter().zip(&checked).filter_map(|(index, keys)| Some((index, keys.as_ref().ok()?)));
    let unknown = good.filter(|(_, keys)| !keys.is_empty());
    records.warn_of_unknown_keys(unknown.map(|(index, keys)| (keys.as_slice(), records.location(*index))));
    let (mut left_out, mut bad) = (BTreeSet::new(), Vec::new());
    for (position, result) in positions.into_iter().zip(checked) {
        if let Err(error) = result {
            left_out.insert(position);
            bad.push(error);
        }
    }
    let bad = BadRecordsError { name: records.name().to_owned(), records: indices.len(), bad };
    let is_allowed = match options.on_bad {
        BadRecordPolicy::Stop => bad.bad.is_empty(),
        BadRecordPolicy::Skip => options.max_bad.is_none_or(|max_bad| bad.bad.len() <= max_bad),
    };
    if bad.bad.len() == indices.len() || !is_allowed {
        return Err(bad.into());
    }
    match (is_whole, bad.bad.is_empty()) {
        (true, false) => tracing::warn!("left out: {bad}"),
        (false, false) => tracing::warn!("of a sample of its records: {bad}"),
        _ => {}
    }
    Ok(if is_whole { left_out } else { BTreeSet::new() })
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
    fn a_batch_is_padded_on_the_right_and_has_labels_in_answers_only() {
        let data = mixed(DatasetOptions::default());

        let collated = data.batch(&[9, 0]).unwrap();

        let batch = collated.batch.unwrap();
        let lengths = [9, 0].map(|index| data.sample(index).unwrap().input_ids.len());
        assert!(lengths[0] > lengths[1]);
        assert_eq!(batch.shape, [2, lengths[0]]);
        assert_eq!(batch.num_tokens(), lengths[0] + lengths[1]);
        assert_eq!(batch.media.grids(glm4v_inputs::Modality::Image).len(), 3);
        let padding = &batch.input_ids[lengths[0] + lengths[1]..];
        let pad = data.processor().tokenizer().special().end_of_text;
        assert!(padding.iter().all(|id| *id == pad) && !padding.is_empty());
        assert!(!batch.loss_mask[lengths[0] + lengths[1]..].contains(&true));
    }

    #[test]
    fn the_estimated_length_orders_records_as_their_tokens_do() {
        let data = mixed(DatasetOptions::default());
        let lengths = |index: usize| (data.sample(index).unwrap().len(), data.estimated_len(index));
        let (digit, two_images) = (lengths(0), lengths(9));

        assert!(digit.0 < two_images.0 && digit.1 < two_images.1, "{digit:?} {two_images:?}");
        assert!(digit.1 > 4, "4 tokens of the image, and a question");
    }

    #[test]
    fn packed_records_are_those_of_the_unpacked_batch_in_fewer_rows() {
        let data = mixed(DatasetOptions::default());
        let length = |index: usize| data.sample(index).unwrap().len();
        let longest = length(9).max(length(10));

        let padded = data.batch(&[0, 9, 1, 10]).unwrap().batch.unwrap();
        let packed = data.packed_batch(&[0, 9, 1, 10], 2 * longest).unwrap();

        let batch = packed.batch.unwrap();
        let mut indices = packed.indices.clone();
        indices.sort();
        assert_eq!(indices, [0, 1, 9, 10]);
        assert!(batch.shape[0] < 4 && batch.shape[1] <= 2 * longest, "{:?}", batch.shape);
        assert_eq!(batch.num_tokens(), padded.num_tokens());
        // Each segment is its record, token for token, and images follow in the same order.
        let mut tokens = Vec::new();
        for (row, segments) in batch.segment_ids.chunks(batch.shape[1]).enumerate() {
            let mut first = row * batch.shape[1];
            for segment in segments.chunk_by(|a, b| a == b) {
                tokens.extend((segment[0] != 0).then_some(first..first + segment.len()));
                first += segment.len();
            }
        }
        let samples: Vec<_> = packed.indices.iter().map(|index| data.sample(*index).unwrap()).collect();
        let mut grids = Vec::new();
        for (range, sample) in tokens.iter().zip(&samples) {
            assert_eq!(batch.input_ids[range.clone()], sample.input_ids);
            assert_eq!(batch.loss_mask[range.clone()], sample.loss_mask);
            grids.extend_from_slice(sample.media.grids(glm4v_inputs::Modality::Image));
        }
        assert_eq!(tokens.len(), 4);
        assert_eq!(batch.media.grids(glm4v_inputs::Modality::Image), grids);
    }

    #[test]
    fn a_long_record_is_an_error_or_dropped_but_never_truncated() {
        let exact = mixed(DatasetOptions::default()).sample(0).unwrap().input_ids.len();
        let with = |on_long, max_length| {
            mixed(DatasetOptions { max_length: Some(max_length), on_long, ..Default::default() })
        };

        let error = with(LengthPolicy::Error, exact).batch(&[0, 9]).unwrap_err().to_string();
        let dropped = with(LengthPolicy::Drop, exact).batch(&[9, 0, 10]).unwrap();
        let nothing = with(LengthPolicy::Drop, exact - 1).batch(&[0, 9]).unwrap();

        assert!(error.contains("demo.json: record [1] (line 9): takes "), "{error}");
        assert!(error.contains(&format!(" tokens, max_length is {exact}; raise it")), "{error}");
        assert_eq!((dropped.indices, dropped.dropped), (vec![0], vec![9, 10]));
        assert_eq!(dropped.batch.unwrap().shape, [1, exact]);
        assert_eq!((nothing.batch, nothing.dropped), (None, vec![0, 9]));
    }

    #[test]
    fn long_records_are_counted_by_what_happened_to_them() {
        let exact = mixed(DatasetOptions::default()).sample(0).unwrap().input_ids.len();
        let with = |on_long| mixed(DatasetOptions { max_length: Some(exact), on_long, ..Default::default() });
        let (dropping, truncating) = (with(LengthPolicy::Drop), with(LengthPolicy::Truncate));

        // Record 9 has one exchange; 10 has two, and neither fits alone.
        for _epoch in 0..2 {
            dropping.batch(&[0, 9, 10]).unwrap();
            truncating.batch(&[0, 9]).unwrap();
        }

        assert_eq!(dropping.counts(), RecordCounts { dropped: 2, ..RecordCounts::default() });
        assert_eq!(truncating.counts(), RecordCounts { dropped: 1, ..RecordCounts::default() });
        let longer = mixed(DatasetOptions::default()).sample(10).unwrap().len() - 1;
        let options = DatasetOptions {
            max_length: Some(longer),
            on_long: LengthPolicy::Truncate,
            ..Default::default()
        };
        let shortening = mixed(options);
        let batch = shortening.batch(&[10]).unwrap();
        assert_eq!((batch.indices, shortening.counts().truncated), (vec![10], 1));
    }

    #[test]
    fn more_bad_records_than_allowed_end_the_batches() {
        let missing = || {
            crate::fixture::record(serde_json::json!({"messages": [{"role": "user", "content": "<image>"},
                {"role": "assistant", "content": "a"}], "images": ["none.png"]}))
        };
        let good = crate::fixture::records("digits:test").remove(0);
        let records = vec![missing(), good, missing(), missing()];
        let options =
            DatasetOptions { on_bad: BadRecordPolicy::Skip, max_bad: Some(2), ..Default::default() };
        let data = Dataset::new(records, crate::fixture::processor(), options);

        assert_eq!(data.batch(&[0, 1, 2]).unwrap().indices, [1]);
        assert_eq!(data.batch(&[0, 1, 2]).unwrap().skipped, [0, 2]);
        let error = data.batch(&[1, 3]).unwrap_err().to_string();

        let start =
            "3 records cannot be used so far, at most 2 may be left out; the last one: x.jsonl: line 7: ";
        assert!(error.starts_with(start), "{error}");
    }

    #[test]
    fn the_prompt_of_an_eval_example_is_the_sample_before_its_answer() {
        let data = mixed(DatasetOptions::default());
        let example = data.eval_example(0).unwrap();

        let prompt = data
            .processor()
            .encode(&example.prompt, &glm4v_processor::ChatTemplateOptions::generation_prompt())
            .unwrap();

        let sample = data.sample(0).unwrap();
        let first_label = sample.loss_mask.iter().position(|label| *label).unwrap();
        assert_eq!(prompt.input_ids, sample.input_ids[..first_label]);
        assert_eq!(prompt.media, sample.media);
    }
}
