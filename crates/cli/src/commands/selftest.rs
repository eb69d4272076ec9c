//! `glm4v selftest`

use std::fmt::Write as _;

use anyhow::Result;
use glm4v_model::{Backend, Precision};
use glm4v_selftest::{Comparison, Part, PartReport, SelfTest};
use serde_json::{Value, json};

use super::print_line;
use crate::args::{Global, Selftest};
use crate::device;

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
}

fn names(parts: &[Part]) -> String {
    parts.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ")
}

pub(crate) fn selftest(args: &Selftest, global: &Global) -> Result<()> {
    let (device_spec, precision) = device::open(global)?;
    let test = SelfTest::new(device_spec, precision)?;
    let parts = if args.parts.is_empty() { Part::ALL.to_vec() } else { args.parts.clone() };
    print_line(&if args.json { header(global, precision).to_string() } else { title(global, precision) })?;
    let (mut failed, mut printed) = (Vec::new(), Ok(()));
    test.run(&parts, |report| {
        if !report.ok() {
            failed.push(report.part);
        }
        let lines = if args.json { objects(report) } else { rows(report) };
        let print = || lines.iter().try_for_each(|line| print_line(line));
        printed = std::mem::replace(&mut printed, Ok(())).and_then(|()| print());
    });
    printed?;
    finish(failed, parts.len(), args.json)
}

/// The result; an error if a part failed.
fn finish(failed: Vec<Part>, total: usize, json: bool) -> Result<()> {
    let names: Vec<&str> = failed.iter().map(|part| part.name()).collect();
    if json {
        print_line(&json!({"ok": failed.is_empty(), "parts": total, "failed": names}).to_string())?;
    } else if failed.is_empty() {
        print_line(&format!("\nall {total} parts ok"))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(SelftestFailed { failed, total }.into()) }
}

/// The machine and the build.
fn header(global: &Global, precision: Precision) -> Value {
    let backend = global.backend.resolve();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "backend": backend.to_string(),
        "device": device_name(backend),
        "dtype": precision.to_string(),
    })
}

fn title(global: &Global, precision: Precision) -> String {
    let backend = global.backend.resolve();
    let head = format!(
        "glm4v {}, backend {backend} ({}), dtype {precision}\n",
        env!("CARGO_PKG_VERSION"),
        device_name(backend)
    );
    format!("{head}\n{}", line("part", "quantity", ["deviation", "tolerance"], "seconds", ""))
}

/// What the backend's device calls itself.
fn device_name(backend: Backend) -> String {
    let of_backend = |name: Backend| match (name, backend) {
        (Backend::Wgpu(Some(index)), Backend::Wgpu(wanted))
        | (Backend::Cuda(Some(index)), Backend::Cuda(wanted)) => index == wanted.unwrap_or(0),
        (name, backend) => name == backend,
    };
    let found = Backend::available().into_iter().find(|(name, _)| of_backend(*name));
    found.map_or_else(|| "unknown device".to_owned(), |(_, name)| name)
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
    fn failed_parts_are_an_error_with_their_names() {
        assert!(finish(Vec::new(), 8, true).is_ok());

        let error = finish(vec![Part::Forward, Part::Lora], 8, false).unwrap_err().to_string();

        assert!(error.starts_with("2 of 8 parts failed: forward, lora; "), "{error}");
    }
}
