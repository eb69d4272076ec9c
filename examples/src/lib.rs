//! The crates of glm4v as a library: see the examples beside this package's manifest.
