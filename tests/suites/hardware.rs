//! The scripts for a GPU machine (`hardware/`): their own tests, and their commands on this program.
//!
//! They need `python3`, of which nothing but the standard library; without it these tests say so and pass.
#![expect(clippy::print_stderr, reason = "what did not run is said")]

use std::path::Path;
use std::process::{Command, Stdio};

use glm4v_tests::{CommandOutput, binary, repository};
use serde_json::Value;

/// `python3` with arguments, in the root of the repository; none where it is missing.
fn python(args: &[&str]) -> Option<CommandOutput> {
    let mut command = Command::new("python3");
    command.args(args).current_dir(repository()).stdin(Stdio::null()).env("PYTHONDONTWRITEBYTECODE", "1");
    match command.output() {
        Ok(output) => Some(CommandOutput::from(output)),
        Err(error) => {
            eprintln!("NOT RUN: tests of hardware/: python3: {error}");
            None
        }
    }
}

/// Parts of the table as `run.py --list` prints them, with this program filled in.
fn parts(profile: &str) -> Option<Vec<Value>> {
    let program = binary();
    let program = program.to_str().expect("the path is text");
    let found = python(&["hardware/run.py", "--list", "--profile", profile, "--glm4v", program])?.success();
    let parts: Vec<Value> =
        found.stdout.lines().map(|line| serde_json::from_str(line).expect("lines are JSON")).collect();
    assert!(parts.len() > 3, "{parts:?}");
    Some(parts)
}

fn command_of(part: &Value) -> Vec<&str> {
    let words = part["command"].as_array().expect("a command is a list");
    words.iter().map(|word| word.as_str().expect("words are text")).collect()
}

#[test]
fn parts_fail_one_by_one_and_runs_go_on() {
    let Some(tests) = python(&["-m", "unittest", "discover", "--start-directory", "hardware"]) else {
        return;
    };

    tests.success();
}

#[test]
fn the_program_understands_every_command_of_the_table() {
    for profile in ["full", "small"] {
        let Some(parts) = parts(profile) else { return };
        for part in &parts {
            let command = command_of(part);
            // After `--`, a script has the arguments of the program.
            let of_script = command.iter().position(|word| *word == "--").map(|at| &command[at + 1..]);
            let direct = (Path::new(command[0]) == binary()).then(|| &command[1..]);
            if let Some(args) = direct.or(of_script) {
                let mut parsed = Command::new(binary());
                CommandOutput::run(parsed.arg("--parse-only").args(args)).success();
            }
        }
    }
}

#[test]
fn the_small_profile_succeeds_on_the_cpu() {
    let Some(parts) = parts("small") else { return };
    // Packages of gigabytes, where they are installed at all.
    let elsewhere = |name: &str| name == "transformers";
    let names = parts.iter().map(|part| part["part"].as_str().expect("a part has a name"));
    let names: Vec<&str> = names.filter(|name| !elsewhere(name)).collect();
    let folder = tempfile::tempdir().expect("a directory for results");
    let (program, out) = (binary(), folder.path().join("with a space"));
    let path = |path: &Path| path.to_str().expect("the path is text").to_owned();
    let (program, out) = (path(&program), path(&out));
    let fixed = ["--glm4v", &program, "--out", &out, "--profile", "small", "--backend", "cpu"];
    // Limits are for a machine that does nothing else.
    let patient = ["--patience", "20", "--budget", "5400"];
    let only = names.iter().flat_map(|name| ["--part", name]);
    let run: Vec<&str> = ["hardware/run.py"].into_iter().chain(fixed).chain(patient).chain(only).collect();

    let done = python(&run).expect("python3 has just run");

    let report = done.success().stdout;
    for name in names {
        let good = ["ok", "not available here"].map(|status| format!("| {name} | {status} |"));
        assert!(good.iter().any(|row| report.contains(row)), "{name}: {report}");
    }
}
