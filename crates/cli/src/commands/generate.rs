//! `glm4v generate`

use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use glm4v_infer::{Finish, GenerationConfig, Sampling, TextStream, generate as run, prompt_sample};
use glm4v_model::{Batch, PaddingSide};
use glm4v_weights::ModelFolder;
use serde_json::json;

use super::{load_model, open_model, print_line};
use crate::args::{Generate, Global};
use crate::interrupt::Stopped;
use crate::{device, interrupt};

pub(crate) fn generate(args: &Generate, global: &Global) -> anyhow::Result<()> {
    let (site, precision) = device::open(global)?;
    let (folder, processor) = open_model(&args.model)?;
    let config = settings(args, &folder)?;
    let processor = args.inputs.apply(processor);
    let encoded = processor.encode(&args.prompt.messages()?, &args.rendering.options()?)?;
    let tokenizer = processor.tokenizer();
    let batch = Batch::collate(&[prompt_sample(encoded)], tokenizer.special().end_of_text, PaddingSide::Left);
    let model = load_model(&folder, args.adapter.as_deref(), &site, precision, global.quiet)?;
    let stop = interrupt::gently("stopping");

    let start = Instant::now();
    let mut first = None;
    let mut stream = TextStream::new(tokenizer);
    let mut text = String::new();
    let mut shown = 0;
    let mut failed = None;
    let longest_stop = args.stop.iter().map(String::len).max().unwrap_or(0);
    let mut answers = run(&model, &batch, &config, |_, id| {
        first.get_or_insert_with(|| start.elapsed());
        text.push_str(&stream.push(id));
        let from = text.floor_char_boundary(shown);
        let found = args.stop.iter().filter_map(|stop| text[from..].find(stop.as_str())).min();
        if let Some(place) = found {
            text.truncate(from + place);
        }
        // What may be the beginning of a stop text is held back.
        let certain = if found.is_some() { text.len() } else { text.len().saturating_sub(longest_stop) };
        let certain = text.floor_char_boundary(certain);
        if !args.json && certain > shown {
            let written = write!(stdout(), "{}", &text[shown..certain]).and_then(|()| stdout().flush());
            failed = written.err();
        }
        shown = shown.max(certain);
        match found.is_some() || failed.is_some() || stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(error) = failed {
        return Err(error).context("cannot write to stdout");
    }
    let answer = answers.remove(0);
    if answer.finish != Finish::Caller {
        text.push_str(&stream.finish());
    }
    let interrupted = stop.load(Ordering::Relaxed);
    let finish = match answer.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Caller if interrupted => "interrupted",
        Finish::Caller => "stop",
    };
    if args.json {
        print_line(
            &json!({"text": text, "finish_reason": finish, "prompt_tokens": batch.tokens(),
                "completion_tokens": answer.ids.len(), "seconds": seconds,
                "ttft_seconds": first.map_or(0.0, |first| first.as_secs_f64())})
            .to_string(),
        )?;
    } else {
        print_line(&text[shown..])?;
        if finish == "length" && !global.quiet {
            match answer.ids.len() {
                count if count < args.max_new_tokens => say!("cut at the model's longest sequence"),
                count => say!("cut at --max-new-tokens {count}"),
            }
        }
        if global.verbose > 0 {
            say!("{} prompt tokens, {} new in {seconds:.2} s", batch.tokens(), answer.ids.len());
        }
    }
    match interrupted {
        true => Err(Stopped { missing: "stopped before the answer was complete" }.into()),
        false => Ok(()),
    }
}

/// The model's settings with those of the command line on top.
fn settings(args: &Generate, folder: &ModelFolder) -> anyhow::Result<GenerationConfig> {
    let mut config = GenerationConfig::of_folder(folder.path(), folder.config(), args.max_new_tokens)?;
    let sampling = &mut config.sampling;
    if args.greedy {
        *sampling = Sampling { repetition_penalty: sampling.repetition_penalty, ..Sampling::greedy() };
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
