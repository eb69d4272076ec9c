//! Reactions of the program to bad input and to a hostile environment: exit code 1 (2 for wrong usage), one error that names
//! the place and the remedy, no panic, and no partial files.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod datasets;
mod media;
mod models;
mod prompts;
mod resume;
mod runs;
mod shards;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod system;
mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{DType, TensorData};
use glm4v_tests::{
    CommandOutput, assert_no_partial_files, command, glm4v, golden, losses, random_model, repository, train,
};
use glm4v_weights::{TensorFile, write_tensors};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// Model directory of the golden cases, which is never written to.
fn checkpoint() -> PathBuf {
    golden().join("checkpoints/glm4v")
}

/// A copy of the checkpoint with one file changed or, for `None`, removed.
fn with_corrupt(file: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> TempDir {
    let dir = tempdir().unwrap();
    for entry in fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join(file);
    match change(fs::read(&path).unwrap()) {
        Some(bytes) => fs::write(&path, bytes).unwrap(),
        None => fs::remove_file(&path).unwrap(),
    }
    dir
}

/// A copy of the checkpoint with its tensors changed.
fn with_tensors(change: impl FnOnce(&mut BTreeMap<String, TensorData>)) -> TempDir {
    let dir = with_corrupt("config.json", Some);
    let path = dir.path().join("model.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let names = file.names().into_iter();
    let mut tensors = names.map(|name| (name.clone(), file.float(&name, DType::F32).unwrap())).collect();
    change(&mut tensors);
    write_tensors(&path, tensors.into_iter().collect(), &[]).unwrap();
    dir
}

fn generate(model: &Path, args: &[&str]) -> CommandOutput {
    CommandOutput::run(
        command().arg("generate").arg("--model").arg(model).args(["--max-new-tokens", "2"]).args(args),
    )
}

fn trace(messages: &Path, out: &Path) -> CommandOutput {
    let paths = [("--model", checkpoint()), ("--messages", messages.into()), ("--out", out.into())];
    let mut command = command();
    command.arg("trace");
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    CommandOutput::run(&mut command)
}

fn digit_image() -> PathBuf {
    repository().join("datasets/digits/images/0000.png").canonicalize().unwrap()
}

/// A conversation about an image, with an answer.
fn record(image: &str, answer: &str) -> Value {
    json!({"messages": [
        {"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": answer}]})
}

/// A data file of 16 good records and one more.
fn data_with_last_record(dir: &Path, last: &str) -> PathBuf {
    let path = dir.join("data.jsonl");
    let good = record(digit_image().to_str().unwrap(), "zero").to_string();
    fs::write(&path, format!("{}{last}\n", format!("{good}\n").repeat(16))).unwrap();
    path
}

/// Trains one step on all 17 records.
fn train_on(dir: &Path, data: &Path, settings: &[&str]) -> CommandOutput {
    CommandOutput::run(&mut train_command_on(dir, data, settings))
}

fn train_command_on(dir: &Path, data: &Path, settings: &[&str]) -> Command {
    let data = format!("data.train={}", data.display());
    let all = [&[data.as_str(), "data.batch_size=17", "schedule.max_steps=1"], settings].concat();
    train(&dir.join("run"), &all)
}

/// Runs a command with warnings, which `--quiet` suppresses.
fn with_warnings(command: &mut Command) -> CommandOutput {
    CommandOutput::run(command.env("GLM4V_LOG", "warn"))
}

#[cfg(unix)]
/// `glm4v init` of a model large enough to be interrupted.
fn slow_init(out: &Path) -> Command {
    let mut command = command();
    command.args(["init", "--config", "configs/models/glm-ocr", "--shard-size", "50MB", "--out"]).arg(out);
    command
}

#[cfg(unix)]
/// Whether the second shard of `out` is being written, in a temporary directory beside it.
fn is_partially_written(out: &Path) -> bool {
    let written = |path: &PathBuf| path.to_string_lossy().contains("model-00002-of-");
    glm4v_tests::walk(out.parent().unwrap()).iter().any(written)
}
