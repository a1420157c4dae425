//! Where a key's credentials come from, for those that come from somewhere: a file that somebody rewrites, a vault.
//!
//! The machine asks for a look at that place whenever it sends a request, and while a refused configuration stands. Nothing waits for what
//! is found there: what is known is used until other credentials come.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::credentials::{Credentials, CredentialsFailure};
use crate::machine::flight::secrets;
use crate::machine::output::{Action, CredentialsRequest, Event, OpId, Output};
use crate::machine::timer::Timer;
use crate::machine::{KeyId, Machine, Phase};
use crate::time::{Mono, Now};
use crate::wire::response::clear_text;

/// How often it is looked there while a refused configuration stands.
const LOOKS: Duration = Duration::from_secs(10);
/// One that is not back after so long hangs, and another is made when it is wanted. Long, since its thread may stay.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is known of the place where a key's credentials come from.
#[derive(Clone, Default, Debug)]
pub(super) struct Source {
    /// When it was last looked there.
    looked: Option<Mono>,
    /// When a key that is kept warm has it looked there by itself.
    look_at: Option<Mono>,
}

impl Source {
    pub(super) fn look_at(&self) -> Option<Mono> {
        self.look_at
    }
}

/// The looks that are under way, one per key at the most, and when each is given up.
#[derive(Clone, Default, Debug)]
pub(super) struct Looks(BTreeMap<OpId, (KeyId, Mono)>);

impl Looks {
    #[cfg(feature = "driver")]
    pub(super) fn awaits(&self, op: OpId) -> bool {
        self.0.contains_key(&op)
    }

    /// When the one for this key is given up; a point in the past where there is none.
    fn given_up_at(&self, key: KeyId) -> Mono {
        let of_key = self.0.values().find(|(looked_at, _)| *looked_at == key);
        of_key.map_or(Mono::default(), |(_, given_up_at)| *given_up_at)
    }

    /// This is another process now: what is under way is its parent's.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The key is gone: takes out the one that is under way for it.
    pub(super) fn forget(&mut self, key: KeyId) -> Option<OpId> {
        let op = self.0.iter().find(|(_, (looked_at, _))| *looked_at == key).map(|(op, _)| *op)?;
        self.0.remove(&op);
        Some(op)
    }
}

impl Machine {
    /// This key's credentials come from somewhere.
    pub(super) fn announce_source(&mut self, key: KeyId, now: Now) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.source.get_or_insert_default();
            self.settle(key, now);
        }
    }

    /// Has somebody look where the key's credentials come from, if there is such a place and nobody is there.
    pub(super) fn look_for_credentials(&mut self, key: KeyId, now: Now) {
        if self.phase == Phase::ShutDown || self.looks.given_up_at(key) > now.mono {
            return;
        }
        let Some(source) = &mut self.slot_mut(key).source else { return };
        source.looked = Some(now.mono);
        self.looks.forget(key);
        let op = self.next_op();
        self.looks.0.insert(op, (key, now.mono + PATIENCE));
        self.outputs.push(Output::Perform(Action::Credentials(CredentialsRequest { op, key })));
    }

    /// A refused configuration was met by a caller, or by keeping warm: somebody may have corrected it where it comes from.
    pub(super) fn look_for_correction(&mut self, key: KeyId, now: Now) {
        if self.next_look(key, now).is_some_and(|at| at <= now.mono) {
            self.look_for_credentials(key, now);
            self.settle(key, now);
        }
    }

    /// When it may be looked for a correction next, where there is something to correct and a place to look at.
    fn next_look(&self, key: KeyId, now: Now) -> Option<Mono> {
        let slot = &self.slots[&key];
        let source = slot
            .source
            .as_ref()
            .filter(|_| (slot.refusal.is_some() || slot.is_refused()) && self.phase == Phase::Open)?;
        let free = source.looked.map_or(now.mono, |looked| looked + LOOKS);
        Some(free.max(self.looks.given_up_at(key)))
    }

    /// After every transition: a warm key may have another next look.
    pub(super) fn settle_look(&mut self, key: KeyId, now: Now) {
        let look_at = self.next_look(key, now).filter(|_| self.slots[&key].warmers > 0);
        let Some(source) = &mut self.slot_mut(key).source else { return };
        let before = core::mem::replace(&mut source.look_at, look_at);
        if let Some(at) = before {
            self.timers.clear(at, Timer::Look(key));
        }
        if let Some(at) = look_at {
            self.timers.set(at, Timer::Look(key));
        }
    }

    /// What was found there. Credentials that are known change nothing.
    pub(super) fn credentials_found(&mut self, op: OpId, found: Result<Credentials, CredentialsFailure>, now: Now) {
        let Some((key, _)) = self.looks.0.remove(&op) else {
            self.outputs.event(Event::LateReport { op });
            return;
        };
        let slot = &self.slots[&key];
        let failure = match found {
            Ok(credentials) if credentials.client_id() == slot.key.credentials.client_id() => {
                self.replace_credentials(key, credentials, now);
                None
            }
            Ok(_) => Some(CredentialsFailure::new("they are another client's; a key keeps its client id")),
            Err(failure) => Some(failure),
        };
        if let Some(failure) = failure {
            let slot = &self.slots[&key];
            let secrets = secrets(slot, slot.sent_secret());
            let secrets: Vec<&[u8]> = secrets.iter().map(|secret| &secret[..]).collect();
            let detail = clear_text(&failure.detail, &secrets);
            self.outputs.event(Event::CredentialsFailed { key, detail });
        }
        self.settle(key, now);
    }
}
