//! The list of requirements against the tests that name them.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Every promise by its number, and whether its work has begun.
fn promised() -> BTreeMap<u32, bool> {
    let list = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/REQUIREMENTS.md")).unwrap();
    let promises = list.lines().filter_map(|line| line.strip_prefix("- R")?.split_once(": "));
    promises.map(|(number, text)| (number.parse().unwrap(), !text.starts_with("*(later)*"))).collect()
}

/// The Rust files under a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The numbers that a function's name begins with: `r24_r25_nobody_waits` names two.
fn in_name(name: &str) -> impl Iterator<Item = u32> {
    name.split('_').map_while(|part| part.strip_prefix('r')?.parse().ok())
}

/// The numbers that stand as `R24` in a text, ranges like `R31–R33` included.
fn in_text(text: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for word in text.split(|character: char| !(character.is_ascii_alphanumeric() || "–-".contains(character))) {
        let mut ends = word.split(['–', '-']).map_while(|end| end.strip_prefix('R')?.parse::<u32>().ok());
        if let Some(first) = ends.next() {
            numbers.extend(first..=ends.next().unwrap_or(first));
        }
    }
    numbers
}

/// The numbers that the tests of one file name. A test is a function after `#[test]` (or in `proptest!`, `both!`, where the
/// attribute stands elsewhere), so what counts is a function whose name begins with a number, and the documentation right above
/// an attribute of a test.
fn named(source: &str, is_test_file: bool) -> BTreeSet<u32> {
    let tests = if is_test_file { 0 } else { source.find("#[cfg(test)]").unwrap_or(source.len()) };
    let (mut numbers, mut documentation) = (BTreeSet::new(), BTreeSet::new());
    for line in source[tests..].lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!").filter(|_| is_test_file)) {
            documentation.append(&mut in_text(text));
        } else if line.starts_with("#[test]") {
            numbers.append(&mut documentation);
        } else if let Some((_, function)) = line.split_once("fn ").filter(|(before, _)| !before.contains("//")) {
            numbers.extend(in_name(function));
            documentation.clear();
        } else if !line.starts_with("#[") {
            documentation.clear();
        }
    }
    numbers
}

#[test]
fn r80_every_requirement_has_a_test_that_names_it() {
    let promised = promised();
    assert_eq!(promised.keys().copied().collect::<Vec<_>>(), (1..=80).collect::<Vec<_>>());

    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    sources(workspace, &mut files);
    let mut tested = BTreeSet::new();
    for file in files {
        let inside = file.strip_prefix(workspace).unwrap();
        let is_test_file =
            inside.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs");
        tested.append(&mut named(&fs::read_to_string(&file).unwrap(), is_test_file));
    }

    let untested: Vec<_> = promised
        .iter()
        .filter(|(number, begun)| **begun && !tested.contains(number))
        .map(|(number, _)| number)
        .collect();
    assert!(untested.is_empty(), "no test names these: {untested:?}");
    let unknown: Vec<_> = tested.iter().filter(|number| !promised.contains_key(number)).collect();
    assert!(unknown.is_empty(), "tests name these, and the list does not: {unknown:?}");
}

#[test]
fn a_test_names_what_its_name_and_its_documentation_say() {
    let source = "
        //! R1
        fn r2_helper_of_a_macro() {}
        // fn r3_commented_out() {}
        /// R4, and R5–R6.
        #[test]
        fn plain() {}
        /// R7 of a helper.
        fn helper() {}
        #[cfg(test)]
        mod tests {
            #[test]
            fn r8_r9_both() {}
        }
    ";
    assert_eq!(named(source, true), BTreeSet::from([2, 4, 5, 6, 8, 9]));
    assert_eq!(named(source, false), BTreeSet::from([8, 9]));
    assert_eq!(in_text("R24, (R25); RFC 6749, R, 7R8, R-9"), BTreeSet::from([24, 25]));
}
