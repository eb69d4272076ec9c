//! The whole network.
//!
//! Source: transformers 5.23, `modeling_glm4v.py`, `modeling_glm4v_moe.py`, `modeling_glm_ocr.py`, each's
//! `ForConditionalGeneration`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` width of the text stream, `V` vocabulary, `N` picked positions.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};

use crate::batch::{Batch, Patches};
use crate::cache::Cache;
use crate::config::Glm4vConfig;
use crate::fusion::{Features, FusionError, check_patches, check_prompts, fuse};
use crate::linear::{Linear, LinearConfig};
use crate::positions::Positions;
use crate::probe::Probe;
use crate::site::Site;
use crate::text::TextModel;
use crate::vision::VisionTower;

/// A GLM4V model: images and text in, scores of the next token out.
#[derive(Module, Debug)]
pub struct Glm4v {
    /// Vision tower and text decoder.
    pub model: Glm4vModel,
    /// `D -> V`; none if the embedding table serves as head.
    pub lm_head: Option<Linear>,
    /// What it was built from.
    #[module(skip)]
    pub config: Glm4vConfig,
}

/// Vision tower and text decoder, as checkpoints group them.
#[derive(Module, Debug)]
pub struct Glm4vModel {
    /// Patches to tokens.
    pub visual: VisionTower,
    /// Tokens to hidden states.
    pub language_model: TextModel,
}

/// Everything that enters the text decoder.
#[derive(Debug)]
pub struct TextInput {
    /// Embeddings with the features of images in place, `[B, S, D]`.
    pub embeds: Tensor<3>,
    /// Positions of every token, and what decoding adds later.
    pub positions: Positions,
    /// False where a row is padded, `[B, S]` row-major.
    pub real: Vec<bool>,
}

impl Glm4vConfig {
    /// Builds the network; its weights wait for [`initialize`](crate::initialize) or a checkpoint.
    ///
    /// Build it on an autodiff device to train it.
    pub fn init(&self, device: &Device) -> Glm4v {
        self.init_on(&Site::unbounded(device))
    }

    /// As [`init`](Self::init), with matrices in pieces where the site bounds the size of a tensor.
    pub fn init_on(&self, site: &Site) -> Glm4v {
        let head = LinearConfig::new(self.text.hidden_size, self.text.vocab_size);
        Glm4v {
            model: Glm4vModel {
                visual: VisionTower::init(&self.vision, site),
                language_model: TextModel::init(&self.text, site),
            },
            lm_head: (!self.tie_word_embeddings).then(|| head.init(site)),
            config: self.clone(),
        }
    }
}

impl Glm4v {
    /// Where the network lives.
    pub fn device(&self) -> Device {
        self.model.language_model.norm.weight.device()
    }

    /// Type of the weights, and so of the activations.
    pub fn dtype(&self) -> DType {
        self.model.language_model.norm.weight.val().dtype()
    }

    /// Room for `capacity` positions of `rows` sequences.
    pub fn cache(&self, rows: usize, capacity: usize) -> Cache {
        Cache::new(&self.config.text, rows, capacity, &self.device(), self.dtype())
    }

    /// Encodes the images of a batch and puts them into the embedded prompts.
    ///
    /// # Errors
    ///
    /// When prompts and images do not belong together.
    pub fn embed(&self, batch: &Batch, probe: &mut Probe) -> Result<TextInput, FusionError> {
        check_prompts(batch, &self.config)?; // before the tower runs
        let features = self.encode(batch, probe)?;
        self.embed_features(batch, features)
    }

    /// Runs the vision tower over the images of a batch.
    ///
    /// # Errors
    ///
    /// When values and grids of the batch disagree.
    pub fn encode(&self, batch: &Batch, probe: &mut Probe) -> Result<Features, FusionError> {
        check_patches(batch, &self.config)?;
        let mut encode = |patches: &Patches| {
            (!patches.grids.is_empty()).then(|| self.model.visual.forward(patches, probe))
        };
        Ok(Features { images: encode(&batch.images), videos: encode(&batch.videos) })
    }

    /// Puts features, of this model's tower or made earlier, into the embedded prompts.
    ///
    /// Of the batch's images only the grids are looked at.
    ///
    /// # Errors
    ///
    /// When prompts and features do not belong together.
    pub fn embed_features(&self, batch: &Batch, features: Features) -> Result<TextInput, FusionError> {
        check_prompts(batch, &self.config)?;
        features.check(batch, &self.config)?;
        let positions = Positions::of(batch, self.config.vision.spatial_merge_size)?;
        let embeds = self.embed_tokens(batch);
        Ok(TextInput {
            embeds: fuse(embeds, features.images, features.videos, &batch.kinds),
            positions,
            real: batch.attention_mask.clone(),
        })
    }

    /// Looks tokens up; the padding token's vector gets no gradient (`padding_idx`).
    fn embed_tokens(&self, batch: &Batch) -> Tensor<3> {
        let embeds = self.model.language_model.embed_tokens.forward(&batch.input_ids, batch.shape);
        let Some(pad) = self.config.text.pad_token_id else {
            return embeds;
        };
        let [rows, width] = batch.shape;
        // Padding, and the last token of a row, influence no loss: only a padding token amid a row needs care.
        let amid = |slot: usize| {
            batch.input_ids[slot] == pad
                && batch.attention_mask[slot]
                && !(slot + 1).is_multiple_of(width)
                && batch.attention_mask[slot + 1]
        };
        if !embeds.is_autodiff() || !(0..rows * width).any(amid) {
            return embeds;
        }
        let mask: Vec<bool> = batch.input_ids.iter().map(|id| *id == pad).collect();
        let mask = Tensor::<3, Bool>::from_data(TensorData::new(mask, [rows, width, 1]), &embeds.device());
        let fixed = embeds.clone().detach();
        embeds.clone().mask_where(mask.expand(embeds.dims()), fixed)
    }

    /// Runs the text decoder.
    ///
    /// # Shapes
    ///
    /// - output: `[B, S, D]`, after the last norm
    pub fn decode(&self, input: TextInput, cache: Option<&mut Cache>, probe: &mut Probe) -> Tensor<3> {
        self.model.language_model.forward(input.embeds, &input.positions, &input.real, cache, probe)
    }

    /// Runs the text decoder for the hidden states of chosen positions alone.
    ///
    /// `slots` are indices into the `[B, S]` positions, row-major.
    ///
    /// # Shapes
    ///
    /// - output: `[N, D]`, after the last norm
    pub fn decode_at(
        &self,
        input: TextInput,
        slots: &[usize],
        cache: Option<&mut Cache>,
        probe: &mut Probe,
    ) -> Tensor<2> {
        let TextInput { embeds, positions, real } = input;
        self.model.language_model.forward_at(embeds, &positions, &real, slots, cache, probe)
    }

    /// Scores of the next token for hidden states.
    ///
    /// # Shapes
    ///
    /// - hidden: `[.., D]`
    /// - output: `[.., V]`
    pub fn head<const N: usize>(&self, hidden: Tensor<N>) -> Tensor<N> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => self.model.language_model.embed_tokens.weight.project(hidden, None),
        }
    }

    /// Scores of the next token at every position of a batch.
    ///
    /// # Shapes
    ///
    /// - output: `[B, S, V]`; without meaning where a row is padded
    ///
    /// # Errors
    ///
    /// When prompts and images do not belong together.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor<3>, FusionError> {
        let mut probe = Probe::off();
        let input = self.embed(batch, &mut probe)?;
        Ok(self.head(self.decode(input, None, &mut probe)))
    }

    /// Scores at chosen positions only: the head is the widest layer, and most positions of a training batch teach
    /// nothing.
    ///
    /// `slots` are indices into the `[B, S]` positions, row-major.
    ///
    /// # Shapes
    ///
    /// - output: `[N, V]`
    ///
    /// # Errors
    ///
    /// When prompts and images do not belong together.
    pub fn forward_at(&self, batch: &Batch, slots: &[usize]) -> Result<Tensor<2>, FusionError> {
        let mut probe = Probe::off();
        let input = self.embed(batch, &mut probe)?;
        Ok(self.head(self.decode_at(input, slots, None, &mut probe)))
    }

    /// Scores of the token after `ids`, one new token a row, decoded after a prompt.
    ///
    /// `deltas` are those of the prompt's [`Positions`].
    ///
    /// # Shapes
    ///
    /// - output: `[B, V]`
    pub fn step(&self, ids: &[u32], deltas: &[i64], cache: &mut Cache) -> Tensor<2> {
        let rows = ids.len();
        let positions = Positions::following(&cache.tokens(), deltas);
        let input = TextInput {
            embeds: self.model.language_model.embed_tokens.forward(ids, [rows, 1]),
            positions,
            real: vec![true; rows],
        };
        let slots: Vec<usize> = (0..rows).collect();
        self.head(self.decode_at(input, &slots, Some(cache), &mut Probe::off()))
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::batch::{PaddingSide, Sample};
    use crate::init::initialize;
    use burn::tensor::Tolerance;

    const IMAGE: u32 = 44;

    fn model() -> Glm4v {
        // Larger than usual, so that every path matters.
        let mut config = Glm4vConfig::tiny();
        config.text.initializer_range = 0.2;
        config.vision.initializer_range = 0.2;
        initialize(config.init(&Device::flex()), 1, DType::F32)
    }

    /// A prompt of text around one image of `h` x `w` patches.
    fn prompt(before: &[u32], [h, w]: [usize; 2], after: &[u32], brightness: f32) -> Sample {
        let tokens = h * w / 4;
        let ids = [before, &vec![IMAGE; tokens], after].concat();
        let mut kinds = vec![0; ids.len()];
        kinds[before.len()..before.len() + tokens].fill(1);
        let values = (0..h * w * 96).map(|i| ((i * 7 % 31) as f32 / 31.0 - 0.5) * brightness).collect();
        Sample::from_parts(ids, &kinds, vec![], (values, &[[1, h, w]]), (vec![], &[]))
    }

    fn pair() -> [Sample; 2] {
        [prompt(&[1, 2, 3], [4, 2], &[4, 5, 6, 7], 1.0), prompt(&[9], [2, 2], &[8], 2.0)]
    }

    fn close(a: Tensor<2>, b: Tensor<2>) {
        a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::absolute(1e-4));
    }

    fn last_logits(model: &Glm4v, sample: &Sample) -> Tensor<2> {
        let batch = Batch::collate(std::slice::from_ref(sample), 0, PaddingSide::Left);
        model.forward_at(&batch, &[batch.shape[1] - 1]).unwrap()
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_a_batch_whatever_the_padding() {
        let (model, pair) = (model(), pair());

        for side in [PaddingSide::Left, PaddingSide::Right] {
            let batch = Batch::collate(&pair, 0, side);
            let width = batch.shape[1];
            for (row, sample) in pair.iter().enumerate() {
                let length = sample.input_ids.len();
                let last = row * width + if side == PaddingSide::Left { width } else { length } - 1;
                close(model.forward_at(&batch, &[last]).unwrap(), last_logits(&model, sample));
            }
        }
    }

    #[test]
    fn scores_at_chosen_positions_are_those_of_the_whole_sequence() {
        let model = model();
        let batch = Batch::collate(&pair(), 0, PaddingSide::Right);
        let [rows, width] = batch.shape;
        let slots = [2, width + 1, 0];

        let whole = model.forward(&batch).unwrap().reshape([rows * width, 50]);

        let picked = slots.iter().map(|slot| whole.clone().narrow(0, *slot, 1)).collect();
        close(model.forward_at(&batch, &slots).unwrap(), Tensor::cat(picked, 0));
    }

    #[test]
    fn cached_decoding_equals_the_whole_sequence() {
        let (model, mut pair) = (model(), pair());
        let batch = Batch::collate(&pair, 0, PaddingSide::Left);
        let mut cache = model.cache(2, batch.shape[1] + 3);
        let mut probe = Probe::off();
        let input = model.embed(&batch, &mut probe).unwrap();
        let deltas = input.positions.deltas.clone();
        model.decode(input, Some(&mut cache), &mut probe);

        for next in [[10, 11], [12, 13], [14, 15]] {
            let step = model.step(&next, &deltas, &mut cache);
            for (row, sample) in pair.iter_mut().enumerate() {
                sample.input_ids.push(next[row]);
                sample.kinds.push(Default::default());
                close(step.clone().narrow(0, row, 1), last_logits(&model, sample));
            }
        }
    }

    #[test]
    fn every_patch_reaches_the_answer_and_only_its_own() {
        let model = model();
        let scores = |pair: &[Sample; 2], row: usize| {
            let batch = Batch::collate(pair, 0, PaddingSide::Left);
            let scores = model.forward_at(&batch, &[(row + 1) * batch.shape[1] - 1]).unwrap();
            scores.into_data().try_to_vec::<f32>().unwrap()
        };
        let before = pair();
        for patch in 0..8 {
            let mut changed = pair();
            changed[0].images.values[patch * 96..][..96].fill(1.5);

            let moved = |row| {
                let (a, b) = (scores(&before, row), scores(&changed, row));
                a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            assert!(moved(0) > 1e-4, "patch {patch} moves its own row by {}", moved(0));
            assert!(moved(1) < 1e-5, "patch {patch} moves the other row by {}", moved(1));
        }
    }

    #[test]
    fn a_prompt_with_another_number_of_placeholders_is_refused_with_both_counts() {
        let mut sample = prompt(&[1], [4, 2], &[2], 1.0);
        sample.input_ids.push(IMAGE);
        sample.kinds.push(crate::TokenKind::Image);

        let error = model().forward(&Batch::collate(&[sample], 0, PaddingSide::Left)).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the prompts have 3 image placeholders, but the images of the batch take 2 tokens"
        );
    }

    #[test]
    fn a_token_beyond_the_vocabulary_is_refused() {
        let sample = prompt(&[1, 50], [2, 2], &[2], 1.0);

        let error = model().forward(&Batch::collate(&[sample], 0, PaddingSide::Left)).unwrap_err();

        assert_eq!(error.to_string(), "row 0, token 1: id 50, but the vocabulary has 50 entries");
    }
}
