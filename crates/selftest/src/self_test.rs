//! The test of one device.

use std::time::{Duration, Instant};

use glm4v_model::{Backend, DeviceSpec, Precision};

use crate::comparison::Comparison;
use crate::error::CheckError;
use crate::guard::PanicGuard;
use crate::part::Part;
use crate::parts;
use crate::setup::Setup;

/// The test of a device and a type.
#[derive(Debug)]
pub struct SelfTest {
    setup: Setup,
}

/// Why a part has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It ended with an error.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// It, or a thread that worked for it, panicked.
    #[error("panicked: {}", .panics.join("; then: "))]
    Panic {
        /// Messages with places, in the order of time; at least one.
        panics: Vec<String>,
    },
}

/// What a part found.
#[derive(Debug)]
pub struct PartReport {
    /// The part.
    pub part: Part,
    /// Rows of the table; none if it failed.
    pub comparisons: Vec<Comparison>,
    /// Why there is none.
    pub failure: Option<Failure>,
    /// How long it took, compilation of kernels included.
    pub elapsed: Duration,
}

impl PartReport {
    /// Whether it finished, and everything is within its tolerance.
    pub fn ok(&self) -> bool {
        self.failure.is_none() && self.comparisons.iter().all(Comparison::ok)
    }
}

impl SelfTest {
    /// A test of a device in a type that it supports.
    ///
    /// # Errors
    ///
    /// When a network of this crate is refused, which is a bug of this build.
    pub fn new(device_spec: DeviceSpec, precision: Precision) -> Result<Self, CheckError> {
        Ok(Self { setup: Setup::new(device_spec, precision)? })
    }

    /// What the device of a backend calls itself.
    ///
    /// It is opened for that, and a driver that fails then has no name: the parts will tell why.
    pub fn device_name(backend: Backend) -> String {
        let is_asked = |name: Backend| match (name, backend) {
            (Backend::Wgpu(index), Backend::Wgpu(asked)) | (Backend::Cuda(index), Backend::Cuda(asked)) => {
                index == Some(asked.unwrap_or(0))
            }
            (name, asked) => name == asked,
        };
        if backend == Backend::Cpu {
            return "processor".to_owned(); // no need to look for GPUs
        }
        let found =
            PanicGuard::new().run(|| Backend::available().into_iter().find(|(name, _)| is_asked(*name)));
        found.ok().flatten().map_or_else(|| "a device without a name".to_owned(), |(_, name)| name)
    }

    /// The type of weights and activations.
    pub fn precision(&self) -> Precision {
        self.setup.precision
    }

    /// Runs parts in order, and hands out a report after each; returns whether all were right.
    ///
    /// A part that panics, here or on a worker thread, is reported as failed, and the next one runs. The panic hook of the process is
    /// replaced for as long as this takes.
    pub fn run(&self, parts: &[Part], on_report: impl FnMut(&PartReport)) -> bool {
        run_with(parts, |part| parts::run(part, &self.setup), on_report)
    }
}

fn run_with(
    parts: &[Part],
    work: impl Fn(Part) -> Result<Vec<Comparison>, CheckError>,
    mut on_report: impl FnMut(&PartReport),
) -> bool {
    let guard = PanicGuard::new();
    let mut ok = true;
    for part in parts {
        let report = report(&guard, *part, || work(*part));
        ok &= report.ok();
        on_report(&report);
    }
    ok
}

fn report(
    guard: &PanicGuard,
    part: Part,
    work: impl FnOnce() -> Result<Vec<Comparison>, CheckError>,
) -> PartReport {
    let start = Instant::now();
    let result = match guard.run(work) {
        Ok(result) => result.map_err(Failure::from),
        Err(panics) => Err(Failure::Panic { panics }),
    };
    let elapsed = start.elapsed();
    match result {
        Ok(comparisons) => PartReport { part, comparisons, failure: None, elapsed },
        Err(failure) => PartReport { part, comparisons: Vec::new(), failure: Some(failure), elapsed },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::tests::on_cpu;

    /// The rows that are not right, of all parts.
    fn wrong(setup: Setup) -> Vec<String> {
        let test = SelfTest { setup };
        let mut wrong = Vec::new();
        test.run(&Part::ALL, |report| {
            wrong.extend(report.failure.iter().map(|failure| format!("{}: {failure}", report.part)));
            let rows = report.comparisons.iter().filter(|row| !row.ok());
            wrong.extend(rows.map(|row| format!("{}: {row:?}", report.part)));
            assert!(report.failure.is_some() || !report.comparisons.is_empty(), "{}", report.part);
        });
        wrong
    }

    #[test]
    fn the_cpu_computes_what_transformers_computes_in_every_type() {
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            assert_eq!(wrong(on_cpu(precision)), Vec::<String>::new(), "{precision}");
        }
    }

    #[test]
    fn every_expected_tensor_is_compared_with_something() {
        let whole = on_cpu(Precision::F32);
        for (index, family) in whole.families.iter().enumerate() {
            // One tensor at a time would take minutes: one of each part and kind of name.
            for part in [
                "forward",
                "video",
                "gradients",
                "generation",
                "training",
                "lora",
                "merged",
                "lora_gradients",
                "lora_training",
            ] {
                let mut setup = on_cpu(Precision::F32);
                let name = family.names(part).last().map(|name| format!("{part}.{name}")).unwrap();
                setup.families[index].expected.get_mut(&name).unwrap()[0] += 1.0;
                assert_eq!(wrong(setup).len(), 1, "{name}");
            }
        }
    }

    #[test]
    fn a_part_that_panics_leaves_the_others_standing() {
        let mut reports = Vec::new();
        let work = |part| match part {
            Part::Attention => panic!("a kernel of {part}"),
            Part::Rounding => {
                std::thread::spawn(|| panic!("on the device's thread")).join().expect("the channel is open");
                unreachable!()
            }
            _ => Ok(vec![Comparison::new("logits", 1e-6, 1e-5)]),
        };

        let ok = run_with(&[Part::Attention, Part::Rounding, Part::Forward], work, |report| {
            reports.push((report.ok(), report.failure.as_ref().map_or(String::new(), ToString::to_string)));
        });

        assert!(!ok);
        assert!(reports[0].1.starts_with("panicked: a kernel of attention (crates"), "{reports:?}");
        assert!(reports[1].1.starts_with("panicked: on the device's thread ("), "{reports:?}");
        assert!(reports[1].1.contains("; then: the channel is open"), "{reports:?}");
        assert_eq!(reports[2], (true, String::new()));
    }
}
