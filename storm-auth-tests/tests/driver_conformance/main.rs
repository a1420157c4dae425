//! The suite for drivers, against both adapters, and against drivers that do one thing wrong each.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

mod adapters;
mod broken;

use std::path::Path;

use storm_auth_tests::driver_conformance::checks;

/// The guide is read by people who have a violation before them.
#[test]
fn the_guide_names_each_check_at_its_point() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("storm-auth-core").join("src/driver_guide.rs");
    let guide = std::fs::read_to_string(guide).unwrap();
    for check in checks::<broken::Broken<0>>() {
        let [begin, end] = [check.point, check.point + 1].map(|number| format!("//! {number}. **"));
        let point = guide.split_once(&begin).unwrap().1.split(&end).next().unwrap();
        assert!(point.contains(&format!("`{}`", check.name)), "{check:?} is not named in {point}");
    }
}
