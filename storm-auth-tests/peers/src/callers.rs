//! Callers that want a token at a steady pace, and how long each of them waited.

use std::thread;
use std::time::{Duration, Instant};

use crate::contender::Contender;

/// Callers at once.
pub const CALLERS: usize = 16;

/// The time between two calls of one caller.
pub const PACE: Duration = Duration::from_millis(1);

/// What became of the calls.
pub struct Calls {
    pub made: u64,
    pub errors: u64,
    pub longest: Duration,
    /// Waits in ascending order, with those of calls that a waiting caller did not make.
    waits: Vec<Duration>,
}

impl Calls {
    /// Lets callers call until `end`.
    pub fn until(end: Instant, contender: &dyn Contender) -> Self {
        let caller = || {
            let _runtime = contender.enter();
            let mut calls = Vec::new();
            while Instant::now() < end {
                let since = Instant::now();
                let failed = contender.header().is_err();
                calls.push((since.elapsed(), failed));
                thread::sleep(PACE);
            }
            calls
        };
        let calls: Vec<(Duration, bool)> = thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(caller)).collect();
            callers.into_iter().flat_map(|caller| caller.join().expect("a caller does not panic")).collect()
        });
        // Who waits makes no calls meanwhile. They would have come at the caller's pace and waited for what was left: without them,
        // a long wait of everybody would be one call in thousands.
        let mut waits: Vec<_> = calls.iter().flat_map(|(wait, _)| with_those_behind(*wait)).collect();
        waits.sort_unstable();
        Self {
            made: calls.len() as u64,
            errors: calls.iter().filter(|(_, failed)| *failed).count() as u64,
            longest: waits.last().copied().unwrap_or_default(),
            waits,
        }
    }

    /// The wait that this share of the calls did not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let at = (self.waits.len() as f64 * share) as usize;
        self.waits.get(at.min(self.waits.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

fn with_those_behind(wait: Duration) -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(wait), |wait| wait.checked_sub(PACE).filter(|left| !left.is_zero()))
}
