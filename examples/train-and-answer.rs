//! A training loop by hand, then a question about an image that was not learned.
//!
//!     cargo run --release --example train-and-answer
#![expect(clippy::print_stdout, reason = "an example talks to people")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::DType;
use glm4v_data::{
    BatchSampler, DataLoader, DataLoaderOptions, Dataset, DatasetOptions, DatasetRegistry, EvalExample,
};
use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::{Backend, Batch, Glm4vConfig, PaddingSide, initialize};
use glm4v_processor::{ChatTemplateOptions, Processor};
use glm4v_train::{AdamW, AdamWConfig, Trainer, TrainerConfig};

const STEPS: usize = 150;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("configs/models/digits");

    // A network with random weights, on a device that records what gradients need.
    let config = Glm4vConfig::from_json(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let device = Backend::Cpu.open()?.autodiff();
    let model = initialize(config.init(&device), 0, DType::F32);

    // Records, and the processor that turns them into tokens and patches.
    let processor = Arc::new(Processor::load(&folder)?);
    let registry = DatasetRegistry::load(&root.join("datasets"))?;
    let records = registry.find("digits:train")?.read(None)?;
    let dataset = Arc::new(Dataset::new(records, processor.clone(), DatasetOptions::default()));
    let sampler = BatchSampler::shuffled(dataset.len(), 32, 0)?;

    let optimizer = AdamW::new(AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.01 });
    let mut trainer = Trainer::new(model, optimizer, TrainerConfig::default());
    for (step, loaded) in
        DataLoader::new(dataset, sampler, DataLoaderOptions::default())?.take(STEPS).enumerate()
    {
        trainer.accumulate(&loaded?.batch)?;
        let warmup = (step as f64 / 50.0).min(1.0);
        let output = trainer.step(2e-3 * warmup)?;
        if step % 25 == 0 || step + 1 == STEPS {
            println!("step {step:3}  loss {:.3}", output.loss);
        }
    }

    // A question about a scan that was held out, answered without gradients.
    let model = trainer.eval_model();
    let held_out = registry.find("digits:test")?.read(None)?;
    let example = EvalExample::from_record(&held_out[0]).expect("every record has an answer");
    let prompt = processor.encode(&example.prompt, &ChatTemplateOptions::generation_prompt())?;
    let batch = Batch::collate(&[prompt], processor.tokenizer().special().end_of_text, PaddingSide::Left);
    let settings = GenerationConfig::greedy(&model.config, 8);
    let answers = generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(()))?;
    println!("{}", example.images[0]);
    println!("right: {}  answer: {}", example.answer, processor.tokenizer().decode(&answers[0].ids, true));
    Ok(())
}
