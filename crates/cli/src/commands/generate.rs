//! `glm4v generate`

use std::io::{self, Write, stdout};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use glm4v_infer::{
    FinishReason, GeneratedTokens, GenerationConfig, SamplingParams, StopStrings, TextStreamer,
    generate as run,
};
use glm4v_model::{Batch, PaddingSide};
use glm4v_processor::Tokenizer;
use glm4v_weights::ModelFolder;
use serde_json::json;

use super::{load_model, open_model, print_line};
use crate::args::{Generate, Global};
use crate::interrupt::Interrupted;
use crate::{device, interrupt};

pub(crate) fn generate(args: &Generate, global: &Global) -> anyhow::Result<()> {
    let (device_spec, precision) = device::open(global)?;
    let (model_dir, processor) = open_model(&args.model)?;
    let config = generation_config(args, &model_dir)?;
    let processor = args.inputs.apply(processor);
    let sample = processor.encode(&args.prompt.messages()?, &args.rendering.options()?)?;
    let tokenizer = processor.tokenizer();
    let batch = Batch::collate(&[sample], tokenizer.special().end_of_text, PaddingSide::Left);
    let model = load_model(&model_dir, args.adapter.as_deref(), &device_spec, precision, global.quiet)?;

    let mut output = StreamedOutput::new(args, tokenizer, interrupt::stop_flag("stopping"));
    let mut generated = run(&model, &batch, &config, |_, id| output.push(id))?;
    let generated = generated.remove(0);
    let completion = output.finish(generated)?;
    if args.json {
        completion.print_json(batch.num_tokens())?;
    } else {
        completion.print_end(batch.num_tokens(), args, global)?;
    }
    match completion.interrupted {
        true => Err(Interrupted { missing: "stopped before the answer was complete" }.into()),
        false => Ok(()),
    }
}

/// Settings of `generation_config.json`, overridden by flags.
fn generation_config(args: &Generate, model_dir: &ModelFolder) -> anyhow::Result<GenerationConfig> {
    let mut config =
        GenerationConfig::from_folder(model_dir.path(), model_dir.config(), args.max_new_tokens)?;
    let sampling = &mut config.sampling;
    if args.greedy {
        *sampling =
            SamplingParams { repetition_penalty: sampling.repetition_penalty, ..SamplingParams::greedy() };
    }
    sampling.temperature = args.temperature.unwrap_or(sampling.temperature);
    sampling.top_p = args.top_p.unwrap_or(sampling.top_p);
    sampling.top_k = args.top_k.unwrap_or(sampling.top_k);
    sampling.min_p = args.min_p.unwrap_or(sampling.min_p);
    sampling.repetition_penalty = args.repetition_penalty.unwrap_or(sampling.repetition_penalty);
    config.seed = args.seed;
    config.check()?;
    Ok(config)
}

/// Prints the text while it is generated, up to a stop string.
struct StreamedOutput<'a> {
    stream: TextStreamer<'a>,
    text: StopStrings,
    is_printed: bool,
    interrupted: &'a AtomicBool,
    start: Instant,
    first_token: Option<Duration>,
    error: Option<io::Error>,
}

impl<'a> StreamedOutput<'a> {
    fn new(args: &Generate, tokenizer: &'a Tokenizer, interrupted: &'a AtomicBool) -> Self {
        Self {
            stream: TextStreamer::new(tokenizer),
            text: StopStrings::new(&args.stop),
            is_printed: !args.json,
            interrupted,
            start: Instant::now(),
            first_token: None,
            error: None,
        }
    }

    fn push(&mut self, id: u32) -> ControlFlow<()> {
        self.first_token.get_or_insert_with(|| self.start.elapsed());
        let text = self.text.push(&self.stream.push(id));
        if self.is_printed && !text.is_empty() {
            self.error = write!(stdout(), "{text}").and_then(|()| stdout().flush()).err();
        }
        let interrupted = self.interrupted.load(Ordering::Relaxed);
        match self.text.is_stopped() || self.error.is_some() || interrupted {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn finish(mut self, generated: GeneratedTokens) -> anyhow::Result<Completion> {
        let elapsed = self.start.elapsed();
        if let Some(error) = self.error {
            return Err(error).context("cannot write to stdout");
        }
        let mut unprinted = String::new();
        // A cancelled text ends with its last complete character.
        if generated.finish_reason != FinishReason::Cancelled {
            unprinted.push_str(self.text.push(&self.stream.finish()));
        }
        unprinted.push_str(self.text.finish());
        let interrupted = self.interrupted.load(Ordering::Relaxed);
        let finish_reason = match generated.finish_reason {
            FinishReason::Cancelled if interrupted => "interrupted",
            FinishReason::Length if !self.text.is_stopped() => "length",
            _ => "stop",
        };
        Ok(Completion {
            text: self.text.text().to_owned(),
            unprinted,
            finish_reason,
            interrupted,
            tokens: generated.ids.len(),
            elapsed,
            first_token: self.first_token.unwrap_or_default(),
        })
    }
}

/// A generated text with its number of tokens and timing.
struct Completion {
    text: String,
    /// End of the text, held back as a possible start of a stop string.
    unprinted: String,
    /// OpenAI's `stop` or `length`, or `interrupted`.
    finish_reason: &'static str,
    /// Whether a signal arrived, even after the last token.
    interrupted: bool,
    tokens: usize,
    elapsed: Duration,
    first_token: Duration,
}

impl Completion {
    fn print_json(&self, prompt_tokens: usize) -> anyhow::Result<()> {
        let json = json!({"text": self.text, "finish_reason": self.finish_reason,
            "prompt_tokens": prompt_tokens, "completion_tokens": self.tokens,
            "seconds": self.elapsed.as_secs_f64(), "ttft_seconds": self.first_token.as_secs_f64()});
        print_line(&json.to_string())
    }

    /// Prints the end of the text, and on stderr a note if it was truncated.
    fn print_end(&self, prompt_tokens: usize, args: &Generate, global: &Global) -> anyhow::Result<()> {
        print_line(&self.unprinted)?;
        if self.finish_reason == "length" && !global.quiet {
            match self.tokens {
                count if count < args.max_new_tokens => print_status!("cut at the model's longest sequence"),
                count => print_status!("cut at --max-new-tokens {count}"),
            }
        }
        if global.verbose > 0 {
            let seconds = self.elapsed.as_secs_f64();
            print_status!("{prompt_tokens} prompt tokens, {} new in {seconds:.2} s", self.tokens);
        }
        Ok(())
    }
}
