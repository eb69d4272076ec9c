//! The tables on stdout.

use glm4v_measure::{Machine, Samples};

use super::report::{Entry, Report};
use crate::commands::print_line;
use crate::features;
use crate::progress::grouped;

/// Prints the machine, its ceilings, a row for each workload, and how they were measured.
pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    machine(report)?;
    workloads(report)?;
    kernels(report)?;
    for skipped in &report.skipped {
        print_line(&format!("{}: not measured; {}", skipped.workload, skipped.reason))?;
    }
    Ok(())
}

fn machine(report: &Report) -> anyhow::Result<()> {
    let Machine { cpu, cores, threads, memory_bytes, os, device } = &report.machine;
    let setting = &report.setting;
    let mut rows = vec![
        ("program", format!("glm4v {} ({})", env!("CARGO_PKG_VERSION"), features::enabled().join(", "))),
        (
            "processor",
            format!("{cpu}, {cores} cores, {threads} threads used, {}, {os}", bytes(*memory_bytes)),
        ),
    ];
    if let Some(device) = device {
        let driver = device.driver.as_ref().map_or(String::new(), |driver| format!(", driver {driver}"));
        let memory = device.memory_bytes.map_or(String::new(), |memory| format!(", {}", bytes(memory)));
        rows.push(("device", format!("{}{driver}{memory}", device.name)));
    }
    rows.push(("backend", format!("{}, {}", setting.backend, setting.precision)));
    if let Some(network) = &report.network {
        let parameters = grouped(network.params().total() as usize);
        rows.push((
            "model",
            format!("{}, {parameters} parameters, {}", network.path().display(), network.weights()),
        ));
    }
    if let Some(ceilings) = &report.ceilings {
        let copied = bytes(ceilings.copy_bytes);
        rows.push((
            "copy",
            format!("{}, {copied} read and written", spread(&ceilings.copy_bytes_per_s, 1e9, "GB/s")),
        ));
        let size = ceilings.matmul_size;
        let rate = spread(&ceilings.matmul_flops_per_s, 1e9, "GFLOP/s");
        rows.push(("matmul", format!("{rate}, {size} x {size} x {size}")));
    }
    for (name, value) in rows {
        print_line(&format!("{name:10} {value}"))?;
    }
    Ok(())
}

/// `12.3 GB/s (11.9 to 12.5)`
fn spread(samples: &Samples, unit: f64, name: &str) -> String {
    let [median, min, max] =
        [samples.median(), samples.min(), samples.max()].map(|value| significant(value / unit));
    format!("{median} {name} ({min} to {max})")
}

const HEADER: [&str; 11] = [
    "workload",
    "median",
    "min",
    "max",
    "CPU",
    "rate",
    "GFLOP/s",
    "GB/s",
    "of ceiling",
    "launches",
    "peak memory",
];

fn workloads(report: &Report) -> anyhow::Result<()> {
    let Some(network) = &report.network else { return Ok(()) };
    let mut rows = vec![HEADER.map(str::to_owned)];
    for entry in &report.entries {
        let (items, unit) = entry.items(network);
        rows.push(row(
            entry,
            report,
            &format!("{} {unit}/s", significant(items / entry.measured.seconds.median())),
        ));
    }
    print_line("")?;
    for line in aligned(&rows) {
        print_line(&line)?;
    }
    print_line("")?;
    let launches = match report.machine.device {
        Some(_) => "launches of one round",
        None => "the CPU launches no kernels",
    };
    print_line(&format!(
        "{} rounds after {} to warm up (decode: a token a round); CPU: seconds of all threads; of ceiling: time of the least \
         work (matrix products, or each weight read once) at the rates above, over the median, and more than 100 % where weights stay in caches; {launches}; peak memory of the \
         process{}{}",
        report.entries.iter().map(|entry| entry.measured.seconds.all().len()).min().unwrap_or(0),
        report.entries.first().map_or(0, |entry| entry.measured.warmup),
        if since_start(report) { " since its start" } else { " during the workload" },
        if report.machine.device.is_some() { " + held of the device" } else { "" },
    ))
}

fn since_start(report: &Report) -> bool {
    report.entries.iter().any(|entry| entry.measured.peak_memory.process_since_start)
}

fn row(entry: &Entry, report: &Report, rate: &str) -> [String; 11] {
    let measured = &entry.measured;
    let median = measured.seconds.median();
    let none = || "-".to_owned();
    let per_second = |amount: fn(&glm4v_plan::Work) -> u64| {
        let rate = entry.work.as_ref().map(|work| amount(work) as f64 / median / 1e9);
        rate.filter(|rate| *rate > 0.0).map_or_else(none, significant)
    };
    let share = entry.share(report.ceilings.as_ref());
    let memory = measured.peak_memory;
    let parts = [memory.process_bytes, memory.device_bytes].into_iter().flatten().map(bytes);
    [
        entry.case.to_string(),
        seconds(median),
        seconds(measured.seconds.min()),
        seconds(measured.seconds.max()),
        measured.cpu_seconds.as_ref().map_or_else(none, |samples| seconds(samples.median())),
        rate.to_owned(),
        per_second(|work| work.flops),
        per_second(|work| work.bytes),
        share.map_or_else(none, |share| format!("{:.0} % {}", 100.0 * share.value, share.bound)),
        measured.kernel_launches.map_or_else(none, |launches| launches.to_string()),
        parts.collect::<Vec<_>>().join(" + "),
    ]
}

fn kernels(report: &Report) -> anyhow::Result<()> {
    for entry in report.entries.iter().filter(|entry| !entry.measured.kernel_times.is_empty()) {
        let times = &entry.measured.kernel_times;
        let total: f64 = times.iter().map(|kernel| kernel.seconds).sum();
        print_line(&format!("\n{}: {} in kernels", entry.case, seconds(total)))?;
        let mut rows = vec![["kernel", "time", "share", "launches"].map(str::to_owned)];
        for kernel in times.iter().take(report.kernels) {
            rows.push([
                kernel.name.clone(),
                seconds(kernel.seconds),
                format!("{:.1} %", 100.0 * kernel.seconds / total),
                kernel.launches.to_string(),
            ]);
        }
        for line in aligned(&rows) {
            print_line(&line)?;
        }
    }
    Ok(())
}

/// The first column to the left, the others to the right.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (text, width))| match column {
            0 => format!("{text:width$}"),
            _ => format!("{text:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Three significant digits.
fn significant(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 1.0 => format!("{} s", significant(seconds)),
        seconds if seconds >= 1e-3 => format!("{} ms", significant(seconds * 1e3)),
        seconds => format!("{} µs", significant(seconds * 1e6)),
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{} GB", significant(bytes as f64 / 1e9)),
        _ => format!("{} MB", significant(bytes as f64 / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(
            [0.00012345, 0.0421, 1.234, 63.21].map(seconds),
            ["123 µs", "42.1 ms", "1.23 s", "63.2 s"]
        );
        assert_eq!([2_500_000, 18_000_000_000].map(bytes), ["2.50 MB", "18.0 GB"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [["a", "time"], ["longer", "1 s"]].map(|row| row.map(str::to_owned));

        assert_eq!(aligned(&rows), ["a       time", "longer   1 s"]);
    }
}
