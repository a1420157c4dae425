//! The store that simulated processes share: a true one in memory, and the ways in which it fails and lies.

use std::collections::BTreeMap;

use storm_auth_core::Unix;
use storm_auth_core::store::{Lease, Order, Record, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore};

use super::scenario::{StoreMood, StoreRates};
use crate::memory_store::MemoryStore;

/// A published token, by the records of this side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) serial: usize,
    /// How long it lives, as its reader was told.
    pub(super) life: u64,
}

#[derive(Debug)]
pub(super) struct Shelf {
    store: MemoryStore,
    pub(super) mood: StoreMood,
    wrong_by: i64,
    pub(super) published: BTreeMap<Order, Published>,
    /// Every record that was ever handed in, for a store that lags.
    before: Vec<(storm_auth_core::store::RecordName, Record)>,
}

/// What becomes of an operation on its way there and back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Luck {
    pub(super) fails: bool,
    pub(super) hangs: bool,
    pub(super) lags: bool,
    pub(super) lies: Option<u8>,
    pub(super) draw: u64,
}

impl Shelf {
    pub(super) fn new(rates: StoreRates) -> Self {
        Self {
            store: MemoryStore::new(),
            mood: StoreMood::Well,
            wrong_by: rates.wrong_by,
            published: BTreeMap::new(),
            before: Vec::new(),
        }
    }

    pub(super) fn lose_everything(&self) {
        self.store.lose_everything();
    }

    /// What comes back, and whether it comes in time.
    pub(super) fn perform(&mut self, op: &StoreOp, luck: Luck, at: u64) -> (Result<StoreReply, StoreFailure>, bool) {
        let failure = || Err(StoreFailure::new("on purpose"));
        if self.mood == StoreMood::Down || luck.fails {
            return (failure(), true);
        }
        let silent = self.mood == StoreMood::Silent || luck.hangs;
        if silent && luck.draw.is_multiple_of(2) {
            return (failure(), false);
        }
        if let StoreCommand::Publish { record, .. } = &op.command {
            self.before.push((op.record, record.clone()));
        }
        self.store.set_time(Unix::from_millis(at.saturating_add_signed(self.wrong_by)));
        let mut reply = self.store.perform(op).expect("memory does not fail");
        if luck.lags {
            let before: Vec<_> = self.before.iter().filter(|(name, _)| *name == op.record).collect();
            if !before.is_empty() {
                reply.record = Some(before[luck.draw as usize % before.len()].1.clone());
            }
        }
        match luck.lies {
            None => {}
            Some(0) => reply.gate = Some(Unix::from_millis(u64::MAX)),
            Some(1) => reply.lease = Lease::Resting(core::time::Duration::MAX),
            Some(2) => reply.lease = Lease::Taken,
            Some(3) => reply.lease = Lease::Mine,
            Some(4) => reply.lease = Lease::Free,
            Some(5) => reply.failures = u32::MAX,
            Some(which) => {
                if let Some(record) = &mut reply.record {
                    let length = record.body.len().max(1);
                    match which % 3 {
                        0 => record.order.sent = Unix::from_millis(u64::MAX),
                        1 => record.expires_at = record.expires_at + core::time::Duration::from_secs(3_600),
                        _ => {
                            record
                                .body
                                .iter_mut()
                                .skip(luck.draw as usize % length)
                                .take(1)
                                .for_each(|byte| *byte ^= 1);
                        }
                    }
                }
            }
        }
        (Ok(reply), !silent)
    }
}
