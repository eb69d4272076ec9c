//! Pipes, devices, full disks, closed streams, memory, and processes that write to one directory.

use std::os::unix::fs::symlink;
use std::process::Stdio;

use glm4v_tests::walk;

use super::*;

/// Files that must not be read as a whole, each with the text of its error.
fn special_files(dir: &Path) -> [(PathBuf, &'static str); 3] {
    let pipe = dir.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let huge = dir.join("huge");
    fs::File::create(&huge).unwrap().set_len(1 << 32).unwrap(); // takes no room
    [
        (pipe, "is a pipe; needed: a regular file"),
        ("/dev/zero".into(), "is a device; needed: a regular file"),
        (huge, "the limit for a file of its kind"),
    ]
}

#[test]
fn a_pipe_device_or_huge_file_in_a_model_directory_is_refused() {
    let other_dir = tempdir().unwrap();
    for (special_file, words) in special_files(other_dir.path()) {
        for file in [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "preprocessor_config.json",
            "video_preprocessor_config.json",
            "chat_template.jinja",
        ] {
            let model = with_corrupt(file, |_| None);
            symlink(&special_file, model.path().join(file)).unwrap();

            generate(model.path(), &["--prompt", "hi"]).failure(&[&format!("{file}: "), words]);
        }
        let model = with_corrupt("model.safetensors", |_| None);
        symlink(&special_file, model.path().join("model.safetensors.index.json")).unwrap();
        generate(model.path(), &["--prompt", "hi"]).failure(&["index.json: ", words]);
        glm4v(["info", "--model", model.path().to_str().unwrap()]).failure(&["index.json: ", words]);
    }
}

#[test]
fn a_pipe_device_or_huge_file_as_an_argument_is_refused() {
    let other_dir = tempdir().unwrap();
    let model = checkpoint();
    for (special_file, words) in special_files(other_dir.path()) {
        let dir = tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            let _ = symlink(&special_file, &path);
            path.to_str().unwrap().to_owned()
        };
        let adapter = dir.path().to_str().unwrap();
        let refused = |args: &[&str]| glm4v(args.iter().copied()).failure(&[words]);
        let generate = |args: &[&str]| generate(&model, args).failure(&[words]);

        refused(&["train", &at("run.toml")]);
        at("dataset_info.json");
        let model = model.to_str().unwrap();
        refused(&["eval", "--model", model, "--data", "x", "--data-dir", adapter]);
        generate(&["--messages", &at("messages.json")]);
        generate(&["--prompt", "hi", "--tools", &at("tools.json")]);
        at("adapter_config.json");
        generate(&["--prompt", "hi", "--adapter", adapter]);
    }
}

#[test]
fn messages_from_standard_input_are_read() {
    let line = format!(
        r#"echo '[{{"role": "user", "content": "hi"}}]' | {} generate --model {} --messages /dev/stdin"#,
        glm4v_tests::binary().display(),
        checkpoint().display()
    );

    CommandOutput::run(Command::new("sh").args(["-c", &line])).success();
}

#[test]
fn messages_from_dev_zero_are_refused() {
    generate(&checkpoint(), &["--messages", "/dev/zero"])
        .failure(&["/dev/zero: is a device; needed: a regular file"]);
}

#[test]
fn out_of_memory_and_stack_overflow_have_exit_code_1() {
    let doubled = "{% set ns=namespace(l=[0]) %}{% for i in range(60) %}{% set ns.l=ns.l+ns.l %}{% endfor %}{{ ns.l|length }}";
    let endless = "{% set ns=namespace() %}{% set ns.x=ns %}{{ ns == ns }}{{ ns ~ '' }}";
    for template in [doubled, endless] {
        let model = with_corrupt("chat_template.jinja", |_| Some(template.into()));

        let output = generate(model.path(), &["--prompt", "hi"]);

        assert_eq!(output.code, Some(1), "{template}: {output:?}");
    }
}

#[test]
fn an_output_directory_locked_by_another_process_is_refused() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("model");
    let mut first = slow_init(&out).stderr(Stdio::null()).spawn().unwrap();
    while !is_partially_written(&out) {
        assert_eq!(first.try_wait().unwrap(), None, "it is slow");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }

    let second = CommandOutput::run(&mut slow_init(&out));

    let id = first.id().to_string();
    assert!(Command::new("kill").arg(id).status().unwrap().success());
    first.wait().unwrap();
    second.failure(&["model: another process is writing it; wait until it is done, or choose another --out"]);
    assert_eq!(walk(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn one_of_three_concurrent_writers_succeeds() {
    let dir = tempdir().unwrap();
    let model = random_model(dir.path());
    let out = dir.path().join("out");
    let convert = |_| {
        let mut command = command();
        command.args(["convert", "--dtype", "bf16", "--shard-size", "100KB", "--model"]).arg(&model);
        command.arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };

    let all: Vec<_> = (0..3).map(convert).collect();
    let all: Vec<_> =
        all.into_iter().map(|child| CommandOutput::from(child.wait_with_output().unwrap())).collect();

    let (won, lost): (Vec<_>, Vec<_>) = all.iter().partition(|output| output.code == Some(0));
    assert_eq!(won.len(), 1, "{all:?}");
    for output in lost {
        let words =
            if output.stderr.contains("exists") { "exists already" } else { "another process is writing it" };
        output.failure(&[&format!("out: {words}"), "choose another --out"]);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "model and out");
    generate(&out, &["--prompt", "hi"]).success();
}

#[test]
fn warnings_have_colors_on_a_terminal_only() {
    let dir = tempdir().unwrap();
    for frame in ["a.png", "b.png"] {
        fs::copy(digit_image(), dir.path().join(frame)).unwrap();
    }
    let warned = |variables: &[(&str, &str)]| {
        let mut command = Command::new(glm4v_tests::binary());
        command.current_dir(repository()).env_remove("NO_COLOR").envs(variables.iter().copied());
        command.args(["generate", "--max-new-tokens", "1", "--prompt", "What?", "--model"]).arg(checkpoint());
        let output = CommandOutput::run(command.arg("--video").arg(dir.path())).success();
        assert!(output.stderr.contains("WARN"), "{output:?}");
        output.stderr.contains('\u{1b}')
    };

    assert!(warned(&[("CLICOLOR_FORCE", "1")]), "as on a terminal");
    assert!(!warned(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!warned(&[]), "no terminal");
}

#[test]
fn a_full_disk_leaves_no_partial_files() {
    let dir = tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out.safetensors"));
    let messages = dir.path().join("messages.json");
    fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();
    fs::write(&out, "old").unwrap();
    // Files of at most 64 blocks stand for a disk that is full; without the trap the signal would end the program.
    let limited = |command: &Command| {
        let mut limited = Command::new("sh");
        limited.current_dir(repository()).args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
        limited.arg(command.get_program()).args(command.get_args());
        CommandOutput::run(&mut limited)
    };

    let saved = limited(&train(&run, &["schedule.max_steps=2", "run.save_steps=1"]));
    let finished = limited(&train(&dir.path().join("other"), &["schedule.max_steps=1"]));
    let mut trace = command();
    trace
        .arg("trace")
        .arg("--model")
        .arg(checkpoint())
        .arg("--messages")
        .arg(&messages)
        .arg("--out")
        .arg(&out);
    let traced = limited(trace.arg("--activations"));

    saved.failure(&["checkpoints/", "model.safetensors: cannot write: File too large"]);
    finished.failure(&["model.safetensors: cannot write: File too large"]);
    traced.failure(&["out.safetensors: cannot write: File too large"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "old", "what was there before is untouched");
    assert_no_partial_files(dir.path());
}

#[test]
fn a_closed_pipe_ends_no_run_and_is_no_error() {
    let dir = tempdir().unwrap();
    let mut info = command().arg("info").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(info.stdout.take());
    let run = dir.path().join("run");
    let mut verbose = train(&run, &["schedule.max_steps=3", "data.max_length=99"]);
    let mut training = verbose.arg("-v").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(training.stderr.take());

    let info = CommandOutput::from(info.wait_with_output().unwrap());
    let training = CommandOutput::from(training.wait_with_output().unwrap());

    assert_eq!((info.code, info.stderr.as_str()), (Some(0), ""));
    assert_eq!(training.code, Some(0), "{training:?}");
    assert!(run.join("final").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_an_error() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();

    let output = command().arg("info").stdout(full).stderr(Stdio::piped()).spawn().unwrap();

    CommandOutput::from(output.wait_with_output().unwrap())
        .failure(&["cannot write to stdout: No space left"]);
}

#[cfg(target_os = "linux")] // other systems' folders take no such names
#[test]
fn paths_need_not_be_utf_8_but_texts_must() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let dir = tempdir().unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"mod\xffel"));
    let invalid_text = OsStr::from_bytes(b"h\xff");

    let missing = CommandOutput::run(command().args(["generate", "--prompt", "hi", "--model"]).arg(&odd));
    let text = CommandOutput::run(command().args(["generate", "--model", "x", "--prompt"]).arg(invalid_text));
    let config = CommandOutput::run(command().arg("train").arg(&odd));
    let made =
        CommandOutput::run(command().args(["init", "--config", "configs/models/digits", "--out"]).arg(&odd));
    let answered = generate(&odd, &["--prompt", "hi"]);

    missing.failure(&["no such directory"]);
    text.usage_error(&["invalid UTF-8"]);
    config.failure(&["cannot read: No such file"]);
    made.success();
    answered.success();
}
