//! `glm4v convert`

use glm4v_model::Precision;
use glm4v_weights::{AtomicDir, ExportOptions, ModelFolder};

use super::print_line;
use crate::args::{Convert, Dtype, Global};
use crate::progress::{ByteProgress, grouped};

/// Data type of the written weights; none keeps the stored types.
pub(super) fn target_precision(global: &Global) -> Option<Precision> {
    match global.dtype {
        None | Some(Dtype::Keep) => None,
        Some(Dtype::Precision(precision)) => Some(precision),
    }
}

pub(crate) fn convert(args: &Convert, global: &Global) -> anyhow::Result<()> {
    let options = ExportOptions { precision: target_precision(global), shard_size: args.shard_size };
    let model = ModelFolder::open(&args.model)?;
    let staged = AtomicDir::create(&args.out)?;
    let mut progress = ByteProgress::new("writing", global.quiet);
    let mut bytes_written = 0;
    model.convert(staged.path(), &options, &mut |done, total| {
        bytes_written = done;
        progress.update(done, total);
    })?;
    staged.publish()?;
    let types = options.precision.map_or("types kept".to_owned(), |precision| precision.to_string());
    print_line(&format!(
        "{}: {} bytes of tensors, {types}",
        args.out.display(),
        grouped(bytes_written as usize)
    ))
}
