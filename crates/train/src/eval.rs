//! Evaluation: loss, and exact match of generated answers.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

use glm4v_data::{Dataset, EvalExample, SampleError};
use glm4v_model::{ComputeError, Glm4v};

use crate::error::TrainError;
use crate::loss::causal_lm_loss;

/// A generated answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedAnswer {
    /// The text, without special tokens.
    pub text: String,
    /// Whether the model ended it with a stop token; if not, it was truncated.
    pub finished: bool,
}

/// Generates answers for an evaluation. This crate has no generation: the caller of a run implements it.
pub trait EvalGenerator {
    /// Error of the generation, which becomes the source of [`TrainError::Generate`].
    type Error: Error + Send + Sync + 'static;

    /// Generates one answer for each example, in order.
    ///
    /// # Errors
    ///
    /// When a prompt cannot be encoded or the model fails.
    fn generate(
        &mut self,
        model: &Glm4v,
        examples: &[EvalExample],
    ) -> Result<Vec<GeneratedAnswer>, Self::Error>;
}

/// An example with the generated answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Prompt and expected answer.
    pub example: EvalExample,
    /// The generated answer.
    pub generation: GeneratedAnswer,
}

impl Prediction {
    /// Whether the generated answer equals the expected one, and is not truncated.
    pub fn is_correct(&self) -> bool {
        self.generation.finished && self.generation.text.trim() == self.example.answer.trim()
    }
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalOutput {
    /// Mean cross entropy over all label tokens; none if every record was left out.
    pub loss: Option<f64>,
    /// One per example, in the order of the dataset.
    pub predictions: Vec<Prediction>,
    /// Records left out as too long.
    pub dropped: usize,
    /// Records left out as bad (`data.on_bad`).
    pub skipped: usize,
}

impl EvalOutput {
    /// Number of correct predictions.
    pub fn correct(&self) -> usize {
        self.predictions.iter().filter(|prediction| prediction.is_correct()).count()
    }

    /// Exact match, loss and omitted records in one line of text.
    pub fn summary(&self) -> String {
        let left_out = left_out(self.dropped, "too long") + &left_out(self.skipped, "bad");
        let result = match (self.exact_match(), self.loss) {
            (Some(share), Some(loss)) => {
                let (correct, all) = (self.correct(), self.predictions.len());
                format!("exact match: {correct} of {all} ({:.1} %), loss {loss:.4}", 100.0 * share)
            }
            _ => "exact match: none, as no record was evaluated".to_owned(),
        };
        result + &left_out
    }

    /// Share of correct predictions; none without any.
    pub fn exact_match(&self) -> Option<f64> {
        let all = self.predictions.len();
        (all > 0).then(|| self.correct() as f64 / all as f64)
    }
}

fn left_out(records: usize, reason: &str) -> String {
    match records {
        0 => String::new(),
        1 => format!("; 1 record left out as {reason}"),
        records => format!("; {records} records left out as {reason}"),
    }
}

/// Settings of [`evaluate`].
#[derive(Debug, Clone, Copy)]
pub struct EvalOptions<'a> {
    /// Records per batch.
    pub batch_size: usize,
    /// Cancels the evaluation when it turns true.
    pub stop: &'a AtomicBool,
}

impl EvalOptions<'_> {
    fn is_cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Evaluates a model without gradients on a whole dataset; none if it was cancelled, since truncated answers are no
/// measure of the model.
///
/// `progress` is called after each batch with the number of records done.
///
/// # Errors
///
/// When a record cannot be encoded, or generation fails.
pub fn evaluate<G: EvalGenerator>(
    model: &Glm4v,
    dataset: &Dataset,
    generator: &mut G,
    options: EvalOptions<'_>,
    mut progress: impl FnMut(usize),
) -> Result<Option<EvalOutput>, TrainError> {
    let indices: Vec<usize> = (0..dataset.len()).collect();
    let (mut loss_sum, mut weight, mut dropped) = (0.0, 0.0, 0);
    let mut predictions = Vec::with_capacity(indices.len());
    for indices in indices.chunks(options.batch_size.max(1)) {
        if options.is_cancelled() {
            return Ok(None);
        }
        let collated = dataset.batch(indices)?;
        dropped += collated.dropped.len();
        // Without a batch every record of it was left out.
        if let Some(batch) = collated.batch {
            if options.is_cancelled() {
                return Ok(None);
            }
            let loss = causal_lm_loss(model, &batch)?;
            weight += loss.weight;
            loss_sum += f64::from(loss.sum.try_into_scalar::<f32>().map_err(ComputeError::from)?);
            if options.is_cancelled() {
                return Ok(None);
            }
            let examples = collated.indices.iter().map(|index| dataset.eval_example(*index));
            let examples = examples.collect::<Result<_, _>>().map_err(SampleError::from)?;
            predictions.extend(predict(model, examples, generator)?);
        }
        if options.is_cancelled() {
            return Ok(None);
        }
        progress(predictions.len() + dropped);
    }
    let loss = (weight > 0.0).then(|| loss_sum / weight);
    Ok(Some(EvalOutput { loss, predictions, dropped, skipped: dataset.num_skipped() }))
}

/// Generates the answers of one batch.
fn predict<G: EvalGenerator>(
    model: &Glm4v,
    examples: Vec<EvalExample>,
    generator: &mut G,
) -> Result<Vec<Prediction>, TrainError> {
    let generations = generator.generate(model, &examples);
    let generations = generations.map_err(|error| TrainError::Generate(Box::new(error)))?;
    let pairs = examples.into_iter().zip(generations);
    Ok(pairs.map(|(example, generation)| Prediction { example, generation }).collect())
}
