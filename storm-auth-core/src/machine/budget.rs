//! The request budget: a model of the limiter in front of the token endpoint.

use core::fmt;
use core::time::Duration;

use crate::error::{ConfigError, Field};
use crate::time::{Mono, millis};

/// What one limiter group may send to its token endpoint.
///
/// The default is the service's documented limit: 3 requests a minute per IP address, with a burst of 20 more, so 21 at once
/// and then one per 20 s. Within it, one key never sends more than 3 at once and then one per 20 s (R29).
///
/// ```
/// use storm_auth_core::Budget;
///
/// assert_eq!(Budget::default(), Budget::per_minute(3, 20));
/// assert_eq!(Budget::default().to_string(), "3 requests a minute, and 20 more at once");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Budget(Option<Rate>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rate {
    per_minute: u32,
    burst: u32,
}

impl Rate {
    /// As nginx rounds it: to whole thousandths of a request a second, downwards.
    fn thousandths(self) -> u64 {
        (u64::from(self.per_minute) * 1_000 / 60).max(1)
    }

    /// The time of a thousandth of a request, where a millisecond is not whole thousandths anyway.
    fn grain(self, interval: Duration) -> u64 {
        if self.thousandths().is_multiple_of(1_000) { 0 } else { millis(interval).div_ceil(1_000) }
    }
}

/// A request after this one may go once its interval is over. Without a budget, throttled requests still wait this long.
const DOCUMENTED_INTERVAL: Duration = Duration::from_secs(20);

/// One key's share of a burst, beside its first request.
const KEY_BURST: u32 = 2;

impl Budget {
    /// `requests` a minute, at an even pace, with `burst` more at once after a long silence.
    pub const fn per_minute(requests: u32, burst: u32) -> Self {
        Self(Some(Rate { per_minute: requests, burst }))
    }

    /// No limit of ours, for an endpoint that has none. Failures still back off.
    pub const fn unlimited() -> Self {
        Self(None)
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match self.0 {
            Some(Rate { per_minute: 0, .. }) => {
                Err(ConfigError::new(Field::Budget, "no request a minute; give at least one, or Budget::unlimited()"))
            }
            _ => Ok(()),
        }
    }

    /// The time that one request costs.
    pub(super) fn interval(&self) -> Duration {
        match self.0 {
            None => DOCUMENTED_INTERVAL,
            Some(rate) => Duration::from_millis(1_000_000_u64.div_ceil(rate.thousandths())),
        }
    }

    /// The time that an empty bucket takes to be full.
    pub(super) fn refill(&self) -> Duration {
        self.interval().saturating_mul(self.0.map_or(0, |rate| rate.burst).saturating_add(1))
    }

    /// The bucket of a limiter group.
    pub(super) fn group(&self) -> Bucket {
        // Half a second of 20 for what the network does to the rhythm.
        let interval = self.interval();
        self.0.map_or(Bucket::UNLIMITED, |rate| Bucket {
            grain: rate.grain(interval),
            ..Bucket::new(interval, rate.burst, interval / 40)
        })
    }

    /// The bucket of one key within the group.
    pub(super) fn key(&self) -> Bucket {
        self.0.map_or(Bucket::UNLIMITED, |rate| Bucket::new(self.interval(), rate.burst.min(KEY_BURST), Duration::ZERO))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Rate { per_minute, burst }) => write!(f, "{per_minute} requests a minute, and {burst} more at once"),
            None => f.write_str("unlimited"),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::per_minute(3, 20)
    }
}

/// A bucket, kept as the time at which it would be full again after all that was taken (the generic cell rate algorithm:
/// the same arithmetic as nginx's, in time instead of requests). In milliseconds of the monotonic clock alone: a wall clock
/// that steps forward fills no bucket.
///
/// The limiter sees the requests when they arrive, in another rhythm than they were sent in. The first burst passes in any
/// rhythm; what comes behind it is held back by `margin` in addition, once, since each interval counts from the one before.
///
/// nginx counts in thousandths of a request and drops what is less at each request that it lets pass, so a bucket that is seldom
/// empty refills more slowly than by its rate. How much is dropped depends on the millisecond of the arrival, so each request
/// that finds something taken is charged with a whole thousandth more: `grain`.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// Zero: no limit.
    interval: u64,
    /// How far `full` may lie ahead when a request goes.
    tolerance: u64,
    margin: u64,
    grain: u64,
    full: u64,
    /// When a request last found the bucket full: since then it has been refilling.
    since: u64,
    /// How much of `full` is fractions that were dropped since then. The burst does not suffer from them.
    lost: u64,
}

impl Bucket {
    const UNLIMITED: Self = Self { interval: 0, tolerance: 0, margin: 0, grain: 0, full: 0, since: 0, lost: 0 };

    fn new(interval: Duration, burst: u32, margin: Duration) -> Self {
        let interval = millis(interval);
        let tolerance = interval.saturating_mul(u64::from(burst));
        Self { interval, tolerance, margin: millis(margin), ..Self::UNLIMITED }
    }

    /// When the next request may go; a point in the past when it may go at once.
    pub(super) fn next(&self) -> Mono {
        self.next_after(0, Mono::default())
    }

    /// When a request may go that has `ahead` others before it, none of them sent before `at`.
    pub(super) fn next_after(&self, ahead: u64, at: Mono) -> Mono {
        if self.interval == 0 {
            return at;
        }
        // Those ahead may find the bucket full; then the burst begins with them.
        let from = if ahead > 0 { self.next().max(at).as_millis() } else { at.as_millis() };
        let bucket = if ahead > 0 { self.refilled(from) } else { self.clone() };
        // Without a burst each of them finds the bucket full, so each but the first is held back by the margin. With one, each
        // that finds something taken loses a grain.
        let (held_back, dropped) = match self.tolerance {
            0 => (self.margin.saturating_mul(ahead.saturating_sub(1)), 0),
            _ => (0, self.grain.saturating_mul(ahead.saturating_sub(u64::from(bucket.full <= from)))),
        };
        let spent = self.interval.saturating_mul(ahead).saturating_add(held_back).saturating_add(dropped);
        let ready = bucket.full.saturating_add(spent).saturating_sub(self.tolerance);
        let in_burst = ready.saturating_sub(bucket.lost.saturating_add(dropped));
        let after_burst = ready.saturating_add(self.margin);
        Mono::from_millis(if in_burst <= bucket.since { in_burst } else { after_burst }).max(at)
    }

    /// How many requests may go at `at`.
    pub(super) fn available(&self, at: Mono) -> u32 {
        if self.interval == 0 {
            return u32::MAX;
        }
        let at = at.as_millis();
        let bucket = self.refilled(at);
        let until = |reach: u64, cost: u64| match reach.saturating_add(self.tolerance).checked_sub(bucket.full) {
            None => 0,
            Some(spare) => u32::try_from(spare / cost).unwrap_or(u32::MAX).saturating_add(1),
        };
        let in_burst = until(bucket.since.saturating_add(bucket.lost), self.interval);
        let behind = until(at.saturating_sub(self.margin), self.interval.saturating_add(self.grain));
        in_burst.max(behind)
    }

    /// Spends one request.
    pub(super) fn take(&mut self, at: Mono) {
        let at = at.as_millis();
        *self = self.refilled(at);
        // By the time it arrives it may drop nearly a grain, whatever the rhythm of the sender.
        let dropped = if self.full > at { self.grain } else { 0 };
        self.lost = self.lost.saturating_add(dropped);
        self.full = self.full.saturating_add(dropped).saturating_add(self.interval);
    }

    /// The limiter refused a request that was sent at `at`: whatever this model thought, no burst is left.
    pub(super) fn drain(&mut self, at: Mono) {
        self.full = self.full.max(at.as_millis().saturating_add(self.tolerance));
        self.lost = 0;
    }

    /// The bucket as a request finds it at `at`.
    fn refilled(&self, at: u64) -> Self {
        match self.full.saturating_add(self.margin) <= at || self.full == 0 {
            true => Self { full: at, since: at, lost: 0, ..self.clone() },
            false => Self { full: self.full.max(at), ..self.clone() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Mono {
        Mono::from_millis(millis)
    }

    #[test]
    fn r29_the_documented_bucket_gives_21_at_once_and_then_one_per_20_s() {
        let mut bucket = Budget::default().group();
        for sent in 0..21 {
            assert_eq!(bucket.available(at(0)), 21 - sent);
            assert_eq!(bucket.next(), at(0));
            bucket.take(at(0));
        }
        // Half a second once for what the network does to the rhythm, and a thousandth of a request for each that found
        // something taken: 20 times 20 ms behind the burst, and 20 ms with each request from then on.
        for sent in [20_900, 40_920, 60_940] {
            assert_eq!(bucket.available(at(sent - 1)), 0);
            assert_eq!(bucket.next(), at(sent));
            bucket.take(at(sent));
        }
    }

    #[test]
    fn r29_a_bucket_that_has_refilled_gives_its_burst_once_more_and_no_more() {
        let mut bucket = Budget::default().group();
        // The first request comes at any time, be it before the margin is over.
        for start in [100, 1_000_000] {
            for _ in 0..21 {
                assert_eq!(bucket.next().max(at(start)), at(start));
                bucket.take(at(start));
            }
            assert_eq!(bucket.next(), at(start + 20_900));
        }
        // The whole burst takes 420 s of silence, the thousandths, and the margin.
        let refilled = 1_000_000 + 420_900;
        assert_eq!(bucket.available(at(refilled - 1)), 20);
        assert_eq!(bucket.available(at(refilled)), 21);
    }

    #[test]
    fn a_place_behind_a_burst_that_is_still_to_come_is_known_in_advance() {
        let mut bucket = Budget::default().group();
        bucket.take(at(0));
        assert_eq!(bucket.next_after(20, at(10_000_000)), at(10_000_000));
        assert_eq!(bucket.next_after(21, at(10_000_000)), at(10_020_900));
    }

    /// nginx's arithmetic: thousandths of a request, and whole milliseconds.
    struct Nginx {
        excess: u64,
        last: Option<u64>,
    }

    impl Nginx {
        fn passes(&mut self, at: u64) -> bool {
            let excess = self.last.map_or(0, |last| (self.excess + 1_000).saturating_sub(50 * (at - last) / 1_000));
            if excess > 20_000 {
                return false;
            }
            (self.excess, self.last) = (excess, Some(at));
            true
        }
    }

    #[test]
    fn r29_every_request_in_its_turn_passes_nginx_however_long_and_whatever_the_network_adds() {
        for (seed, most) in [(1, 0), (2, 1), (3, 19), (4, 150), (5, 499)] {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut bucket = Budget::default().group();
            let mut nginx = Nginx { excess: 0, last: None };
            let (mut sent, mut arrived) = (0, 0);
            for number in 0..20_000 {
                // Saturated for long, and now and then a pause in which a part of the burst comes back.
                let pause = if rng.u32(0..50) == 0 { rng.u64(0..600_000) } else { 0 };
                sent = bucket.next().max(at(sent + pause)).as_millis();
                bucket.take(at(sent));
                arrived = arrived.max(sent + rng.u64(0..=most));
                assert!(nginx.passes(arrived), "request {number} of {sent}, at {arrived}, {most} ms");
            }
            let mean = sent / 20_000;
            assert!(mean < 27_000, "one per {mean} ms with the pauses");
        }
    }

    #[test]
    fn r29_the_burst_passes_in_any_rhythm() {
        let mut bucket = Budget::default().group();
        for sent in 1..=21 {
            assert!(bucket.next() <= at(sent) && bucket.available(at(sent)) > 0);
            bucket.take(at(sent));
        }
        assert_eq!((bucket.next(), bucket.available(at(520))), (at(20_901), 0));
    }

    #[test]
    fn r29_a_key_gets_three_at_once_and_then_one_per_20_s() {
        let mut bucket = Budget::default().key();
        (0..3).for_each(|_| bucket.take(at(1_000)));
        assert_eq!(bucket.next(), at(21_000));
        bucket.take(at(21_000));
        assert_eq!(bucket.next(), at(41_000));
    }

    #[test]
    fn a_place_in_the_queue_is_known_in_advance() {
        let mut bucket = Budget::default().group();
        (0..20).for_each(|_| bucket.take(at(0)));
        assert_eq!(bucket.next_after(0, at(7)), at(7));
        assert_eq!(bucket.next_after(1, at(7)), at(20_900));
        assert_eq!(bucket.next_after(3, at(7)), at(60_940));
        assert_eq!(Budget::unlimited().group().next_after(9, at(7)), at(7));
    }

    #[test]
    fn r36_a_place_in_the_queue_is_kept_without_a_burst_too() {
        let mut bucket = Budget::per_minute(3, 0).group();
        bucket.take(at(0));
        assert_eq!(bucket.next_after(0, at(20_200)), at(20_500));
        let told: Vec<_> = (0..4).map(|ahead| bucket.next_after(ahead, at(7))).collect();
        for told in told {
            assert_eq!(bucket.next(), told);
            bucket.take(told);
        }
    }

    #[test]
    fn a_refused_request_says_that_no_burst_is_left() {
        let mut bucket = Budget::default().group();
        bucket.take(at(4_000));
        bucket.drain(at(5_000));
        assert_eq!(bucket.next(), at(5_500));
        assert_eq!(bucket.available(at(5_500)), 1);
        bucket.take(at(25_000));
        assert_eq!(bucket.next(), at(25_520));
        bucket.take(at(25_520));
        assert_eq!(bucket.next(), at(45_540));
    }

    #[test]
    fn r29_a_request_within_the_margin_counts_from_when_it_goes() {
        let mut bucket = Budget::default().group();
        bucket.take(at(1_000));
        bucket.take(at(21_250));
        assert_eq!(bucket.full, 41_250);
    }

    #[test]
    fn r29_what_is_told_to_be_left_behind_a_burst_may_go() {
        let mut bucket = Budget::default().group();
        (0..21).for_each(|_| bucket.take(at(0)));
        for seconds in [10, 21, 100, 375, 381, 400, 420, 421] {
            let mut bucket = bucket.clone();
            let left = bucket.available(at(seconds * 1_000));
            for _ in 0..left {
                assert!(bucket.next() <= at(seconds * 1_000), "{left} left after {seconds} s");
                bucket.take(at(seconds * 1_000));
            }
            assert!(bucket.next() > at(seconds * 1_000), "more than {left} left after {seconds} s");
        }
    }

    #[test]
    fn r29_a_rate_of_whole_thousandths_a_millisecond_loses_nothing() {
        for (per_minute, last) in [(60, 100_025), (3_000, 2_000), (3, 2_002_500)] {
            let mut bucket = Budget::per_minute(per_minute, 1).group();
            bucket.take(at(0));
            for _ in 0..100 {
                bucket.take(bucket.next());
            }
            assert_eq!(bucket.next(), at(last), "{per_minute} a minute");
        }
    }

    #[test]
    fn r29_other_rates_are_rounded_as_nginx_rounds_them() {
        for (per_minute, millis) in [(1, 62_500), (3, 20_000), (7, 8_621), (60, 1_000), (600, 100)] {
            assert_eq!(Budget::per_minute(per_minute, 0).interval(), Duration::from_millis(millis), "{per_minute}");
        }
    }

    #[test]
    fn r23_no_rate_overflows() {
        let mut bucket = Budget::per_minute(1, u32::MAX).group();
        bucket.take(at(u64::MAX));
        bucket.drain(at(u64::MAX));
        assert_eq!(bucket.next_after(u64::MAX, at(u64::MAX)), at(u64::MAX));
        assert!(Budget::per_minute(0, 1).check().is_err());
    }
}
