//! What a caller notices of an outage while a token is valid, and what the endpoint notices of the callers.

use std::thread;
use std::time::{Duration, Instant};

use storm_auth_reqwest::Budget;

use crate::callers::Calls;
use crate::contender::{Asks, Candidate, Error, Setup};
use crate::endpoint::{Endpoint, Trouble};

const LIFETIME: Duration = Duration::from_secs(12);

/// Callers call in this part of a token's life. The refresh is due, at three quarters, and all calls are over before the token's end.
const FROM: Duration = Duration::from_millis(9_200);
const TO: Duration = Duration::from_millis(11_600);

/// How long they call.
pub const LASTS: Duration = TO.saturating_sub(FROM);

/// Contenders start this long after one another: no two are measured at once, and none starts while another is measured.
const APART: Duration = Duration::from_secs(3);

/// The outages, each with its name.
pub const TROUBLES: [(&str, Trouble); 2] =
    [("500", Trouble::ServerError(Duration::from_millis(20))), ("reset", Trouble::Reset)];

/// A contender's calls in an outage.
pub struct Outage {
    pub name: &'static str,
    /// Which of the outages.
    pub trouble: &'static str,
    pub calls: Calls,
    /// Attempts to get another token.
    pub attempts: u64,
}

/// Every contender in every outage.
pub fn measure(candidates: &[&'static Candidate]) -> Result<Vec<Outage>, Error> {
    let begin = Instant::now();
    let asking = candidates.iter().filter(|candidate| candidate.asks != Asks::Never);
    let cases = asking.flat_map(|candidate| TROUBLES.map(|trouble| (*candidate, trouble)));
    thread::scope(|scope| {
        let runs: Vec<_> = (0..)
            .zip(cases)
            .map(|(turn, (candidate, (name, trouble)))| {
                scope.spawn(move || {
                    sleep_until(begin + APART * turn);
                    let (calls, attempts) = one(candidate, trouble)?;
                    Ok(Outage { name: candidate.name, trouble: name, calls, attempts })
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("an outage panics nobody")).collect()
    })
}

fn one(candidate: &Candidate, trouble: Trouble) -> Result<(Calls, u64), Error> {
    let since = Instant::now();
    let endpoint = Endpoint::start(LIFETIME, Duration::ZERO);
    let contender =
        candidate.start_with_token(&Setup { url: endpoint.url(), lifetime: LIFETIME, budget: Budget::default() })?;
    endpoint.fail(trouble);
    let before = endpoint.attempts(trouble);
    sleep_until(since + FROM);
    let calls = Calls::until(since + TO, &*contender);
    Ok((calls, endpoint.attempts(trouble) - before))
}

fn sleep_until(at: Instant) {
    thread::sleep(at.saturating_duration_since(Instant::now()));
}
