//! The system's clocks.

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
use rustix::time::{ClockId, clock_gettime};
use storm_auth_core::Now;
use storm_auth_core::driver::{self, SystemClocks};

/// Where a provider reads the time: the system's clocks, or for tests [movable](driver::Clock::movable) ones.
///
/// ```
/// use std::time::Duration;
/// use storm_auth_blocking::Clock;
///
/// let clock = Clock::movable();
/// let given_to_the_provider = clock.clone();
/// clock.advance(Duration::from_secs(3_600)); // an hour passes
/// clock.step_wall_back(Duration::from_secs(120)); // somebody corrects the wall clock
/// # drop(given_to_the_provider);
/// ```
pub type Clock = driver::Clock<System>;

/// The clocks of the system that this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

/// Coarse clocks. The fine ones are read in the same way, since `Instant` does not tell its origin.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
impl SystemClocks for System {
    fn fine() -> Now {
        Now::from_nanos(nanos(ClockId::Monotonic), nanos(ClockId::Realtime))
    }

    fn coarse() -> Now {
        Now::from_nanos(nanos(ClockId::MonotonicCoarse), nanos(ClockId::RealtimeCoarse))
    }

    /// The kernel moves both coarse clocks at once.
    #[inline]
    fn tick() -> u64 {
        nanos(ClockId::MonotonicCoarse) as u64
    }
}

/// A kernel counts in 64 bits itself, so no time that it tells overflows.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
#[inline]
fn nanos(clock: ClockId) -> i64 {
    let at = clock_gettime(clock);
    at.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(at.tv_nsec)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
impl SystemClocks for System {
    fn fine() -> Now {
        use std::sync::LazyLock;
        use std::time::{Instant, SystemTime};

        /// One for the process, so that what two providers read can be compared.
        static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

        let mono = u64::try_from(ORIGIN.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now::from_millis(mono, storm_auth_core::Unix::from(SystemTime::now()).as_millis())
    }

    fn coarse() -> Now {
        Self::fine()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn r22_the_coarse_clock_shares_its_origin_and_is_never_ahead() {
        const HOUR: Duration = Duration::from_secs(3_600);
        for _ in 0..10_000 {
            let (coarse, fine) = (System::coarse(), System::fine());
            assert!(coarse.mono <= fine.mono, "{coarse:?} {fine:?}");
            assert!(fine.mono.since(coarse.mono) < HOUR, "{coarse:?} {fine:?}");
            assert!(fine.unix.since(coarse.unix) < HOUR && coarse.unix.since(fine.unix) < HOUR, "{coarse:?} {fine:?}");
        }
    }
}
