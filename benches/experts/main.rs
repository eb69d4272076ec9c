//! Time of a mixture-of-experts pass by number of experts and experts per token.
//!
//!     cargo bench --workspace --bench experts -- [TOKENS] [ROUNDS]
//!
//! A dense layer and two layers with experts, random weights, one row of text. Prints a table with the best of several rounds.
#![expect(clippy::print_stdout, reason = "the table is its result")]

use std::time::Instant;

use anyhow::Context;
use burn::tensor::{DType, Device};
use glm4v_model::{
    Backend, Batch, CausalLm, DecoderOptions, Glm4v, Glm4vConfig, PaddingSide, Sample, initialize,
};
use glm4v_train::{AdamW, AdamWConfig, NamedGradients, causal_lm_loss};
use serde_json::json;

fn main() -> anyhow::Result<()> {
    // Cargo adds the flag to the arguments of every benchmark.
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mut numbers = arguments.map(|text| text.parse::<usize>().context(text));
    let tokens = numbers.next().transpose()?.unwrap_or(512);
    let rounds = numbers.next().transpose()?.unwrap_or(5);
    let device = Backend::Cpu.open()?;
    println!("{tokens} tokens, best of {rounds} rounds, milliseconds\n");
    println!(
        "| experts | experts per token | parameters | forward | forward and backward | AdamW | decoded token |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (experts, chosen) in [(8, 4), (32, 4), (128, 4), (64, 1), (64, 2), (64, 4), (64, 8), (64, 16)] {
        let config = config(experts, chosen)?;
        let params = config.param_counts(&device);
        let [forward, backward, update, step] = measure(&config, tokens, rounds, &device)?;
        println!(
            "| {experts} | {chosen} | {:.1} M | {forward:.0} | {backward:.0} | {update:.0} | {step:.1} |",
            params.total() as f64 / 1e6
        );
    }
    Ok(())
}

fn config(experts: usize, chosen: usize) -> anyhow::Result<Glm4vConfig> {
    let raw = json!({
        "model_type": "glm4v_moe", "image_token_id": 4, "video_token_id": 5,
        "text_config": {
            "vocab_size": 2000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "attention_bias": true,
            "first_k_dense_replace": 1, "moe_intermediate_size": 256, "n_routed_experts": experts,
            "num_experts_per_tok": chosen, "eos_token_id": [1], "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                "mrope_section": [4, 6, 6]}
        },
        "vision_config": {
            "depth": 1, "hidden_size": 64, "num_heads": 2, "image_size": 28, "patch_size": 14,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 512, "intermediate_size": 128
        }
    });
    Ok(Glm4vConfig::from_json(&raw.to_string())?)
}

/// Milliseconds of a forward pass, of one with its gradients, of the optimizer's step, and of a decoded token.
fn measure(config: &Glm4vConfig, tokens: usize, rounds: usize, device: &Device) -> anyhow::Result<[f64; 4]> {
    let ids: Vec<u32> = (0..tokens as u32).map(|at| 10 + at * 37 % 1900).collect();
    let sample = Sample::from_text(ids).with_loss_mask(vec![true; tokens]);
    let batch = Batch::collate(&[sample], 0, PaddingSide::Right);
    let mut best = [f64::INFINITY; 4];
    let mut note =
        |which: usize, start: Instant| best[which] = best[which].min(1e3 * start.elapsed().as_secs_f64());

    let model = initialize(config.init(device), 0, DType::F32);
    for _ in 0..rounds {
        let start = Instant::now();
        model.forward(&batch)?.into_data();
        note(0, start);
    }
    decode(&model, &batch, rounds, |start| note(3, start))?;

    let mut model = initialize(config.init(&device.clone().autodiff()), 0, DType::F32);
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
    let mut optimizer = AdamW::new(settings);
    for _ in 0..rounds {
        let start = Instant::now();
        let loss = causal_lm_loss(&model, &batch)?.mean();
        let gradients = NamedGradients::backward(&model, &loss);
        gradients.norm().context("something learns")?.into_data();
        note(1, start);
        let start = Instant::now();
        model = optimizer.step(model, gradients, 1e-4, 1.0);
        note(2, start);
    }
    Ok(best)
}

fn decode(model: &Glm4v, batch: &Batch, rounds: usize, mut note: impl FnMut(Instant)) -> anyhow::Result<()> {
    let mut cache = model.kv_cache(1, batch.shape[1] + 4 * rounds);
    let input = model.embed(batch)?;
    let rope_deltas = input.positions.rope_deltas.clone();
    let last = [batch.shape[1] - 1];
    let options = DecoderOptions { cache: Some(&mut cache), positions: Some(&last), ..Default::default() };
    model.decoder_forward(input, options).hidden_states.into_data();
    for round in 0..4 * rounds {
        let start = Instant::now();
        model.decode_step(&[10 + round as u32], &rope_deltas, &mut cache).into_data();
        note(start);
    }
    Ok(())
}
