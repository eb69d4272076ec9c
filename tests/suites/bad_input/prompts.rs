//! Prompts and conversations of `generate` and `trace`.

use super::*;

#[test]
fn special_tokens_in_a_prompt_are_refused_unless_allowed() {
    let image = digit_image();
    let image = image.to_str().unwrap();
    let allow = "--allow-special-tokens";

    generate(&checkpoint(), &["--prompt", "<|image|> what?"])
        .failure(&["message 0, part 0: its text spells <|image|>", allow]);
    generate(&checkpoint(), &["--prompt", "<|user|> what?", "--image", image])
        .failure(&["message 0, part 1: its text spells <|user|>", allow]);
    generate(&checkpoint(), &["--prompt", "<|user|> what?", "--image", image, allow]).success();
    generate(&checkpoint(), &["--prompt", "<|image|> what?", "--image", image, allow]).failure(&[
        "has 2 <|image|> placeholders, but 1 images were given",
        "message 0, part 0: 2 placeholders",
    ]);
}

#[test]
fn a_malformed_conversation_is_refused_with_its_position() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("messages.json");
    for (text, words) in [
        ("[{\"role\": \"user\", \"content\": [}]", &["line 1, column 31: not valid json"][..]),
        ("", &["not valid json"]),
        ("[]", &["holds no messages; needed: at least one"]),
        // After the byte order mark of Windows editors.
        ("\u{feff}[]", &["holds no messages; needed: at least one"]),
        ("{\"role\": \"user\"}", &["found an object, needed a list of objects"]),
        ("[{\"role\": \"user\", \"content\": 5}]", &["message 0: \"content\" is a number, needed a string"]),
        (
            "[{\"role\": \"wizard\", \"content\": \"x\"}]",
            &["message 0: unknown role \"wizard\"; known are system"],
        ),
        (
            "[{\"role\": \"user\", \"content\": [{\"type\": \"audio\"}]}]",
            &["message 0, part 0: unknown type \"audio\""],
        ),
    ] {
        fs::write(&path, text).unwrap();

        let output = generate(&checkpoint(), &["--messages", path.to_str().unwrap()]);

        output.failure(&[words, &["messages.json: "]].concat());
        trace(&path, &dir.path().join("out.safetensors")).failure(words);
    }
    fs::write(&path, r#"[{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}]"#).unwrap();
    generate(&checkpoint(), &["--messages", path.to_str().unwrap()])
        .failure(&["image 0", "gone.png: cannot read: No such file"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the conversation is there");
}

#[test]
fn generation_ends_at_max_position_embeddings_whatever_max_new_tokens_is() {
    let model = with_corrupt("config.json", |bytes| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config["text_config"]["max_position_embeddings"] = 64.into();
        Some(config.to_string().into_bytes())
    });
    let ask = |prompt: &str, most: &str| {
        let mut command = command();
        command.args(["generate", "--greedy", "--json", "--max-new-tokens", most, "--prompt", prompt]);
        CommandOutput::run(command.arg("--model").arg(model.path()))
    };

    let endless = ask("hi", "18446744073709551615").success();
    let crowded = ask(&"digit ".repeat(64), "1");

    let answer: Value = serde_json::from_str(&endless.stdout).unwrap();
    let tokens = |key: &str| answer[key].as_u64().unwrap();
    assert!(tokens("prompt_tokens") + tokens("completion_tokens") <= 64, "{answer}");
    crowded.failure(&["takes more than 64 tokens, the longest sequence of the model", "shorten it"]);
}
