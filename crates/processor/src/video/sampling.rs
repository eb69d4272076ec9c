//! Which frames of a video the model sees.
//!
//! Both rules are those of transformers 5.23, to the frame: `tests/video_golden.rs` holds them to it.
//! They take an even number of frames, since two make a temporal patch; the last is taken twice where
//! the number would be odd.

/// What is known of a video before its frames are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoMetadata {
    /// Frames in the video.
    pub frames: usize,
    /// Frames a second.
    pub frame_rate: f64,
    /// Length in seconds; counted from the frames where the file does not say.
    pub duration: Option<f64>,
}

impl VideoMetadata {
    fn seconds(&self) -> f64 {
        let counted = || (self.last() as f64 / self.frame_rate).round_ties_even() + 1.0;
        // As in Python, a length of zero is no length.
        self.duration.filter(|seconds| *seconds != 0.0).unwrap_or_else(counted)
    }

    fn last(&self) -> usize {
        self.frames.saturating_sub(1)
    }
}

/// The published rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplingRule {
    /// `Glm4vVideoProcessor`: so many frames a second, over the whole video.
    Glm4v,
    /// `Glm46VVideoProcessor`: fewer a second in longer videos, at most 640.
    Glm46v,
}

/// How frames are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The rule.
    pub rule: SamplingRule,
    /// Frames a second; the rule of GLM-4.6V has its own.
    pub fps: f64,
    /// Seconds beyond which frames lie further apart; the rule of GLM-4.6V has its own.
    pub max_duration: f64,
    /// Frames in a temporal patch.
    pub temporal_patch_size: usize,
}

impl Sampling {
    /// Indices of the frames to take, ascending; an even number of them, the last one twice if need be.
    ///
    /// The rule of GLM-4.6V takes nothing of a video under a sixth of a second.
    pub fn indices(&self, video: &VideoMetadata) -> Vec<usize> {
        if video.frames == 0 {
            return Vec::new();
        }
        let mut taken = match self.rule {
            SamplingRule::Glm4v => self.glm4v(video),
            SamplingRule::Glm46v => self.glm46v(video),
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
                // What follows could only repeat it.
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
        const MOST_FRAMES: usize = 640;
        const LONGEST: f64 = 2400.0;
        let seconds = video.seconds();
        let counted = seconds.min(LONGEST);
        let fps = match counted {
            ..=30.0 => 3.0,
            ..=300.0 => 1.0,
            _ => 0.5,
        };
        let temporal = self.temporal_patch_size as f64;
        let count = ((counted * fps * temporal) as usize).min(MOST_FRAMES);
        let spread = |from: usize, to: usize| {
            let even = linspace(from as f64, to as f64, count);
            even.map(|index| index.floor() as usize).collect()
        };
        if video.frames < count {
            return spread(0, video.last());
        }
        let mut taken = Vec::new();
        let (mut next, end) = (0.0, seconds.trunc());
        let (frame, step) = (1.0 / video.frame_rate, 1.0 / (temporal * fps));
        for index in 0..video.frames {
            // Sums and products of rounded numbers, as upstream has them: a frame more or less depends on it.
            if index as f64 * frame >= next {
                next += step;
                taken.push(index);
                if next >= end {
                    break;
                }
            }
        }
        match taken.len() {
            found if found < count => spread(taken[0], taken[found - 1]),
            found if found > count => spread(0, video.last()),
            _ => taken,
        }
    }
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

/// The times that are written between the frames of a video, one for each of its `patches` in time.
///
/// transformers takes every second frame's, however many frames a patch has, and repeats the last where patches have one.
pub(super) fn timestamps(indices: &[usize], frame_rate: f64, patches: usize) -> Vec<f64> {
    let seconds = indices.iter().step_by(2).map(|&index| index as f64 / frame_rate);
    let last = seconds.clone().next_back().unwrap_or(0.0);
    seconds.chain(std::iter::repeat(last)).take(patches).collect()
}
