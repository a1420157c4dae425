//! The fuzz targets on stable: their seeds, and whatever once broke one (R65). `README.md` says how to fuzz.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]
#![allow(clippy::print_stdout, reason = "a failing test shows its input by name")]

#[allow(unreachable_pub, reason = "the fuzz package takes them from outside")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

/// The inputs of one target: its corpus, and what the fuzzer left when it found something.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut found = Vec::new();
    for kind in ["corpus", "artifacts"] {
        let Ok(entries) = fs::read_dir(folder.join(kind).join(target)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // What a fuzzer has added and nobody has named yet is its own.
            let is_unnamed = kind == "corpus" && name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_unnamed {
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(found.len() >= 10, "{target} has its seeds");
    found
}

/// Each input as it is, and repeated to the longest body that is read: quadratic work on any of these would take minutes.
fn replay(target: &str, run: fn(&[u8])) {
    const LONGEST: usize = 64 * 1024;
    for (name, input) in inputs(target) {
        println!("{target}: {name}");
        run(&input);
        run(&input.repeat((LONGEST / input.len().max(1)).max(1)));
    }
}

#[test]
fn r11_r16_r18_r65_any_response() {
    replay("response", targets::response);
}

#[test]
fn r31_r65_any_retry_after() {
    replay("retry_after", targets::retry_after);
}

#[test]
fn r42_r65_any_challenge() {
    replay("challenge", targets::challenge);
}

#[test]
fn r20_r25_r29_any_commands() {
    for (name, input) in inputs("machine") {
        println!("machine: {name}");
        targets::machine(&input);
    }
}

/// The corpora are small enough to be read, and to be replayed by each run of the tests.
#[test]
fn the_corpora_are_small() {
    let targets = ["response", "retry_after", "challenge", "machine"];
    let size: usize = targets.into_iter().flat_map(inputs).map(|(_, input)| input.len()).sum();
    assert!(size < 200 * 1024, "{size} bytes");
}
