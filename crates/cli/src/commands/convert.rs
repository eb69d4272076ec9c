//! `glm4v convert`

use glm4v_weights::{ModelFolder, StagedFolder};

use super::print_line;
use crate::args::{Convert, Dtype, Global};
use crate::progress::{Transfer, grouped};

pub(crate) fn convert(args: &Convert, global: &Global) -> anyhow::Result<()> {
    let precision = match global.dtype {
        None | Some(Dtype::Keep) => None,
        Some(Dtype::Of(precision)) => Some(precision),
    };
    let folder = ModelFolder::open(&args.model)?;
    let staged = StagedFolder::create(&args.out)?;
    let mut transfer = Transfer::new("writing", global.quiet);
    let mut bytes = 0;
    folder.convert(staged.path(), precision, args.shard_size, &mut |done, of| {
        bytes = done;
        transfer.at(done, of);
    })?;
    staged.publish()?;
    let types = precision.map_or("types kept".to_owned(), |precision| precision.to_string());
    print_line(&format!("{}: {} bytes of tensors, {types}", args.out.display(), grouped(bytes as usize)))
}
