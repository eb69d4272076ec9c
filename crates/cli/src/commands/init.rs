//! `glm4v init`

use anyhow::ensure;
use burn::module::Module;
use glm4v_model::initialize;
use glm4v_weights::{ModelFolder, StagedFolder, save_model};

use super::print_line;
use crate::args::{Global, Init};
use crate::device;
use crate::progress::grouped;

pub(crate) fn init(args: &Init, global: &Global) -> anyhow::Result<()> {
    let (device, precision) = device::open(global)?;
    let folder = ModelFolder::open(&args.config)?;
    ensure!(!args.out.exists(), "{}: exists already; choose another --out", args.out.display());
    let model = initialize(folder.config().init(&device), args.seed, precision.dtype());
    let staged = StagedFolder::new(&args.out)?;
    save_model(&model, folder.path(), staged.path(), precision)?;
    staged.publish()?;
    print_line(&format!("{}: {} parameters, {precision}", args.out.display(), grouped(model.num_params())))
}
