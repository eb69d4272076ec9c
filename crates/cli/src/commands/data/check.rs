//! `glm4v data check`

use anyhow::Context;
use glm4v_data::{Audit, AuditReport, DatasetOptions, DatasetRegistry, DatasetSource, Records};
use indicatif::ProgressBar;

use super::report;
use crate::args::{DataCheck, Global};
use crate::commands::{open_model, print_line};
use crate::progress::record_bar;

/// Records that failed a check.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {records} records failed{}", if *.warnings { ", and there are warnings" } else { "" })]
struct CheckFailed {
    failed: usize,
    records: usize,
    /// Whether warnings count as failures and there are some.
    warnings: bool,
}

pub(super) fn check(args: &DataCheck, global: &Global) -> anyhow::Result<()> {
    let (model, processor) = open_model(&args.input.model)?;
    let longest = model.config().text.max_position_embeddings;
    let options = DatasetOptions {
        max_length: Some(args.max_length.map_or(longest, |length| length.min(longest))),
        min_image_tokens: args.min_image_tokens,
        labels: args.input.label_options(),
        ..DatasetOptions::default()
    };
    let datasets = sources(args)?
        .iter()
        .map(|source| Records::open(source, args.input.media_dir.as_deref()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut audit = Audit::new(&processor, options);
    let mut reports = Vec::with_capacity(datasets.len());
    for records in &datasets {
        let bar = record_bar(records.len(), global.quiet);
        let report = check_one(&mut audit, records, &bar)?;
        if args.json {
            print_line(&report::object(&report).to_string())?;
        } else {
            print_line(&report::text(&report))?;
        }
        reports.push(report);
    }
    finish(&reports, args.strict)
}

fn check_one<'a>(
    audit: &mut Audit<'a>,
    records: &'a Records,
    bar: &ProgressBar,
) -> anyhow::Result<AuditReport> {
    let report = audit.check(records, |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    Ok(report?)
}

/// The datasets to check, first those of `--against`: the overlap is reported where it is found.
fn sources(args: &DataCheck) -> anyhow::Result<Vec<DatasetSource>> {
    let registry = DatasetRegistry::load(&args.input.data_dir)?;
    let name = args.input.data.as_str();
    let mut names = args.against.clone();
    match registry.names().find(|known| *known == name) {
        // All splits of a dataset, which must not overlap.
        Some(known) => {
            let splits = registry.splits(known)?;
            names.extend(splits.into_iter().map(|split| format!("{known}:{split}")));
        }
        None => names.push(name.to_owned()),
    }
    let sources = names.iter().map(|name| registry.find(name));
    sources.collect::<Result<_, _>>().context("nothing was checked")
}

fn finish(reports: &[AuditReport], strict: bool) -> anyhow::Result<()> {
    let failed = reports.iter().map(|report| report.failures.len()).sum();
    let records = reports.iter().map(|report| report.records).sum();
    let warnings = strict && reports.iter().any(AuditReport::has_warnings);
    if failed > 0 || warnings {
        return Err(CheckFailed { failed, records, warnings }.into());
    }
    Ok(())
}
