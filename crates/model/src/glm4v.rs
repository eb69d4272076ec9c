//! The whole network.
//!
//! Source: transformers 5.23, `modeling_glm4v.py`, `modeling_glm4v_moe.py`, `modeling_glm_ocr.py`, each's
//! `ForConditionalGeneration`.
//!
//! Dimensions: `B` rows, `S` sequence length, `D` hidden size, `V` vocabulary size, `N` chosen positions.

use burn::prelude::*;
use burn::tensor::TensorData;
use glm4v_inputs::Batch;

use crate::causal_lm::CausalLm;
use crate::config::{Glm4vConfig, TextConfig};
use crate::device::DeviceError;
use crate::device::device_spec::DeviceSpec;
use crate::multimodal::{
    ModelInputError, MultimodalEmbeddings, check_patches, check_prompts, check_values,
    merge_multimodal_embeddings,
};
use crate::nn::linear::{Linear, LinearConfig};
use crate::nn::positions::PositionIds;
use crate::nn::recorder::ActivationRecorder;
use crate::params::named::param_infos;
use crate::text::{DecoderInput, TextModel};
use crate::vision::VisionTower;

/// A GLM-4V model: images and text to logits of the next token.
#[derive(Module, Debug)]
pub struct Glm4v {
    /// Vision tower and text decoder.
    pub model: Glm4vModel,
    /// `D -> V`; none if the token embeddings serve as head.
    pub lm_head: Option<Linear>,
    /// The config it was built from.
    #[module(skip)]
    pub config: Glm4vConfig,
}

/// Vision tower and text decoder, as checkpoints group them.
#[derive(Module, Debug)]
pub struct Glm4vModel {
    /// Patches to embeddings.
    pub visual: VisionTower,
    /// Embeddings to hidden states.
    pub language_model: TextModel,
}

impl Glm4vConfig {
    /// Builds the network with random weights, which [`initialize`](crate::initialize) or a checkpoint replaces.
    ///
    /// Build it on an autodiff device to train it.
    pub fn init(&self, device: &Device) -> Glm4v {
        self.build(&DeviceSpec::unbounded(device))
    }

    /// As [`init`](Self::init), with matrices in shards where they are too large for one tensor of this placement.
    ///
    /// # Errors
    ///
    /// When a tensor is too large that cannot be split; nothing is allocated then.
    pub fn init_on(&self, device_spec: &DeviceSpec) -> Result<Glm4v, DeviceError> {
        let model = self.build(device_spec);
        let Some(most) = device_spec.max_tensor_bytes else { return Ok(model) };
        let bytes = |values: usize| (values * device_spec.dtype.size()) as u64;
        let largest = param_infos(&model).into_iter().max_by_key(|param| param.shape.num_elements());
        match largest.map(|param| (bytes(param.shape.num_elements()), param.name)) {
            Some((bytes, name)) if bytes > most => Err(DeviceError::TooLarge { name, bytes, most }),
            _ => Ok(model),
        }
    }

    fn build(&self, device_spec: &DeviceSpec) -> Glm4v {
        let head = LinearConfig::new(self.text.hidden_size, self.text.vocab_size);
        Glm4v {
            model: Glm4vModel {
                visual: VisionTower::init(&self.vision, device_spec),
                language_model: TextModel::init(&self.text, device_spec),
            },
            lm_head: (!self.text.tie_word_embeddings).then(|| head.init(device_spec)),
            config: self.clone(),
        }
    }
}

impl CausalLm for Glm4v {
    fn text_config(&self) -> &TextConfig {
        &self.config.text
    }

    fn text_model(&self) -> &TextModel {
        &self.model.language_model
    }

    fn lm_head(&self) -> Option<&Linear> {
        self.lm_head.as_ref()
    }

    fn embed(&self, batch: &Batch) -> Result<DecoderInput, ModelInputError> {
        self.embed_with_recorder(batch, None)
    }
}

impl Glm4v {
    /// As [`embed`](CausalLm::embed), with a recorder in the vision tower.
    ///
    /// # Errors
    ///
    /// When prompts and media of the batch do not match.
    pub fn embed_with_recorder(
        &self,
        batch: &Batch,
        recorder: Option<&mut ActivationRecorder>,
    ) -> Result<DecoderInput, ModelInputError> {
        check_prompts(batch, &self.config)?; // before the tower runs
        // Grids are checked with the prompts; only the values are left.
        for (modality, patches) in batch.media.iter() {
            check_values(modality, patches, &self.config)?;
        }
        // Also before the tower: they fail where a run of placeholders does not fit its item.
        let positions = self.positions(batch)?;
        let embeddings = self.encode(batch, recorder);
        Ok(self.merge(batch, positions, embeddings))
    }

    /// Runs the vision tower over the images and videos of a batch (`get_image_features`, `get_video_features`).
    ///
    /// # Errors
    ///
    /// When values and grids of the batch disagree.
    pub fn embed_multimodal(&self, batch: &Batch) -> Result<MultimodalEmbeddings, ModelInputError> {
        check_patches(batch, &self.config)?;
        Ok(self.encode(batch, None))
    }

    /// Merges embeddings, of this model's tower or computed earlier, into the token embeddings of the prompts.
    ///
    /// Of the batch's media only the grids are used.
    ///
    /// # Errors
    ///
    /// When prompts and embeddings do not match.
    pub fn merge_embeddings(
        &self,
        batch: &Batch,
        embeddings: MultimodalEmbeddings,
    ) -> Result<DecoderInput, ModelInputError> {
        check_prompts(batch, &self.config)?;
        embeddings.check(batch, &self.config)?;
        let positions = self.positions(batch)?;
        Ok(self.merge(batch, positions, embeddings))
    }

    fn encode(&self, batch: &Batch, mut recorder: Option<&mut ActivationRecorder>) -> MultimodalEmbeddings {
        let mut embeddings = Vec::new();
        for (modality, patches) in batch.media.iter() {
            let output = self.model.visual.forward(patches, recorder.as_deref_mut());
            embeddings.push((modality, output));
        }
        embeddings.into_iter().collect()
    }

    fn positions(&self, batch: &Batch) -> Result<PositionIds, ModelInputError> {
        Ok(PositionIds::from_batch(batch, self.config.vision.spatial_merge_size)?)
    }

    fn merge(&self, batch: &Batch, positions: PositionIds, embeddings: MultimodalEmbeddings) -> DecoderInput {
        let inputs_embeds =
            merge_multimodal_embeddings(self.embed_tokens(batch), embeddings, &batch.modalities);
        DecoderInput { inputs_embeds, positions, segment_ids: batch.segment_ids.clone() }
    }

    /// Looks tokens up; the padding token's embedding gets no gradient (`padding_idx`).
    fn embed_tokens(&self, batch: &Batch) -> Tensor<3> {
        let embeds = self.model.language_model.embed_tokens.forward(&batch.input_ids, batch.shape);
        let Some(pad) = self.config.text.pad_token_id else {
            return embeds;
        };
        let [rows, length] = batch.shape;
        // Padding, and the last token of a segment, influence no loss: only a padding token before another needs care.
        let influences = |at: usize| {
            batch.input_ids[at] == pad
                && batch.segment_ids[at] != 0
                && !(at + 1).is_multiple_of(length)
                && batch.segment_ids[at + 1] == batch.segment_ids[at]
        };
        if !embeds.is_autodiff() || !(0..rows * length).any(influences) {
            return embeds;
        }
        let mask: Vec<bool> = batch.input_ids.iter().map(|id| *id == pad).collect();
        let mask = Tensor::<3, Bool>::from_data(TensorData::new(mask, [rows, length, 1]), &embeds.device());
        let fixed = embeds.clone().detach();
        embeds.clone().mask_where(mask.expand(embeds.dims()), fixed)
    }
}

#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests {
    use super::*;
    use crate::initialize;
    use crate::text::DecoderOptions;
    use burn::tensor::{DType, Tolerance};
    use glm4v_inputs::{Grid, Modality, MultimodalInputs, PaddingSide, Patches, Sample};

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
        let values = (0..h * w * 96).map(|i| ((i * 7 % 31) as f32 / 31.0 - 0.5) * brightness).collect();
        let image = Patches { values, grids: vec![Grid::new(1, h, w)] };
        let mut sample = Sample::from_text(ids);
        sample.modalities[before.len()..before.len() + tokens].fill(Some(Modality::Image));
        Sample { media: MultimodalInputs::from_iter([(Modality::Image, image)]), ..sample }
    }

    fn push(sample: &mut Sample, id: u32, modality: Option<Modality>) {
        sample.input_ids.push(id);
        sample.modalities.push(modality);
        sample.loss_mask.push(false);
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
            let length = batch.shape[1];
            for (row, sample) in pair.iter().enumerate() {
                let last = row * length + if side == PaddingSide::Left { length } else { sample.len() } - 1;
                close(model.forward_at(&batch, &[last]).unwrap(), last_logits(&model, sample));
            }
        }
    }

    #[test]
    fn a_packed_sample_has_the_logits_that_it_has_alone() {
        let (model, pair) = (model(), pair());
        let other = prompt(&[3], [2, 4], &[5, 6], 0.5);
        let last = |lengths: &[usize]| lengths.iter().sum::<usize>() - 1;
        let [first, second] = [&pair[0], &pair[1]].map(Sample::len);

        let batch = Batch::pack(&[vec![&pair[0], &pair[1]], vec![&other]], 0);

        let packed = model.forward_at(&batch, &[last(&[first]), last(&[first, second])]).unwrap();
        close(packed.clone().narrow(0, 0, 1), last_logits(&model, &pair[0]));
        close(packed.narrow(0, 1, 1), last_logits(&model, &pair[1]));
        let other_last = batch.shape[1] + other.len() - 1;
        close(model.forward_at(&batch, &[other_last]).unwrap(), last_logits(&model, &other));
    }

    #[test]
    fn logits_at_chosen_positions_are_those_of_the_whole_sequence() {
        let model = model();
        let batch = Batch::collate(&pair(), 0, PaddingSide::Right);
        let [rows, length] = batch.shape;
        let positions = [2, length + 1, 0];

        let whole = model.forward(&batch).unwrap().reshape([rows * length, 50]);

        let picked = positions.iter().map(|at| whole.clone().narrow(0, *at, 1)).collect();
        close(model.forward_at(&batch, &positions).unwrap(), Tensor::cat(picked, 0));
    }

    #[test]
    fn cached_decoding_equals_the_whole_sequence() {
        let (model, mut pair) = (model(), pair());
        let batch = Batch::collate(&pair, 0, PaddingSide::Left);
        let mut cache = model.kv_cache(2, batch.shape[1] + 3);
        let input = model.embed(&batch).unwrap();
        let rope_deltas = input.positions.rope_deltas.clone();
        model.decoder_forward(input, DecoderOptions { cache: Some(&mut cache), ..Default::default() });

        for next in [[10, 11], [12, 13], [14, 15]] {
            let step = model.decode_step(&next, &rope_deltas, &mut cache);
            for (row, sample) in pair.iter_mut().enumerate() {
                push(sample, next[row], None);
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
            changed[0].media.patches_mut(Modality::Image).values[patch * 96..][..96].fill(1.5);

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
        push(&mut sample, IMAGE, Some(Modality::Image));

        let error = model().forward(&Batch::collate(&[sample], 0, PaddingSide::Left)).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the prompts have 3 image placeholders, but the images of the batch take 2 tokens"
        );
    }

    #[test]
    fn what_cannot_be_split_is_refused_with_the_numbers() {
        let device_spec = DeviceSpec::bounded(&Device::flex(), 1000, DType::F32);

        let error = Glm4vConfig::tiny().init_on(&device_spec).unwrap_err();

        assert_eq!(
            error.to_string(),
            "model.visual.downsample.weight takes 24576 bytes, and this device binds tensors of at most 1000"
        );
    }

    #[test]
    fn a_sharded_network_has_as_many_parameters_in_more_tensors() {
        let device = Device::flex();
        let device_spec = DeviceSpec::bounded(&device, 25_000, DType::F32);

        let sharded = Glm4vConfig::tiny().init_on(&device_spec).unwrap();

        let dense = Glm4vConfig::tiny().init(&device);
        assert_eq!(sharded.num_params(), dense.num_params());
        let tensors = |model: &Glm4v| param_infos(model).len();
        assert!(tensors(&sharded) > tensors(&dense), "{} of {}", tensors(&sharded), tensors(&dense));
    }

    #[test]
    fn a_token_beyond_the_vocabulary_is_refused() {
        let sample = prompt(&[1, 50], [2, 2], &[2], 1.0);

        let error = model().forward(&Batch::collate(&[sample], 0, PaddingSide::Left)).unwrap_err();

        assert_eq!(error.to_string(), "row 0, token 1: id 50, but the vocabulary has 50 entries");
    }
}
