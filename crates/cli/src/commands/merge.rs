//! `glm4v merge`

use glm4v_weights::{AdapterFolder, AtomicDir, ExportOptions, ModelFolder};

use super::convert::target_precision;
use super::print_line;
use crate::args::{Global, Merge};
use crate::progress::ByteProgress;

pub(crate) fn merge(args: &Merge, global: &Global) -> anyhow::Result<()> {
    let options = ExportOptions { precision: target_precision(global), shard_size: args.shard_size };
    let device = global.backend.open()?;
    let model = ModelFolder::open(&args.model)?;
    let adapter = AdapterFolder::open(&args.adapter)?;
    let staged = AtomicDir::create(&args.out)?;
    let mut progress = ByteProgress::new("writing", global.quiet);
    let changed = model.merge(&adapter, staged.path(), &device, &options, &mut |done, total| {
        progress.update(done, total);
    })?;
    staged.publish()?;
    print_line(&format!("{}: {changed} tensors changed by the adapter", args.out.display()))
}
