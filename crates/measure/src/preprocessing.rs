//! From an image to its patches.

use glm4v_processor::{ImageProcessor, ImageSource, Rgb};
use rayon::prelude::*;

use crate::error::MeasureError;
use crate::stopwatch::{Measurement, Stopwatch};

/// The image that is preprocessed.
#[derive(Debug)]
pub enum PreprocessInput {
    /// An image in memory: resizing, normalization and patches.
    Generated(Rgb),
    /// A file, which is also read and decoded.
    File(ImageSource),
}

impl PreprocessInput {
    /// An image of this size with gradients and noise.
    pub fn generated([width, height]: [usize; 2]) -> Self {
        let mut random = glm4v_inputs::SplitMix64::new(0);
        let mut pixels = Vec::with_capacity(3 * width * height);
        for y in 0..height {
            for x in 0..width {
                let noise = random.below(24) as usize;
                pixels.extend(
                    [x * 232 / width, y * 232 / height, (x + y) % 232].map(|level| (level + noise) as u8),
                );
            }
        }
        Self::Generated(Rgb::new(height, width, pixels).expect("three bytes a pixel were made"))
    }

    fn process(&self, processor: &ImageProcessor) -> Result<[usize; 3], MeasureError> {
        let patched = match self {
            Self::Generated(image) => processor.process(image)?,
            Self::File(source) => processor.process(&ImageProcessor::load_image(source)?)?,
        };
        Ok(patched.grid)
    }

    /// Patch grid of the image.
    ///
    /// # Errors
    ///
    /// When it cannot be read or resized.
    pub fn grid(&self, processor: &ImageProcessor) -> Result<[usize; 3], MeasureError> {
        self.process(processor)
    }
}

/// Preprocesses `images` copies of an image in a round, each on one thread.
///
/// # Errors
///
/// When it cannot be read or resized.
pub fn preprocess(
    processor: &ImageProcessor,
    input: &PreprocessInput,
    images: usize,
    stopwatch: &Stopwatch,
) -> Result<Measurement, MeasureError> {
    stopwatch.measure(|| (0..images).into_par_iter().try_for_each(|_| input.process(processor).map(drop)))
}
