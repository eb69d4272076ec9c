//! Makes Cargo build the binary with the tests, as the suites in `tests/` run it.

use std::process::Command;

#[test]
fn version_is_the_package_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_glm4v")).arg("--version").output().unwrap();

    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout, format!("glm4v {}\n", env!("CARGO_PKG_VERSION")));
}
