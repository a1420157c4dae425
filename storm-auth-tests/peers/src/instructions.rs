//! Instructions of a cached call, by callgrind: the figure that does not depend on what else the machine does.

use std::process::Command;
use std::time::Duration;

use storm_auth_reqwest::Budget;

use crate::contender::{Candidate, Contender, Error, Setup};
use crate::endpoint::Endpoint;

const CALLS: u64 = 10_000;
const WARM_UP: u64 = 2_000;

/// Instructions per call of each contender. Each runs in a process of its own, under valgrind.
pub fn measure(candidates: &[&'static Candidate]) -> Result<Vec<(&'static str, f64)>, Error> {
    candidates.iter().map(|candidate| Ok((candidate.name, under_callgrind(candidate)?))).collect()
}

fn under_callgrind(candidate: &Candidate) -> Result<f64, Error> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_calls*"])
        .arg(std::env::current_exe()?)
        .args(["--only", candidate.name, "--calls", &CALLS.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
    match collected {
        Some(instructions) if output.status.success() => Ok(instructions as f64 / CALLS as f64),
        _ => Err(format!("valgrind: {said}").into()),
    }
}

/// What runs there: one contender, which makes so many calls. What comes before them is not collected.
pub fn only(candidate: &Candidate, calls: u64) -> Result<(), Error> {
    let lifetime = Duration::from_secs(3_600);
    let endpoint = Endpoint::start(lifetime, Duration::ZERO);
    let contender = candidate.start_with_token(&Setup { url: endpoint.url(), lifetime, budget: Budget::default() })?;
    let _runtime = contender.enter();
    contender.run(WARM_UP);
    counted_calls(&*contender, calls);
    Ok(())
}

#[inline(never)]
fn counted_calls(contender: &dyn Contender, calls: u64) {
    contender.run(calls);
}
