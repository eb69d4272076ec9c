//! Records per second of the data loader.
//!
//!     cargo bench --workspace --bench loader -- --model configs/models/digits --workers 2 DATA.jsonl
//!
//! Prints one JSON object; `compare.py` compares it with a PyTorch `DataLoader`.
#![expect(clippy::print_stdout, reason = "the results go to stdout")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use glm4v_data::{
    BatchSampler, DataLoader, DataLoaderOptions, Dataset, DatasetOptions, DatasetRegistry, PixelCache,
};
use glm4v_processor::Processor;
use serde_json::json;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Speed of the data loader in records per second.
#[derive(Parser)]
struct Args {
    /// Directory with tokenizer, chat template and image settings.
    #[arg(long)]
    model: PathBuf,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Records per batch.
    #[arg(long, default_value_t = 4)]
    batch_size: usize,
    /// Directory of an image cache; none without it.
    #[arg(long)]
    cache_dir: Option<PathBuf>,
    /// Passed by Cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// File of records.
    data: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // One image has one thread, whatever the number of workers.
    rayon::ThreadPoolBuilder::new().num_threads(args.workers.max(1)).build_global()?;
    let mut processor = Processor::load(&args.model)?;
    if let Some(dir) = &args.cache_dir {
        processor = processor.with_image_cache(Arc::new(PixelCache::open(dir, u64::MAX)?));
    }
    let start = Instant::now();
    let source = DatasetRegistry::load("datasets".as_ref())?.find(&args.data.display().to_string())?;
    // Nothing is kept in memory: each record is decoded.
    let options = DatasetOptions { cache_bytes: 0, ..Default::default() };
    let dataset = Arc::new(Dataset::open(&source, None, Arc::new(processor), options)?);
    let open = start.elapsed().as_secs_f64();
    let sampler = BatchSampler::once(dataset.len(), args.batch_size)?;
    let options = DataLoaderOptions { workers: args.workers, ..Default::default() };
    let start = Instant::now();
    let (mut records, mut tokens, mut first) = (0, 0, None);
    for loaded in DataLoader::new(dataset, sampler, options)? {
        let loaded = loaded?;
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        records += loaded.indices.len();
        tokens += loaded.batch.num_tokens();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"records": records, "tokens": tokens, "open": open, "first": first, "seconds": seconds,
            "records_per_second": records as f64 / seconds})
    );
    Ok(())
}
