//! What may not be in the core, nor in any library.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// What a clock, entropy, a file, a socket, a thread or the environment is called in Rust.
const IMPURE: [&str; 11] = [
    "Instant",
    "SystemTime::now",
    "RandomState",
    "getrandom",
    "std::net",
    "std::fs",
    "std::thread",
    "std::env",
    "std::process",
    "thread_local",
    "extern \"C\"",
];

/// Every crate that is linked below the core, whatever its features; which of those names stand in its sources; and why that is
/// no harm. One that is new, and a name that is new in one, has to be looked at before it is listed here.
const BELOW_THE_CORE: [(&str, &[&str], &str); 19] = [
    ("arc-swap", &["thread_local"], "what a reader of this thread holds"),
    ("bytes", &["std::process"], "aborts when a reference count overflows"),
    (
        "fastrand",
        &["Instant", "getrandom", "std::thread", "thread_local"],
        "features that are off: a generator that seeds itself",
    ),
    ("form_urlencoded", &[], ""),
    ("hmac-sha256", &[], ""),
    ("http", &["RandomState"], "what a header map turns to when its names collide on purpose"),
    ("http-auth", &[], ""),
    ("httpdate", &[], ""),
    ("itoa", &[], ""),
    ("memchr", &[], ""),
    ("percent-encoding", &[], ""),
    ("ryu", &[], ""),
    ("serde", &["std::net"], "addresses as data"),
    ("serde_core", &["std::net"], "addresses as data"),
    ("serde_json", &["RandomState"], "its feature `preserve_order`, which is off"),
    ("serde_urlencoded", &[], ""),
    ("storm-auth-core", &[], "the test below looks closer"),
    ("zeroize", &[], ""),
    ("zmij", &[], ""),
];

/// R62, R66: what is below the core was looked at, crate by crate.
#[test]
fn r62_r66_the_cores_dependency_tree_is_pure() {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(workspace()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // No network: the lock file is there, and so are the crates of this platform, or this test would not have been built.
    let cargo = |arguments: &[&str]| run(env!("CARGO"), &[arguments, &["--offline", "--locked"]].concat());
    let compiler = run("rustc", &["-vV"]);
    let platform = compiler.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let tree = cargo(&[
        "tree",
        "--package",
        "storm-auth-core",
        "--all-features",
        "--target",
        "all",
        "--edges",
        "normal,no-proc-macro",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let below: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--filter-platform", platform])).unwrap();

    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let (name, manifest) = (package["name"].as_str().unwrap(), package["manifest_path"].as_str().unwrap());
        if below.contains(name) {
            let sources = sources(&Path::new(manifest).with_file_name("src"));
            let names: &mut BTreeSet<&str> = found.entry(name).or_default();
            for line in sources.iter().flat_map(|(_, source)| code(source)) {
                names.extend(IMPURE.iter().filter(|name| line.contains(**name)));
            }
        }
    }
    let listed = BELOW_THE_CORE.iter().map(|(name, names, _)| (*name, names.iter().copied().collect())).collect();
    assert_eq!(found, listed, "what stands below the core, against what is listed here");
}

/// The lines of a source, without comments and without the tests at its end.
fn code(source: &str) -> impl Iterator<Item = &str> {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    source.lines().map(|line| line.split("//").next().unwrap_or_default())
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
        // Nor do the examples of its docs: people copy them.
        for name in ["std::fs", "std::net::", "std::thread", "std::env", "SystemTime::now", "Instant::now"] {
            assert!(!source.contains(name), "{}: {name}", path.display());
        }
        for (number, line) in code(&source).enumerate() {
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
