//! `glm4v info`

use anyhow::{Context, ensure};
use glm4v_model::{Backend, Glm4vConfig, Grid, ParamCounts};
use glm4v_plan::{CostModel, MemoryEstimate, TuningMode, Workload};
use glm4v_processor::{ImageConfig, ImageProcessor};
use glm4v_weights::ModelFolder;
use serde_json::{Map, Value, json};

use super::{PREPROCESSOR_CONFIG, counting_device, image_config, print_line};
use crate::args::{Global, Info};
use crate::device;
use crate::kernels::{self, Tuning};
use crate::progress::grouped;

pub(crate) fn info(args: &Info, global: &Global) -> anyhow::Result<()> {
    kernels::install(Tuning::Quick);
    if global.backend != Backend::Auto {
        global.backend.open()?; // a backend requested by name must exist
    }
    let report = match &args.model {
        Some(model_dir) => model(&ModelFolder::open(model_dir)?, args, global)?,
        None => devices(),
    };
    if args.json {
        return print_line(&report.to_string());
    }
    print(report.as_object().unwrap_or(&Map::new()), "")
}

/// Prints one line per value, keys in a column, nested objects indented.
fn print(report: &Map<String, Value>, indent: &str) -> anyhow::Result<()> {
    for (key, value) in report {
        let label = key.strip_suffix(BYTES).unwrap_or(key).replace('_', " ");
        let name = format!("{indent}{label}");
        match value {
            Value::Object(inner) => {
                print_line(&name)?;
                print(inner, &format!("{indent}  "))?;
            }
            Value::Array(lines) => {
                for line in lines {
                    print_line(&format!("{name:24} {}", format_value(key, line)))?;
                }
            }
            value => print_line(&format!("{name:24} {}", format_value(key, value)))?,
        }
    }
    Ok(())
}

/// Suffix of keys whose values are bytes.
const BYTES: &str = "_bytes";

fn format_value(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if key.ends_with(BYTES) => format_bytes(bytes),
            Some(count) => grouped(count as usize),
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// `17.56 GB (17,559,044,096 bytes)`
fn format_bytes(bytes: u64) -> String {
    let exact = grouped(bytes as usize);
    match bytes {
        0..1_000_000 => format!("{exact} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB ({exact} bytes)", bytes as f64 / 1e6),
        _ => format!("{:.2} GB ({exact} bytes)", bytes as f64 / 1e9),
    }
}

fn devices() -> Value {
    let mut compiled = Vec::new();
    for (feature, name) in
        [(cfg!(feature = "cpu"), "cpu"), (cfg!(feature = "wgpu"), "wgpu"), (cfg!(feature = "cuda"), "cuda")]
    {
        if feature {
            compiled.push(name);
        }
    }
    let found = Backend::available();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "compiled_in": compiled.join(", "),
        "auto_backend": Backend::Auto.resolve().to_string(),
        "device": found.iter().map(|(name, what)| format!("{name}: {what}")).collect::<Vec<_>>(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

fn model(model_dir: &ModelFolder, args: &Info, global: &Global) -> anyhow::Result<Value> {
    let config = model_dir.config();
    let params = config.param_counts(&counting_device());
    let (text, vision) = (&config.text, &config.vision);
    let experts = text.moe.as_ref().map(|moe| {
        format!(
            "{} of {} a token, {} for all, from layer {} on",
            moe.num_experts_per_tok, moe.n_routed_experts, moe.n_shared_experts, moe.first_k_dense_replace
        )
    });
    let mut report = json!({
        "architecture": config.architecture.to_string(),
        "parameters": params.total(),
        "vision_tower": params.vision_tower,
        "merger": params.merger,
        "embedding": params.embedding,
        "text_decoder": params.decoder,
        "expert_params": params.experts,
        "head": params.head,
        "active_params": params.active_params(),
        "tensors": params.tensors,
        "weights": weights(model_dir)?,
        "text": format!("{} layers of width {}, {} heads on {} key heads, vocabulary {}",
            text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.num_key_value_heads,
            text.vocab_size),
        "experts": experts,
        "vision": format!("{} blocks of width {}, {} heads, patches of {} pixels, {} a token",
            vision.depth, vision.hidden_size, vision.num_heads, vision.patch_size, vision.merged_patches()),
        "max_position_embeddings": text.max_position_embeddings,
    });
    if params.experts == 0 {
        let keys = report.as_object_mut().context("a report is an object")?;
        keys.retain(|key, _| !key.contains("experts"));
    }
    let (image, grid) = image(model_dir, args)?;
    report["image"] = image;
    report["estimate"] = estimate(config, &params, grid, args, global)?;
    Ok(report)
}

/// Files, tensors and dtypes of the stored checkpoint.
fn weights(model_dir: &ModelFolder) -> anyhow::Result<Value> {
    if !model_dir.has_weights() {
        return Ok(json!("none; glm4v init creates random ones"));
    }
    let summary = model_dir.summary()?;
    Ok(
        json!({"files": summary.files, "tensors": summary.tensors, "total_bytes": summary.total_bytes, "types": summary.types}),
    )
}

/// Token limits of an image, and the tokens and grid of one of `--image-size`.
fn image(model_dir: &ModelFolder, args: &Info) -> anyhow::Result<(Value, Option<Grid>)> {
    let (config, from) = match image_config(model_dir.path())? {
        Some(config) => (config, PREPROCESSOR_CONFIG),
        None => (
            ImageConfig::from_json("{}")?,
            "transformers' defaults; the directory has no preprocessor_config.json",
        ),
    };
    let side = config.patch_size * config.merge_size;
    let token = config.temporal_patch_size * side * side; // a still image fills every frame of a temporal patch
    let limits = json!({"min_image_tokens": config.min_pixels.div_ceil(token), "max_image_tokens": config.max_pixels / token,
        "by": from});
    let Some((width, height)) = args.image_size.0 else { return Ok((limits, None)) };
    let processor = ImageProcessor::new(&config);
    let grid = processor.grid(height, width).with_context(|| format!("--image-size {width}x{height}"))?;
    let mut report = json!({"pixels": format!("{width}x{height}"), "patches": format!("{}x{}", grid[2], grid[1]),
        "tokens": processor.tokens(grid)});
    if let (Some(report), Value::Object(limits)) = (report.as_object_mut(), limits) {
        report.extend(limits);
    }
    Ok((report, Some(Grid::new(grid[0], grid[1], grid[2]))))
}

fn estimate(
    config: &Glm4vConfig,
    params: &ParamCounts,
    image: Option<Grid>,
    args: &Info,
    global: &Global,
) -> anyhow::Result<Value> {
    let tokens = image.map_or(0, |grid| grid.tokens(config.vision.spatial_merge_size));
    ensure!(
        tokens + args.max_new_tokens < args.seq_len,
        "--seq-len {}: the image takes {tokens} tokens and the answer {}; needed: more than both",
        args.seq_len,
        args.max_new_tokens
    );
    let precision = device::precision(global)?;
    let dtype_bytes = precision.dtype().size() as u64;
    let workload = Workload {
        batch_size: args.batch_size,
        seq_len: args.seq_len,
        completion_tokens: args.max_new_tokens,
        image,
    };
    let cpu = global.backend.resolve() == Backend::Cpu;
    let cost = CostModel { config, params, dtype_bytes, cpu, workload };
    let mut model = config.init(&counting_device());
    let [lora, all_linear] = [false, true].map(|vision| TuningMode::lora(&mut model, args.lora_rank, vision));
    Ok(json!({
        "counts": "tensors; whole runs took up to a fifth more, see benches/memory",
        "for": format!("{precision}, batch {}, length {}, {} of them answer{}", args.batch_size, args.seq_len, args.max_new_tokens,
            if image.is_some() { ", an image a row" } else { "" }),
        "bytes_read_per_token": params.active_params() * dtype_bytes,
        "cache_per_token_bytes": cost.kv_cache_bytes_per_token(),
        "generation": memory(cost.generation_memory()),
        "training": memory(cost.training_memory(TuningMode::Full)),
        format!("training_lora_rank_{}", args.lora_rank): memory(cost.training_memory(lora)),
        format!("training_lora_rank_{}_all_linear", args.lora_rank): memory(cost.training_memory(all_linear)),
    }))
}

/// The parts that are not zero, their sum, and the name of the largest.
fn memory(memory: MemoryEstimate) -> Value {
    let parts = [
        ("weights_bytes", memory.weights),
        ("cache_bytes", memory.kv_cache),
        ("optimizer_bytes", memory.optimizer),
        ("gradients_bytes", memory.gradients),
        ("activation_bytes", memory.saved_activations),
        ("workspace_bytes", memory.workspace),
    ];
    let largest = parts.iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(key, _)| key);
    let mut report: Map<String, Value> = parts
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(key, bytes)| (key.to_owned(), json!(bytes)))
        .collect();
    report.insert("peak_bytes".to_owned(), json!(memory.total()));
    report.insert("largest_part".to_owned(), json!(largest.trim_end_matches(BYTES)));
    Value::Object(report)
}
