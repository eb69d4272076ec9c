//! `glm4v data`

mod html;
mod show;
mod text;

use std::path::Path;

use glm4v_data::{DatasetRegistry, DatasetSource};
use glm4v_data::{LabelOptions, LossPolicy, Record, RecordReader};

use crate::args::{Data, DataCommand, DataInput, Loss, Switch};

pub(crate) fn data(args: &Data) -> anyhow::Result<()> {
    match &args.command {
        DataCommand::Show(args) => show::show(args),
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
    let mut found = vec![None; indices.len()];
    let mut index = 0;
    for file in &source.files {
        for record in RecordReader::open(file, &source.schema, media_dir)? {
            if indices.contains(&index) {
                let record = record?;
                let wanted = indices.iter().zip(&mut found).filter(|(wanted, _)| **wanted == index);
                wanted.for_each(|(_, place)| *place = Some(record.clone()));
            }
            index += 1;
            if found.iter().all(Option::is_some) {
                break;
            }
        }
    }
    let missing = indices.iter().zip(&found).find(|(_, record)| record.is_none());
    if let Some((missing, _)) = missing {
        anyhow::bail!("{}: has no record {missing}, needed 0 to {}", source.name, index.saturating_sub(1));
    }
    Ok(found.into_iter().flatten().collect())
}
