//! Finds the records that cannot be used before a run depends on them.
//!
//! Every record is parsed and rendered, its labels are found, its placeholders counted, and the headers of its media files read:
//! they exist, have a known format and a size. Pixels are not decoded, so that a hundred thousand records take seconds.

use std::error::Error;
use std::fmt;

use glm4v_processor::{LabeledText, Processor, ProcessorError, TemplateError};
use rayon::prelude::*;

use crate::options::{DatasetOptions, LengthPolicy};
use crate::reader::ReadError;
use crate::record::Record;
use crate::records::Records;
use crate::sample::{SampleError, record_spans};

/// Error of a record that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecordError {
    /// The record cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The record cannot be encoded.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

impl BadRecordError {
    /// The error and its causes on one line, without repetitions.
    pub fn chain(&self) -> String {
        let mut chain = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !chain.contains(&text) {
                chain = format!("{chain}: {text}");
            }
            next = cause.source();
        }
        chain
    }
}

/// The records of a dataset that cannot be used, in order.
#[derive(Debug)]
pub struct BadRecordsError {
    /// Name of the dataset.
    pub name: String,
    /// Number of all its records.
    pub records: usize,
    /// The error of each bad record.
    pub bad: Vec<BadRecordError>,
}

impl BadRecordsError {
    /// Maximum number of errors in the message.
    const NAMED: usize = 10;

    /// The number of bad records and of all, as a sentence.
    pub fn count(&self) -> String {
        match (self.bad.len(), self.records) {
            (1, 1) => "its one record cannot be used".to_owned(),
            (bad, records) if bad == records => format!("none of {records} records can be used"),
            (bad, records) => format!("{bad} of {records} records cannot be used"),
        }
    }
}

impl fmt::Display for BadRecordsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.count())?;
        for bad in self.bad.iter().take(Self::NAMED) {
            write!(f, "\n  {}", bad.chain())?;
        }
        match self.bad.len().saturating_sub(Self::NAMED) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

impl Error for BadRecordsError {}

/// Checks records of a dataset; for each its unknown keys, or why it cannot be used.
///
/// # Errors
///
/// When the chat template exceeds its limits: its memory is only freed when the program ends, so no other record may be rendered.
pub(crate) fn check_records(
    records: &Records,
    indices: &[usize],
    processor: &Processor,
    options: &DatasetOptions,
) -> Result<Vec<Result<Vec<String>, BadRecordError>>, SampleError> {
    let checked = indices.par_iter().map(|index| match records.read(*index) {
        Ok(record) => check_unless_aborted(record, processor, options),
        Err(error) => Ok(Err(error.into())),
    });
    checked.collect()
}

/// The outer error ends the check of all records.
fn check_unless_aborted(
    record: Record,
    processor: &Processor,
    options: &DatasetOptions,
) -> Result<Result<Vec<String>, BadRecordError>, SampleError> {
    match check_record(&record, processor, options) {
        Ok(()) => Ok(Ok(record.unknown_keys)),
        Err(error @ SampleError::Render { source: TemplateError::Aborted { .. }, .. }) => Err(error),
        Err(error) => Ok(Err(error.into())),
    }
}

fn check_record(record: &Record, processor: &Processor, options: &DatasetOptions) -> Result<(), SampleError> {
    let spans = record_spans(record, processor, options.labels)?;
    let (images, videos): (Vec<_>, Vec<_>) = (record.images().collect(), record.videos().collect());
    let media_tokens =
        processor.check_spans(&spans, &images, &videos).map_err(|source| process_error(record, source))?;
    match options.max_length {
        Some(max_length) if options.on_long == LengthPolicy::Error => {
            // The size of some media is known after decoding only, so they count as 1. Every item has 1 placeholder in the text.
            let added = media_tokens.iter().map(|tokens| tokens.unwrap_or(1).saturating_sub(1)).sum();
            check_length(record, processor, &spans, added, max_length)
        }
        _ => Ok(()),
    }
}

/// Counts the tokens of a rendered record. `added` tokens are those of media beyond their placeholders in the text.
fn check_length(
    record: &Record,
    processor: &Processor,
    spans: &[LabeledText],
    added: usize,
    max_length: usize,
) -> Result<(), SampleError> {
    // A token has at least one byte.
    if added + spans.iter().map(|span| span.text.len()).sum::<usize>() <= max_length {
        return Ok(());
    }
    let mut tokens = added;
    for span in spans {
        // Limited, because tokenizing megabytes of text takes minutes.
        let ids = processor.tokenizer().encode_within(&span.text, max_length.saturating_mul(2));
        let Some(ids) = ids.map_err(|source| process_error(record, source.into()))? else {
            let location = record.location.clone();
            return Err(SampleError::FarTooLong { location, max_tokens: max_length });
        };
        tokens += ids.len();
    }
    if tokens > max_length {
        return Err(SampleError::TooLong { location: record.location.clone(), tokens, max_length });
    }
    Ok(())
}

fn process_error(record: &Record, source: ProcessorError) -> SampleError {
    SampleError::Process { location: record.location.clone(), source: source.into() }
}
