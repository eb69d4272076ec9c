//! Tokens that a generation config forbids or forces.
//!
//! Source: transformers 5.23, `generation/logits_process.py`; each rule stands beside the class that it follows.

use std::slice;

/// What the next token may be, whatever its score.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// No run of this many tokens comes twice, the prompt's included; 0 for no such rule (`NoRepeatNGramLogitsProcessor`).
    pub no_repeat_ngram_size: usize,
    /// Sequences of which the last token does not follow the others (`NoBadWordsLogitsProcessor`).
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens of prompt and answer before which the answer does not end (`MinLengthLogitsProcessor`).
    pub min_length: usize,
    /// Tokens of the answer before which it does not end (`MinNewTokensLengthLogitsProcessor`).
    pub min_new_tokens: usize,
    /// Tokens of which one comes where the answer must end (`ForcedEOSTokenLogitsProcessor`).
    pub forced_eos_token_id: Vec<u32>,
    /// Tokens that never come (`SuppressTokensLogitsProcessor`).
    pub suppress_tokens: Vec<u32>,
    /// Tokens that do not come first (`SuppressTokensAtBeginLogitsProcessor`).
    pub begin_suppress_tokens: Vec<u32>,
}

/// Where a row stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Prompt and answer so far.
    pub(crate) history: &'a [u32],
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Most tokens of the answer.
    pub(crate) max_new_tokens: usize,
    /// Tokens that end an answer.
    pub(crate) stop_ids: &'a [u32],
}

impl Rules {
    /// Sets the scores of forbidden tokens to -∞, in the order of transformers.
    pub(crate) fn apply(&self, scores: &mut [f32], place: Place<'_>) {
        let Place { history, prompt, max_new_tokens, stop_ids } = place;
        let new = history.len() - prompt;
        forbid(scores, &repeated(history, self.no_repeat_ngram_size));
        // A word that is a single token of the end is not forbidden: the answer could not end.
        let words = self.bad_words_ids.iter().filter(|word| !stop_ids.iter().any(|id| **word == [*id]));
        for (last, before) in words.filter_map(|word| word.split_last()) {
            if history.ends_with(before) {
                forbid(scores, slice::from_ref(last));
            }
        }
        if history.len() < self.min_length || new < self.min_new_tokens {
            forbid(scores, stop_ids);
        }
        if !self.forced_eos_token_id.is_empty() && new + 1 == max_new_tokens {
            scores.fill(f32::NEG_INFINITY);
            for id in &self.forced_eos_token_id {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score = 0.0;
                }
            }
        }
        forbid(scores, &self.suppress_tokens);
        if new == 0 {
            forbid(scores, &self.begin_suppress_tokens);
        }
    }
}

/// Tokens outside the vocabulary cannot come anyway.
fn forbid(scores: &mut [f32], ids: &[u32]) {
    for id in ids {
        if let Some(score) = scores.get_mut(*id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Tokens that would complete a run of `size` tokens that was there before.
fn repeated(history: &[u32], size: usize) -> Vec<u32> {
    if size == 0 || history.len() + 1 < size {
        return Vec::new();
    }
    let end = &history[history.len() + 1 - size..];
    let runs = history.windows(size);
    runs.filter(|run| run.starts_with(end)).filter_map(|run| run.last().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of eight that are left after a prompt `[1, 2]`, with 7 as the end and room for three tokens.
    fn left(rules: &Rules, answer: &[u32]) -> Vec<u32> {
        let history = [&[1, 2], answer].concat();
        let mut scores = [1.0; 8];
        rules.apply(&mut scores, Place { history: &history, prompt: 2, max_new_tokens: 3, stop_ids: &[7] });
        (0..8).filter(|id| scores[*id as usize] > f32::NEG_INFINITY).collect()
    }

    fn all_but(missing: &[u32]) -> Vec<u32> {
        (0..8).filter(|id| !missing.contains(id)).collect()
    }

    #[test]
    fn no_rule_leaves_every_token() {
        assert_eq!(left(&Rules::default(), &[3]), all_but(&[]));
    }

    #[test]
    fn a_run_does_not_come_twice() {
        let rules = |size| Rules { no_repeat_ngram_size: size, ..Rules::default() };
        assert_eq!(left(&rules(2), &[3, 1]), all_but(&[2]));
        assert_eq!(left(&rules(3), &[1, 2]), all_but(&[1]));
        assert_eq!(left(&rules(1), &[3]), all_but(&[1, 2, 3]));
        assert_eq!(left(&rules(9), &[3]), all_but(&[]));
    }

    #[test]
    fn the_last_token_of_a_bad_word_does_not_follow_the_others() {
        let rules =
            Rules { bad_words_ids: vec![vec![4], vec![2, 3, 5], vec![7], vec![]], ..Rules::default() };
        assert_eq!(left(&rules, &[]), all_but(&[4]));
        assert_eq!(left(&rules, &[3]), all_but(&[4, 5]));
    }

    #[test]
    fn an_answer_ends_neither_too_early_nor_unasked() {
        let rules = Rules { min_new_tokens: 2, ..Rules::default() };
        assert_eq!(left(&rules, &[3]), all_but(&[7]));
        assert_eq!(left(&rules, &[3, 4]), all_but(&[]));
        let rules = Rules { min_length: 4, ..Rules::default() };
        assert_eq!([left(&rules, &[3]), left(&rules, &[3, 4])], [all_but(&[7]), all_but(&[])]);
        let rules = Rules { forced_eos_token_id: vec![7], ..Rules::default() };
        assert_eq!([left(&rules, &[3]), left(&rules, &[3, 4])], [all_but(&[]), vec![7]]);
    }

    #[test]
    fn suppressed_tokens_do_not_come_at_all_or_not_first() {
        let rules =
            Rules { suppress_tokens: vec![0, 99], begin_suppress_tokens: vec![6], ..Rules::default() };
        assert_eq!([left(&rules, &[]), left(&rules, &[3])], [all_but(&[0, 6]), all_but(&[0])]);
    }
}
