//! How long to wait after what happened: spread where processes collide, steady otherwise.

use core::time::Duration;

use crate::time::millis;

/// The first failure's back-off is drawn from zero to this.
const FIRST: Duration = Duration::from_secs(5);
/// No back-off is longer: after an outage a call finds its token within this and one request (R28). Its mean is three slots
/// of the documented limiter, so that a few processes leave its bucket filling while the endpoint is down.
pub(super) const LONGEST: Duration = Duration::from_secs(120);

const LONGEST_THROTTLE: Duration = Duration::from_secs(300);

/// A refused configuration is probed again after the first, and then at most every second span (R37).
const PROBES: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];

/// Full jitter after the `failures`-th failure in a row, counted from 1.
pub(super) fn after_failure(rng: &mut fastrand::Rng, failures: u32) -> Duration {
    let ceiling = doubled(FIRST, failures.saturating_sub(1)).min(LONGEST);
    Duration::from_millis(rng.u64(0..=millis(ceiling)))
}

/// After the `failures`-th failure in a row, while the token lives for `left`: about three quarters of that. Nobody waits, so what
/// counts is that the bucket is full when the outage ends: two or three attempts do for a life's last quarter, however long it
/// is, and the last ones still come close to its end.
pub(super) fn after_failed_refresh(rng: &mut fastrand::Rng, failures: u32, left: Duration) -> Duration {
    match left < FIRST {
        true => after_failure(rng, failures),
        false => Duration::from_millis(rng.u64(millis(left) * 13 / 20..=millis(left) * 17 / 20)),
    }
}

/// A throttle whose answer named no time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throttle {
    /// How many there were in a row, counted from 1.
    pub(super) in_a_row: u32,
    /// For how long nothing but throttles has come.
    pub(super) starved: Duration,
    /// What the limiter takes to let one more request pass.
    pub(super) slot: Duration,
    /// Whether it was the refresh of a token.
    pub(super) refresh: bool,
    /// Whether the tokens are shared, so that a large fleet may be alone for want of its store.
    pub(super) fleet: bool,
}

impl Throttle {
    /// The longest wait. The limiter refills at a fixed pace, so one slot is free by then, and waiting longer would only starve
    /// whoever is polite. Who has a token to lose asks a little sooner than who has yet to get one. After some in a row it may be
    /// a limiter that counts refused requests, or a large crowd: the wait grows with the time that it has lasted, beside which it
    /// stays small, and is at least a little more than a slot, since those that ask at the limiter's own rhythm meet the same
    /// others each time. A fleet without its store grows sooner: each of its processes is refused for as long as the store is away.
    fn longest(&self) -> Duration {
        let (steady, part) = if self.fleet { (5, 3) } else { (10, 50) };
        let longest = match self.in_a_row <= steady {
            true if self.refresh => self.slot * 4 / 5,
            true => self.slot,
            false => (self.slot.saturating_mul(3) / 2).max(self.starved / part),
        };
        longest.min(LONGEST_THROTTLE)
    }

    /// The wait, at least three quarters of the longest.
    pub(super) fn wait(&self, rng: &mut fastrand::Rng) -> Duration {
        let longest = millis(self.longest());
        Duration::from_millis(rng.u64(longest * 3 / 4..=longest))
    }
}

/// When a token is refreshed early whose request collided with others or came of an outage, in thousandths of the steady time.
/// Those that met in it would meet again, so each draws once, and is steady from then on.
pub(super) fn spread(rng: &mut fastrand::Rng) -> u32 {
    rng.u32(500..=1_000)
}

/// A little on top of a Retry-After, never less than it (R32): all processes behind the address were told the same moment.
pub(super) fn after_retry_after(rng: &mut fastrand::Rng, retry_after: Duration) -> Duration {
    let spread = millis(retry_after / 10).min(2_000);
    retry_after + Duration::from_millis(rng.u64(0..=spread))
}

/// How long a store is left alone after its `failures`-th failure in a row, counted from 1: half of it spread, from a second to a
/// minute.
pub(super) fn after_store_failure(rng: &mut fastrand::Rng, failures: u32) -> Duration {
    let longest = millis(doubled(FIRST_STORE_PAUSE, failures.saturating_sub(1)).min(LONGEST_STORE_PAUSE));
    Duration::from_millis(rng.u64(longest / 2..=longest))
}

/// The wait after the `refusals`-th refused configuration in a row, counted from 1.
pub(super) fn after_refusal(refusals: u32) -> Duration {
    PROBES[usize::from(refusals > 1)]
}

const FIRST_STORE_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_STORE_PAUSE: Duration = Duration::from_secs(60);

fn doubled(span: Duration, times: u32) -> Duration {
    span.saturating_mul(2_u32.saturating_pow(times))
}

/// How long a request may stay silent (R47): a dead connection costs a minute, while a limiter that holds requests back, for
/// up to 400 s, is waited out in the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience(Duration);

impl Patience {
    const SHORTEST: Duration = Duration::from_secs(60);
    const LONGEST: Duration = Duration::from_secs(420);
    /// An answer that took this long was held back by a limiter.
    pub(super) const HELD: Duration = Duration::from_secs(10);

    pub(super) const fn new() -> Self {
        Self(Self::SHORTEST)
    }

    pub(super) fn span(self) -> Duration {
        self.0
    }

    /// A request stayed silent to its end.
    pub(super) fn silent(&mut self) {
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }

    /// The endpoint answered after so long.
    pub(super) fn answered(&mut self, took: Duration) {
        *self = if took < Self::HELD { Self::new() } else { Self(Self::LONGEST) };
    }

    /// A limiter refused the request: it is there, and may hold the next one for as long as it holds any.
    pub(super) fn throttled(&mut self) {
        self.0 = Self::LONGEST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn r35_a_throttle_waits_one_spread_slot_and_grows_only_after_some_in_a_row() {
        let mut rng = fastrand::Rng::with_seed(7);
        let first = Throttle { in_a_row: 1, starved: Duration::ZERO, slot: secs(20), refresh: false, fleet: false };
        let (refresh, fleet) = (Throttle { refresh: true, ..first }, Throttle { fleet: true, ..first });
        // Throttles, seconds without an answer of another kind, and the wait in milliseconds.
        for (throttle, in_a_row, starved, shortest, longest) in [
            (first, 1, 0, 15_000, 20_000),
            (first, 10, 180, 15_000, 20_000),
            (first, 11, 200, 22_500, 30_000),
            (first, 60, 1_500, 22_500, 30_000),
            (first, 90, 2_500, 37_500, 50_000),
            (first, 11, 14_000, 210_000, 280_000),
            (first, u32::MAX, u64::MAX, 225_000, 300_000),
            (refresh, 1, 0, 12_000, 16_000),
            (refresh, 10, 180, 12_000, 16_000),
            (refresh, 11, 180, 22_500, 30_000),
            (fleet, 5, 90, 15_000, 20_000),
            (fleet, 6, 90, 22_500, 30_000),
            (fleet, 10, 300, 75_000, 100_000),
            (fleet, 15, 900, 225_000, 300_000),
        ] {
            let throttle = Throttle { in_a_row, starved: secs(starved), ..throttle };
            let waits: Vec<_> = (0..500).map(|_| throttle.wait(&mut rng).as_millis()).collect();
            let (least, most) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
            assert!(least >= shortest && most <= longest, "{throttle:?}: {least}..{most}");
            assert!(least < shortest * 11 / 10, "{throttle:?} is not spread: {least}");
        }
    }

    #[test]
    fn r35_other_failures_back_off_with_full_jitter_up_to_two_minutes() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (failures, ceiling) in [(1, 5), (2, 10), (3, 20), (4, 40), (5, 80), (6, 120), (u32::MAX, 120)] {
            let waits: Vec<_> = (0..2_000).map(|_| after_failure(&mut rng, failures)).collect();
            assert!(waits.iter().all(|wait| *wait <= secs(ceiling)));
            assert!(waits.iter().any(|wait| *wait > secs(ceiling) * 9 / 10));
            assert!(waits.iter().any(|wait| *wait < secs(ceiling) / 10));
        }
    }

    #[test]
    fn r35_a_failed_refresh_waits_for_about_three_quarters_of_what_is_left_of_the_token() {
        let mut rng = fastrand::Rng::with_seed(7);
        // Milliseconds.
        for (left, shortest, longest) in [
            (900_000, 585_000, 765_000),
            (100_000, 65_000, 85_000),
            (20_000, 13_000, 17_000),
            (5_000, 3_250, 4_250),
            (4_999, 0, 5_000),
        ] {
            let wait = |_| after_failed_refresh(&mut rng, 1, Duration::from_millis(left)).as_millis();
            let waits: Vec<_> = (0..500).map(wait).collect();
            let (least, most) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
            assert!(least >= shortest && most <= longest, "{left}: {least}..{most}");
            assert!(most - least > (longest - shortest) * 9 / 10, "{left} is not spread: {least}..{most}");
        }
    }

    #[test]
    fn r75_a_store_that_failed_is_left_alone_for_a_second_to_a_minute_half_of_it_spread() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (failures, longest) in [(1, 1_000), (2, 2_000), (6, 32_000), (7, 60_000), (u32::MAX, 60_000)] {
            let waits: Vec<_> = (0..500).map(|_| after_store_failure(&mut rng, failures).as_millis()).collect();
            let (least, most) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
            assert!(least >= longest / 2 && most <= longest, "{failures}: {least}..{most}");
            assert!(most - least > longest * 9 / 20, "{failures} is not spread: {least}..{most}");
        }
    }

    #[test]
    fn r32_a_retry_after_is_never_cut_short() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (seconds, spread) in [(1, 100), (10, 1_000), (20, 2_000), (3_600, 2_000)] {
            let waits: Vec<_> = (0..500).map(|_| after_retry_after(&mut rng, secs(seconds))).collect();
            let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            let spread = Duration::from_millis(spread);
            assert!(*least >= secs(seconds) && *most <= secs(seconds) + spread, "{seconds}: {least:?}..{most:?}");
            assert!(*most > secs(seconds) + spread / 2, "{seconds} is not spread: {most:?}");
        }
    }

    #[test]
    fn r47_patience_doubles_from_60_to_420_s_and_falls_back() {
        let mut patience = Patience::new();
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(patience.span().as_secs());
            patience.silent();
        }
        assert_eq!(seen, [60, 120, 240, 420, 420]);
        patience.answered(Duration::from_millis(9_999));
        assert_eq!(patience.span(), secs(60));
        // Whoever is held back once may be held for long.
        patience.answered(secs(10));
        assert_eq!(patience.span(), secs(420));
        patience.answered(secs(1));
        patience.throttled();
        assert_eq!(patience.span(), secs(420));
    }
}
