//! Conversations to what the model reads, as one checkpoint wants it.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::expand::{Encoded, ExpandError, Expander, Segment};
use crate::folder::{Folder, FolderError, TimestampStyle};
use crate::image::{ConfigError, ImageError, ImageProcessor, PatchedImage};
use crate::messages::{ImageSource, Message, Part};
use crate::template::{ChatTemplate, RenderOptions, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError, token};

/// Why a processor could not be loaded, or a conversation not encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// The folder lacks a file, or one cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The configuration of the image processor cannot be followed.
    #[error("{path}: cannot be followed")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// The tokenizer cannot be read, or refused a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is broken, or refused the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A picture cannot be used.
    #[error("image {image} of the conversation cannot be used")]
    Image {
        /// Index of the image, from 0.
        image: usize,
        /// What is wrong with it.
        #[source]
        source: ImageError,
    },
    /// A picture of a shape that the model cannot take.
    #[error("image {image} of the conversation, {name}: {source}; crop or pad it")]
    Shape {
        /// Index of the image, from 0.
        image: usize,
        /// Where it comes from.
        name: String,
        /// What is wrong with it.
        source: Box<ImageError>,
    },
    /// Pictures and prompt do not fit together.
    #[error(transparent)]
    Expand(#[from] ExpandError),
}

/// Turns conversations into what the model reads.
#[derive(Debug, Clone)]
pub struct Processor {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    image: ImageProcessor,
    timestamp_style: TimestampStyle,
}

impl Processor {
    /// Loads the processor of a checkpoint folder in Hugging Face layout.
    ///
    /// Needs `tokenizer.json`, `preprocessor_config.json` and `chat_template.jinja` (or the template
    /// inside `tokenizer_config.json`).
    ///
    /// # Errors
    ///
    /// When a file is missing or cannot be followed.
    pub fn load(dir: &Path) -> Result<Self, ProcessorError> {
        let folder = Folder::open(dir)?;
        let tokenizer = Tokenizer::from_file(&folder.tokenizer()?)?;
        let image = ImageProcessor::from_json(&folder.preprocessor());
        Ok(Self {
            tokenizer,
            template: ChatTemplate::new(folder.template()?, folder.token_texts())?,
            image: image
                .map_err(|source| ProcessorError::Config { path: folder.preprocessor_path(), source })?,
            timestamp_style: folder.timestamp_style(),
        })
    }

    /// Replaces the image processor, to set other limits for example.
    #[must_use]
    pub fn with_image_processor(mut self, image: ImageProcessor) -> Self {
        self.image = image;
        self
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The image processor.
    pub fn image_processor(&self) -> &ImageProcessor {
        &self.image
    }

    /// How this checkpoint writes the times of a clip.
    pub fn timestamp_style(&self) -> TimestampStyle {
        self.timestamp_style
    }

    /// Renders a conversation; a picture is one `<|image|>`, a clip one `<|video|>`.
    ///
    /// # Errors
    ///
    /// When the chat template fails on this conversation or refuses it.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TemplateError> {
        self.template.render(messages, options)
    }

    /// Renders a conversation, loads its pictures in order, and tokenises it.
    ///
    /// # Errors
    ///
    /// When a picture cannot be used, the template fails, a message holds a clip, or pictures and
    /// placeholders differ in number.
    pub fn encode(&self, messages: &[Message], options: &RenderOptions) -> Result<Encoded, ProcessorError> {
        if let Some(message) = messages.iter().position(holds_video) {
            let message = Some(message);
            return Err(ExpandError::Video { message }.into());
        }
        let text = self.render(messages, options)?;
        let ids = self.tokenizer.encode(&text)?;
        let images: Vec<&ImageSource> = messages.iter().flat_map(Message::images).collect();
        let mut expander = self.expander(&images)?;
        expander.push(&ids, false)?;
        let spells = |m: &Message| m.content.texts().any(|text| text.contains(token::IMAGE));
        Ok(expander.finish(messages.iter().position(spells))?)
    }

    /// Tokenises a rendered conversation piece by piece, and says which tokens are taught.
    ///
    /// Every segment is tokenised on its own, so that the tokens of an answer are the ones the model
    /// must produce after the tokens of the prompt, whatever stands at the seam.
    ///
    /// # Errors
    ///
    /// When a picture cannot be used, or pictures and placeholders differ in number.
    pub fn encode_segments(
        &self,
        segments: &[Segment],
        images: &[ImageSource],
    ) -> Result<Encoded, ProcessorError> {
        let images: Vec<&ImageSource> = images.iter().collect();
        let mut expander = self.expander(&images)?;
        for segment in segments {
            let ids = self.tokenizer.encode(&segment.text)?;
            expander.push(&ids, segment.taught)?;
        }
        Ok(expander.finish(None)?)
    }

    fn expander(&self, sources: &[&ImageSource]) -> Result<Expander<'_>, ProcessorError> {
        let load = |(image, source): (usize, &&ImageSource)| {
            let picture = self.image.decode_limits().load(source);
            let picture = picture.map_err(|source| ProcessorError::Image { image, source })?;
            let patched = self.image.process(&picture);
            patched.map_err(|problem| ProcessorError::Shape {
                image,
                name: source.to_string(),
                source: Box::new(problem),
            })
        };
        let loaded: Vec<Result<PatchedImage, ProcessorError>> =
            sources.par_iter().enumerate().map(load).collect();
        // Of several bad pictures the first is reported, whichever thread met its own first.
        let images = loaded.into_iter().collect::<Result<_, _>>()?;
        let patches_per_token = self.image.patches_per_token();
        Ok(Expander::new(self.tokenizer.special(), images, patches_per_token))
    }
}

fn holds_video(message: &Message) -> bool {
    message.content.parts().iter().any(|part| matches!(part, Part::Video(_)))
}
