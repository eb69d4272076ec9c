//! Bit-identical training steps on the CPU for any number of threads and any load.
//!
//! At realistic sizes: from 4,194,304 values on, Burn sums the parts of a tensor in the order in which threads finish.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device};
use glm4v_model::{
    Batch, Glm4v, Glm4vConfig, Grid, Modality, MultimodalInputs, PaddingSide, Patches, Sample, initialize,
};
use glm4v_tests::repository;
use glm4v_train::{NamedGradients, causal_lm_loss};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::{Value, json};

/// The network of the digits with a vocabulary for which token table and head have 20 million values each.
fn config() -> Glm4vConfig {
    let path = repository().join("configs/models/digits/config.json");
    let mut raw: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    raw["text_config"]["vocab_size"] = json!(210_000);
    Glm4vConfig::from_json(&raw.to_string()).unwrap()
}

/// Two rows that begin with an image of 16 x 16 patches each.
fn batch(config: &Glm4vConfig) -> Batch {
    const TOKENS: usize = 64;
    let row = |seed: u32| {
        let mut ids: Vec<u32> = (0..TOKENS as u32 + 40).map(|at| (at + seed) * 7919 % 210_000).collect();
        ids[..TOKENS].fill(config.image_token_id);
        let loss_mask = (0..ids.len()).map(|at| at > TOKENS).collect();
        let values =
            (0..256 * config.vision.patch_values() as u32).map(|i| (i * seed % 31) as f32 / 31.0 - 0.5);
        let image = Patches { values: values.collect(), grids: vec![Grid::new(1, 16, 16)] };
        let mut sample = Sample::from_text(ids).with_loss_mask(loss_mask);
        sample.modalities[..TOKENS].fill(Some(Modality::Image));
        Sample { media: MultimodalInputs::from_iter([(Modality::Image, image)]), ..sample }
    };
    Batch::collate(&[row(3), row(5)], 0, PaddingSide::Right)
}

/// Results of a step: loss, global gradient norm (computed several times), and all gradients by name.
#[derive(Debug, PartialEq)]
struct Numbers {
    loss: u32,
    norms: BTreeSet<u32>,
    gradients: Vec<(String, u64)>,
}

impl Numbers {
    fn of_a_step(model: &Glm4v, batch: &Batch) -> Self {
        let loss = causal_lm_loss(model, batch).unwrap().mean();
        let mut gradients = NamedGradients::backward(model, &loss);
        let norms = (0..10).map(|_| gradients.norm().unwrap().into_scalar::<f32>().to_bits()).collect();
        let names: Vec<String> = gradients.names().map(str::to_owned).collect();
        let hash = |name: String| {
            let mut hasher = DefaultHasher::new();
            hasher.write(gradients.remove(&name).unwrap().into_data().as_bytes());
            (name, hasher.finish())
        };
        Self {
            loss: loss.into_scalar::<f32>().to_bits(),
            norms,
            gradients: names.into_iter().map(hash).collect(),
        }
    }
}

/// Keeps a pool busy with short tasks of uneven length while `work` runs in it.
fn under_load<T: Send>(pool: &ThreadPool, work: impl FnOnce() -> T + Send) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let lengths = [20, 300, 50, 150, 900].into_iter().cycle();
            for micros in lengths.take_while(|_| !over.load(Ordering::Relaxed)) {
                let length = Duration::from_micros(micros);
                pool.spawn(move || {
                    let start = Instant::now();
                    while start.elapsed() < length {
                        std::hint::spin_loop();
                    }
                });
                thread::sleep(length);
            }
        });
        let done = pool.install(work);
        over.store(true, Ordering::Relaxed);
        done
    })
}

#[test]
fn a_training_step_is_bit_identical_for_any_number_of_threads_and_load() {
    let config = config();
    let model = initialize(config.init(&Device::flex().autodiff()), 0, DType::F32);
    let batch = batch(&config);
    let pools = [1, 2, 4].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    let calm = pools[0].install(|| Numbers::of_a_step(&model, &batch));

    for pool in &pools {
        let loaded = under_load(pool, || Numbers::of_a_step(&model, &batch));

        let threads = pool.current_num_threads();
        assert_eq!((loaded.loss, &loaded.norms), (calm.loss, &calm.norms), "{threads} threads");
        assert_eq!(loaded, calm, "{threads} threads");
    }
}
