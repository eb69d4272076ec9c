//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use glm4v_model::{Backend, DeviceError, Precision};
use glm4v_weights::ShardSize;

/// Load, train and run GLM's vision-language models.
#[derive(Debug, Parser)]
#[command(name = "glm4v", version, max_term_width = 110)]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Flags of every command.
#[derive(Debug, ClapArgs)]
pub(crate) struct Global {
    /// Hardware to run on: auto, cpu, wgpu, cuda, or one of several as cuda:1
    #[arg(long, global = true, default_value = "auto", value_name = "NAME")]
    pub(crate) backend: Backend,
    /// Type of weights and activations: f32, bf16 or f16 [default: f32 on cpu and wgpu, bf16 on cuda; convert: keep]
    #[arg(long, global = true, value_name = "TYPE")]
    pub(crate) dtype: Option<Dtype>,
    /// Threads of the cpu backend [default: one a core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Say more; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Read the command line, and the config of a run, and do nothing else: shows that documented commands exist
    #[arg(long, global = true, hide = true)]
    pub(crate) parse_only: bool,
}

/// A type of numbers, or what a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// The type that the weights have.
    Keep,
    /// This one.
    Of(Precision),
}

impl std::str::FromStr for Dtype {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        if text == "keep" { Ok(Self::Keep) } else { text.parse().map(Self::Of) }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a model as a config file says
    Train(Train),
    /// Answer a prompt about pictures
    Generate(Generate),
    /// Measure a model on a data set: loss and exact match
    Eval(Eval),
    /// Make fresh weights in the published layout
    Init(Init),
    /// Write what enters the text model: embeddings, positions, features
    Embed(Embed),
    /// Write a model's weights in another type or in files of another size
    Convert(Convert),
    /// Fold an adapter into plain weights
    Merge(Merge),
    /// Write one forward pass, everything by name
    Trace(Trace),
    /// Show devices, or what a model folder holds
    Info(Info),
}

/// Fine-tune a model as a config file says.
#[derive(Debug, ClapArgs)]
pub(crate) struct Train {
    /// The run: a TOML file, see configs/finetune
    pub(crate) config: PathBuf,
    /// Change a value of the config, as in --set optim.lr=1e-4; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Go on from the run folder's newest checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
}

/// Where a prompt comes from.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = true)]
pub(crate) struct Prompt {
    /// The question
    #[arg(long, value_name = "TEXT", conflicts_with = "messages")]
    pub(crate) prompt: Option<String>,
    /// A picture for the question: a path or a URL; may be repeated
    #[arg(long = "image", value_name = "FILE", requires = "prompt", conflicts_with = "messages")]
    pub(crate) images: Vec<String>,
    /// A clip for the question: a video file, an animation, or a folder of pictures; may be repeated
    #[arg(long = "video", value_name = "FILE", requires = "prompt", conflicts_with = "messages")]
    pub(crate) videos: Vec<String>,
    /// A conversation: a json file of [{"role", "content"}, …]
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: Option<PathBuf>,
}

/// How the inputs of a model are made.
#[derive(Debug, ClapArgs)]
pub(crate) struct Inputs {
    /// Fewest pixels of a picture, which counts twice [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) min_pixels: Option<usize>,
    /// Most pixels of a picture, which counts twice; 1568 are a token [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_pixels: Option<usize>,
    /// Most pixels of a clip, over all frames shown; 1568 are a token [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_video_pixels: Option<usize>,
    /// Frames a second of folders and lists of pictures [default: all are shown]
    #[arg(long, value_name = "FPS")]
    pub(crate) frame_rate: Option<f64>,
    /// Fetch pictures and clips of http:// and https:// URLs
    #[arg(long)]
    pub(crate) allow_http: bool,
    /// Let texts spell special tokens: <|user|> then opens a turn, <|image|> takes a picture
    #[arg(long)]
    pub(crate) allow_special_tokens: bool,
}

/// How a prompt is written.
#[derive(Debug, ClapArgs)]
pub(crate) struct Rendering {
    /// Whether the model is to think first [default: the model's]
    #[arg(long, value_name = "SWITCH")]
    pub(crate) thinking: Option<Switch>,
    /// Tools that the model may call: a json file with a list of them
    #[arg(long, value_name = "FILE")]
    pub(crate) tools: Option<PathBuf>,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

impl Switch {
    pub(crate) fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Answer a prompt about pictures.
#[derive(Debug, ClapArgs)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Generate {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter folder, as PEFT or glm4v train makes them
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: Prompt,
    #[command(flatten)]
    pub(crate) rendering: Rendering,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// Most tokens to produce
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(crate) max_new_tokens: usize,
    /// Always take the most probable token
    #[arg(long, conflicts_with = "temperature")]
    pub(crate) greedy: bool,
    /// Divide scores by this; 0 is greedy [default: the model's]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Keep the most probable tokens up to this probability [default: the model's]
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Keep this many of the most probable tokens; 0 keeps all [default: the model's]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Drop tokens below this share of the best one's probability [default: the model's]
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Make tokens that were seen less probable; 1 is off [default: the model's]
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Start of the random numbers
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// End the answer where this text appears; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    /// Print one json object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure a model on a data set.
#[derive(Debug, ClapArgs)]
pub(crate) struct Eval {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter folder, as PEFT or glm4v train makes them
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Data set: NAME, NAME:SPLIT, or the path of a .json or .jsonl file
    #[arg(long, value_name = "NAME")]
    pub(crate) data: String,
    /// Folder with dataset_info.json
    #[arg(long, default_value = "datasets", value_name = "DIR")]
    pub(crate) data_folder: PathBuf,
    /// Folder in which pictures are looked for first [default: relative to their file]
    #[arg(long, value_name = "DIR")]
    pub(crate) media_folder: Option<PathBuf>,
    /// Records answered at once
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub(crate) batch_size: usize,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_new_tokens: usize,
    /// Print one json object a record, and one with the totals
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make fresh weights in the published layout.
#[derive(Debug, ClapArgs)]
pub(crate) struct Init {
    /// Folder with config.json, and tokenizer files to take along
    #[arg(long, value_name = "DIR")]
    pub(crate) config: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Start of the random numbers
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Most bytes in a file of weights, as 500MB or 4GiB
    #[arg(long, default_value_t, value_name = "SIZE")]
    pub(crate) shard_size: ShardSize,
}

/// Write a model's weights in another type or in files of another size.
#[derive(Debug, ClapArgs)]
pub(crate) struct Convert {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Most bytes in a file of weights, as 500MB or 4GiB
    #[arg(long, default_value_t, value_name = "SIZE")]
    pub(crate) shard_size: ShardSize,
}

/// Write what enters the text model.
#[derive(Debug, ClapArgs)]
pub(crate) struct Embed {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter folder, as PEFT or glm4v train makes them
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: Prompt,
    #[command(flatten)]
    pub(crate) rendering: Rendering,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Print one json object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Fold an adapter into plain weights.
///
/// Tensors keep their type unless --dtype asks for another; sums are formed in f32.
#[derive(Debug, ClapArgs)]
pub(crate) struct Merge {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter folder, as PEFT or glm4v train makes them
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Most bytes in a file of weights, as 500MB or 4GiB
    #[arg(long, default_value_t, value_name = "SIZE")]
    pub(crate) shard_size: ShardSize,
}

/// Write one forward pass, everything by name.
#[derive(Debug, ClapArgs)]
pub(crate) struct Trace {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter folder, as PEFT or glm4v train makes them
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: Prompt,
    #[command(flatten)]
    pub(crate) rendering: Rendering,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Also write activations inside the network, as mid.*
    #[arg(long)]
    pub(crate) activations: bool,
    /// Also generate this many tokens, greedily
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) max_new_tokens: usize,
}

/// Show devices, or what a model folder holds.
#[derive(Debug, ClapArgs)]
pub(crate) struct Info {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Rows at once, for the estimate of memory
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) batch: usize,
    /// Tokens of a row, picture and answer included
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) length: usize,
    /// Tokens of a row's answer
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) answer: usize,
    /// The picture of a row in pixels, or none
    #[arg(long, default_value = "1024x1024", value_name = "WxH", requires = "model")]
    pub(crate) image: PictureSize,
    /// Rank of adapters on every linear map of the text decoder, or of the vision tower too (all-linear)
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) lora_rank: usize,
    /// Print one json object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PictureSize(pub(crate) Option<(usize, usize)>);

impl FromStr for PictureSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let side = |text: &str| text.parse().ok().filter(|side| (1..=1 << 16).contains(side));
        let sides = text.split_once('x').and_then(|(width, height)| side(width).zip(side(height)));
        sides
            .map(|sides| Self(Some(sides)))
            .ok_or_else(|| "needed: WIDTHxHEIGHT in pixels, or none".to_owned())
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("needed: at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("needed: a number".to_owned()),
    }
}
