//! Files of the repository: configs of runs and models, images of datasets, and rules for all sources and manifests. `crates/data/tests/files.rs` shows that every record becomes a sample.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::Device;
use glm4v_data::{DatasetRegistry, DatasetSource, EvalExample};
use glm4v_model::Glm4vConfig;
use glm4v_processor::{DecodeLimits, ImageSource, Processor};
use glm4v_tests::{ImportGraph, glm4v, repository, walk};
use glm4v_train::{RunConfig, WeightInit};
use glm4v_weights::ModelFolder;
use proc_macro2::{TokenStream, TokenTree};
use serde_json::Value;

/// All files under `folder` whose path ends in `ending`; at least one, so that no test passes because a directory moved.
fn all(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = walk(&repository().join(folder));
    found.retain(|path| path.is_file() && path.to_str().unwrap().ends_with(ending));
    assert!(!found.is_empty(), "{folder}: no {ending}");
    found
}

fn registry() -> DatasetRegistry {
    DatasetRegistry::load(&repository().join("datasets")).unwrap()
}

/// Every split of every registered dataset.
fn sources() -> Vec<DatasetSource> {
    let registry = registry();
    let mut sources = Vec::new();
    for name in registry.names() {
        for split in registry.splits(name).unwrap() {
            sources.push(registry.find(&format!("{name}:{split}")).unwrap());
        }
    }
    assert!(!sources.is_empty(), "no datasets");
    sources
}

#[test]
fn every_config_of_a_run_names_a_model_and_data_that_are_there() {
    for path in all("configs/finetune", ".toml") {
        let place = path.display();
        let text = fs::read_to_string(&path).unwrap();

        let config = RunConfig::read(&path, &[]).unwrap();

        let folder = repository().join(&config.model.path);
        if folder.exists() {
            ModelFolder::open(&folder).unwrap();
            Processor::load(&folder).unwrap();
        } else {
            // Published weights are not part of the repository; the config's header then names the download.
            let needs = text.lines().any(|line| line.starts_with("# Needs:") && !line.contains("nothing"));
            assert!(needs && config.model.init == WeightInit::Pretrained, "{place}: no {}", folder.display());
        }
        assert_eq!(config.data.dir, Path::new("datasets"), "{place}");
        for entry in config.data.train.0.iter().chain(&config.eval.data.0) {
            let records = registry().find(&entry.name).unwrap().read(None).unwrap();
            assert!(!records.is_empty(), "{place}: {}", entry.name);
        }
    }
}

#[test]
fn every_config_of_a_run_begins_with_what_it_needs_and_how_it_is_run() {
    for path in all("configs/finetune", ".toml") {
        let place = path.display();
        let text = fs::read_to_string(&path).unwrap();
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        let value = |key: &str| {
            let lines: Vec<&str> =
                header.iter().filter_map(|line| line.strip_prefix(key)).map(str::trim).collect();
            assert!(
                lines.len() == 1 && !lines[0].is_empty(),
                "{place}: needs one line \"{key} ...\", has {lines:?}"
            );
            lines[0].to_owned()
        };

        let run = value("# Run:");
        value("# Needs:");

        let arguments = run
            .strip_prefix("cargo run --release -- ")
            .or_else(|| run.strip_prefix("glm4v "))
            .unwrap_or_else(|| panic!("{place}: {run:?} runs something else"));
        let named = arguments.strip_prefix("train ").and_then(|rest| rest.split_whitespace().next());
        let own = path.strip_prefix(repository()).unwrap();
        assert_eq!(named.map(Path::new), Some(own), "{place}: {run:?} runs another file");
    }
}

#[test]
fn every_config_of_a_model_describes_a_network() {
    for path in all("configs/models", "config.json") {
        if path.file_name().unwrap() != "config.json" {
            continue; // preprocessor_config.json, video_preprocessor_config.json
        }
        let config = Glm4vConfig::from_json(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));

        let folder = path.parent().unwrap();
        if !folder.join("tokenizer.json").exists() {
            continue; // a size without a tokenizer
        }
        let processor = Processor::load(folder).unwrap();
        assert_eq!(processor.tokenizer().special().image, config.image_token_id, "{}", path.display());
        assert_eq!(
            processor.image_processor().patches_per_token(),
            config.vision.merged_patches(),
            "{}",
            path.display()
        );
    }
}

fn model_config(name: &str) -> Glm4vConfig {
    let path = repository().join("configs/models").join(name).join("config.json");
    Glm4vConfig::from_json(&fs::read_to_string(path).unwrap()).unwrap()
}

// Nothing is allocated: parameters are lazy until they are loaded or initialized.
#[test]
fn published_models_have_the_published_parameter_counts() {
    let counts = |name| model_config(name).param_counts(&Device::flex());

    let nine = counts("glm-4.1v-9b-thinking");
    assert_eq!(nine.vision_tower, 679_550_976 + 1_807_872 + 884_736 + 3_072); // blocks, patches, positions, norms
    assert_eq!(nine.merger, 185_081_856 + 25_169_920);
    assert_eq!((nine.embedding, nine.head), (620_756_992, 620_756_992));
    assert_eq!(nine.decoder, 40 * (35_656_192 + 168_296_448 + 16_384) + 4_096); // attention, feed-forward, norms
    assert_eq!((nine.total(), nine.tensors), (10_292_777_472, 704));
    assert_eq!(nine.active_params(), 8_779_522_048);
    assert_eq!(nine, counts("glm-4.6v-flash"));

    // Counted in the published file: 18,106 tensors, 107,710,933,120 numbers.
    let large = counts("glm-4.5v");
    assert_eq!((large.total(), large.tensors), (107_710_933_120, 18_106));
    assert_eq!(large.vision_tower + large.merger, 858_681_856);
    assert_eq!(large.active_experts * 16, large.experts); // 8 of 128
    assert_eq!(large.active_params(), 12_803_366_912 + 45 * 128); // and the routers' corrections
    assert_eq!(large, counts("glm-4.6v"));

    let ocr = counts("glm-ocr");
    assert_eq!(ocr.vision_tower + ocr.merger, 434_120_192);
    assert_eq!(ocr.active_params(), 582_059_520);
    assert_eq!(ocr.total(), 434_120_192 + 582_059_520 + 59_392 * 1_536);
}

#[test]
fn published_models_differ_where_they_do() {
    let theta = |name| model_config(name).text.rope.rope_theta;

    assert_eq!([theta("glm-4.1v-9b-thinking"), theta("glm-4.5v"), theta("glm-ocr")], [10_000.0; 3]);
    assert_eq!([theta("glm-4.6v-flash"), theta("glm-4.6v")], [500_000.0; 2]);
    assert_eq!(model_config("glm-4.1v-9b-thinking").image_token_id, 151_343);
    assert_eq!(model_config("glm-4.6v-flash").image_token_id, 151_363);
    assert_eq!(model_config("glm-ocr").text.rope.rotary_dim, 128);
}

#[test]
fn info_reports_every_model_without_its_weights() {
    for path in all("configs/models", "/config.json") {
        let folder = path.parent().unwrap().to_str().unwrap();

        let output = glm4v(["info", "--json", "--model", folder]).success();

        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        let config = Glm4vConfig::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
        let params = config.param_counts(&Device::flex());
        let estimate = &report["estimate"];
        assert_eq!(report["parameters"], params.total(), "{folder}");
        assert_eq!(report["image"]["tokens"], 1369, "{folder}"); // of 1024 x 1024 pixels
        assert_eq!(estimate["bytes_read_per_token"], 4 * params.active_params(), "{folder}");
        assert!(estimate["training"]["peak_bytes"].as_u64() > Some(16 * params.total()), "{folder}");
        // With adapters in the vision tower its activations are saved for the backward pass.
        let peak = |tuning: &str| estimate[tuning]["peak_bytes"].as_u64().unwrap();
        let [text, all] = ["training_lora_rank_16", "training_lora_rank_16_all_linear"].map(peak);
        assert!(text < all, "{folder}: {text}, {all}");
        assert!(estimate["training"]["largest_part"].is_string(), "{folder}");
    }
}

#[test]
fn info_reports_the_dtypes_of_stored_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join("model");
    let out = model.to_str().unwrap();
    glm4v(["init", "--config", "configs/models/digits", "--dtype", "bf16", "--out", out]).success();

    let output = glm4v(["info", "--json", "--image-size", "none", "--model", out]).success();

    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["weights"]["types"], serde_json::json!({"BF16": report["tensors"]}));
    assert_eq!(report["weights"]["total_bytes"], 2 * report["parameters"].as_u64().unwrap());
}

#[test]
fn every_image_of_a_dataset_can_be_decoded_and_is_part_of_the_repository() {
    let root = repository().canonicalize().unwrap();
    let mut images = 0;
    for source in sources() {
        for record in source.read(None).unwrap() {
            for image in record.images() {
                let decoded = DecodeLimits::default().load(image);

                decoded.unwrap_or_else(|error| panic!("{}: {error}", record.location));
                images += 1;
                if let ImageSource::Path(path) = image {
                    assert!(
                        path.canonicalize().unwrap().starts_with(&root),
                        "{}: {path:?} is outside of the repository",
                        record.location
                    );
                }
            }
        }
    }
    assert!(images > 1000, "{images} images");
}

#[test]
fn digits_in_german_are_the_same_scans_in_the_same_order() {
    let records = |name: &str| registry().find(name).unwrap().read(None).unwrap();
    let mut words = BTreeMap::new();
    for split in ["train", "test"] {
        let english = records(&format!("digits:{split}"));
        let german = records(&format!("digits-german:{split}"));

        assert_eq!(english.len(), german.len());
        for (one, other) in english.iter().zip(&german) {
            let (one, other) =
                (EvalExample::from_record(one).unwrap(), EvalExample::from_record(other).unwrap());
            assert_eq!(one.images, other.images);
            let word = words.entry(one.answer.clone()).or_insert_with(|| other.answer.clone());
            assert_eq!(*word, other.answer, "{} has two names", one.answer);
            assert_ne!(one.answer, other.answer, "an English answer would count as correct");
        }
    }
    assert_eq!(words.values().collect::<BTreeSet<_>>().len(), 10, "{words:?}");
    assert_eq!((words.len(), words["five"].as_str()), (10, "fünf"));
}

#[test]
fn every_dataset_has_a_readme() {
    for source in sources() {
        for file in source.files {
            let folder = file.parent().unwrap();
            assert!(folder.join("README.md").exists(), "{} has no README.md", folder.display());
        }
    }
}

/// String literals of a source file with their lines, without doc comments.
fn literals(source: TokenStream, found: &mut Vec<(usize, String)>) {
    let mut tokens = source.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Literal(literal) => {
                found.push((literal.span().start().line, literal.to_string()));
            }
            TokenTree::Punct(mark) if mark.as_char() == '#' => {
                tokens.next_if(|next| next.to_string().starts_with("[doc"));
            }
            TokenTree::Group(group) => literals(group.stream(), found),
            _ => {}
        }
    }
}

fn names_a_flag(text: &str) -> bool {
    // Flags in a command of another program are not ours.
    !text.contains("hf download ")
        && text.match_indices("--").any(|(at, dashes)| {
            let within_a_name = text[..at].ends_with(char::is_alphanumeric);
            !within_a_name
                && text[at + dashes.len()..].starts_with(|letter: char| letter.is_ascii_lowercase())
        })
}

// Advice in terms of flags is given by `crates/cli/src/remedy.rs` alone.
#[test]
fn libraries_name_no_flags() {
    let mut sources = all("crates", ".rs");
    let library = |path: &Path| {
        let mut folders = path.strip_prefix(repository().join("crates")).unwrap().iter();
        folders.next().unwrap() != "cli" && folders.next().unwrap() == "src"
    };
    sources.retain(|path| library(path));
    let mut flags = Vec::new();
    for path in sources {
        let source = fs::read_to_string(&path).unwrap().parse().unwrap();
        let mut found = Vec::new();
        literals(source, &mut found);
        let named = found.into_iter().filter(|(_, text)| names_a_flag(text));
        flags.extend(named.map(|(line, text)| format!("{}:{line}: {text}", path.display())));
    }
    assert!(flags.is_empty(), "{}", flags.join("\n"));
    assert!(names_a_flag("\"use --dtype\"") && !names_a_flag("\"a -- b\"") && !names_a_flag("models--a--b"));
}

#[test]
fn no_crate_has_a_circle_of_imports_between_its_files() {
    let mut report = String::new();
    let mut files = 0;
    for manifest in all("crates", "/Cargo.toml") {
        let crate_dir = manifest.parent().unwrap();
        let graph = ImportGraph::read(&crate_dir.join("src"));
        files += graph.len();
        for circle in graph.circles() {
            report += &format!("{}:\n  {}\n", crate_dir.display(), graph.edges_within(&circle).join("\n  "));
        }
    }

    assert!(files > 100, "{files} files");
    assert!(report.is_empty(), "circles of imports:\n{report}");
}

/// Every file of the repository with this ending, without builds.
fn documents() -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files", "*.md"]).current_dir(repository()).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8(output.stdout).unwrap().lines().map(|path| repository().join(path)).collect()
        }
        // A source archive has no git.
        _ => ["README.md", "ARCHITECTURE.md", "docs/reading.md"].map(|path| repository().join(path)).to_vec(),
    }
}

#[test]
fn every_relative_link_of_the_documentation_leads_somewhere() {
    let mut links = 0;
    let mut broken = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next()) {
            if link.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            links += 1;
            if !document.parent().unwrap().join(link).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(links > 30, "{links} links");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Metadata of the workspace's packages, without dependencies.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(metadata["packages"].take()).unwrap()
}

/// Names of a package's test targets, which for `glm4v-tests` are the suites.
fn test_targets(package: &str) -> Vec<String> {
    let mut names = Vec::new();
    for package in packages().into_iter().filter(|found| found["name"] == package) {
        for target in package["targets"].as_array().unwrap() {
            if target["kind"].as_array().unwrap().contains(&Value::from("test")) {
                names.push(target["name"].as_str().unwrap().to_owned());
            }
        }
    }
    names
}

// Issue 8: two benchmarks were binaries, and the README's first command ended with "could not determine which binary to run".
#[test]
fn cargo_run_in_the_root_has_one_binary_to_run() {
    let mut binaries = Vec::new();
    for package in packages() {
        for target in package["targets"].as_array().unwrap() {
            if target["kind"].as_array().unwrap().contains(&Value::from("bin")) {
                binaries.push(target["name"].as_str().unwrap().to_owned());
            }
        }
    }

    assert_eq!(binaries, ["glm4v"]);
}

#[test]
fn every_crate_is_described_as_a_registry_needs_it() {
    let crates = fs::canonicalize(repository().join("crates")).unwrap();
    let mut seen = 0;
    for package in packages() {
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap()).canonicalize().unwrap();
        if !manifest.starts_with(&crates) {
            continue; // tests, examples and benches stay here
        }
        seen += 1;
        let name = package["name"].as_str().unwrap();
        let words = |key: &str| package[key].as_array().unwrap().len();
        assert!(package["description"].as_str().is_some_and(|text| text.len() > 20), "{name}: description");
        assert!(package["license"].is_string(), "{name}: license");
        assert!((1..=5).contains(&words("keywords")), "{name}: 1 to 5 keywords");
        assert!((1..=5).contains(&words("categories")), "{name}: 1 to 5 categories");
        let readme = manifest.with_file_name("README.md");
        let text =
            fs::read_to_string(&readme).unwrap_or_else(|error| panic!("{}: {error}", readme.display()));
        assert!(text.starts_with(&format!("# {name}\n")), "{} has another title", readme.display());
    }
    assert!(seen >= 7, "{seen} crates");
}

/// Environment variables in a text: words that begin with `GLM4V_`.
fn variables(text: &str) -> BTreeSet<String> {
    text.match_indices("GLM4V_")
        .map(|(at, _)| text[at..].split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_'))
        .filter_map(|mut words| words.next().map(str::to_owned))
        .filter(|name| !name.ends_with('_'))
        .collect()
}

#[test]
fn every_suite_and_every_variable_of_the_environment_is_in_the_readme_of_tests() {
    let readme = fs::read_to_string(repository().join("tests/README.md")).unwrap();
    let mut read = BTreeSet::new();
    for folder in ["crates", "tests", "benches", "examples", "hardware", ".ci"] {
        for path in walk(&repository().join(folder)) {
            let script = path.components().any(|part| part.as_os_str() == ".ci");
            if path.is_file()
                && (script || path.extension().is_some_and(|ending| ending == "rs" || ending == "py"))
            {
                read.append(&mut variables(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(read.contains("GLM4V_GOLDEN"), "the walk found {read:?}");

    let documented = variables(&readme);
    assert_eq!(
        read.difference(&documented).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "tests/README.md lacks variables"
    );
    assert_eq!(
        documented.difference(&read).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "tests/README.md documents variables that nothing reads"
    );
    let suites = test_targets("glm4v-tests");
    assert!(suites.len() >= 10, "{suites:?}");
    for name in suites {
        assert!(readme.contains(&format!("| `{name}` |")), "tests/README.md lacks the suite {name}");
    }
}

#[test]
fn every_benchmark_is_in_the_index() {
    let index = fs::read_to_string(repository().join("benches/README.md")).unwrap();
    let mut seen = 0;
    for readme in all("benches", "/README.md") {
        let folder = readme.parent().unwrap();
        if folder.ends_with("benches") {
            continue;
        }
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(index.contains(&format!("| [{name}]({name}/README.md) |")), "benches/README.md lacks {name}");
        seen += 1;
    }
    assert!(seen >= 5, "{seen} benchmarks");
}
