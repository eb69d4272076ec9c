//! The parts of the test, by name.

use std::fmt;
use std::str::FromStr;

/// A part of the test. Each is independent of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Part {
    /// Matrix products of linear layers against sums in f64.
    Products,
    /// Fused and eager attention against sums in f64.
    Attention,
    /// Norms, feed-forwards, attention and loss with their gradients, against the same composed of plain operations.
    Operations,
    /// Norms, router and loss, and where they round.
    Rounding,
    /// Logits and activations of every family, images and video.
    Forward,
    /// Prefill, cached decoding and greedy generation.
    Generation,
    /// Loss and gradient of every parameter.
    Gradients,
    /// Five steps of full fine-tuning.
    Training,
    /// Application, gradients, training and merge of an adapter.
    Lora,
    /// A computation captured as one launch against the same launch by launch.
    Capture,
}

impl Part {
    /// All parts, single operations first: a wrong one explains what follows. Capture is last: it changes how the device allocates.
    pub const ALL: [Self; 10] = [
        Self::Products,
        Self::Attention,
        Self::Operations,
        Self::Rounding,
        Self::Forward,
        Self::Generation,
        Self::Gradients,
        Self::Training,
        Self::Lora,
        Self::Capture,
    ];

    /// Its name, one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Products => "products",
            Self::Attention => "attention",
            Self::Operations => "operations",
            Self::Rounding => "rounding",
            Self::Forward => "forward",
            Self::Generation => "generation",
            Self::Gradients => "gradients",
            Self::Training => "training",
            Self::Lora => "lora",
            Self::Capture => "capture",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No part has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("part \"{found}\" is unknown; needed: one of {}", Part::ALL.map(Part::name).join(", "))]
pub struct UnknownPart {
    /// The requested name.
    pub found: String,
}

impl FromStr for Part {
    type Err = UnknownPart;

    fn from_str(text: &str) -> Result<Self, UnknownPart> {
        let part = Self::ALL.into_iter().find(|part| part.name() == text);
        part.ok_or_else(|| UnknownPart { found: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for part in Part::ALL {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        let error = "vision".parse::<Part>().unwrap_err().to_string();
        assert!(
            error.starts_with("part \"vision\" is unknown; needed: one of products, attention"),
            "{error}"
        );
    }
}
