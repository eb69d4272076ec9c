//! Finds the records that cannot be used before a run depends on them.
//!
//! Every record is read and rendered, what it teaches is found, its places for media are counted, and its files are looked at:
//! that they are there, are images, and how large they are. Pixels are not decoded, so that a hundred thousand records
//! take seconds.

use std::error::Error;
use std::fmt;

use glm4v_processor::{Processor, TemplateError};
use rayon::prelude::*;

use crate::dataset::{DatasetOptions, Overlong};
use crate::reader::ReadError;
use crate::record::Record;
use crate::sample::{SampleError, label};

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecord {
    /// It is not understood.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be encoded.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

impl BadRecord {
    /// The error and its causes in a line, each said once.
    pub fn chain(&self) -> String {
        let mut said = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.contains(&text) {
                said = format!("{said}: {text}");
            }
            next = cause.source();
        }
        said
    }
}

/// The records of a dataset that cannot be used, in its order.
#[derive(Debug)]
pub struct BadRecords {
    /// The dataset.
    pub name: String,
    /// All its records.
    pub records: usize,
    /// Those that cannot be used.
    pub bad: Vec<BadRecord>,
}

impl BadRecords {
    /// Records that are named.
    const NAMED: usize = 10;

    /// How many, of how many.
    pub fn count(&self) -> String {
        match (self.bad.len(), self.records) {
            (1, 1) => "its one record cannot be used".to_owned(),
            (bad, records) if bad == records => format!("none of {records} records can be used"),
            (bad, records) => format!("{bad} of {records} records cannot be used"),
        }
    }
}

impl fmt::Display for BadRecords {
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

impl Error for BadRecords {}

/// The records that can be used, and why the others cannot.
///
/// # Errors
///
/// When the chat template takes too much: what it took is not given back before the program ends, so no second record may
/// be tried.
pub(crate) fn sift(
    read: Vec<Result<Record, ReadError>>,
    processor: &Processor,
    options: &DatasetOptions,
) -> Result<(Vec<Record>, Vec<BadRecord>), SampleError> {
    let checked: Result<Vec<Result<Record, BadRecord>>, SampleError> = read
        .into_par_iter()
        .map(|record| {
            let record = match record {
                Ok(record) => record,
                Err(error) => return Ok(Err(error.into())),
            };
            match check(&record, processor, options) {
                Ok(()) => Ok(Ok(record)),
                Err(SampleError::Render { at, source: source @ TemplateError::Stopped { .. } }) => {
                    Err(SampleError::Render { at, source })
                }
                Err(error) => Ok(Err(error.into())),
            }
        })
        .collect();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for record in checked? {
        match record {
            Ok(record) => good.push(record),
            Err(error) => bad.push(error),
        }
    }
    Ok((good, bad))
}

/// Looks at one record.
fn check(record: &Record, processor: &Processor, options: &DatasetOptions) -> Result<(), SampleError> {
    let segments = label(record, processor, options.enable_thinking)?;
    let (images, videos): (Vec<_>, Vec<_>) = (record.images().collect(), record.videos().collect());
    let problem = |source| SampleError::Process { at: record.at.clone(), source: Box::new(source) };
    let of_images = processor.probe_segments(&segments, &images, &videos).map_err(problem)?;
    let Some(max_length) = options.max_length.filter(|_| options.overlong == Overlong::Error) else {
        return Ok(());
    };
    // Media of unknown size are left to encoding; each takes one token at least, which stands for it here.
    let media: usize = of_images.iter().map(|tokens| tokens.unwrap_or(1).saturating_sub(1)).sum();
    // No token is shorter than a byte.
    if media + segments.iter().map(|segment| segment.text.len()).sum::<usize>() <= max_length {
        return Ok(());
    }
    let mut tokens = media;
    for segment in &segments {
        // Counted to the end where that is soon: megabytes of text would take minutes.
        let ids = processor.tokenizer().encode_within(&segment.text, max_length.saturating_mul(2));
        let Some(ids) = ids.map_err(|source| problem(source.into()))? else {
            return Err(SampleError::FarTooLong { at: record.at.clone(), max_tokens: max_length });
        };
        tokens += ids.len();
    }
    if tokens > max_length {
        return Err(SampleError::TooLong { at: record.at.clone(), tokens, max_length });
    }
    Ok(())
}
