//! LoRA adapters of PEFT.

use super::*;

/// PEFT takes these names for experts, see `check_published`.
#[test]
fn targets_that_peft_takes_for_experts_are_refused() {
    let attached = |family: &str, config: AdapterConfig| {
        let config = AdapterConfig { r: 2, ..config };
        add_adapter(trainable(family), &config, 0, Precision::F32).map(|(_, modules)| modules.len())
    };
    let modules = |names: &[&str]| AdapterConfig {
        target_modules: Some(TargetModules::List(names.iter().map(|name| (*name).to_owned()).collect())),
        ..AdapterConfig::new(2, 4.0)
    };
    let all = || AdapterConfig {
        target_modules: Some(TargetModules::Pattern("all-linear".into())),
        ..AdapterConfig::new(2, 4.0)
    };
    for (config, module) in [
        (all(), "model.language_model.layers.*.mlp.down_proj"),
        (modules(&["down_proj"]), "model.language_model.layers.*.mlp.shared_experts.down_proj"),
        (modules(&["model.visual.merger.gate_proj"]), "adapters on model.visual.merger.gate_proj;"),
    ] {
        let error = attached("glm4v_moe", config).unwrap_err().to_string();
        assert!(error.contains(module) && error.contains("target_parameters = ["), "{error}");
    }
    assert!(attached("glm4v_moe", modules(&["q_proj", "qkv"])).unwrap() > 0);
    assert!(attached("glm4v", all()).unwrap() > 0);
    let both = AdapterConfig { modules_to_save: Some(vec!["_proj".into()]), ..modules(&["q_proj"]) };
    let error = attached("glm4v", both).unwrap_err().to_string();
    assert!(error.contains("q_proj has an adapter and belongs to modules_to_save"), "{error}");
}

/// A tied head is trained with the embeddings, here and in PEFT with `ensure_weight_tying`.
#[test]
fn tied_embeddings_are_saved_under_both_names_or_refused() {
    let device = backend().open().unwrap().autodiff();
    let tied = || {
        let mut config = trainable("glm4v").config.clone();
        config.text.tie_word_embeddings = true;
        glm4v_model::initialize(config.init(&device), 7, Precision::F32.dtype())
    };
    let config = AdapterConfig {
        target_modules: Some(TargetModules::List(vec!["q_proj".into()])),
        modules_to_save: Some(vec!["embed_tokens".into()]),
        ..AdapterConfig::new(2, 4.0)
    };
    let error = add_adapter(tied(), &config, 0, Precision::F32).unwrap_err().to_string();
    assert!(error.contains("ensure_weight_tying"), "{error}");

    let config = AdapterConfig { ensure_weight_tying: true, ..config };
    let (model, _) = add_adapter(tied(), &config, 0, Precision::F32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_adapter(&model, &config, folder.path()).unwrap();

    let file = TensorFile::open(&folder.path().join("adapter_model.safetensors")).unwrap();
    let table = |name: &str| {
        values_of(&file.float(&format!("base_model.model.{name}"), Precision::F32.dtype()).unwrap())
    };
    assert_eq!(table("lm_head.weight"), table("model.language_model.embed_tokens.weight"));
    let again = AdapterFolder::open(folder.path()).unwrap().apply(tied(), Precision::F32).unwrap();
    assert_eq!(parameters(&again), parameters(&model));
}

/// The glm4v checkpoint with a golden adapter, which alone is trainable.
fn model_with_adapter(adapter: &str) -> Glm4v {
    let folder = AdapterFolder::open(&golden().join("lora").join(adapter)).unwrap();
    let model = folder.apply(trainable("glm4v"), Precision::F32).unwrap();
    mark_only_adapters_as_trainable(model, folder.config()).0
}

#[test]
fn a_peft_adapter_has_the_logits_gradients_and_steps_of_peft() {
    let case = Case::open("lora/lora");
    let batch = Case::open("train/glm4v/loss_and_grads").batch();
    let model = model_with_adapter("adapter");
    let near = |model: &Glm4v, name: &str| {
        let logits = model.forward(&batch).unwrap().inner().into_data();
        let real = |data| at_unpadded_positions(data, &batch.attention_mask());
        max_difference(&real(&logits), &real(&case.float(name)))
    };
    let difference = near(&model, "out.logits");
    println!("logits differ by {difference:.1e}");
    assert!(difference < LOGITS, "logits differ by {difference}");

    let mut gradients =
        NamedGradients::from_gradients(&model, causal_lm_loss(&model, &batch).unwrap().mean().backward());
    let mut expected: Vec<String> =
        case.names("grad.").iter().map(|name| name.trim_start_matches("grad.").to_owned()).collect();
    expected.sort();
    let ours = |name: &str| name.replace(".lora_A.weight", ".lora.a").replace(".lora_B.weight", ".lora.b");
    assert_eq!(
        gradients.names().map(str::to_owned).collect::<Vec<_>>(),
        expected.iter().map(|name| ours(name)).collect::<Vec<_>>(),
        "the adapter learns, and nothing else"
    );
    for name in &expected {
        let found = gradients.remove(&ours(name)).unwrap().into_data().try_to_vec::<f32>().unwrap();
        let difference = relative_l2(&found, &values_of(&case.float(&format!("grad.{name}"))));
        assert!(difference < GRADIENTS, "{name}: gradient differs by {difference:.1e}");
    }

    let losses: Vec<f64> = serde_json::from_value(case.meta["losses"].clone()).unwrap();
    let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let config = TrainerConfig { max_grad_norm: 0.0, ..Default::default() };
    let mut trainer = Trainer::new(model, AdamW::new(settings), config);
    assert_eq!(losses.len(), 4);
    for (step, expected) in losses.iter().enumerate() {
        let loss = causal_lm_loss(trainer.model(), &batch).unwrap();
        let found = f64::from(loss.clone().mean().into_scalar::<f32>());
        assert!((found - expected).abs() < 2e-3, "after {step} steps: {found}, not {expected}");
        if step < 3 {
            trainer.accumulate_loss(loss);
            trainer.step(0.01).unwrap();
        }
    }
    let model = trainer.into_model();
    let difference = near(&model, "out.logits_after_3_steps");
    println!("logits after 3 steps differ by {difference:.1e}");
    assert!(difference < 5e-3, "logits after 3 steps differ by {difference}");
    let difference = near(&model_with_adapter("adapter_after_3_steps"), "out.logits_after_3_steps");
    assert!(difference < LOGITS, "logits of the saved adapter differ by {difference}");
    let difference = near(&model.clone().merge_adapters(), "out.logits_after_3_steps");
    assert!(difference < 5e-3, "logits of the merged model differ by {difference}");
}

#[test]
fn an_adapter_is_unchanged_by_save_and_load() {
    for (family, config) in [
        (
            "glm4v",
            AdapterConfig {
                target_modules: Some(TargetModules::Pattern("all-linear".into())),
                ..AdapterConfig::new(3, 6.0)
            },
        ),
        (
            "glm4v_moe",
            AdapterConfig {
                target_modules: Some(TargetModules::List(vec!["q_proj".into(), "attn.qkv".into()])),
                target_parameters: Some(vec![
                    "mlp.experts.gate_up_proj".into(),
                    "mlp.experts.down_proj".into(),
                ]),
                modules_to_save: Some(vec!["lm_head".into()]),
                use_rslora: true,
                ..AdapterConfig::new(2, 3.0)
            },
        ),
        (
            "glm_ocr",
            AdapterConfig {
                target_modules: Some(TargetModules::Pattern(r"model\.visual\..*(qkv|gate_proj)".into())),
                ..AdapterConfig::new(2, 3.0)
            },
        ),
    ] {
        let batch = Case::open("train/glm4v/loss_and_grads").batch();
        let (model, names) = add_adapter(trainable(family), &config, 3, Precision::F32).unwrap();
        assert!(!names.is_empty());
        let (mut model, _) = mark_only_adapters_as_trainable(model, &config);
        // Two steps, so that no factor is zero: the first has no gradient for lora_A, as lora_B is initialized with zeros.
        for _ in 0..2 {
            let gradients = NamedGradients::from_gradients(
                &model,
                causal_lm_loss(&model, &batch).unwrap().mean().backward(),
            );
            let settings = AdamWConfig { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
            model = AdamW::new(settings).step(model, gradients, 0.01, 1.0);
        }
        let folder = tempfile::tempdir().unwrap();

        save_adapter(&model, &config, folder.path()).unwrap();

        let again =
            AdapterFolder::open(folder.path()).unwrap().apply(trainable(family), Precision::F32).unwrap();
        let logits = |model: &Glm4v| values_of(&model.forward(&batch).unwrap().inner().into_data());
        assert_eq!(max_difference(&logits(&again), &logits(&model)), 0.0, "{family}");
        assert!(max_difference(&logits(&again), &logits(&trainable(family))) > 0.1, "{family}");
        let difference = max_difference(&logits(&again.merge_adapters()), &logits(&model));
        println!("{family}: merged and unmerged differ by {difference:.1e}");
        assert!(difference < LOGITS, "{family}: merged and unmerged differ by {difference}");
    }
}
