//! Weights in row shards, for devices that bind small tensors only.

use super::*;

#[test]
fn a_model_in_row_shards_equals_the_dense_one() {
    let folder = ModelFolder::open(&checkpoint("glm4v")).unwrap();
    let device = backend().open().unwrap().autodiff();
    // The patch convolution takes 301,056 bytes and cannot be split; the token table and the head take 460,800.
    let device_spec = DeviceSpec::bounded(&device, 302_000, Precision::F32.dtype());
    let model = folder.load_on(&device_spec, Precision::F32, &mut |_, _| {}).unwrap();
    assert!(parameters(&model).contains_key("lm_head.weight.1"), "the head is in pieces");
    assert!(parameters(&model).contains_key("model.language_model.embed_tokens.weight.1"));
    let case = Case::open("forward/glm4v/image_single");
    let batch = case.batch();

    let logits = model.forward(&batch).unwrap().inner().into_data();

    let difference = max_difference(&values_of(&logits), &values_of(&case.float("out.logits")));
    assert!(difference < LOGITS, "logits differ by {difference}");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let moved = |model: Glm4v| {
        let gradients =
            NamedGradients::from_gradients(&model, causal_lm_loss(&model, &batch).unwrap().mean().backward());
        let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
        let model = AdamW::new(settings).step(model, gradients, 1e-3, 1.0);
        let saved = tempfile::tempdir().unwrap();
        save_model(&model, folder.path(), saved.path(), Precision::F32).unwrap();
        let file = TensorFile::open(&saved.path().join("model.safetensors")).unwrap();
        let read =
            |name: &String| (name.clone(), values_of(&file.float(name, Precision::F32.dtype()).unwrap()));
        file.names().iter().map(read).collect::<BTreeMap<_, _>>()
    };
    let (pieces, whole) = (moved(model), moved(trainable("glm4v")));
    assert_eq!(pieces.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    for (name, found) in pieces {
        let difference = relative_l2(&found, &whole[&name]);
        // The sign of a key bias's gradient is noise, see above.
        assert!(difference < 1e-4 || name.ends_with("k_proj.bias"), "{name} differs by {difference:.1e}");
    }
}
