//! Rendered conversations and their tokens against transformers.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::path::Path;

use glm4v_inputs::{Grid, Modality};
use glm4v_processor::{
    ChatTemplateOptions, Content, ContentPart, ImageSource, LabeledText, Message, Processor, Tokenizer,
    VideoInput, VideoSource, parse_messages,
};
use serde_json::Value;
use support::{frames, golden, json, usizes};

fn image_path(name: &str) -> String {
    let path = ["png", "jpg"].map(|end| golden().join(format!("images/{name}.{end}")));
    path.iter().find(|path| path.exists()).unwrap().display().to_string()
}

/// The messages of a case. The cases name their images beside the messages, we name them inside.
fn messages(row: &Value) -> Vec<Message> {
    let mut messages = row["messages"].clone();
    let mut images = row.get("images").and_then(Value::as_array).into_iter().flatten();
    for message in messages.as_array_mut().unwrap() {
        for part in message["content"].as_array_mut().into_iter().flatten() {
            if part["type"] == "image" {
                part["path"] = image_path(images.next().unwrap().as_str().unwrap()).into();
            } else if part["type"] == "video" {
                part["path"] = "video.mp4".into();
            }
        }
    }
    let mut messages = parse_messages(&messages.to_string(), Path::new("")).unwrap();
    let mut videos = row.get("clips").and_then(Value::as_array).into_iter().flatten();
    for message in &mut messages {
        let Content::Parts(parts) = &mut message.content else { continue };
        for part in parts.iter_mut().filter(|part| matches!(part, ContentPart::Video(_))) {
            *part = ContentPart::Video(video(videos.next().unwrap()));
        }
    }
    messages
}

/// A video that `oracle/images.py` draws.
fn video(row: &Value) -> VideoInput {
    let frames = frames(&format!("template_{}x{}x{}.png", row["frames"], row["width"], row["height"]));
    let frames = frames.into_iter().map(ImageSource::Pixels).collect();
    VideoInput { data: VideoSource::Frames(frames), frame_rate: row["fps"].as_f64() }
}

fn options(row: &Value) -> ChatTemplateOptions {
    ChatTemplateOptions {
        add_generation_prompt: row["generation_prompt"].as_bool().unwrap(),
        enable_thinking: row.pointer("/options/enable_thinking").and_then(Value::as_bool),
        tools: None,
    }
}

fn families() -> impl Iterator<Item = (Processor, Vec<Value>)> {
    ["glm4v", "glm46v"].into_iter().map(|family| {
        let processor = Processor::load(&golden().join("checkpoints").join(family)).unwrap();
        // One of the conversations contains `<|user|>`, which transformers allows.
        let processor = processor.with_special_tokens_allowed(true);
        let rows = json(format!("template/{family}.json"));
        let rows = rows.as_array().unwrap().clone();
        assert_eq!(rows.len(), 17);
        (processor, rows)
    })
}

#[test]
fn conversations_are_rendered_as_in_transformers() {
    for (processor, rows) in families() {
        for row in rows {
            let rendered = processor.render(&messages(&row), &options(&row)).unwrap();
            assert_eq!(rendered, row["rendered"].as_str().unwrap(), "{}", row["name"]);
        }
    }
}

#[test]
fn conversations_have_the_tokens_of_transformers() {
    let mut compared = 0;
    for (processor, rows) in families() {
        for row in &rows {
            let encoded = processor.encode(&messages(row), &options(row)).unwrap();

            let ids: Vec<usize> = encoded.input_ids.iter().map(|&id| id as usize).collect();
            let kinds: Vec<usize> = encoded.mm_token_type_ids().into_iter().map(usize::from).collect();
            assert_eq!(ids, usizes(&row["input_ids"]), "{}", row["name"]);
            assert_eq!(kinds, usizes(&row["mm_token_type_ids"]), "{}", row["name"]);
            for (key, modality) in [("image_grid_thw", Modality::Image), ("video_grid_thw", Modality::Video)]
            {
                let found = encoded.media.patches(modality);
                let grids = row.get(key).and_then(Value::as_array);
                let grids: Vec<_> = grids.into_iter().flatten().map(usizes).collect();
                assert_eq!(found.values.len(), found.count() * 1176, "{}", row["name"]);
                let found: Vec<_> = found.grids.iter().map(|grid| grid.thw().to_vec()).collect();
                assert_eq!(found, grids, "{}", row["name"]);
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 34);
}

#[test]
fn segments_are_tokenized_separately() {
    let (processor, _) = families().next().unwrap();
    let span = |text: &str, is_label| LabeledText::new(text, is_label);
    // As one text " cat" is one token; cut in two it is not.
    let spans =
        [span("<|begin_of_image|><|image|><|end_of_image|>a c", false), span("at<|endoftext|>", true)];
    let images = [ImageSource::Path(image_path("shapes_56x56").into())];

    let encoded = processor.encode_spans(&spans, &images, &[]).unwrap();

    let ids = |text: &str| processor.tokenizer().encode(text).unwrap();
    let answer = ids("at<|endoftext|>");
    let prompt = encoded.input_ids.len() - answer.len();
    assert_eq!(encoded.input_ids[prompt..], answer);
    assert_eq!(encoded.input_ids[1..10], [processor.tokenizer().special().image; 9]);
    assert_eq!(encoded.input_ids[11..prompt], ids("a c"));
    assert_eq!(encoded.media.grids(Modality::Image), [Grid::new(1, 6, 6)]);
    assert!(encoded.loss_mask[..prompt].iter().all(|t| !t) && encoded.loss_mask[prompt..].iter().all(|t| *t));
}

#[test]
fn no_token_of_a_video_is_a_label() {
    let (processor, _) = families().next().unwrap();
    // A template would write the video into a turn of the user; even here its times are not learned.
    let text = "<|begin_of_video|><|video|><|end_of_video|>".to_owned();
    let row = serde_json::json!({"frames": 8, "width": 84, "height": 56, "fps": 4});

    let encoded = processor.encode_spans(&[LabeledText::new(text, true)], &[], &[video(&row)]).unwrap();

    let (first, last) = (0, encoded.loss_mask.len() - 1);
    let loss_mask: Vec<usize> = (0..=last).filter(|&token| encoded.loss_mask[token]).collect();
    assert_eq!(loss_mask, [first, last]);
    assert_eq!(encoded.mm_token_type_ids().iter().filter(|kind| **kind == 2).count(), 2 * 6);
}

#[test]
fn texts_have_the_tokens_of_transformers_and_decode_to_themselves() {
    let tokenizer = Tokenizer::from_file(&golden().join("checkpoints/glm4v/tokenizer.json")).unwrap();
    let cases = json("template/tokenizer.json");
    let rows = |key: &str| cases[key].as_array().unwrap().clone();
    assert_eq!((rows("encode").len(), rows("decode").len()), (78, 23));

    for row in rows("encode") {
        let ids = tokenizer.encode(row["text"].as_str().unwrap()).unwrap();
        let ids: Vec<usize> = ids.into_iter().map(|id| id as usize).collect();
        assert_eq!(ids, usizes(&row["ids"]), "{}", row["text"]);
    }
    for row in rows("encode").into_iter().chain(rows("decode")) {
        let ids: Vec<u32> = usizes(&row["ids"]).into_iter().map(|id| id as u32).collect();
        assert_eq!(tokenizer.decode(&ids, false), row["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&ids, true), row["decoded_skip_special"].as_str().unwrap());
    }
}
