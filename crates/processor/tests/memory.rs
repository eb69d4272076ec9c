//! Peak memory of images and videos: proportional to their pixels, independent of the length of a video.
#![expect(clippy::print_stdout, reason = "figures for those who ask with --nocapture")]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::path::Path;

use glm4v_processor::{
    ImageProcessor, ImageSource, Rgb, VideoConfig, VideoInput, VideoProcessor, resize_bicubic,
};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};
use peak_alloc::PeakAlloc;
use support::{ffmpeg, has_ffmpeg};
use tempfile::tempdir;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Peak bytes of `work`, on top of those allocated before.
fn peak<T>(what: &str, work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let done = work();
    let peak = ALLOCATOR.peak_usage() - before;
    println!("{what}: {peak} bytes");
    (done, peak)
}

/// Allocations that do not grow with the area of an image: tables of decoders, weights of a resize.
const MARGIN: usize = 2_000_000;

// A single test: allocations of others running at the same time would count.
#[test]
fn memory_is_bounded_by_pixels() {
    for (height, width) in [(1024, 1024), (3000, 4000)] {
        image_peak(height, width);
    }
    if has_ffmpeg() {
        let [short, long] = [400, 4000].map(video_peak);
        // Both are longer than what is sampled: the same frames in number.
        assert!(long < short + MARGIN, "{long} bytes for ten times the length, {short} for the short one");
    }
}

fn image_peak(height: usize, width: usize) {
    let level = |at: usize| (at % 251) as u8;
    let pixels: Vec<u8> = (0..height * width * 3).map(level).collect();
    let file = compress(&pixels, width, height, PixelFormat::Rgb, 90, Subsampling::S444).unwrap();
    drop(pixels);
    let (name, decoded) = (format!("{width}x{height}"), height * width * 3);
    let source = ImageSource::Bytes(file);

    let load = || ImageProcessor::load_image(&source).unwrap();
    let (image, loading) = peak(&format!("{name}, decoding"), load);
    // The planes that a JPEG keeps, here at full size, and the pixels.
    assert!(loading < 2 * decoded + MARGIN, "{loading} bytes to decode {decoded}");

    let processor = ImageProcessor::from_json("{}").unwrap();
    let [_, rows, columns] = processor.grid(height, width).unwrap();
    let (to_height, to_width) = (rows * 14, columns * 14);
    let (resized, between) = (to_height * to_width * 3, height * to_width * 3);
    let resize = || -> Rgb { resize_bicubic(&image, to_height, to_width) };
    let (_, resizing) = peak(&format!("{name}, resizing"), resize);
    assert!(resizing < between + resized + MARGIN, "{resizing} bytes to resize to {resized}");

    let (patched, processing) = peak(&format!("{name}, resizing and patches"), || processor.process(&image));
    let values = patched.unwrap().pixel_values.len() * 4;
    assert!(processing < resized + values.max(between) + MARGIN, "{processing} bytes for {values} of values");
}

/// Peak bytes of loading a video file of this duration.
fn video_peak(seconds: usize) -> usize {
    let folder = tempdir().unwrap();
    let video = format!("-f lavfi -i testsrc=size=56x56:rate=4:duration={seconds} -c:v mpeg4 video.mp4");
    ffmpeg(&folder, &video);
    let source = VideoInput::from(Path::new(&folder.path().join("video.mp4")).to_owned());
    let processor = VideoProcessor::new(VideoConfig::from_json("{}").unwrap());
    let (video, bytes) = peak(&format!("{seconds} seconds of video"), || processor.load(&source).unwrap());
    assert!(video.grid[0] > 100, "{:?}", video.grid);
    bytes
}
