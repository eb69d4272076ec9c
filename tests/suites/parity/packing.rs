//! Packed rows: loss and gradients are those of the samples alone.

use glm4v_model::{Grid, PaddingSide, Sample};

use super::*;

/// What fills a part of a conversation.
enum Part {
    /// Tokens of text; `true` for an answer.
    Text(usize, bool),
    /// An image of `h` x `w` patches.
    Image(usize, usize),
    /// A video of `t` temporal patches with a token of text after each.
    Video(usize, usize, usize),
}

use Part::{Image, Text, Video};

/// A conversation of these parts; tokens and pixels follow from `seed`.
fn conversation(model: &Glm4v, seed: usize, parts: &[Part]) -> Sample {
    let mut sample = Sample::default();
    let mut add = |count: usize, id: Option<u32>, modality, label| {
        for _ in 0..count {
            let at = sample.input_ids.len();
            sample.input_ids.push(id.unwrap_or(((at * 31 + seed * 17) % 1000 + 3) as u32));
            sample.modalities.push(modality);
            sample.loss_mask.push(label);
        }
    };
    let (mut images, mut videos) = (Patches::default(), Patches::default());
    let values = |grid: Grid| {
        (0..grid.patches() * model.config.vision.patch_values())
            .map(move |i| ((i * (2 * seed + 3)) % 251) as f32 / 125.0 - 1.0)
    };
    for part in parts {
        match *part {
            Text(count, label) => add(count, None, None, label),
            Image(h, w) => {
                let grid = Grid::new(1, h, w);
                images.values.extend(values(grid));
                images.grids.push(grid);
                add(grid.tokens(2), Some(model.config.image_token_id), Some(Modality::Image), false);
            }
            Video(t, h, w) => {
                let grid = Grid::new(t, h, w);
                videos.values.extend(values(grid));
                videos.grids.push(grid);
                for _ in 0..t {
                    // The placeholder of a video's tokens is that of images; the modality tells them apart.
                    add(h * w / 4, Some(model.config.image_token_id), Some(Modality::Video), false);
                    add(1, None, None, false);
                }
            }
        }
    }
    let media = [(Modality::Image, images), (Modality::Video, videos)];
    Sample { media: MultimodalInputs::from_iter(media), ..sample }
}

/// Text, images and a video, of lengths and label counts of their own.
fn conversations(model: &Glm4v) -> Vec<Sample> {
    let parts: [&[Part]; 6] = [
        &[Text(3, false), Image(4, 6), Text(4, false), Text(5, true)],
        &[Text(9, false), Text(2, true)],
        &[
            Image(2, 2),
            Text(2, false),
            Image(6, 2),
            Text(1, false),
            Text(7, true),
            Text(3, false),
            Text(2, true),
        ],
        &[Text(2, false), Video(2, 4, 4), Text(2, false), Text(3, true)],
        &[Text(1, false), Text(12, true)], // the token before the first label ends another sample
        &[Text(2, false), Image(2, 4), Video(1, 2, 4), Text(4, true)],
    ];
    let mut samples: Vec<Sample> =
        parts.iter().enumerate().map(|(seed, parts)| conversation(model, seed, parts)).collect();
    // One with weights beside others without.
    samples[2].loss_weights = Some((0..samples[2].len()).map(|at| 0.25 * (at % 7) as f32).collect());
    samples
}

/// The rows that the tests pack: three, two and one sample; no row is full but the longest.
fn packed(samples: &[Sample]) -> Batch {
    let row = |places: &[usize]| places.iter().map(|place| &samples[*place]).collect::<Vec<_>>();
    let batch = Batch::pack(&[row(&[4, 0, 1]), row(&[3, 2]), row(&[5])], 0);
    assert_eq!(batch.shape[0], 3);
    assert!(batch.num_tokens() < batch.shape[0] * batch.shape[1], "there is padding too");
    batch
}

/// Mean loss over all labels of these batches, and its gradients by name.
type LossAndGradients = (f64, BTreeMap<String, Vec<f32>>);

fn accumulated(model: &Glm4v, batches: &[Batch]) -> LossAndGradients {
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let mut trainer = Trainer::new(model.clone(), AdamW::new(settings), TrainerConfig::default());
    for batch in batches {
        trainer.accumulate(batch).unwrap();
    }
    let sums = trainer.accumulated().unwrap();
    let loss = f64::from(sums.loss.clone().into_scalar::<f32>());
    (loss, values(&mut sums.gradients))
}

fn values(gradients: &mut NamedGradients) -> BTreeMap<String, Vec<f32>> {
    let names: Vec<String> = gradients.names().map(str::to_owned).collect();
    let mut read = |name: &String| gradients.remove(name).unwrap().into_data().try_to_vec::<f32>().unwrap();
    names.iter().map(|name| (name.clone(), read(name))).collect()
}

/// As [`accumulated`], by an attention that holds its weights and is composed of operations with gradients of their own.
fn with_plain_attention(model: &Glm4v, batch: &Batch) -> LossAndGradients {
    let mut recorder = ActivationRecorder::default().with_attentions();
    let options = DecoderOptions { recorder: Some(&mut recorder), ..Default::default() };
    let output = model.decoder_forward(model.embed(batch).unwrap(), options);
    assert!(!recorder.into_activations().is_empty(), "the attention weights exist");
    let labels = batch.labels();
    let weights = labels.weights.expect("one of the samples has weights");
    let total: f32 = weights.iter().sum();
    // Label by label, where the trainer has one operation for all.
    let terms = labels.positions.iter().zip(&labels.ids).zip(weights).map(|((at, id), weight)| {
        let logits = model.logits(output.hidden_states.clone().narrow(0, *at, 1));
        cross_entropy(logits, &[*id]).sum * (weight / total)
    });
    let loss = Tensor::cat(terms.collect(), 0).sum();
    let mut gradients = NamedGradients::backward(model, &loss);
    (f64::from(loss.into_scalar::<f32>()), values(&mut gradients))
}

fn assert_equal(found: &LossAndGradients, expected: &LossAndGradients, what: &str) {
    assert!((found.0 - expected.0).abs() < 1e-5, "{what}: loss {}, alone {}", found.0, expected.0);
    assert_eq!(found.1.keys().collect::<Vec<_>>(), expected.1.keys().collect::<Vec<_>>(), "{what}");
    for (name, expected) in &expected.1 {
        let difference = relative_l2(&found.1[name], expected);
        assert!(difference < GRADIENTS, "{what}: {name}: gradient differs by {difference:.1e}");
    }
}

fn check(model: &Glm4v, what: &str) {
    let samples = conversations(model);
    let batch = packed(&samples);
    let each: Vec<Batch> =
        samples.iter().map(|sample| Batch::collate(&[sample], 0, PaddingSide::Right)).collect();

    let alone = accumulated(model, &each);

    assert_equal(&accumulated(model, std::slice::from_ref(&batch)), &alone, &format!("{what}, packed"));
    assert_equal(&with_plain_attention(model, &batch), &alone, &format!("{what}, packed, plain attention"));
    let padded = Batch::collate(&samples, 0, PaddingSide::Right);
    assert_equal(&accumulated(model, &[padded]), &alone, &format!("{what}, padded"));
}

#[test]
fn packed_samples_have_the_loss_and_the_gradients_that_they_have_alone() {
    for family in families("train") {
        check(&trainable(family), family);
    }
}

#[test]
fn packed_samples_train_adapters_as_they_do_alone() {
    for family in families("train") {
        // PEFT would take every other linear layer of a decoder with experts for an expert's.
        let targets = match family {
            "glm4v_moe" => TargetModules::List(vec!["q_proj".into(), "v_proj".into(), "attn.qkv".into()]),
            _ => TargetModules::Pattern("all-linear".into()),
        };
        let config = AdapterConfig { target_modules: Some(targets), ..AdapterConfig::new(3, 6.0) };
        let (model, _) = add_adapter(trainable(family), &config, 3, Precision::F32).unwrap();
        let (model, _) = mark_only_adapters_as_trainable(model, &config);
        // A step, because lora_A has no gradient while lora_B is zero.
        let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
        let mut trainer = Trainer::new(model, AdamW::new(settings), TrainerConfig::default());
        let samples = conversations(trainer.model());
        trainer.accumulate(&Batch::collate(&samples, 0, PaddingSide::Right)).unwrap();
        trainer.step(0.01).unwrap();

        check(trainer.model(), &format!("{family} with adapters"));
    }
}
