//! Runs of the built binary in the root of the repository, and assertions on their exit codes, output and files.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{backend, binary, repository};

/// The program with `--quiet` and the backend of the suites, in the root of the repository.
pub fn command() -> Command {
    let mut command = Command::new(binary());
    command.current_dir(repository()).args(["--quiet", "--backend", &backend().to_string()]);
    command
}

/// Runs the program with arguments until it exits.
pub fn glm4v<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> CommandOutput {
    CommandOutput::from(command().args(args).output().expect("the binary runs"))
}

/// `glm4v train` with a shortened config of the digits; `settings` are `section.key=value`.
pub fn train(output_dir: &Path, settings: &[&str]) -> Command {
    let mut command = command();
    command.args(["train", "configs/finetune/digits-full-cpu.toml"]);
    let output_dir = format!("run.output_dir={}", output_dir.display());
    let short =
        ["eval.data=", "data.batch_size=8", "schedule.warmup_steps=0", "run.save_steps=0", &output_dir];
    for setting in short.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    command
}

/// Initializes `dir/model`: the model of the digits with random weights.
pub fn random_model(dir: &Path) -> PathBuf {
    let model = dir.join("model");
    let args = ["init", "--config", "configs/models/digits", "--out"];
    glm4v(args.map(OsStr::new).into_iter().chain([model.as_os_str()])).success();
    model
}

/// Exit code and output of a run, with assertions on them.
#[derive(Debug)]
pub struct CommandOutput {
    /// Exit code; none if a signal killed the process.
    pub code: Option<i32>,
    /// Text on standard output: results.
    pub stdout: String,
    /// Text on standard error: progress, warnings, the error.
    pub stderr: String,
}

impl From<Output> for CommandOutput {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl CommandOutput {
    /// Runs a command until it exits.
    pub fn run(command: &mut Command) -> Self {
        Self::from(command.output().expect("the binary runs"))
    }

    /// Asserts exit code 0; returns the output.
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Asserts exit code 1, and a single error that contains all of these texts.
    pub fn failure(&self, texts: &[&str]) {
        self.exit_code(1, texts);
    }

    /// Asserts exit code 2 (wrong usage), and a single error that contains all of these texts.
    pub fn usage_error(&self, texts: &[&str]) {
        self.exit_code(2, texts);
    }

    /// Asserts an exit code, and a single error that contains all of these texts.
    pub fn exit_code(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        assert!(!self.stderr.contains("\nerror: "), "{self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "needed {text:?}: {}", self.stderr);
        }
        for text in ["panicked", "internal error", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(text), "{self:?}");
        }
    }
}

/// Asserts that `dir` holds neither temporary or partial files nor a `final` model.
pub fn assert_no_partial_files(dir: &Path) {
    for path in walk(dir) {
        let name = path.file_name().expect("walked paths have names").to_string_lossy();
        let partial = name.ends_with(".partial") || name.ends_with(".probe") || name.ends_with(".old");
        assert!(
            !partial && !name.starts_with(".tmp") && name != "final",
            "{} was left behind",
            path.display()
        );
    }
}

/// All files and directories under `dir`, sorted; none if it does not exist.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("directories can be listed").path();
        if path.is_dir() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// The objects of a run's `metrics.jsonl`: steps and evaluations; none before it is written.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("lines are complete")).collect()
}

/// The losses of a run by step.
pub fn losses(run: &Path) -> Vec<f64> {
    metrics(run).iter().filter_map(|entry| entry.get("loss")?.as_f64()).collect()
}

/// Starts a run and sends SIGINT once its metrics have `steps` lines.
#[cfg(unix)]
pub fn interrupt(command: &mut Command, run: &Path, steps: usize) -> CommandOutput {
    // Complete lines: the last one may still be incomplete.
    let lines = || fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().matches('\n').count();
    interrupt_when(command, |_| lines() >= steps)
}

/// Starts a command and sends SIGINT once `condition` holds for its process id.
///
/// # Panics
///
/// When the program exits before, or a minute passes.
#[cfg(unix)]
pub fn interrupt_when(command: &mut Command, condition: impl FnMut(u32) -> bool) -> CommandOutput {
    signal_when(command, "INT", condition)
}

/// Starts a command and sends a signal, by its name for `kill`, once `condition` holds for its process id.
///
/// # Panics
///
/// When the program exits before, or a minute passes.
#[cfg(unix)]
pub fn signal_when(
    command: &mut Command,
    signal: &str,
    mut condition: impl FnMut(u32) -> bool,
) -> CommandOutput {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let start = Instant::now();
    while !condition(child.id()) {
        let ended = child.try_wait().expect("the binary can be asked");
        assert!(ended.is_none(), "the program exited before the signal: {ended:?}");
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("the binary can be ended");
            panic!("the condition did not hold within a minute");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let signal = format!("-{signal}");
    let sent = Command::new("kill").args([&signal, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success(), "the program exited before the signal");
    CommandOutput::from(child.wait_with_output().expect("the binary ends"))
}
