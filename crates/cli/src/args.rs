//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use glm4v_model::{Backend, DeviceError, Precision};
use glm4v_selftest::Part;
use glm4v_train::FreezeTarget;
use glm4v_weights::ShardSize;

use crate::threads::MAX_THREADS;

/// Load, train and run GLM's vision-language models.
#[derive(Debug, Parser)]
#[command(name = "glm4v", version, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Flags that all commands share.
#[derive(Debug, ClapArgs)]
pub(crate) struct Global {
    /// Backend: auto, cpu, wgpu or cuda; cuda:1 selects the second device
    #[arg(long, global = true, default_value = "auto", value_name = "NAME")]
    pub(crate) backend: Backend,
    /// Data type of weights and activations: f32, bf16 or f16 [default: f32 on cpu and wgpu, bf16 on cuda; convert: keep]
    #[arg(long, global = true, value_name = "TYPE")]
    pub(crate) dtype: Option<Dtype>,
    /// Threads of the CPU backend [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_THREADS)))]
    pub(crate) threads: Option<u16>,
    /// Increase verbosity; -vv for debug output
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print only results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Parse the command line and the config of a run, and do nothing else: a check of documented commands
    #[arg(long, global = true, hide = true)]
    pub(crate) parse_only: bool,
}

/// Value of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// The stored data types, for commands that rewrite checkpoints.
    Keep,
    /// One data type for all tensors.
    Precision(Precision),
}

impl FromStr for Dtype {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        if text == "keep" { Ok(Self::Keep) } else { text.parse().map(Self::Precision) }
    }
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a model as configured by a TOML file
    Train(Train),
    /// Generate a response to a prompt with images or videos
    Generate(Generate),
    /// Evaluate a model on a dataset: loss and exact match
    Eval(Eval),
    /// Show or check what a dataset teaches
    Data(Data),
    /// Initialize a model directory with random weights
    Init(Init),
    /// Save the decoder's input embeddings, position ids and image embeddings
    Embed(Embed),
    /// Convert a model to another data type or shard size
    Convert(Convert),
    /// Merge a LoRA adapter into the base weights
    Merge(Merge),
    /// Dump the tensors of one forward pass
    Trace(Trace),
    /// Show devices, or the size and memory requirements of a model
    Info(Info),
    /// Check that this device computes what transformers computes
    Selftest(Selftest),
    /// Measure speed and memory on this machine
    Bench(Bench),
    /// Choose and compile kernels of a GPU ahead of the first run
    Warmup(Warmup),
    /// Generate shell completions
    Completions(Completions),
    /// Print the man page, or write one for every command
    Man(Man),
}

/// Check that this device computes what transformers computes.
///
/// Tiny networks whose results are part of this program: no model, no file, no network. Exit code 1 if a number is wrong.
#[derive(Debug, ClapArgs)]
pub(crate) struct Selftest {
    /// Run this part alone; may be repeated [default: all]
    #[arg(long = "part", value_name = "NAME", value_parser = part_names())]
    pub(crate) parts: Vec<Part>,
    /// Print one JSON object per line: device, comparisons, result
    #[arg(long)]
    pub(crate) json: bool,
}

fn part_names() -> impl TypedValueParser<Value = Part> {
    PossibleValuesParser::new(Part::ALL.map(Part::name)).try_map(|name| name.parse::<Part>())
}

/// Generate shell completions.
#[derive(Debug, ClapArgs)]
pub(crate) struct Completions {
    /// Shell to generate completions for
    pub(crate) shell: Shell,
}

/// Print the man page, or write one for every command.
#[derive(Debug, ClapArgs)]
pub(crate) struct Man {
    /// Output directory for glm4v.1, glm4v-train.1 and so on
    #[arg(long, value_name = "DIR")]
    pub(crate) out_dir: Option<PathBuf>,
}

/// Fine-tune a model as configured by a TOML file.
#[derive(Debug, ClapArgs)]
pub(crate) struct Train {
    /// Config of the run, a TOML file; see configs/finetune
    pub(crate) config: PathBuf,
    /// Override a config value, as in --set optim.lr=1e-4; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Resume from the newest checkpoint in the run directory
    #[arg(long)]
    pub(crate) resume: bool,
}

/// Prompt: text with images and videos, or a conversation.
#[derive(Debug, ClapArgs)]
#[group(skip)]
#[command(group(ArgGroup::new("question").required(true).args(["prompt", "messages"])))]
pub(crate) struct Prompt {
    /// Text of the user message
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// An image for the prompt: a path or URL; may be repeated
    #[arg(long = "image", value_name = "FILE", requires = "prompt", conflicts_with = "messages")]
    pub(crate) images: Vec<String>,
    /// A video for the prompt: a video file, an animation, or a directory of images; may be repeated
    #[arg(long = "video", value_name = "FILE", requires = "prompt", conflicts_with = "messages")]
    pub(crate) videos: Vec<String>,
    /// A conversation: a JSON file of [{"role", "content"}, …]
    #[arg(long, value_name = "FILE")]
    pub(crate) messages: Option<PathBuf>,
}

/// Preprocessing of images, videos and text.
#[derive(Debug, ClapArgs)]
pub(crate) struct Inputs {
    /// Minimum pixels per image, counted over both frames of a temporal patch [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) min_pixels: Option<usize>,
    /// Maximum pixels per image, counted over both frames of a temporal patch; 1568 per token [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_pixels: Option<usize>,
    /// Maximum pixels per video, over all sampled frames; 1568 per token [default: the model's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_video_pixels: Option<usize>,
    /// Frames per second of image sequences [default: all frames are used]
    #[arg(long, value_name = "FPS")]
    pub(crate) frame_rate: Option<f64>,
    /// Allow images and videos from http:// and https:// URLs
    #[arg(long)]
    pub(crate) allow_http: bool,
    /// Parse special tokens in message text, such as <|user|> and <|image|> (allows prompt injection)
    #[arg(long)]
    pub(crate) allow_special_tokens: bool,
}

/// Chat template options.
#[derive(Debug, ClapArgs)]
pub(crate) struct Rendering {
    /// Enable thinking [default: the model's]
    #[arg(long, value_name = "SWITCH")]
    pub(crate) thinking: Option<Switch>,
    /// Tool definitions: a JSON file with a list of schemas
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

/// Generate a response to a prompt with images or videos.
#[derive(Debug, ClapArgs)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Generate {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter directory (PEFT format), or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: Prompt,
    #[command(flatten)]
    pub(crate) rendering: Rendering,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// Maximum number of new tokens
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(crate) max_new_tokens: usize,
    /// Greedy decoding
    #[arg(long, conflicts_with = "temperature")]
    pub(crate) greedy: bool,
    /// Sampling temperature; 0 selects greedy decoding [default: the model's]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Nucleus sampling (top-p) [default: the model's]
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Top-k sampling; 0 disables it [default: the model's]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Min-p sampling: minimum probability relative to the most likely token [default: the model's]
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Repetition penalty; 1 disables it [default: the model's]
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Stop string; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Evaluate a model on a dataset.
#[derive(Debug, ClapArgs)]
pub(crate) struct Eval {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter directory (PEFT format), or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Dataset: NAME, NAME:SPLIT, or the path of a .json or .jsonl file
    #[arg(long, value_name = "NAME")]
    pub(crate) data: String,
    /// Directory with dataset_info.json
    // The alias is the original name, which comparison scripts outside of this repository still use.
    #[arg(long, alias = "data-folder", default_value = "datasets", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Directory in which images and videos are looked up first [default: relative to their file]
    #[arg(long, value_name = "DIR")]
    pub(crate) media_dir: Option<PathBuf>,
    /// Batch size
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub(crate) batch_size: usize,
    /// Maximum number of new tokens per answer
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_new_tokens: usize,
    /// Print one JSON object per record, and one with the totals
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show or check what a dataset teaches.
#[derive(Debug, ClapArgs)]
pub(crate) struct Data {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

/// Subcommands of `data`.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Show records as the model sees them, with the tokens that carry loss
    Show(DataShow),
    /// Check every record as training reads it, and the dataset as a whole
    Check(DataCheck),
}

/// A dataset, and the model that reads it.
#[derive(Debug, ClapArgs)]
pub(crate) struct DataInput {
    /// Dataset: NAME, NAME:SPLIT, or the path of a .json or .jsonl file
    #[arg(value_name = "NAME")]
    pub(crate) data: String,
    /// Model directory, or ORG/NAME in the Hugging Face cache; its weights are not read
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Directory with dataset_info.json
    #[arg(long, default_value = "datasets", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Directory in which images and videos are looked up first [default: relative to their file]
    #[arg(long, value_name = "DIR")]
    pub(crate) media_dir: Option<PathBuf>,
    /// What carries loss, as data.loss in the config of a run
    #[arg(long, default_value = "assistant", value_name = "WHAT")]
    pub(crate) loss: Loss,
    /// Enable thinking [default: the model's]
    #[arg(long, value_name = "SWITCH")]
    pub(crate) thinking: Option<Switch>,
}

/// Value of `--loss`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loss {
    /// Every turn of the assistant, and the token that ends it
    Assistant,
    /// The last turn of the assistant
    Last,
    /// The whole text
    All,
}

/// Show records as the model sees them.
///
/// Label tokens are colored, or without colors between the marks ⟦ and ⟧; the placeholders of an image are one mark with its grid and
/// its size.
#[derive(Debug, ClapArgs)]
pub(crate) struct DataShow {
    #[command(flatten)]
    pub(crate) input: DataInput,
    /// Indices of records, from 0 in the order of the file
    #[arg(value_name = "INDEX", default_value = "0")]
    pub(crate) indices: Vec<usize>,
    /// Also write a page with the images to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Print one JSON object per record
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check every record as training reads it, and the dataset as a whole.
///
/// Every image and video is decoded; placeholders, patches and grids must agree, the labels must spell the answers, and nothing may be
/// longer than --max-length. All splits of NAME are checked, and must not overlap. Exit code 1 if a record fails.
#[derive(Debug, ClapArgs)]
pub(crate) struct DataCheck {
    #[command(flatten)]
    pub(crate) input: DataInput,
    /// Maximum number of tokens of a record [default: the model's max_position_embeddings]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_length: Option<usize>,
    /// Tokens to which an image may be shrunk, for the count of records that would fit
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub(crate) min_image_tokens: usize,
    /// Another dataset that must not overlap; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) against: Vec<String>,
    /// Also fail on duplicates, overlaps, and answers without text or the same for most records
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print one JSON object per dataset
    #[arg(long)]
    pub(crate) json: bool,
}

/// Initialize a model directory with random weights.
#[derive(Debug, ClapArgs)]
pub(crate) struct Init {
    /// Directory with config.json and tokenizer files, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) config: PathBuf,
    /// Output directory; must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Maximum size of a weight file, such as 500MB or 4GiB
    #[arg(long, default_value_t, value_name = "SIZE")]
    pub(crate) shard_size: ShardSize,
}

/// Convert a model to another data type or shard size.
#[derive(Debug, ClapArgs)]
pub(crate) struct Convert {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Output directory; must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Maximum size of a weight file, such as 500MB or 4GiB
    #[arg(long, default_value_t, value_name = "SIZE")]
    pub(crate) shard_size: ShardSize,
}

/// Save the decoder's input embeddings, position ids and image embeddings.
#[derive(Debug, ClapArgs)]
pub(crate) struct Embed {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter directory (PEFT format), or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: Prompt,
    #[command(flatten)]
    pub(crate) rendering: Rendering,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// Output file (safetensors)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Merge a LoRA adapter into the base weights.
///
/// Tensors keep their data type unless --dtype is given; sums are computed in f32.
#[derive(Debug, ClapArgs)]
pub(crate) struct Merge {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter directory (PEFT format), or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// Output directory; must not exist
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Maximum size of a weight file, such as 500MB or 4GiB
    #[arg(long, default_value_t, value_name = "SIZE")]
    pub(crate) shard_size: ShardSize,
}

/// Dump the tensors of one forward pass.
#[derive(Debug, ClapArgs)]
pub(crate) struct Trace {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Adapter directory (PEFT format), or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: Prompt,
    #[command(flatten)]
    pub(crate) rendering: Rendering,
    #[command(flatten)]
    pub(crate) inputs: Inputs,
    /// Output file (safetensors)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Also save intermediate activations, as mid.*
    #[arg(long)]
    pub(crate) activations: bool,
    /// Also save the attention weights of the text decoder, as attentions.{layer}
    #[arg(long)]
    pub(crate) attentions: bool,
    /// Also generate this many tokens with greedy decoding
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) max_new_tokens: usize,
}

/// Show devices, or the size and memory requirements of a model.
#[derive(Debug, ClapArgs)]
pub(crate) struct Info {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Batch size of the memory estimate
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) batch_size: usize,
    /// Sequence length, image and new tokens included
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) seq_len: usize,
    /// New tokens per sequence
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) max_new_tokens: usize,
    /// Image size per sequence in pixels, or none
    #[arg(long, default_value = "1024x1024", value_name = "WxH", requires = "model")]
    pub(crate) image_size: ImageSize,
    /// LoRA rank, for adapters on the text decoder and on all linear layers
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = at_least_one, requires = "model")]
    pub(crate) lora_rank: usize,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measure speed and memory on this machine.
///
/// The copy bandwidth and the matrix product rate of the device are measured first. Each workload then shows its median time with
/// minimum and maximum, and the share that the least possible work (weights read once, matrix products) has of that time at these
/// rates. Lists, such as --batch-size 1,8, measure every combination. Without a model, the device alone is measured.
#[derive(Debug, ClapArgs)]
#[command(group(ArgGroup::new("network").args(["model", "config"])))]
pub(crate) struct Bench {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Config without weights: config.json or its directory; random weights are made on the device
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_value = "all", requires = "network")]
    pub(crate) workload: Vec<BenchWorkload>,
    /// Image size in pixels, rounded to whole tokens, or none
    #[arg(long, value_delimiter = ',', default_value = "448x448", value_name = "WxH", requires = "network")]
    pub(crate) image_size: Vec<ImageSize>,
    /// Tokens of text in a prompt, beside those of the image
    #[arg(long, value_delimiter = ',', default_value = "64", value_name = "N", value_parser = at_least_one, requires = "network")]
    pub(crate) text_tokens: Vec<usize>,
    /// Positions in the cache before the first decoded token
    #[arg(long, value_delimiter = ',', default_value = "256", value_name = "N", value_parser = at_least_one, requires = "network")]
    pub(crate) decode_depth: Vec<usize>,
    /// Measured tokens of decode
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one, requires = "network")]
    pub(crate) decode_tokens: usize,
    /// Batch size
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N", value_parser = at_least_one, requires = "network")]
    pub(crate) batch_size: Vec<usize>,
    /// What train updates
    #[arg(long, value_delimiter = ',', default_value = "full,lora", requires = "network")]
    pub(crate) method: Vec<BenchMethod>,
    /// Parts that --method full does not train, by their names in model.freeze of a run's config
    #[arg(long, value_delimiter = ',', value_name = "PART", value_parser = freeze_target, requires = "network")]
    pub(crate) freeze: Vec<FreezeTarget>,
    /// LoRA rank
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = at_least_one, requires = "network")]
    pub(crate) lora_rank: usize,
    /// Tokens at the end of a row that carry loss in training
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one, requires = "network")]
    pub(crate) labels: usize,
    /// Image file for preprocess, which then includes decoding [default: a generated image, without decoding]
    #[arg(long, value_name = "FILE", requires = "network")]
    pub(crate) image: Option<PathBuf>,
    /// Measured rounds
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = at_least_one)]
    pub(crate) rounds: usize,
    /// Rounds before the first measured one
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) warmup: usize,
    /// Do not measure the device first; shares are then not shown
    #[arg(long, requires = "network")]
    pub(crate) no_ceilings: bool,
    /// Also list this many kernels with the largest time, on GPU backends
    #[arg(long, default_value_t = 0, value_name = "N", requires = "network")]
    pub(crate) kernels: usize,
    /// Random seed of weights and inputs
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// Choose and compile kernels of a GPU ahead of the first run.
///
/// Runs the parts of a model over images and prompts of several sizes. With the feature kernel-cache, what was compiled, and with
/// autotune what was chosen, is kept in $XDG_CACHE_HOME/glm4v or ~/.cache/glm4v, and used by all later runs with this device, driver
/// and version.
#[derive(Debug, ClapArgs)]
#[command(group(ArgGroup::new("network").args(["model", "config"]).required(true)))]
pub(crate) struct Warmup {
    /// Model directory, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Config without weights: config.json or its directory; random weights are made on the device
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Image size in pixels, rounded to whole tokens, or none
    #[arg(long, value_delimiter = ',', default_value = "224x224,448x448,896x896", value_name = "WxH")]
    pub(crate) image_size: Vec<ImageSize>,
    /// Tokens of text in a prompt, beside those of the image
    #[arg(long, value_delimiter = ',', default_value = "16,128,1024", value_name = "N", value_parser = at_least_one)]
    pub(crate) text_tokens: Vec<usize>,
    /// Batch size
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N", value_parser = at_least_one)]
    pub(crate) batch_size: Vec<usize>,
    /// Also take a training step that updates this [default: none]
    #[arg(long, value_delimiter = ',')]
    pub(crate) method: Vec<BenchMethod>,
    /// Begin with an empty cache
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// A part of a model's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum BenchWorkload {
    /// Reading the weights of a model directory
    Load,
    /// Images to patches, on the processor
    Preprocess,
    /// Patches to image embeddings
    Vision,
    /// Prompt to the logits of the next token, after the vision tower
    Prefill,
    /// One more token
    Decode,
    /// A training step
    Train,
    /// All of these
    All,
}

/// What a training step updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchMethod {
    /// All weights, without those of --freeze
    Full,
    /// LoRA adapters
    Lora,
}

fn freeze_target(text: &str) -> Result<FreezeTarget, String> {
    FreezeTarget::from_name(text)
        .ok_or_else(|| format!("needed: one of {}", FreezeTarget::ALL.map(FreezeTarget::name).join(", ")))
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageSize(pub(crate) Option<(usize, usize)>);

impl FromStr for ImageSize {
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
