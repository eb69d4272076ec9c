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
    let show = config.run.show;
    let (site, precision) = device::open(global)?;
    let (folder, processor) = open_model(&config.model.folder)?;
    let mut settings = GenerationConfig::of_folder(folder.path(), folder.config(), config.run.eval_tokens)?;
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
        print_line(&sample(report, show))?;
        print_line(&report.summary())?;
    }
    let made = if outcome.adapter { "adapter" } else { "model" };
    print_line(&format!("{made}: {}", outcome.folder.display()))
}

/// A few answers from all over the data set.
fn sample(report: &EvalReport, show: usize) -> String {
    let stride = report.examined.len().div_ceil(show.max(1)).max(1);
    table(report.examined.iter().step_by(stride).take(show))
}
