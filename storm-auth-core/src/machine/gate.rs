//! The gate of a limiter group: while it is closed nothing is sent, for any key, caller or reason (R34).

use core::time::Duration;

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
}

impl Gate {
    /// A request that was sent at `sent` was throttled; returns how many there were in a row. Those that were under way
    /// together met the same empty bucket, so they count as one.
    pub(super) fn feel(&mut self, sent: Now, now: Now) -> u32 {
        if self.felt.is_none_or(|felt| sent.mono > felt) {
            self.throttles = self.throttles.saturating_add(1);
        }
        self.felt = Some(now.mono);
        self.throttles
    }

    pub(super) fn succeeded(&mut self) {
        self.throttles = 0;
    }

    /// Whether a throttle was felt within `span`.
    pub(super) fn felt_within(&self, span: Duration, now: Now) -> bool {
        self.felt.is_some_and(|felt| now.mono.since(felt) < span)
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
