//! Every file that comes with the repository can be used: configs of runs, configs of models, pictures of data sets.
//! That every record becomes a sample is shown in `crates/data/tests/files.rs`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

use glm4v_data::{Registry, Source};
use glm4v_model::Glm4vConfig;
use glm4v_processor::{DecodeLimits, ImageSource, Processor};
use glm4v_tests::{repository, walk};
use glm4v_train::{Init, RunConfig};
use glm4v_weights::ModelFolder;

/// Every file of that name or ending under `folder`; a walk that finds none is a mistake.
fn all(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = walk(&repository().join(folder));
    found.retain(|path| path.is_file() && path.to_str().unwrap().ends_with(ending));
    assert!(!found.is_empty(), "{folder}: no {ending}");
    found
}

fn registry() -> Registry {
    Registry::load(&repository().join("datasets")).unwrap()
}

/// Every split of every data set that has a name.
fn sources() -> Vec<Source> {
    let registry = registry();
    let mut sources = Vec::new();
    for name in registry.names() {
        for split in registry.splits(name).unwrap() {
            sources.push(registry.find(&format!("{name}:{split}")).unwrap());
        }
    }
    assert!(!sources.is_empty(), "no data sets");
    sources
}

#[test]
fn every_config_of_a_run_names_a_model_and_data_that_are_there() {
    for path in all("configs/finetune", ".toml") {
        let place = path.display();
        let text = fs::read_to_string(&path).unwrap();

        let config = RunConfig::read(&path, &[]).unwrap();

        let folder = repository().join(&config.model.folder);
        if folder.exists() {
            ModelFolder::open(&folder).unwrap();
            Processor::load(&folder).unwrap();
        } else {
            // Published weights are not part of the repository; the file then says how to get them.
            let needs = text.lines().any(|line| line.starts_with("# Needs:") && !line.contains("nothing"));
            assert!(needs && config.model.init == Init::Weights, "{place}: no {}", folder.display());
        }
        assert_eq!(config.data.folder, Path::new("datasets"), "{place}");
        for name in [&config.data.train, &config.data.eval] {
            let records = |name: &String| registry().find(name).unwrap().read(None).unwrap().len();
            assert!(name.is_empty() || records(name) > 0, "{place}: {name}");
        }
        assert!(text.contains("# Run:"), "{place}: does not say how to run it");
        assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{place}: names another file");
    }
}

#[test]
fn every_config_of_a_model_describes_a_network() {
    for path in all("configs/models", "config.json") {
        if path.file_name().unwrap() != "config.json" {
            continue; // preprocessor_config.json and its kin
        }
        let config = Glm4vConfig::from_json(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));

        let folder = path.parent().unwrap();
        if !folder.join("tokenizer.json").exists() {
            continue; // a size without words
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

#[test]
fn every_picture_of_a_data_set_can_be_seen_and_comes_with_the_repository() {
    let root = repository().canonicalize().unwrap();
    let mut pictures = 0;
    for source in sources() {
        for record in source.read(None).unwrap() {
            for image in record.images() {
                let seen = DecodeLimits::default().load(image);

                seen.unwrap_or_else(|error| panic!("{}: {error}", record.at));
                pictures += 1;
                if let ImageSource::Path(path) = image {
                    assert!(
                        path.canonicalize().unwrap().starts_with(&root),
                        "{}: {path:?} is not ours",
                        record.at
                    );
                }
            }
        }
    }
    assert!(pictures > 1000, "{pictures} pictures");
}

#[test]
fn every_data_set_has_a_description() {
    for source in sources() {
        for file in source.files {
            let folder = file.parent().unwrap();
            assert!(folder.join("README.md").exists(), "{} has no README.md", folder.display());
        }
    }
}
