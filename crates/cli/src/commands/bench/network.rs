//! The network that is measured: a model directory, or a config with random weights.

use std::path::{Path, PathBuf};

use anyhow::Context;
use glm4v_files::{LONGEST_CONFIG, read_text};
use glm4v_measure::random_weights;
use glm4v_model::{DeviceSpec, Glm4v, Glm4vConfig, ParamCounts, Precision, is_cpu};
use glm4v_processor::ImageConfig;
use glm4v_weights::ModelFolder;

use crate::args::Bench;
use crate::commands::{counting_device, image_config, load_model};

/// A network with its parameter counts.
pub(in crate::commands) struct Network {
    /// `--model`; none with `--config`.
    folder: Option<ModelFolder>,
    config: Glm4vConfig,
    params: ParamCounts,
    image_config: ImageConfig,
    path: PathBuf,
    on_cpu: bool,
}

impl Network {
    /// The network of the flags; none without either.
    pub(in crate::commands) fn open(args: &Bench, device_spec: &DeviceSpec) -> anyhow::Result<Option<Self>> {
        let Some(path) = args.model.as_ref().or(args.config.as_ref()) else { return Ok(None) };
        let (folder, config, dir) = match args.model {
            None if path.is_file() => {
                let json = read_text(path, LONGEST_CONFIG)?;
                let config = Glm4vConfig::from_json(&json).with_context(|| path.display().to_string())?;
                (None, config, path.parent().unwrap_or(Path::new(".")).to_owned())
            }
            _ => {
                let folder = ModelFolder::open(path)?;
                let (config, dir) = (folder.config().clone(), folder.path().to_owned());
                (args.model.is_some().then_some(folder), config, dir)
            }
        };
        let image_config = match image_config(&dir)? {
            Some(image_config) => image_config,
            None => ImageConfig::from_json("{}")?,
        };
        Ok(Some(Self {
            folder,
            params: config.param_counts(&counting_device()),
            config,
            image_config,
            path: path.clone(),
            on_cpu: is_cpu(&device_spec.device),
        }))
    }

    /// The directory of `--model`.
    pub(super) fn folder(&self) -> Option<&ModelFolder> {
        self.folder.as_ref()
    }

    pub(super) fn config(&self) -> &Glm4vConfig {
        &self.config
    }

    pub(super) fn params(&self) -> &ParamCounts {
        &self.params
    }

    /// Settings of the image processor beside the config, or transformers' defaults.
    pub(super) fn image_config(&self) -> &ImageConfig {
        &self.image_config
    }

    /// Whether the processor computes.
    pub(super) fn on_cpu(&self) -> bool {
        self.on_cpu
    }

    /// The argument.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the weights come from.
    pub(super) fn weights(&self) -> &'static str {
        if self.folder.is_some() { "loaded" } else { "random, made on the device" }
    }

    /// Loads the weights, or makes random ones.
    pub(super) fn model(
        &self,
        device_spec: &DeviceSpec,
        precision: Precision,
        seed: u64,
        quiet: bool,
    ) -> anyhow::Result<Glm4v> {
        match &self.folder {
            Some(folder) => load_model(folder, None, device_spec, precision, quiet),
            None => Ok(random_weights(self.config.init_on(device_spec)?, precision, seed)),
        }
    }
}
