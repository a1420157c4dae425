//! One table of all deadlines: the machine has one next deadline, whatever it is for.

use std::collections::BTreeSet;

use crate::machine::{KeyId, OpId, WaiterId};
use crate::time::Mono;

/// What a deadline is for. The order breaks ties: a flight that ran out is over before its waiters are asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// A flight's patience ends.
    Flight(KeyId),
    /// The patience for something that no flight waits for ends.
    Errand(OpId),
    /// A lease has to be renewed.
    Renew(KeyId),
    /// Whoever holds the lease is looked after.
    Follow(KeyId),
    /// A key's own spacing is over: it joins the queue.
    Spaced(KeyId),
    /// A key that is kept warm needs its refresh.
    Warm(KeyId),
    /// A key that is kept warm was refused: it is looked where its credentials come from.
    Look(KeyId),
    /// A waiter's deadline.
    Waiter(WaiterId),
}

#[derive(Clone, Default, Debug)]
pub(super) struct Timers(BTreeSet<(Mono, Timer)>);

impl Timers {
    pub(super) fn set(&mut self, at: Mono, timer: Timer) {
        self.0.insert((at, timer));
    }

    pub(super) fn clear(&mut self, at: Mono, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    pub(super) fn next(&self) -> Option<(Mono, Timer)> {
        self.0.first().copied()
    }

    /// Takes out the deadlines that `now` has come to, in their order.
    pub(super) fn take_due(&mut self, now: Mono) -> Vec<Timer> {
        let mut due = Vec::new();
        while let Some((_, timer)) = self.next().filter(|(at, _)| *at <= now) {
            self.0.pop_first();
            due.push(timer);
        }
        due
    }
}
