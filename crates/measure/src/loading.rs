//! Loading of a model directory.

use glm4v_model::{DeviceSpec, Glm4v, Precision};
use glm4v_weights::ModelFolder;

use crate::error::MeasureError;
use crate::stopwatch::{Measurement, Stopwatch};

/// Reads all weights of a directory to the device. Its files are in the system's cache after the warm-up, or not if there is
/// none: that cannot be told.
///
/// # Errors
///
/// When the weights are missing or broken, or do not fit the device.
pub fn load(
    folder: &ModelFolder,
    device_spec: &DeviceSpec,
    precision: Precision,
    stopwatch: &Stopwatch,
) -> Result<Measurement, MeasureError> {
    let mut loaded: Option<Glm4v> = None;
    stopwatch.measure_with(
        &mut loaded,
        |loaded| drop(loaded.take()), // two models at once might not fit
        |loaded| {
            *loaded = Some(folder.load_on(device_spec, precision, &mut |_, _| {})?);
            Ok(())
        },
    )
}
