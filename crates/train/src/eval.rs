//! Examination: loss, and answers generated for real.

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
pub struct Examined {
    /// The question.
    pub item: EvalItem,
    /// What the model said.
    pub answer: Answer,
}

impl Examined {
    /// Whether the answer is right to the letter, and ended.
    pub fn is_right(&self) -> bool {
        self.answer.ended && self.answer.text.trim() == self.item.answer.trim()
    }
}

/// The result of an examination.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalReport {
    /// Mean cross entropy over all taught tokens.
    pub loss: f64,
    /// Every question with its answer.
    pub examined: Vec<Examined>,
    /// Records left out as too long.
    pub dropped: usize,
}

impl EvalReport {
    /// Answers that are right.
    pub fn right(&self) -> usize {
        self.examined.iter().filter(|examined| examined.is_right()).count()
    }

    /// The result in a line.
    pub fn summary(&self) -> String {
        let left_out = match self.dropped {
            0 => String::new(),
            1 => "; 1 record left out as too long".to_owned(),
            records => format!("; {records} records left out as too long"),
        };
        format!(
            "exact match: {} of {} ({:.1} %), loss {:.4}{left_out}",
            self.right(),
            self.examined.len(),
            100.0 * self.exact_match(),
            self.loss
        )
    }

    /// Share of answers that are right.
    pub fn exact_match(&self) -> f64 {
        self.right() as f64 / self.examined.len().max(1) as f64
    }
}

/// Examines a model, without gradients, on a whole data set, `batch_size` records at a time; none once `stop` is true,
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
    let mut examined = Vec::with_capacity(indices.len());
    let mut dropped = 0;
    for part in indices.chunks(batch_size) {
        let collated = dataset.batch(part)?;
        dropped += collated.dropped.len();
        if let Some(batch) = collated.batch {
            let targets = Targets::of(&batch);
            let mean = loss(model, &batch, &targets)?.try_into_scalar::<f32>();
            let mean = mean.map_err(ComputeError::from)?;
            total += f64::from(mean) * targets.ids.len() as f64;
            count += targets.ids.len();
        }
        let items: Vec<EvalItem> =
            collated.indices.iter().filter_map(|index| EvalItem::of(&dataset.records()[*index])).collect();
        let answers =
            answering.answer(model, &items).map_err(|error| TrainError::Answering(Box::new(error)))?;
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        examined.extend(items.into_iter().zip(answers).map(|(item, answer)| Examined { item, answer }));
        progress(examined.len());
    }
    Ok(Some(EvalReport { loss: total / count.max(1) as f64, examined, dropped }))
}
