//! `glm4v train`

use glm4v_infer::GenerationConfig;
use glm4v_train::{EvalReport, RunConfig, Session};

use super::eval::table;
use super::{open_model, print_line};
use crate::answering::Greedy;
use crate::args::{Global, Train};
use crate::progress::{Progress, Transfer};
use crate::{device, interrupt};

pub(crate) fn train(args: &Train, global: &Global) -> anyhow::Result<()> {
    let mut config = RunConfig::read(&args.config, &args.settings)?;
    if global.threads == Some(1) {
        config.data.workers = 0; // one thread means one
    }
    let show = config.eval.log_samples;
    let (site, precision) = device::open(global)?;
    let (folder, processor) = open_model(&config.model.path)?;
    let mut settings =
        GenerationConfig::of_folder(folder.path(), folder.config(), config.eval.max_new_tokens)?;
    settings.sampling = glm4v_infer::Sampling::greedy();
    let mut transfer = Transfer::new("loading", global.quiet);
    let session =
        Session::open(config, &site, precision, args.resume, &mut |done, of| transfer.at(done, of))?;
    drop(transfer);
    let stop = interrupt::gently("stopping after this step and writing a checkpoint");
    let mut answering = Greedy { processor: &processor, config: settings, stop };
    let mut progress = Progress::new(global.quiet);
    let outcome = session.run(&mut answering, &mut progress, stop)?;
    drop(progress);
    if let Some(report) = &outcome.report {
        if show > 0 && !report.predictions.is_empty() {
            print_line(&sample(report, show))?;
        }
        print_line(&report.summary())?;
    }
    let made = if outcome.adapter { "adapter" } else { "model" };
    print_line(&format!("{made}: {}", outcome.folder.display()))
}

/// So many answers from all over the dataset.
fn sample(report: &EvalReport, show: usize) -> String {
    table(spread(report.predictions.len(), show).map(|index| &report.predictions[index]))
}

/// `most` of `all` indices, or all of them, evenly spread.
fn spread(all: usize, most: usize) -> impl Iterator<Item = usize> {
    let shown = most.min(all);
    (0..shown).map(move |index| index * all / shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_answers_are_shown_as_there_are_or_as_was_asked_for() {
        for (all, most) in [(10, 8), (10, 10), (10, 20), (360, 8), (3, 2), (1, 1), (0, 8), (5, 0)] {
            let shown: Vec<usize> = spread(all, most).collect();

            assert_eq!(shown.len(), most.min(all), "{most} of {all}");
            assert!(shown.is_sorted_by(|a, b| a < b) && shown.iter().all(|index| *index < all), "{shown:?}");
        }
    }
}
