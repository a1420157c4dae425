//! What a store has a say in: a key's record is read before anything is asked, the lease is taken before a request goes out, whoever
//! holds it is followed, and what came is told to the others.
//!
//! A key that has two secrets has two records, one under each: before it asks for a token it looks whether another process has got one
//! with the other secret, and uses that secret from then on. So those who name the two in another order come to share again.
//!
//! The store is asked, never relied on. Where it fails or lies a key goes on alone (R75), and no token is handed out because of it
//! that would not be handed out otherwise: a record's times are measured by this process's own clock, and its tag by the secret.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::credentials::ClientSecret;
use crate::error::Cause;
use crate::machine::flight::{Flight, Held, Path, Trouble, skew};
use crate::machine::output::{Action, Event, OpId, Output, RecordFault, StoreRequest};
use crate::machine::timer::Timer;
use crate::machine::{KeyId, Machine, Phase, backoff};
use crate::store::{Lease, Order, Owner, Record, StoreCommand, StoreFailure, StoreOp, StoreReply, Vault};
use crate::time::{Moment, Mono, Now, Unix, millis};
use crate::token::Token;
use crate::wire::response::{Grant, clear_text};
use crate::wire::retry_after::MAX_RETRY_AFTER;

/// How long a store may take for an operation: many times what one needs, and little beside what a caller waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for one that nobody waits for: it may stand behind others.
const ERRAND_PATIENCE: Duration = Duration::from_secs(5);

/// How long a lease lasts unless it is renewed: what a holder that died costs the others (R73).
const TTL: Duration = Duration::from_secs(10);

/// How often a holder is looked after: while callers wait for the token, and while one still lives.
const LOOKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];

/// After how long a holder that comes to no end is left, drawn from here to twice as long: a store may keep a lease for ever.
const LONGEST_FOLLOWED: Duration = Duration::from_secs(120);

/// The longest rest of a lease that is believed.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// The part of its life's rest over which a token that others hold too is refreshed, when the store is lost.
const SPREAD: f64 = 0.9;

/// The store behind this machine, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Sharing {
    owner: Owner,
    /// Failures in a row. Where it could not be written, that it can be read ends none.
    failures: u32,
    unwritable: bool,
    /// After a failure: from when on it is asked again.
    again: Option<Moment>,
    /// The gate that it told of last, and when that opens by the clocks of then: one beyond an hour, or read again by a wall clock
    /// that was set back, is not waited out anew with every answer.
    gate: Option<(Unix, Moment)>,
    /// Operations that no flight waits for, and when their patience ends.
    errands: BTreeMap<OpId, Mono>,
}

/// The lease of a request that is under way.
#[derive(Clone, Debug)]
pub(super) struct Tenure {
    vault: Vault,
    pub(super) renew_at: Mono,
}

/// What the store was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// A record; the `first` lease is known where it is the second record.
    Record { first: Option<Lease> },
    /// The lease, and with it the record.
    Lease,
}

/// A way to a request.
#[derive(Debug)]
enum Way {
    /// The lease is had.
    Leased(Vault),
    /// By the queue.
    Queue(Path),
}

impl Sharing {
    pub(super) fn new(rng: &mut fastrand::Rng) -> Self {
        Self {
            owner: Owner(rng.u128(..)),
            failures: 0,
            unwritable: false,
            again: None,
            gate: None,
            errands: BTreeMap::new(),
        }
    }

    /// Whether what was asked of it last failed: nothing waits to be told to such a store.
    pub(super) fn fails(&self) -> bool {
        self.again.is_some()
    }

    pub(super) fn errands(&self) -> usize {
        self.errands.len()
    }

    #[cfg(feature = "driver")]
    pub(super) fn awaits(&self, op: OpId) -> bool {
        self.errands.contains_key(&op)
    }

    /// This is another process now: what is under way is its parent's.
    pub(super) fn start_anew(&mut self, rng: &mut fastrand::Rng) {
        self.owner = Owner(rng.u128(..));
        self.errands.clear();
    }

    fn is_well(&self, now: Now) -> bool {
        self.again.is_none_or(|again| again.reached(now))
    }
}

// Asking
impl Machine {
    /// Whether there is a store that has not failed just now.
    pub(crate) fn may_share(&self, now: Now) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| sharing.is_well(now))
    }

    fn sharing_mut(&mut self) -> &mut Sharing {
        self.sharing.as_mut().expect(SHARED)
    }

    /// Has another process a token? From `Idle`, or a `BackingOff` that is over.
    pub(super) fn read(&mut self, key: KeyId, now: Now) {
        self.read_from(key, self.vault(key), None, now);
    }

    fn read_from(&mut self, key: KeyId, vault: Vault, first: Option<Lease>, now: Now) {
        let (op, patience_ends) = self.ask(key, vault.op(StoreCommand::Read), now);
        self.slot_mut(key).flight = Flight::Reading { op, patience_ends, vault, first };
        self.settle(key, now);
    }

    /// A request could go out: does another process see to it already? From `Queued`.
    pub(super) fn lease(&mut self, key: KeyId, now: Now) {
        let vault = self.vault(key);
        let command = StoreCommand::Lease { owner: self.sharing_mut().owner, ttl: TTL };
        let (op, patience_ends) = self.ask(key, vault.op(command), now);
        self.slot_mut(key).flight = Flight::Leasing { op, patience_ends, vault };
        self.settle(key, now);
    }

    fn vault(&self, key: KeyId) -> Vault {
        let key = &self.slots[&key].key;
        Vault::new(key, key.credentials().secret(), &self.policy.egress)
    }

    /// That of the key's other secret, where this is the one of the secret that it uses.
    fn other_vault(&self, key: KeyId, vault: &Vault) -> Option<Vault> {
        let key = &self.slots[&key].key;
        let other = key.credentials().next_secret().filter(|_| vault.is_of(key.credentials().secret()))?;
        Some(Vault::new(key, other, &self.policy.egress))
    }

    fn ask(&mut self, key: KeyId, store_op: StoreOp, now: Now) -> (OpId, Mono) {
        let (op, patience_ends) = self.perform(key, store_op, PATIENCE, now);
        self.ops.insert(op, key);
        self.timers.set(patience_ends, Timer::Flight(key));
        (op, patience_ends)
    }

    /// Something that no flight waits for.
    fn errand(&mut self, key: KeyId, store_op: StoreOp, now: Now) {
        let (op, patience_ends) = self.perform(key, store_op, ERRAND_PATIENCE, now);
        self.timers.set(patience_ends, Timer::Errand(op));
        self.sharing_mut().errands.insert(op, patience_ends);
    }

    fn perform(&mut self, key: KeyId, store_op: StoreOp, patience: Duration, now: Now) -> (OpId, Mono) {
        let op = self.next_op();
        self.outputs.push(Output::Perform(Action::Store(StoreRequest { op, key, store_op, patience })));
        (op, now.mono + patience)
    }
}

// What the store says
impl Machine {
    /// An operation was performed, or was not. A late or unknown one is only reported.
    pub(super) fn store_answered(&mut self, op: OpId, result: Result<StoreReply, StoreFailure>, now: Now) {
        if let Some(patience_ends) = self.sharing.as_mut().and_then(|sharing| sharing.errands.remove(&op)) {
            self.timers.clear(patience_ends, Timer::Errand(op));
            return match result {
                Ok(reply) => self.store_works(true, &reply, now),
                Err(failure) => self.store_failed(true, &failure, now),
            };
        }
        let Some(key) = self.ops.get(&op).copied() else {
            self.outputs.event(Event::LateReport { op });
            return;
        };
        let slot = self.slot_mut(key);
        let (asked, patience_ends, vault) = match core::mem::replace(&mut slot.flight, Flight::Idle) {
            Flight::Reading { patience_ends, vault, first, .. } => (Asked::Record { first }, patience_ends, vault),
            Flight::Leasing { patience_ends, vault, .. } => (Asked::Lease, patience_ends, vault),
            other => {
                // The answer of a store to a token request: a driver's mistake.
                slot.flight = other;
                self.outputs.event(Event::LateReport { op });
                return;
            }
        };
        self.ops.remove(&op);
        self.timers.clear(patience_ends, Timer::Flight(key));
        match result {
            Ok(reply) => {
                self.store_works(asked == Asked::Lease, &reply, now);
                self.store_replied(key, asked, &reply, vault, now);
            }
            Err(failure) => {
                self.store_failed(asked == Asked::Lease, &failure, now);
                self.go_on(key, Way::Queue(Path::Alone), now);
            }
        }
        self.announce_deferral(key, now);
        self.shed(now);
        self.settle(key, now);
    }

    fn store_replied(&mut self, key: KeyId, asked: Asked, reply: &StoreReply, vault: Vault, now: Now) {
        let leasing = asked == Asked::Lease;
        let adopted = self.adopt(key, reply.record.as_ref(), &vault, now);
        if let Some(refresh_at) = adopted
            && !refresh_at.reached(now)
        {
            if leasing && reply.lease == Lease::Mine {
                self.release(key, &vault, now);
            }
            return;
        }
        // An outage that others have met is no new one here.
        let slot = self.slot_mut(key);
        slot.failures = slot.failures.max(reply.failures);
        let lease = match asked {
            // Whoever fetches a token with the other secret is followed as well.
            Asked::Record { first: Some(first) } if reply.lease != Lease::Taken && adopted.is_none() => first,
            _ => reply.lease,
        };
        // One that rests after no failure was refused.
        let refused = matches!(lease, Lease::Resting(_)) && self.slots[&key].failures == 0;
        if lease != Lease::Taken {
            if asked == (Asked::Record { first: None })
                && let Some(other) = self.other_vault(key, &vault)
            {
                return match refused && self.take_other_try(key) {
                    true => {
                        self.swap_secrets(key, now);
                        self.read(key, now);
                    }
                    false => self.read_from(key, other, Some(lease), now),
                };
            }
            self.slot_mut(key).followed_until = None;
        }
        match lease {
            Lease::Mine if leasing => self.go_on(key, Way::Leased(vault), now),
            Lease::Free | Lease::Mine if !leasing => self.go_on(key, Way::Queue(Path::Lease), now),
            Lease::Taken => self.follow(key, now),
            // From a process that hangs, or a store that gives the lease to nobody.
            Lease::Lapsed | Lease::Free | Lease::Mine => {
                self.outputs.event(Event::LeaseLapsed { key });
                self.go_on(key, Way::Queue(Path::Alone), now);
            }
            Lease::Resting(rest) => {
                let until = now.after(rest.min(LONGEST_REST));
                let cause = if refused { Cause::RefusedElsewhere } else { Cause::FailedElsewhere };
                let trouble = Trouble::Unavailable(cause);
                self.slot_mut(key).flight = Flight::BackingOff { until, trouble };
                self.fail_with_trouble(key, now);
            }
        }
    }

    /// A request is still to be had, where it is still wanted.
    fn go_on(&mut self, key: KeyId, way: Way, now: Now) {
        let wanted = self.phase == Phase::Open && self.slots[&key].is_wanted(now);
        match way {
            Way::Leased(vault) if wanted && self.may_send(key, &vault, now) => {
                let renew_at = now.mono + TTL / 3;
                self.timers.set(renew_at, Timer::Renew(key));
                self.send(key, Some(Tenure { vault, renew_at }), now);
            }
            Way::Leased(vault) => {
                // The gate has closed, another key was faster, or the secret is another one now.
                self.release(key, &vault, now);
                if wanted {
                    self.line_up(key, Path::Lease, now.mono, now);
                }
            }
            Way::Queue(_) if !wanted => {}
            Way::Queue(Path::Lease) => self.line_up(key, Path::Lease, now.mono, now),
            Way::Queue(Path::Alone) => {
                // All who share a token would ask at the same moment, so each takes one of its own, unless somebody waits (R75).
                let slot = &self.slots[&key];
                let together = slot.valid(now).filter(|held| held.shared && slot.waiters.is_empty());
                let span = together.map_or(0, |held| (millis(held.hard.left(now)) as f64 * SPREAD) as u64);
                let delay = Duration::from_millis(self.rng.u64(0..=span));
                self.line_up(key, Path::Alone, now.mono + delay, now);
            }
        }
    }

    fn may_send(&self, key: KeyId, vault: &Vault, now: Now) -> bool {
        let slot = &self.slots[&key];
        vault.is_of(slot.key.credentials().secret()) && self.slot_time(key, now) <= now.mono
    }

    /// Another process holds the lease: it is left to do its work, and looked after.
    fn follow(&mut self, key: KeyId, now: Now) {
        if self.phase == Phase::ShutDown || !self.slots[&key].is_wanted(now) {
            return;
        }
        let longest = now.mono + LONGEST_FOLLOWED + Duration::from_millis(self.rng.u64(0..=millis(LONGEST_FOLLOWED)));
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        // One that was long ago was another row.
        let row = slot.followed_until.filter(|until| now.mono < *until + LONGEST_FOLLOWED);
        let until = *slot.followed_until.insert(row.unwrap_or(longest));
        if until <= now.mono {
            slot.followed_until = None;
            self.outputs.event(Event::LeaseLapsed { key });
            return self.go_on(key, Way::Queue(Path::Alone), now);
        }
        let look = millis(LOOKS[usize::from(slot.waiters.is_empty())]);
        let look_at = now.mono + Duration::from_millis(self.rng.u64(look / 2..=look));
        slot.flight = Flight::Following { look_at };
        self.timers.set(look_at, Timer::Follow(key));
    }

    /// A holder is looked after.
    pub(super) fn look_after(&mut self, key: KeyId, now: Now) {
        if let Flight::Following { look_at } = self.slots[&key].flight
            && look_at <= now.mono
        {
            self.slot_mut(key).flight = Flight::Idle;
            match self.slots[&key].is_wanted(now) {
                true if self.may_share(now) => self.read(key, now),
                true => self.go_on(key, Way::Queue(Path::Alone), now),
                false => self.settle(key, now),
            }
        }
    }

    /// Takes a record's token, if it is sound and newer than the held one; returns when its refresh is due.
    fn adopt(&mut self, key: KeyId, record: Option<&Record>, vault: &Vault, now: Now) -> Option<Moment> {
        let held = match record.ok_or(None).and_then(|record| self.judge(key, record, vault, now)) {
            Ok(held) => held,
            Err(fault) => {
                self.counters.store_misses += 1;
                if let Some(fault) = fault {
                    self.outputs.event(Event::RecordIgnored { key, fault });
                }
                return None;
            }
        };
        self.counters.store_hits += 1;
        let credentials = self.slots[&key].key.credentials();
        if !vault.is_of(credentials.secret()) && credentials.next_secret().is_some_and(|secret| vault.is_of(secret)) {
            self.swap_secrets(key, now);
        }
        self.end_outage();
        let token = held.token.clone();
        let refresh_at = self.hold(key, held, now);
        let told = refresh_at.told(now);
        self.outputs.event(Event::Adopted { key, token: token.id(), expires_at: token.expires_at(), refresh_at: told });
        self.resolve_waiters(key, &Ok(token));
        Some(refresh_at)
    }

    /// What a record is worth to this process; an error is a miss, with a fault where a person should know.
    fn judge(&self, key: KeyId, record: &Record, vault: &Vault, now: Now) -> Result<Held, Option<RecordFault>> {
        let slot = &self.slots[&key];
        let known = slot.held.as_ref().and_then(|held| held.order).max(slot.rejected_order);
        if known >= Some(record.order) {
            return Err(None);
        }
        let Grant { access_token, lifetime, scope } = vault.open(record).ok_or(Some(RecordFault::Unreadable))?;
        let sent = record.order.sent;
        // By more than what is kept back of a life for such things.
        if sent.since(now.unix) > skew(lifetime) {
            return Err(Some(RecordFault::FromTheFuture));
        }
        let age = now.unix.since(sent);
        let left = lifetime.saturating_sub(age).saturating_sub(skew(lifetime));
        let hard = now.after(left);
        let token = Token::new(key, &access_token, hard.unix, scope);
        if left.is_zero() || slot.has_rejected(token.id()) {
            return Err(None);
        }
        Ok(Held::adopted(token, record.order, lifetime, age, self.policy.refresh_early, hard, now))
    }

    /// What every answer says beside what it was asked for.
    fn store_works(&mut self, written: bool, reply: &StoreReply, now: Now) {
        let sharing = self.sharing_mut();
        sharing.again = None;
        if (written || !sharing.unwritable) && core::mem::take(&mut sharing.failures) > 0 {
            sharing.unwritable = false;
            self.outputs.event(Event::StoreRecovered);
        }
        let Some(until) = reply.gate else { return };
        let opens = match self.sharing_mut().gate {
            Some((known, opens)) if known == until => opens,
            _ => now.after(until.since(now.unix).min(MAX_RETRY_AFTER)),
        };
        self.sharing_mut().gate = Some((until, opens));
        let left = opens.left(now);
        if left > self.gate.closed_until(now).map_or(Duration::ZERO, |until| until.left(now)) {
            // All who share the gate were told the same moment.
            let wait = backoff::after_retry_after(&mut self.rng, left);
            self.close_gate(wait, None, now);
        }
    }

    fn store_failed(&mut self, writing: bool, failure: &StoreFailure, now: Now) {
        self.counters.store_failures += 1;
        let sharing = self.sharing.as_mut().expect(SHARED);
        sharing.unwritable |= writing;
        if !sharing.is_well(now) {
            return;
        }
        sharing.failures = sharing.failures.saturating_add(1);
        let again = now.after(backoff::after_store_failure(&mut self.rng, sharing.failures));
        sharing.again = Some(again);
        if sharing.failures == 1 {
            // Once, and not with each operation that fails.
            let known = self.slots.values().flat_map(|slot| slot.key.credentials().secrets());
            let secrets: Vec<_> = known.cloned().collect();
            let secrets: Vec<_> = secrets.iter().map(|secret| secret.expose().as_bytes()).collect();
            let detail = clear_text(&failure.detail, &secrets);
            self.outputs.event(Event::StoreFailed { detail, retry_at: again.told(now) });
        }
    }

    /// The store has not answered in time.
    pub(super) fn store_overdue(&mut self, op: OpId, now: Now) {
        self.outputs.withdraw(op);
        let leased = self.ops.get(&op).copied().and_then(|key| match &self.slots[&key].flight {
            Flight::Leasing { vault, .. } => Some((key, vault.clone())),
            _ => None,
        });
        let failure = StoreFailure::new("it did not answer in time; look at its load and the way there");
        self.store_answered(op, Err(failure), now);
        if let Some((key, vault)) = leased {
            // It may still be given, and nobody would know.
            self.give_up_lease(key, &vault, now);
        }
    }
}

// Telling the others
impl Machine {
    /// How a token that has just come is ordered among those of other processes.
    pub(super) fn order(&mut self, sent: Now) -> Option<Order> {
        self.sharing.is_some().then(|| Order { sent: sent.unix, id: self.rng.u64(..) })
    }

    /// A token came: it is there for all who share the store, and the lease is over.
    pub(super) fn publish(
        &mut self,
        key: KeyId,
        sent_secret: &ClientSecret,
        tenure: Option<Tenure>,
        order: Order,
        grant: &Grant,
        now: Now,
    ) {
        let owner = tenure.as_ref().map(|_| self.sharing_mut().owner);
        let vault = match tenure {
            Some(tenure) => tenure.vault,
            // To a store that has failed, too: once a lifetime costs it nothing, and it may work again.
            None => Vault::new(&self.slots[&key].key, sent_secret, &self.policy.egress),
        };
        let record = vault.close(order, grant);
        self.errand(key, vault.op(StoreCommand::Publish { owner, record }), now);
    }

    /// A request brought nothing to share: its lease is over, and rests for as long as this key backs off.
    pub(super) fn let_go(&mut self, key: KeyId, tenure: Option<Tenure>, now: Now) {
        if let Some(Tenure { vault, .. }) = tenure {
            self.release(key, &vault, now);
        }
    }

    /// A secret was refused, and the other one is tried: those who have the refused one alone ask as seldom as they would.
    pub(super) fn let_rest(&mut self, key: KeyId, tenure: Option<Tenure>, rest: Duration, now: Now) {
        if let Some(Tenure { vault, .. }) = tenure {
            self.end_lease(key, &vault, rest, now);
        }
    }

    /// A lease that was asked for, and whose answer nobody hears any more.
    pub(super) fn give_up_lease(&mut self, key: KeyId, vault: &Vault, now: Now) {
        self.end_lease(key, vault, Duration::ZERO, now);
    }

    fn release(&mut self, key: KeyId, vault: &Vault, now: Now) {
        let rest = match &self.slots[&key].flight {
            Flight::BackingOff { until, .. } => until.left(now),
            _ => Duration::ZERO,
        };
        self.end_lease(key, vault, rest, now);
    }

    fn end_lease(&mut self, key: KeyId, vault: &Vault, rest: Duration, now: Now) {
        let (owner, failures) = (self.sharing_mut().owner, self.slots[&key].failures);
        self.errand(key, vault.op(StoreCommand::Release { owner, rest, failures }), now);
    }

    /// Keeps the lease for as long as the request is under way (R73).
    pub(super) fn renew(&mut self, key: KeyId, now: Now) {
        let Some(sharing) = &self.sharing else { return };
        let command = StoreCommand::Lease { owner: sharing.owner, ttl: TTL };
        if let Flight::Requesting { tenure: Some(tenure), .. } = &mut self.slots.get_mut(&key).expect(KNOWN).flight
            && tenure.renew_at <= now.mono
        {
            tenure.renew_at = now.mono + TTL / 3;
            self.timers.set(tenure.renew_at, Timer::Renew(key));
            let op = tenure.vault.op(command);
            self.errand(key, op, now);
            self.settle(key, now);
        }
    }

    /// The endpoint wants to be left alone: so do all who share the gate (R76).
    pub(super) fn tell_gate(&mut self, key: KeyId, until: Unix, now: Now) {
        if self.may_share(now) {
            let op = self.vault(key).op(StoreCommand::CloseGate { until });
            self.errand(key, op, now);
        }
    }
}

const SHARED: &str = "the store is asked only where there is one";
const KNOWN: &str = "keys in flights and timers are removed together with their slot";
