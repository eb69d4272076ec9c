//! Conversations to what the model reads, as one checkpoint wants it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm4v_inputs::{Grid, Modality, Sample};
use rayon::prelude::*;

use crate::expand::{
    LabeledText, MediaCountMismatch, PlaceholderError, PlaceholderExpansion, TimedVideo, placeholder,
};
use crate::folder::{Folder, ProcessorFilesError, TimestampFormat};
use crate::image::{
    DecodeLimits, HttpLimits, ImageCache, ImageError, ImageProcessor, PatchedImage, PreprocessorConfigError,
    ResizeError,
};
use crate::media::{ImageSource, VideoInput};
use crate::messages::{ContentPart, Message};
use crate::special_token_guard::find_special_token;
use crate::template::{ChatTemplate, ChatTemplateOptions, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::video::{VideoConfig, VideoError, VideoProcessor};

/// Why a processor could not be loaded, or a conversation not encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// The folder lacks a file, or one cannot be read.
    #[error(transparent)]
    Folder(#[from] ProcessorFilesError),
    /// The configuration of the image processor cannot be followed.
    #[error("{path}: cannot be followed")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PreprocessorConfigError,
    },
    /// The tokenizer cannot be read, or refused a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is broken, or refused the conversation.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// An image cannot be used.
    #[error("image {image} of the conversation cannot be used")]
    Image {
        /// Index of the image, from 0.
        image: usize,
        /// What is wrong with it.
        #[source]
        source: ImageError,
    },
    /// An image of a shape that the model cannot take.
    #[error("image {image} of the conversation, {name}: {source}{}", remedy(.source))]
    Shape {
        /// Index of the image, from 0.
        image: usize,
        /// Where it comes from.
        name: String,
        /// What is wrong with it.
        source: Box<ImageError>,
    },
    /// A video cannot be used.
    #[error("video {video} of the conversation cannot be used")]
    Video {
        /// Index of the video, from 0.
        video: usize,
        /// What is wrong with it.
        #[source]
        source: Box<VideoError>,
    },
    /// Images and prompt do not fit together.
    #[error(transparent)]
    Expand(#[from] PlaceholderError),
    /// More tokens than [`Processor::with_max_prompt_tokens`] allows; not all were counted.
    #[error(
        "the conversation takes more than {max_tokens} tokens, the longest sequence of the model; shorten it, or make its images smaller or fewer"
    )]
    TooLong {
        /// Tokens allowed.
        max_tokens: usize,
    },
}

/// Images that are loaded at once. The tokens of those before decide whether more are looked at.
const IMAGES_AT_ONCE: usize = 16;

/// The grids of images and videos whose features were computed earlier.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MediaGrids {
    /// One grid per image.
    pub images: Vec<Grid>,
    /// One grid per video, and the start of each temporal patch in seconds.
    pub videos: Vec<(Grid, Vec<f64>)>,
}

/// Turns conversations into what the model reads.
#[derive(Debug, Clone)]
pub struct Processor {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    image: ImageProcessor,
    video: VideoProcessor,
    timestamp_style: TimestampFormat,
    special_tokens_allowed: bool,
    max_tokens: Option<usize>,
    image_cache: Option<Arc<dyn ImageCache>>,
}

/// Loads image `image` of a conversation.
fn load_patches(
    processor: &ImageProcessor,
    cache: Option<&dyn ImageCache>,
    image: usize,
    source: &ImageSource,
) -> Result<PatchedImage, ProcessorError> {
    let patched = match cache {
        Some(cache) => processor.process_cached(source, cache),
        None => processor.decode_limits().load(source).and_then(|image| processor.process(&image)),
    };
    patched.map_err(|problem| match problem {
        ImageError::Resize(_) => {
            ProcessorError::Shape { image, name: source.to_string(), source: Box::new(problem) }
        }
        source => ProcessorError::Image { image, source },
    })
}

/// What helps an image of this shape.
fn remedy(problem: &ImageError) -> &'static str {
    match problem {
        ImageError::Resize(ResizeError::AspectRatio { .. }) => "; crop or pad it",
        _ => "",
    }
}

impl Processor {
    /// Loads the processor of a checkpoint folder in Hugging Face layout.
    ///
    /// Needs `tokenizer.json`, `preprocessor_config.json` and `chat_template.jinja` (or the template
    /// inside `tokenizer_config.json`). What `video_preprocessor_config.json` says counts for videos; without
    /// it the images' file does, as upstream.
    ///
    /// # Errors
    ///
    /// When a file is missing or cannot be followed.
    pub fn load(dir: &Path) -> Result<Self, ProcessorError> {
        let folder = Folder::open(dir)?;
        let tokenizer = Tokenizer::from_file(&folder.tokenizer()?)?;
        let config = |path, source| ProcessorError::Config { path, source };
        let image = ImageProcessor::from_json(&folder.preprocessor())
            .map_err(|source| config(folder.preprocessor_path(), source))?;
        let video = VideoConfig::from_json(&folder.video_preprocessor())
            .map_err(|source| config(folder.video_preprocessor_path(), source))?;
        Ok(Self {
            tokenizer,
            template: ChatTemplate::new(folder.template()?, folder.token_texts())?,
            image,
            video: VideoProcessor::new(video),
            timestamp_style: folder.timestamp_style(),
            special_tokens_allowed: false,
            max_tokens: None,
            image_cache: None,
        })
    }

    /// Keeps resized images in a cache. Frames of videos are decoded anew.
    #[must_use]
    pub fn with_image_cache(mut self, cache: Arc<dyn ImageCache>) -> Self {
        self.image_cache = Some(cache);
        self
    }

    /// Replaces the image processor, to set other limits for example.
    #[must_use]
    pub fn with_image_processor(mut self, image: ImageProcessor) -> Self {
        self.image = image;
        self
    }

    /// Replaces the video processor, to set other limits for example.
    #[must_use]
    pub fn with_video_processor(mut self, video: VideoProcessor) -> Self {
        self.video = video;
        self
    }

    /// Replaces the chat template.
    ///
    /// # Errors
    ///
    /// When it is not Jinja2.
    pub fn with_template(mut self, source: String) -> Result<Self, TemplateError> {
        self.template = self.template.replaced(source)?;
        Ok(self)
    }

    /// Lets images and videos come from `http(s)` URLs, within these limits.
    #[must_use]
    pub fn allow_http(mut self, http: HttpLimits) -> Self {
        let decode = DecodeLimits { http: Some(http.clone()), ..self.image.decode_limits().clone() };
        self.image = self.image.with_decode_limits(decode);
        let mut limits = self.video.limits().clone();
        limits.frame.http = Some(http);
        self.video = self.video.with_limits(limits);
        self
    }

    /// Lets the words of a conversation spell special tokens, as the published processors do: `<|user|>` in
    /// a text then opens a turn, and `<|image|>` takes the next image.
    #[must_use]
    pub fn with_special_tokens_allowed(mut self, allowed: bool) -> Self {
        self.special_tokens_allowed = allowed;
        self
    }

    /// Refuses conversations of more tokens, images included, as soon as that is clear and before everything is loaded: a
    /// hostile record of ten thousand images or of megabytes of text costs a moment and little memory.
    #[must_use]
    pub fn with_max_prompt_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
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

    /// The video processor.
    pub fn video_processor(&self) -> &VideoProcessor {
        &self.video
    }

    /// How this checkpoint writes the times of a video.
    pub fn timestamp_style(&self) -> TimestampFormat {
        self.timestamp_style
    }

    /// Renders a conversation; an image is one `<|image|>`, a video one `<|video|>`.
    ///
    /// # Errors
    ///
    /// When the chat template fails on this conversation or refuses it, or the words of the conversation
    /// spell a special token (see [`with_special_tokens_allowed`](Self::with_special_tokens_allowed)).
    pub fn render(
        &self,
        messages: &[Message],
        options: &ChatTemplateOptions,
    ) -> Result<String, TemplateError> {
        let control = self.tokenizer.control_tokens();
        if !self.special_tokens_allowed
            && let Some((location, token)) = find_special_token(messages, options.tools.as_ref(), control)
        {
            return Err(TemplateError::SpecialToken { location, token: token.to_owned() });
        }
        self.template.render(messages, options)
    }

    /// Renders a conversation, loads its images and videos in order, and tokenises it.
    ///
    /// # Errors
    ///
    /// When an image or video cannot be used, the template fails, or media and placeholders differ in number.
    pub fn encode(
        &self,
        messages: &[Message],
        options: &ChatTemplateOptions,
    ) -> Result<Sample, ProcessorError> {
        let text = self.render(messages, options)?;
        let ids = self.tokens(&text, 0)?;
        let images: Vec<&ImageSource> = messages.iter().flat_map(Message::images).collect();
        let videos: Vec<&VideoInput> = messages.iter().flat_map(Message::videos).collect();
        let mut expansion = self.expansion(&self.image, (&images, &videos), ids.len())?;
        expansion.push(&ids, 0.0);
        expansion.finish().map_err(|problem| self.placed(problem, messages, options).into())
    }

    /// As [`encode`](Self::encode), for images and videos whose features were made earlier: nothing is loaded, of their
    /// parts only the places count, and there are no patches in the result.
    ///
    /// # Errors
    ///
    /// When the template fails, or media and placeholders differ in number.
    pub fn encode_with_grids(
        &self,
        messages: &[Message],
        options: &ChatTemplateOptions,
        media: &MediaGrids,
    ) -> Result<Sample, ProcessorError> {
        let ids = self.tokenizer.encode(&self.render(messages, options)?)?;
        let images =
            media.images.iter().map(|grid| PatchedImage { pixel_values: Vec::new(), grid: grid.thw() });
        let mut videos = Vec::with_capacity(media.videos.len());
        for (grid, seconds) in &media.videos {
            let timestamps = self.timestamps(seconds)?;
            videos.push(TimedVideo { pixel_values: Vec::new(), grid: *grid, timestamps });
        }
        let merge = self.video.config().frame.merge_size;
        let patches_per_token = [self.image.patches_per_token(), merge * merge];
        let special = self.tokenizer.special();
        let mut expansion = PlaceholderExpansion::new(special, images.collect(), videos, patches_per_token)?;
        expansion.push(&ids, 0.0);
        expansion.finish().map_err(|problem| self.placed(problem, messages, options).into())
    }

    /// Tokenises a rendered conversation piece by piece, with the weight of each piece in the loss.
    ///
    /// Every span is tokenised on its own, so that the tokens of an answer are the ones the model
    /// must produce after the tokens of the prompt, whatever stands at the seam.
    ///
    /// # Errors
    ///
    /// When an image or video cannot be used, or media and placeholders differ in number.
    pub fn encode_spans(
        &self,
        spans: &[LabeledText],
        images: &[ImageSource],
        videos: &[VideoInput],
    ) -> Result<Sample, ProcessorError> {
        self.encode_spans_with(&self.image, spans, images, videos)
    }

    /// As [`encode_spans`](Self::encode_spans), with another image processor: one with other limits, for one conversation.
    ///
    /// # Errors
    ///
    /// As [`encode_spans`](Self::encode_spans).
    pub fn encode_spans_with(
        &self,
        image: &ImageProcessor,
        spans: &[LabeledText],
        images: &[ImageSource],
        videos: &[VideoInput],
    ) -> Result<Sample, ProcessorError> {
        let (images, videos): (Vec<_>, Vec<_>) = (images.iter().collect(), videos.iter().collect());
        let (mut tokens, mut pieces) = (0, Vec::with_capacity(spans.len()));
        for span in spans {
            let ids = self.tokens(&span.text, tokens)?;
            tokens += ids.len();
            pieces.push((ids, span.loss_weight));
        }
        let mut expansion = self.expansion(image, (&images, &videos), tokens)?;
        for (ids, loss_weight) in pieces {
            expansion.push(&ids, loss_weight);
        }
        Ok(expansion.finish()?)
    }

    /// Tokens that an image will take, where its header can be read and tells.
    pub fn probe_image_tokens(&self, source: &ImageSource) -> Option<usize> {
        let (width, height) = self.image.decode_limits().probe(source).ok()??;
        let grid = self.image.grid(height as usize, width as usize).ok()?;
        Some(self.image.tokens(grid))
    }

    /// Looks at what [`encode_spans`](Self::encode_spans) would read, without decoding it: that images and videos are
    /// there and as many as the spans have places, and the tokens that each image will take where its header tells.
    ///
    /// # Errors
    ///
    /// When an image or video is missing, is none, or is not allowed; when media and placeholders differ in number.
    pub fn check_spans(
        &self,
        spans: &[LabeledText],
        images: &[&ImageSource],
        videos: &[&VideoInput],
    ) -> Result<Vec<Option<usize>>, ProcessorError> {
        for (modality, given) in [(Modality::Image, images.len()), (Modality::Video, videos.len())] {
            let found = spans.iter().map(|span| span.text.matches(placeholder(modality)).count()).sum();
            if found != given {
                return Err(PlaceholderError::Count { modality, found, given, message: None }.into());
            }
        }
        let probe = |(image, source): (usize, &&ImageSource)| {
            let size = self.image.decode_limits().probe(source);
            let Some((width, height)) = size.map_err(|source| ProcessorError::Image { image, source })?
            else {
                return Ok(None);
            };
            let grid = self.image.grid(height as usize, width as usize);
            let grid = grid.map_err(|problem| ProcessorError::Shape {
                image,
                name: source.to_string(),
                source: Box::new(problem.into()),
            })?;
            Ok(Some(self.image.tokens(grid)))
        };
        let tokens = images.iter().enumerate().map(probe).collect::<Result<_, ProcessorError>>()?;
        for (video, source) in videos.iter().enumerate() {
            let problem = |source| ProcessorError::Video { video, source: Box::new(source) };
            self.video.probe(source).map_err(problem)?;
        }
        Ok(tokens)
    }

    /// The ids of a text behind `before` others.
    fn tokens(&self, text: &str, before: usize) -> Result<Vec<u32>, ProcessorError> {
        let Some(max_tokens) = self.max_tokens else { return Ok(self.tokenizer.encode(text)?) };
        let left = max_tokens.saturating_sub(before);
        self.tokenizer.encode_within(text, left)?.ok_or(ProcessorError::TooLong { max_tokens })
    }

    /// An error if so many tokens are too many.
    fn check_length(&self, tokens: usize) -> Result<(), ProcessorError> {
        match self.max_tokens {
            Some(max_tokens) if tokens > max_tokens => Err(ProcessorError::TooLong { max_tokens }),
            _ => Ok(()),
        }
    }

    /// Loads the media of a conversation whose text takes `tokens` tokens, placeholders included.
    fn expansion(
        &self,
        image_processor: &ImageProcessor,
        (images, videos): (&[&ImageSource], &[&VideoInput]),
        mut tokens: usize,
    ) -> Result<PlaceholderExpansion<'_>, ProcessorError> {
        // Every image and every video takes a token at least.
        self.check_length(tokens.max(images.len() + videos.len()))?;
        let mut patched = Vec::with_capacity(images.len());
        for (part, sources) in images.chunks(IMAGES_AT_ONCE).enumerate() {
            let load = |(index, source): (usize, &&ImageSource)| {
                let cache = self.image_cache.as_deref();
                load_patches(image_processor, cache, part * IMAGES_AT_ONCE + index, source)
            };
            let loaded: Vec<Result<PatchedImage, ProcessorError>> =
                sources.par_iter().enumerate().map(load).collect();
            // Of several bad images the first is reported, whichever thread met its own first.
            for image in loaded {
                let image = image?;
                tokens += image_processor.tokens(image.grid).saturating_sub(1); // its placeholder was counted
                patched.push(image);
            }
            self.check_length(tokens)?;
        }
        let merge = self.video.config().frame.merge_size;
        let mut timed = Vec::with_capacity(videos.len());
        // One video after another: each may take much memory while it is decoded.
        for (index, source) in videos.iter().enumerate() {
            let video = self.timed(index, source)?;
            tokens += video.grid.tokens(merge);
            timed.push(video);
            self.check_length(tokens)?;
        }
        let patches_per_token = [self.image.patches_per_token(), merge * merge];
        Ok(PlaceholderExpansion::new(self.tokenizer.special(), patched, timed, patches_per_token)?)
    }

    fn timed(&self, video: usize, source: &VideoInput) -> Result<TimedVideo, ProcessorError> {
        let patched = self.video.load(source);
        let patched = patched.map_err(|source| ProcessorError::Video { video, source: source.into() })?;
        let timestamps = self.timestamps(&patched.timestamps)?;
        Ok(TimedVideo { pixel_values: patched.pixel_values, grid: patched.grid.into(), timestamps })
    }

    /// The tokens of each time, written as the checkpoint writes them.
    fn timestamps(&self, seconds: &[f64]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        seconds.iter().map(|time| self.tokenizer.encode(&self.timestamp_style.write(*time))).collect()
    }

    /// Names the message in which placeholders and media begin to differ.
    fn placed(
        &self,
        problem: PlaceholderError,
        messages: &[Message],
        options: &ChatTemplateOptions,
    ) -> PlaceholderError {
        let PlaceholderError::Count { modality, found, given, .. } = problem else {
            return problem;
        };
        let is: fn(&ContentPart) -> bool = match modality {
            Modality::Video => |part| matches!(part, ContentPart::Video(_)),
            _ => |part| matches!(part, ContentPart::Image(_)),
        };
        let options = ChatTemplateOptions { add_generation_prompt: false, ..options.clone() };
        let mut before = 0;
        let message = messages.iter().enumerate().find_map(|(message, own)| {
            // A template may refuse a conversation that ends here; then nobody is named.
            let written =
                self.render(&messages[..=message], &options).ok()?.matches(placeholder(modality)).count();
            let parts = own.content.parts();
            let (found, given) =
                (written.saturating_sub(before), parts.iter().filter(|part| is(part)).count());
            before = written;
            (found != given).then(|| MediaCountMismatch {
                message,
                part: parts.iter().position(is),
                found,
                given,
            })
        });
        PlaceholderError::Count { modality, found, given, message }
    }
}
