//! Instructions, by callgrind: the figure that is the same in every run, on a busy machine too.

use std::process::{Command, Stdio};

/// Whether valgrind is installed.
pub(crate) fn is_there() -> bool {
    let asked = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// The instructions of one call. This program runs itself with `arguments` and then a number of calls to make, once and once more
/// with twice as many: in the difference, start-up and the first calls drop out.
pub(crate) fn per_call(arguments: &[&str], calls: u64) -> f64 {
    let (once, twice) = (whole_run(arguments, calls), whole_run(arguments, 2 * calls));
    (twice - once) as f64 / calls as f64
}

fn whole_run(arguments: &[&str], calls: u64) -> u64 {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(arguments)
        .arg(calls.to_string())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stderr);
    let collected = told.lines().find_map(|line| line.split_once("Collected :"));
    match collected {
        Some((_, number)) if run.status.success() => number.trim().parse().unwrap(),
        _ => panic!("callgrind counted nothing:\n{told}"),
    }
}
