//! Checkpoint folders and conversations that cannot be used end in an error that says why.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::fs;
use std::path::Path;

use glm4v_processor::{
    ImageSource, Message, Part, Processor, ProcessorError, RenderOptions, SamplingRule, Segment, VideoData,
    VideoSource,
};
use serde_json::json;
use support::golden;
use tempfile::TempDir;

const FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"];

/// A copy of a good folder.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in FILES {
        fs::copy(golden().join("checkpoints/glm4v").join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// An error with its causes, as the binary prints them.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

fn refused(folder: &Path) -> String {
    let text = chain(&Processor::load(folder).unwrap_err());
    text.replace(&folder.display().to_string(), "DIR")
}

fn with_template(template: &str) -> Result<Processor, ProcessorError> {
    let folder = folder();
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    Processor::load(folder.path())
}

fn render(template: &str) -> Result<String, String> {
    let processor = with_template(template).unwrap();
    let messages = [Message::new("user", "hi")];
    processor.render(&messages, &RenderOptions::prompt()).map_err(|e| e.to_string())
}

fn image() -> ImageSource {
    ImageSource::Path(golden().join("images/shapes_56x56.png"))
}

fn encode(messages: &[Message]) -> Result<usize, String> {
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    let encoded = processor.encode(messages, &RenderOptions::prompt());
    encoded.map(|e| e.input_ids.len()).map_err(|e| chain(&e))
}

#[test]
fn a_missing_file_is_named_with_its_folder() {
    for file in ["tokenizer.json", "chat_template.jinja", "preprocessor_config.json"] {
        let folder = folder();
        fs::remove_file(folder.path().join(file)).unwrap();
        assert_eq!(
            refused(folder.path()),
            format!("DIR: has no {file}; copy it from the published checkpoint")
        );
    }
    let none = Path::new("/no/such/folder");
    assert_eq!(refused(none), "DIR: no such folder; give the folder of a checkpoint in Hugging Face layout");
}

#[test]
fn a_damaged_file_is_named() {
    let cases = [
        ("tokenizer.json", "{}", "DIR/tokenizer.json: not a tokenizer"),
        (
            "preprocessor_config.json",
            "{\n!",
            "DIR/preprocessor_config.json, line 2, column 1: not valid json",
        ),
        ("tokenizer_config.json", "", "DIR/tokenizer_config.json, line 1, column 0: not valid json"),
        (
            "preprocessor_config.json",
            r#"{"resample": 2}"#,
            "DIR/preprocessor_config.json: cannot be followed: \"resample\" is 2, needed 3 (bicubic)",
        ),
        (
            "tokenizer.json",
            r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#,
            "DIR/tokenizer.json: has no token <|image|>; is this the tokenizer of a GLM vision model?",
        ),
    ];
    for (file, text, needed) in cases {
        let folder = folder();
        fs::write(folder.path().join(file), text).unwrap();
        let text = refused(folder.path());
        assert!(text.starts_with(needed), "{text}");
    }
}

#[test]
fn a_normalizer_that_multiplies_letters_is_refused() {
    let replaced =
        |pattern: &str| json!({"type": "Replace", "pattern": {pattern: "a"}, "content": "aaaaaaaaaa"});
    let cases = [
        (json!(null), None),
        (json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}), None),
        (replaced("String"), None),
        (json!({"type": "Sequence", "normalizers": [replaced("String"), replaced("String")]}), Some("100")),
        (json!({"type": "Sequence", "normalizers": [replaced("Regex"), replaced("String")]}), Some("110")),
    ];
    for (normalizer, times) in cases {
        let folder = folder();
        let path = folder.path().join("tokenizer.json");
        let mut tokenizer: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        tokenizer["normalizer"] = normalizer;
        fs::write(&path, tokenizer.to_string()).unwrap();
        match times {
            None => drop(Processor::load(folder.path()).unwrap()),
            Some(times) => assert_eq!(
                refused(folder.path()),
                format!(
                    "DIR/tokenizer.json: its normalizer may make a text {times} times longer, needed at most 64; is this the \
                     tokenizer of a GLM vision model?"
                )
            ),
        }
    }
}

#[test]
fn the_template_may_lie_in_older_places() {
    let older = [
        ("tokenizer_config.json", r#"{"chat_template": "old"}"#),
        (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "x", "template": "no"}, {"name": "default", "template": "old"}]}"#,
        ),
        ("chat_template.json", r#"{"chat_template": "old"}"#),
    ];
    for (file, text) in older {
        let folder = folder();
        fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
        fs::write(folder.path().join(file), text).unwrap();
        let processor = Processor::load(folder.path()).unwrap();
        assert_eq!(processor.render(&[], &RenderOptions::default()).unwrap(), "old");
    }
}

#[test]
fn the_configuration_of_videos_is_looked_for_where_upstream_looks() {
    let folder = folder();
    let most = || {
        let config = Processor::load(folder.path()).unwrap().video_processor().config().clone();
        (config.frame.max_pixels, config.sampling.fps, config.sampling.rule)
    };
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();

    // The images' file, if there is no other: GLM-OCR has none.
    assert_eq!(most(), (9_633_792, 2.0, SamplingRule::Glm4v));
    write(
        "video_preprocessor_config.json",
        r#"{"fps": 4, "size": {"shortest_edge": 1, "longest_edge": 50000}}"#,
    );
    assert_eq!(most(), (50_000, 4.0, SamplingRule::Glm4v));
    write(
        "processor_config.json",
        r#"{"processor_class": "Glm46VProcessor", "video_processor": {"fps": 3}}"#,
    );
    assert_eq!(most(), (47_040_000, 3.0, SamplingRule::Glm46v));

    write("processor_config.json", r#"{"video_processor": {"fps": 0}}"#);
    let needed =
        "DIR/processor_config.json: cannot be followed: \"fps\" is 0, needed more than 0, at most 1000";
    assert_eq!(refused(folder.path()), needed);
    write("processor_config.json", "{}");
    write("video_preprocessor_config.json", "[");
    let said = refused(folder.path());
    assert!(
        said.starts_with("DIR/video_preprocessor_config.json, line 1, column 1: not valid json"),
        "{said}"
    );
}

#[test]
fn a_template_that_is_not_jinja_is_placed_by_line() {
    let error = with_template("a\n{% if %}").unwrap_err().to_string();
    assert!(error.starts_with("chat template, line 2: syntax error"), "{error}");
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    let error = render(endless).unwrap_err();
    assert_eq!(error, "chat template, line 1: no end after 10000000 steps; does it loop?");

    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    let error = render(recursive).unwrap_err();
    assert!(error.starts_with("chat template, line 1: "), "{error}");
}

#[test]
fn a_template_that_writes_too_much_is_stopped() {
    let long = "{% set x = 'x' * 10000 %}{% for a in range(10000) %}{{ x }}{% endfor %}";
    assert_eq!(render(long).unwrap_err(), "chat template: writes more than 16777220 bytes");
}

#[test]
fn a_template_may_refuse_and_fail() {
    let refusal = render("\n{{ raise_exception('no user turn') }}").unwrap_err();
    assert_eq!(refusal, "chat template, line 2: refuses the conversation: no user turn");
    let failure = render("\n\n{{ messages[0].nothing.at_all }}").unwrap_err();
    assert!(failure.starts_with("chat template, line 3: undefined value"), "{failure}");
}

#[test]
fn a_list_of_texts_reaches_the_template_as_one_text_for_the_model() {
    let template = "{% for m in messages %}{{ m.content }}|{% endfor %}";
    let processor = with_template(template).unwrap();
    let texts = || vec![Part::text("a"), Part::text("b")];
    let messages =
        [Message::new("system", texts()), Message::new("assistant", texts()), Message::new("user", texts())];

    let rendered = processor.render(&messages, &RenderOptions::default()).unwrap();

    // For the user the list stays, and is printed as Python would.
    assert_eq!(rendered, "ab|ab|[{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]|");
}

#[test]
fn a_text_that_spells_a_special_token_is_refused_by_place() {
    let spelled = |text: &str| Message::new("user", vec![Part::Image(image()), Part::text(text)]);
    let refusal = |token: &str| {
        format!(
            "message 1, part 1: its text spells {token}, which only the chat template writes; needed: a text without it"
        )
    };
    let system = Message::new("system", "s");
    for token in ["<|image|>", "<|user|>", "[gMASK]", "<|endoftext|>", "<|video|>"] {
        let messages = [system.clone(), spelled(&format!("what does {token} mean?"))];
        assert_eq!(encode(&messages).unwrap_err(), refusal(token));
    }
    // What a model writes itself is not meant.
    assert!(encode(&[system, spelled("<think>a</think>")]).is_ok());
}

#[test]
fn allowed_special_tokens_do_what_they_do_upstream() {
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    let processor = processor.with_special_tokens_allowed(true);
    let user = processor.tokenizer().special().user;
    let encode = |messages: &[Message]| processor.encode(messages, &RenderOptions::prompt());

    let turns = encode(&[Message::new("user", "a<|user|>b")]).unwrap();
    assert_eq!(turns.input_ids.iter().filter(|id| **id == user).count(), 2);
    let error = encode(&[Message::new("system", "s"), Message::new("user", "<|image|>")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the prompt has 1 <|image|> placeholders, but 0 images were given; \
         message 1: 1 placeholders for 0 images"
    );
}

#[test]
fn a_image_that_the_template_drops_is_an_error() {
    let dropped = Message::new("someone", vec![Part::Image(image())]);
    let error = encode(&[dropped]).unwrap_err();
    let needed = "the prompt has 0 <|image|> placeholders, but 1 images were given; \
                  message 0, part 0: 0 placeholders for 1 images";
    assert_eq!(error, needed);
}

#[test]
fn segments_and_images_must_agree() {
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    let segment = Segment { text: "<|image|><|image|>".to_owned(), is_label: false };
    let error = processor.encode_segments(&[segment], &[image()], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 2 <|image|> placeholders, but 1 images were given");
}

#[test]
fn a_video_that_the_template_drops_is_an_error() {
    let frames = vec![image(), image()];
    let video = Part::Video(VideoSource { data: VideoData::Frames(frames), frame_rate: None });
    let dropped = Message::new("someone", vec![Part::text("t"), video]);
    let error = encode(&[Message::new("system", "s"), dropped]).unwrap_err();
    let needed = "the prompt has 0 <|video|> placeholders, but 1 videos were given; \
                  message 1, part 1: 0 placeholders for 1 videos";
    assert_eq!(error, needed);
}

#[test]
fn of_several_bad_images_the_first_is_named() {
    let missing = |name: &str| Part::Image(ImageSource::Path(name.into()));
    let parts = vec![Part::Image(image()), missing("/no/a.png"), missing("/no/b.png")];
    let error = encode(&[Message::new("user", parts)]).unwrap_err();
    let needed =
        "image 1 of the conversation cannot be used: /no/a.png: cannot read: No such file or directory";
    assert!(error.starts_with(needed), "{error}");
}
