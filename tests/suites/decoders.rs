//! Text decoders that are not GLM's, as configs with other switches, against transformers; and a model of one's own over them.

use std::ops::ControlFlow;

use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use glm4v_infer::{GenerationConfig, LogitsProcessors, SamplingParams, generate};
use glm4v_model::text::TextModel;
use glm4v_model::{
    Batch, CausalLm, DecoderInput, DeviceSpec, Linear, LinearConfig, ModelInputError, NamedMapper,
    PositionIds, RotaryLayout, TextConfig, TextRopeConfig, map_named,
};
use glm4v_tests::{Case, backend, max_difference, values_of};
use glm4v_train::{AdamW, AdamWConfig, NamedGradients, Trainer, TrainerConfig, causal_lm_loss};

/// A language model without images: what a user of the library writes to train and run another decoder.
#[derive(Module, Debug)]
struct TextLm {
    model: TextModel,
    lm_head: Option<Linear>,
    #[module(skip)]
    config: TextConfig,
}

impl TextLm {
    fn init(config: &TextConfig, device: &Device) -> Self {
        let device_spec = DeviceSpec::unbounded(device);
        let head = LinearConfig::new(config.hidden_size, config.vocab_size);
        Self {
            model: TextModel::init(config, &device_spec),
            lm_head: (!config.tie_word_embeddings).then(|| head.init(&device_spec)),
            config: config.clone(),
        }
    }
}

impl CausalLm for TextLm {
    fn text_config(&self) -> &TextConfig {
        &self.config
    }

    fn text_model(&self) -> &TextModel {
        &self.model
    }

    fn lm_head(&self) -> Option<&Linear> {
        self.lm_head.as_ref()
    }

    fn embed(&self, batch: &Batch) -> Result<DecoderInput, ModelInputError> {
        Ok(DecoderInput {
            inputs_embeds: self.model.embed_tokens.forward(&batch.input_ids, batch.shape),
            positions: PositionIds::from_batch(batch, 1)?,
            segment_ids: batch.segment_ids.clone(),
        })
    }
}

/// The configs of `tests/fixtures/oracle/decoders.py`.
fn configs() -> [(&'static str, TextConfig); 2] {
    let llama = TextConfig {
        vocab_size: 61,
        hidden_size: 40,
        intermediate_size: 56,
        fused_gate_up: false,
        moe: None,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 10,
        attention_bias: false,
        o_proj_bias: false,
        qk_norm: false,
        sandwich_norms: false,
        tie_word_embeddings: false,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope: TextRopeConfig {
            layout: RotaryLayout::HalfSplit,
            rope_theta: 1e4,
            rotary_dim: 10,
            mrope_section: None,
        },
        eos_token_id: vec![],
        pad_token_id: None,
        initializer_range: 0.2,
    };
    let qwen3 = TextConfig {
        head_dim: 16,
        qk_norm: true,
        tie_word_embeddings: true,
        rms_norm_eps: 1e-6,
        rope: TextRopeConfig { rope_theta: 1e6, rotary_dim: 16, ..llama.rope.clone() },
        ..llama.clone()
    };
    [("llama", llama), ("qwen3", qwen3)]
}

/// Fills a model with the weights of a case: the names of its fields are those of the checkpoint.
struct FromCase<'a>(&'a Case);

impl NamedMapper for FromCase<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let data: TensorData = self.0.float(&format!("weight.{name}"));
        assert_eq!(*data.shape(), param.lazy_shape(), "{name}");
        let (id, device) = (param.id, param.lazy_device());
        param.transform_for_load(Tensor::from_data(data, (&device, DType::F32)), id)
    }
}

fn load(case: &Case, config: &TextConfig, device: &Device) -> TextLm {
    map_named(TextLm::init(config, device), &mut FromCase(case))
}

fn cases() -> impl Iterator<Item = (&'static str, TextConfig, Case)> {
    configs().into_iter().map(|(name, config)| (name, config, Case::open_own(&format!("decoders/{name}"))))
}

#[test]
fn logits_of_llama_and_qwen3_equal_transformers() {
    let device = backend().open().unwrap();
    for (name, config, case) in cases() {
        let batch = case.batch();

        let logits = values_of(&load(&case, &config, &device).forward(&batch).unwrap().into_data());

        let expected = values_of(&case.float("out.logits"));
        for (at, token) in batch.attention_mask().into_iter().enumerate().filter(|(_, token)| *token) {
            let row = at * config.vocab_size..(at + 1) * config.vocab_size;
            let difference = max_difference(&logits[row.clone()], &expected[row]);
            assert!(token && difference < 1e-4, "{name}, position {at}: {difference:.1e}");
        }
    }
}

#[test]
fn loss_and_gradients_of_llama_and_qwen3_equal_torch() {
    let device = backend().open().unwrap().autodiff();
    for (name, config, case) in cases() {
        let model = load(&case, &config, &device);

        let loss = causal_lm_loss(&model, &case.batch()).unwrap().mean();

        let mut gradients = NamedGradients::backward(&model, &loss);
        let difference = f64::from(loss.into_scalar::<f32>()) - case.meta["loss"].as_f64().unwrap();
        assert!(difference.abs() < 1e-5, "{name}: loss differs by {difference:.1e}");
        for (parameter, expected) in case.meta["grad_norms"].as_object().unwrap() {
            let gradient = gradients.remove(parameter).unwrap_or_else(|| panic!("{name}: {parameter}"));
            let norm = values_of(&gradient.into_data()).iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            let difference = norm / expected.as_f64().unwrap() - 1.0;
            assert!(difference.abs() < 1e-4, "{name}: gradient of {parameter} differs by {difference:.1e}");
        }
    }
}

#[test]
fn llama_and_qwen3_generate_the_tokens_of_transformers() {
    let device = backend().open().unwrap();
    for (name, config, case) in cases() {
        let model = load(&case, &config, &device);
        let both = case.batch();
        let width = both.shape[1];
        let prompt = glm4v_model::Sample::from_text(both.input_ids[..width].to_vec());
        let batch = Batch::collate(&[prompt], 0, glm4v_model::PaddingSide::Left);
        let settings = GenerationConfig {
            max_new_tokens: 8,
            eos_token_ids: vec![],
            sampling: SamplingParams::greedy(),
            seed: 0,
            logits_processors: LogitsProcessors::default(),
        };

        let answers = generate(&model, &batch, &settings, |_, _| ControlFlow::Continue(())).unwrap();

        let (expected, _) = case.integers("out.generated").unwrap();
        let found: Vec<i64> = answers[0].ids.iter().map(|id| i64::from(*id)).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_trainer_takes_a_model_of_one_s_own() {
    let device = backend().open().unwrap().autodiff();
    let (_, config, case) = cases().next().unwrap();
    let optimizer = AdamW::new(AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 });
    let mut trainer = Trainer::new(load(&case, &config, &device), optimizer, TrainerConfig::default());
    let batch = case.batch();

    let losses: Vec<f64> = (0..5)
        .map(|_| {
            trainer.accumulate(&batch).unwrap();
            trainer.step(1e-2).unwrap().loss
        })
        .collect();

    assert!(losses[4] < losses[0] / 2.0, "{losses:?}");
}
