//! Sharded checkpoints whose files do not fit together.

use super::*;

const INDEX: &str = "model.safetensors.index.json";
const SECOND: &str = "model-00002-of-00003.safetensors";

/// The checkpoint in three shards, with its index; the model is removed with the directory.
fn sharded_checkpoint() -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model");
    let from = checkpoint();
    let paths = ["--model", from.to_str().unwrap(), "--out", model.to_str().unwrap()];
    glm4v(["convert", "--shard-size", "1MB"].iter().chain(&paths)).success();
    assert!(model.join(SECOND).exists());
    (dir, model)
}

/// Asserts that `generate` and `convert` refuse the sharded checkpoint after `corrupt`.
fn assert_refused(corrupt: impl FnOnce(&Path), texts: &[&str]) {
    let (dir, model) = sharded_checkpoint();
    corrupt(&model);

    generate(&model, &["--prompt", "hi"]).failure(texts);
    let out = dir.path().join("out");
    let paths = ["--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
    glm4v(["convert"].iter().chain(&paths)).failure(texts);

    assert!(!out.exists());
    assert_no_partial_files(dir.path());
}

fn truncate(path: &Path, length: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..length]).unwrap();
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_missing_shard_is_named() {
    assert_refused(
        |model| fs::remove_file(model.join(SECOND)).unwrap(),
        &["model-00002-of-00003.safetensors is missing; the index names it; copy or download it again"],
    );
    assert_refused(
        |model| {
            fs::remove_file(model.join(SECOND)).unwrap();
            fs::create_dir(model.join(SECOND)).unwrap();
        },
        &["model-00002-of-00003.safetensors: is a directory; needed"],
    );
}

#[test]
fn a_truncated_shard_or_header_is_named() {
    assert_refused(
        |model| truncate(&model.join(SECOND), 1000),
        &["model-00002-of-00003.safetensors: not a whole safetensors file: it announces a header of"],
    );
    assert_refused(
        |model| truncate(&model.join(SECOND), 500_000),
        &["model-00002-of-00003.safetensors: not a whole", "it is 500000 bytes long; needed by its header: "],
    );
    assert_refused(
        |model| fs::write(model.join(SECOND), u64::MAX.to_le_bytes()).unwrap(),
        &["it announces a header of 18446744073709551615 bytes; needed: at most 100000000"],
    );
}

#[test]
fn a_shard_of_another_checkpoint_is_refused() {
    assert_refused(
        |model| {
            fs::copy(model.join("model-00003-of-00003.safetensors"), model.join(SECOND)).unwrap();
        },
        &["index.json: it names tensors that their files do not have: ", " in model-00002-of-00003"],
    );
}

#[test]
fn an_index_with_paths_outside_of_the_directory_is_refused() {
    for outside in ["../", "/etc/"] {
        let path = format!("\"{outside}model-00002-of-00003");
        let error = format!("index.json: {path}.safetensors\" is not in this directory");
        assert_refused(|model| replace(&model.join(INDEX), "\"model-00002-of-00003", &path), &[&error]);
    }
}

#[test]
fn a_truncated_index_is_refused() {
    assert_refused(|model| truncate(&model.join(INDEX), 100), &["index.json: EOF while parsing"]);
}

#[test]
fn a_tensor_stored_twice_is_refused() {
    assert_refused(
        |model| {
            let head = "language_model.lm_head.weight";
            let duplicate = vec![(head.to_owned(), TensorData::new(vec![1.0f32], [1]))];
            write_tensors(&model.join("more.safetensors"), duplicate, &[]).unwrap();
            let entry = format!("\"weight_map\": {{\"{head}\": \"more.safetensors\",");
            replace(&model.join(INDEX), "\"weight_map\": {", &entry);
        },
        &["tensor \"lm_head.weight\" is also in ", "more.safetensors, as \"language_model.lm_head.weight\""],
    );
}
