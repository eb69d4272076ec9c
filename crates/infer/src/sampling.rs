//! Sampling of the next token from its logits, on the host.
//!
//! Order and meaning of the steps are those of transformers: repetition penalty, temperature, top-k, top-p, min-p,
//! softmax, draw. Source: transformers 5.23, `generation/logits_process.py`.

use std::cmp::Ordering;

use glm4v_inputs::SplitMix64;

/// Parameters of sampling, under the names of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 selects greedy decoding.
    pub temperature: f64,
    /// Nucleus sampling: keeps the most probable tokens whose probabilities sum to this; 1 keeps all.
    pub top_p: f64,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Drops tokens below this fraction of the highest probability; 0 drops none.
    pub min_p: f64,
    /// Divides the positive logits of earlier tokens, those of the prompt included, and multiplies the negative; 1 for none.
    pub repetition_penalty: f64,
}

impl SamplingParams {
    /// Greedy decoding.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// Sampler of one row, with a random state of its own.
#[derive(Debug, Clone)]
pub struct TokenSampler {
    sampling: SamplingParams,
    random: SplitMix64,
}

impl TokenSampler {
    /// A sampler whose random state depends on `seed` and `row` only.
    pub fn new(sampling: SamplingParams, seed: u64, row: usize) -> Self {
        let random = SplitMix64::new(seed ^ (row as u64).wrapping_mul(0xd134_2543_de82_ef95));
        Self { sampling, random }
    }

    /// Samples the token after `history`, prompt and generated tokens; none if a logit is NaN.
    pub fn next(&mut self, scores: &[f32], history: &[u32]) -> Option<u32> {
        if scores.iter().any(|score| score.is_nan()) {
            return None;
        }
        let mut scores = scores.to_vec();
        apply_repetition_penalty(&mut scores, history, self.sampling.repetition_penalty);
        if self.sampling.temperature == 0.0 {
            return argmax(&scores);
        }
        apply_temperature(&mut scores, self.sampling.temperature);
        apply_top_k(&mut scores, self.sampling.top_k);
        apply_top_p(&mut scores, self.sampling.top_p);
        apply_min_p(&mut scores, self.sampling.min_p);
        let probabilities = softmax(&scores);
        let mut left = self.random.uniform();
        for (id, probability) in probabilities.iter().enumerate() {
            left -= f64::from(*probability);
            if left < 0.0 {
                return Some(id as u32);
            }
        }
        argmax(&scores) // rounding left the sum of probabilities below the drawn number
    }
}

/// The token with the highest score, the first of several.
fn argmax(scores: &[f32]) -> Option<u32> {
    let mut best = 0;
    for (id, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = id;
        }
    }
    (!scores.is_empty()).then_some(best as u32)
}

pub(crate) fn apply_repetition_penalty(scores: &mut [f32], history: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let penalty = penalty as f32;
    let mut seen = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

pub(crate) fn apply_temperature(scores: &mut [f32], temperature: f64) {
    scores.iter_mut().for_each(|score| *score /= temperature as f32);
}

/// Keeps the `k` highest scores, and those equal to the last of them.
pub(crate) fn apply_top_k(scores: &mut [f32], k: usize) {
    if k == 0 || k >= scores.len() {
        return;
    }
    let mut sorted = scores.to_vec();
    let (_, threshold, _) = sorted.select_nth_unstable_by(k - 1, |a, b| descending(*a, *b));
    let threshold = *threshold;
    scores.iter_mut().filter(|score| **score < threshold).for_each(|score| *score = f32::NEG_INFINITY);
}

/// Drops the least probable tokens whose probabilities sum to at most `1 - p`.
pub(crate) fn apply_top_p(scores: &mut [f32], p: f64) {
    if p >= 1.0 {
        return;
    }
    let probabilities = softmax(scores);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| descending(scores[*b], scores[*a])); // least probable first, as the reference sums
    let mut sum = 0.0f32;
    let last = order.len().saturating_sub(1);
    for id in &order[..last] {
        sum += probabilities[*id];
        if sum <= (1.0 - p) as f32 {
            scores[*id] = f32::NEG_INFINITY;
        }
    }
}

/// Drops tokens less probable than `min_p` times the highest probability.
pub(crate) fn apply_min_p(scores: &mut [f32], min_p: f64) {
    if min_p == 0.0 {
        return;
    }
    let probabilities = softmax(scores);
    let threshold = probabilities.iter().copied().fold(0.0, f32::max) * min_p as f32;
    for (score, probability) in scores.iter_mut().zip(probabilities) {
        if probability < threshold {
            *score = f32::NEG_INFINITY;
        }
    }
}

pub(crate) fn softmax(scores: &[f32]) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use glm4v_weights::TensorFile;
    use std::path::Path;

    #[test]
    fn every_step_is_that_of_transformers() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/golden/generate/warpers.safetensors");
        let file = TensorFile::open(Path::new(path)).unwrap();
        let float = |name: &str| {
            let data = file.float(name, burn::tensor::DType::F32).unwrap();
            data.as_slice::<f32>().unwrap().chunks(200).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let (history, _) = file.integers("in.history").unwrap();
        let history: Vec<Vec<u32>> =
            history.chunks(12).map(|row| row.iter().map(|id| *id as u32).collect()).collect();
        type Step = fn(&mut [f32], &[u32]);
        let steps: [(&str, Step); 7] = [
            ("out.temperature_0.8", |s, _| apply_temperature(s, 0.8)),
            ("out.top_k_7", |s, _| apply_top_k(s, 7)),
            ("out.top_p_0.6", |s, _| apply_top_p(s, 0.6)),
            ("out.top_p_0.95", |s, _| apply_top_p(s, 0.95)),
            ("out.min_p_0.1", |s, _| apply_min_p(s, 0.1)),
            ("out.repetition_1.3", |s, h| apply_repetition_penalty(s, h, 1.3)),
            ("out.chain_probabilities", |s, h| {
                apply_repetition_penalty(s, h, 1.1);
                apply_temperature(s, 0.8);
                apply_top_k(s, 50);
                apply_top_p(s, 0.6);
                let probabilities = softmax(s);
                s.copy_from_slice(&probabilities);
            }),
        ];
        for (name, step) in steps {
            for ((mut scores, history), expected) in
                float("in.scores").into_iter().zip(&history).zip(float(name))
            {
                step(&mut scores, history);
                for (found, expected) in scores.iter().zip(&expected) {
                    assert!(
                        found == expected || (found - expected).abs() < 1e-6,
                        "{name}: {found}, {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn samples_follow_the_probabilities_and_the_seed() {
        let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
        let scores = [0.0, (2.0f32).ln(), f32::NEG_INFINITY, (5.0f32).ln()]; // 1/8, 2/8, 0, 5/8
        let draw = |seed| {
            let mut sampler = TokenSampler::new(sampling, seed, 0);
            (0..8000).map(|_| sampler.next(&scores, &[]).unwrap()).collect::<Vec<_>>()
        };

        let drawn = draw(1);

        let share = |id| drawn.iter().filter(|x| **x == id).count() as f64 / 8000.0;
        assert!(
            (share(0) - 0.125).abs() < 0.02 && (share(1) - 0.25).abs() < 0.02,
            "{} {}",
            share(0),
            share(1)
        );
        assert_eq!(share(2), 0.0);
        assert_eq!(drawn, draw(1));
        assert_ne!(drawn, draw(2));
    }

    #[test]
    fn a_seed_and_a_row_keep_their_tokens() {
        let sampling = SamplingParams { temperature: 1.0, ..SamplingParams::greedy() };
        let mut sampler = TokenSampler::new(sampling, 1, 2);

        let drawn: Vec<u32> = (0..8).map(|_| sampler.next(&[0.0; 4], &[]).unwrap()).collect();

        // Computed by a second implementation, in Python.
        assert_eq!(drawn, [1, 3, 1, 1, 3, 2, 1, 3]);
    }

    #[test]
    fn nan_scores_give_no_token() {
        assert_eq!(TokenSampler::new(SamplingParams::greedy(), 0, 0).next(&[1.0, f32::NAN], &[]), None);
    }
}
