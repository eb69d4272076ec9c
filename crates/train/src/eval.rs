//! Evaluation: loss, and answers generated for real.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

use glm4v_data::{Dataset, EvalItem};
use glm4v_model::{ComputeError, Glm4v};

use crate::TrainError;
use crate::loss::{Targets, loss};

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The text, without special tokens.
    pub text: String,
    /// Whether the model ended the answer itself.
    pub ended: bool,
}

/// Generates answers. `train` does not generate by itself: whoever starts a run hands this in.
pub trait Answering {
    /// Why no answers could be generated.
    type Error: Error + Send + Sync + 'static;

    /// Answers every question, in order.
    ///
    /// # Errors
    ///
    /// When a question cannot be encoded or the model fails.
    fn answer(&mut self, model: &Glm4v, items: &[EvalItem]) -> Result<Vec<Answer>, Self::Error>;
}

/// A question with the right answer and the one that was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The question.
    pub item: EvalItem,
    /// What the model said.
    pub answer: Answer,
}

impl Prediction {
    /// Whether the answer is right to the letter, and ended.
    pub fn is_correct(&self) -> bool {
        self.answer.ended && self.answer.text.trim() == self.item.answer.trim()
    }
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalReport {
    /// Mean cross entropy over all label tokens; none if every record was left out.
    pub loss: Option<f64>,
    /// Every question with its answer.
    pub predictions: Vec<Prediction>,
    /// Records left out as too long.
    pub dropped: usize,
    /// Records left out as they cannot be used.
    pub skipped: usize,
}

impl EvalReport {
    /// Answers that are right.
    pub fn correct(&self) -> usize {
        self.predictions.iter().filter(|prediction| prediction.is_correct()).count()
    }

    /// The result in a line.
    pub fn summary(&self) -> String {
        let left_out = |records: usize, why: &str| match records {
            0 => String::new(),
            1 => format!("; 1 record left out as {why}"),
            records => format!("; {records} records left out as {why}"),
        };
        let left_out = left_out(self.dropped, "too long") + &left_out(self.skipped, "bad");
        let result = match (self.exact_match(), self.loss) {
            (Some(share), Some(loss)) => {
                let (right, all) = (self.correct(), self.predictions.len());
                format!("exact match: {right} of {all} ({:.1} %), loss {loss:.4}", 100.0 * share)
            }
            _ => "exact match: none, as no record was evaluated".to_owned(),
        };
        result + &left_out
    }

    /// Share of answers that are right; none without answers.
    pub fn exact_match(&self) -> Option<f64> {
        let all = self.predictions.len();
        (all > 0).then(|| self.correct() as f64 / all as f64)
    }
}

/// Evaluates a model, without gradients, on a whole dataset, `batch_size` records at a time; none once `stop` is true,
/// since answers that were cut short say nothing about the model.
///
/// # Errors
///
/// When a record cannot be encoded, or answering fails.
pub fn evaluate<A: Answering>(
    model: &Glm4v,
    dataset: &Dataset,
    batch_size: usize,
    answering: &mut A,
    stop: &AtomicBool,
    mut progress: impl FnMut(usize),
) -> Result<Option<EvalReport>, TrainError> {
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let (mut total, mut count) = (0.0, 0usize);
    let mut predictions = Vec::with_capacity(indices.len());
    let mut dropped = 0;
    let stopped = || stop.load(Ordering::Relaxed);
    for part in indices.chunks(batch_size.max(1)) {
        if stopped() {
            return Ok(None);
        }
        let collated = dataset.batch(part)?;
        dropped += collated.dropped.len();
        // Without a batch every record of it was left out.
        if let Some(batch) = collated.batch {
            if stopped() {
                return Ok(None);
            }
            let targets = Targets::of(&batch);
            let mean = loss(model, &batch, &targets)?.try_into_scalar::<f32>();
            let mean = mean.map_err(ComputeError::from)?;
            total += f64::from(mean) * targets.ids.len() as f64;
            count += targets.ids.len();
            if stopped() {
                return Ok(None);
            }
            let records = collated.indices.iter().map(|index| &dataset.records()[*index]);
            let items: Vec<EvalItem> = records.filter_map(EvalItem::of).collect();
            let answers = answering.answer(model, &items);
            let answers = answers.map_err(|error| TrainError::Answering(Box::new(error)))?;
            predictions
                .extend(items.into_iter().zip(answers).map(|(item, answer)| Prediction { item, answer }));
        }
        if stopped() {
            return Ok(None);
        }
        progress(predictions.len() + dropped);
    }
    let loss = (count > 0).then(|| total / count as f64);
    Ok(Some(EvalReport { loss, predictions, dropped, skipped: dataset.left_out() }))
}
