//! The steps from a conversation to the decoder, in the library and in `glm4v embed`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use burn::tensor::{DType, Tensor};
use glm4v_infer::MultimodalEmbedder;
use glm4v_model::{CausalLm, DecoderOptions, Glm4v, Grid, Modality, MultimodalEmbeddings, Precision};
use glm4v_processor::{
    ChatTemplateOptions, Content, ContentPart, ImageSource, MediaGrids, Message, Processor,
};
use glm4v_tests::{backend, glm4v, golden, max_difference, values_of};
use glm4v_weights::{ModelFolder, TensorFile};

fn parts() -> (Processor, Glm4v) {
    let folder = golden().join("checkpoints/glm4v");
    let device = backend().open().unwrap();
    let model = ModelFolder::open(&folder).unwrap().load(&device, Precision::F32).unwrap();
    (Processor::load(&folder).unwrap(), model)
}

fn image(name: &str) -> ContentPart {
    ContentPart::Image(ImageSource::parse(name, &golden().join("images")))
}

fn conversations() -> Vec<Vec<Message>> {
    let ask = |parts: Vec<ContentPart>| vec![Message::new("user", Content::Parts(parts))];
    vec![
        ask(vec![image("shapes_56x56.png"), ContentPart::text("and"), image("chelsea_113x75.png")]),
        ask(vec![ContentPart::text("Only words.")]),
    ]
}

#[test]
fn embed_and_decoder_forward_give_the_logits_of_forward() {
    let (processor, model) = parts();
    let embedder = MultimodalEmbedder::new(&processor, &model);

    let embedded = embedder.embed(&conversations(), &ChatTemplateOptions::generation_prompt()).unwrap();

    let [rows, length, width] = embedded.input.inputs_embeds.dims();
    assert_eq!((rows, width), (2, 96));
    assert_eq!(embedded.input.positions.position_ids[0].len(), rows * length);
    let whole = model.forward(&embedded.batch).unwrap().into_data();
    let output = model.decoder_forward(embedded.input, DecoderOptions::default());
    let by_hand = model.logits(output.hidden_states).into_data();
    assert_eq!(max_difference(&values_of(&by_hand), &values_of(&whole)), 0.0);
}

#[test]
fn precomputed_embeddings_replace_images() {
    let (processor, model) = parts();
    let embedder = MultimodalEmbedder::new(&processor, &model);
    let (conversation, options) = (conversations().remove(0), ChatTemplateOptions::generation_prompt());
    let batch = embedder.process(std::slice::from_ref(&conversation), &options).unwrap();
    let features = embedder.embed_multimodal(&batch).unwrap();
    let grids = batch.media.grids(Modality::Image).to_vec();

    let media = MediaGrids { images: grids, videos: Vec::new() };
    let ready = embedder.process_with_grids(&conversation, &options, &media).unwrap();

    assert_eq!((&ready.input_ids, &ready.modalities), (&batch.input_ids, &batch.modalities));
    assert!(ready.media.patches(Modality::Image).values.is_empty());
    let early = embedder.merge_embeddings(ready.clone(), features.clone()).unwrap();
    let now = embedder.merge_embeddings(batch, features.clone()).unwrap();
    let values = |tensor: Tensor<3>| values_of(&tensor.into_data());
    assert_eq!(max_difference(&values(early.input.inputs_embeds), &values(now.input.inputs_embeds)), 0.0);
    let short = features.get(Modality::Image).unwrap().clone().narrow(0, 0, 3);
    let short = MultimodalEmbeddings::from_iter([(Modality::Image, short)]);
    let error = embedder.merge_embeddings(ready, short).unwrap_err();
    assert!(error.to_string().starts_with("image features have shape [3, 96]; needed: ["), "{error}");
    let few = MediaGrids { images: vec![Grid::new(1, 4, 4)], videos: Vec::new() };
    let error = embedder.process_with_grids(&conversation, &options, &few).unwrap_err().to_string();
    assert!(error.contains("2 <|image|> placeholders, but 1 images were given"), "{error}");
}

#[test]
fn embed_writes_the_tensors_of_the_library() {
    let (processor, model) = parts();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("embeds.safetensors");
    let shapes = golden().join("images/shapes_56x56.png");
    let checkpoint = golden().join("checkpoints/glm4v");

    let output = glm4v([
        "embed",
        "--model",
        checkpoint.to_str().unwrap(),
        "--prompt",
        "What?",
        "--image",
        shapes.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--json",
    ])
    .success();

    let output: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let message =
        Message::new("user", Content::Parts(vec![image("shapes_56x56.png"), ContentPart::text("What?")]));
    let embedded = MultimodalEmbedder::new(&processor, &model)
        .embed(&[vec![message]], &ChatTemplateOptions::generation_prompt())
        .unwrap();
    let [_, length, _] = embedded.input.inputs_embeds.dims();
    assert_eq!(output["has_images"], true);
    assert_eq!(output["sequence_length"], length);
    let file = TensorFile::open(&out).unwrap();
    let found = values_of(&file.float("inputs_embeds", DType::F32).unwrap());
    assert_eq!(max_difference(&found, &values_of(&embedded.input.inputs_embeds.into_data())), 0.0);
    for name in ["input_ids", "attention_mask", "position_ids", "rope_deltas", "image_grid_thw"] {
        assert!(file.integers(name).is_ok(), "{name}");
    }
    assert_eq!(file.shape("image_embeds").unwrap()[0], output["num_image_tokens"].as_u64().unwrap() as usize);
}
