//! What a caller notices of refreshes.

use std::time::{Duration, Instant};

use storm_auth_reqwest::Budget;

use crate::callers::Calls;
use crate::contender::{Asks, Candidate, Error, Setup};
use crate::endpoint::Endpoint;

/// Whole seconds of three quarters, since not all can refresh at another time.
const LIFETIME: Duration = Duration::from_secs(4);

/// How long the endpoint takes to answer.
pub const ANSWER: Duration = Duration::from_millis(100);

/// Three refreshes, and some more.
const LASTS: Duration = Duration::from_millis(9_600);

/// A contender's calls across refreshes.
pub struct Refresh {
    pub name: &'static str,
    pub calls: Calls,
    pub requests: u64,
}

/// One contender after another, so that none is in another's way.
pub fn measure(candidates: &[&'static Candidate]) -> Result<Vec<Refresh>, Error> {
    candidates.iter().filter(|candidate| candidate.asks != Asks::Never).map(|candidate| one(candidate)).collect()
}

fn one(candidate: &'static Candidate) -> Result<Refresh, Error> {
    let endpoint = Endpoint::start(LIFETIME, ANSWER);
    // The documented limit is for lifetimes that are a hundred times as long.
    let contender =
        candidate.start_with_token(&Setup { url: endpoint.url(), lifetime: LIFETIME, budget: Budget::unlimited() })?;
    let calls = Calls::until(Instant::now() + LASTS, &*contender);
    Ok(Refresh { name: candidate.name, calls, requests: endpoint.requests() })
}
