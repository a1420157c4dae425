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

/// R78: the record of the last mutation run holds what is asked of it, and each mutant that it lists as alive has a reason and still
/// stands in the code. The run itself takes hours: see README.md.
#[test]
fn r78_the_mutants_that_survive_are_few_listed_and_none_of_them_in_the_heart() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let record = std::fs::read_to_string(workspace.join("storm-auth-tests/MUTANTS.md")).unwrap();
    let count = |name: &str| -> f64 {
        let line = record.lines().find_map(|line| line.strip_prefix(&format!("- {name}: "))).unwrap();
        line.split(' ').next().unwrap().parse().unwrap()
    };
    let (caught, alive) = (count("caught"), count("alive"));
    assert!(caught / (caught + alive) >= 0.95, "{caught} caught, {alive} alive");

    let listed: Vec<_> = record.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    let mut mutants = 0.0;
    for line in listed {
        let [file, code, number, reason] = line.trim_end_matches(" |").split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let (file, code) = (file.trim_end_matches('`'), code.trim_matches('`'));
        let source = std::fs::read_to_string(workspace.join("storm-auth-core/src").join(file)).unwrap();
        assert!(source.contains(code), "{file} has no `{code}` any more: take it off the list");
        assert!(reason.len() > 20, "{line}");
        // Expiry, the budget, the gate, and the classification of answers.
        let heart =
            ["time.rs", "token.rs", "machine/budget.rs", "machine/gate.rs", "wire/response.rs", "wire/retry_after.rs"];
        assert!(!heart.contains(&file) || code.starts_with("f.write_str"), "{line}");
        mutants += number.parse::<f64>().unwrap();
    }
    assert_eq!(mutants, alive, "each has its line");
}
