//! The clocks that a provider reads, and those that a test moves.

use std::sync::Arc;
use std::time::Duration;

use storm_auth_core::Now;
use storm_auth_core::driver::Shift;

/// Where a provider reads the time: the system's clocks, or for tests [movable](Clock::movable) ones.
///
/// It is two clocks, a monotonic one and the wall clock, because a token expires when *either* says so. Clones of a movable
/// clock move together: keep one, and give one away.
///
/// ```
/// use std::time::Duration;
/// use storm_auth_reqwest::Clock;
///
/// let clock = Clock::movable();
/// let given_to_the_provider = clock.clone();
/// clock.advance(Duration::from_secs(3_600)); // an hour passes
/// clock.step_wall_back(Duration::from_secs(120)); // somebody corrects the wall clock
/// # drop(given_to_the_provider);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// `None` for the system's own clocks, which nobody moves.
    shift: Option<Arc<Shift>>,
}

impl Clock {
    /// The system's clocks. The default.
    pub fn system() -> Self {
        Self { shift: None }
    }

    /// Clocks for tests: they run with the system's, and can be moved besides. Moving them wakes nobody who sleeps.
    pub fn movable() -> Self {
        Self { shift: Some(Arc::default()) }
    }

    /// Lets `span` pass at once, on both clocks. Does nothing to the system's clocks.
    pub fn advance(&self, span: Duration) {
        self.shift.iter().for_each(|shift| shift.advance(span));
    }

    /// Sets the wall clock forward, and the monotonic clock not at all: a correction, or a suspend that the monotonic clock
    /// does not count. Does nothing to the system's clocks.
    pub fn step_wall_forward(&self, span: Duration) {
        self.shift.iter().for_each(|shift| shift.step_wall_forward(span));
    }

    /// Sets the wall clock back, and the monotonic clock not at all. Does nothing to the system's clocks.
    pub fn step_wall_back(&self, span: Duration) {
        self.shift.iter().for_each(|shift| shift.step_wall_back(span));
    }

    /// What both clocks say, to the millisecond.
    pub(crate) fn now(&self) -> Now {
        self.moved(system::fine())
    }

    /// What both clocks said at the last tick, where the system keeps that: cheaper to read, from the same origins, and never
    /// ahead of [`now`](Self::now).
    #[inline]
    pub(crate) fn coarse(&self) -> Now {
        self.moved(system::coarse())
    }

    #[inline]
    fn moved(&self, now: Now) -> Now {
        match &self.shift {
            None => now,
            Some(shift) => shift.apply(now),
        }
    }
}

/// Systems with coarse clocks. The fine ones are read in the same way, since `Instant` does not tell its origin.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod system {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    use storm_auth_core::Now;

    pub(super) fn fine() -> Now {
        read(ClockId::Monotonic, ClockId::Realtime)
    }

    pub(super) fn coarse() -> Now {
        read(ClockId::MonotonicCoarse, ClockId::RealtimeCoarse)
    }

    fn read(mono: ClockId, unix: ClockId) -> Now {
        Now::from_millis(millis(clock_gettime(mono)), millis(clock_gettime(unix)))
    }

    /// A time before the origin counts as the origin: a machine without a clock battery may wake up in 1969.
    fn millis(at: Timespec) -> u64 {
        let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(at.tv_nsec).unwrap_or(0);
        seconds.saturating_mul(1_000).saturating_add(nanos / 1_000_000)
    }
}

/// Systems without coarse clocks.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod system {
    use std::sync::LazyLock;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use storm_auth_core::Now;

    /// One for the process, so that what two providers read can be compared.
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

    pub(super) fn fine() -> Now {
        // A time before 1970 counts as 1970.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now::from_millis(millis(ORIGIN.elapsed()), millis(unix))
    }

    pub(super) fn coarse() -> Now {
        fine()
    }

    fn millis(span: Duration) -> u64 {
        u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn r22_the_coarse_clock_shares_its_origin_and_is_never_ahead() {
        let clock = Clock::system();
        for _ in 0..10_000 {
            let (coarse, fine) = (clock.coarse(), clock.now());
            assert!(coarse.mono <= fine.mono, "{coarse:?} {fine:?}");
            assert!(fine.mono.since(coarse.mono) < HOUR, "{coarse:?} {fine:?}");
            assert!(fine.unix.since(coarse.unix) < HOUR && coarse.unix.since(fine.unix) < HOUR, "{coarse:?} {fine:?}");
        }
    }

    #[test]
    fn a_movable_clock_moves_with_its_clones_and_the_system_clock_does_not() {
        let (clock, start) = (Clock::movable(), Clock::default().now());
        let clone = clock.clone();
        clone.advance(HOUR);
        assert!(clock.now().mono.since(start.mono) >= HOUR && clock.coarse().mono.since(start.mono) > HOUR / 2);
        Clock::default().advance(HOUR);
        assert!(Clock::default().now().mono.since(start.mono) < HOUR);
    }
}
