//! `glm4v init`

use glm4v_weights::{AtomicDir, ModelFolder};

use super::print_line;
use crate::args::{Global, Init};
use crate::device;
use crate::progress::{ByteProgress, grouped};

pub(crate) fn init(args: &Init, global: &Global) -> anyhow::Result<()> {
    let precision = device::precision(global)?;
    let model = ModelFolder::open(&args.config)?;
    let staged = AtomicDir::create(&args.out)?;
    let mut progress = ByteProgress::new("writing", global.quiet);
    let count = model.init(staged.path(), args.seed, precision, args.shard_size, &mut |done, total| {
        progress.update(done, total)
    })?;
    staged.publish()?;
    print_line(&format!("{}: {} parameters, {precision}", args.out.display(), grouped(count)))
}
