//! A driver's clocks, as far as they are the same in all drivers: those that a test moves. The system's are read by the driver.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use super::cell::CoarseClocks;
use crate::time::{Now, millis};

/// How a driver reads the system's clocks. Both readings have the same origins.
pub trait SystemClocks {
    /// To the millisecond.
    fn fine() -> Now;

    /// What [`fine`](Self::fine) said at the last tick, where the system keeps that: cheaper to read, and never ahead of it.
    fn coarse() -> Now;

    /// What stays the same as long as [`coarse`](Self::coarse) does, and is cheaper to read; zero where there is no such thing.
    fn tick() -> u64 {
        0
    }
}

/// Where a provider reads the time: the system's clocks, or for tests [movable](Clock::movable) ones.
///
/// It is two clocks, a monotonic one and the wall clock, because a token expires when *either* says so. Clones of a movable
/// clock move together: keep one, and give one away.
///
/// ```
/// use core::time::Duration;
/// use storm_auth_core::Now;
/// use storm_auth_core::driver::{Clock, SystemClocks};
///
/// #[derive(Clone, Debug, Default)]
/// struct Stopped;
///
/// impl SystemClocks for Stopped {
///     fn fine() -> Now {
///         Now::from_millis(1_000, 9_000)
///     }
///     fn coarse() -> Now {
///         Self::fine()
///     }
/// }
///
/// let clock = Clock::<Stopped>::movable();
/// let given_to_the_provider = clock.clone();
/// clock.advance(Duration::from_secs(60)); // a minute passes
/// clock.step_wall_back(Duration::from_secs(5)); // somebody corrects the wall clock
/// assert_eq!(given_to_the_provider.now(), Now::from_millis(61_000, 64_000));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock<S> {
    /// `None` for the system's own clocks, which nobody moves.
    shift: Option<Arc<Shift>>,
    system: PhantomData<S>,
}

impl<S: SystemClocks> Clock<S> {
    /// The system's clocks. The default.
    pub fn system() -> Self {
        Self { shift: None, system: PhantomData }
    }

    /// Clocks for tests: they run with the system's, and can be moved besides. Moving them wakes nobody who sleeps.
    pub fn movable() -> Self {
        Self { shift: Some(Arc::default()), system: PhantomData }
    }

    /// Lets `span` pass at once, on both clocks. Does nothing to the system's clocks.
    pub fn advance(&self, span: Duration) {
        self.shift.iter().for_each(|shift| shift.advance(span));
    }

    /// Sets the wall clock forward, and the monotonic clock not at all: a correction, or a suspend that the monotonic clock
    /// does not count. Does nothing to the system's clocks.
    pub fn step_wall_forward(&self, span: Duration) {
        self.shift.iter().for_each(|shift| shift.step_wall(signed(span)));
    }

    /// Sets the wall clock back, and the monotonic clock not at all. Does nothing to the system's clocks.
    pub fn step_wall_back(&self, span: Duration) {
        self.shift.iter().for_each(|shift| shift.step_wall(-signed(span)));
    }

    /// What both clocks say, to the millisecond.
    pub fn now(&self) -> Now {
        self.moved(S::fine())
    }

    /// What both clocks said at the last tick; never ahead of [`now`](Self::now).
    #[inline]
    pub fn coarse(&self) -> Now {
        self.moved(S::coarse())
    }

    #[inline]
    fn moved(&self, now: Now) -> Now {
        match &self.shift {
            None => now,
            Some(shift) => shift.apply(now),
        }
    }
}

/// A clock that is moved has no tick: it is moved at any time.
impl<S: SystemClocks> CoarseClocks for &Clock<S> {
    #[inline]
    fn tick(&self) -> u64 {
        if self.shift.is_none() { S::tick() } else { 0 }
    }

    #[inline]
    fn coarse(&self) -> Now {
        Clock::coarse(self)
    }
}

/// What is added to the system's clocks, in milliseconds.
#[derive(Debug, Default)]
struct Shift {
    mono: AtomicU64,
    unix: AtomicI64,
}

impl Shift {
    fn advance(&self, span: Duration) {
        // `Ok` either way: the closure never answers `None`.
        let further = |shift: u64| Some(shift.saturating_add(millis(span)));
        let _ = self.mono.fetch_update(Ordering::Relaxed, Ordering::Relaxed, further);
        self.step_wall(signed(span));
    }

    fn step_wall(&self, step: i64) {
        let further = |shift: i64| Some(shift.saturating_add(step));
        let _ = self.unix.fetch_update(Ordering::Relaxed, Ordering::Relaxed, further);
    }

    fn apply(&self, now: Now) -> Now {
        Now::from_millis(
            now.mono.as_millis().saturating_add(self.mono.load(Ordering::Relaxed)),
            now.unix.as_millis().saturating_add_signed(self.unix.load(Ordering::Relaxed)),
        )
    }
}

fn signed(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug)]
    struct Stopped;

    impl SystemClocks for Stopped {
        fn fine() -> Now {
            Now::from_millis(1_020, 9_020)
        }

        fn coarse() -> Now {
            Now::from_millis(1_016, 9_016)
        }

        fn tick() -> u64 {
            7
        }
    }

    /// On a system that has no ticks.
    struct Tickless;

    impl SystemClocks for Tickless {
        fn fine() -> Now {
            Now::default()
        }

        fn coarse() -> Now {
            Now::default()
        }
    }

    #[test]
    fn a_tick_is_the_systems_and_a_clock_that_is_moved_has_none() {
        assert_eq!((&Clock::<Stopped>::system()).tick(), 7);
        assert_eq!((&Clock::<Stopped>::movable()).tick(), 0);
        assert_eq!((&Clock::<Tickless>::system()).tick(), 0);
        assert_eq!(CoarseClocks::coarse(&&Clock::<Stopped>::system()), Now::from_millis(1_016, 9_016));
    }

    #[test]
    fn r22_a_movable_clock_is_moved_on_either_clock_and_its_clones_with_it() {
        let clock = Clock::<Stopped>::movable();
        let clone = clock.clone();
        clock.advance(Duration::from_millis(500));
        assert_eq!((clone.now(), clone.coarse()), (Now::from_millis(1_520, 9_520), Now::from_millis(1_516, 9_516)));
        clock.step_wall_forward(Duration::from_millis(80));
        assert_eq!(clone.now(), Now::from_millis(1_520, 9_600));
        clock.step_wall_back(Duration::from_millis(600));
        assert_eq!(clone.now(), Now::from_millis(1_520, 9_000));
        // Nobody moves the system's.
        Clock::<Stopped>::system().advance(Duration::from_secs(1));
        assert_eq!(Clock::<Stopped>::system().now(), Now::from_millis(1_020, 9_020));
    }

    #[test]
    fn r23_the_ends_of_both_clocks_saturate() {
        let (shift, now) = (Shift::default(), Now::from_millis(5, 5));
        (0..3).for_each(|_| shift.step_wall(-signed(Duration::MAX)));
        assert_eq!(shift.apply(now), Now::from_millis(5, 0));
        (0..3).for_each(|_| shift.advance(Duration::MAX));
        assert_eq!(shift.apply(now).mono.as_millis(), u64::MAX);
    }
}
