//! Logits processors that forbid or force tokens.
//!
//! Source: transformers 5.23, `generation/logits_process.py`; each field names its class there.

use std::slice;

/// Settings of the logits processors, under the names of `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogitsProcessors {
    /// Size of n-grams that do not occur twice, those of the prompt included; 0 for none (`NoRepeatNGramLogitsProcessor`).
    pub no_repeat_ngram_size: usize,
    /// Token sequences that are not generated (`NoBadWordsLogitsProcessor`).
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Minimum number of tokens, those of the prompt included (`MinLengthLogitsProcessor`).
    pub min_length: usize,
    /// Minimum number of generated tokens (`MinNewTokensLengthLogitsProcessor`).
    pub min_new_tokens: usize,
    /// Tokens of which one is generated at `max_new_tokens` (`ForcedEOSTokenLogitsProcessor`).
    pub forced_eos_token_id: Vec<u32>,
    /// Tokens that are not generated (`SuppressTokensLogitsProcessor`).
    pub suppress_tokens: Vec<u32>,
    /// Tokens that are not generated first (`SuppressTokensAtBeginLogitsProcessor`).
    pub begin_suppress_tokens: Vec<u32>,
}

/// Tokens of a row, and when it ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowState<'a> {
    /// Prompt and generated tokens.
    pub(crate) history: &'a [u32],
    /// Number of tokens in the prompt.
    pub(crate) prompt_tokens: usize,
    /// Maximum number of generated tokens.
    pub(crate) max_new_tokens: usize,
    /// Tokens that end generation.
    pub(crate) eos_token_ids: &'a [u32],
}

impl LogitsProcessors {
    /// Sets the scores of excluded tokens to -∞, in the order of transformers.
    pub(crate) fn apply(&self, scores: &mut [f32], state: RowState<'_>) {
        let RowState { history, prompt_tokens, max_new_tokens, eos_token_ids } = state;
        let new = history.len() - prompt_tokens;
        suppress(scores, &completing_ngrams(history, self.no_repeat_ngram_size));
        // A word that is a single EOS token stays allowed: otherwise the row could not end.
        let words = self.bad_words_ids.iter().filter(|word| !eos_token_ids.iter().any(|id| **word == [*id]));
        for (last, before) in words.filter_map(|word| word.split_last()) {
            if history.ends_with(before) {
                suppress(scores, slice::from_ref(last));
            }
        }
        if history.len() < self.min_length || new < self.min_new_tokens {
            suppress(scores, eos_token_ids);
        }
        if !self.forced_eos_token_id.is_empty() && new + 1 == max_new_tokens {
            scores.fill(f32::NEG_INFINITY);
            for id in &self.forced_eos_token_id {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score = 0.0;
                }
            }
        }
        suppress(scores, &self.suppress_tokens);
        if new == 0 {
            suppress(scores, &self.begin_suppress_tokens);
        }
    }
}

/// Sets the scores to -∞; ids outside the vocabulary are ignored.
fn suppress(scores: &mut [f32], ids: &[u32]) {
    for id in ids {
        if let Some(score) = scores.get_mut(*id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Tokens that would complete an n-gram of `size` tokens that occurs in `history`.
fn completing_ngrams(history: &[u32], size: usize) -> Vec<u32> {
    if size == 0 || history.len() + 1 < size {
        return Vec::new();
    }
    let end = &history[history.len() + 1 - size..];
    let ngrams = history.windows(size);
    ngrams.filter(|ngram| ngram.starts_with(end)).filter_map(|ngram| ngram.last().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of eight that are left after a prompt `[1, 2]`, with 7 as the end and room for three tokens.
    fn left(processors: &LogitsProcessors, answer: &[u32]) -> Vec<u32> {
        let history = [&[1, 2], answer].concat();
        let mut scores = [1.0; 8];
        processors.apply(
            &mut scores,
            RowState { history: &history, prompt_tokens: 2, max_new_tokens: 3, eos_token_ids: &[7] },
        );
        (0..8).filter(|id| scores[*id as usize] > f32::NEG_INFINITY).collect()
    }

    fn all_but(missing: &[u32]) -> Vec<u32> {
        (0..8).filter(|id| !missing.contains(id)).collect()
    }

    #[test]
    fn the_default_allows_every_token() {
        assert_eq!(left(&LogitsProcessors::default(), &[3]), all_but(&[]));
    }

    #[test]
    fn an_ngram_does_not_occur_twice() {
        let processors =
            |size| LogitsProcessors { no_repeat_ngram_size: size, ..LogitsProcessors::default() };
        assert_eq!(left(&processors(2), &[3, 1]), all_but(&[2]));
        assert_eq!(left(&processors(3), &[1, 2]), all_but(&[1]));
        assert_eq!(left(&processors(1), &[3]), all_but(&[1, 2, 3]));
        assert_eq!(left(&processors(9), &[3]), all_but(&[]));
    }

    #[test]
    fn the_last_token_of_a_bad_word_does_not_follow_the_others() {
        let processors = LogitsProcessors {
            bad_words_ids: vec![vec![4], vec![2, 3, 5], vec![7], vec![]],
            ..LogitsProcessors::default()
        };
        assert_eq!(left(&processors, &[]), all_but(&[4]));
        assert_eq!(left(&processors, &[3]), all_but(&[4, 5]));
    }

    #[test]
    fn minimum_and_forced_end_are_kept() {
        let processors = LogitsProcessors { min_new_tokens: 2, ..LogitsProcessors::default() };
        assert_eq!(left(&processors, &[3]), all_but(&[7]));
        assert_eq!(left(&processors, &[3, 4]), all_but(&[]));
        let processors = LogitsProcessors { min_length: 4, ..LogitsProcessors::default() };
        assert_eq!([left(&processors, &[3]), left(&processors, &[3, 4])], [all_but(&[7]), all_but(&[])]);
        let processors = LogitsProcessors { forced_eos_token_id: vec![7], ..LogitsProcessors::default() };
        assert_eq!([left(&processors, &[3]), left(&processors, &[3, 4])], [all_but(&[]), vec![7]]);
    }

    #[test]
    fn suppressed_tokens_are_not_generated_or_not_first() {
        let processors = LogitsProcessors {
            suppress_tokens: vec![0, 99],
            begin_suppress_tokens: vec![6],
            ..LogitsProcessors::default()
        };
        assert_eq!([left(&processors, &[]), left(&processors, &[3])], [all_but(&[0, 6]), all_but(&[0])]);
    }
}
