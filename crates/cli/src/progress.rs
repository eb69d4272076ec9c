//! Progress on stderr: training steps, evaluation, and bytes of weights read or written.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use glm4v_model::{ModelPart, ParamName};
use glm4v_train::{Callback, EvalMetrics, LoraTargets, StepMetrics, TrainSummary};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress of a run: a bar on a terminal, otherwise a line every few seconds.
pub(crate) struct TrainProgress {
    quiet: bool,
    bar: ProgressBar,
    evaluation: ProgressBar,
    /// Whether stderr is no terminal, so that lines replace the bar.
    lines: bool,
    last_line: Instant,
    steps: usize,
    dropped: usize,
}

/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl TrainProgress {
    /// Prints nothing if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            bar: ProgressBar::hidden(),
            evaluation: ProgressBar::hidden(),
            lines: !quiet && !std::io::stderr().is_terminal(),
            last_line: Instant::now(),
            steps: 0,
            dropped: 0,
        }
    }

    fn print(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| print_status!("{line}"));
        }
    }
}

fn bar(length: usize, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is fixed");
    let target = ProgressDrawTarget::stderr_with_hz(8);
    ProgressBar::with_draw_target(Some(length as u64), target).with_style(style)
}

/// Bar of records, on a terminal.
pub(crate) fn record_bar(records: usize, quiet: bool) -> ProgressBar {
    match quiet || !std::io::stderr().is_terminal() {
        true => ProgressBar::hidden(),
        false => bar(records, "checking {bar:24} {pos}/{len} [{eta} left]"),
    }
}

/// Delay before a bar of bytes appears, so that small files show none.
const BAR_DELAY: Duration = Duration::from_millis(500);

/// Bar of the bytes of weights read or written, on a terminal.
pub(crate) struct ByteProgress {
    label: &'static str,
    shown: bool,
    start: Instant,
    bar: ProgressBar,
}

impl ByteProgress {
    /// Prints nothing if `quiet`; `label` is a participle such as "loading".
    pub(crate) fn new(label: &'static str, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        Self { label, shown, start: Instant::now(), bar: ProgressBar::hidden() }
    }

    /// `done` of `total` bytes are read or written.
    pub(crate) fn update(&mut self, done: u64, total: u64) {
        if !self.shown || self.start.elapsed() < BAR_DELAY {
            return;
        }
        if self.bar.is_hidden() {
            let template = "{msg} {bar:24} {bytes}/{total_bytes} [{eta} left]";
            self.bar =
                bar(total as usize, template).with_message(self.label).with_elapsed(self.start.elapsed());
        }
        self.bar.set_position(done);
    }
}

impl Drop for ByteProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Bar over named pieces of work, on a terminal; a line for each without one.
pub(crate) struct WorkProgress {
    bar: ProgressBar,
    lines: bool,
    name: String,
    start: Instant,
}

impl WorkProgress {
    /// Prints nothing if `quiet`.
    pub(crate) fn new(total: usize, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if quiet || !terminal {
            ProgressBar::hidden()
        } else {
            bar(total, "{bar:24} {pos}/{len} {msg} [{elapsed}]")
        };
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, lines: !quiet && !terminal, name: String::new(), start: Instant::now() }
    }

    /// The next piece begins.
    pub(crate) fn begin(&mut self, name: &str) {
        self.bar.set_message(name.to_owned());
        name.clone_into(&mut self.name);
        self.start = Instant::now();
    }

    /// The piece that began last is done.
    pub(crate) fn end(&mut self) {
        self.bar.inc(1);
        if self.lines {
            print_status!("{}: {:.1} s", self.name, self.start.elapsed().as_secs_f64());
        }
    }
}

impl Drop for WorkProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Decimal digits of a number in groups of three: `12,345`.
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Summary of the target modules by part of the network and kind of layer.
fn describe(lora: &LoraTargets) -> String {
    let mut parts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for name in &lora.modules {
        let kind = name.rsplit('.').next().unwrap_or(name);
        *parts.entry(part_label(name)).or_default().entry(kind).or_default() += 1;
    }
    let parts: Vec<String> = parts
        .iter()
        .map(|(part, kinds)| {
            let names: Vec<&str> = kinds.keys().copied().collect();
            let count: usize = kinds.values().sum();
            let layers = if count == 1 { "linear layer" } else { "linear layers" };
            format!("{count} {layers} of the {part}: {}", names.join(", "))
        })
        .collect();
    format!("LoRA r={} on {}", lora.r, parts.join("; "))
}

fn part_label(name: &str) -> &'static str {
    match ParamName(name).part() {
        ModelPart::VisionTower => "vision tower",
        ModelPart::Merger => "merger",
        ModelPart::Head => "head",
        _ => "text decoder",
    }
}

impl Callback for TrainProgress {
    fn on_train_begin(&mut self, plan: &TrainSummary) {
        self.steps = plan.steps;
        let from = if plan.step > 0 { format!(", resuming after step {}", plan.step) } else { String::new() };
        self.print(&format!(
            "trainable parameters: {} of {} ({:.2} %); {} training examples, {} steps{from}",
            grouped(plan.trainable_params),
            grouped(plan.parameters),
            100.0 * plan.trainable_params as f64 / plan.parameters.max(1) as f64,
            grouped(plan.train_records),
            grouped(plan.steps),
        ));
        for change in &plan.changed {
            self.print(&format!("changed since the checkpoint: {change}"));
        }
        if let Some(lora) = &plan.lora {
            self.print(&describe(lora));
        }
        if !self.quiet && !self.lines {
            let template = "{bar:24} {pos}/{len} {msg} [{elapsed}, ETA {eta}]";
            self.bar = bar(plan.steps, template).with_position(plan.step as u64);
            self.bar.reset_eta();
        }
    }

    fn on_step_end(&mut self, report: &StepMetrics) {
        self.bar.set_message(format!(
            "loss {:.4} lr {:.2e} {:.0} tokens/s",
            report.loss, report.lr, report.tokens_per_second
        ));
        self.bar.set_position(report.step as u64);
        if self.lines && (self.last_line.elapsed() > LINE_INTERVAL || report.step == 1) {
            self.last_line = Instant::now();
            self.print(&format!(
                "step {}/{} loss {:.4} lr {:.2e} {:.0} tokens/s",
                report.step, self.steps, report.loss, report.lr, report.tokens_per_second
            ));
        }
    }

    fn on_drop(&mut self, records: usize) {
        self.dropped += records;
        let noun = if records == 1 { "example" } else { "examples" };
        self.print(&format!("{records} {noun} longer than data.max_length dropped, {} so far", self.dropped));
    }

    fn on_eval_progress(&mut self, done: usize, total: usize) {
        if self.quiet || self.lines {
            return;
        }
        if self.evaluation.is_hidden() {
            self.evaluation = bar(total, "evaluating {pos}/{len}");
        }
        self.evaluation.set_position(done as u64);
        if done == total {
            self.evaluation.finish_and_clear();
            self.evaluation = ProgressBar::hidden();
        }
    }

    fn on_evaluate(&mut self, summary: &EvalMetrics) {
        let dropped = match summary.dropped {
            0 => String::new(),
            records => format!(", {records} left out as too long"),
        };
        let result = match (summary.exact_match, summary.eval_loss) {
            (Some(share), Some(loss)) => {
                format!("exact match {:.1} % of {}, loss {loss:.4}", 100.0 * share, summary.samples)
            }
            _ => "no record was evaluated".to_owned(),
        };
        self.print(&format!("step {}: {result}{dropped}", summary.step));
    }

    fn on_save(&mut self, dir: &Path) {
        self.print(&format!("saved {}", dir.display()));
    }
}

impl Drop for TrainProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.evaluation.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_described_by_part_and_kind() {
        let layers = (0..14).flat_map(|layer| ["q_proj", "v_proj"].map(|kind| (layer, kind)));
        let text =
            layers.map(|(layer, kind)| format!("model.language_model.layers.{layer}.self_attn.{kind}"));
        let modules = text.chain(["model.visual.blocks.0.attn.qkv".to_owned()]).collect();

        assert_eq!(
            describe(&LoraTargets { r: 8, modules }),
            "LoRA r=8 on 28 linear layers of the text decoder: q_proj, v_proj; 1 linear layer of the vision tower: qkv"
        );
    }
}
