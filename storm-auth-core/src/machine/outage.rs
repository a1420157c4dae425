//! An outage of the endpoint, as all keys of a limiter group feel it: they retry in turns, so that the bucket fills meanwhile.
//!
//! Every failing key backs off by itself. From its second failure in a row on, each of its retries holds those of the other such
//! keys back for a while, as if they were one key: thirty of them ask about as often as one (R35). No other key is concerned, and
//! as soon as the endpoint answers one of them, the outage is over for all.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::error::Cause;
use crate::machine::{KeyId, backoff};
use crate::time::{Moment, Now};

#[derive(Clone, Default, Debug)]
pub(super) struct Outage {
    /// The keys that have failed again since the endpoint answered last: when, and why.
    failing: BTreeMap<KeyId, (Now, Cause)>,
    /// Their retries since then.
    retries: u32,
    hold: Option<Hold>,
}

#[derive(Clone, Debug)]
struct Hold {
    until: Moment,
    by: KeyId,
}

impl Outage {
    pub(super) fn failed(&mut self, key: KeyId, cause: Cause, now: Now) {
        self.failing.insert(key, (now, cause));
    }

    /// A request of this key has gone out; if it is a retry, it holds those of the others back.
    pub(super) fn sent(&mut self, key: KeyId, rng: &mut fastrand::Rng, now: Now) {
        if !self.failing.contains_key(&key) {
            return;
        }
        self.retries = self.retries.saturating_add(1);
        if self.hold.as_ref().is_some_and(|hold| hold.by != key && !hold.until.reached(now)) {
            // It has waited for its turn long enough, and takes nobody else's.
            return;
        }
        // Never nothing: of those that could go at this moment, one does.
        let span = backoff::after_failure(rng, self.retries).max(Duration::from_millis(1));
        self.hold = Some(Hold { until: now.after(span), by: key });
    }

    /// The endpoint has answered.
    pub(super) fn ended(&mut self) {
        *self = Self::default();
    }

    pub(super) fn forget(&mut self, key: KeyId) {
        self.failing.remove(&key);
        self.hold.take_if(|hold| hold.by == key);
    }

    /// Until when retries are held back at all.
    pub(super) fn held_until(&self, now: Now) -> Option<Moment> {
        self.hold.as_ref().map(|hold| hold.until).filter(|until| !until.reached(now))
    }

    /// Until when this key is held back, by another one's retry; and what it met itself. Where the endpoint fails only some keys
    /// and these go on retrying, each of the others still gets its turn.
    pub(super) fn holds(&self, key: KeyId) -> Option<(Moment, &Cause)> {
        let hold = self.hold.as_ref().filter(|hold| hold.by != key)?;
        let (failed, cause) = self.failing.get(&key)?;
        let turns = u32::try_from(self.failing.len()).unwrap_or(u32::MAX);
        Some((hold.until.min(failed.after(backoff::LONGEST.saturating_mul(turns))), cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Failure, FailureKind};

    #[test]
    fn r35_a_key_that_retries_again_holds_the_others_longer_and_one_that_waited_its_turn_does_not() {
        let mut machine = crate::Machine::new(crate::Policy::default(), 7);
        let now = Now::from_millis(0, 1_000_000);
        let mut key = |client: &str| {
            let url = crate::TokenUrl::parse("https://id.example/token", &crate::HttpHosts::default());
            let credentials = crate::Credentials::new(client, "S3cret").expect("it is sound");
            machine
                .add_key(crate::Key::new(url.expect("it is sound"), credentials, crate::Scope::server_default()), now)
        };
        let (one, other) = (key("one"), key("other"));
        let (mut outage, mut rng) = (Outage::default(), fastrand::Rng::with_seed(7));
        for key in [one, other] {
            outage.failed(key, Cause::Failed(Failure::new(FailureKind::Connect, "")), now);
        }
        let mut held = || {
            let mut until = Vec::new();
            for key in [one, one, one, other] {
                outage.sent(key, &mut rng, now);
                until.push(outage.held_until(now));
            }
            until
        };
        let until = held();
        assert!(until[0] != until[1] && until[1] != until[2], "each retry holds anew: {until:?}");
        assert_eq!(until[2], until[3], "but not that of one who was held");
    }
}
