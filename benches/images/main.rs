//! Images per second of decoding, of resizing, and of the whole preprocessing.
//!
//!     cargo bench --workspace --bench images -- --threads 2 FILE...
//!
//! Prints one JSON object per file; `compare.py` compares it with transformers.
#![expect(clippy::print_stdout, reason = "the results go to stdout")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use glm4v_processor::{ImageProcessor, ImageSource, resize_bicubic};
use rayon::prelude::*;
use serde_json::json;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Preprocessing speed in images per second.
#[derive(Parser)]
struct Args {
    /// Number of threads; each image is processed by one.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Number of concurrent images, all of the same file.
    #[arg(long, default_value_t = 8)]
    images: usize,
    /// Number of rounds; the best counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Passed by Cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// Image files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    pool.install(|| {
        for file in &args.files {
            let name = file.display().to_string();
            println!("{}", measure(&args, &ImageSource::Path(file.clone())).context(name)?);
        }
        Ok(())
    })
}

fn measure(args: &Args, source: &ImageSource) -> anyhow::Result<serde_json::Value> {
    let processor = ImageProcessor::from_json("{}")?;
    let image = ImageProcessor::load_image(source)?;
    let [_, rows, columns] = processor.grid(image.height(), image.width())?;
    let (height, width) = (rows * 14, columns * 14);

    let decode = best(args, || ImageProcessor::load_image(source).map(drop))?;
    let resize = best(args, || {
        resize_bicubic(&image, height, width);
        anyhow::Ok(())
    })?;
    let patches = {
        let resized = resize_bicubic(&image, height, width);
        best(args, || processor.process(&resized).map(drop))?
    };
    let whole = best(args, || processor.process(&ImageProcessor::load_image(source)?).map(drop))?;
    Ok(json!({"file": source.to_string(), "height": image.height(), "width": image.width(),
        "to": [height, width], "threads": args.threads,
        "decode": decode, "resize": resize, "patches": patches, "whole": whole}))
}

/// Images per second in the best round.
fn best<E: Send>(args: &Args, work: impl Fn() -> Result<(), E> + Sync) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..=args.rounds {
        let start = Instant::now();
        (0..args.images).into_par_iter().map(|_| work()).collect::<Result<(), E>>()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(args.images as f64 / best)
}
