//! Who waits, for which key, and until when. As many as there are callers, so bounded by them.

use std::collections::BTreeMap;

use crate::machine::KeyId;
use crate::time::Mono;

/// Names one caller that waits for a token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WaiterId(u64);

#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) key: KeyId,
    pub(super) deadline: Mono,
}

#[derive(Clone, Default, Debug)]
pub(super) struct Waiters {
    next: u64,
    waiting: BTreeMap<WaiterId, Waiter>,
}

impl Waiters {
    pub(super) fn add(&mut self, waiter: Waiter) -> WaiterId {
        let id = WaiterId(self.next);
        self.next += 1;
        self.waiting.insert(id, waiter);
        id
    }

    pub(super) fn get(&self, id: WaiterId) -> Option<Waiter> {
        self.waiting.get(&id).copied()
    }

    pub(super) fn remove(&mut self, id: WaiterId) -> Option<Waiter> {
        self.waiting.remove(&id)
    }

    /// All go, and no number is used again.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}
