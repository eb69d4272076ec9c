//! Logits, activations and positions of forward passes.

use super::*;

#[test]
fn logits_and_rope_deltas_equal_transformers() {
    for (family, case, model) in forward_cases() {
        let batch = case.batch();

        let difference = logits_difference(&case, &model);

        println!("{family} {}: logits differ by {difference:.1e}", case.name);
        assert!(difference < LOGITS, "{family} {}: logits differ by {difference}", case.name);
        if let Some((deltas, _)) = case.integers("out.rope_deltas") {
            let merge = model.config.vision.spatial_merge_size;
            assert_eq!(PositionIds::from_batch(&batch, merge).unwrap().rope_deltas, deltas, "{}", case.name);
        }
    }
}

#[test]
fn activations_equal_transformers() {
    for (family, case, model) in forward_cases() {
        let (difference, name) = worst_activation(&case, &model);
        println!("{family} {}: worst activation {difference:.1e} {name}", case.name);
        assert!(difference < ACTIVATIONS, "{family} {}: {name} differs by {difference:.1e}", case.name);
    }
}

/// The largest difference of a case's logits.
pub(crate) fn logits_difference(case: &Case, model: &Glm4v) -> f32 {
    let batch = case.batch();
    let logits = model.forward(&batch).unwrap().into_data();
    let real = |data| at_unpadded_positions(data, &batch.attention_mask());
    max_difference(&real(&logits), &real(&case.float("out.logits")))
}

/// The activation of a case that differs most, and by how much.
pub(crate) fn worst_activation(case: &Case, model: &Glm4v) -> (f64, String) {
    let batch = case.batch();
    let mut recorder = ActivationRecorder::new();

    let input = model.embed_with_recorder(&batch, Some(&mut recorder)).unwrap();
    model.decoder_forward(input, DecoderOptions { recorder: Some(&mut recorder), ..Default::default() });

    let records = recorder.into_activations();
    let mut worst = (0.0, String::new());
    // transformers numbers the positions of text-only prompts by column, padding included; ours count unpadded tokens.
    // Attention depends on distances alone, so only the tables differ.
    let text_only = batch.media.is_empty();
    for name in case.names("mid.") {
        let name = name.trim_start_matches("mid.");
        if name == "text.position_ids" || (text_only && name.starts_with("text.rotary")) {
            continue;
        }
        if let Some(gate) = name.strip_suffix(".indices") {
            check_routing(case, gate, &records, &batch.attention_mask());
            continue;
        }
        if name.ends_with("gate.weights") {
            continue; // compared with the indices they belong to
        }
        let (_, found) = records.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{name}"));
        let expected = case.float(&format!("mid.{name}"));
        let difference = if name.starts_with("text.") {
            let real = |data| at_unpadded_positions(data, &batch.attention_mask());
            relative_l2(&real(found), &real(&expected))
        } else {
            relative_l2(&values_of(found), &values_of(&expected))
        };
        if difference > worst.0 {
            worst = (difference, name.to_owned());
        }
    }
    worst
}

/// Compares the experts selected for each token, and their weights, in any order within a token.
fn check_routing(case: &Case, gate: &str, records: &[(String, TensorData)], real: &[bool]) {
    let of = |name: &str| &records.iter().find(|(other, _)| other == name).unwrap().1;
    let weights = |data: &TensorData| at_unpadded_positions(data, real);
    let (indices, shape) = case.integers(&format!("mid.{gate}.indices")).unwrap();
    let chosen = shape[1];
    let real_rows = indices.chunks(chosen).zip(real).filter(|(_, real)| **real);
    let expected: Vec<i64> = real_rows.flat_map(|(row, _)| row.to_vec()).collect();
    let found = of(&format!("{gate}.indices")).clone().convert::<i64>().try_to_vec::<i64>().unwrap();
    let found: Vec<i64> =
        found.chunks(chosen).zip(real).filter(|(_, real)| **real).flat_map(|(row, _)| row.to_vec()).collect();
    let expected_weights = weights(&case.float(&format!("mid.{gate}.weights")));
    let found_weights = weights(of(&format!("{gate}.weights")));
    let pairs = |indices: &[i64], weights: &[f32]| {
        let mut pairs: Vec<(i64, f32)> = indices.iter().copied().zip(weights.iter().copied()).collect();
        pairs.chunks_mut(chosen).for_each(|row| row.sort_by_key(|(index, _)| *index));
        pairs
    };
    for (found, expected) in pairs(&found, &found_weights).iter().zip(pairs(&expected, &expected_weights)) {
        assert_eq!(found.0, expected.0, "{}: {gate}", case.name);
        assert!((found.1 - expected.1).abs() < 1e-5, "{}: {gate}: {found:?}, not {expected:?}", case.name);
    }
}

/// `spatial_merge_size` of all published models, for which the table of positions was made.
const SPATIAL_MERGE_SIZE: usize = 2;

#[test]
fn position_ids_of_random_layouts_equal_transformers() {
    let table = std::fs::read_to_string(golden().join("rope/get_rope_index.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&table).unwrap();
    assert!(cases.len() > 20);
    for (index, case) in cases.iter().enumerate() {
        let rows =
            |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(case[key].clone()).unwrap_or_default() };
        let flat = |key: &str| rows(key).concat();
        let ids = rows("input_ids");
        let (count, width) = (ids.len(), ids[0].len());
        let mask = match case["attention_mask"].is_null() {
            true => vec![1; count * width],
            false => flat("attention_mask"),
        };
        let grids = |key: &str| Patches { values: vec![], grids: grids_from_thw(&flat(key)) };
        let modality = |kind: &i64| Modality::from_token_type_id(*kind as u8);
        let batch = Batch {
            shape: [count, width],
            input_ids: vec![0; count * width],
            modalities: flat("mm_token_type_ids").iter().map(modality).collect(),
            segment_ids: mask.iter().map(|mask| *mask as u32).collect(),
            loss_mask: vec![false; count * width],
            loss_weights: None,
            media: MultimodalInputs::from_iter([
                (Modality::Image, grids("image_grid_thw")),
                (Modality::Video, grids("video_grid_thw")),
            ]),
        };

        let positions = PositionIds::from_batch(&batch, SPATIAL_MERGE_SIZE).unwrap();

        let expected: Vec<Vec<Vec<i64>>> = serde_json::from_value(case["position_ids"].clone()).unwrap();
        for (axis, (found, expected)) in positions.position_ids.iter().zip(&expected).enumerate() {
            assert_eq!(*found, expected.concat(), "case {index}, axis {axis}");
        }
        assert_eq!(positions.rope_deltas, flat("rope_deltas"), "case {index}");
    }
}

#[test]
fn a_transformers_4_config_makes_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let original = golden().join("checkpoints/glm4v");
    for (from, to) in [("config_legacy.json", "config.json"), ("model.safetensors", "model.safetensors")] {
        std::fs::copy(original.join(from), folder.path().join(to)).unwrap();
    }
    let (new, old) = (model(&original), model(folder.path()));

    assert_eq!(new.config, old.config);
    let batch = Case::open("forward/glm4v/image_single").batch();
    assert_eq!(new.forward(&batch).unwrap().into_data(), old.forward(&batch).unwrap().into_data());
}

#[test]
fn attention_weights_equal_transformers() {
    let expected = Case::open_own("attentions/glm4v");
    let model = model(&checkpoint("glm4v"));
    for name in ["text_left_pad", "image_single"] {
        let batch = Case::open(&format!("forward/glm4v/{name}")).batch();
        let mut recorder = ActivationRecorder::default().with_attentions();
        let options = DecoderOptions { recorder: Some(&mut recorder), ..Default::default() };

        let output = model.decoder_forward(model.embed(&batch).unwrap(), options);

        let plain = model.decoder_forward(model.embed(&batch).unwrap(), DecoderOptions::default());
        let mask = batch.attention_mask();
        let hidden = |output: DecoderOutput| at_unpadded_positions(&output.hidden_states.into_data(), &mask);
        assert!(
            relative_l2(&hidden(output), &hidden(plain)) < ACTIVATIONS,
            "recording does not change the pass"
        );
        let records = recorder.into_activations();
        assert_eq!(records.len(), model.config.text.num_hidden_layers, "{name}");
        for (layer, (record, weights)) in records.iter().enumerate() {
            assert_eq!(*record, format!("text.layers.{layer}.self_attn.attn_weights"));
            let wanted = expected.float(&format!("{name}.attentions.{layer}"));
            assert_eq!(weights.shape(), wanted.shape(), "{name}, layer {layer}");
            // Rows of padded queries have undefined weights.
            let [rows, heads, length, _] = weights.shape().dims();
            let queries: Vec<bool> = (0..rows * heads * length)
                .map(|at| mask[at / (heads * length) * length + at % length])
                .collect();
            let (found, wanted) =
                (at_unpadded_positions(weights, &queries), at_unpadded_positions(&wanted, &queries));
            let difference = relative_l2(&found, &wanted);
            assert!(difference < ACTIVATIONS, "{name}, layer {layer}: {difference:.1e}");
        }
    }
}
