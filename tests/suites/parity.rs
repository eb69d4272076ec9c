//! Numbers against transformers: see `fixtures/README.md` for how the cases were made.
//!
//! Tolerances: logits 5e-4, activations 1e-5 and gradients 5e-5 relative. transformers itself moves by up to 4.8e-5
//! in logits between its two attention implementations, and logits here have a deviation of 2.

use std::path::Path;

use burn::tensor::TensorData;
use glm4v_model::{Glm4v, Positions, Precision, Probe};
use glm4v_tests::{Case, backend, golden, max_difference, relative_l2, values_of};
use glm4v_weights::ModelFolder;

const LOGITS: f32 = 5e-4;
const ACTIVATIONS: f64 = 1e-5;

fn model(folder: &Path) -> Glm4v {
    let device = backend().open().unwrap();
    ModelFolder::open(folder).unwrap().load(&device, Precision::F32).unwrap()
}

/// The part of `[B, S, ..]` values where the mask is set.
fn at_real_positions(data: &TensorData, real: &[bool]) -> Vec<f32> {
    let values = values_of(data);
    let width = values.len() / real.len();
    values.chunks(width).zip(real).filter(|(_, real)| **real).flat_map(|(row, _)| row.to_vec()).collect()
}

#[test]
fn logits_and_deltas_are_those_of_transformers() {
    let model = model(&golden().join("checkpoints/glm4v"));
    for case in Case::all("forward/glm4v") {
        let batch = case.batch();

        let logits = model.forward(&batch).unwrap().into_data();

        let expected = at_real_positions(&case.float("out.logits"), &batch.attention_mask);
        let found = at_real_positions(&logits, &batch.attention_mask);
        let difference = max_difference(&found, &expected);
        println!("{}: logits differ by {difference:.1e}", case.name);
        assert!(difference < LOGITS, "{}: logits differ by {difference}", case.name);
        if let Some((deltas, _)) = case.integers("out.rope_deltas") {
            assert_eq!(Positions::of(&batch, 2).unwrap().deltas, deltas, "{}", case.name);
        }
    }
}

#[test]
fn activations_are_those_of_transformers() {
    let model = model(&golden().join("checkpoints/glm4v"));
    for case in Case::all("forward/glm4v") {
        let batch = case.batch();
        let mut probe = Probe::on();

        let input = model.embed(&batch, &mut probe).unwrap();
        model.decode(input, None, &mut probe);

        let kept = probe.into_kept();
        let mut worst = (0.0, String::new());
        // transformers numbers the positions of text-only prompts by column, padding included; ours count real
        // tokens. Scores depend on distances alone, so only the tables differ.
        let text_only = batch.images.grids.is_empty() && batch.videos.grids.is_empty();
        for name in case.names("mid.") {
            let name = name.trim_start_matches("mid.");
            if name == "text.position_ids" || (text_only && name.starts_with("text.rotary")) {
                continue;
            }
            let (_, found) = kept.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{name}"));
            let expected = case.float(&format!("mid.{name}"));
            let difference = if name.starts_with("text.") {
                let real = |data| at_real_positions(data, &batch.attention_mask);
                relative_l2(&real(found), &real(&expected))
            } else {
                relative_l2(&values_of(found), &values_of(&expected))
            };
            assert!(difference < ACTIVATIONS, "{}: {name} differs by {difference:.1e}", case.name);
            if difference > worst.0 {
                worst = (difference, name.to_owned());
            }
        }
        println!("{}: worst activation {:.1e} {}", case.name, worst.0, worst.1);
    }
}

#[test]
fn the_older_style_of_config_makes_the_same_model() {
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
fn positions_of_random_layouts_are_those_of_transformers() {
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
        let grids = |key: &str| {
            let grids = rows(key);
            glm4v_model::Patches {
                values: vec![],
                grids: grids
                    .iter()
                    .map(|g| glm4v_model::Grid::new(g[0] as usize, g[1] as usize, g[2] as usize))
                    .collect(),
            }
        };
        let kinds: Vec<u8> = flat("mm_token_type_ids").iter().map(|kind| *kind as u8).collect();
        let sample = glm4v_model::Sample::from_parts(
            vec![0; kinds.len()],
            &kinds,
            vec![],
            (vec![], &[]),
            (vec![], &[]),
        );
        let batch = glm4v_model::Batch {
            shape: [count, width],
            input_ids: sample.input_ids,
            kinds: sample.kinds,
            attention_mask: mask.iter().map(|real| *real == 1).collect(),
            taught: vec![false; count * width],
            images: grids("image_grid_thw"),
            videos: grids("video_grid_thw"),
        };

        let positions = Positions::of(&batch, 2).unwrap();

        let expected: Vec<Vec<Vec<i64>>> = serde_json::from_value(case["position_ids"].clone()).unwrap();
        for axis in 0..3 {
            assert_eq!(positions.axes[axis], expected[axis].concat(), "case {index}, axis {axis}");
        }
        assert_eq!(positions.deltas, flat("rope_deltas"), "case {index}");
    }
}
