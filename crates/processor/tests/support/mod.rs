//! Golden cases: what transformers makes of inputs that we have too.
//!
//! They lie in `tests/fixtures/golden`. `GLM4V_GOLDEN=<folder>` points the same tests at another
//! folder of the same layout, such as the whole set from which the fixtures were taken.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use glm4v_processor::Rgb;
use image::codecs::png::PngDecoder;
use image::{AnimationDecoder, DynamicImage};
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) fn golden() -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden");
    std::env::var_os("GLM4V_GOLDEN").map_or_else(|| fixtures.into(), PathBuf::from)
}

pub(crate) fn json(path: impl AsRef<Path>) -> Value {
    let path = golden().join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// A file of tensors.
pub(crate) struct Tensors(Vec<u8>);

impl Tensors {
    pub(crate) fn read(path: impl AsRef<Path>) -> Self {
        Self(fs::read(golden().join(path)).unwrap())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    /// Shape and bytes.
    pub(crate) fn bytes(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        (tensor.shape().to_vec(), tensor.data().to_vec())
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        let (_, bytes) = self.bytes(name);
        let words = bytes.chunks_exact(4);
        words.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub(crate) fn grids(&self, name: &str) -> Vec<[usize; 3]> {
        let (_, bytes) = self.bytes(name);
        let words = bytes.chunks_exact(8);
        let values: Vec<usize> = words.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect();
        values.chunks_exact(3).map(|g| [g[0], g[1], g[2]]).collect()
    }
}

/// Names of the `.json` files of a folder, without the ending; never none.
pub(crate) fn cases(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(golden().join(folder)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(!names.is_empty(), "no cases in {folder}");
    names.sort();
    names
}

pub(crate) fn usizes(value: &Value) -> Vec<usize> {
    let values = value.as_array().unwrap();
    values.iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

/// Videos with their checksums.
pub(crate) fn videos() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/processor/video").into()
}

/// The frames of a video.
pub(crate) fn frames(file: &str) -> Vec<Rgb> {
    let file = std::io::Cursor::new(fs::read(videos().join(file)).unwrap());
    let frames = PngDecoder::new(file).unwrap().apng().unwrap().into_frames();
    frames.map(|frame| DynamicImage::ImageRgba8(frame.unwrap().into_buffer()).into()).collect()
}

/// FNV-1a, as in the `make.py` beside the checksums.
pub(crate) fn checksum(bytes: impl IntoIterator<Item = u8>) -> String {
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let sum = bytes.into_iter().fold(0xCBF2_9CE4_8422_2325, step);
    format!("{sum:016x}")
}

/// Whether video files can be made and read. Without ffmpeg their tests have nothing to do, unless
/// `GLM4V_NEED_FFMPEG` is set, as `.ci/run` does.
pub(crate) fn has_ffmpeg() -> bool {
    let there =
        ["ffmpeg", "ffprobe"].iter().all(|program| Command::new(program).arg("-version").output().is_ok());
    assert!(there || std::env::var_os("GLM4V_NEED_FFMPEG").is_none(), "needs ffmpeg: apt-get install ffmpeg");
    #[allow(clippy::print_stderr, reason = "a test that is left out says so")]
    if !there {
        eprintln!("LEFT OUT: no ffmpeg here, so that tests of video files have nothing to do");
    }
    there
}

/// Runs ffmpeg in a folder, with words between spaces.
pub(crate) fn ffmpeg(folder: &TempDir, args: &str) {
    let mut command = Command::new("ffmpeg");
    command.current_dir(folder.path()).args(["-v", "error", "-nostdin", "-y"]).args(args.split(' '));
    let status = command.status().expect("was there a moment ago");
    assert!(status.success(), "ffmpeg {args}");
}
