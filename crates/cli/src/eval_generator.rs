//! [`EvalGenerator`] of `train`, implemented with greedy decoding from `infer`.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use glm4v_data::EvalExample;
use glm4v_infer::{FinishReason, GenerateError, GeneratedTokens, GenerationConfig, generate};
use glm4v_model::{Batch, Glm4v, PaddingSide};
use glm4v_processor::{ChatTemplateOptions, Processor, ProcessorError};
use glm4v_train::{EvalGenerator, GeneratedAnswer};

/// Generates answers greedily, a batch at a time.
pub(crate) struct GreedyGenerator<'a> {
    /// Tokenizer, chat template and image preprocessing of the prompts.
    pub(crate) processor: &'a Processor,
    /// Maximum number of new tokens, and stop tokens.
    pub(crate) config: GenerationConfig,
    /// Cancels the generation when it turns true.
    pub(crate) stop: &'a AtomicBool,
}

/// Why an answer cannot be generated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EvalGenerateError {
    /// The prompt cannot be encoded.
    #[error("{at}")]
    Encode {
        /// File and line of the record.
        at: String,
        /// Why the processor refuses it.
        source: ProcessorError,
    },
    /// The model failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}

impl EvalGenerator for GreedyGenerator<'_> {
    type Error = EvalGenerateError;

    fn generate(
        &mut self,
        model: &Glm4v,
        examples: &[EvalExample],
    ) -> Result<Vec<GeneratedAnswer>, EvalGenerateError> {
        let mut samples = Vec::with_capacity(examples.len());
        for example in examples {
            let options = ChatTemplateOptions {
                tools: example.tools.clone(),
                ..ChatTemplateOptions::generation_prompt()
            };
            let sample = self.processor.encode(&example.prompt, &options);
            let failed = |source| EvalGenerateError::Encode { at: example.location.to_string(), source };
            samples.push(sample.map_err(failed)?);
        }
        let tokenizer = self.processor.tokenizer();
        let batch = Batch::collate(&samples, tokenizer.special().end_of_text, PaddingSide::Left);
        let answers = generate(model, &batch, &self.config, |_, _| self.control_flow())?;
        let generation = |answer: GeneratedTokens| GeneratedAnswer {
            text: tokenizer.decode(&answer.ids, true),
            finished: answer.finish_reason == FinishReason::Stop,
        };
        Ok(answers.into_iter().map(generation).collect())
    }
}

impl GreedyGenerator<'_> {
    fn control_flow(&self) -> ControlFlow<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
