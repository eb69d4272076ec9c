//! Memory of a process that loads a model again and again, as a server does.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::{Batch, Grid, Modality, MultimodalInputs, PaddingSide, Patches, Precision, Sample};
use glm4v_tests::golden;
use glm4v_weights::ModelFolder;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Loads a model, answers a prompt with an image, and drops both; bytes in use afterwards, and at the peak.
fn load_answer_and_drop(model_dir: &Path) -> [usize; 2] {
    ALLOCATOR.reset_peak_usage();
    let model = ModelFolder::open(model_dir).unwrap().load(&Device::flex(), Precision::F32).unwrap();
    let config = &model.config;
    let (grid, values) = (Grid::new(1, 4, 4), config.vision.patch_values());
    let mut sample = Sample::from_text([vec![config.image_token_id; 4], vec![10, 11, 12]].concat());
    sample.modalities[..4].fill(Some(Modality::Image));
    let patches = Patches { values: vec![0.25; grid.patches() * values], grids: vec![grid] };
    sample.media = MultimodalInputs::from_iter([(Modality::Image, patches)]);
    let batch = Batch::collate(&[sample], 0, PaddingSide::Left);
    let mut settings = GenerationConfig::greedy(config, 8);
    settings.eos_token_ids.clear();
    let answers = generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(answers[0].ids.len(), 8);
    drop((model, batch, answers));
    [ALLOCATOR.current_usage(), ALLOCATOR.peak_usage()]
}

// The only test of this suite: others would allocate from the same counter at the same time.
#[test]
fn a_model_that_is_loaded_again_takes_no_more_memory() {
    let model_dir = golden().join("checkpoints/glm4v");
    // The first one fills what lives on: thread pools, packing buffers of matrix products.
    load_answer_and_drop(&model_dir);

    let [second, third] = [0, 1].map(|_| load_answer_and_drop(&model_dir));

    let weights = std::fs::metadata(model_dir.join("model.safetensors")).unwrap().len() as usize;
    for (second, third) in second.into_iter().zip(third) {
        assert!(third.abs_diff(second) < weights / 20, "{second} bytes, then {third}; weights: {weights}");
    }
    // A model that were kept would add its weights at every load; what stays is the scratch memory of matrix products.
    assert!(second[1] > weights, "{second:?} bytes kept and at the peak; weights: {weights}");
}
