//! `glm4v warmup`: the cases of `bench`, each once.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, ensure};
use glm4v_measure::FreeMemory;
use glm4v_model::Backend;
use serde_json::{Value, json};

use super::bench::{Cases, Network, Session};
use super::print_line;
use crate::args::{Bench, BenchWorkload, Global, Warmup};
use crate::interrupt::Interrupted;
use crate::kernels::{self, Tuning};
use crate::progress::WorkProgress;
use crate::{device, interrupt};

/// Positions before decoding, whose kernels are compiled once and tuned by powers of two.
const DECODE_DEPTH: usize = 256;

/// Tokens of a row that carry loss where training is run.
const LABELS: usize = 32;

pub(crate) fn warmup(args: &Warmup, global: &Global) -> anyhow::Result<()> {
    if global.backend.resolve() == Backend::Cpu {
        return nothing_to_do(args);
    }
    kernels::install(Tuning::Thorough);
    if args.fresh {
        kernels::clear()?;
    }
    let (device_spec, precision) = device::open(global)?;
    let bench = args.as_bench();
    let network = Network::open(&bench, &device_spec)?.context("clap asks for --model or --config")?;
    let free = FreeMemory::of(global.backend, &device_spec.device);
    // A length beyond the model's, or an image beyond the device's memory, is none that will be met.
    let mut cases = Cases::new(&bench, &network)?.cases;
    cases.retain(|case| match case.check(&network, precision, free) {
        Ok(()) => true,
        Err(error) => {
            print_status!("left out: {error:#}");
            false
        }
    });
    ensure!(!cases.is_empty(), "no shape is left to run");
    let stop = interrupt::stop_flag("stopping after this shape");
    let mut session = Session::new(&bench, global, device_spec, precision);
    let mut progress = WorkProgress::new(cases.len(), global.quiet);
    let start = Instant::now();
    let mut seconds = Vec::new();
    for case in &cases {
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted { missing: "stopped; what was compiled so far is kept" }.into());
        }
        progress.begin(&case.to_string());
        let start = Instant::now();
        session.measure(&network, case).with_context(|| case.to_string())?;
        seconds.push(json!({"name": case.to_string(), "seconds": start.elapsed().as_secs_f64()}));
        progress.end();
    }
    drop(progress);
    report(args, &seconds, start.elapsed().as_secs_f64())
}

/// The CPU's kernels are part of the program.
fn nothing_to_do(args: &Warmup) -> anyhow::Result<()> {
    match args.json {
        true => print_line(&json!({"seconds": 0.0, "workloads": [], "cache": null}).to_string()),
        false => print_line("nothing to do on the cpu: its kernels are compiled into the program"),
    }
}

fn report(args: &Warmup, workloads: &[Value], seconds: f64) -> anyhow::Result<()> {
    let cache = kernels::summary();
    if args.json {
        let cache = cache.map(|cache| {
            json!({"file": cache.file.display().to_string(), "entries": cache.entries, "bytes": cache.bytes})
        });
        return print_line(&json!({"seconds": seconds, "workloads": workloads, "cache": cache}).to_string());
    }
    print_line(&format!("{} shapes in {seconds:.1} s", workloads.len()))?;
    match cache {
        Some(cache) => print_line(&format!(
            "kernel cache: {}, {} entries, {:.1} MB",
            cache.file.display(),
            cache.entries,
            cache.bytes as f64 / 1e6
        )),
        None => print_line("kernel cache: none, so that the next run begins anew"),
    }
}

impl Warmup {
    /// What `bench` would be asked for.
    fn as_bench(&self) -> Bench {
        use BenchWorkload::{Decode, Prefill, Train, Vision};
        let mut workload = vec![Prefill, Decode];
        if self.image_size.iter().any(|size| size.0.is_some()) {
            workload.push(Vision);
        }
        if !self.method.is_empty() {
            workload.push(Train);
        }
        Bench {
            model: self.model.clone(),
            config: self.config.clone(),
            workload,
            image_size: self.image_size.clone(),
            text_tokens: self.text_tokens.clone(),
            decode_depth: vec![DECODE_DEPTH],
            decode_tokens: 1,
            batch_size: self.batch_size.clone(),
            method: self.method.clone(),
            freeze: Vec::new(),
            lora_rank: 16,
            labels: LABELS,
            image: None,
            rounds: 1,
            warmup: 0,
            no_ceilings: true,
            kernels: 0,
            seed: 0,
            json: false,
        }
    }
}
