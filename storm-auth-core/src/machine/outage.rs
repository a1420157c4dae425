//! An outage of the endpoint, as all keys of a limiter group feel it: they retry in turns, so that the bucket fills meanwhile.
//!
//! Every failing key backs off by itself, and a key that is about to retry also holds the retries of the others back for a while, as if
//! its own next retry were theirs too: thirty keys ask about as often as one (R35). Keys that have not failed are not concerned,
//! nor is the one that holds, and a token ends the outage for all.

use core::time::Duration;

use crate::machine::{KeyId, backoff};
use crate::time::{Moment, Now};

#[derive(Default, Debug)]
pub(super) struct Outage {
    /// Retries of all keys since the last token.
    retries: u32,
    held: Option<Hold>,
}

#[derive(Debug)]
struct Hold {
    until: Moment,
    by: KeyId,
}

impl Outage {
    /// This key, which has failed before, is about to ask again.
    pub(super) fn hold(&mut self, key: KeyId, rng: &mut fastrand::Rng, now: Now) {
        if self.held_until(now).is_some() && self.held.as_ref().is_some_and(|hold| hold.by == key) {
            return;
        }
        // Never nothing: of those that may go at this moment, one does.
        let span = backoff::after_failure(rng, self.retries.saturating_add(1)).max(Duration::from_millis(1));
        self.held = Some(Hold { until: now.after(span), by: key });
    }

    /// It does not: nobody needs it any more.
    pub(super) fn release(&mut self, key: KeyId) {
        self.held.take_if(|hold| hold.by == key);
    }

    /// It has asked.
    pub(super) fn retried(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }

    /// A token came; returns whether anything was held back.
    pub(super) fn ended(&mut self) -> bool {
        self.retries = 0;
        self.held.take().is_some()
    }

    /// Until when other keys than the one that asked last do not retry.
    pub(super) fn held_until(&self, now: Now) -> Option<Moment> {
        self.held.as_ref().map(|hold| hold.until).filter(|until| !until.reached(now))
    }

    /// When this key's back-off is over, if it was over at `until` by itself.
    pub(super) fn end_of_back_off(&self, key: KeyId, until: Moment) -> Moment {
        match &self.held {
            Some(hold) if hold.by != key => until.max(hold.until),
            _ => until,
        }
    }
}
