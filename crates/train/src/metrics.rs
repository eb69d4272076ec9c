//! `metrics.jsonl`: one object per step, and one per evaluation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use glm4v_data::RecordCounts;
use glm4v_files::read_text;
use glm4v_weights::{WeightsError, write_file};
use serde::{Deserialize, Serialize};

/// Metrics of a training step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Steps done, this one included.
    pub step: usize,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Mean cross entropy over the label tokens of the batch, before the step.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens of the batch with image tokens, without padding.
    pub tokens: usize,
    /// Share of padding among the positions of the batch.
    pub padding: f64,
    /// `tokens` divided by `step_time`.
    pub tokens_per_second: f64,
    /// Duration of the step in seconds, without `data_time`.
    pub step_time: f64,
    /// Seconds that the step waited for its batch.
    pub data_time: f64,
}

/// Metrics of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// Training steps of the evaluated weights.
    pub step: usize,
    /// Mean cross entropy over all label tokens; null if every record was left out.
    pub eval_loss: Option<f64>,
    /// Share of answers that match exactly; null if every record was left out.
    pub exact_match: Option<f64>,
    /// Number of evaluated answers.
    pub samples: usize,
    /// Records left out as too long.
    pub dropped: usize,
}

/// Numbers of training records that were not used as they are, once at the end of a process; only if there are any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordMetrics {
    /// Steps done.
    pub step: usize,
    /// Records left out as too long.
    pub records_dropped: usize,
    /// Records left out as bad.
    pub records_skipped: usize,
    /// Records with smaller images.
    pub records_shrunk: usize,
    /// Records with fewer turns.
    pub records_truncated: usize,
}

impl RecordMetrics {
    pub(crate) fn new(step: usize, counts: RecordCounts) -> Self {
        Self {
            step,
            records_dropped: counts.dropped,
            records_skipped: counts.skipped,
            records_shrunk: counts.shrunk,
            records_truncated: counts.truncated,
        }
    }
}

/// Progress of a run according to its `metrics.jsonl`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LoggedProgress {
    /// Last step; 0 without one.
    pub(crate) step: usize,
    /// Step of the last evaluation.
    pub(crate) evaluated: Option<usize>,
}

/// Maximum size of a `metrics.jsonl`, in bytes: some ten million steps.
const MAX_METRICS_BYTES: u64 = 2 << 30;

impl LoggedProgress {
    /// Reads a `metrics.jsonl`; no progress if there is none.
    pub(crate) fn read(path: &Path) -> Self {
        let text = read_text(path, MAX_METRICS_BYTES).unwrap_or_default();
        let mut progress = Self::default();
        for line in text.lines().filter_map(|line| serde_json::from_str::<LogLine>(line).ok()) {
            progress.step = progress.step.max(line.step);
            if line.samples.is_some() {
                progress.evaluated = progress.evaluated.max(Some(line.step));
            }
        }
        progress
    }
}

/// Common part of [`StepMetrics`] and [`EvalMetrics`]; `samples` is a key of evaluations alone.
#[derive(Deserialize)]
struct LogLine {
    step: usize,
    samples: Option<usize>,
}

/// Writer of a `metrics.jsonl`, which appends complete lines.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens the file and removes the lines of steps after `step`, which a resumed run repeats.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written.
    pub fn open(path: &Path, step: usize) -> Result<Self, WeightsError> {
        let io =
            |action: &'static str| move |source| WeightsError::Io { path: path.to_owned(), action, source };
        if path.exists() {
            let text = read_text(path, MAX_METRICS_BYTES)?;
            let kept: String = text
                .lines()
                .filter(|line| serde_json::from_str::<LogLine>(line).is_ok_and(|line| line.step <= step))
                .flat_map(|line| [line, "\n"])
                .collect();
            write_file(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io("write"))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends an entry as one line.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&mut self, entry: &impl Serialize) -> Result<(), WeightsError> {
        let mut line = serde_json::to_vec(entry).expect("metrics have no value that JSON cannot express");
        line.push(b'\n');
        let written = self.file.write_all(&line);
        written.map_err(|source| WeightsError::Io { path: self.path.clone(), action: "write", source })
    }
}
