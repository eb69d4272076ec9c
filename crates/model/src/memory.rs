//! How much memory a network takes to run and to train.
//!
//! An estimate from the config alone: it counts the tensors that are alive at the moments when most of them are. It follows
//! the code as it is: what a pass keeps for its gradients is said block by block, in the order in which the blocks make it.
//! `tests/suites/memory.rs` holds it to what the allocator hands out for tensors, on one thread and without the workspace
//! of matrix products: that grows with threads and caches. Whole runs took up to a fifth more: `benches/memory`.
//!
//! What is kept for the gradients of a product are its factors, if the other factor learns or leads to something that does;
//! sums keep nothing. Norms, softmax, router and loss compute in f32 whatever the type of the weights.
//!
//! Dimensions: `B` rows, `S` tokens of a row, `T = B · S`, `P` patches of all images, `N` patches of one, `D` width of a
//! stream, `F` width inside a gate, `H` heads, `Hk` key heads, `Dh` width of a head, `V` vocabulary, `E` experts, `k` experts
//! a token, `A` tokens of all answers, `r` rank of adapters.

use crate::batch::Grid;
use crate::config::{Glm4vConfig, MoeConfig};
use crate::glm4v::Glm4v;
use crate::size::Sizes;

/// Bytes of an f32.
const WIDE: u64 = 4;

/// What goes through a network at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// `B`
    pub rows: usize,
    /// `S`, the image's tokens and the answer's included.
    pub length: usize,
    /// How many of them are the answer: trained on in training, generated otherwise.
    pub answer: usize,
    /// The image of every row; none for text alone.
    pub image: Option<Grid>,
}

/// What of a network learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learning {
    /// All weights.
    Full,
    /// Adapters on every linear layer of the text decoder, and of vision tower and merger or of neither: a tower without any is
    /// frozen and keeps nothing.
    Lora {
        /// `r`
        rank: usize,
        /// Parameters of the adapters in the text decoder.
        text: u64,
        /// Parameters of those in vision tower and merger; 0 if there are none.
        vision: u64,
        /// Values of the largest factor.
        largest: u64,
    },
}

impl Learning {
    /// Adapters on every linear layer of a network's text decoder, and with `vision` on those of vision tower and merger too:
    /// what PEFT calls `all-linear`.
    pub fn lora(model: &mut Glm4v, rank: usize, vision: bool) -> Self {
        let (mut in_text, mut in_vision, mut largest) = (0, 0, 0);
        model.for_each_linear(|name, linear| {
            let parameters = match name {
                name if name.starts_with("model.language_model") => &mut in_text,
                name if name.starts_with("model.visual") && vision => &mut in_vision,
                _ => return,
            };
            let widths = [linear.d_input(), linear.d_output()].map(|width| (rank * width) as u64);
            *parameters += widths.iter().sum::<u64>();
            largest = widths.into_iter().fold(largest, u64::max);
        });
        Self::Lora { rank, text: in_text, vision: in_vision, largest }
    }

    /// Whether gradients reach the vision tower.
    fn reaches_vision(self) -> bool {
        !matches!(self, Self::Lora { vision: 0, .. })
    }

    /// `r`, 0 without adapters.
    fn rank(self) -> u64 {
        match self {
            Self::Full => 0,
            Self::Lora { rank, .. } => rank as u64,
        }
    }
}

/// Bytes in use at the moment when most are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// The network's weights.
    pub weights: u64,
    /// Keys and values of all positions.
    pub cache: u64,
    /// AdamW's two moments, and the weights in f32 where the network has them in fewer bits.
    pub optimizer: u64,
    /// Gradients of what learns.
    pub gradients: u64,
    /// What the forward pass keeps for the gradients.
    pub kept: u64,
    /// What is at work for a moment.
    pub working: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.optimizer + self.gradients + self.kept + self.working
    }
}

/// A network with weights of a type, and what goes through it.
#[derive(Debug, Clone, Copy)]
pub struct Estimate<'a> {
    /// The network.
    pub config: &'a Glm4vConfig,
    /// Its parts.
    pub sizes: &'a Sizes,
    /// Bytes of a weight.
    pub bytes: u64,
    /// Whether the CPU computes: attention without gradients goes through its scores in tiles, and products of 16-bit
    /// matrices are formed of copies in f32. Other backends are taken to hold all scores and to copy nothing.
    pub cpu: bool,
    /// What goes through it.
    pub workload: Workload,
}

impl Estimate<'_> {
    /// Bytes of keys and values that one token leaves in the cache.
    pub fn cache_per_token(&self) -> u64 {
        let text = &self.config.text;
        2 * (text.num_hidden_layers * text.num_key_value_heads * text.head_dim) as u64 * self.bytes
    }

    /// Generating the answers of a batch of prompts.
    pub fn generation(&self) -> Memory {
        let weights = self.sizes.total() * self.bytes;
        let cache = self.tokens() * self.cache_per_token();
        let working = self.loading().max(self.encoding(self.cpu)).max(self.prefill()).max(self.choice());
        Memory { weights, cache, working, ..Memory::default() }
    }

    /// A step of training after the first, which is when the optimizer has its state.
    pub fn training(&self, learning: Learning) -> Memory {
        let sizes = self.sizes;
        // Without an image no gradient reaches the vision tower, and what has no gradient gets no state.
        let tower = if self.patches() > 0 { sizes.vision_tower + sizes.merger } else { 0 };
        let text = sizes.embedding + sizes.decoder + sizes.head;
        let (in_tower, in_text, adapters, largest) = match learning {
            Learning::Full => (tower, text, 0, sizes.largest),
            Learning::Lora { text, vision, largest, .. } => {
                (if self.patches() > 0 { vision } else { 0 }, text, text + vision, largest)
            }
        };
        let learns = in_tower + in_text;
        let masters = if self.bytes < WIDE { learns * WIDE } else { 0 };
        let still = Memory {
            weights: (sizes.total() + adapters) * self.bytes,
            optimizer: 2 * learns * WIDE + masters,
            ..Memory::default()
        };
        let (seen, read) = (self.vision_kept(learning), self.text_kept(learning));
        let head = if learning == Learning::Full { text - sizes.decoder - sizes.embedding } else { 0 };
        let gradients = |parameters: u64| parameters * self.bytes;
        // Candidate peaks: the forward pass of a frozen vision tower, with all scores held; the last weights
        // are read; the loss is known; the head has its gradient; the text decoder has all of its own, and the vision tower
        // still what it kept; all gradients are there, and weights move.
        let moments = [
            Memory { working: self.encoding(false), ..still },
            Memory { working: self.loading(), optimizer: 0, ..still },
            Memory { kept: seen + read, working: 2 * self.logits() * WIDE + self.wide_head(), ..still },
            Memory {
                kept: seen + read,
                gradients: gradients(head),
                working: 2 * self.text_scores() * WIDE,
                ..still
            },
            Memory {
                kept: seen,
                gradients: gradients(in_text),
                working: if in_tower > 0 { 2 * self.vision_scores() * WIDE } else { 0 },
                ..still
            },
            Memory { gradients: gradients(learns), working: self.update(largest), ..still },
        ];
        moments.into_iter().max_by_key(Memory::total).unwrap_or_default()
    }

    /// What a forward pass keeps for the gradients.
    pub fn kept(&self, learning: Learning) -> u64 {
        self.vision_kept(learning) + self.text_kept(learning)
    }

    /// `T`
    fn tokens(&self) -> u64 {
        (self.workload.rows * self.workload.length) as u64
    }

    /// `A`
    fn answers(&self) -> u64 {
        (self.workload.rows * self.workload.answer.min(self.workload.length)) as u64
    }

    /// `P`
    fn patches(&self) -> u64 {
        self.workload.rows as u64 * self.workload.image.map_or(0, |grid| grid.patches() as u64)
    }

    /// Scores of the vision tower's attention: `H · N²` a frame.
    fn vision_scores(&self) -> u64 {
        let frame = self.workload.image.map_or(0, |grid| (grid.h * grid.w) as u64);
        self.patches() * frame * self.config.vision.num_heads as u64
    }

    /// Scores of the decoder's attention: `B · H · S²`.
    fn text_scores(&self) -> u64 {
        self.tokens() * (self.workload.length * self.config.text.num_attention_heads) as u64
    }

    /// What vision tower and merger keep: nothing if they are frozen.
    fn vision_kept(&self, learning: Learning) -> u64 {
        if !learning.reaches_vision() || self.patches() == 0 {
            return 0;
        }
        let (vision, bytes, rank) = (&self.config.vision, self.bytes, learning.rank());
        let full = learning == Learning::Full;
        let [d, inner, out, merger] = [
            vision.hidden_size,
            vision.block_intermediate_size,
            vision.out_hidden_size,
            vision.merger_intermediate_size,
        ]
        .map(|width| width as u64);
        let weighed = if full { bytes } else { 0 }; // what a weight that learns is multiplied with
        let norm = (WIDE + weighed) * d; // the stream in f32, and it normalised
        let normed = norm + bytes * d; // and what the map behind it sees
        let attention = 3 * d * bytes + d * bytes; // queries, keys, values; what proj sees
        // In f32 the normalised queries and keys are seen in place, and their values stay beside them.
        let beside = if bytes == WIDE { d * bytes } else { 0 };
        let heads = if vision.qk_norm { 2 * norm + beside } else { 0 };
        let block = self.patches() * (2 * normed + attention + heads + 5 * inner * bytes + 5 * rank * bytes)
            + self.vision_scores() * (2 * WIDE + bytes); // before and after exp, and after the division
        let entrance = if full {
            self.patches()
                * (WIDE * vision.patch_values() as u64 + if vision.learned_positions { norm } else { 0 })
        } else {
            0
        };
        let tokens = self.patches() / vision.merged_patches() as u64;
        let layer_norm = WIDE + if full { WIDE } else { 0 };
        let exit = self.patches() * (norm + weighed * d)
            // what proj sees; the norm; GELU, in f32; what the maps behind it see
            + tokens * (out * (bytes + layer_norm + 3 * WIDE + bytes) + (5 * merger + 4 * rank) * bytes)
            + 4 * d * out * bytes; // the downsampling's weights in another order
        entrance + vision.depth as u64 * block + exit
    }

    /// What the text decoder and the loss keep.
    fn text_kept(&self, learning: Learning) -> u64 {
        let (text, bytes) = (&self.config.text, self.bytes);
        let (full, rank) = (learning == Learning::Full, learning.rank());
        let d = text.hidden_size as u64;
        let q = (text.num_attention_heads * text.head_dim) as u64;
        let kv = 2 * (text.num_key_value_heads * text.head_dim) as u64;
        let norm = d * (WIDE + if full { bytes } else { 0 });
        let sandwich = if text.sandwich_norms { norm } else { 0 };
        let mix = self.tokens() * (norm + d * bytes + (2 * q + kv) * bytes + sandwich + 4 * rank * bytes)
            + self.text_scores() * (2 * WIDE + bytes);
        let feed = |index: usize| {
            let inner = match &text.moe {
                Some(moe) if text.has_experts(index) => self.experts_kept(moe, rank, full),
                Some(_) => 5 * text.intermediate_size as u64 * bytes + 3 * rank * bytes,
                None => 5 * text.intermediate_size as u64 * bytes + 2 * rank * bytes,
            };
            norm + d * bytes + inner + sandwich
        };
        let last = text.num_hidden_layers - 1;
        let feeds: u64 = (0..last).map(|index| self.tokens() * feed(index)).sum();
        let after = self.answers() * (feed(last) + norm + if full { d * bytes } else { 0 });
        text.num_hidden_layers as u64 * mix + feeds + after + self.logits() * WIDE
    }

    /// What the experts keep of a token.
    fn experts_kept(&self, moe: &MoeConfig, rank: u64, full: bool) -> u64 {
        let (d, bytes) = (self.config.text.hidden_size as u64, self.bytes);
        let [inner, chosen, routed, shared] =
            [moe.moe_intermediate_size, moe.num_experts_per_tok, moe.n_routed_experts, moe.n_shared_experts]
                .map(|size| size as u64);
        let router = 2 * routed * WIDE + if full && bytes < WIDE { d * WIDE } else { 0 };
        let expert = d * bytes + 5 * inner * bytes + d * WIDE + 2 * rank * bytes;
        router + chosen * expert + 5 * shared * inner * bytes + 3 * rank * bytes
    }

    /// Scores of label tokens: `A · V`.
    fn logits(&self) -> u64 {
        self.answers() * self.config.text.vocab_size as u64
    }

    /// At work while the largest tensor is read: its bytes, beside the tensor made of them.
    fn loading(&self) -> u64 {
        if self.cpu { self.sizes.largest * self.bytes } else { 0 }
    }

    /// At work while the largest parameter moves, in f32.
    fn update(&self, largest: u64) -> u64 {
        let copies = if self.bytes < WIDE { 2 } else { 1 };
        copies * largest * WIDE
    }

    /// At work while the vision tower encodes; in `tiles`, or with the scores and their exponents whole.
    fn encoding(&self, tiles: bool) -> u64 {
        let (vision, bytes) = (&self.config.vision, self.bytes);
        let (d, inner) = (vision.hidden_size as u64, vision.block_intermediate_size as u64);
        let entrance = (2 * WIDE * vision.patch_values() as u64) + d * bytes; // the batch's values are copied
        let rotated = 4 * d * WIDE; // queries and keys, turned in f32
        let attention = self.patches() * (11 * d * bytes + rotated);
        let feed = self.patches() * ((2 * d + 3 * inner) * bytes + self.widened(d + inner));
        let scores = if tiles { 0 } else { 2 * self.vision_scores() * WIDE };
        (self.patches() * entrance).max(attention + scores).max(feed)
    }

    /// At work while the decoder reads the prompt.
    fn prefill(&self) -> u64 {
        let (text, bytes) = (&self.config.text, self.bytes);
        let [d, q, inner, rotary] = [
            text.hidden_size,
            text.num_attention_heads * text.head_dim,
            text.intermediate_size,
            2 * text.head_dim,
        ]
        .map(|width| width as u64);
        let stream = 2 * d + rotary;
        let attention = (stream + 5 * q) * bytes + self.widened(4 * q);
        let feed = match &text.moe {
            // What all experts say, in two orders, beside what is computed.
            Some(moe) => {
                let said = 2 * (moe.num_experts_per_tok as u64) * d;
                (stream + 3 * inner).max(stream + said) * bytes + self.widened(d + inner)
            }
            None => (stream + 4 * inner) * bytes + self.widened(d + 2 * inner),
        };
        let prompt = self.tokens() - self.answers();
        let scores = if self.cpu { 0 } else { 2 * self.text_scores() * WIDE };
        let weight = self.turned(2 * inner * d);
        (prompt * attention + scores).max(prompt * feed) + weight
    }

    /// At work while a token is chosen: its scores, and copies of them.
    fn choice(&self) -> u64 {
        3 * (self.workload.rows * self.config.text.vocab_size) as u64 * WIDE + self.wide_head()
    }

    /// The head's weights, as the CPU multiplies with them.
    fn wide_head(&self) -> u64 {
        self.turned((self.config.text.vocab_size * self.config.text.hidden_size) as u64)
    }

    /// Bytes of a weight of so many values that the CPU puts in the order of its product before it copies it into f32.
    fn turned(&self, values: u64) -> u64 {
        if self.cpu && self.bytes < WIDE { values * (WIDE + self.bytes) } else { 0 }
    }

    /// Bytes of values that the CPU copies into f32 to multiply.
    fn widened(&self, values: u64) -> u64 {
        if self.cpu && self.bytes < WIDE { values * WIDE } else { 0 }
    }
}
