//! A training loop by hand, then a question about an image that was not learned.
//!
//!     cargo run --release --example train-and-answer
#![expect(clippy::print_stdout, reason = "an example talks to people")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::DType;
use glm4v_data::{Dataset, DatasetOptions, EvalItem, Prefetch, Registry, Sampler};
use glm4v_infer::{GenerationConfig, generate, prompt_sample};
use glm4v_model::{Backend, Batch, Glm4vConfig, PaddingSide, initialize};
use glm4v_processor::{Processor, RenderOptions};
use glm4v_train::{AdamW, AdamWConfig, NamedGradients, Targets, loss};

const STEPS: usize = 150;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join("configs/models/digits");

    // A network with random weights, on a device that records what gradients need.
    let config = Glm4vConfig::from_json(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let device = Backend::Cpu.open()?.autodiff();
    let mut model = initialize(config.init(&device), 0, DType::F32);

    // Records, and the processor that turns them into tokens and patches.
    let processor = Arc::new(Processor::load(&folder)?);
    let registry = Registry::load(&root.join("datasets"))?;
    let records = registry.find("digits:train")?.read(None)?;
    let dataset = Arc::new(Dataset::new(records, processor.clone(), DatasetOptions::default()));
    let sampler = Sampler::shuffled(dataset.len(), 32, 0)?;

    let mut optimizer = AdamW::new(AdamWConfig { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.01 });
    for (step, loaded) in Prefetch::new(dataset, sampler, 1)?.take(STEPS).enumerate() {
        let batch = loaded?.batch;
        let loss = loss(&model, &batch, &Targets::of(&batch))?;
        let gradients = NamedGradients::take(&model, loss.backward());
        let norm = gradients.norm().map_or(0.0, |norm| f64::from(norm.into_scalar::<f32>()));
        let video = (1.0 / (norm + 1e-6)).min(1.0);
        let warmup = (step as f64 / 50.0).min(1.0);
        model = optimizer.step(model, gradients, 2e-3 * warmup, video);
        if step % 25 == 0 || step + 1 == STEPS {
            println!("step {step:3}  loss {:.3}", loss.into_scalar::<f32>());
        }
    }

    // A question about a scan that was held out, answered without gradients.
    let model = model.valid();
    let held_out = registry.find("digits:test")?.read(None)?;
    let item = EvalItem::of(&held_out[0]).expect("every record has an answer");
    let prompt = prompt_sample(processor.encode(&item.prompt, &RenderOptions::prompt())?);
    let batch = Batch::collate(&[prompt], processor.tokenizer().special().end_of_text, PaddingSide::Left);
    let settings = GenerationConfig::greedy(&model.config, 8);
    let answers = generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(()))?;
    println!("{}", item.images[0]);
    println!("right: {}  answer: {}", item.answer, processor.tokenizer().decode(&answers[0].ids, true));
    Ok(())
}
