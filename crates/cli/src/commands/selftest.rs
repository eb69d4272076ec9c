//! `glm4v selftest`

use std::fmt::Write as _;

use anyhow::Result;
use glm4v_model::{Backend, Precision};
use glm4v_selftest::{Comparison, Part, PartReport, SelfTest};
use serde_json::{Value, json};

use super::print_line;
use crate::args::{Global, Selftest};
use crate::{device, features};

/// Parts of the self-test with a number out of its tolerance, or without a result.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} of {total} parts failed: {}; this build computes other numbers here than transformers does",
    .failed.len(),
    names(.failed)
)]
pub(crate) struct SelftestFailed {
    /// The parts that failed.
    pub(crate) failed: Vec<Part>,
    /// Number of parts that ran.
    pub(crate) total: usize,
    /// Whether the processor computed.
    pub(crate) on_cpu: bool,
    /// Whether it was in 16 bits.
    pub(crate) narrow: bool,
}

fn names(parts: &[Part]) -> String {
    parts.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ")
}

pub(crate) fn selftest(args: &Selftest, global: &Global) -> Result<()> {
    let (device_spec, precision) = device::open(global)?;
    let test = SelfTest::new(device_spec, precision)?;
    let parts = if args.parts.is_empty() { Part::ALL.to_vec() } else { args.parts.clone() };
    let backend = global.backend.resolve();
    print_line(&if args.json { header(&test, backend).to_string() } else { title(&test, backend) })?;
    let (mut failed, mut printed) = (Vec::new(), Ok(()));
    test.run(&parts, |report| {
        if !report.ok() {
            failed.push(report.part);
        }
        let lines = if args.json { objects(report) } else { rows(report) };
        if printed.is_ok() {
            printed = lines.iter().try_for_each(|line| print_line(line));
        }
    });
    printed?;
    let result = SelftestFailed {
        failed,
        total: parts.len(),
        on_cpu: backend == Backend::Cpu,
        narrow: precision != Precision::F32,
    };
    finish(result, args.json)
}

/// Prints the result; it is an error if a part failed.
fn finish(result: SelftestFailed, json: bool) -> Result<()> {
    let (ok, total) = (result.failed.is_empty(), result.total);
    if json {
        let failed: Vec<&str> = result.failed.iter().map(|part| part.name()).collect();
        print_line(&json!({"ok": ok, "parts": total, "failed": failed}).to_string())?;
    } else if ok {
        print_line(&format!("\nall {total} parts ok"))?;
    }
    if ok { Ok(()) } else { Err(result.into()) }
}

/// The machine and the build.
fn header(test: &SelfTest, backend: Backend) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "features": features::enabled(),
        "backend": backend.to_string(),
        "device": SelfTest::device_name(backend),
        "dtype": test.precision().to_string(),
    })
}

fn title(test: &SelfTest, backend: Backend) -> String {
    let (version, device, dtype) =
        (env!("CARGO_PKG_VERSION"), SelfTest::device_name(backend), test.precision());
    let features = features::enabled().join(", ");
    let columns = line("part", "quantity", ["deviation", "tolerance"], "seconds", "");
    format!("glm4v {version} ({features}), backend {backend} ({device}), dtype {dtype}\n\n{columns}")
}

fn line(part: &str, quantity: &str, numbers: [&str; 2], seconds: &str, ok: &str) -> String {
    let [deviation, tolerance] = numbers;
    let line = format!("{part:11} {quantity:34} {deviation:>9} {tolerance:>9} {seconds:>8}  {ok}");
    line.trim_end().to_owned()
}

/// The rows of a part in the table. Its name and its time are in the first one.
fn rows(report: &PartReport) -> Vec<String> {
    let seconds = format!("{:.1}", report.elapsed.as_secs_f64());
    if let Some(failure) = &report.failure {
        let row = line(report.part.name(), "did not finish", ["", ""], &seconds, "FAIL");
        return vec![row, format!("            {}", failure.to_string().replace('\n', "\n            "))];
    }
    let mut lines = Vec::new();
    for (index, comparison) in report.comparisons.iter().enumerate() {
        let first = index == 0;
        let (part, seconds) = if first { (report.part.name(), seconds.as_str()) } else { ("", "") };
        lines.push(row(part, comparison, seconds));
    }
    lines
}

fn row(part: &str, comparison: &Comparison, seconds: &str) -> String {
    let numbers = [comparison.deviation, comparison.tolerance].map(|number| format!("{number:.1e}"));
    let ok = if comparison.ok() { "ok" } else { "FAIL" };
    let numbers = [numbers[0].as_str(), numbers[1].as_str()];
    let mut row = line(part, &comparison.quantity, numbers, seconds, ok);
    if let Some(tensor) = comparison.tensor.as_ref().filter(|_| !comparison.ok()) {
        let _ = write!(row, "  {tensor}");
    }
    row
}

/// The comparisons of a part as JSON.
fn objects(report: &PartReport) -> Vec<String> {
    let (part, seconds) = (report.part.name(), report.elapsed.as_secs_f64());
    if let Some(failure) = &report.failure {
        let failed = json!({"part": part, "ok": false, "error": failure.to_string(), "seconds": seconds});
        return vec![failed.to_string()];
    }
    let object = |comparison: &Comparison| {
        json!({
            "part": part,
            "quantity": comparison.quantity,
            "tensor": comparison.tensor,
            "deviation": number(comparison.deviation),
            "tolerance": comparison.tolerance,
            "ok": comparison.ok(),
            "seconds": seconds,
        })
    };
    report.comparisons.iter().map(|comparison| object(comparison).to_string()).collect()
}

/// JSON has no infinity and no NaN.
fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(deviation: f64) -> PartReport {
        let quantity = "glm4v logits".to_owned();
        let comparison =
            Comparison { quantity, tensor: Some("lm_head.weight".into()), deviation, tolerance: 5e-4 };
        let elapsed = Duration::from_millis(1260);
        PartReport { part: Part::Forward, comparisons: vec![comparison], failure: None, elapsed }
    }

    #[test]
    fn a_row_says_what_deviates_and_where() {
        let text = |deviation| rows(&report(deviation)).concat();

        assert!(text(4e-6).starts_with("forward     glm4v logits"), "{}", text(4e-6));
        assert!(text(4e-6).ends_with(" 4.0e-6    5.0e-4      1.3  ok"), "{}", text(4e-6));
        assert!(text(6e-4).ends_with("FAIL  lm_head.weight"), "{}", text(6e-4));
        assert!(text(f64::NAN).ends_with("FAIL  lm_head.weight"), "{}", text(f64::NAN));
    }

    #[test]
    fn json_of_a_value_that_is_no_number_is_text() {
        let object: Value = serde_json::from_str(&objects(&report(f64::NAN))[0]).unwrap();

        assert_eq!((&object["deviation"], &object["ok"]), (&json!("NaN"), &json!(false)));
        assert_eq!((&object["part"], &object["seconds"]), (&json!("forward"), &json!(1.26)));
    }

    #[test]
    fn failed_parts_are_an_error_with_their_names_and_a_remedy() {
        let result = |failed: &[Part]| SelftestFailed {
            failed: failed.to_vec(),
            total: 8,
            on_cpu: false,
            narrow: true,
        };
        assert!(finish(result(&[]), true).is_ok());

        let error = finish(result(&[Part::Forward, Part::Lora]), false).unwrap_err();

        let line = crate::remedy::line(&error, &["selftest"]);
        assert!(line.starts_with("2 of 8 parts failed: forward, lora; "), "{line}");
        assert!(line.contains("; run the first one alone with --part forward, and see whether"), "{line}");
        assert!(line.contains("--backend cpu or --dtype f32"), "{line}");
    }
}
