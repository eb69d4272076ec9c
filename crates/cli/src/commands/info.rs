//! `glm4v info`

use anyhow::{Context, ensure};
use burn::tensor::Device;
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_model::{Backend, Estimate, Glm4vConfig, Grid, Learning, Memory, Sizes, Workload};
use glm4v_processor::{ImageConfig, ImageProcessor};
use glm4v_weights::ModelFolder;
use serde_json::{Map, Value, json};

use super::print_line;
use crate::args::{Global, Info};
use crate::device;
use crate::progress::grouped;
use crate::stored::Stored;

pub(crate) fn info(args: &Info, global: &Global) -> anyhow::Result<()> {
    if global.backend != Backend::Auto {
        global.backend.open()?; // whoever names one wants to know whether it is there
    }
    let report = match &args.model {
        Some(folder) => model(&ModelFolder::open(folder)?, args, global)?,
        None => devices(),
    };
    if args.json {
        return print_line(&report.to_string());
    }
    print(report.as_object().unwrap_or(&Map::new()), "")
}

/// One line a value, keys in a column; what is inside another value is indented.
fn print(report: &Map<String, Value>, indent: &str) -> anyhow::Result<()> {
    for (key, value) in report {
        let words = key.strip_suffix(BYTES).unwrap_or(key).replace('_', " ");
        let name = format!("{indent}{words}");
        match value {
            Value::Object(inner) => {
                print_line(&name)?;
                print(inner, &format!("{indent}  "))?;
            }
            Value::Array(lines) => {
                for line in lines {
                    print_line(&format!("{name:24} {}", plain(key, line)))?;
                }
            }
            value => print_line(&format!("{name:24} {}", plain(key, value)))?,
        }
    }
    Ok(())
}

/// End of the keys whose values are sizes in memory or on the disk.
const BYTES: &str = "_bytes";

fn plain(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if key.ends_with(BYTES) => bytes_in_words(bytes),
            Some(count) => grouped(count as usize),
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// `17.56 GB (17,559,044,096 bytes)`
fn bytes_in_words(bytes: u64) -> String {
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

fn model(folder: &ModelFolder, args: &Info, global: &Global) -> anyhow::Result<Value> {
    let config = folder.config();
    // Nothing is allocated: parameters that are neither loaded nor initialised only know their shape.
    let device = Backend::Cpu.open().unwrap_or_else(|_| Device::default());
    let sizes = config.sizes(&device);
    let (text, vision) = (&config.text, &config.vision);
    let experts = text.moe.as_ref().map(|moe| {
        format!(
            "{} of {} a token, {} for all, from layer {} on",
            moe.num_experts_per_tok, moe.n_routed_experts, moe.n_shared_experts, moe.first_k_dense_replace
        )
    });
    let mut report = json!({
        "architecture": config.architecture.to_string(),
        "parameters": sizes.total(),
        "vision_tower": sizes.vision_tower,
        "merger": sizes.merger,
        "embedding": sizes.embedding,
        "text_decoder": sizes.decoder,
        "expert_params": sizes.experts,
        "head": sizes.head,
        "active_params": sizes.read_per_token(),
        "tensors": sizes.tensors,
        "weights": weights(folder)?,
        "text": format!("{} layers of width {}, {} heads on {} key heads, vocabulary {}",
            text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.num_key_value_heads,
            text.vocab_size),
        "experts": experts,
        "vision": format!("{} blocks of width {}, {} heads, patches of {} pixels, {} a token",
            vision.depth, vision.hidden_size, vision.num_heads, vision.patch_size, vision.merged_patches()),
        "max_position_embeddings": text.max_position_embeddings,
    });
    if sizes.experts == 0 {
        let keys = report.as_object_mut().context("a report is an object")?;
        keys.retain(|key, _| !key.contains("experts"));
    }
    let (image, grid) = image(folder, args)?;
    report["image"] = image;
    report["estimate"] = estimate(config, &sizes, grid, args, global, &device)?;
    Ok(report)
}

/// What lies on the disk.
fn weights(folder: &ModelFolder) -> anyhow::Result<Value> {
    if !folder.has_weights() {
        return Ok(json!("none; glm4v init creates random ones"));
    }
    let stored = Stored::of(folder.path())?;
    Ok(
        json!({"files": stored.files, "tensors": stored.tensors, "total_bytes": stored.bytes, "types": stored.types}),
    )
}

/// What an image of the wanted size becomes, and its grid.
fn image(folder: &ModelFolder, args: &Info) -> anyhow::Result<(Value, Option<Grid>)> {
    const FILE: &str = "preprocessor_config.json";
    let path = folder.path().join(FILE);
    let (config, from) = match read_text(&path, LONGEST_CONFIG) {
        Ok(json) => (ImageConfig::from_json(&json).with_context(|| path.display().to_string())?, FILE),
        Err(error) if error.is_missing() => (
            ImageConfig::from_json("{}")?,
            "transformers' defaults; the folder has no preprocessor_config.json",
        ),
        Err(error) => return Err(error.into()),
    };
    let side = config.patch_size * config.merge_size;
    let token = config.temporal_patch_size * side * side; // a still image counts for every frame of a patch
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
    sizes: &Sizes,
    image: Option<Grid>,
    args: &Info,
    global: &Global,
    device: &Device,
) -> anyhow::Result<Value> {
    let tokens = image.map_or(0, |grid| grid.tokens(config.vision.spatial_merge_size));
    ensure!(
        tokens + args.max_new_tokens < args.seq_len,
        "--seq-len {}: the image takes {tokens} tokens and the answer {}; needed: more than both",
        args.seq_len,
        args.max_new_tokens
    );
    let precision = device::precision(global)?;
    let bytes = precision.dtype().size() as u64;
    let workload =
        Workload { rows: args.batch_size, length: args.seq_len, answer: args.max_new_tokens, image };
    let cpu = global.backend.resolve() == Backend::Cpu;
    let estimate = Estimate { config, sizes, bytes, cpu, workload };
    let lora = |vision| estimate.training(Learning::lora(&mut config.init(device), args.lora_rank, vision));
    Ok(json!({
        "counts": "tensors; whole runs took up to a fifth more, see benches/memory",
        "for": format!("{precision}, batch {}, length {}, {} of them answer{}", args.batch_size, args.seq_len, args.max_new_tokens,
            if image.is_some() { ", an image a row" } else { "" }),
        "bytes_read_per_token": sizes.read_per_token() * bytes,
        "cache_per_token_bytes": estimate.cache_per_token(),
        "generation": memory(estimate.generation()),
        "training": memory(estimate.training(Learning::Full)),
        format!("training_lora_rank_{}", args.lora_rank): memory(lora(false)),
        format!("training_lora_rank_{}_all_linear", args.lora_rank): memory(lora(true)),
    }))
}

/// The parts that there are, their sum, and which of them is the largest.
fn memory(memory: Memory) -> Value {
    let parts = [
        ("weights_bytes", memory.weights),
        ("cache_bytes", memory.cache),
        ("optimizer_bytes", memory.optimizer),
        ("gradients_bytes", memory.gradients),
        ("activation_bytes", memory.kept),
        ("workspace_bytes", memory.working),
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
