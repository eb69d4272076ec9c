//! Images and videos that cannot be used.

use super::*;

/// An unusable image: file name, bytes (none: no such file), and texts of the error.
type BadImage = (&'static str, Option<Vec<u8>>, &'static [&'static str]);

/// A BMP file of 24-bit pixels, `bytes` long whatever the size in its header.
fn bmp(width: u32, height: u32, bytes: usize) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    for word in [bytes as u32, 0, 54, 40, width, height, 0x18_0001, 0, 0, 0, 0, 0, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.resize(bytes, 0x50);
    file
}

fn bad_images() -> Vec<BadImage> {
    let whole = fs::read(digit_image()).unwrap();
    let middle = whole.len() / 2;
    let mut damaged = whole.clone();
    damaged[middle] ^= 0xff;
    vec![
        ("damaged.png", Some(damaged), &["damaged.png: damaged or unsupported png"]),
        (
            "truncated.png",
            Some(whole[..middle].to_vec()),
            &["truncated.png: ends early, the file is cut off"],
        ),
        ("empty.png", Some(vec![]), &["empty.png: is empty"]),
        ("text.png", Some(b"not an image".to_vec()), &["text.png: not an image; png, jpeg"]),
        (
            "bomb.bmp",
            Some(bmp(20_000, 20_000, 1024)),
            &["bomb.bmp: announces 20000x20000 pixels", "16384 a side"],
        ),
        ("long.bmp", Some(bmp(402, 2, 54 + 2 * 1208)), &["aspect ratio must be smaller than 200, got 201"]),
        ("missing.png", None, &["missing.png: cannot read: No such file"]),
    ]
}

#[test]
fn generate_names_an_unusable_image() {
    for (name, bytes, words) in bad_images() {
        let dir = tempdir().unwrap();
        let path = dir.path().join(name);
        bytes.iter().for_each(|bytes| fs::write(&path, bytes).unwrap());

        let output = generate(&checkpoint(), &["--prompt", "What?", "--image", path.to_str().unwrap()]);

        output.failure(&[words, &["image 0 of the conversation"]].concat());
    }
}

#[test]
fn train_names_an_unusable_image_with_the_line_of_its_record() {
    for (name, bytes, words) in bad_images() {
        let dir = tempdir().unwrap();
        bytes.iter().for_each(|bytes| fs::write(dir.path().join(name), bytes).unwrap());
        let data = data_with_last_record(dir.path(), &record(name, "x").to_string());

        let output = train_on(dir.path(), &data, &[]);

        output.failure(&[words, &["data.jsonl: line 17"]].concat());
        assert_no_partial_files(dir.path());
    }
}

#[test]
fn a_directory_or_url_as_image_is_refused() {
    for (image, words) in [
        ("datasets", "datasets: is a directory; needed: a regular file"),
        (
            "https://example.org/a.png",
            "network is off; needed: a local path or a data: URL; or allow it with --allow-http",
        ),
        ("data:image/png,abc", "needed: data:<type>;base64,<data>"),
    ] {
        generate(&checkpoint(), &["--prompt", "What?", "--image", image]).failure(&[words]);
    }
}

#[test]
fn an_image_url_in_training_data_is_refused_without_naming_a_missing_flag() {
    let dir = tempdir().unwrap();
    let data = data_with_last_record(dir.path(), &record("http://example.org/a.png", "x").to_string());

    let output = train_on(dir.path(), &data, &[]);

    output.failure(&["line 17", "http://example.org/a.png: fetching over the network is off"]);
    assert!(!output.stderr.contains("--allow-http"), "{output:?}");
}

#[test]
fn an_empty_media_path_is_refused() {
    for flag in ["--image", "--video"] {
        generate(&checkpoint(), &["--prompt", "what?", flag, ""]).failure(&["path of the ", " is empty"]);
    }
}

#[test]
fn an_unusable_video_is_named() {
    let dir = tempdir().unwrap();
    let truncated = dir.path().join("cut.mp4");
    fs::write(&truncated, b"\0\0\0\x18ftypmp42").unwrap();
    let truncated = truncated.to_str().unwrap();

    // A stand-in for ffprobe, as the machine need not have it.
    #[cfg(unix)]
    video_with_path(truncated, &failing_ffprobe(dir.path())).failure(&[
        "video 0 of the conversation",
        truncated,
        "not a video that ffprobe can read: moov atom not found",
    ]);
    generate(&checkpoint(), &["--prompt", "what?", "--video", dir.path().to_str().unwrap()])
        .failure(&["has no frames"]);
    video_with_path(truncated, Path::new(""))
        .failure(&["needs ffprobe, which is not installed", "apt-get install"]);
}

/// Runs `generate` on a video with another `PATH`.
fn video_with_path(video: &str, path: &Path) -> CommandOutput {
    let args = ["generate", "--prompt", "what?", "--video", video, "--model"];
    CommandOutput::run(command().args(args).arg(checkpoint()).env("PATH", path))
}

/// A directory with an `ffprobe` that fails with the error of the real one.
#[cfg(unix)]
fn failing_ffprobe(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;

    let path = dir.join("bin");
    fs::create_dir(&path).unwrap();
    let program = path.join("ffprobe");
    fs::write(&program, "#!/bin/sh\necho '[mov,mp4 @ 0x55] moov atom not found' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
