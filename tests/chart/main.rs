//! The chart renders what is stored beside this file, and its schema refuses what it should. Needs helm; no cluster.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

#[test]
fn the_chart_renders_as_stored() {
    let output = Command::new("tests/chart/golden.sh").current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("bash");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
}
