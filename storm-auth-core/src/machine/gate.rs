//! The gate of a limiter group: while it is closed nothing is sent, for any key, caller or reason (R34).

use core::time::Duration;

use crate::config::Policy;
use crate::time::{Moment, Mono, Now};

#[derive(Clone, Default, Debug)]
pub(super) struct Gate {
    until: Option<Moment>,
    /// When it opens by the monotonic clock, as far as the clocks could tell when they were read last: a suspend or a wall clock
    /// that was set brings it forward, and one that was set back puts it off again.
    opens: Mono,
    /// Throttles in a row since the last success.
    throttles: u32,
    felt: Option<Mono>,
    /// Since when every request was throttled.
    starved: Option<Mono>,
    /// When a refresh was throttled last, no failure aside: many share the address.
    crowded: Option<Mono>,
    /// When a request failed last.
    failed: Option<Mono>,
}

impl Gate {
    /// A request that was sent at `sent` was throttled; returns how many there were in a row. Those that were under way
    /// together met the same empty bucket, so they count as one.
    pub(super) fn feel(&mut self, sent: Now, now: Now) -> u32 {
        if self.felt.is_none_or(|felt| sent.mono > felt) {
            self.throttles = self.throttles.saturating_add(1);
            self.starved.get_or_insert(sent.mono);
        }
        self.felt = Some(now.mono);
        self.throttles
    }

    /// For how long nothing but throttles has come.
    pub(super) fn starved_for(&self, now: Now) -> Duration {
        self.starved.map_or(Duration::ZERO, |since| now.mono.since(since))
    }

    pub(super) fn succeeded(&mut self) {
        self.throttles = 0;
        self.starved = None;
    }

    /// A first token, of this lifetime, came. If throttles kept it away for longer than `room`, the address is crowded.
    pub(super) fn served_first(&mut self, room: Duration, lifetime: Duration, now: Now) {
        if self.starved_for(now) > room {
            self.crowd(lifetime, now);
        }
    }

    /// Whether a request was throttled since the last success.
    pub(super) fn is_throttled(&self) -> bool {
        self.throttles > 0
    }

    /// The refresh of a token of this lifetime was throttled. In an outage and for a while after it that came of the retries.
    pub(super) fn crowd(&mut self, lifetime: Duration, now: Now) {
        let wary = lifetime.saturating_mul(Policy::WARY_LIVES);
        if self.failed.is_none_or(|failed| now.mono.since(failed) >= wary) {
            self.crowded = Some(now.mono);
        }
    }

    /// A request failed: who knows outages keeps a reserve for them.
    pub(super) fn fail(&mut self, now: Now) {
        self.failed = Some(now.mono);
        self.crowded = None;
    }

    /// How late tokens of this lifetime are refreshed, from 0 for early to 1 for late (R30).
    pub(super) fn lateness(&self, lifetime: Duration, now: Now) -> f64 {
        let span = lifetime.saturating_mul(Policy::LATE_LIVES);
        let since = self.crowded.map(|crowded| now.mono.since(crowded));
        since.map_or(0.0, |since| (2.0 - since.as_secs_f64() / span.as_secs_f64().max(1.0)).clamp(0.0, 1.0))
    }

    /// Closes it for at least `wait`; returns by how much that is longer than before.
    pub(super) fn close(&mut self, wait: Duration, now: Now) -> Duration {
        let before = self.closed_until(now).map_or(Duration::ZERO, |until| until.left(now));
        if wait > before {
            self.until = Some(now.after(wait));
            self.opens = now.mono + wait;
        }
        wait.saturating_sub(before)
    }

    pub(super) fn closed_until(&self, now: Now) -> Option<Moment> {
        self.until.filter(|until| !until.reached(now))
    }

    /// A closure that is over is forgotten, so that a wall clock which is set back does not close the gate
    /// again.
    pub(super) fn read_clocks(&mut self, now: Now) {
        self.until = self.closed_until(now);
        self.opens = self.until.map_or(Mono::default(), |until| now.mono + until.left(now));
    }

    /// When it opens by the monotonic clock; a point in the past when it is open.
    pub(super) fn opens(&self) -> Mono {
        self.opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r34_a_closure_that_is_no_longer_than_the_one_that_stands_changes_nothing() {
        let mut gate = Gate::default();
        assert_eq!(gate.close(Duration::from_secs(10), Now::from_millis(0, 100_000)), Duration::from_secs(10));
        // The wall clock is 5 s ahead for a moment; by it 5 s are left, by the other clock still 10.
        assert_eq!(gate.close(Duration::from_secs(5), Now::from_millis(0, 105_000)), Duration::ZERO);
        let until = gate.closed_until(Now::from_millis(0, 100_000)).expect("it was closed for 10 s");
        assert_eq!(until.left(Now::from_millis(0, 100_000)), Duration::from_secs(10));
        assert_eq!(gate.opens(), Mono::from_millis(10_000));
    }
}
