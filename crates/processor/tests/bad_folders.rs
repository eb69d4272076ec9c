//! Invalid checkpoint folders and conversations are errors with a reason.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::fs;
use std::path::Path;

use glm4v_processor::{
    ChatTemplateOptions, ContentPart, FrameSamplingRule, ImageSource, LabeledText, Message, Processor,
    ProcessorError, VideoInput, VideoSource,
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
    processor.render(&messages, &ChatTemplateOptions::generation_prompt()).map_err(|e| e.to_string())
}

fn image() -> ImageSource {
    ImageSource::Path(golden().join("images/shapes_56x56.png"))
}

fn encode(messages: &[Message]) -> Result<usize, String> {
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    let encoded = processor.encode(messages, &ChatTemplateOptions::generation_prompt());
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
    assert_eq!(
        refused(none),
        "DIR: no such directory; give the directory of a checkpoint in Hugging Face layout"
    );
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
fn a_normalizer_that_expands_texts_is_refused() {
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
fn the_template_is_found_in_older_places() {
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
        assert_eq!(processor.render(&[], &ChatTemplateOptions::default()).unwrap(), "old");
    }
}

#[test]
fn the_video_config_is_found_as_in_transformers() {
    let folder = folder();
    let most = || {
        let config = Processor::load(folder.path()).unwrap().video_processor().config().clone();
        (config.frame.max_pixels, config.sampling.fps, config.sampling.rule)
    };
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();

    // Falls back to the file of images, as for GLM-OCR.
    assert_eq!(most(), (9_633_792, 2.0, FrameSamplingRule::Glm4v));
    write(
        "video_preprocessor_config.json",
        r#"{"fps": 4, "size": {"shortest_edge": 1, "longest_edge": 50000}}"#,
    );
    assert_eq!(most(), (50_000, 4.0, FrameSamplingRule::Glm4v));
    write(
        "processor_config.json",
        r#"{"processor_class": "Glm46VProcessor", "video_processor": {"fps": 3}}"#,
    );
    assert_eq!(most(), (47_040_000, 3.0, FrameSamplingRule::Glm46v));

    write("processor_config.json", r#"{"video_processor": {"fps": 0}}"#);
    let needed =
        "DIR/processor_config.json: cannot be followed: \"fps\" is 0, needed more than 0, at most 1000";
    assert_eq!(refused(folder.path()), needed);
    write("processor_config.json", "{}");
    write("video_preprocessor_config.json", "[");
    let error = refused(folder.path());
    assert!(
        error.starts_with("DIR/video_preprocessor_config.json, line 1, column 1: not valid json"),
        "{error}"
    );
}

#[test]
fn a_template_syntax_error_has_a_line() {
    let error = with_template("a\n{% if %}").unwrap_err().to_string();
    assert!(error.starts_with("chat template, line 2: syntax error"), "{error}");
}

#[test]
fn an_endless_template_is_aborted() {
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    let error = render(endless).unwrap_err();
    assert_eq!(error, "chat template, line 1: no end after 10000000 steps; does it loop?");

    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    let error = render(recursive).unwrap_err();
    assert!(error.starts_with("chat template, line 1: "), "{error}");
}

#[test]
fn a_template_with_too_much_output_is_aborted() {
    let long = "{% set x = 'x' * 10000 %}{% for a in range(10000) %}{{ x }}{% endfor %}";
    assert_eq!(render(long).unwrap_err(), "chat template: writes more than 16777220 bytes");
}

#[test]
fn exceptions_of_a_template_are_reported() {
    let refusal = render("\n{{ raise_exception('no user turn') }}").unwrap_err();
    assert_eq!(refusal, "chat template, line 2: refuses the conversation: no user turn");
    let failure = render("\n\n{{ messages[0].nothing.at_all }}").unwrap_err();
    assert!(failure.starts_with("chat template, line 3: undefined value"), "{failure}");
}

#[test]
fn a_list_of_texts_is_passed_as_one_text_except_for_the_user() {
    let template = "{% for m in messages %}{{ m.content }}|{% endfor %}";
    let processor = with_template(template).unwrap();
    let texts = || vec![ContentPart::text("a"), ContentPart::text("b")];
    let messages =
        [Message::new("system", texts()), Message::new("assistant", texts()), Message::new("user", texts())];

    let rendered = processor.render(&messages, &ChatTemplateOptions::default()).unwrap();

    // For the user the list stays, and is printed as Python would.
    assert_eq!(rendered, "ab|ab|[{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]|");
}

#[test]
fn a_text_with_a_special_token_is_refused_with_its_location() {
    let message =
        |text: &str| Message::new("user", vec![ContentPart::Image(image()), ContentPart::text(text)]);
    let refusal = |token: &str| {
        format!(
            "message 1, part 1: its text spells {token}, which only the chat template writes; needed: a text without it"
        )
    };
    let system = Message::new("system", "s");
    for token in ["<|image|>", "<|user|>", "[gMASK]", "<|endoftext|>", "<|video|>"] {
        let messages = [system.clone(), message(&format!("what does {token} mean?"))];
        assert_eq!(encode(&messages).unwrap_err(), refusal(token));
    }
    // Tokens that models generate are allowed.
    assert!(encode(&[system, message("<think>a</think>")]).is_ok());
}

#[test]
fn allowed_special_tokens_work_as_in_transformers() {
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    let processor = processor.with_special_tokens_allowed(true);
    let user = processor.tokenizer().special().user;
    let encode = |messages: &[Message]| processor.encode(messages, &ChatTemplateOptions::generation_prompt());

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
fn an_image_that_the_template_drops_is_an_error() {
    let dropped = Message::new("someone", vec![ContentPart::Image(image())]);
    let error = encode(&[dropped]).unwrap_err();
    let needed = "the prompt has 0 <|image|> placeholders, but 1 images were given; \
                  message 0, part 0: 0 placeholders for 1 images";
    assert_eq!(error, needed);
}

#[test]
fn segments_and_images_must_agree() {
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    let segment = LabeledText::new("<|image|><|image|>", false);
    let error = processor.encode_spans(&[segment], &[image()], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 2 <|image|> placeholders, but 1 images were given");
}

#[test]
fn a_video_that_the_template_drops_is_an_error() {
    let frames = vec![image(), image()];
    let video = ContentPart::Video(VideoInput { data: VideoSource::Frames(frames), frame_rate: None });
    let dropped = Message::new("someone", vec![ContentPart::text("t"), video]);
    let error = encode(&[Message::new("system", "s"), dropped]).unwrap_err();
    let needed = "the prompt has 0 <|video|> placeholders, but 1 videos were given; \
                  message 1, part 1: 0 placeholders for 1 videos";
    assert_eq!(error, needed);
}

#[test]
fn of_several_bad_images_the_first_is_named() {
    let missing = |name: &str| ContentPart::Image(ImageSource::Path(name.into()));
    let parts = vec![ContentPart::Image(image()), missing("/no/a.png"), missing("/no/b.png")];
    let error = encode(&[Message::new("user", parts)]).unwrap_err();
    let needed =
        "image 1 of the conversation cannot be used: /no/a.png: cannot read: No such file or directory";
    assert!(error.starts_with(needed), "{error}");
}
