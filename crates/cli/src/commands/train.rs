//! `glm4v train`

use glm4v_data::RecordCounts;
use glm4v_infer::{GenerationConfig, SamplingParams};
use glm4v_train::{EvalOutput, Run, RunConfig};

use super::eval::table;
use super::{open_model, print_line};
use crate::args::{Global, Train};
use crate::eval_generator::GreedyGenerator;
use crate::progress::{ByteProgress, TrainProgress};
use crate::{device, interrupt};

pub(crate) fn train(args: &Train, global: &Global) -> anyhow::Result<()> {
    let mut config = RunConfig::read(&args.config, &args.settings)?;
    if global.threads == Some(1) {
        config.data.workers = 0; // a worker would be a second thread
    }
    let log_samples = config.eval.log_samples;
    let (device_spec, precision) = device::open(global)?;
    let (model, processor) = open_model(&config.model.path)?;
    let mut generation =
        GenerationConfig::from_folder(model.path(), model.config(), config.eval.max_new_tokens)?;
    generation.sampling = SamplingParams::greedy();
    let mut progress = ByteProgress::new("loading", global.quiet);
    let run = Run::open(config, &device_spec, precision, args.resume, &mut |done, total| {
        progress.update(done, total)
    })?;
    drop(progress);
    let stop = interrupt::stop_flag("stopping after this step and writing a checkpoint");
    let mut generator = GreedyGenerator { processor: &processor, config: generation, stop };
    let mut progress = TrainProgress::new(global.quiet);
    let output = run.train(&mut generator, &mut progress, stop)?;
    drop(progress);
    if let Some(report) = &output.report {
        if log_samples > 0 && !report.predictions.is_empty() {
            print_line(&sample_table(report, log_samples))?;
        }
        print_line(&report.summary())?;
    }
    let RecordCounts { dropped, skipped, shrunk, truncated } = output.records;
    if !output.records.is_empty() {
        print_line(&format!(
            "records: {dropped} dropped as too long, {skipped} left out as bad, {shrunk} with smaller images, {truncated} with fewer turns"
        ))?;
    }
    let kind = if output.is_adapter { "adapter" } else { "model" };
    print_line(&format!("{kind}: {}", output.dir.display()))
}

/// Table of `count` predictions, evenly spread over the dataset.
fn sample_table(report: &EvalOutput, count: usize) -> String {
    table(evenly_spaced(report.predictions.len(), count).map(|index| &report.predictions[index]))
}

/// `count` indices below `len`, or all of them, evenly spaced.
fn evenly_spaced(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |index| index * len / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenly_spaced_indices_are_as_many_as_asked_for_or_all() {
        for (all, most) in [(10, 8), (10, 10), (10, 20), (360, 8), (3, 2), (1, 1), (0, 8), (5, 0)] {
            let shown: Vec<usize> = evenly_spaced(all, most).collect();

            assert_eq!(shown.len(), most.min(all), "{most} of {all}");
            assert!(shown.is_sorted_by(|a, b| a < b) && shown.iter().all(|index| *index < all), "{shown:?}");
        }
    }
}
