//! Time as the machine is told it: two integer clocks, never read here.
//!
//! All points are whole milliseconds, all arithmetic saturates (R23). A driver reads both clocks and hands over a [`Now`]
//! with every call; the machine answers with points on the same clocks.

use core::fmt;
use core::time::Duration;
use std::time::SystemTime;

/// A point on a monotonic clock, in milliseconds since an origin of the driver's choice.
///
/// ```
/// use core::time::Duration;
/// use storm_auth_core::Mono;
///
/// let start = Mono::from_millis(1_000);
/// assert_eq!(start + Duration::from_secs(2), Mono::from_millis(3_000));
/// assert_eq!((start + Duration::from_secs(2)).since(start), Duration::from_secs(2));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Mono(u64);

/// A point on the wall clock, in milliseconds since 1970-01-01T00:00:00Z.
///
/// It displays as UTC in the form of RFC 3339.
///
/// ```
/// use storm_auth_core::Unix;
///
/// assert_eq!(Unix::from_millis(1_700_000_000_000).to_string(), "2023-11-14T22:13:20Z");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Unix(u64);

macro_rules! point {
    ($point:ident) => {
        impl $point {
            /// The point that lies `millis` milliseconds after the clock's origin.
            pub const fn from_millis(millis: u64) -> Self {
                Self(millis)
            }

            /// Milliseconds since the clock's origin.
            pub const fn as_millis(self) -> u64 {
                self.0
            }

            /// How long `earlier` lies before this point; zero when it does not.
            pub const fn since(self, earlier: Self) -> Duration {
                Duration::from_millis(self.0.saturating_sub(earlier.0))
            }
        }

        impl core::ops::Add<Duration> for $point {
            type Output = Self;

            fn add(self, span: Duration) -> Self {
                Self(self.0.saturating_add(millis(span)))
            }
        }

        impl core::ops::Sub<Duration> for $point {
            type Output = Self;

            fn sub(self, span: Duration) -> Self {
                Self(self.0.saturating_sub(millis(span)))
            }
        }
    };
}

point!(Mono);
point!(Unix);

/// A time before 1970 counts as 1970.
impl From<SystemTime> for Unix {
    fn from(time: SystemTime) -> Self {
        Self(millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()))
    }
}

/// A time beyond what the system can express counts as 1970.
impl From<Unix> for SystemTime {
    fn from(point: Unix) -> Self {
        Self::UNIX_EPOCH.checked_add(Duration::from_millis(point.0)).unwrap_or(Self::UNIX_EPOCH)
    }
}

impl fmt::Display for Unix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days to a civil date in the proleptic Gregorian calendar, counted in years that begin on 1 March.
        let seconds = self.0 / 1000;
        let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// What both clocks say at one moment: the last parameter of everything that depends on time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// The monotonic clock. It need not count the time a machine is suspended.
    pub mono: Mono,
    /// The wall clock. It may step in either direction.
    pub unix: Unix,
}

impl Now {
    /// Both clocks, in milliseconds since the origin of each.
    pub const fn from_millis(mono: u64, unix: u64) -> Self {
        Self { mono: Mono(mono), unix: Unix(unix) }
    }

    /// Both clocks, in nanoseconds as a kernel counts them. A time before the origin of a clock counts as its origin: a machine
    /// without a clock battery may wake up in 1969.
    ///
    /// ```
    /// use storm_auth_core::Now;
    ///
    /// assert_eq!(Now::from_nanos(1_999_999, 5_000_000), Now::from_millis(1, 5));
    /// assert_eq!(Now::from_nanos(0, -86_400_000_000_000), Now::from_millis(0, 0));
    /// ```
    pub const fn from_nanos(mono: i64, unix: i64) -> Self {
        const fn millis(nanos: i64) -> u64 {
            if nanos.is_negative() { 0 } else { nanos as u64 / 1_000_000 }
        }
        Self::from_millis(millis(mono), millis(unix))
    }

    /// The moment that lies `span` after this one on both clocks.
    pub fn after(self, span: Duration) -> Moment {
        Moment { mono: self.mono + span, unix: self.unix + span }
    }
}

/// A future point on both clocks, reached as soon as *either* clock says so (R22).
///
/// A wall clock that is set back cannot put it off, and a suspend that the monotonic clock missed cannot either.
///
/// ```
/// use core::time::Duration;
/// use storm_auth_core::Now;
///
/// let expiry = Now::from_millis(0, 5_000_000).after(Duration::from_secs(600));
/// assert!(!expiry.reached(Now::from_millis(599_999, 5_599_999)));
/// assert!(expiry.reached(Now::from_millis(600_000, 0)));          // the wall clock was set back
/// assert!(expiry.reached(Now::from_millis(20, 5_600_000)));       // the machine was suspended
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The point on the monotonic clock.
    pub mono: Mono,
    /// The point on the wall clock.
    pub unix: Unix,
}

impl Moment {
    /// Whether either clock has come to this point.
    pub fn reached(self, now: Now) -> bool {
        now.mono >= self.mono || now.unix >= self.unix
    }

    /// The time left until the first clock comes to this point; zero when one has.
    pub fn left(self, now: Now) -> Duration {
        self.mono.since(now.mono).min(self.unix.since(now.unix))
    }

    /// The moment that lies `span` after this one on both clocks.
    pub(crate) fn after(self, span: Duration) -> Self {
        Self { mono: self.mono + span, unix: self.unix + span }
    }

    /// The moment that lies `span` before this one on both clocks, or their origin.
    pub(crate) fn before(self, span: Duration) -> Self {
        Self { mono: self.mono - span, unix: self.unix - span }
    }

    /// The earlier of two moments, on each clock.
    pub fn min(self, other: Self) -> Self {
        Self { mono: self.mono.min(other.mono), unix: self.unix.min(other.unix) }
    }

    /// The later of two moments, on each clock.
    pub fn max(self, other: Self) -> Self {
        Self { mono: self.mono.max(other.mono), unix: self.unix.max(other.unix) }
    }

    /// The point on the wall clock that a person should be told, as seen from `now`.
    pub fn told(self, now: Now) -> Unix {
        now.unix + self.left(now)
    }
}

impl From<Now> for Moment {
    fn from(now: Now) -> Self {
        Self { mono: now.mono, unix: now.unix }
    }
}

/// A span in whole milliseconds, saturating: u64 milliseconds are 584 million years.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r23_a_kernels_nanoseconds_are_cut_to_milliseconds_and_begin_at_the_origin() {
        assert_eq!(Now::from_nanos(1_999_999, 5_000_000), Now::from_millis(1, 5));
        assert_eq!(Now::from_nanos(0, i64::MIN), Now::from_millis(0, 0));
        assert_eq!(Now::from_nanos(i64::MAX, -1), Now::from_millis(9_223_372_036_854, 0));
    }

    #[test]
    fn r23_the_ends_of_both_clocks_saturate() {
        let end = Now::from_millis(u64::MAX, u64::MAX);
        assert_eq!(end.after(Duration::MAX), Moment::from(end));
        assert_eq!(Mono::from_millis(5) - Duration::MAX, Mono::from_millis(0));
        assert_eq!(Mono::from_millis(0).since(Mono::from_millis(u64::MAX)), Duration::ZERO);
        assert!(!Unix::from_millis(u64::MAX).to_string().is_empty());
    }

    #[test]
    fn a_system_time_before_1970_counts_as_1970_and_any_later_one_as_itself() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        assert_eq!(Unix::from(time), Unix::from_millis(1_700_000_000_123));
        assert_eq!(SystemTime::from(Unix::from(time)), time);
        assert_eq!(Unix::from(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), Unix::from_millis(0));
    }

    #[test]
    fn a_date_reads_as_rfc_3339() {
        let text = |seconds: u64| Unix::from_millis(seconds * 1000).to_string();
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(text(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(text(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
