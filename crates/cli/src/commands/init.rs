//! `glm4v init`

use glm4v_weights::{ModelFolder, StagedFolder};

use super::print_line;
use crate::args::{Global, Init};
use crate::device;
use crate::progress::{Transfer, grouped};

pub(crate) fn init(args: &Init, global: &Global) -> anyhow::Result<()> {
    let precision = device::precision(global)?;
    let folder = ModelFolder::open(&args.config)?;
    let staged = StagedFolder::create(&args.out)?;
    let mut transfer = Transfer::new("writing", global.quiet);
    let count = folder
        .init(staged.path(), args.seed, precision, args.shard_size, &mut |done, of| transfer.at(done, of))?;
    staged.publish()?;
    print_line(&format!("{}: {} parameters, {precision}", args.out.display(), grouped(count)))
}
