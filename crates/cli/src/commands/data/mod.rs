//! `glm4v data`

mod check;
mod html;
mod report;
mod show;
mod text;

use std::path::Path;

use glm4v_data::{DatasetRegistry, DatasetSource};
use glm4v_data::{LabelOptions, LossPolicy, Record, Records};

use crate::args::{Data, DataCommand, DataInput, Global, Loss, Switch};

pub(crate) fn data(args: &Data, global: &Global) -> anyhow::Result<()> {
    match &args.command {
        DataCommand::Show(args) => show::show(args),
        DataCommand::Check(args) => check::check(args, global),
    }
}

impl DataInput {
    fn source(&self) -> anyhow::Result<DatasetSource> {
        Ok(DatasetRegistry::load(&self.data_dir)?.find(&self.data)?)
    }

    fn label_options(&self) -> LabelOptions {
        let loss = match self.loss {
            Loss::Assistant => LossPolicy::Assistant,
            Loss::Last => LossPolicy::Last,
            Loss::All => LossPolicy::All,
        };
        LabelOptions { loss, enable_thinking: self.thinking.map(Switch::is_on) }
    }
}

/// The records of these indices, in the order of the indices.
fn records_at(
    source: &DatasetSource,
    media_dir: Option<&Path>,
    indices: &[usize],
) -> anyhow::Result<Vec<Record>> {
    let records = Records::open(source, media_dir)?;
    if let Some(missing) = indices.iter().find(|index| **index >= records.len()) {
        anyhow::bail!("{}: has no record {missing}, needed 0 to {}", source.name, records.len() - 1);
    }
    Ok(indices.iter().map(|index| records.read(*index)).collect::<Result<_, _>>()?)
}
