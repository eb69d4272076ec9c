//! `glm4v merge`

use glm4v_weights::{AdapterFolder, ModelFolder, StagedFolder};

use super::print_line;
use crate::args::{Dtype, Global, Merge};
use crate::progress::Transfer;

pub(crate) fn merge(args: &Merge, global: &Global) -> anyhow::Result<()> {
    let precision = match global.dtype {
        None | Some(Dtype::Keep) => None,
        Some(Dtype::Of(precision)) => Some(precision),
    };
    let device = global.backend.open()?;
    let folder = ModelFolder::open(&args.model)?;
    let adapter = AdapterFolder::open(&args.adapter)?;
    let staged = StagedFolder::create(&args.out)?;
    let mut transfer = Transfer::new("writing", global.quiet);
    let changed =
        folder.merge(&adapter, staged.path(), &device, precision, args.shard_size, &mut |done, of| {
            transfer.at(done, of);
        })?;
    staged.publish()?;
    print_line(&format!("{}: {changed} tensors changed by the adapter", args.out.display()))
}
