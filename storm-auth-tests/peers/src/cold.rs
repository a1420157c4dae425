//! Callers without a token, before an endpoint that fails.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_reqwest::Budget;

use crate::contender::{Asks, Candidate, Error, Setup};
use crate::endpoint::{Endpoint, Trouble};

/// Callers at once.
pub const CALLERS: usize = 200;

/// How long the endpoint takes to fail.
pub const ANSWER: Duration = Duration::from_millis(20);

/// A contender's start without an endpoint.
pub struct Cold {
    pub name: &'static str,
    pub requests: u64,
    /// Callers that got an error.
    pub failed: usize,
    /// Until the last of them had it.
    pub took: Duration,
}

/// Those that ask when a call wants a token; the others do not start without one.
pub fn measure(candidates: &[&'static Candidate]) -> Result<Vec<Cold>, Error> {
    candidates.iter().filter(|candidate| candidate.asks == Asks::OnCall).map(|candidate| one(candidate)).collect()
}

fn one(candidate: &'static Candidate) -> Result<Cold, Error> {
    let lifetime = Duration::from_secs(600);
    let endpoint = Endpoint::start(lifetime, Duration::ZERO);
    endpoint.fail(Trouble::ServerError(ANSWER));
    let contender = candidate.start(&Setup { url: endpoint.url(), lifetime, budget: Budget::default() })?;
    let barrier = Barrier::new(CALLERS + 1);
    let caller = || {
        let _runtime = contender.enter();
        barrier.wait();
        contender.header().is_err()
    };
    let (failed, took) = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(caller)).collect();
        barrier.wait();
        let since = Instant::now();
        let failed = callers.into_iter().map(|caller| caller.join().expect("a caller does not panic"));
        (failed.filter(|failed| *failed).count(), since.elapsed())
    });
    Ok(Cold { name: candidate.name, requests: endpoint.requests(), failed, took })
}
