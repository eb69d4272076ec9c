//! One file a command.

mod eval;
mod generate;
mod info;
mod init;
mod trace;
mod train;

pub(crate) use eval::eval;
pub(crate) use generate::generate;
pub(crate) use info::info;
pub(crate) use init::init;
pub(crate) use trace::trace;
pub(crate) use train::train;

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::Context;
use glm4v_processor::{Message, parse_messages};

/// Writes a line to stdout; a reader that went away is an error, not a panic.
fn print_line(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(stdout().lock(), "{line}")?)
}

/// Reads a conversation; paths in it are relative to the file.
fn read_messages(path: &Path) -> anyhow::Result<Vec<Message>> {
    let json = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    parse_messages(&json, folder).with_context(|| path.display().to_string())
}
