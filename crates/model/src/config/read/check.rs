//! Checks of single values.

use crate::config::error::ConfigError;

// Bounds keep products of sizes far from overflow, whatever an untrusted file contains.
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_COUNT: usize = 1 << 14;
pub(super) const MAX_VOCAB: usize = 1 << 24;

pub(super) fn invalid<T>(
    key: &'static str,
    found: impl ToString,
    needed: impl Into<String>,
) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { key, found: found.to_string(), needed: needed.into() })
}

/// Fails with [`ConfigError::Invalid`] unless `valid`.
pub(super) fn check(
    valid: bool,
    key: &'static str,
    found: impl ToString,
    needed: impl Into<String>,
) -> Result<(), ConfigError> {
    if valid { Ok(()) } else { invalid(key, found, needed) }
}

pub(super) fn required<T>(
    value: Option<T>,
    key: &'static str,
    needed: &'static str,
) -> Result<T, ConfigError> {
    value.ok_or(ConfigError::Missing { key, needed })
}

/// A required size from 1 to `max`.
pub(super) fn size(value: Option<usize>, key: &'static str, max: usize) -> Result<usize, ConfigError> {
    let found = required(value, key, "a positive integer")?;
    check((1..=max).contains(&found), key, found, format!("an integer from 1 to {max}"))?;
    Ok(found)
}

/// SiLU is the only activation of the family; absent means SiLU.
pub(super) fn check_activation(name: Option<&str>, key: &'static str) -> Result<(), ConfigError> {
    let name = name.unwrap_or("silu");
    check(name == "silu", key, format!("\"{name}\""), "\"silu\"")
}

/// `rms_norm_eps`, 1e-5 by default.
pub(super) fn epsilon(value: Option<f64>, key: &'static str) -> Result<f64, ConfigError> {
    let found = value.unwrap_or(1e-5);
    check(found > 0.0 && found < 1.0, key, found, "a small positive number such as 1e-5")?;
    Ok(found)
}

/// `initializer_range`, 0.02 by default.
pub(super) fn initializer_range(value: Option<f64>, key: &'static str) -> Result<f64, ConfigError> {
    let found = value.unwrap_or(0.02);
    check((0.0..1.0).contains(&found), key, found, "a number from 0 to 1, 0.02 in GLM-4.1V")?;
    Ok(found)
}
