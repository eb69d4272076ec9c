//! Results: shares of the ceilings, and the JSON.

use glm4v_measure::{Ceilings, DeviceInfo, KernelTime, Machine, Measurement, Samples, TrainingMethod};
use glm4v_model::{Backend, Precision};
use glm4v_plan::Work;
use serde_json::{Value, json};

use super::cases::{Case, CaseKind, Skipped};
use super::network::Network;
use crate::features;

/// How the measurements were made.
pub(super) struct Setting {
    pub(super) backend: Backend,
    pub(super) precision: Precision,
    pub(super) seed: u64,
}

/// Everything that was measured.
pub(super) struct Report {
    pub(super) setting: Setting,
    pub(super) machine: Machine,
    pub(super) network: Option<Network>,
    /// None if they were not asked for.
    pub(super) ceilings: Option<Ceilings>,
    pub(super) entries: Vec<Entry>,
    pub(super) skipped: Vec<Skipped>,
    /// Kernels to list for each workload.
    pub(super) kernels: usize,
}

/// A measured workload.
pub(super) struct Entry {
    pub(super) case: Case,
    pub(super) measured: Measurement,
    /// Least work of a round; none where it is not counted.
    pub(super) work: Option<Work>,
}

/// What a round does at most as fast as the device allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    /// Time of the least work at the ceilings, as a share of the median.
    pub(super) value: f64,
    /// The ceiling that is closer: "matmul" or "copy".
    pub(super) bound: &'static str,
}

impl Entry {
    /// Things that a round handles, and their name.
    pub(super) fn items(&self, network: &Network) -> (f64, &'static str) {
        let shape = &self.case.shape;
        let rows = shape.batch_size as f64;
        match self.case.kind {
            CaseKind::Load => (self.work.map_or(0.0, |work| work.bytes as f64 / 1e9), "GB"),
            CaseKind::Preprocess => (self.case.images() as f64, "images"),
            CaseKind::Vision => (rows, "images"),
            CaseKind::Decode { .. } => (rows, "tokens"),
            CaseKind::Prefill | CaseKind::Train(_) => {
                (rows * shape.seq_len(network.config()) as f64, "tokens")
            }
        }
    }

    pub(super) fn share(&self, ceilings: Option<&Ceilings>) -> Option<Share> {
        let (work, ceilings) = (self.work?, ceilings?);
        let matmul = work.flops as f64 / ceilings.matmul_flops_per_s.median();
        let copy = work.bytes as f64 / ceilings.copy_bytes_per_s.median();
        let bound = if matmul > copy { "matmul" } else { "copy" };
        Some(Share { value: matmul.max(copy) / self.measured.seconds.median(), bound })
    }

    fn json(&self, report: &Report, network: &Network) -> Value {
        let (case, measured) = (&self.case, &self.measured);
        let median = measured.seconds.median();
        let (items, unit) = self.items(network);
        let share = self.share(report.ceilings.as_ref());
        json!({
            "workload": case.workload(),
            "shape": shape(case, network),
            "seconds": samples(&measured.seconds),
            "cpu_seconds": measured.cpu_seconds.as_ref().map(samples),
            "warmup": measured.warmup,
            "rate": {"value": items / median, "unit": format!("{unit}/s")},
            "flops": self.work.map(|work| work.flops),
            "bytes": self.work.map(|work| work.bytes),
            "gflop_per_s": self.work.map(|work| work.flops as f64 / median / 1e9),
            "gb_per_s": self.work.map(|work| work.bytes as f64 / median / 1e9),
            "share_of_ceiling": share.map(|share| share.value),
            "ceiling": share.map(|share| share.bound),
            "kernel_launches": measured.kernel_launches,
            "kernels": measured.kernel_times.iter().take(report.kernels).map(kernel).collect::<Vec<_>>(),
            "peak_memory": {
                "process_bytes": measured.peak_memory.process_bytes,
                "process_since_start": measured.peak_memory.process_since_start,
                "device_bytes": measured.peak_memory.device_bytes,
            },
        })
    }
}

impl Report {
    pub(super) fn json(&self) -> Value {
        let entries = match &self.network {
            Some(network) => self.entries.iter().map(|entry| entry.json(self, network)).collect(),
            None => Vec::new(),
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "features": features::enabled(),
            "machine": machine(&self.machine),
            "backend": self.setting.backend.to_string(),
            "dtype": self.setting.precision.to_string(),
            "seed": self.setting.seed,
            "model": self.network.as_ref().map(model),
            "ceilings": self.ceilings.as_ref().map(ceilings),
            "workloads": entries,
            "skipped": self.skipped.iter()
                .map(|skipped| json!({"workload": skipped.workload, "reason": skipped.reason})).collect::<Vec<_>>(),
        })
    }
}

fn machine(machine: &Machine) -> Value {
    let device = |device: &DeviceInfo| {
        json!({"name": device.name, "driver": device.driver, "memory_bytes": device.memory_bytes,
            "free_bytes": device.free_bytes})
    };
    json!({
        "cpu": machine.cpu, "cores": machine.cores, "threads": machine.threads, "memory_bytes": machine.memory_bytes,
        "os": machine.os, "device": machine.device.as_ref().map(device),
    })
}

fn model(network: &Network) -> Value {
    json!({
        "path": network.path().display().to_string(),
        "architecture": network.config().architecture.to_string(),
        "weights": network.weights(),
        "parameters": network.params().total(),
        "active_params": network.params().active_params(),
    })
}

fn ceilings(ceilings: &Ceilings) -> Value {
    json!({
        "copy_bytes_per_s": samples(&ceilings.copy_bytes_per_s),
        "copy_bytes": ceilings.copy_bytes,
        "matmul_flops_per_s": samples(&ceilings.matmul_flops_per_s),
        "matmul_size": ceilings.matmul_size,
    })
}

fn samples(samples: &Samples) -> Value {
    json!({
        "median": samples.median(), "min": samples.min(), "max": samples.max(), "iqr": samples.interquartile_range(),
        "rounds": samples.all(),
    })
}

fn kernel(kernel: &KernelTime) -> Value {
    json!({"name": kernel.name, "launches": kernel.launches, "seconds": kernel.seconds})
}

/// Sizes that decide the work, so that another program can be given the same.
fn shape(case: &Case, network: &Network) -> Value {
    let shape = &case.shape;
    let mut value = json!({"batch_size": shape.batch_size});
    if let Some(grid) = shape.image {
        value["image_grid_thw"] = json!(grid.thw());
        value["image_tokens"] = json!(grid.tokens(network.config().vision.spatial_merge_size));
    }
    if let Some(pixels) = case.pixels {
        value["image_size"] = json!(pixels);
    }
    match &case.kind {
        CaseKind::Preprocess => {
            value["images"] = json!(case.images());
            value["decoded"] = json!(case.file.is_some());
        }
        CaseKind::Decode { depth } => {
            value["depth"] = json!(depth);
            value["depth_after"] = json!(case.depth_after);
        }
        CaseKind::Prefill | CaseKind::Train(_) => {
            value["text_tokens"] = json!(shape.text_tokens);
            value["seq_len"] = json!(shape.seq_len(network.config()));
        }
        CaseKind::Load | CaseKind::Vision => {}
    }
    if let CaseKind::Train(method) = &case.kind {
        value["labels"] = json!(shape.labels.min(shape.seq_len(network.config())));
        match method {
            TrainingMethod::Full { frozen } => {
                value["method"] = json!("full");
                value["frozen"] = frozen.iter().map(|target| target.name()).collect();
            }
            TrainingMethod::Lora { rank } => {
                value["method"] = json!("lora");
                value["rank"] = json!(rank);
            }
        }
    }
    value
}
