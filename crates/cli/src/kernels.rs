//! Where tuned and compiled kernels of GPUs are kept, and what to tell of it.

#[cfg(feature = "kernel-cache")]
pub(crate) use glm4v_model::kernel_cache::Tuning;
#[cfg(feature = "kernel-cache")]
pub(crate) use kept::{clear, install, summary};
#[cfg(not(feature = "kernel-cache"))]
pub(crate) use unkept::{Tuning, clear, install, summary};

/// With a cache on disk.
#[cfg(feature = "kernel-cache")]
mod kept {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use glm4v_model::kernel_cache::{self, KernelCacheSummary, Tuning};

    /// `$XDG_CACHE_HOME/glm4v`, or `~/.cache/glm4v`; none without a home.
    fn default_dir(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The specification asks to ignore a relative one.
        let xdg = path("XDG_CACHE_HOME").filter(|dir| dir.is_absolute());
        Some(xdg.or_else(|| Some(path("HOME")?.join(".cache")))?.join("glm4v"))
    }

    fn dir() -> Option<PathBuf> {
        default_dir(|name| std::env::var_os(name))
    }

    /// Sets the cache up, before the first device is opened. Without a usable one there is a warning.
    pub(crate) fn install(tuning: Tuning) {
        let dir = dir();
        if dir.is_none() {
            tracing::warn!("no directory for the kernel cache; needed: HOME or XDG_CACHE_HOME");
        }
        if let Err(error) = kernel_cache::install(dir.as_deref(), tuning) {
            tracing::warn!("{error}; kernels are chosen and compiled anew in each run");
        }
    }

    /// Removes what is kept for all devices; before the first is opened.
    pub(crate) fn clear() -> std::io::Result<()> {
        dir().map_or(Ok(()), |dir| kernel_cache::clear(&dir))
    }

    /// What is kept for the device that is open.
    pub(crate) fn summary() -> Option<KernelCacheSummary> {
        kernel_cache::summary()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_cache_is_where_the_system_keeps_caches_and_never_in_the_working_directory() {
            let with = |set: &[(&str, &str)]| {
                let find =
                    |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
                default_dir(find).map(|dir| dir.display().to_string())
            };
            let found = |text: &str| Some(text.to_owned());

            assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), found("/c/glm4v"));
            assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "")]), found("/h/.cache/glm4v"));
            assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "c")]), found("/h/.cache/glm4v"));
            assert_eq!(with(&[("HOME", "/h")]), found("/h/.cache/glm4v"));
            assert_eq!(with(&[]), None);
        }
    }
}

/// Without one, in a binary that was built so.
#[cfg(not(feature = "kernel-cache"))]
mod unkept {
    use std::path::PathBuf;

    /// How carefully kernels are chosen, of which there is no choice here.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Tuning {
        Quick,
        Thorough,
    }

    /// What a file holds, of which there is none here.
    pub(crate) struct KernelCacheSummary {
        pub(crate) file: PathBuf,
        pub(crate) entries: usize,
        pub(crate) bytes: u64,
    }

    pub(crate) fn install(_tuning: Tuning) {}

    pub(crate) fn clear() -> std::io::Result<()> {
        Ok(())
    }

    pub(crate) fn summary() -> Option<KernelCacheSummary> {
        None
    }
}
