//! Sampling of the frames of a video.
//!
//! Both rules are those of transformers 5.23, to the frame (`tests/video_golden.rs`). They return an even number of frames, since
//! a temporal patch holds two; the last one is repeated where the number would be odd.

/// Frames, frame rate and duration of a video, as in transformers' class of this name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoMetadata {
    /// Frames in the video.
    pub frames: usize,
    /// Frames per second.
    pub frame_rate: f64,
    /// Duration in seconds; derived from the frames where it is unknown.
    pub duration: Option<f64>,
}

impl VideoMetadata {
    fn seconds(&self) -> f64 {
        let counted = || (self.last() as f64 / self.frame_rate).round_ties_even() + 1.0;
        // As in Python, where 0 is falsy.
        self.duration.filter(|seconds| *seconds != 0.0).unwrap_or_else(counted)
    }

    fn last(&self) -> usize {
        self.frames.saturating_sub(1)
    }
}

/// Rules of the published video processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameSamplingRule {
    /// `Glm4vVideoProcessor`: `fps` frames per second over the whole video.
    Glm4v,
    /// `Glm46VVideoProcessor`: fewer frames per second in longer videos, at most 640.
    Glm46v,
}

/// Parameters of frame sampling, under the names of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameSamplingConfig {
    /// Rule of the video processor's class.
    pub rule: FrameSamplingRule,
    /// Frames per second; ignored by [`FrameSamplingRule::Glm46v`].
    pub fps: f64,
    /// Seconds beyond which frames are spread out; ignored by [`FrameSamplingRule::Glm46v`].
    pub max_duration: f64,
    /// Frames in a temporal patch.
    pub temporal_patch_size: usize,
}

impl FrameSamplingConfig {
    /// Indices of the sampled frames, ascending; an even number of them, the last one repeated if necessary.
    ///
    /// [`FrameSamplingRule::Glm46v`] returns none for a video under a sixth of a second.
    pub fn indices(&self, video: &VideoMetadata) -> Vec<usize> {
        if video.frames == 0 {
            return Vec::new();
        }
        let mut taken = match self.rule {
            FrameSamplingRule::Glm4v => self.glm4v(video),
            FrameSamplingRule::Glm46v => self.glm46v(video),
        };
        taken.dedup();
        if taken.len() % 2 == 1 {
            taken.extend(taken.last().copied());
        }
        taken
    }

    fn glm4v(&self, video: &VideoMetadata) -> Vec<usize> {
        let seconds = video.seconds();
        let last = video.last();
        let at = |time: f64| ((time * video.frame_rate).ceil() as usize).min(last);
        if seconds <= self.max_duration {
            let count = ((seconds * self.fps).floor() as usize).max(1);
            let mut taken: Vec<usize> = Vec::new();
            for i in 0..count {
                let index = ((i as f64 * video.frame_rate / self.fps).ceil() as usize).min(last);
                if taken.last() != Some(&index) {
                    taken.push(index);
                }
                // All later ones would be the same.
                if index == last {
                    break;
                }
            }
            return taken;
        }
        let count = (self.max_duration * self.fps) as usize;
        if count >= video.frames {
            return (0..video.frames).collect();
        }
        linspace(0.0, seconds, count).map(at).collect()
    }

    fn glm46v(&self, video: &VideoMetadata) -> Vec<usize> {
        const MAX_FRAMES: usize = 640;
        const MAX_SECONDS: f64 = 2400.0;
        let seconds = video.seconds();
        let counted = seconds.min(MAX_SECONDS);
        let fps = match counted {
            ..=30.0 => 3.0,
            ..=300.0 => 1.0,
            _ => 0.5,
        };
        let temporal = self.temporal_patch_size as f64;
        let count = ((counted * fps * temporal) as usize).min(MAX_FRAMES);
        if video.frames < count {
            return evenly_spaced(0, video.last(), count);
        }
        let mut taken = Vec::new();
        let (mut next, end) = (0.0, seconds.trunc());
        let (frame, step) = (1.0 / video.frame_rate, 1.0 / (temporal * fps));
        for index in 0..video.frames {
            // In the floating-point order of transformers: rounding decides on single frames.
            if index as f64 * frame >= next {
                next += step;
                taken.push(index);
                if next >= end {
                    break;
                }
            }
        }
        match taken.len() {
            found if found < count => evenly_spaced(taken[0], taken[found - 1], count),
            found if found > count => evenly_spaced(0, video.last(), count),
            _ => taken,
        }
    }
}

/// `count` indices from the first to the last, rounded down.
fn evenly_spaced(first: usize, last: usize, count: usize) -> Vec<usize> {
    linspace(first as f64, last as f64, count).map(|index| index.floor() as usize).collect()
}

/// numpy's `linspace`, both ends included.
fn linspace(from: f64, to: f64, count: usize) -> impl Iterator<Item = f64> {
    let steps = count.saturating_sub(1);
    let step = (to - from) / steps as f64;
    (0..count).map(move |i| match i {
        0 => from,
        i if i == steps => to,
        i => i as f64 * step + from,
    })
}

/// Timestamps in seconds for the prompt, one for each of `patches` temporal patches.
///
/// transformers takes those of every second frame whatever the temporal patch size, and repeats the last one where they are too few.
pub(super) fn timestamps(indices: &[usize], frame_rate: f64, patches: usize) -> Vec<f64> {
    let seconds = indices.iter().step_by(2).map(|&index| index as f64 / frame_rate);
    let last = seconds.clone().next_back().unwrap_or(0.0);
    seconds.chain(std::iter::repeat(last)).take(patches).collect()
}
