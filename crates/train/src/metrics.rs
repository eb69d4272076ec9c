//! `metrics.jsonl`: one object a step, and one an evaluation.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use glm4v_files::read_text;
use glm4v_weights::{WeightsError, write_file};
use serde::{Deserialize, Serialize};

/// What a step did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps done with this one.
    pub step: usize,
    /// Times that the data was gone through, as a fraction.
    pub epoch: f64,
    /// Mean cross entropy over the label tokens of the batch, before the step.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Tokens of the batch, images included, padding not.
    pub tokens: usize,
    /// Tokens over the time of the step.
    pub tokens_per_second: f64,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalSummary {
    /// Steps done before.
    pub step: usize,
    /// Mean cross entropy over all label tokens; null if every record was left out.
    pub eval_loss: Option<f64>,
    /// Share of answers that are right to the letter; null if every record was left out.
    pub exact_match: Option<f64>,
    /// Answers evaluated.
    pub samples: usize,
    /// Records left out as too long.
    pub dropped: usize,
}

/// How far a `metrics.jsonl` goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The last step; 0 without one.
    pub(crate) step: usize,
    /// The step after which there was the last evaluation.
    pub(crate) evaluated: Option<usize>,
}

/// Longest `metrics.jsonl`, in bytes: some ten million steps.
const LONGEST: u64 = 2 << 30;

/// What is in a `metrics.jsonl`; nothing without one.
pub(crate) fn progress(path: &Path) -> Progress {
    let text = read_text(path, LONGEST).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines.fold(Progress::default(), |found, line| Progress {
        step: found.step.max(line.step),
        evaluated: if line.samples.is_some() {
            found.evaluated.max(Some(line.step))
        } else {
            found.evaluated
        },
    })
}

/// What tells a line of a step from one of an evaluation.
#[derive(Deserialize)]
struct Line {
    step: usize,
    samples: Option<usize>,
}

/// Appends lines to a run's `metrics.jsonl`, each whole.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file and forgets what it holds of steps after `step`: a resumed run makes them again.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written.
    pub fn open(path: &Path, step: usize) -> Result<Self, WeightsError> {
        let io =
            |action: &'static str| move |source| WeightsError::Io { path: path.to_owned(), action, source };
        if path.exists() {
            let text = read_text(path, LONGEST)?;
            let kept: String = text
                .lines()
                .filter(|line| serde_json::from_str::<Line>(line).is_ok_and(|line| line.step <= step))
                .flat_map(|line| [line, "\n"])
                .collect();
            write_file(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io("write"))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a line.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&mut self, entry: &impl Serialize) -> Result<(), WeightsError> {
        let mut line = serde_json::to_vec(entry).expect("metrics are plain numbers");
        line.push(b'\n');
        let written = self.file.write_all(&line);
        written.map_err(|source| WeightsError::Io { path: self.path.clone(), action: "write", source })
    }
}
