//! `glm4v eval`

use std::sync::Arc;

use glm4v_data::{Dataset, DatasetOptions, DatasetRegistry};
use glm4v_infer::{GenerationConfig, SamplingParams};
use glm4v_processor::Processor;
use glm4v_train::{Callback, EvalOptions, EvalOutput, Prediction, evaluate};
use glm4v_weights::ModelFolder;
use serde_json::json;

use super::{load_model, open_model, print_line};
use crate::args::{Eval, Global};
use crate::eval_generator::GreedyGenerator;
use crate::interrupt::Interrupted;
use crate::progress::TrainProgress;
use crate::{device, interrupt};

/// Maximum number of incorrect predictions in the table.
const MAX_INCORRECT_ROWS: usize = 20;

pub(crate) fn eval(args: &Eval, global: &Global) -> anyhow::Result<()> {
    let (device_spec, precision) = device::open(global)?;
    let (model_dir, processor) = open_model(&args.model)?;
    let processor = Arc::new(processor);
    let dataset = open_dataset(args, &model_dir, processor.clone())?;
    let mut config = GenerationConfig::from_folder(&args.model, model_dir.config(), args.max_new_tokens)?;
    config.sampling = SamplingParams::greedy();
    let model = load_model(&model_dir, args.adapter.as_deref(), &device_spec, precision, global.quiet)?;
    let stop = interrupt::stop_flag("stopping");
    let mut generator = GreedyGenerator { processor: &processor, config, stop };
    let mut progress = TrainProgress::new(global.quiet);
    let options = EvalOptions { batch_size: args.batch_size, stop };
    let report = evaluate(&model, &dataset, &mut generator, options, |done| {
        progress.on_eval_progress(done, dataset.len());
    })?;
    drop(progress);
    let report = report.ok_or(Interrupted { missing: "stopped; no result" })?;
    if args.json { print_json(&report) } else { print_text(&report) }
}

fn open_dataset(args: &Eval, model: &ModelFolder, processor: Arc<Processor>) -> anyhow::Result<Dataset> {
    let source = DatasetRegistry::load(&args.data_dir)?.find(&args.data)?;
    let options = DatasetOptions {
        max_length: Some(model.config().text.max_position_embeddings),
        ..DatasetOptions::default()
    };
    Ok(Dataset::open(&source, args.media_dir.as_deref(), processor, options)?)
}

/// Prints one JSON object per prediction, and one with the totals.
fn print_json(report: &EvalOutput) -> anyhow::Result<()> {
    for prediction in &report.predictions {
        let example = &prediction.example;
        let generation = &prediction.generation;
        let json = json!({"source": example.location.to_string(), "images": example.images, "videos": example.videos,
            "expected": example.answer, "answer": generation.text, "ended": generation.finished,
            "finish_reason": if generation.finished { "stop" } else { "length" },
            "correct": prediction.is_correct()});
        print_line(&json.to_string())?;
    }
    let totals = json!({"samples": report.predictions.len(), "correct": report.correct(),
        "exact_match": report.exact_match(), "loss": report.loss});
    print_line(&totals.to_string())
}

/// Prints a table of incorrect predictions, and a line with the totals.
fn print_text(report: &EvalOutput) -> anyhow::Result<()> {
    let incorrect: Vec<&Prediction> =
        report.predictions.iter().filter(|prediction| !prediction.is_correct()).collect();
    if !incorrect.is_empty() {
        let rows = incorrect.len().min(MAX_INCORRECT_ROWS);
        print_line(&format!("incorrect predictions, {rows} of {}:", incorrect.len()))?;
        print_line(&table(incorrect.into_iter().take(rows)))?;
    }
    print_line(&report.summary())
}

/// Predictions in columns: example, expected answer, generated answer.
pub(crate) fn table<'a>(predictions: impl Iterator<Item = &'a Prediction>) -> String {
    let mut rows = vec![["example".to_owned(), "expected".to_owned(), "answer".to_owned()]];
    for prediction in predictions {
        let example = &prediction.example;
        let source = example
            .images
            .iter()
            .chain(&example.videos)
            .next()
            .cloned()
            .unwrap_or_else(|| example.location.to_string());
        let mut answer = shorten(&prediction.generation.text);
        if !prediction.generation.finished {
            answer.push_str(" … (truncated)");
        }
        if !prediction.is_correct() {
            answer.push_str("  <- wrong");
        }
        rows.push([source, shorten(&example.answer), answer]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let lines = rows.iter().map(|[a, b, c]| format!("{a:first$}  {b:second$}  {c}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Text on one line, truncated to 60 characters.
fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let line = text.trim().replace('\n', "⏎");
    match line.chars().count() {
        0..=MAX_CHARS => line,
        _ => line.chars().take(MAX_CHARS - 1).chain(['…']).collect(),
    }
}
