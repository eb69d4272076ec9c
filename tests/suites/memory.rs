//! `glm4v_plan::CostModel` against what the allocator hands out for tensors.
//!
//! The estimate leaves out memory that depends on the machine, and so does the measurement: everything runs on one thread,
//! since each has buffers of its own, and the packing buffers of matrix products, whose size follows the processor's caches
//! and vector width, are not counted.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![expect(clippy::print_stdout, reason = "figures, shown with --nocapture")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::{
    Architecture, Batch, CausalLm, Glm4v, Glm4vConfig, Grid, LoraLayerConfig, Modality, MultimodalInputs,
    NamedMapper, PaddingSide, Patches, Sample, initialize, initialize_lora, map_named,
};
use glm4v_plan::{CostModel, TuningMode, Workload};
use glm4v_train::{AdamW, AdamWConfig, NamedGradients, causal_lm_loss};
use peak_alloc::PeakAlloc;
use serde_json::json;

/// Counts allocations of tensors only.
struct TensorAlloc(PeakAlloc);

#[global_allocator]
static ALLOCATOR: TensorAlloc = TensorAlloc(PeakAlloc);

impl TensorAlloc {
    /// Packing buffers are recognized by their alignment: `gemm` aligns them to two cache lines, and nothing else asks for
    /// more than one. Nodes of the autodiff graph are smaller than any tensor that matters.
    fn counts(layout: &Layout) -> bool {
        layout.align() <= 64 && layout.size() >= 4096
    }
}

// SAFETY: a block goes back to the allocator that it came from: it is freed with the layout that it was made with.
#[expect(unsafe_code, reason = "an allocator cannot be made otherwise")]
unsafe impl GlobalAlloc for TensorAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { if Self::counts(&layout) { self.0.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe {
            if Self::counts(&layout) { self.0.dealloc(block, layout) } else { System.dealloc(block, layout) }
        }
    }
}

const IMAGE: u32 = 4;

/// A network as small as possible with tensors that outweigh all other allocations.
fn config(architecture: Architecture) -> Glm4vConfig {
    let raw = json!({
        "model_type": architecture.to_string(), "image_token_id": IMAGE, "video_token_id": 5,
        "text_config": {
            "vocab_size": 3000, "hidden_size": 192, "intermediate_size": 448, "num_hidden_layers": 4,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
            "attention_bias": true, "eos_token_id": [1], "pad_token_id": 0, "moe_intermediate_size": 96,
            "n_routed_experts": 8, "num_experts_per_tok": 3, "first_k_dense_replace": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3]}
        },
        "vision_config": {
            "depth": 3, "hidden_size": 128, "num_heads": 4, "in_channels": 3, "image_size": 24, "patch_size": 6,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 192, "intermediate_size": 256
        }
    });
    Glm4vConfig::from_json(&raw.to_string()).unwrap()
}

fn batch(workload: &Workload) -> Batch {
    let sample = || {
        let grid = workload.image.unwrap_or(Grid::new(1, 0, 0));
        let image = grid.tokens(2);
        // Distinct ids, so that the router uses every expert.
        let mut ids: Vec<u32> = (0..workload.seq_len as u32).map(|at| 10 + at * 37 % 2900).collect();
        ids[1..=image].fill(IMAGE);
        let prompt = workload.seq_len - workload.completion_tokens;
        let loss_mask: Vec<bool> = (0..workload.seq_len).map(|at| at >= prompt).collect();
        let values = (0..grid.patches() * 216).map(|i| (i % 31) as f32 / 31.0 - 0.5).collect();
        let grids = if image > 0 { vec![grid] } else { vec![] };
        let mut sample = Sample::from_text(ids).with_loss_mask(loss_mask);
        sample.modalities[1..=image].fill(Some(Modality::Image));
        Sample {
            media: MultimodalInputs::from_iter([(Modality::Image, Patches { values, grids })]),
            ..sample
        }
    };
    Batch::collate(&(0..workload.batch_size).map(|_| sample()).collect::<Vec<_>>(), 0, PaddingSide::Right)
}

fn allocated() -> u64 {
    ALLOCATOR.0.current_usage() as u64
}

/// Peak of the bytes in use while `work` runs, less those in use before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = allocated();
    ALLOCATOR.0.reset_peak_usage();
    let done = work();
    (done, ALLOCATOR.0.peak_usage() as u64 - before)
}

/// Freezes all parameters but those of adapters.
struct FreezeBase;

impl NamedMapper for FreezeBase {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if name.contains(".lora.") { param } else { param.set_require_grad(false) }
    }
}

const RANK: usize = 8;

/// Adds LoRA to the text decoder, and with `vision` to vision tower and merger too.
fn with_adapters(mut model: Glm4v, vision: bool, device: &Device) -> (Glm4v, TuningMode) {
    let tuning = TuningMode::lora(&mut model, RANK, vision);
    let lora = LoraLayerConfig { rank: RANK, alpha: 16.0, rslora: false, dropout: 0.0 };
    model.for_each_linear(|name, linear| {
        if name.starts_with("model.language_model") || vision && name != "lm_head" {
            linear.lora = Some(lora.init(linear.d_input(), linear.d_output(), device));
        }
    });
    let dtype = model.dtype();
    (map_named(initialize_lora(model, 1, dtype), &mut FreezeBase), tuning)
}

/// Bytes saved by a forward pass, and the peak of the second step, weights included.
fn train(mut model: Glm4v, weights: u64, workload: &Workload) -> (u64, u64) {
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
    let mut optimizer = AdamW::new(settings);
    let batch = batch(workload);
    let base = allocated() - weights;
    let (mut saved, mut most) = (0, 0);
    for _ in 0..2 {
        ALLOCATOR.0.reset_peak_usage();
        let before = allocated();
        let loss = causal_lm_loss(&model, &batch).unwrap().mean();
        saved = allocated() - before;
        let gradients = NamedGradients::backward(&model, &loss);
        gradients.norm().unwrap().into_scalar::<f32>();
        drop(loss);
        model = optimizer.step(model, gradients, 1e-3, 0.5);
        most = ALLOCATOR.0.peak_usage() as u64 - base;
    }
    (saved, most)
}

/// Largest relative error of an estimate.
const TOLERANCE: f64 = 0.04;

fn compare(what: &str, estimated: u64, measured: u64) {
    let off = estimated as f64 / measured as f64 - 1.0;
    println!("{what}: {estimated} estimated, {measured} measured, {:+.1} %", 100.0 * off);
    assert!(
        off.abs() < TOLERANCE,
        "{what}: {estimated} estimated, {measured} measured, {:+.1} %",
        100.0 * off
    );
}

fn check(architecture: Architecture, dtype: DType, name: &str, workload: Workload) {
    let device = Device::flex();
    let tracked = device.clone().autodiff();
    let config = config(architecture);
    let params = config.param_counts(&device);
    let what = format!("{architecture} {dtype:?} {name}");
    let dtype_bytes = dtype.size() as u64;
    let weights = params.total() * dtype_bytes;
    let cost = CostModel { config: &config, params: &params, dtype_bytes, cpu: true, workload };

    // The scratch memory of matrix products is kept by their threads, grows to what the largest needs, and is nobody's.
    train(initialize(config.init(&tracked), 0, dtype), weights, &workload);
    let model = initialize(config.init(&tracked), 0, dtype);
    let (saved, most) = train(model, weights, &workload);
    compare(&format!("{what}, saved activations"), cost.saved_activation_bytes(TuningMode::Full), saved);
    compare(&format!("{what}, training"), cost.training_memory(TuningMode::Full).total(), most);

    let places = [("adapters", false), ("adapters everywhere", true)];
    for (adapters, vision) in places.into_iter().filter(|(_, vision)| !vision || workload.image.is_some()) {
        let model = initialize(config.init(&tracked), 0, dtype);
        let (model, tuning) = with_adapters(model, vision, &tracked);
        let TuningMode::Lora { text_params, vision_params, .. } = tuning else { unreachable!() };
        let (saved, most) = train(model, weights + (text_params + vision_params) * dtype_bytes, &workload);
        compare(
            &format!("{what}, saved activations with {adapters}"),
            cost.saved_activation_bytes(tuning),
            saved,
        );
        compare(&format!("{what}, training with {adapters}"), cost.training_memory(tuning).total(), most);
    }

    let model = initialize(config.init(&device), 0, dtype);
    let prompt_len = workload.seq_len - workload.completion_tokens;
    let batch = batch(&Workload { seq_len: prompt_len, completion_tokens: 0, ..workload });
    let mut settings = GenerationConfig::greedy(&config, workload.completion_tokens);
    settings.eos_token_ids.clear();
    let (_, most) = peak(|| generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(())).unwrap());
    // While a folder is loaded, its largest tensor exists twice; the weights of this model were drawn.
    let most = most.max(params.largest_tensor * dtype_bytes);
    compare(&format!("{what}, generation"), cost.generation_memory().total(), weights + most);
}

// The only test of this suite: others would allocate from the same counter at the same time.
#[test]
fn estimates_are_within_tolerance_of_allocated_bytes() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(16 << 20).build().unwrap();
    pool.install(check_all);
}

fn check_all() {
    let image =
        Workload { batch_size: 2, seq_len: 100, completion_tokens: 20, image: Some(Grid::new(1, 16, 16)) };
    let large =
        Workload { batch_size: 1, seq_len: 280, completion_tokens: 8, image: Some(Grid::new(1, 32, 32)) };
    let long = Workload { batch_size: 1, seq_len: 500, completion_tokens: 40, image: None };
    let wide =
        Workload { batch_size: 16, seq_len: 24, completion_tokens: 12, image: Some(Grid::new(1, 4, 4)) };
    for architecture in [Architecture::Glm4v, Architecture::Glm4vMoe, Architecture::GlmOcr] {
        for (name, workload) in [("image", image), ("long", long), ("wide", wide)] {
            check(architecture, DType::F32, name, workload);
        }
    }
    check(Architecture::Glm4v, DType::F32, "large image", large);
    check(Architecture::Glm4v, DType::BF16, "image", image);
    check(Architecture::Glm4vMoe, DType::BF16, "long", long);
}
