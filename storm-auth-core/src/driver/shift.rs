//! How far a test has moved a driver's clocks.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use core::time::Duration;

use crate::time::{Now, millis};

/// Spans that are added to what a driver's clocks say, so that its tests can let time pass.
///
/// ```
/// use core::time::Duration;
/// use storm_auth_core::Now;
/// use storm_auth_core::driver::Shift;
///
/// let shift = Shift::default();
/// shift.advance(Duration::from_secs(60));
/// shift.step_wall_back(Duration::from_secs(5));
/// assert_eq!(shift.apply(Now::from_millis(1_000, 9_000)), Now::from_millis(61_000, 64_000));
/// ```
#[derive(Debug, Default)]
pub struct Shift {
    mono: AtomicU64,
    unix: AtomicI64,
}

impl Shift {
    /// Lets `span` pass at once, on both clocks.
    pub fn advance(&self, span: Duration) {
        // `Ok` either way: the closure never answers `None`.
        let further = |shift: u64| Some(shift.saturating_add(millis(span)));
        let _ = self.mono.fetch_update(Ordering::Relaxed, Ordering::Relaxed, further);
        self.step_wall_forward(span);
    }

    /// Sets the wall clock alone forward: a correction, or a suspend that the monotonic clock does not count.
    pub fn step_wall_forward(&self, span: Duration) {
        self.step_wall(signed(span));
    }

    /// Sets the wall clock alone back.
    pub fn step_wall_back(&self, span: Duration) {
        self.step_wall(-signed(span));
    }

    /// What the clocks say with it.
    #[inline]
    pub fn apply(&self, now: Now) -> Now {
        Now::from_millis(
            now.mono.as_millis().saturating_add(self.mono.load(Ordering::Relaxed)),
            now.unix.as_millis().saturating_add_signed(self.unix.load(Ordering::Relaxed)),
        )
    }

    fn step_wall(&self, step: i64) {
        let further = |shift: i64| Some(shift.saturating_add(step));
        let _ = self.unix.fetch_update(Ordering::Relaxed, Ordering::Relaxed, further);
    }
}

fn signed(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r23_the_ends_of_both_clocks_saturate() {
        let (shift, now) = (Shift::default(), Now::from_millis(5, 5));
        (0..3).for_each(|_| shift.step_wall_back(Duration::MAX));
        assert_eq!(shift.apply(now), Now::from_millis(5, 0));
        (0..3).for_each(|_| shift.advance(Duration::MAX));
        assert_eq!(shift.apply(now).mono.as_millis(), u64::MAX);
    }
}
