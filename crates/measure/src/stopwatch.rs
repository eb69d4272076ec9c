//! The measuring loop.

use std::time::{Duration, Instant};

use burn::tensor::Device;
use glm4v_model::ComputeError;

use crate::error::MeasureError;
use crate::kernel_time::KernelTime;
use crate::kernels;
use crate::peak_memory::{PeakMemory, PeakMeter};
use crate::samples::Samples;

/// How often work is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds before the first measured one.
    pub warmup: usize,
    /// Measured rounds; at least one is run.
    pub rounds: usize,
}

/// Measures work on a device, which it waits for after every round.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    device: Device,
    rounds: Rounds,
    profile_kernels: bool,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// Wall-clock seconds a round.
    pub seconds: Samples,
    /// Seconds of all processors together a round; none where the system does not tell.
    pub cpu_seconds: Option<Samples>,
    /// Rounds before the first measured one.
    pub warmup: usize,
    /// Kernels launched in one more round; none on the CPU, which launches none.
    pub kernel_launches: Option<u64>,
    /// Time by kernel in one more round, longest first; empty unless asked for, and on the CPU.
    pub kernel_times: Vec<KernelTime>,
    /// Largest memory use over all rounds.
    pub peak_memory: PeakMemory,
}

impl Stopwatch {
    /// A stopwatch for work on a device.
    pub fn new(device: &Device, rounds: Rounds) -> Self {
        Self { device: device.clone(), rounds, profile_kernels: false }
    }

    /// The same with another number of measured rounds.
    #[must_use]
    pub fn with_rounds(&self, rounds: usize) -> Self {
        Self { rounds: Rounds { rounds, ..self.rounds }, ..self.clone() }
    }

    /// Adds a round in which each kernel is timed.
    #[must_use]
    pub fn with_kernel_times(mut self, on: bool) -> Self {
        self.profile_kernels = on;
        self
    }

    /// How often work is run.
    pub fn rounds(&self) -> Rounds {
        self.rounds
    }

    /// Rounds of [`measure`](Self::measure), those in which kernels are counted and timed included.
    pub fn all_rounds(&self) -> usize {
        self.rounds.warmup + self.rounds.rounds.max(1) + 2
    }

    /// Runs `work`, first to warm up and then to measure it.
    ///
    /// # Errors
    ///
    /// The first error of the work or of the device.
    pub fn measure(
        &self,
        mut work: impl FnMut() -> Result<(), MeasureError>,
    ) -> Result<Measurement, MeasureError> {
        self.measure_with(&mut (), |()| {}, |()| work())
    }

    /// As [`measure`](Self::measure), with a state that `reset` brings back before each round, outside of the measured time.
    ///
    /// # Errors
    ///
    /// The first error of the work or of the device.
    pub fn measure_with<S>(
        &self,
        state: &mut S,
        mut reset: impl FnMut(&mut S),
        mut work: impl FnMut(&mut S) -> Result<(), MeasureError>,
    ) -> Result<Measurement, MeasureError> {
        let meter = PeakMeter::start(&self.device);
        let mut round = |state: &mut S| {
            reset(state);
            self.sync()?;
            let (start, cpu_start) = (Instant::now(), cpu_time());
            work(state)?;
            self.sync()?;
            let seconds = start.elapsed().as_secs_f64();
            let cpu_seconds = cpu_time().zip(cpu_start).map(|(end, start)| (end - start).as_secs_f64());
            Ok::<_, MeasureError>((seconds, cpu_seconds))
        };
        for _ in 0..self.rounds.warmup {
            round(state)?;
        }
        let (mut seconds, mut cpu_seconds) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds.rounds.max(1) {
            let (wall, cpu) = round(state)?;
            seconds.push(wall);
            cpu_seconds.extend(cpu);
        }
        let peak_memory = meter.stop();
        let kernel_launches = kernels::count(&self.device, || round(state).map(drop))?;
        let kernel_times = match self.profile_kernels {
            true => kernels::profile(&self.device, || round(state).map(drop))?,
            false => Vec::new(),
        };
        Ok(Measurement {
            cpu_seconds: (cpu_seconds.len() == seconds.len()).then(|| Samples::new(cpu_seconds)),
            seconds: Samples::new(seconds),
            warmup: self.rounds.warmup,
            kernel_launches,
            kernel_times,
            peak_memory,
        })
    }

    /// Waits for the device.
    fn sync(&self) -> Result<(), MeasureError> {
        Ok(self.device.sync().map_err(ComputeError::from)?)
    }
}

/// Time that all threads of this process have computed.
#[cfg(unix)]
fn cpu_time() -> Option<Duration> {
    use nix::time::{ClockId, clock_gettime};

    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).ok().map(Duration::from)
}

/// Time that all threads of this process have computed.
#[cfg(not(unix))]
fn cpu_time() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_model::Backend;

    fn stopwatch(warmup: usize, rounds: usize) -> Stopwatch {
        Stopwatch::new(&Backend::Cpu.open().unwrap(), Rounds { warmup, rounds })
    }

    #[test]
    fn only_rounds_after_the_warmup_are_measured() {
        let mut runs = 0;

        let measured = stopwatch(2, 3)
            .measure(|| {
                runs += 1;
                Ok(())
            })
            .unwrap();

        assert_eq!((runs, measured.seconds.all().len(), measured.warmup), (5, 3, 2));
        assert_eq!(measured.kernel_launches, None);
    }

    #[test]
    fn the_state_is_reset_before_every_round() {
        let measured = stopwatch(1, 2).measure_with(
            &mut 0,
            |state| *state += 7,
            |state| {
                assert_eq!(std::mem::take(state), 7);
                Ok(())
            },
        );

        assert_eq!(measured.unwrap().seconds.all().len(), 2);
    }

    #[test]
    fn an_error_ends_the_rounds() {
        let mut runs = 0;

        let error = stopwatch(1, 3).measure(|| {
            runs += 1;
            if runs == 2 { Err(MeasureError::NothingToTrain) } else { Ok(()) }
        });

        assert!(matches!(error, Err(MeasureError::NothingToTrain)));
        assert_eq!(runs, 2);
    }
}
