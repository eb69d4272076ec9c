//! The report of a check, as text and as JSON.

use std::fmt::Write as _;

use glm4v_data::{AuditReport, Histogram, SameRecords};
use serde_json::{Value, json};

use super::text::printable;

/// Failures that the text names; JSON has all.
const NAMED: usize = 20;

/// Width of the longest bar.
const BAR: usize = 40;

pub(super) fn text(report: &AuditReport) -> String {
    let mut text = format!(
        "{}: {} records, {} can be used, {} cannot\n",
        printable(&report.name),
        report.records,
        report.usable(),
        report.failures.len()
    );
    let share = 100.0 * report.labels as f64 / (report.tokens.mean() * report.tokens.count() as f64).max(1.0);
    let _ = writeln!(text, "{} label tokens, {share:.1} % of all", report.labels);
    for (name, histogram) in histograms(report) {
        text += &drawn(name, histogram);
    }
    for answer in &report.common_answers {
        let share = 100.0 * answer.count as f64 / report.usable().max(1) as f64;
        let shown = printable(&answer.text).replace('\n', "⏎");
        let _ = writeln!(text, "answer of {} records ({share:.1} %): {shown}", answer.count);
    }
    text + &long(report) + &warnings(report) + &failures(report)
}

fn histograms(report: &AuditReport) -> [(&'static str, &Histogram); 5] {
    [
        ("tokens of a record", &report.tokens),
        ("tokens of an image or video", &report.media_tokens),
        ("images and videos of a record", &report.media),
        ("turns of the assistant in a record", &report.turns),
        ("label tokens of a record in percent", &report.label_percent),
    ]
}

/// A line for each bucket, with a bar.
fn drawn(name: &str, histogram: &Histogram) -> String {
    if histogram.count() == 0 {
        return String::new();
    }
    let (min, mean, max) = (histogram.min(), histogram.mean(), histogram.max());
    let mut text = format!("\n{name}: {min} to {max}, mean {mean:.1}\n");
    let buckets = histogram.buckets();
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1);
    for bucket in buckets {
        let (first, last) = (bucket.first.max(min), bucket.last.min(max));
        let range = if first >= last { first.to_string() } else { format!("{first}-{last}") };
        // A value that is there has a bar.
        let bar = "█".repeat((bucket.count * BAR).div_ceil(most));
        let _ = writeln!(text, "  {range:>15} {:>9} {bar}", bucket.count);
    }
    text
}

fn long(report: &AuditReport) -> String {
    let long = report.long;
    if long.count == 0 {
        return String::new();
    }
    let kept = |fitting: usize| report.usable() + fitting;
    format!(
        "\ntoo long: {} of the records; data.on_long = \"drop\" keeps {}, \"shrink_images\" {}, \"truncate\" {}\n",
        long.count,
        kept(0),
        kept(long.fit_shrunk),
        kept(long.fit_truncated)
    )
}

fn warnings(report: &AuditReport) -> String {
    let mut text = String::new();
    let pairs = |same: &[SameRecords]| -> Vec<String> {
        same.iter().map(|same| format!("{} as {}", same.record, same.first)).collect()
    };
    let places: Vec<String> = report.empty_answers.iter().map(ToString::to_string).collect();
    for (count, what, places) in [
        (report.duplicate_count, "with the images and texts of an earlier record", pairs(&report.duplicates)),
        (report.overlap_count, "with the question of a record of another dataset", pairs(&report.overlaps)),
        (report.empty_answer_count, "answers without a letter or digit", places),
    ] {
        text += &listed("warning: ", (count, what), &places);
    }
    if report.has_one_answer() {
        text += "\nwarning: more than half of the records have one answer\n";
    }
    text
}

fn failures(report: &AuditReport) -> String {
    let named: Vec<String> = report.failures.iter().take(NAMED).map(|failure| failure.chain()).collect();
    listed("", (report.failures.len(), "records that cannot be used"), &named)
}

fn listed(kind: &str, (count, what): (usize, &str), places: &[String]) -> String {
    if count == 0 {
        return String::new();
    }
    let mut text = format!("\n{kind}{count} {what}\n");
    places.iter().for_each(|place| text += &format!("  {}\n", printable(place)));
    match count - places.len() {
        0 => text,
        more => text + &format!("  and {more} more\n"),
    }
}

pub(super) fn object(report: &AuditReport) -> Value {
    let same = |same: &[SameRecords]| -> Vec<Value> {
        let pair =
            |same: &SameRecords| json!({"record": same.record.to_string(), "first": same.first.to_string()});
        same.iter().map(pair).collect()
    };
    let histograms = histograms(report).map(|(name, histogram)| {
        let buckets = histogram.buckets();
        let buckets: Vec<_> = buckets.iter().map(|b| json!({"first": b.first, "last": b.last, "count": b.count})).collect();
        json!({"name": name, "min": histogram.min(), "mean": histogram.mean(), "max": histogram.max(), "buckets": buckets})
    });
    let places: Vec<String> = report.empty_answers.iter().map(ToString::to_string).collect();
    let answers: Vec<Value> =
        report.common_answers.iter().map(|a| json!({"text": a.text, "count": a.count})).collect();
    json!({
        "dataset": report.name,
        "records": report.records,
        "usable": report.usable(),
        "failures": report.failures.iter().map(|failure| failure.chain()).collect::<Vec<_>>(),
        "long": {"count": report.long.count, "fit_shrunk": report.long.fit_shrunk, "fit_truncated": report.long.fit_truncated},
        "duplicates": {"count": report.duplicate_count, "first": same(&report.duplicates)},
        "overlaps": {"count": report.overlap_count, "first": same(&report.overlaps)},
        "empty_answers": {"count": report.empty_answer_count, "first": places},
        "answers": {"distinct": report.distinct_answers, "common": answers},
        "labels": report.labels,
        "histograms": histograms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_a_bar_for_every_bucket_with_values_and_none_without() {
        let mut histogram = Histogram::default();
        [3, 3, 3, 3, 20].into_iter().for_each(|value| histogram.add(value));

        let text = drawn("tokens", &histogram);

        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "tokens: 3 to 20, mean 6.4");
        let bars: Vec<usize> = lines[2..].iter().map(|line| line.matches('█').count()).collect();
        assert_eq!(bars, [BAR, 0, 0, BAR / 4]);
        assert!(lines[5].trim_start().starts_with("16-20 "), "{text}");
    }
}
