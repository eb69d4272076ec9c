//! Has Cargo build the binary whenever it builds all tests: the suites in `tests/` run it.

use std::process::Command;

#[test]
fn the_binary_tells_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_glm4v")).arg("--version").output().unwrap();

    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, format!("glm4v {}\n", env!("CARGO_PKG_VERSION")));
}
