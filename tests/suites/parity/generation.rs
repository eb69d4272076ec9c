//! Greedy decoding.

use super::*;

#[test]
fn greedy_tokens_equal_transformers() {
    for family in families("generate") {
        check_greedy(family);
    }
}

fn check_greedy(family: &str) {
    let model = model(&checkpoint(family));
    let pad_id = pad_token_id(family);
    for case in Case::all(&format!("generate/{family}")) {
        let batch = case.batch();
        let (expected, shape) = case.integers("out.sequences").unwrap();
        let new = shape[1] - batch.shape[1];
        let mut config = GenerationConfig::greedy(&model.config, new);
        config.eos_token_ids = case.meta["stop"].as_u64().map(|id| vec![id as u32]).unwrap_or_default();

        let answers = generate(&model, &batch, &config, |_, _| ControlFlow::Continue(())).unwrap();

        for (row, answer) in answers.iter().enumerate() {
            let expected = &expected[row * shape[1] + batch.shape[1]..(row + 1) * shape[1]];
            let found: Vec<i64> = answer.ids.iter().map(|id| i64::from(*id)).collect();
            // transformers fills a row that stopped early with the padding token.
            let (answer, filling) = expected.split_at(found.len());
            assert_eq!(found, answer, "{} row {row}", case.name);
            assert!(filling.iter().all(|id| *id == pad_id), "{} row {row}: stopped too early", case.name);
        }
    }
}

/// `pad_token_id` of the checkpoint's generation config.
fn pad_token_id(family: &str) -> i64 {
    let text = std::fs::read_to_string(checkpoint(family).join("generation_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["pad_token_id"].as_i64().unwrap()
}
