//! Implements `train`'s generator trait with greedy decoding from `infer`.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use glm4v_data::EvalItem;
use glm4v_infer::{Finish, GenerateError, GenerationConfig, generate, prompt_sample};
use glm4v_model::{Batch, Glm4v, PaddingSide};
use glm4v_processor::{Processor, ProcessorError, RenderOptions};
use glm4v_train::{Answer, Answering};

/// Answers greedily, a batch at a time.
pub(crate) struct Greedy<'a> {
    /// Encodes the questions.
    pub(crate) processor: &'a Processor,
    /// How long answers may get, and what ends them.
    pub(crate) config: GenerationConfig,
    /// Ends the answers at hand when it turns true.
    pub(crate) stop: &'a AtomicBool,
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnsweringError {
    /// It cannot be encoded.
    #[error("{at}")]
    Encode {
        /// The record.
        at: String,
        /// What is wrong with it.
        source: ProcessorError,
    },
    /// The model failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

impl Answering for Greedy<'_> {
    type Error = AnsweringError;

    fn answer(&mut self, model: &Glm4v, items: &[EvalItem]) -> Result<Vec<Answer>, AnsweringError> {
        let mut samples = Vec::with_capacity(items.len());
        for item in items {
            let options = RenderOptions { tools: item.tools.clone(), ..RenderOptions::prompt() };
            let encoded = self
                .processor
                .encode(&item.prompt, &options)
                .map_err(|source| AnsweringError::Encode { at: item.at.to_string(), source })?;
            samples.push(prompt_sample(encoded));
        }
        let tokenizer = self.processor.tokenizer();
        let batch = Batch::collate(&samples, tokenizer.special().end_of_text, PaddingSide::Left);
        let answers =
            generate(model, &batch, &self.config, |_, _| match self.stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })?;
        Ok(answers
            .into_iter()
            .map(|answer| Answer {
                text: tokenizer.decode(&answer.ids, true),
                ended: answer.finish == Finish::Stop,
            })
            .collect())
    }
}
