//! Kernel launches as CubeCL's launch observer sees them: issued by this process, on any thread and device.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cubecl::config::{TypeNameFormatLevel, type_name_format};
use cubecl::future::block_on;
use cubecl::logging::{LaunchObservation, LaunchObserver, ProfileDuration, TimingMethod, TimingRequest};

use crate::error::MeasureError;
use crate::kernel_time::KernelTime;

#[derive(Default)]
struct Counter(AtomicU64);

impl LaunchObserver for Counter {
    fn launched(&self, _kernel: &'static str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn count(work: impl FnOnce() -> Result<(), MeasureError>) -> Result<u64, MeasureError> {
    let counter = Arc::new(Counter::default());
    let observation = LaunchObservation::new(counter.clone());
    work()?;
    drop(observation);
    Ok(counter.0.load(Ordering::Relaxed))
}

/// Keeps the measurement of every launch, to be read once the work is done.
#[derive(Default)]
struct Profiler {
    unread: Mutex<Vec<(&'static str, ProfileDuration)>>,
    /// Those that were read for a log of the backend before.
    read: Mutex<Vec<(&'static str, Duration)>>,
}

impl LaunchObserver for Profiler {
    fn launched(&self, _kernel: &'static str) {}

    fn timing(&self) -> TimingRequest {
        TimingRequest::Deferred
    }

    fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, profile));
    }

    fn timed(&self, kernel: &'static str, duration: Duration, _method: TimingMethod) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, duration));
    }
}

pub(crate) fn profile(
    work: impl FnOnce() -> Result<(), MeasureError>,
) -> Result<Vec<KernelTime>, MeasureError> {
    let profiler = Arc::new(Profiler::default());
    let observation = LaunchObservation::new(profiler.clone());
    work()?;
    drop(observation);
    let mut times = std::mem::take(&mut *profiler.read.lock().unwrap_or_else(PoisonError::into_inner));
    let unread = std::mem::take(&mut *profiler.unread.lock().unwrap_or_else(PoisonError::into_inner));
    for (kernel, profile) in unread {
        times.extend(block_on(profile.resolve()).map(|ticks| (kernel, ticks.duration())));
    }
    Ok(by_kernel(times))
}

fn by_kernel(times: Vec<(&'static str, Duration)>) -> Vec<KernelTime> {
    let mut by_name: HashMap<&str, KernelTime> = HashMap::new();
    for (name, duration) in times {
        let kernel = by_name.entry(name).or_insert_with(|| KernelTime {
            name: type_name_format(name, TypeNameFormatLevel::Balanced),
            launches: 0,
            seconds: 0.0,
        });
        kernel.launches += 1;
        kernel.seconds += duration.as_secs_f64();
    }
    let mut kernels: Vec<KernelTime> = by_name.into_values().collect();
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| a.name.cmp(&b.name)));
    kernels
}
