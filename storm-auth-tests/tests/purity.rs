//! What may not be in the core, nor in any library.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.append(&mut sources(&path)),
            false => found.push((path.clone(), fs::read_to_string(path).unwrap())),
        }
    }
    found
}

/// R62, R66: nothing that reads a clock, draws entropy, opens a socket or runs futures is below the core, whatever its features.
#[test]
fn r62_r66_the_cores_dependency_tree_is_pure() {
    // No network: the lock file is there, and its crates are, or this test would not have been built.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--package", "storm-auth-core", "--edges", "normal", "--all-features"])
        .args(["--target", "all", "--prefix", "none", "--format", "{p}"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("storm-auth-core") && crates.contains("http"), "{crates:?}");

    let barred = [
        "async-io",
        "async-std",
        "chrono",
        "crossbeam-channel",
        "futures",
        "futures-core",
        "futures-util",
        "getrandom",
        "hyper",
        "jiff",
        "js-sys",
        "log",
        "mio",
        "parking_lot",
        "polling",
        "rand",
        "rand_core",
        "reqwest",
        "rustix",
        "rustls",
        "smol",
        "socket2",
        "tempfile",
        "time",
        "tokio",
        "tracing",
        "ureq",
        "uuid",
        "wasm-bindgen",
        "web-time",
        "windows-sys",
    ];
    let found: Vec<_> = barred.iter().filter(|name| crates.contains(*name)).collect();
    assert!(found.is_empty(), "below the core: {found:?}");
}

/// R62, R66: the core's own sources name no clock, socket, file, thread, process or environment of `std`.
#[test]
fn r62_r66_the_cores_sources_are_pure() {
    let barred = [
        "Instant",
        "SystemTime::now",
        ".elapsed()",
        "SystemTime",
        "UNIX_EPOCH",
        "RandomState",
        "HashMap",
        "HashSet",
        "thread_local!",
        "std::net",
        "std::fs",
        "std::thread",
        "std::env",
        "std::process",
        "std::time",
        "std::sync::mpsc",
        "File::",
        "println!",
        "eprintln!",
    ];
    // The type alone, as what `httpdate` speaks and what callers want a time as; no clock is read for it.
    let exceptions = [
        ("retry_after.rs", ["SystemTime", "UNIX_EPOCH", "std::time"]),
        ("time.rs", ["SystemTime", "UNIX_EPOCH", "std::time"]),
    ];
    for (path, source) in sources(&workspace().join("storm-auth-core/src")) {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            for name in barred.iter().filter(|name| line.contains(**name)) {
                let file = path.file_name().unwrap().to_string_lossy();
                assert!(
                    exceptions.iter().any(|(excepted, names)| *excepted == file && names.contains(name)),
                    "{}:{}: {name}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                );
            }
        }
    }
}

/// R64: every library says so itself, where no lint level from outside can take it back.
#[test]
fn r64_every_library_forbids_unsafe_code() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let members = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).unwrap().0;
    let members: Vec<_> = members.split('"').filter(|part| part.starts_with("storm-auth")).collect();
    assert!(members.len() >= 4, "{members:?}");
    for member in members {
        let root = fs::read_to_string(workspace().join(member).join("src/lib.rs")).unwrap();
        assert!(root.lines().any(|line| line == "#![forbid(unsafe_code)]"), "{member}");
    }
}
