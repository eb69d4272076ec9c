//! Videos against transformers, to the bit.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::fs;

use glm4v_processor::{
    FrameSamplingConfig, FrameSamplingRule, ImageSource, PatchedVideo, Rgb, VideoConfig, VideoInput,
    VideoMetadata, VideoProcessor, VideoSource,
};
use serde_json::Value;
use support::{Tensors, cases, checksum, frames, golden, json, usizes, videos};

fn rows(file: &str) -> Vec<Value> {
    serde_json::from_str(&fs::read_to_string(videos().join(file)).unwrap()).unwrap()
}

/// `Glm4vVideoProcessor()` with the options of a case.
fn processor(case: &Value) -> VideoProcessor {
    let options = case.get("options").map_or("{}".to_owned(), Value::to_string);
    VideoProcessor::new(VideoConfig::from_json(&options).unwrap())
}

fn images(frames: Vec<Rgb>, frame_rate: Option<f64>) -> VideoInput {
    VideoInput {
        data: VideoSource::Frames(frames.into_iter().map(ImageSource::Pixels).collect()),
        frame_rate,
    }
}

#[test]
fn both_rules_sample_the_frames_of_transformers() {
    let rows = rows("sample_frames.json");
    assert_eq!(rows.len(), 60);
    for row in &rows {
        for (family, rule) in [("glm4v", FrameSamplingRule::Glm4v), ("glm46v", FrameSamplingRule::Glm46v)] {
            let sampling =
                FrameSamplingConfig { rule, fps: 2.0, max_duration: 300.0, temporal_patch_size: 2 };
            let video = VideoMetadata {
                frames: row["total"].as_u64().unwrap() as usize,
                frame_rate: row["fps"].as_f64().unwrap(),
                duration: row["duration"].as_f64(),
            };
            assert_eq!(sampling.indices(&video), usizes(&row[family]), "{family} {video:?}");
        }
    }
}

fn bytes(video: &PatchedVideo) -> impl Iterator<Item = u8> {
    video.pixel_values.iter().flat_map(|value| value.to_le_bytes())
}

#[test]
fn videos_have_the_pixel_values_of_transformers() {
    let rows = rows("checksums.json");
    assert_eq!(rows.len(), 6);
    for row in &rows {
        let file = row["file"].as_str().unwrap();
        // With a frame rate frames are sampled, as in these cases of transformers; without one all are used.
        let source = images(frames(file), row["fps"].as_f64());

        let video = processor(row).load(&source).unwrap();

        assert_eq!(video.grid.to_vec(), usizes(&row["grid"]), "{file}");
        assert_eq!(row["pixel_values"], checksum(bytes(&video)), "{file}");
        if let Some(times) = row.get("timestamps").and_then(Value::as_array) {
            let times: Vec<f64> = times.iter().step_by(2).map(|time| time.as_f64().unwrap()).collect();
            assert_eq!(video.timestamps, times, "{file}");
        }
    }
}

#[test]
fn an_animation_equals_the_video_of_its_frames() {
    for row in rows("checksums.json").iter().filter(|row| row["sampling"] == true) {
        let path = videos().join(row["file"].as_str().unwrap());

        let video = processor(row).load(&path.into()).unwrap();

        assert_eq!(row["pixel_values"], checksum(bytes(&video)), "{}", row["file"]);
    }
}

/// The tensors themselves, where the whole golden set is at hand (`GLM4V_GOLDEN`).
#[test]
fn frames_of_the_whole_set_have_its_pixel_values() {
    if !golden().join("processor/video").exists() {
        return;
    }
    for name in cases("processor/video") {
        let case = json(format!("processor/video/{name}.json"));
        let tensors = Tensors::read(format!("processor/video/{name}.safetensors"));
        let (shape, frames) = tensors.bytes("in.frames");
        let frames = frames.chunks(shape[1] * shape[2] * 3);
        let frames = frames.map(|frame| Rgb::new(shape[1], shape[2], frame.to_vec()).unwrap()).collect();

        let video = processor(&case).load(&images(frames, case["fps"].as_f64())).unwrap();

        assert_eq!([video.grid].to_vec(), tensors.grids("out.video_grid_thw"), "{name}");
        assert!(video.pixel_values == tensors.f32("out.pixel_values_videos"), "{name}");
    }
}
