//! What this binary was built with.

/// Cargo features that decide what a binary can do.
pub(crate) fn enabled() -> Vec<&'static str> {
    [
        (cfg!(feature = "cpu"), "cpu"),
        (cfg!(feature = "wgpu"), "wgpu"),
        (cfg!(feature = "cuda"), "cuda"),
        (cfg!(feature = "kernel-cache"), "kernel-cache"),
        (cfg!(feature = "autotune"), "autotune"),
    ]
    .into_iter()
    .filter_map(|(enabled, name)| enabled.then_some(name))
    .collect()
}
