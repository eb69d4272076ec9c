//! The learning rate as a function of the step.
//!
//! Source: transformers 5.23, `optimization.py`.

use serde::{Deserialize, Serialize};

/// Shape of the curve after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine, decaying to zero.
    Cosine,
    /// Linear decay to zero.
    Linear,
    /// No decay.
    Constant,
}

/// A learning rate schedule with linear warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Shape of the curve.
    pub kind: ScheduleKind,
    /// Learning rate at the end of the warm-up.
    pub lr: f64,
    /// Steps over which the rate rises from zero.
    pub warmup_steps: usize,
    /// Steps of the whole run.
    pub steps: usize,
}

impl Schedule {
    /// Learning rate of step `step`, counted from 0: the first step of a warm-up changes nothing, as in transformers.
    pub fn lr_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.lr * step as f64 / self.warmup_steps as f64;
        }
        let length = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / length;
        match self.kind {
            ScheduleKind::Constant => self.lr,
            ScheduleKind::Linear => self.lr * (1.0 - progress).max(0.0),
            ScheduleKind::Cosine => {
                self.lr * (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}
