//! How long to wait after what happened: spread where processes collide, steady otherwise.

use core::time::Duration;

use crate::time::millis;

/// The first failure's back-off is drawn from zero to this.
const FIRST: Duration = Duration::from_secs(5);
/// No back-off is longer: after an outage a call finds its token within this and one request (R28). Its mean is three slots
/// of the documented limiter, so that a few processes leave its bucket filling while the endpoint is down.
pub(super) const LONGEST: Duration = Duration::from_secs(120);

/// Throttles in a row that wait one slot each; the limiter refills at a fixed pace, so waiting longer would only starve
/// whoever is polite. From here on it must be one that counts refused requests, and the wait grows.
const STEADY_THROTTLES: u32 = 5;
const LONGEST_THROTTLE: Duration = Duration::from_secs(300);

/// A refused configuration is probed again after the first, and then at most every second span (R37).
const PROBES: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];

/// Full jitter after the `failures`-th failure in a row, counted from 1.
pub(super) fn after_failure(rng: &mut fastrand::Rng, failures: u32) -> Duration {
    let ceiling = doubled(FIRST, failures.saturating_sub(1)).min(LONGEST);
    Duration::from_millis(rng.u64(0..=millis(ceiling)))
}

/// The wait after the `throttles`-th throttle in a row, counted from 1, where the answer named none: one slot, a quarter of
/// it spread to each side, growing only after the fifth.
pub(super) fn after_throttle(rng: &mut fastrand::Rng, throttles: u32, slot: Duration) -> Duration {
    let wait = doubled(slot, throttles.saturating_sub(STEADY_THROTTLES)).min(LONGEST_THROTTLE);
    let quarter = millis(wait) / 4;
    Duration::from_millis(rng.u64(millis(wait) - quarter..=millis(wait) + quarter)).min(LONGEST_THROTTLE)
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

    /// The endpoint answered.
    pub(super) fn answered(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn r35_a_throttle_waits_one_spread_slot_and_grows_only_after_five() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (throttles, shortest, longest) in
            [(1, 15, 25), (5, 15, 25), (6, 30, 50), (7, 60, 100), (9, 225, 300), (99, 225, 300)]
        {
            let waits: Vec<_> = (0..500).map(|_| after_throttle(&mut rng, throttles, secs(20))).collect();
            let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(*least >= secs(shortest) && *most <= secs(longest), "throttle {throttles}: {least:?}..{most:?}");
            assert!(*least < secs(shortest) * 11 / 10, "throttle {throttles} is not spread: {least:?}");
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
        patience.answered();
        assert_eq!(patience.span(), secs(60));
    }
}
