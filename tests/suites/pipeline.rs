//! Everything before the text model, as a library and as a command.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use burn::tensor::{DType, Tensor};
use glm4v_infer::Pipeline;
use glm4v_model::{Features, Glm4v, Precision, Probe};
use glm4v_processor::{Content, ImageSource, Message, Part, Processor, ReadyMedia, RenderOptions};
use glm4v_tests::{backend, glm4v, golden, max_difference, values_of};
use glm4v_weights::{ModelFolder, TensorFile};

fn parts() -> (Processor, Glm4v) {
    let folder = golden().join("checkpoints/glm4v");
    let device = backend().open().unwrap();
    let model = ModelFolder::open(&folder).unwrap().load(&device, Precision::F32).unwrap();
    (Processor::load(&folder).unwrap(), model)
}

fn image(name: &str) -> Part {
    Part::Image(ImageSource::parse(name, &golden().join("images")))
}

fn conversations() -> Vec<Vec<Message>> {
    let ask = |parts: Vec<Part>| vec![Message::new("user", Content::Parts(parts))];
    vec![
        ask(vec![image("shapes_56x56.png"), Part::text("and"), image("chelsea_113x75.png")]),
        ask(vec![Part::text("Only words.")]),
    ]
}

#[test]
fn the_text_model_fed_by_hand_gives_the_logits_of_the_whole_model() {
    let (processor, model) = parts();
    let pipeline = Pipeline::new(&processor, &model);

    let embedded = pipeline.run(&conversations(), &RenderOptions::prompt()).unwrap();

    let [rows, length, width] = embedded.inputs_embeds.dims();
    assert_eq!((rows, width), (2, 96));
    assert_eq!(embedded.positions.axes[0].len(), rows * length);
    let whole = model.forward(&embedded.batch).unwrap().into_data();
    let by_hand = model.head(model.decode(embedded.into_text_input(), None, &mut Probe::off())).into_data();
    assert_eq!(max_difference(&values_of(&by_hand), &values_of(&whole)), 0.0);
}

#[test]
fn features_made_earlier_take_the_place_of_images() {
    let (processor, model) = parts();
    let pipeline = Pipeline::new(&processor, &model);
    let (conversation, options) = (conversations().remove(0), RenderOptions::prompt());
    let batch = pipeline.process(std::slice::from_ref(&conversation), &options).unwrap();
    let features = pipeline.features(&batch).unwrap();
    let grids = batch.images.grids.iter().map(|grid| [grid.t, grid.h, grid.w]).collect();

    let media = ReadyMedia { images: grids, videos: Vec::new() };
    let ready = pipeline.process_ready(&conversation, &options, &media).unwrap();

    assert_eq!((&ready.input_ids, &ready.kinds), (&batch.input_ids, &batch.kinds));
    assert!(ready.images.values.is_empty());
    let early = pipeline.embed(ready.clone(), features.clone()).unwrap();
    let now = pipeline.embed(batch, features.clone()).unwrap();
    let values = |tensor: Tensor<3>| values_of(&tensor.into_data());
    assert_eq!(max_difference(&values(early.inputs_embeds), &values(now.inputs_embeds)), 0.0);
    let short = features.images.unwrap().narrow(0, 0, 3);
    let error = pipeline.embed(ready, Features { images: Some(short), videos: None }).unwrap_err();
    assert!(error.to_string().starts_with("image features have shape [3, 96]; needed: ["), "{error}");
    let few = ReadyMedia { images: vec![[1, 4, 4]], videos: Vec::new() };
    let error = pipeline.process_ready(&conversation, &options, &few).unwrap_err().to_string();
    assert!(error.contains("2 <|image|> placeholders, but 1 images were given"), "{error}");
}

#[test]
fn the_command_writes_what_the_library_gives() {
    let (processor, model) = parts();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("embeds.safetensors");
    let shapes = golden().join("images/shapes_56x56.png");
    let checkpoint = golden().join("checkpoints/glm4v");

    let said = glm4v([
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

    let said: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let message = Message::new("user", Content::Parts(vec![image("shapes_56x56.png"), Part::text("What?")]));
    let embedded = Pipeline::new(&processor, &model).run(&[vec![message]], &RenderOptions::prompt()).unwrap();
    let [_, length, _] = embedded.inputs_embeds.dims();
    assert_eq!(said["has_images"], true);
    assert_eq!(said["sequence_length"], length);
    let file = TensorFile::open(&out).unwrap();
    let found = values_of(&file.float("inputs_embeds", DType::F32).unwrap());
    assert_eq!(max_difference(&found, &values_of(&embedded.inputs_embeds.into_data())), 0.0);
    for name in ["input_ids", "attention_mask", "position_ids", "rope_deltas", "image_grid_thw"] {
        assert!(file.integers(name).is_ok(), "{name}");
    }
    assert_eq!(file.shape("image_embeds").unwrap()[0], said["num_image_tokens"].as_u64().unwrap() as usize);
}
