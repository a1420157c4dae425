//! A token store in memory, by a clock that the caller moves: for tests, and the plainest example of what a store does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use core::time::Duration;
use storm_auth_core::Unix;
use storm_auth_core::store::{
    GateName, Lease, Owner, Record, RecordName, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore,
};

/// The longest rest of a lease, and the longest that a gate is closed: what is longer is a mistake of somebody.
const HOUR: Duration = Duration::from_secs(3_600);

/// Keeps records, leases and gates for whoever has a clone of it. Its time stands still until it is [told](Self::set_time).
///
/// ```
/// use storm_auth_core::Unix;
/// use storm_auth_tests::memory_store::MemoryStore;
///
/// let store = MemoryStore::new();
/// store.set_time(Unix::from_millis(1_700_000_000_000));
/// let given_to_another_machine = store.clone();
/// # drop(given_to_another_machine);
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Kept>>);

#[derive(Clone, Debug, Default)]
struct Kept {
    now: Unix,
    keys: BTreeMap<RecordName, KeptKey>,
    gates: BTreeMap<GateName, Unix>,
}

#[derive(Clone, Debug, Default)]
struct KeptKey {
    record: Option<Record>,
    lease: Option<(Owner, Unix)>,
    rests_until: Unix,
    failures: u32,
}

impl MemoryStore {
    /// An empty store, in 1970.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells it what time it is.
    pub fn set_time(&self, now: Unix) {
        self.with(|kept| kept.now = now);
    }

    /// Forgets everything, as a replica does that had received nothing when it took over.
    pub fn lose_everything(&self) {
        self.with(|kept| *kept = Kept { now: kept.now, ..Kept::default() });
    }

    /// The record under a name, whatever its age.
    pub fn record(&self, name: RecordName) -> Option<Record> {
        self.with(|kept| kept.keys.get(&name)?.record.clone())
    }

    /// Another store that has what this one has now, and goes its own way from here.
    pub fn copy(&self) -> Self {
        self.with(|kept| Self(Arc::new(Mutex::new(kept.clone()))))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl TokenStore for MemoryStore {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        Ok(self.with(|kept| kept.perform(op)))
    }
}

impl Kept {
    fn perform(&mut self, op: &StoreOp) -> StoreReply {
        let now = self.now;
        let key = self.keys.entry(op.record).or_default();
        key.lease.take_if(|(_, until)| *until <= now);
        key.record.take_if(|record| record.expires_at <= now);
        let holds = |key: &KeptKey, owner: Owner| key.lease.is_some_and(|(holder, _)| holder == owner);
        let mut asks = None;
        match &op.command {
            StoreCommand::Read => {}
            StoreCommand::Lease { owner, ttl } => {
                asks = Some(*owner);
                if holds(key, *owner) || (key.lease.is_none() && key.rests_until <= now) {
                    key.lease = Some((*owner, now + *ttl));
                }
            }
            StoreCommand::Publish { owner, record } => {
                let counts = |kept: &&Record| kept.order.sent <= now + HOUR;
                let older = key.record.as_ref().filter(counts).is_none_or(|kept| kept.order < record.order);
                let barred = owner.is_some() && key.lease.is_some_and(|(holder, _)| Some(holder) != *owner);
                if older && !barred {
                    key.record = Some(record.clone());
                    (key.failures, key.rests_until) = (0, Unix::default());
                }
                key.lease.take_if(|(holder, _)| Some(*holder) == *owner);
            }
            StoreCommand::Release { owner, rest, failures } => {
                if holds(key, *owner) {
                    key.lease = None;
                    (key.failures, key.rests_until) = (*failures, now + (*rest).min(HOUR));
                }
            }
            StoreCommand::CloseGate { until } => {
                let gate = self.gates.entry(op.gate).or_default();
                *gate = (*gate).max((*until).min(now + HOUR));
            }
        }
        let lease = match key.lease {
            Some((holder, _)) if Some(holder) == asks => Lease::Mine,
            Some(_) => Lease::Taken,
            None if key.rests_until > now => Lease::Resting(key.rests_until.since(now)),
            None => Lease::Free,
        };
        let gate = self.gates.get(&op.gate).copied().filter(|until| *until > now);
        StoreReply { record: key.record.clone(), gate, lease, failures: key.failures }
    }
}
