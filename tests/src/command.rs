//! The built binary, run as a person runs it: in the root of the repository, with arguments, judged by what it leaves.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{backend, binary, repository};

/// The program, quiet and on the backend of the suites, in the root of the repository.
pub fn command() -> Command {
    let mut command = Command::new(binary());
    command.current_dir(repository()).args(["--quiet", "--backend", &backend().to_string()]);
    command
}

/// Runs the program to its end.
pub fn glm4v<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Said {
    Said::from(command().args(args).output().expect("the binary runs"))
}

/// `glm4v train` with the config of the digits, shortened, into `folder`; `settings` are `section.key=value`.
pub fn train(folder: &Path, settings: &[&str]) -> Command {
    let mut command = command();
    command.args(["train", "configs/finetune/digits-full-cpu.toml"]);
    let folder = format!("run.output_dir={}", folder.display());
    let short = ["eval.data=", "data.batch_size=8", "schedule.warmup_steps=0", "run.save_steps=0", &folder];
    for setting in short.iter().chain(settings) {
        command.args(["--set", setting]);
    }
    command
}

/// Random weights for the network of the digits.
pub fn fresh_model(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    let args = ["init", "--config", "configs/models/digits", "--out"];
    glm4v(args.map(OsStr::new).into_iter().chain([model.as_os_str()])).success();
    model
}

/// How the program ended and what it said.
#[derive(Debug)]
pub struct Said {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Results.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Said {
    /// Runs a command to its end.
    pub fn by(command: &mut Command) -> Self {
        Self::from(command.output().expect("the binary runs"))
    }

    /// Insists on exit code 0; returns what was said.
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Insists on exit code 1 and one error that has all of these words.
    pub fn refused(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        self.says(words);
    }

    /// Insists on an exit code and one error that has all of these words.
    pub fn ended(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.says(words);
    }

    /// Insists on exit code 2, that of wrong usage, and an error that has all of these words.
    pub fn misused(&self, words: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:?}");
        self.says(words);
    }

    fn says(&self, words: &[&str]) {
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        assert!(!self.stderr.contains("\nerror: "), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "needed {word:?}: {}", self.stderr);
        }
        for word in ["panicked", "internal error", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(word), "{self:?}");
        }
    }
}

/// Insists that nothing under `folder` is half-written, and that there is no `final` model.
pub fn holds_nothing_half_written(folder: &Path) {
    for path in walk(folder) {
        let name = path.file_name().expect("walked paths have names").to_string_lossy();
        let half = name.ends_with(".partial") || name.ends_with(".probe") || name.ends_with(".old");
        assert!(!half && !name.starts_with(".tmp") && name != "final", "{} was left behind", path.display());
    }
}

/// Every file and folder under `folder`, sorted; none if it does not exist.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("folders can be listed").path();
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
    text.lines().map(|line| serde_json::from_str(line).expect("lines are written whole")).collect()
}

/// The losses of a run, step by step.
pub fn losses(run: &Path) -> Vec<f64> {
    metrics(run).iter().filter_map(|entry| entry.get("loss")?.as_f64()).collect()
}

/// Starts a run and presses Ctrl-C once `steps` of it are in its metrics.
#[cfg(unix)]
pub fn interrupt(command: &mut Command, run: &Path, steps: usize) -> Said {
    // Lines that end; one may be in the making.
    let lines = || fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().matches('\n').count();
    interrupt_when(command, |_| lines() >= steps)
}

/// Starts a command and presses Ctrl-C once something is so of its process.
///
/// # Panics
///
/// When the program ends before, or a minute passes.
#[cfg(unix)]
pub fn interrupt_when(command: &mut Command, so: impl FnMut(u32) -> bool) -> Said {
    signal_when(command, "INT", so)
}

/// Starts a command and sends it a signal, by its name for `kill`, once something is so of its process.
///
/// # Panics
///
/// When the program ends before, or a minute passes.
#[cfg(unix)]
pub fn signal_when(command: &mut Command, signal: &str, mut so: impl FnMut(u32) -> bool) -> Said {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let start = Instant::now();
    while !so(child.id()) {
        let ended = child.try_wait().expect("the binary can be asked");
        assert!(ended.is_none(), "the program was over before Ctrl-C: {ended:?}");
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("the binary can be ended");
            panic!("waited a minute in vain");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let signal = format!("-{signal}");
    let sent = Command::new("kill").args([&signal, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success(), "the program was over before the signal");
    Said::from(child.wait_with_output().expect("the binary ends"))
}
