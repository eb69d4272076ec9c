//! `glm4v eval`

use std::sync::Arc;

use glm4v_data::{Dataset, DatasetOptions, Registry};
use glm4v_infer::{GenerationConfig, Sampling};
use glm4v_train::{Prediction, evaluate};
use serde_json::json;

use super::{load_model, open_model, print_line};
use crate::answering::Greedy;
use crate::args::{Eval, Global};
use crate::interrupt::Stopped;
use crate::progress::Progress;
use crate::{device, interrupt};

/// Rows of the table of wrong answers.
const WRONG_SHOWN: usize = 20;

pub(crate) fn eval(args: &Eval, global: &Global) -> anyhow::Result<()> {
    let (site, precision) = device::open(global)?;
    let (folder, processor) = open_model(&args.model)?;
    let processor = Arc::new(processor);
    let source = Registry::load(&args.data_dir)?.find(&args.data)?;
    let media = args.media_dir.as_deref();
    let options = DatasetOptions {
        max_length: Some(folder.config().text.max_position_embeddings),
        ..DatasetOptions::default()
    };
    let dataset = Dataset::open(&source, media, processor.clone(), options)?;
    let mut config = GenerationConfig::of_folder(&args.model, folder.config(), args.max_new_tokens)?;
    config.sampling = Sampling::greedy();
    let model = load_model(&folder, args.adapter.as_deref(), &site, precision, global.quiet)?;
    let stop = interrupt::gently("stopping");
    let mut answering = Greedy { processor: &processor, config, stop };
    let mut progress = Progress::new(global.quiet);
    let report = evaluate(&model, &dataset, args.batch_size, &mut answering, stop, |done| {
        glm4v_train::Observer::evaluating(&mut progress, done, dataset.len());
    })?;
    drop(progress);
    let report = report.ok_or(Stopped { missing: "stopped; no result" })?;

    let right = report.correct();
    if args.json {
        for prediction in &report.predictions {
            let item = &prediction.item;
            print_line(
                &json!({"source": item.at.to_string(), "images": item.images, "videos": item.videos, "expected": item.answer,
                    "answer": prediction.answer.text, "ended": prediction.answer.ended,
                    "finish_reason": if prediction.answer.ended { "stop" } else { "length" },
                    "correct": prediction.is_correct()})
                .to_string(),
            )?;
        }
        return print_line(
            &json!({"samples": report.predictions.len(), "correct": right, "exact_match": report.exact_match(),
                "loss": report.loss})
            .to_string(),
        );
    }
    let wrong: Vec<&Prediction> =
        report.predictions.iter().filter(|prediction| !prediction.is_correct()).collect();
    if !wrong.is_empty() {
        print_line(&format!("incorrect predictions, {} of {}:", wrong.len().min(WRONG_SHOWN), wrong.len()))?;
        print_line(&table(wrong.into_iter().take(WRONG_SHOWN)))?;
    }
    print_line(&report.summary())
}

/// Answers in columns: where, what was expected, what was said.
pub(crate) fn table<'a>(predictions: impl Iterator<Item = &'a Prediction>) -> String {
    let mut rows = vec![["example".to_owned(), "expected".to_owned(), "answer".to_owned()]];
    for prediction in predictions {
        let item = &prediction.item;
        let place =
            item.images.iter().chain(&item.videos).next().cloned().unwrap_or_else(|| item.at.to_string());
        let mut answer = shorten(&prediction.answer.text);
        if !prediction.answer.ended {
            answer.push_str(" … (truncated)");
        }
        if !prediction.is_correct() {
            answer.push_str("  <- wrong");
        }
        rows.push([place, shorten(&item.answer), answer]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let lines = rows.iter().map(|[a, b, c]| format!("{a:first$}  {b:second$}  {c}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// One line of at most 60 characters.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = text.trim().replace('\n', "⏎");
    match line.chars().count() {
        0..=LONGEST => line,
        _ => line.chars().take(LONGEST - 1).chain(['…']).collect(),
    }
}
