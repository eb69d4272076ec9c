//! The estimate of `glm4v_model::Estimate` against what the allocator hands out for tensors.
//!
//! What depends on the machine is kept out, as the estimate says nothing of it: everything runs on one thread, since each
//! has buffers of its own; and the workspace of matrix products, which the processor's caches and vectors decide, is not
//! counted.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![expect(clippy::print_stdout, reason = "figures for those who ask with --nocapture")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use glm4v_infer::{GenerationConfig, generate};
use glm4v_model::{
    Architecture, Batch, Estimate, Glm4v, Glm4vConfig, Grid, Learning, LoraConfig, NamedMapper, PaddingSide,
    Sample, Workload, initialize, initialize_lora, map_named,
};
use glm4v_train::{AdamW, AdamWConfig, NamedGradients, Targets, loss};
use peak_alloc::PeakAlloc;
use serde_json::json;

/// Counts what it hands out for tensors.
struct Tensors(PeakAlloc);

#[global_allocator]
static ALLOCATOR: Tensors = Tensors(PeakAlloc);

impl Tensors {
    /// Workspace is known by its alignment: `gemm` aligns what it packs factors into to two cache lines, and nothing else
    /// asks for more than one. Records of operations are smaller than any tensor that matters.
    fn counts(layout: &Layout) -> bool {
        layout.align() <= 64 && layout.size() >= 4096
    }
}

// SAFETY: a block goes back to the allocator that it came from: it is freed with the layout that it was made with.
#[expect(unsafe_code, reason = "an allocator cannot be made otherwise")]
unsafe impl GlobalAlloc for Tensors {
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

/// A network that is small, and large enough for its tensors to outweigh everything around them.
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
    let row = || {
        let grid = workload.image.unwrap_or(Grid::new(1, 0, 0));
        let image = grid.tokens(2);
        // Different ones, so that every expert has something to do.
        let mut ids: Vec<u32> = (0..workload.length as u32).map(|at| 10 + at * 37 % 2900).collect();
        let mut kinds = vec![0; workload.length];
        ids[1..=image].fill(IMAGE);
        kinds[1..=image].fill(1);
        let loss_mask: Vec<bool> =
            (0..workload.length).map(|at| at >= workload.length - workload.answer).collect();
        let values = (0..grid.patches() * 216).map(|i| (i % 31) as f32 / 31.0 - 0.5).collect();
        let grids = [[grid.t, grid.h, grid.w]];
        let grids = if image > 0 { &grids[..] } else { &[] };
        Sample::from_parts(ids, &kinds, loss_mask, (values, grids), (vec![], &[]))
    };
    Batch::collate(&(0..workload.rows).map(|_| row()).collect::<Vec<_>>(), 0, PaddingSide::Right)
}

fn now() -> u64 {
    ALLOCATOR.0.current_usage() as u64
}

/// The most bytes in use while something runs, without those in use before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = now();
    ALLOCATOR.0.reset_peak_usage();
    let done = work();
    (done, ALLOCATOR.0.peak_usage() as u64 - before)
}

/// Stops the gradients of everything but adapters.
struct Freeze;

impl NamedMapper for Freeze {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if name.contains(".lora.") { param } else { param.set_require_grad(false) }
    }
}

const RANK: usize = 8;

/// Adapters on the text decoder, and with `vision` on vision tower and merger too.
fn with_adapters(mut model: Glm4v, vision: bool, device: &Device) -> (Glm4v, Learning) {
    let learning = Learning::lora(&mut model, RANK, vision);
    let lora = LoraConfig { rank: RANK, alpha: 16.0, rslora: false, dropout: 0.0 };
    model.for_each_linear(|name, linear| {
        if name.starts_with("model.language_model") || vision && name != "lm_head" {
            linear.lora = Some(lora.init(linear.d_input(), linear.d_output(), device));
        }
    });
    let dtype = model.dtype();
    (map_named(initialize_lora(model, 1, dtype), &mut Freeze), learning)
}

/// Bytes kept after a forward pass, and the most in use in the second step, weights included.
fn train(mut model: Glm4v, weights: u64, workload: &Workload) -> (u64, u64) {
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
    let mut optimizer = AdamW::new(settings);
    let batch = batch(workload);
    let targets = Targets::of(&batch);
    let base = now() - weights;
    let (mut kept, mut most) = (0, 0);
    for _ in 0..2 {
        ALLOCATOR.0.reset_peak_usage();
        let before = now();
        let loss = loss(&model, &batch, &targets).unwrap();
        kept = now() - before;
        let gradients = NamedGradients::backward(&model, &loss);
        gradients.norm().unwrap().into_scalar::<f32>();
        drop(loss);
        model = optimizer.step(model, gradients, 1e-3, 0.5);
        most = ALLOCATOR.0.peak_usage() as u64 - base;
    }
    (kept, most)
}

/// How far an estimate may be off.
const SHARE: f64 = 0.04;

fn compare(what: &str, estimated: u64, measured: u64) {
    let off = estimated as f64 / measured as f64 - 1.0;
    println!("{what}: {estimated} estimated, {measured} measured, {:+.1} %", 100.0 * off);
    assert!(off.abs() < SHARE, "{what}: {estimated} estimated, {measured} measured, {:+.1} %", 100.0 * off);
}

fn check(architecture: Architecture, dtype: DType, name: &str, workload: Workload) {
    let device = Device::flex();
    let tracked = device.clone().autodiff();
    let config = config(architecture);
    let sizes = config.sizes(&device);
    let what = format!("{architecture} {dtype:?} {name}");
    let bytes = dtype.size() as u64;
    let weights = sizes.total() * bytes;
    let estimate = Estimate { config: &config, sizes: &sizes, bytes, cpu: true, workload };

    let model = initialize(config.init(&tracked), 0, dtype);
    let (kept, most) = train(model, weights, &workload);
    compare(&format!("{what}, kept"), estimate.kept(Learning::Full), kept);
    compare(&format!("{what}, training"), estimate.training(Learning::Full).total(), most);

    let places = [("adapters", false), ("adapters everywhere", true)];
    for (adapters, vision) in places.into_iter().filter(|(_, vision)| !vision || workload.image.is_some()) {
        let model = initialize(config.init(&tracked), 0, dtype);
        let (model, learning) = with_adapters(model, vision, &tracked);
        let Learning::Lora { text, vision, .. } = learning else { unreachable!() };
        let (kept, most) = train(model, weights + (text + vision) * bytes, &workload);
        compare(&format!("{what}, kept with {adapters}"), estimate.kept(learning), kept);
        compare(&format!("{what}, training with {adapters}"), estimate.training(learning).total(), most);
    }

    let model = initialize(config.init(&device), 0, dtype);
    let prompt = Workload { length: workload.length - workload.answer, answer: 0, ..workload };
    let batch = batch(&prompt);
    let mut settings = GenerationConfig::greedy(&config, workload.answer);
    settings.stop_ids.clear();
    let (_, most) = peak(|| generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(())).unwrap());
    compare(&format!("{what}, generation"), estimate.generation().total(), weights + most);
}

// One test: what others allocate meanwhile would count.
#[test]
fn an_estimate_is_near_what_is_allocated() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(16 << 20).build().unwrap();
    pool.install(check_all);
}

fn check_all() {
    let image = Workload { rows: 2, length: 100, answer: 20, image: Some(Grid::new(1, 16, 16)) };
    let large = Workload { rows: 1, length: 280, answer: 8, image: Some(Grid::new(1, 32, 32)) };
    let long = Workload { rows: 1, length: 500, answer: 40, image: None };
    let wide = Workload { rows: 16, length: 24, answer: 12, image: Some(Grid::new(1, 4, 4)) };
    for architecture in [Architecture::Glm4v, Architecture::Glm4vMoe, Architecture::GlmOcr] {
        for (name, workload) in [("image", image), ("long", long), ("wide", wide)] {
            check(architecture, DType::F32, name, workload);
        }
    }
    check(Architecture::Glm4v, DType::F32, "large image", large);
    check(Architecture::Glm4v, DType::BF16, "image", image);
    check(Architecture::Glm4vMoe, DType::BF16, "long", long);
}
