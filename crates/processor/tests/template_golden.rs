//! Rendered conversations and their tokens against transformers.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::path::Path;

use glm4v_processor::{ImageSource, Message, Processor, RenderOptions, Segment, Tokenizer, parse_messages};
use serde_json::Value;
use support::{golden, json, usizes};

fn image_path(name: &str) -> String {
    let path = ["png", "jpg"].map(|end| golden().join(format!("images/{name}.{end}")));
    path.iter().find(|path| path.exists()).unwrap().display().to_string()
}

/// The messages of a case. The cases name their pictures beside the messages, we name them inside.
fn messages(row: &Value) -> Vec<Message> {
    let mut messages = row["messages"].clone();
    let mut images = row.get("images").and_then(Value::as_array).into_iter().flatten();
    for message in messages.as_array_mut().unwrap() {
        for part in message["content"].as_array_mut().into_iter().flatten() {
            if part["type"] == "image" {
                part["path"] = image_path(images.next().unwrap().as_str().unwrap()).into();
            } else if part["type"] == "video" {
                part["path"] = "clip.mp4".into();
            }
        }
    }
    parse_messages(&messages.to_string(), Path::new("")).unwrap()
}

fn options(row: &Value) -> RenderOptions {
    RenderOptions {
        add_generation_prompt: row["generation_prompt"].as_bool().unwrap(),
        enable_thinking: row.pointer("/options/enable_thinking").and_then(Value::as_bool),
        tools: None,
    }
}

fn families() -> impl Iterator<Item = (Processor, Vec<Value>)> {
    ["glm4v", "glm46v"].into_iter().map(|family| {
        let processor = Processor::load(&golden().join("checkpoints").join(family)).unwrap();
        let rows = json(format!("template/{family}.json"));
        let rows = rows.as_array().unwrap().clone();
        assert_eq!(rows.len(), 17);
        (processor, rows)
    })
}

#[test]
fn conversations_are_rendered_like_upstream() {
    for (processor, rows) in families() {
        for row in rows {
            let rendered = processor.render(&messages(&row), &options(&row)).unwrap();
            assert_eq!(rendered, row["rendered"].as_str().unwrap(), "{}", row["name"]);
        }
    }
}

#[test]
fn conversations_have_the_tokens_of_upstream() {
    let mut compared = 0;
    for (processor, rows) in families() {
        for row in rows.iter().filter(|row| row.get("clips").is_none()) {
            let encoded = processor.encode(&messages(row), &options(row)).unwrap();

            let ids: Vec<usize> = encoded.input_ids.iter().map(|&id| id as usize).collect();
            let kinds: Vec<usize> = encoded.mm_token_type_ids.iter().map(|&k| k.into()).collect();
            assert_eq!(ids, usizes(&row["input_ids"]), "{}", row["name"]);
            assert_eq!(kinds, usizes(&row["mm_token_type_ids"]), "{}", row["name"]);
            let grids = row.get("image_grid_thw").and_then(Value::as_array);
            let grids: Vec<_> = grids.into_iter().flatten().map(usizes).collect();
            let found: Vec<_> = encoded.image_grid_thw.iter().map(|grid| grid.to_vec()).collect();
            assert_eq!(found, grids, "{}", row["name"]);
            let patches: usize = encoded.image_grid_thw.iter().map(|g| g.iter().product::<usize>()).sum();
            assert_eq!(encoded.pixel_values.len(), patches * 1176, "{}", row["name"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 30);
}

#[test]
fn segments_are_tokenised_on_their_own() {
    let (processor, _) = families().next().unwrap();
    let segment = |text: &str, taught| Segment { text: text.to_owned(), taught };
    // As one text " cat" is one token; cut in two it is not.
    let segments =
        [segment("<|begin_of_image|><|image|><|end_of_image|>a c", false), segment("at<|endoftext|>", true)];
    let images = [ImageSource::Path(image_path("shapes_56x56").into())];

    let encoded = processor.encode_segments(&segments, &images).unwrap();

    let ids = |text: &str| processor.tokenizer().encode(text).unwrap();
    let answer = ids("at<|endoftext|>");
    let prompt = encoded.input_ids.len() - answer.len();
    assert_eq!(encoded.input_ids[prompt..], answer);
    assert_eq!(encoded.input_ids[1..10], [processor.tokenizer().special().image; 9]);
    assert_eq!(encoded.input_ids[11..prompt], ids("a c"));
    assert_eq!(encoded.image_grid_thw, [[1, 6, 6]]);
    assert!(encoded.taught[..prompt].iter().all(|t| !t) && encoded.taught[prompt..].iter().all(|t| *t));
}

#[test]
fn texts_have_the_tokens_of_upstream_and_come_back() {
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
