//! What `.ci/run` cannot say in a command: which compiler the workspace states, and that everything below it takes that one.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::{path::Path, process::Command};

fn run(program: &str, arguments: &[&str]) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(program).args(arguments).current_dir(workspace).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `1.89` or `1.89.0`, as numbers.
fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// R77: the oldest compiler is stated in one place, and nothing below asks for a newer one. Which parts of `std` we use is clippy's
/// `incompatible_msrv` to check.
#[test]
fn r77_nothing_below_needs_a_newer_compiler_than_the_stated_one() {
    let compiler = run("rustc", &["-vV"]);
    let platform = compiler.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", platform];
    let metadata: serde_json::Value = serde_json::from_str(&run(env!("CARGO"), &metadata)).unwrap();

    let packages = metadata["packages"].as_array().unwrap();
    let ours: Vec<_> = packages.iter().filter(|package| package["source"].is_null()).collect();
    let stated = ours[0]["rust_version"].as_str().unwrap();
    assert!(ours.len() >= 4 && ours.iter().all(|package| package["rust_version"] == stated), "{ours:?}");
    let newer: Vec<_> = packages
        .iter()
        .filter(|package| package["rust_version"].as_str().is_some_and(|needs| version(needs) > version(stated)))
        .map(|package| (&package["name"], &package["rust_version"]))
        .collect();
    assert!(newer.is_empty(), "newer than {stated}: {newer:?}");
}
