//! `glm4v completions` and `glm4v man`: what the argument parser knows, for shells and for `man`.

use std::fs;
use std::io::{Write, stdout};

use anyhow::Context;
use clap::CommandFactory;

use crate::args::{Args, Completions, Man};

/// Where results go, in words.
const STDOUT: &str = "cannot write to stdout";

pub(crate) fn completions(args: &Completions) -> anyhow::Result<()> {
    // Into memory first: the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "glm4v", &mut script);
    stdout().lock().write_all(&script).context(STDOUT)
}

pub(crate) fn man(args: &Man) -> anyhow::Result<()> {
    let Some(folder) = &args.out_dir else {
        return clap_mangen::Man::new(Args::command()).render(&mut stdout().lock()).context(STDOUT);
    };
    let place = || format!("{}: cannot write", folder.display());
    fs::create_dir_all(folder).with_context(place)?;
    clap_mangen::generate_to(Args::command(), folder).with_context(place)
}
