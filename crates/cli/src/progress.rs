//! Progress on the terminal: of a run, a bar with loss, rate and time left, and a line for whatever lasts; of weights
//! that are read or written, a bar.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use glm4v_train::{EvalSummary, LoraPlan, Observer, Plan, StepReport};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows a run on stderr.
pub(crate) struct Progress {
    quiet: bool,
    bar: ProgressBar,
    evaluation: ProgressBar,
    /// Without a terminal there is no bar: a line now and then instead.
    lines: bool,
    last_line: Instant,
    steps: usize,
    dropped: usize,
}

/// Time between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

impl Progress {
    /// Shows nothing if `quiet`.
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

    fn say(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| say!("{line}"));
        }
    }
}

fn bar(length: usize, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is fixed");
    let target = ProgressDrawTarget::stderr_with_hz(8);
    ProgressBar::with_draw_target(Some(length as u64), target).with_style(style)
}

/// Time after which reading or writing weights is worth a bar.
const SOON: Duration = Duration::from_millis(500);

/// Weights on their way, on a terminal; nothing if they are there in a moment.
pub(crate) struct Transfer {
    what: &'static str,
    shown: bool,
    start: Instant,
    bar: ProgressBar,
}

impl Transfer {
    /// Shows nothing if `quiet`; `what` is a word such as "loading".
    pub(crate) fn new(what: &'static str, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        Self { what, shown, start: Instant::now(), bar: ProgressBar::hidden() }
    }

    /// So many bytes of so many are done.
    pub(crate) fn at(&mut self, done: u64, of: u64) {
        if !self.shown || self.start.elapsed() < SOON {
            return;
        }
        if self.bar.is_hidden() {
            let template = "{msg} {bar:24} {bytes}/{total_bytes} [{eta} left]";
            self.bar = bar(of as usize, template).with_message(self.what).with_elapsed(self.start.elapsed());
        }
        self.bar.set_position(done);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A count with its thousands apart.
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

/// What adapters are on, by part of the network: a name stands for as many layers as have it.
fn describe(lora: &LoraPlan) -> String {
    let part = |name: &str| match name.strip_prefix("model.visual.") {
        Some(rest) if rest.starts_with("merger.") || rest.starts_with("downsample.") => "merger",
        Some(_) => "vision tower",
        None if name.starts_with("model.language_model.") => "text decoder",
        None => "head",
    };
    let mut parts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for name in &lora.modules {
        let kind = name.rsplit('.').next().unwrap_or(name);
        *parts.entry(part(name)).or_default().entry(kind).or_default() += 1;
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

impl Observer for Progress {
    fn started(&mut self, plan: &Plan) {
        self.steps = plan.steps;
        let from = if plan.step > 0 { format!(", resuming after step {}", plan.step) } else { String::new() };
        self.say(&format!(
            "trainable parameters: {} of {} ({:.2} %); {} training examples, {} steps{from}",
            grouped(plan.learning),
            grouped(plan.parameters),
            100.0 * plan.learning as f64 / plan.parameters.max(1) as f64,
            grouped(plan.train_records),
            grouped(plan.steps),
        ));
        for change in &plan.changed {
            self.say(&format!("changed since the checkpoint: {change}"));
        }
        if let Some(lora) = &plan.lora {
            self.say(&describe(lora));
        }
        if !self.quiet && !self.lines {
            let template = "{bar:24} {pos}/{len} {msg} [{elapsed}, ETA {eta}]";
            self.bar = bar(plan.steps, template).with_position(plan.step as u64);
            self.bar.reset_eta();
        }
    }

    fn stepped(&mut self, report: &StepReport) {
        self.bar.set_message(format!(
            "loss {:.4} lr {:.2e} {:.0} tokens/s",
            report.loss, report.lr, report.tokens_per_second
        ));
        self.bar.set_position(report.step as u64);
        if self.lines && (self.last_line.elapsed() > PAUSE || report.step == 1) {
            self.last_line = Instant::now();
            self.say(&format!(
                "step {}/{} loss {:.4} lr {:.2e} {:.0} tokens/s",
                report.step, self.steps, report.loss, report.lr, report.tokens_per_second
            ));
        }
    }

    fn dropped(&mut self, records: usize) {
        self.dropped += records;
        self.say(&format!("{records} examples longer than data.max_length dropped, {} so far", self.dropped));
    }

    fn evaluating(&mut self, done: usize, of: usize) {
        if self.quiet || self.lines {
            return;
        }
        if self.evaluation.is_hidden() {
            self.evaluation = bar(of, "evaluating {pos}/{len}");
        }
        self.evaluation.set_position(done as u64);
        if done == of {
            self.evaluation.finish_and_clear();
            self.evaluation = ProgressBar::hidden();
        }
    }

    fn evaluated(&mut self, summary: &EvalSummary) {
        let left_out = match summary.dropped {
            0 => String::new(),
            records => format!(", {records} left out as too long"),
        };
        let result = match (summary.exact_match, summary.eval_loss) {
            (Some(share), Some(loss)) => {
                format!("exact match {:.1} % of {}, loss {loss:.4}", 100.0 * share, summary.samples)
            }
            _ => "no record was evaluated".to_owned(),
        };
        self.say(&format!("step {}: {result}{left_out}", summary.step));
    }

    fn saved(&mut self, folder: &Path) {
        self.say(&format!("saved {}", folder.display()));
    }
}

impl Drop for Progress {
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
            describe(&LoraPlan { r: 8, modules }),
            "LoRA r=8 on 28 linear layers of the text decoder: q_proj, v_proj; 1 linear layer of the vision tower: qkv"
        );
    }
}
