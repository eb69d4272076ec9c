//! Kernels kept between runs: which of several was the fastest for a shape, and what was compiled.
//!
//! cubecl keeps both in one database, its "environment". Here it gets a file for each device, driver and version of this
//! program, in a directory of the caller's choice; left alone, it would write below the working directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::prelude::Device;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, autotune::BenchConfig, cache::CacheConfig};
use cubecl::environment;
use cubecl_environment::persistence::{Access, Database};

use super::driver;

/// How carefully the fastest of several kernels is looked for when a shape is met for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    /// Two or three measurements of each: somebody waits for the answer.
    Quick,
    /// Up to ten of each.
    Thorough,
}

/// Why kernels are not kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelCacheError {
    /// The directory cannot be made or written to, or its disk is full.
    #[error("{}: the kernel cache cannot be written: {source}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The file cannot be used, nor begun anew.
    #[error("{}: the kernel cache cannot be opened: {reason}", file.display())]
    Unusable {
        /// The file of the device.
        file: PathBuf,
        /// The database's words.
        reason: String,
    },
}

/// What the file of a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelCacheSummary {
    /// The file.
    pub file: PathBuf,
    /// Kernels and choices in it.
    pub entries: usize,
    /// Its size.
    pub bytes: u64,
}

/// The directory that [`install`] was given.
static DIR: OnceLock<PathBuf> = OnceLock::new();

/// Written and removed again, to see whether there is room.
const PROBE_BYTES: usize = 1 << 18;

/// Keeps kernels in `dir`, which is made if need be, for devices that are opened from now on in this process.
///
/// Without a usable directory nothing is kept, and each process chooses and compiles anew. Call it before the first device is
/// opened; the first call of a process counts. Variables of cubecl (`CUBECL_DEBUG_LOG` and its kin) are obeyed, its
/// `cubecl.toml` is not: a file in the working directory must not change what a run computes.
///
/// # Errors
///
/// When the directory cannot be written to. Devices can be opened all the same.
pub fn install(dir: Option<&Path>, tuning: Tuning) -> Result<(), KernelCacheError> {
    let probed =
        dir.map(|dir| probe(dir).map_err(|source| KernelCacheError::Directory { dir: dir.into(), source }));
    let dir = match &probed {
        Some(Ok(())) => dir,
        _ => None,
    };
    let mut config = CubeClRuntimeConfig::default().override_from_env();
    config.autotune.disable_cache = dir.is_none();
    config.compilation.cache = dir.is_some();
    if tuning == Tuning::Quick {
        config.autotune.bench = BenchConfig { min_samples: 2, max_samples: 3, ..BenchConfig::default() };
    }
    if let Some(dir) = dir {
        // Until a device is known, and so its own file: see `select`.
        config.environment.name = "opening".to_owned();
        config.environment.path = CacheConfig::Directory(dir.to_owned());
    }
    if CubeClRuntimeConfig::try_set(config)
        && let Some(dir) = dir
    {
        let _ = DIR.set(dir.to_owned());
    }
    probed.unwrap_or(Ok(()))
}

/// Whether a file of some size can be written.
fn probe(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("probe-{}", std::process::id()));
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0; PROBE_BYTES])?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// Turns to the file of a device. A damaged one is removed and begun anew.
pub(super) fn select(device: &Device) -> Result<(), KernelCacheError> {
    if DIR.get().is_none() {
        return Ok(());
    }
    let name = device.identity().map_or_else(|| "unknown".to_owned(), |identity| identity.name);
    let driver = driver::version(device).unwrap_or_else(|| "unknown".to_owned());
    environment::activate(file_name(&name, &driver));
    let file = environment::path();
    let Err(first) = open(&file) else { return Ok(()) };
    // A cache: what it held is made again.
    tracing::warn!("{}: the kernel cache is damaged, and is begun anew: {first}", file.display());
    for part in parts(&file) {
        let _ = fs::remove_file(part);
    }
    open(&file).map_err(|reason| KernelCacheError::Unusable { file, reason })
}

/// The database is opened by a library that is young: its panic is an error too.
fn open(file: &Path) -> Result<(), String> {
    std::panic::catch_unwind(|| Database::open_at(file, Access::ReadWrite).map(drop))
        .unwrap_or_else(|payload| Err(super::fault::panic_text(&*payload).unwrap_or("panicked").to_owned()))
}

/// Database and its log.
fn parts(file: &Path) -> [PathBuf; 2] {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    [file.to_owned(), log.into()]
}

/// Version, device and driver; what a file name cannot hold becomes `_`.
fn file_name(device: &str, driver: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
    format!("{}-{device}-{driver}", env!("CARGO_PKG_VERSION")).chars().map(safe).collect()
}

/// Removes what is kept in `dir` for all devices, drivers and versions; other files stay. Call it before the first device is
/// opened.
///
/// # Errors
///
/// When a file cannot be removed.
pub fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".db") || name.ends_with(".db-wal") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// What the file of the device that was opened last holds; none if nothing is kept.
pub fn summary() -> Option<KernelCacheSummary> {
    DIR.get()?;
    let file = environment::path();
    let entries = environment::namespaces().iter().map(|namespace| namespace.entries as usize).sum();
    let bytes = parts(&file).iter().filter_map(|part| Some(fs::metadata(part).ok()?.len())).sum();
    Some(KernelCacheSummary { file, entries, bytes })
}
