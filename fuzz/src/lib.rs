//! What is done with hostile bytes, a plain function a target. None may panic, hang or take much memory.

use std::path::Path;
use std::sync::LazyLock;

use glm4v_data::{DatasetRegistry, DatasetSource, REGISTRY_FILE, Records};
use glm4v_processor::{
    VideoMetadata, DecodeLimits, ImageConfig, ImageProcessor, ImageSource, Message, Processor, ChatTemplateOptions,
    VideoConfig, VideoSource, VideoLimits, VideoProcessor, parse_messages,
};

/// Small enough that a run is fast, large enough that nothing is left out.
fn limits() -> DecodeLimits {
    DecodeLimits { max_side: 2000, max_pixels: 1_000_000, max_memory: 64 << 20, ..DecodeLimits::default() }
}

/// An image: decoded, resized, cut.
pub fn image(data: &[u8]) {
    let processor = ImageProcessor::new(&config("{}")).with_max_pixels(40_000).with_min_pixels(1);
    if let Ok(image) = limits().load(&ImageSource::Bytes(data.to_vec()))
        && let Ok(patched) = processor.process(&image)
    {
        assert_eq!(patched.pixel_values.len(), patched.grid.iter().product::<usize>() * processor.row_len());
    }
}

/// An animation as a video. Video files are left to ffmpeg.
pub fn animation(data: &[u8]) {
    let is = |at: usize, word: &[u8]| data.get(at..).is_some_and(|rest| rest.starts_with(word));
    if !(is(0, b"GIF87a")
        || is(0, b"GIF89a")
        || is(0, b"\x89PNG\r\n\x1a\n")
        || is(0, b"RIFF") && is(8, b"WEBP"))
    {
        return;
    }
    let frame = DecodeLimits { max_pixels: 60_000, ..limits() };
    let limits = VideoLimits { frame, max_frames: 12, ..VideoLimits::default() };
    let processor = VideoProcessor::new(VideoConfig::from_json("{}").expect("the defaults are good"))
        .with_limits(limits)
        .with_max_pixels(40_000);
    if let Ok(video) = processor.load(&VideoSource::Bytes(data.to_vec()).into()) {
        assert_eq!(video.pixel_values.len(), video.grid.iter().product::<usize>() * 1176);
        assert_eq!(video.timestamps.len(), video.grid[0]);
    }
}

static PROCESSOR: LazyLock<Processor> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/checkpoints/glm46v");
    Processor::load(&folder).expect("the golden checkpoint is good")
});

static CONVERSATION: LazyLock<(Vec<Message>, ChatTemplateOptions)> = LazyLock::new(|| {
    let messages = r#"[
        {"role": "system", "content": " Be kind.\n"},
        {"role": "user", "content": [{"type": "text", "text": "Où?"}, {"type": "image", "path": "x"}]},
        {"role": "assistant", "content": "<think>a</think>\nc", "reasoning_content": "because",
         "tool_calls": [{"function": {"name": "f", "arguments": {"city": "Oslo", "n": 3, "x": 1.5, "l": [1, "b"]}}}]},
        {"role": "tool", "content": "12"}, {"role": "user", "content": "thanks"}]"#;
    let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "description": "für"}}]);
    let options =
        ChatTemplateOptions { enable_thinking: Some(false), tools: Some(tools), ..ChatTemplateOptions::generation_prompt() };
    (parse_messages(messages, Path::new("")).expect("the conversation is good"), options)
});

/// A chat template, and what it makes of a conversation.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(processor) = PROCESSOR.clone().with_template(text.to_owned()) {
        let (messages, options) = &*CONVERSATION;
        let _ = processor.render(messages, options);
    }
}

/// A file of messages, rendered; and written and read again.
pub fn messages(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(messages) = parse_messages(text, Path::new("")) else { return };
    let _ = PROCESSOR.render(&messages, &ChatTemplateOptions::generation_prompt());
    let written = serde_json::to_string(&messages).expect("messages are json");
    parse_messages(&written, Path::new("")).expect("what was written can be read");
}

fn config(json: &str) -> ImageConfig {
    ImageConfig::from_json(json).expect("the defaults are good")
}

/// The configuration of images and videos, and what follows from it: sizes and frames.
pub fn preprocessor(data: &[u8]) {
    let (sizes, json) = data.split_at(data.len().min(8));
    let Ok(json) = std::str::from_utf8(json) else { return };
    let number = |at: usize| usize::from(sizes.get(at).copied().unwrap_or(1)) * 7;
    if let Ok(config) = ImageConfig::from_json(json) {
        let _ = ImageProcessor::new(&config).grid(number(0) + 1, number(1) * number(2) + 1);
    }
    if let Ok(config) = VideoConfig::from_json(json) {
        let video = VideoMetadata {
            frames: number(3) * number(4),
            frame_rate: (number(5) + 1) as f64 / (number(6) + 1) as f64,
            duration: Some(number(7) as f64),
        };
        let taken = config.sampling.indices(&video);
        assert!(taken.len().is_multiple_of(2) && taken.is_sorted());
        assert!(taken.iter().all(|&frame| frame < video.frames));
    }
}

/// A file of records: JSON, JSONL, parquet or tar by its first bytes. What can be opened has locations, and every record is read or
/// refused.
pub fn records(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("there is room for a file");
    std::io::Write::write_all(&mut file, data).expect("there is room for a file");
    let Ok(records) = Records::open(&DatasetSource::of_file(file.path()), None) else { return };
    for index in (0..records.len()).take(100) {
        let location = records.location(index);
        if let Ok(record) = records.read(index) {
            assert_eq!(record.location, location);
        }
    }
}

/// `dataset_info.json`, and every dataset that it names.
pub fn dataset_info(data: &[u8]) {
    let dir = tempfile::tempdir().expect("there is room for a directory");
    std::fs::write(dir.path().join(REGISTRY_FILE), data).expect("there is room for a file");
    let Ok(registry) = DatasetRegistry::load(dir.path()) else { return };
    for name in registry.names().take(100) {
        let splits = registry.splits(name).unwrap_or_default();
        for split in &splits {
            let _ = registry.find(&format!("{name}:{split}"));
        }
        let _ = registry.find(name);
    }
}

/// A model's `config.json`.
#[cfg(feature = "network")]
pub fn config_json(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = glm4v_model::Glm4vConfig::from_json(text);
    }
}

/// A safetensors file: its header, and every tensor that it announces.
#[cfg(feature = "network")]
pub fn header(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("there is room for a file");
    std::io::Write::write_all(&mut file, data).expect("there is room for a file");
    if let Ok(file) = glm4v_weights::TensorFile::open(file.path()) {
        for name in file.names() {
            let _ = file.float(&name, glm4v_model::Precision::F32.dtype());
        }
    }
}
