//! `data check`: every record of a dataset is encoded as training encodes it, and the dataset is looked at as a whole.
//!
//! Records are read and encoded by all threads, some at a time; what stays are counters, and 16 bytes of a hash for each record.

mod facts;
mod histogram;

use std::collections::HashMap;

use glm4v_processor::{Processor, TemplateError};
use rayon::prelude::*;

pub use histogram::{Bucket, Histogram};

use crate::check::BadRecordError;
use crate::location::RecordLocation;
use crate::options::DatasetOptions;
use crate::records::Records;
use crate::sample::SampleError;
use facts::{Facts, Hash, Unusable, examine};

/// Two records that hold the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SameRecords {
    /// Location of the later record.
    pub record: RecordLocation,
    /// Location of the first one, in the same dataset or in the one that it is compared with.
    pub first: RecordLocation,
}

/// An answer of several records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonAnswer {
    /// Its beginning.
    pub text: String,
    /// Number of records whose last answer it is.
    pub count: usize,
}

/// What a policy for long records would keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LongRecords {
    /// Records longer than `max_length`.
    pub count: usize,
    /// Those that fit with smaller images.
    pub fit_shrunk: usize,
    /// Those of which whole turns fit.
    pub fit_truncated: usize,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct AuditReport {
    /// Name of the dataset.
    pub name: String,
    /// Number of records read.
    pub records: usize,
    /// Each record that cannot be used, in order.
    pub failures: Vec<BadRecordError>,
    /// Records that are too long, which are failures too.
    pub long: LongRecords,
    /// Records with the images and texts of an earlier one, at most [`Audit::NAMED`] of them.
    pub duplicates: Vec<SameRecords>,
    /// Number of all of these.
    pub duplicate_count: usize,
    /// Records with the images and questions of a record of another dataset, at most [`Audit::NAMED`] of them.
    pub overlaps: Vec<SameRecords>,
    /// Number of all of these.
    pub overlap_count: usize,
    /// Records whose last answer has neither a letter nor a digit, at most [`Audit::NAMED`] of them.
    pub empty_answers: Vec<RecordLocation>,
    /// Number of all of these.
    pub empty_answer_count: usize,
    /// The most common last answers of more than one record, the most common first.
    pub common_answers: Vec<CommonAnswer>,
    /// Number of different last answers.
    pub distinct_answers: usize,
    /// Tokens of a record.
    pub tokens: Histogram,
    /// Tokens of an image or video.
    pub media_tokens: Histogram,
    /// Images and videos of a record.
    pub media: Histogram,
    /// Turns of the assistant in a record.
    pub turns: Histogram,
    /// Label tokens of a record in percent of all.
    pub label_percent: Histogram,
    /// Sum of all label tokens.
    pub labels: usize,
}

impl AuditReport {
    /// Number of records that can be used.
    pub fn usable(&self) -> usize {
        self.records - self.failures.len()
    }

    /// Whether more than half of at least [`Self::MANY`] records have one answer.
    pub fn has_one_answer(&self) -> bool {
        let most = self.common_answers.first().map_or(0, |answer| answer.count);
        self.usable() >= Self::MANY && 2 * most > self.usable()
    }

    /// Number of records from which on an answer to most of them is suspicious.
    pub const MANY: usize = 10;

    /// Whether there is anything to warn of: duplicates, overlaps, answers without text, or one answer to most records.
    pub fn has_warnings(&self) -> bool {
        let count = self.duplicate_count + self.overlap_count + self.empty_answer_count;
        count > 0 || self.has_one_answer()
    }
}

/// A check of one dataset or several that must not overlap.
#[derive(Debug)]
pub struct Audit<'a> {
    processor: &'a Processor,
    options: DatasetOptions,
    /// Question of each record of the datasets before, with its dataset and index.
    questions: HashMap<Hash, (u32, u32)>,
    earlier: Vec<&'a Records>,
}

/// Records that are encoded before their results are counted: enough for all threads, few enough for memory.
const CHUNK: usize = 256;

impl<'a> Audit<'a> {
    /// Maximum number of records that a report names of each kind of warning.
    pub const NAMED: usize = 20;

    /// Number of common answers in a report.
    const COMMON: usize = 5;

    /// A check with these options; [`DatasetOptions::on_long`] and [`DatasetOptions::on_bad`] have no effect.
    pub fn new(processor: &'a Processor, options: DatasetOptions) -> Self {
        Self { processor, options, questions: HashMap::new(), earlier: Vec::new() }
    }

    /// Checks a dataset, and looks for records of the datasets checked before. Calls `progress` with the number of records done.
    ///
    /// # Errors
    ///
    /// When the chat template exceeds its limits: its memory is only freed when the program ends, so no other record may be rendered.
    pub fn check(
        &mut self,
        records: &'a Records,
        mut progress: impl FnMut(usize),
    ) -> Result<AuditReport, SampleError> {
        let name = records.name().to_owned();
        let mut counting = Counting {
            records,
            report: AuditReport { name, ..Default::default() },
            whole: HashMap::new(),
            answers: HashMap::new(),
            questions: Vec::new(),
        };
        for start in (0..records.len()).step_by(CHUNK) {
            let chunk = start..(start + CHUNK).min(records.len());
            let end = chunk.end;
            let examined: Vec<_> = chunk
                .into_par_iter()
                .map(|index| examine_at(records, index, self.processor, &self.options))
                .collect();
            for (index, examined) in (start..end).zip(examined) {
                if let Ok(facts) = &examined {
                    self.compare(records, index, facts, &mut counting.report);
                }
                counting.add(index, examined)?;
            }
            progress(end);
        }
        let dataset = self.earlier.len() as u32;
        self.earlier.push(records);
        for (index, question) in counting.questions.drain(..) {
            self.questions.entry(question).or_insert((dataset, index));
        }
        Ok(counting.finish(Self::COMMON))
    }

    fn compare(&self, records: &Records, index: usize, facts: &Facts, report: &mut AuditReport) {
        let Some((dataset, first)) = self.questions.get(&facts.question) else { return };
        report.overlap_count += 1;
        if report.overlaps.len() < Self::NAMED {
            let first = self.earlier[*dataset as usize].location(*first as usize);
            report.overlaps.push(SameRecords { record: records.location(index), first });
        }
    }
}

fn examine_at(
    records: &Records,
    index: usize,
    processor: &Processor,
    options: &DatasetOptions,
) -> Result<Facts, Unusable> {
    let record =
        records.read(index).map_err(|error| Unusable { error: Box::new(error.into()), fits: None })?;
    examine(&record, processor, options)
}

/// A report under construction.
struct Counting<'a> {
    records: &'a Records,
    report: AuditReport,
    /// First record of each content.
    whole: HashMap<Hash, u32>,
    /// Number of records of each answer, and the first of them.
    answers: HashMap<Hash, AnswerCount>,
    questions: Vec<(u32, Hash)>,
}

/// Records with an answer.
struct AnswerCount {
    count: u32,
    /// Beginning of the answer, kept once it comes again.
    text: Option<Box<str>>,
}

impl Counting<'_> {
    fn add(&mut self, index: usize, examined: Result<Facts, Unusable>) -> Result<(), SampleError> {
        self.report.records += 1;
        match examined {
            Ok(facts) => self.add_facts(index, &facts),
            Err(Unusable { error, fits }) => {
                let error = match *error {
                    BadRecordError::Sample(error) if is_fatal(&error) => return Err(error),
                    error => error,
                };
                if let Some([shrunk, truncated]) = fits {
                    let long = &mut self.report.long;
                    long.count += 1;
                    long.fit_shrunk += usize::from(shrunk);
                    long.fit_truncated += usize::from(truncated);
                }
                self.report.failures.push(error);
            }
        }
        Ok(())
    }

    fn add_facts(&mut self, index: usize, facts: &Facts) {
        let report = &mut self.report;
        report.tokens.add(facts.tokens);
        report.labels += facts.labels;
        report.label_percent.add(100 * facts.labels / facts.tokens.max(1));
        report.turns.add(facts.turns);
        report.media.add(facts.media_tokens.len());
        facts.media_tokens.iter().for_each(|tokens| report.media_tokens.add(*tokens));
        if facts.is_answer_empty {
            report.empty_answer_count += 1;
            if report.empty_answers.len() < Audit::NAMED {
                report.empty_answers.push(self.records.location(index));
            }
        }
        match self.whole.get(&facts.whole) {
            None => {
                self.whole.insert(facts.whole, index as u32);
            }
            Some(first) => {
                report.duplicate_count += 1;
                if report.duplicates.len() < Audit::NAMED {
                    let [record, first] = [index, *first as usize].map(|at| self.records.location(at));
                    report.duplicates.push(SameRecords { record, first });
                }
            }
        }
        self.questions.push((index as u32, facts.question));
        let answer = self.answers.entry(facts.answer).or_insert(AnswerCount { count: 0, text: None });
        answer.count += 1;
        if answer.count == 2 {
            answer.text = Some(facts.answer_text.as_str().into());
        }
    }

    fn finish(mut self, common: usize) -> AuditReport {
        self.report.distinct_answers = self.answers.len();
        let repeated = self.answers.into_values().filter_map(|answer| {
            Some(CommonAnswer { text: answer.text?.into(), count: answer.count as usize })
        });
        let mut repeated: Vec<CommonAnswer> = repeated.collect();
        repeated.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.text.cmp(&other.text)));
        repeated.truncate(common);
        self.report.common_answers = repeated;
        self.report
    }
}

fn is_fatal(error: &SampleError) -> bool {
    matches!(error, SampleError::Render { source: TemplateError::Aborted { .. }, .. })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{processor, root};
    use crate::registry::DatasetRegistry;

    fn asked(image: &str, answer: &str) -> Value {
        json!({"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": answer}],
            "images": [image]})
    }

    /// A dataset of these lines beside the digits 0004 to 0007, as `4.png` to `7.png`.
    fn dataset(dir: &std::path::Path, name: &str, lines: &[String]) -> Records {
        for digit in 4..8 {
            let image = root().join(format!("datasets/digits/images/000{digit}.png"));
            std::fs::copy(image, dir.join(format!("{digit}.png"))).unwrap();
        }
        let file = dir.join(name);
        std::fs::write(&file, lines.join("\n")).unwrap();
        let source = DatasetRegistry::load(dir).unwrap().find(file.to_str().unwrap()).unwrap();
        Records::open(&source, None).unwrap()
    }

    fn checked(records: &Records, options: DatasetOptions) -> AuditReport {
        Audit::new(&processor(), options).check(records, |_| {}).unwrap()
    }

    #[test]
    fn every_kind_of_broken_record_is_found_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let whole = std::fs::read(root().join("datasets/digits/images/0004.png")).unwrap();
        std::fs::write(dir.path().join("cut.png"), &whole[..whole.len() / 2]).unwrap();
        let mut spelled = asked("5.png", "x");
        spelled["messages"][0]["content"] = json!("<image>What<|image|>?");
        let lines = [
            asked("4.png", "four").to_string(),
            asked("none.png", "a").to_string(),
            asked("cut.png", "a").to_string(),
            "{\"messages\": [".to_owned(),
            asked("5.png", "").to_string(),
            json!({"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a"}]}).to_string(),
            spelled.to_string(),
            asked("6.png", &"long ".repeat(60)).to_string(),
            asked("7.png", "seven").to_string(),
        ];
        let records = dataset(dir.path(), "bad.jsonl", &lines);

        let report = checked(&records, DatasetOptions { max_length: Some(60), ..Default::default() });

        assert_eq!((report.records, report.usable(), report.long.count), (9, 2, 1));
        let expected = [
            (2, "none.png"),
            (3, "cut.png"),
            (4, "JSON"),
            (5, "the answer is empty"),
            (6, "<image>"),
            (7, "<|image|>"),
            (8, "max_length is 60"),
        ];
        for ((line, reason), error) in expected.into_iter().zip(&report.failures) {
            let text = error.chain();
            assert!(text.contains(&format!("bad.jsonl: line {line}: ")), "{text}");
            assert!(text.to_lowercase().contains(&reason.to_lowercase()), "{reason}: {text}");
        }
        assert_eq!(report.failures.len(), expected.len());
    }

    #[test]
    fn duplicates_empty_and_common_answers_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(root().join("datasets/digits/images/0004.png"), dir.path().join("other-name.png"))
            .unwrap();
        let lines = [
            asked("4.png", "four"),
            asked("other-name.png", "four"),
            asked("4.png", "five"),
            asked("5.png", "…"),
            asked("6.png", "four"),
        ];
        let records = dataset(dir.path(), "same.jsonl", &lines.map(|line| line.to_string()));

        let report = checked(&records, DatasetOptions::default());

        assert_eq!((report.duplicate_count, report.duplicates.len()), (1, 1));
        let same = &report.duplicates[0];
        assert!(same.record.to_string().ends_with("line 2") && same.first.to_string().ends_with("line 1"));
        assert!(report.empty_answers[0].to_string().ends_with("line 4"));
        assert_eq!(report.common_answers, [CommonAnswer { text: "four".to_owned(), count: 3 }]);
        assert_eq!(report.distinct_answers, 3);
        assert!(report.has_warnings() && report.failures.is_empty());
        assert_eq!((report.tokens.count(), report.media_tokens.max(), report.turns.mean()), (5, 4, 1.0));
    }

    #[test]
    fn a_question_of_another_dataset_is_an_overlap_whatever_its_answer() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let train = [asked("4.png", "four"), asked("5.png", "five")].map(|line| line.to_string());
        let test = [asked("6.png", "six"), asked("5.png", "fünf")].map(|line| line.to_string());
        let train = dataset(dir.path(), "train.jsonl", &train);
        let test = dataset(other.path(), "test.jsonl", &test);
        let processor = processor();

        let mut audit = Audit::new(&processor, DatasetOptions::default());
        let first = audit.check(&train, |_| {}).unwrap();
        let second = audit.check(&test, |_| {}).unwrap();

        assert_eq!((first.overlap_count, second.overlap_count), (0, 1));
        let same = &second.overlaps[0];
        assert!(same.record.to_string().ends_with("test.jsonl: line 2"), "{same:?}");
        assert!(same.first.to_string().ends_with("train.jsonl: line 2"), "{same:?}");
    }

    #[test]
    fn long_records_are_tried_with_each_policy() {
        let dir = tempfile::tempdir().unwrap();
        let long = json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "a long question ".repeat(20)}, {"role": "assistant", "content": "c"}]});
        let records = dataset(dir.path(), "long.jsonl", &[long.to_string(), asked("4.png", "x").to_string()]);

        let report = checked(&records, DatasetOptions { max_length: Some(30), ..Default::default() });

        assert_eq!(report.long, LongRecords { count: 1, fit_shrunk: 0, fit_truncated: 1 });
    }
}
