//! The two clocks of a simulated process: they drift, the wall clock is set, and a suspend stops one of them.

use storm_auth_core::Now;

/// A process's clocks as functions of the true time, in whole milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    anchor: u64,
    mono: u64,
    unix: u64,
    mono_ppm: i64,
    wall_ppm: i64,
}

impl Clock {
    pub(super) fn new(anchor: u64, mono: u64, unix: u64, mono_ppm: i64, wall_ppm: i64) -> Self {
        Self { anchor, mono, unix, mono_ppm, wall_ppm }
    }

    /// What both clocks say at the true time `at`.
    pub(super) fn now(&self, at: u64) -> Now {
        let span = at.saturating_sub(self.anchor);
        Now::from_millis(self.mono + drifted(span, self.mono_ppm), self.unix + drifted(span, self.wall_ppm))
    }

    /// The first true time at which the monotonic clock has come to `mono`.
    pub(super) fn when(&self, mono: u64) -> u64 {
        let span = mono.saturating_sub(self.mono);
        let mut at = self.anchor + drifted(span, -self.mono_ppm).saturating_sub(span / 1_000_000 + 1);
        while self.mono + drifted(at.saturating_sub(self.anchor), self.mono_ppm) < mono {
            at += 1;
        }
        at
    }

    /// Somebody sets the wall clock.
    pub(super) fn step_wall(&mut self, at: u64, by: i64) {
        self.rebase(at);
        self.unix = self.unix.saturating_add_signed(by);
    }

    /// The machine was suspended from `from` to `to`: the wall clock went on, the monotonic one stood.
    pub(super) fn sleep(&mut self, from: u64, to: u64) {
        self.rebase(from);
        self.unix += drifted(to - from, self.wall_ppm);
        self.anchor = to;
    }

    fn rebase(&mut self, at: u64) {
        // Not into a suspend that it has accounted for already.
        let at = at.max(self.anchor);
        let now = self.now(at);
        (self.anchor, self.mono, self.unix) = (at, now.mono.as_millis(), now.unix.as_millis());
    }
}

fn drifted(span: u64, ppm: i64) -> u64 {
    span.saturating_add_signed(span as i64 / 1_000 * ppm / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_drifts_is_set_and_sleeps() {
        let mut clock = Clock::new(1_000, 50, 9_000_000, 100, -100);
        assert_eq!(clock.now(1_000), Now::from_millis(50, 9_000_000));
        assert_eq!(clock.now(10_001_000), Now::from_millis(10_001_050, 18_999_000));
        clock.step_wall(1_000, -500);
        assert_eq!(clock.now(1_000), Now::from_millis(50, 8_999_500));
        clock.sleep(2_000, 10_002_000);
        assert_eq!(clock.now(10_002_000), Now::from_millis(1_050, 18_999_500));
        // Set while it sleeps: the monotonic clock stands all the same.
        clock.step_wall(5_000_000, 500);
        assert_eq!(clock.now(10_002_000), Now::from_millis(1_050, 19_000_000));
    }

    #[test]
    fn a_timer_is_due_at_the_first_moment_that_the_clock_shows_it() {
        for ppm in [-300, -7, 0, 7, 300] {
            let clock = Clock::new(77, 1_000, 0, ppm, 0);
            for mono in [0, 1_000, 1_001, 123_456, 86_400_000] {
                let at = clock.when(mono);
                assert!(clock.now(at).mono.as_millis() >= mono, "{ppm} {mono}");
                assert!(at <= 77 || clock.now(at - 1).mono.as_millis() < mono.max(1_001), "{ppm} {mono} {at}");
            }
        }
    }
}
