//! Videos from folders, animations and video files, and the errors of invalid ones.
//!
//! Video files are made with the installed `ffmpeg`, which also decodes them.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use glm4v_inputs::Modality;
use glm4v_processor::{
    ChatTemplateOptions, ContentPart, DecodeLimits, ImageSource, Message, PatchedVideo, Processor, Rgb,
    VideoConfig, VideoError, VideoInput, VideoLimits, VideoProcessor, VideoSource,
};
use support::{ffmpeg, frames, golden, has_ffmpeg, videos};
use tempfile::{TempDir, tempdir};

fn processor() -> VideoProcessor {
    VideoProcessor::new(VideoConfig::from_json("{}").unwrap())
}

fn load(path: &Path) -> PatchedVideo {
    processor().load(&path.to_owned().into()).unwrap()
}

fn refused(processor: &VideoProcessor, source: VideoInput) -> String {
    processor.load(&source).unwrap_err().to_string()
}

/// Filters with the RGB of torchcodec for nearly every video file.
const RGB: &str = "scale=flags=bicubic,format=rgb24";

/// Every frame of a video file, decoded by ffmpeg without sampling.
fn all_frames(folder: &TempDir, file: &str, width: usize, height: usize) -> Vec<Rgb> {
    filtered(folder, file, RGB, width, height)
}

fn filtered(folder: &TempDir, file: &str, filters: &str, width: usize, height: usize) -> Vec<Rgb> {
    let raw = format!("-vf {filters} -fps_mode passthrough -f rawvideo");
    ffmpeg(folder, &format!("-noautorotate -i {file} {raw} frames.raw"));
    let bytes = fs::read(folder.path().join("frames.raw")).unwrap();
    bytes.chunks(width * height * 3).map(|frame| Rgb::new(height, width, frame.to_vec()).unwrap()).collect()
}

fn images(frames: Vec<Rgb>, frame_rate: Option<f64>) -> VideoInput {
    VideoInput {
        data: VideoSource::Frames(frames.into_iter().map(ImageSource::Pixels).collect()),
        frame_rate,
    }
}

#[test]
fn a_file_equals_the_video_of_its_frames() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    // H.264 has frames that are stored in another order than they are shown, VP8 has none.
    let files = [
        ("a.mp4", "testsrc=size=96x64:rate=25:duration=3", "-c:v libx264 -g 30 -bf 3", 25.0, 75),
        ("b.mov", "testsrc=size=64x96:rate=24000/1001:duration=2.5", "-c:v libx264", 24_000.0 / 1001.0, 60),
        ("c.webm", "testsrc=size=96x64:rate=10:duration=4", "-c:v libvpx", 10.0, 40),
    ];
    for (file, source, codec, rate, count) in files {
        ffmpeg(&folder, &format!("-f lavfi -i {source} -pix_fmt yuv420p {codec} {file}"));
        let (width, height) = if file == "b.mov" { (64, 96) } else { (96, 64) };
        let every = all_frames(&folder, file, width, height);
        assert_eq!(every.len(), count, "{file}");

        let video = load(&folder.path().join(file));

        let expected = processor().load(&images(every, Some(rate))).unwrap();
        assert_eq!(video.grid, expected.grid, "{file}");
        assert!(video.pixel_values == expected.pixel_values, "{file}");
        let times = video.timestamps.iter().zip(&expected.timestamps);
        assert!(times.into_iter().all(|(a, b)| (a - b).abs() < 1e-6), "{file}: {:?}", video.timestamps);
    }
}

#[test]
fn hundreds_of_frames_of_a_long_file_are_sampled() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    ffmpeg(
        &folder,
        "-f lavfi -i testsrc=size=32x32:rate=8:duration=320 -c:v libx264 -preset ultrafast a.mp4",
    );
    let every = all_frames(&folder, "a.mp4", 32, 32);

    let video = load(&folder.path().join("a.mp4"));

    let expected = processor().load(&images(every, Some(8.0))).unwrap();
    assert_eq!((video.grid[0], &video.timestamps), (300, &expected.timestamps));
    assert!(video.pixel_values == expected.pixel_values);
}

#[test]
fn a_rotated_file_is_decoded_upright() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    ffmpeg(&folder, "-f lavfi -i testsrc=size=112x56:rate=4:duration=1 -pix_fmt yuv420p a.mp4");
    ffmpeg(&folder, "-i a.mp4 -c copy -metadata:s:v:0 rotate=90 b.mp4");

    let (flat, turned) = (load(&folder.path().join("a.mp4")), load(&folder.path().join("b.mp4")));

    assert_eq!((flat.grid, turned.grid), ([1, 4, 8], [1, 8, 4]));
}

/// The filters named here were compared with torchcodec, to the bit.
#[test]
fn every_pixel_format_has_the_colors_of_torchcodec() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    let (bilinear, bt709) =
        ("scale=flags=bilinear,format=rgb24", "scale=flags=bicubic:in_color_matrix=bt709,format=rgb24");
    let files = [
        ("yuv420p10le", 64, 64, RGB, bilinear),
        // Odd sides of 8 bits go the same way.
        ("yuv420p", 67, 65, RGB, bilinear),
        // Directly by swscale, and by a filter.
        ("gbrp10le", 64, 64, bt709, RGB),
        ("gbrp10le", 68, 64, RGB, bt709),
    ];
    for (format, width, height, filters, others) in files {
        // Noise in YUV has RGB of all ten bits; the matrices differ in the last bit of eight.
        let source = "-f lavfi -i testsrc=size=96x96:rate=4:duration=1";
        let made = format!("format=yuv444p,noise=alls=30,crop={width}:{height}:exact=1,format={format}");
        ffmpeg(&folder, &format!("{source} -vf {made} -c:v ffv1 a.mkv"));

        let video = load(&folder.path().join("a.mkv"));

        let expected = |filters| {
            let every = filtered(&folder, "a.mkv", filters, width, height);
            processor().load(&images(every, Some(4.0))).unwrap()
        };
        let name = format!("{format} {width}x{height}");
        assert!(video.pixel_values == expected(filters).pixel_values, "{name}");
        assert!(video.pixel_values != expected(others).pixel_values, "{name}: nothing is tested");
    }
}

#[test]
fn a_file_is_rotated_in_rgb_and_never_mirrored() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    ffmpeg(&folder, "-f lavfi -i testsrc=size=112x56:rate=4:duration=1 -pix_fmt yuv420p10le a.mp4");
    let flat = fs::read(folder.path().join("a.mp4")).unwrap();
    let turns = [
        ([0, 1, -1, 0], ",transpose=clock"),
        ([0, -1, 1, 0], ",transpose=cclock"),
        ([-1, 0, 0, -1], ",hflip,vflip"),
        // Two mirrors; of the first torchcodec sees half a turn.
        ([-1, 0, 0, 1], ",hflip,vflip"),
        ([1, 0, 0, -1], ""),
    ];
    for (matrix, turn) in turns {
        // The track's header has the matrix, of 16.16 bits, 44 bytes after its name.
        let mut bytes = flat.clone();
        let start = bytes.windows(4).position(|name| name == b"tkhd").unwrap() + 44;
        for (place, value) in [0, 4, 12, 16].into_iter().zip(matrix) {
            bytes[start + place..][..4].copy_from_slice(&(value * 65536_i32).to_be_bytes());
        }
        fs::write(folder.path().join("b.mp4"), bytes).unwrap();

        let video = load(&folder.path().join("b.mp4"));

        let (width, height) = if turn.contains("transpose") { (56, 112) } else { (112, 56) };
        let every = filtered(&folder, "b.mp4", &format!("{RGB}{turn}"), width, height);
        let expected = processor().load(&images(every, Some(4.0))).unwrap();
        assert_eq!(video.grid, expected.grid, "{matrix:?}");
        assert!(video.pixel_values == expected.pixel_values, "{matrix:?}");
    }
}

#[test]
fn a_folder_equals_the_video_of_its_images() {
    let folder = tempdir().unwrap();
    let every = frames("template_12x56x56.png");
    for (index, frame) in every.iter().enumerate() {
        let image = image::RgbImage::from_raw(56, 56, frame.pixels().to_vec()).unwrap();
        image.save(folder.path().join(format!("frame{index}.png"))).unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "not a frame").unwrap();
    let path = folder.path().to_owned();

    let whole = load(&path);
    let rated = processor().with_frame_rate(6.0).load(&path.clone().into()).unwrap();

    let expected = |rate| processor().load(&images(every.clone(), rate)).unwrap();
    assert!(whole == expected(None) && rated == expected(Some(6.0)));
    assert_eq!(whole.grid[0], 6);
    // Frames 0, 3, 6 and 9 of 6 a second.
    assert_eq!((rated.grid[0], rated.timestamps), (2, vec![0.0, 1.0]));
}

#[test]
fn an_animation_can_be_bytes_or_a_url() {
    use base64::Engine;
    let path = videos().join("sampled_30f_4fps.png");
    let bytes = fs::read(&path).unwrap();
    let url = base64::engine::general_purpose::STANDARD.encode(&bytes);

    let of = |data: VideoSource| processor().load(&data.into()).unwrap();

    let expected = load(&path);
    assert!(of(VideoSource::Bytes(bytes)) == expected);
    assert!(of(VideoSource::Url(format!("data:image/apng;base64,{url}"))) == expected);
}

#[test]
fn a_file_can_be_bytes() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    ffmpeg(&folder, "-f lavfi -i testsrc=size=64x64:rate=5:duration=2 a.mp4");
    let path = folder.path().join("a.mp4");

    let bytes = VideoSource::Bytes(fs::read(&path).unwrap());

    assert!(processor().load(&bytes.into()).unwrap() == load(&path));
}

#[test]
fn gif_and_webp_have_timestamps() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    let source = "-f lavfi -i testsrc=size=56x56:rate=5:duration=4";
    ffmpeg(&folder, &format!("{source} a.gif"));
    ffmpeg(&folder, &format!("{source} -c:v libwebp_anim -lossless 1 a.webp"));
    for file in ["a.gif", "a.webp"] {
        let video = load(&folder.path().join(file));

        if file == "a.gif" {
            // Frame for frame what ffmpeg makes of it.
            let every = all_frames(&folder, file, 56, 56);
            assert!(video == processor().load(&images(every, Some(5.0))).unwrap());
        }
        // 20 frames of 4 s: two a second are 0, 3, 5, 8, 10, 13, 15, 18.
        assert_eq!(video.grid[0], 4, "{file}");
        assert_eq!(video.timestamps, [0.0, 1.0, 2.0, 3.0], "{file}");
    }
}

#[test]
fn files_that_are_not_videos_are_named() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("words.mp4"), "these are words").unwrap();
    fs::write(at("empty.mp4"), "").unwrap();
    fs::create_dir(at("none")).unwrap();
    fs::create_dir(at("one")).unwrap();
    let still = golden().join("images/shapes_56x56.png");
    fs::copy(&still, at("one/1.png")).unwrap();
    let error = |path: PathBuf| {
        refused(&processor(), path.into()).replace(&folder.path().display().to_string(), "DIR")
    };

    assert!(error(at("missing.mp4")).starts_with("DIR/missing.mp4: cannot read: "));
    assert_eq!(error(at("empty.mp4")), "DIR/empty.mp4: is empty");
    let words = error(at("words.mp4"));
    let needed =
        if has_ffmpeg() { "not a video that ffprobe can read: " } else { "reading it needs ffprobe" };
    assert!(words.starts_with(&format!("DIR/words.mp4: {needed}")), "{words}");
    assert_eq!(error(at("none")), "DIR/none: has no frames");
    assert_eq!(error(at("one")), "DIR/one: 1 frame to show, needed at least 2; give it as an image");
    assert!(error(still).ends_with("is a still image, needed a video; give it as an image"));
    #[cfg(unix)]
    assert!(error("/dev/zero".into()).starts_with("/dev/zero: is a device; needed: a regular file"));
    let remote = VideoInput::parse("https://example.org/a.mp4", "".as_ref());
    assert!(refused(&processor(), remote).starts_with("https://example.org/a.mp4: fetching"));
}

/// A video file may not make ffmpeg read what was not given.
#[test]
fn a_playlist_is_refused() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    ffmpeg(&folder, "-f lavfi -i testsrc=size=64x64:rate=5:duration=1 secret.mp4");
    let secret = folder.path().join("secret.mp4").display().to_string();
    let lists = [
        ("a.mp4", format!("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n")),
        ("b.mp4", format!("ffconcat version 1.0\nfile '{secret}'\n")),
    ];
    for (name, text) in lists {
        fs::write(folder.path().join(name), text).unwrap();

        let error = refused(&processor(), folder.path().join(name).into());

        assert!(error.contains("not a video that ffprobe can read"), "{error}");
    }
}

#[test]
fn every_limit_is_enforced_and_named() {
    if !has_ffmpeg() {
        return;
    }
    let folder = tempdir().unwrap();
    ffmpeg(&folder, "-f lavfi -i testsrc=size=64x48:rate=10:duration=2 a.mp4");
    let source = || VideoInput::from(folder.path().join("a.mp4"));
    let (limits, frame) = (VideoLimits::default, DecodeLimits::default);
    let cases = [
        (VideoLimits { max_frames: 19, ..limits() }, "20 frames or more, the limit is 19; cut the video"),
        (
            VideoLimits { max_sampled_frames: 3, ..limits() },
            "4 frames would be shown, the limit is 3; cut the video",
        ),
        (VideoLimits { max_seconds: 0, ..limits() }, "not read after 0 s, the limit; cut the video"),
        (
            VideoLimits { frame: DecodeLimits { max_side: 63, ..frame() }, ..limits() },
            "announces 64x48 pixels",
        ),
    ];
    for (limits, needed) in cases {
        let error = refused(&processor().with_limits(limits), source());
        assert!(error.contains(needed), "{error}");
    }
    // The same limits for an animation.
    let animation = || VideoInput::from(videos().join("sampled_30f_4fps.png"));
    let few = processor().with_limits(VideoLimits { max_frames: 29, ..limits() });
    assert!(refused(&few, animation()).contains("30 frames or more"));
    let small = VideoLimits { frame: DecodeLimits { max_side: 39, ..frame() }, ..limits() };
    assert!(refused(&processor().with_limits(small), animation()).contains("announces 40x30"));
}

#[test]
fn frame_rates_are_for_images_and_in_range() {
    let mut own = VideoInput::from(videos().join("sampled_30f_4fps.png"));
    own.frame_rate = Some(3.0);
    assert!(refused(&processor(), own).contains("was given a frame rate but has its own"));
    for rate in [0.0, -1.0, f64::NAN, 1001.0] {
        let error = refused(&processor(), images(frames("template_8x84x56.png"), Some(rate)));
        assert!(error.contains("needed more than 0, at most 1000"), "{error}");
    }
}

#[test]
fn frames_of_several_sizes_are_refused() {
    let mut mixed = frames("template_8x84x56.png");
    mixed.push(frames("template_12x56x56.png").remove(0));
    let error = refused(&processor(), images(mixed, None));
    assert_eq!(error, "a list of 9 images: frame 8 has 56x56 pixels, those before have 84x56");
}

#[test]
fn a_video_without_duration_is_too_short_for_glm46v() {
    let config = VideoConfig::from_json(r#"{"video_processor_type": "Glm46VVideoProcessor"}"#).unwrap();
    let short = images(frames("template_8x84x56.png"), Some(60.0));
    let error = VideoProcessor::new(config).load(&short).unwrap_err();
    assert!(matches!(error, VideoError::TooShort { .. }), "{error}");
}

#[test]
fn every_video_of_a_prompt_has_its_own_frames_and_timestamps() {
    for (family, times) in [("glm4v", "0123456"), ("glm46v", "0.0 seconds")] {
        let processor = Processor::load(&golden().join("checkpoints").join(family)).unwrap();
        // 30 frames at 4 and at 10 a second, and an image between the videos.
        let video = |file: &str| ContentPart::Video(videos().join(file).into());
        let image = ContentPart::Image(ImageSource::Path(golden().join("images/shapes_56x56.png")));
        let encode = |parts: Vec<ContentPart>| {
            processor
                .encode(&[Message::new("user", parts)], &ChatTemplateOptions::generation_prompt())
                .unwrap()
        };

        let (first, second) = ("sampled_30f_4fps.png", "sampled_30f_10fps.png");
        let both = encode(vec![video(first), image, video(second)]);

        let (one, other) = (encode(vec![video(first)]), encode(vec![video(second)]));
        let [all, first, second] = [&both, &one, &other].map(|sample| sample.media.patches(Modality::Video));
        assert_eq!(all.grids, [&first.grids[..], &second.grids].concat());
        assert!(all.grids[0] != all.grids[1]);
        assert!(all.values == [&first.values[..], &second.values].concat());
        // Between begin and end of each video are the same tokens as when it is alone.
        let special = processor.tokenizer().special();
        let video_ids = |ids: &[u32]| {
            let starts = ids.iter().enumerate().filter(|(_, id)| Some(**id) == special.begin_of_video);
            let stretch = |(at, _)| {
                ids[at..]
                    .iter()
                    .copied()
                    .take_while(|id| Some(*id) != special.end_of_video)
                    .collect::<Vec<_>>()
            };
            starts.map(stretch).collect::<Vec<_>>()
        };
        let alone = [video_ids(&one.input_ids), video_ids(&other.input_ids)].concat();
        assert_eq!(video_ids(&both.input_ids), alone);
        let types = both.mm_token_type_ids();
        let kinds = |kind| types.iter().filter(|k| **k == kind).count();
        let tokens: usize = all.grids.iter().map(|grid| grid.tokens(2)).sum();
        assert_eq!((kinds(1), kinds(2)), (9, tokens));
        let text = processor.tokenizer().decode(&alone[0], true);
        assert!(text.starts_with(times), "{text}");
    }
}
