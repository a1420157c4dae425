//! The slots and all their transitions. Every change of a [`Flight`] stands in this file, and those in which a store has a say in
//! [`sharing`](super::sharing).
//!
//! The diagram of the states stands in the [crate docs](crate#how-it-decides).
//!
//! Whether a token is held is independent of this: `Option<Held>` beside it, whose freshness is computed from `now`.

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

use http::Response;
use zeroize::Zeroizing;

use crate::config::Policy;
use crate::credentials::{ClientSecret, Credentials};
use crate::error::{AcquireError, Cause, Failure, FailureKind};
use crate::machine::backoff::{self, Patience, Throttle};
use crate::machine::budget::Bucket;
use crate::machine::output::{Action, Event, OpId, Output, Reason, TokenRequest};
use crate::machine::renewal::Source;
use crate::machine::sharing::Tenure;
use crate::machine::timer::{Timer, Timers};
use crate::machine::{Invalidated, Key, KeyId, Machine, Phase, Waiter, WaiterId};
use crate::store::{Lease, Order, Vault};
use crate::time::{Moment, Mono, Now, Unix, millis};
use crate::token::{Token, TokenId};
use crate::wire::request::token_request;
use crate::wire::response::{Class, Grant, Outcome, Refusal, ResponseBody, clear_text, read_response};

/// R20: a token is not handed out for the last 2 % of its life, or the last 10 s of a long one.
const LONGEST_SKEW: Duration = Duration::from_secs(10);
const SKEW_DIVISOR: u32 = 50;

/// R40: a rejected token younger than this was fresh, and after two of them a key is held off for as long.
const FRESH: Duration = Duration::from_secs(60);
const FRESH_REJECTIONS: u32 = 2;

/// Requests in a row that this side spoilt and that are repeated at once. They say nothing about the endpoint.
const ABORTS_REPEATED: u32 = 2;

/// Removed keys that wait for a driver to take notice.
const REMOVED_KEPT: usize = 256;

/// A caller is told its place in the queue up to here; behind it, the place is a lower bound.
const PLACES_COUNTED: usize = 64;

/// One key: its token, its flight, and who waits for it.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) held: Option<Held>,
    pub(super) flight: Flight,
    pub(super) waiters: BTreeSet<WaiterId>,
    /// How many want it kept warm.
    pub(super) warmers: u32,
    warm_at: Option<Mono>,
    /// The place where its credentials come from, where there is one.
    pub(super) source: Option<Source>,
    /// Until when its request was last said to have to wait.
    deferred: Option<Unix>,
    /// Whether a token has been refreshed while it lived.
    refreshed: bool,
    bucket: Bucket,
    patience: Patience,
    /// Failures in a row, throttles and refusals aside.
    pub(super) failures: u32,
    /// Refused configurations in a row.
    refusals: u32,
    /// The refused configuration that stands until a token comes or the credentials change.
    pub(super) refusal: Option<Box<Refusal>>,
    /// Whether the second one of its secrets was refused, since a token came or the credentials changed.
    other_refused: bool,
    /// Rejections of fresh tokens in a row.
    fresh_rejections: u32,
    rejected: VecDeque<TokenId>,
    /// The newest order of a rejected token: no record that is not newer is worth anything.
    pub(super) rejected_order: Option<Order>,
    /// Until when those who hold the lease are followed, in this row.
    pub(super) followed_until: Option<Mono>,
}

/// A token that came, until another one does.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) token: Token,
    lifetime: Duration,
    /// When its whole life ends.
    end: Moment,
    /// The age at which it is refreshed when that is early.
    early: Duration,
    /// When it is refreshed, where a limiter held its request back.
    place: Option<Moment>,
    /// From here on it is never served (R20).
    pub(super) hard: Moment,
    /// Until when a rejection of it is one of a fresh token (R40).
    fresh_until: Moment,
    /// Its order among those of other processes, where a store is shared.
    pub(super) order: Option<Order>,
    /// Whether other processes hold it too.
    pub(super) shared: bool,
}

impl Held {
    /// A token that another process requested, `age` ago, and that is refreshed after a share of its life.
    pub(super) fn adopted(
        token: Token,
        order: Order,
        lifetime: Duration,
        age: Duration,
        early: f64,
        hard: Moment,
        now: Now,
    ) -> Self {
        let end = now.after(lifetime.saturating_sub(age));
        let early = share(lifetime, early);
        let fresh_until = now.after(FRESH.saturating_sub(age));
        let order = Some(order);
        Self { token, lifetime, end, early, place: None, hard, fresh_until, order, shared: true }
    }
}

/// What is kept back of a life.
pub(super) fn skew(lifetime: Duration) -> Duration {
    LONGEST_SKEW.min(lifetime / SKEW_DIVISOR)
}

/// What a slot is doing. Every state but `Idle` has a deadline.
#[derive(Clone, Debug)]
pub(super) enum Flight {
    Idle,
    /// The store is asked for the key's record; where the key has two secrets, for that of the other one after its own.
    Reading {
        op: OpId,
        patience_ends: Mono,
        vault: Vault,
        /// What was said of the lease beside the first record.
        first: Option<Lease>,
    },
    /// A request is wanted, and goes when the key's own spacing, the gate and the budget let it.
    Queued {
        place: Place,
        spaced_until: Mono,
        reason: Reason,
        path: Path,
    },
    /// The store is asked for the key's lease.
    Leasing {
        op: OpId,
        patience_ends: Mono,
        vault: Vault,
    },
    /// Another process has the lease, and is looked after then.
    Following {
        look_at: Mono,
    },
    /// A request is under way.
    Requesting {
        op: OpId,
        sent: Now,
        patience_ends: Mono,
        /// The secret in it, which an answer may repeat.
        secret: ClientSecret,
        /// The lease, where there is one.
        tenure: Option<Tenure>,
    },
    /// Something went wrong; callers without a token get it from memory until then.
    BackingOff {
        until: Moment,
        trouble: Trouble,
    },
}

/// How a request leaves the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// With the lease, where there is a store to take it from.
    Lease,
    /// Without.
    Alone,
}

/// A place in the queue: the earliest need goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    need: Mono,
    key: KeyId,
}

#[derive(Clone, Debug)]
pub(super) enum Trouble {
    Refused(Box<Refusal>),
    Unavailable(Cause),
    TokensRejected,
}

/// What is left of a request when its report comes.
struct Landed {
    key: KeyId,
    sent: Now,
    secret: ClientSecret,
    tenure: Option<Tenure>,
}

impl Slot {
    /// Rejected tokens that are remembered. A server that hands out more of them again than this is asked no more often.
    const REJECTED_KEPT: usize = 8;

    pub(super) fn new(key: Key, bucket: Bucket) -> Self {
        Self {
            key,
            held: None,
            flight: Flight::Idle,
            waiters: BTreeSet::new(),
            warmers: 0,
            warm_at: None,
            source: None,
            deferred: None,
            refreshed: false,
            bucket,
            patience: Patience::new(),
            failures: 0,
            refusals: 0,
            refusal: None,
            other_refused: false,
            fresh_rejections: 0,
            rejected: VecDeque::new(),
            rejected_order: None,
            followed_until: None,
        }
    }

    pub(super) fn valid(&self, now: Now) -> Option<&Held> {
        self.held.as_ref().filter(|held| !held.hard.reached(now))
    }

    /// A refused configuration stands, be it one that another process was refused with.
    pub(super) fn is_refused(&self) -> bool {
        let trouble = match &self.flight {
            Flight::BackingOff { trouble, .. } => trouble,
            _ => return false,
        };
        matches!(trouble, Trouble::Refused(_) | Trouble::Unavailable(Cause::RefusedElsewhere))
    }

    /// A token came: whatever stood in the way is over.
    fn is_served(&mut self) {
        self.followed_until = None;
        self.failures = 0;
        self.refusals = 0;
        self.refusal = None;
        self.other_refused = false;
    }

    /// The secret of the request that is under way; the key's own where none is.
    pub(super) fn sent_secret(&self) -> &ClientSecret {
        match &self.flight {
            Flight::Requesting { secret, .. } => secret,
            _ => self.key.credentials.secret(),
        }
    }

    /// What is served in place of an error: the expired token, where the policy lets it be, and for those that wait one that a wall
    /// clock which was set back has made valid again.
    pub(super) fn fallback(&self, policy: &Policy, now: Now) -> Option<&Token> {
        let grace = policy.serve_stale_on_error.min(Policy::STALE_CAP);
        let stale = |held: &&Held| !grace.is_zero() && !held.end.after(grace).reached(now);
        self.valid(now).or_else(|| self.held.as_ref().filter(stale)).map(|held| &held.token)
    }

    /// So that a server that hands the same token out again is not believed, be it one that was never held.
    fn remember_rejected(&mut self, token: TokenId) {
        if self.rejected.contains(&token) {
            return;
        }
        if self.rejected.len() == Self::REJECTED_KEPT {
            self.rejected.pop_front();
        }
        self.rejected.push_back(token);
    }

    pub(super) fn has_rejected(&self, token: TokenId) -> bool {
        self.rejected.contains(&token)
    }

    pub(super) fn is_wanted(&self, now: Now) -> bool {
        !self.waiters.is_empty() || self.warmers > 0 || self.valid(now).is_some()
    }

    fn reason(&self, now: Now) -> Reason {
        match &self.held {
            Some(_) if self.valid(now).is_some() => Reason::Refresh,
            Some(_) => Reason::Expired,
            None if self.rejected.is_empty() => Reason::First,
            None => Reason::Rejected,
        }
    }
}

// Towards a request
impl Machine {
    /// When this token's refresh is due: early in its life, or late for a while after a refresh was throttled (R30). Whoever was
    /// held by a limiter keeps the place that it was given: it counts from the answer, and never is late, since it may be held
    /// again.
    pub(super) fn refresh_at(&self, held: &Held, now: Now) -> Moment {
        if let Some(place) = held.place {
            return place.min(held.hard);
        }
        let (early, late) = (millis(held.early) as f64, millis(share(held.lifetime, self.policy.refresh_late)) as f64);
        let age = early + (late - early) * self.gate.lateness(held.lifetime, now);
        held.end.before(held.lifetime.saturating_sub(Duration::from_millis(age as u64))).min(held.hard)
    }

    /// The early age of a new token. Steady, but where a request failed or a refresh was throttled: those that met in an outage
    /// would meet again (R30). So would those that started together, and an outage that all of them meet takes more of the bucket
    /// than there is: the first refresh parts them, unless they `share` it.
    fn early(&mut self, key: KeyId, lifetime: Duration, shared: bool, sent: Now) -> Duration {
        let early = share(lifetime, self.policy.refresh_early);
        let slot = &self.slots[&key];
        let started = !slot.refreshed && !shared && slot.valid(sent).is_some_and(|held| held.place.is_none());
        let collided = started || slot.failures > 0 || (self.gate.is_throttled() && slot.held.is_some());
        match collided && self.gate.lateness(lifetime, sent) == 0.0 {
            true => early * backoff::spread(&mut self.rng) / 1_000,
            false => early,
        }
    }

    pub(super) fn refresh_due(&self, held: &Held, now: Now) -> bool {
        self.refresh_at(held, now).reached(now)
    }

    /// A caller, or keeping warm, wants a request for this key: from `Idle`, or from a `BackingOff` that is over.
    pub(super) fn want(&mut self, key: KeyId, now: Now) {
        let slot = self.slot_mut(key);
        match &slot.flight {
            Flight::Idle => {}
            Flight::BackingOff { until, .. } if until.reached(now) => {}
            _ => return,
        }
        if self.phase == Phase::ShutDown {
            self.slot_mut(key).flight = Flight::Idle;
        } else if self.may_share(now) {
            self.read(key, now);
        } else {
            self.line_up(key, Path::Lease, now.mono, now);
            if matches!(self.slots[&key].flight, Flight::Queued { reason: Reason::Refresh, .. }) {
                self.announce_deferral(key, now);
            }
        }
    }

    /// A request is to be had by way of the queue, and not before a time.
    pub(super) fn line_up(&mut self, key: KeyId, path: Path, not_before: Mono, now: Now) {
        let slot = self.slot_mut(key);
        let reason = slot.reason(now);
        let need = match &slot.held {
            Some(held) => now.mono + held.hard.left(now),
            None => now.mono,
        };
        let spaced_until = slot.bucket.next().max(not_before);
        let place = Place { need, key };
        slot.flight = Flight::Queued { place, spaced_until, reason, path };
        if spaced_until > now.mono {
            self.timers.set(spaced_until, Timer::Spaced(key));
        } else {
            self.queue.insert(place);
        }
        self.dispatch(Some(key), now);
        self.settle(key, now);
    }

    pub(super) fn announce_deferral(&mut self, key: KeyId, now: Now) {
        if let Flight::Queued { reason, .. } = self.slots[&key].flight {
            let until = told(self.slot_time(key, now), now);
            // Each call that cannot wait for it asks again, and is told itself.
            let news = |known: Unix| until.since(known).max(known.since(until)) > Duration::from_secs(1);
            let slot = self.slot_mut(key);
            if slot.deferred.is_none_or(news) {
                slot.deferred = Some(until);
                self.outputs.event(Event::Deferred { key, reason, until });
            }
        }
    }

    /// Lets as many queued requests go as gate and budget allow. `asked` is the key that is wanted at this moment, by a caller
    /// that may be no waiter yet.
    fn dispatch(&mut self, asked: Option<KeyId>, now: Now) {
        while self.gate.closed_until(now).is_none() && self.bucket.next() <= now.mono {
            let Some(place) = self.queue.iter().find(|place| !self.is_held(place.key, now)).copied() else { return };
            self.queue.remove(&place);
            let key = place.key;
            let slot = &self.slots[&key];
            let path = match slot.flight {
                Flight::Queued { path, .. } => path,
                _ => unreachable!("only queued keys have a place in the queue"),
            };
            if asked == Some(key) || slot.is_wanted(now) {
                match path {
                    Path::Lease if self.may_share(now) => self.lease(key, now),
                    _ => self.send(key, None, now),
                }
            } else {
                // Its token expired in the queue, and nobody has asked for it since.
                self.slot_mut(key).flight = Flight::Idle;
                self.settle(key, now);
            }
        }
    }

    pub(super) fn send(&mut self, key: KeyId, tenure: Option<Tenure>, now: Now) {
        let op = self.next_op();
        let leased = tenure.is_some();
        self.bucket.take(now.mono);
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        slot.bucket.take(now.mono);
        slot.deferred = None;
        self.outage.sent(key, &mut self.rng, now);
        let reason = slot.reason(now);
        let patience = slot.patience.span();
        let patience_ends = now.mono + patience;
        let secret = slot.key.credentials.secret().clone();
        slot.flight = Flight::Requesting { op, sent: now, patience_ends, secret, tenure };
        let request = token_request(slot.key.token_url(), slot.key.credentials(), slot.key.scope());
        self.ops.insert(op, key);
        self.timers.set(patience_ends, Timer::Flight(key));
        self.counters.requests += 1;
        self.look_for_credentials(key, now);
        self.outputs.event(Event::Requested { key, op, reason });
        self.outputs.push(Output::Perform(Action::Send(TokenRequest { op, key, reason, request, patience, leased })));
        self.settle(key, now);
    }

    /// When the first of the queue goes, if nothing else happens; a point in the past when it may go at once.
    pub(super) fn next_sending(&self) -> Option<Mono> {
        let held = |place: &Place| self.outage.holds(place.key).map_or(Mono::default(), |(until, _)| until.mono);
        let first = self.queue.iter().map(held).min()?;
        Some(first.max(self.gate.opens()).max(self.bucket.next()))
    }

    /// Whether another key's retry holds this one back (R35).
    fn is_held(&self, key: KeyId, now: Now) -> bool {
        self.outage.holds(key).is_some_and(|(until, _)| !until.reached(now))
    }

    /// When a request of this key may go, as far as is known.
    pub(super) fn slot_time(&self, key: KeyId, now: Now) -> Mono {
        let slot = &self.slots[&key];
        let ahead = match slot.flight {
            Flight::Queued { place, .. } => {
                let before = self.queue.range(..place).filter(|place| !self.is_held(place.key, now));
                before.take(PLACES_COUNTED).count()
            }
            _ => 0,
        };
        self.bucket.next_after(ahead as u64, self.opens(now)).max(slot.bucket.next()).max(self.released(key, now))
    }

    /// When the gate opens; now when it is open.
    fn opens(&self, now: Now) -> Mono {
        self.gate.closed_until(now).map_or(now.mono, |until| now.mono + until.left(now))
    }

    /// When no other key's retry holds this one back; now when none does.
    fn released(&self, key: KeyId, now: Now) -> Mono {
        self.outage.holds(key).map_or(now.mono, |(until, _)| now.mono + until.left(now))
    }

    /// Whether a caller without a token may wait for one, or what it fails with at once (R25, R27, R36).
    pub(super) fn outlook(&self, key: KeyId, deadline: Mono, now: Now) -> Result<(), AcquireError> {
        match &self.slots[&key].flight {
            Flight::Reading { .. } | Flight::Leasing { .. } | Flight::Following { .. } | Flight::Requesting { .. } => {
                Ok(())
            }
            Flight::Queued { .. } if deadline > self.slot_time(key, now) => Ok(()),
            Flight::Queued { .. } => Err(self.queued(key, now)),
            Flight::BackingOff { trouble, .. } => Err(self.trouble(key, trouble, now)),
            Flight::Idle => Err(AcquireError::Closed),
        }
    }

    /// What a caller without a token would be told now, where something stands in the way.
    pub(super) fn standing_error(&self, key: KeyId, now: Now) -> Option<AcquireError> {
        match &self.slots[&key].flight {
            Flight::Idle
            | Flight::Reading { .. }
            | Flight::Leasing { .. }
            | Flight::Following { .. }
            | Flight::Requesting { .. } => None,
            Flight::Queued { .. } => Some(self.queued(key, now)),
            Flight::BackingOff { until, .. } if until.reached(now) => None,
            Flight::BackingOff { trouble, .. } => Some(self.trouble(key, trouble, now)),
        }
    }

    /// Why a key in the queue has to wait: for its slot, or in an outage for its turn.
    fn queued(&self, key: KeyId, now: Now) -> AcquireError {
        let retry_at = told(self.slot_time(key, now), now);
        match self.outage.holds(key) {
            Some((until, cause)) if !until.reached(now) => AcquireError::Unavailable { cause: cause.clone(), retry_at },
            _ => AcquireError::RateLimited { retry_at, before: self.slots[&key].refusal.clone() },
        }
    }

    fn trouble(&self, key: KeyId, trouble: &Trouble, now: Now) -> AcquireError {
        let retry_at = self.retry_at(key, now);
        match trouble.clone() {
            Trouble::Refused(refusal) => AcquireError::Configuration { refusal, retry_at },
            Trouble::Unavailable(cause) => AcquireError::Unavailable { cause, retry_at },
            Trouble::TokensRejected => AcquireError::TokensRejected { retry_at },
        }
    }

    /// When this key's endpoint may be asked again: its back-off, its spacing, the gate and the budget.
    fn retry_at(&self, key: KeyId, now: Now) -> Unix {
        let back_off = match &self.slots[&key].flight {
            Flight::BackingOff { until, .. } => now.mono + until.left(now),
            _ => now.mono,
        };
        told(self.slot_time(key, now).max(back_off), now)
    }

    /// When somebody must ask the machine again about this key, whose token is valid.
    pub(super) fn look(&self, key: KeyId, held: &Held, now: Now) -> Moment {
        match &self.slots[&key].flight {
            Flight::Idle if self.phase == Phase::ShutDown => held.hard,
            Flight::Idle => self.refresh_at(held, now),
            Flight::Queued { spaced_until, .. } => {
                let turn = self.opens(now).max(self.bucket.next()).max(*spaced_until).max(self.released(key, now));
                now.after(turn.since(now.mono))
            }
            Flight::Reading { patience_ends, .. } | Flight::Leasing { patience_ends, .. } => {
                now.after(patience_ends.since(now.mono))
            }
            Flight::Following { look_at } => now.after(look_at.since(now.mono)),
            Flight::Requesting { patience_ends, tenure, .. } => {
                let renew_at = tenure.as_ref().map_or(*patience_ends, |tenure| tenure.renew_at);
                now.after(renew_at.min(*patience_ends).since(now.mono))
            }
            Flight::BackingOff { until, .. } => until.max(self.refresh_at(held, now)),
        }
    }
}

// What came of a request
impl Machine {
    /// Takes a flight out of `Requesting`, or reports that it is over already.
    fn land(&mut self, op: OpId) -> Option<Landed> {
        let Some(key) = self.ops.remove(&op) else {
            self.outputs.event(Event::LateReport { op });
            return None;
        };
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        match core::mem::replace(&mut slot.flight, Flight::Idle) {
            Flight::Requesting { sent, patience_ends, secret, tenure, .. } => {
                self.timers.clear(patience_ends, Timer::Flight(key));
                if let Some(tenure) = &tenure {
                    self.timers.clear(tenure.renew_at, Timer::Renew(key));
                }
                Some(Landed { key, sent, secret, tenure })
            }
            other => {
                // The answer of an endpoint to a store's operation: a driver's mistake.
                slot.flight = other;
                self.ops.insert(op, key);
                self.outputs.event(Event::LateReport { op });
                None
            }
        }
    }

    pub(super) fn answered(&mut self, op: OpId, response: &Response<ResponseBody>, now: Now) {
        let Some(mut landed) = self.land(op) else { return };
        let key = landed.key;
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        let secrets = secrets(slot, &landed.secret);
        let secrets: Vec<&[u8]> = secrets.iter().map(|secret| &secret[..]).collect();
        let answer = read_response(response, &secrets, Duration::from_millis(now.unix.as_millis()));
        for diagnostic in answer.diagnostics {
            self.outputs.event(Event::Noticed { key, diagnostic });
        }
        let throttled = matches!(&answer.outcome, Outcome::Refused(refusal) if refusal.class == Class::Throttled);
        let took = now.mono.since(landed.sent.mono);
        let slot = self.slot_mut(key);
        match throttled {
            true => slot.patience.throttled(),
            false => slot.patience.answered(took),
        }
        if let (true, Some(lifetime)) = (throttled, slot.valid(now).map(|held| held.lifetime)) {
            self.gate.crowd(lifetime, now);
        }
        self.mind_the_gate(key, throttled, answer.retry_after, landed.sent, now);
        if matches!(&answer.outcome, Outcome::Refused(refusal) if refusal.class == Class::Configuration) {
            self.end_outage();
        }
        let tenure = landed.tenure.take();
        match answer.outcome {
            Outcome::Granted(grant) => self.granted(landed, grant, tenure, now),
            Outcome::Refused(refusal) => match refusal.class {
                Class::Throttled => self.requeue(key, tenure, now),
                _ if !self.slots[&key].key.credentials.secrets().any(|secret| secret.is(&landed.secret)) => {
                    // R43: what the old secret is told says nothing about the new one.
                    self.outputs.event(Event::LateReport { op });
                    match refusal.class {
                        Class::Configuration => self.counters.refused += 1,
                        _ => self.counters.unusable += 1,
                    }
                    self.requeue(key, tenure, now);
                }
                Class::Configuration if refusal.invalid_client => {
                    match self.try_other_secret(key, &landed.secret, now) {
                        true => {
                            self.let_rest(key, tenure, backoff::after_refusal(1), now);
                            self.requeue(key, None, now);
                        }
                        false => self.refused(key, refusal, tenure, now),
                    }
                }
                Class::Configuration => self.refused(key, refusal, tenure, now),
                Class::Transient => {
                    self.counters.unusable += 1;
                    self.back_off(key, Cause::Refused(Box::new(refusal)), tenure, now);
                }
            },
        }
        if answer.retry_after.is_some() {
            self.shed(now);
        }
    }

    /// A throttle, or any Retry-After, closes the gate of the whole group (R34, R35).
    fn mind_the_gate(&mut self, key: KeyId, throttled: bool, retry_after: Option<Duration>, sent: Now, now: Now) {
        let retry_after = retry_after.filter(|wait| !wait.is_zero());
        let throttles = throttled.then(|| {
            self.counters.throttled += 1;
            self.bucket.drain(sent.mono);
            self.gate.feel(sent, now)
        });
        let wait = match (retry_after, throttles) {
            (Some(wait), _) => backoff::after_retry_after(&mut self.rng, wait),
            (None, Some(in_a_row)) => {
                let throttle = Throttle {
                    in_a_row,
                    starved: self.gate.starved_for(now),
                    slot: self.policy.budget.interval(),
                    refresh: self.slots[&key].held.is_some(),
                    fleet: self.sharing.is_some(),
                };
                throttle.wait(&mut self.rng)
            }
            (None, None) => return,
        };
        let until = self.close_gate(wait, retry_after, now);
        self.tell_gate(key, until, now);
    }

    /// Closes the gate for at least `wait`; returns until when it is closed.
    pub(super) fn close_gate(&mut self, wait: Duration, retry_after: Option<Duration>, now: Now) -> Unix {
        self.counters.gated += self.gate.close(wait, now);
        let until = self.gate.closed_until(now).map_or(now.unix, |until| until.told(now));
        self.outputs.event(Event::GateClosed { until, retry_after });
        until
    }

    /// Throttled or aborted: who can wait for the next slot does. A refresh that has become late leaves it to the others.
    fn requeue(&mut self, key: KeyId, tenure: Option<Tenure>, now: Now) {
        self.let_go(key, tenure, now);
        let slot = &self.slots[&key];
        if slot.is_wanted(now) && slot.valid(now).is_none_or(|held| self.refresh_due(held, now)) {
            self.want(key, now);
        }
        if matches!(self.slots[&key].flight, Flight::Idle) {
            self.fail_waiters(key, &AcquireError::Closed, now);
        }
        self.settle(key, now);
        self.shed(now);
    }

    fn granted(&mut self, landed: Landed, grant: Grant, tenure: Option<Tenure>, now: Now) {
        let Landed { key, sent, secret, .. } = landed;
        if self.slots[&key].held.is_none() && now.mono.since(sent.mono) < Patience::HELD {
            // Those of a burst, and those that are served after them at the limiter's pace, fit into an early period. A queue that is
            // half as long has as many others in it, as likely as not, that wait longer.
            let early = share(grant.lifetime, self.policy.refresh_early);
            self.gate.served_first(early.saturating_sub(self.policy.budget.refill()) / 2, grant.lifetime, now);
        }
        let early = self.early(key, grant.lifetime, tenure.is_some(), sent);
        self.gate.succeeded();
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        let other_scope = grant.scope.clone().filter(|granted| differs(granted, slot.key.scope().as_str()));
        let hard = match grant.lifetime {
            Duration::ZERO => now.into(),
            lifetime => sent.after(lifetime - skew(lifetime)),
        };
        let token = Token::new(key, &grant.access_token, hard.unix, grant.scope.clone());
        let unusable = if slot.has_rejected(token.id()) {
            Some(Cause::AlreadyRejected)
        } else if grant.lifetime.is_zero() {
            // R15: it serves the callers that already wait, and displaces nothing.
            let unasked = slot.valid(now).is_some() || slot.warmers > 0;
            self.resolve_waiters(key, &Ok(token.clone()));
            unasked.then_some(Cause::NoLifetime)
        } else {
            hard.reached(now).then_some(Cause::ExpiredOnArrival)
        };
        if let Some(cause) = unusable {
            self.counters.unusable += 1;
            let wall_clock_stepped = cause == Cause::ExpiredOnArrival && hard.mono > now.mono;
            return match wall_clock_stepped && self.may_repeat(key) {
                true => self.requeue(key, tenure, now),
                false => self.back_off(key, cause, tenure, now),
            };
        }
        self.counters.granted += 1;
        self.end_outage();
        let mut refresh_at = now.into();
        if grant.lifetime.is_zero() {
            self.slot_mut(key).is_served();
            self.let_go(key, tenure, now);
        } else {
            let order = self.order(sent);
            let slot = self.slot_mut(key);
            slot.refreshed |= slot.valid(sent).is_some();
            // Whoever was held by a limiter keeps the place that it was given.
            let place = (now.mono.since(sent.mono) >= Patience::HELD).then(|| now.after(early.min(hard.left(now))));
            let held = Held {
                token: token.clone(),
                lifetime: grant.lifetime,
                end: sent.after(grant.lifetime),
                early: early.min(hard.left(sent)),
                place,
                hard,
                fresh_until: now.after(FRESH),
                order,
                shared: tenure.is_some(),
            };
            refresh_at = self.hold(key, held, now);
            if let Some(order) = order {
                self.publish(key, &secret, tenure, order, &grant, now);
            }
        }
        let (expires_at, refresh_at) = (token.expires_at(), refresh_at.told(now));
        self.outputs.event(Event::Granted { key, token: token.id(), expires_at, refresh_at, other_scope });
        self.resolve_waiters(key, &Ok(token));
        self.settle(key, now);
    }

    /// Another token takes the place of the held one; returns when its refresh is due.
    pub(super) fn hold(&mut self, key: KeyId, held: Held, now: Now) -> Moment {
        let refresh_at = self.refresh_at(&held, now);
        let slot = self.slot_mut(key);
        slot.is_served();
        if slot.held.replace(held).is_some() {
            // The one before was used until its refresh: rejections of fresh tokens are over.
            slot.fresh_rejections = 0;
        }
        refresh_at
    }

    /// A secret was refused: where there is another one, it goes first from now on. Returns whether it is to be tried at once, since
    /// it was not refused itself; then this refusal is over.
    fn try_other_secret(&mut self, key: KeyId, refused: &ClientSecret, now: Now) -> bool {
        let slot = self.slot_mut(key);
        if slot.key.credentials.next_secret().is_none() {
            return false;
        }
        if slot.key.credentials.secret().is(refused) {
            self.swap_secrets(key, now);
        }
        let untried = self.take_other_try(key);
        self.counters.refused += u64::from(untried);
        untried
    }

    /// Whether the other secret was not refused yet: once, since from here on both were.
    pub(super) fn take_other_try(&mut self, key: KeyId) -> bool {
        !core::mem::replace(&mut self.slot_mut(key).other_refused, true)
    }

    /// The other one of two secrets goes first from now on.
    pub(super) fn swap_secrets(&mut self, key: KeyId, now: Now) {
        self.slot_mut(key).key.credentials.swap();
        self.outputs.event(Event::SecretSwapped { key });
        self.settle(key, now);
    }

    fn refused(&mut self, key: KeyId, refusal: Refusal, tenure: Option<Tenure>, now: Now) {
        self.counters.refused += 1;
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        slot.refusals = slot.refusals.saturating_add(1);
        slot.refusal = Some(Box::new(refusal.clone()));
        let until = now.after(backoff::after_refusal(slot.refusals));
        slot.flight = Flight::BackingOff { until, trouble: Trouble::Refused(Box::new(refusal.clone())) };
        let retry_at = self.retry_at(key, now);
        self.let_go(key, tenure, now);
        self.outputs.event(Event::Refused { key, refusal, retry_at });
        self.fail_with_trouble(key, now);
    }

    pub(super) fn failed(&mut self, op: OpId, mut failure: Failure, now: Now) {
        let Some(Landed { key, secret, tenure, .. }) = self.land(op) else { return };
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        let secrets = secrets(slot, &secret);
        let secrets: Vec<&[u8]> = secrets.iter().map(|secret| &secret[..]).collect();
        failure.detail = clear_text(&failure.detail, &secrets);
        match failure.kind {
            FailureKind::Connect => self.counters.unconnected += 1,
            FailureKind::Io => self.counters.broken += 1,
            FailureKind::Timeout => {
                self.counters.timed_out += 1;
                slot.patience.silent();
            }
            FailureKind::Aborted => {
                self.counters.aborted += 1;
                if self.may_repeat(key) {
                    return self.requeue(key, tenure, now);
                }
            }
        }
        self.back_off(key, Cause::Failed(failure), tenure, now);
    }

    /// Whether a request that this side spoilt is repeated at once, for who waits; it counts as a failure.
    fn may_repeat(&mut self, key: KeyId) -> bool {
        let slot = self.slot_mut(key);
        let repeat = slot.failures < ABORTS_REPEATED && !slot.waiters.is_empty();
        slot.failures += u32::from(repeat);
        repeat
    }

    /// The endpoint works again, so nobody's retry has to wait for another one's.
    pub(super) fn end_outage(&mut self) {
        self.outage.ended();
        self.changed.extend(self.queue.iter().map(|place| place.key));
    }

    /// A failure that is neither a throttle nor a refused configuration.
    fn back_off(&mut self, key: KeyId, cause: Cause, tenure: Option<Tenure>, now: Now) {
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        slot.failures = slot.failures.saturating_add(1);
        self.gate.fail(now);
        let wait = match slot.valid(now).map(|held| held.hard.left(now)) {
            Some(left) => backoff::after_failed_refresh(&mut self.rng, slot.failures, left),
            None => backoff::after_failure(&mut self.rng, slot.failures),
        };
        let until = now.after(wait);
        slot.flight = Flight::BackingOff { until, trouble: Trouble::Unavailable(cause.clone()) };
        // One failure may be the key's own bad luck: its first retry is as free as a first request.
        if slot.failures > 1 {
            self.outage.failed(key, cause.clone(), now);
        }
        let retry_at = self.retry_at(key, now);
        self.let_go(key, tenure, now);
        self.outputs.event(Event::Failed { key, cause, retry_at });
        self.fail_with_trouble(key, now);
    }

    pub(super) fn reject(&mut self, token: TokenId, now: Now) -> Invalidated {
        let key = token.key();
        let current = |held: &mut Held| held.token.id() == token;
        let Some(held) = self.slots.get_mut(&key).and_then(|slot| slot.held.take_if(current)) else {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.remember_rejected(token);
            }
            self.outputs.event(Event::RejectionIgnored { token });
            return Invalidated::NotCurrent;
        };
        self.counters.rejected += 1;
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        slot.remember_rejected(token);
        slot.rejected_order = slot.rejected_order.max(held.order);
        let fresh = !held.fresh_until.reached(now);
        slot.fresh_rejections = if fresh { slot.fresh_rejections.saturating_add(1) } else { 0 };
        let may_stop = matches!(slot.flight, Flight::Idle | Flight::Queued { .. } | Flight::BackingOff { .. });
        let hold_off = slot.fresh_rejections >= FRESH_REJECTIONS && may_stop;
        let held_off_until = hold_off.then(|| {
            self.leave_queue(key);
            let until = now.after(FRESH);
            self.slot_mut(key).flight = Flight::BackingOff { until, trouble: Trouble::TokensRejected };
            until.told(now)
        });
        self.outputs.event(Event::TokenRejected { token, held_off_until });
        if hold_off {
            self.fail_with_trouble(key, now);
            return Invalidated::HeldOff;
        }
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        if let Flight::BackingOff { until, trouble: Trouble::Unavailable(_) } = &mut slot.flight {
            // It took its time while there was a token (R28).
            *until = until.min(now.after(backoff::LONGEST));
        }
        // A refresh in the queue has become an earlier need, if it still is one.
        self.leave_queue(key);
        if self.slots[&key].is_wanted(now) {
            self.want(key, now);
        }
        self.settle(key, now);
        Invalidated::Dropped
    }

    pub(super) fn replace_credentials(&mut self, key: KeyId, credentials: Credentials, now: Now) {
        let slot = self.slots.get_mut(&key).expect(KNOWN);
        if slot.key.credentials.are(&credentials) {
            // A file that is read again and again says nothing new: a refusal of it stands (R37), and so does which one of two worked.
            return;
        }
        slot.key.credentials = credentials;
        slot.refusals = 0;
        slot.refusal = None;
        slot.other_refused = false;
        if slot.is_refused() {
            slot.flight = Flight::Idle;
        }
        self.outputs.event(Event::CredentialsReplaced { key });
        self.settle(key, now);
    }
}

// Time, waiters and the end
impl Machine {
    /// Everything that the passing of time decides.
    pub(super) fn elapse(&mut self, now: Now) {
        self.gate.read_clocks(now);
        let mut overdue = Vec::new();
        // Those that are due now, and none that one of them sets: so this ends, whatever they do. One may have been overtaken by
        // another, so each looks whether it still holds.
        for timer in self.timers.take_due(now.mono) {
            match timer {
                Timer::Flight(key) => self.patience_ended(key, now),
                Timer::Errand(op) => self.store_overdue(op, now),
                Timer::Renew(key) => self.renew(key, now),
                Timer::Follow(key) => self.look_after(key, now),
                Timer::Spaced(key) => match self.slots[&key].flight {
                    Flight::Queued { place, spaced_until, .. } if spaced_until <= now.mono => {
                        self.queue.insert(place);
                    }
                    _ => {}
                },
                Timer::Warm(key) => {
                    // A look for other credentials may have set it anew.
                    if let Some(at) = self.slot_mut(key).warm_at.take() {
                        self.timers.clear(at, Timer::Warm(key));
                    }
                    if self.slots[&key].valid(now).is_none_or(|held| self.refresh_due(held, now)) {
                        self.want(key, now);
                    }
                    // A wall clock that was set back since has put a back-off's end off again.
                    self.settle(key, now);
                }
                Timer::Look(key) => {
                    self.look_for_correction(key, now);
                    self.settle(key, now);
                }
                Timer::Waiter(waiter) => overdue.push(waiter),
            }
        }
        // Before anything is sent, or it might be sent for them alone.
        for waiter in overdue {
            let Some(Waiter { key, .. }) = self.waiters.get(waiter) else { continue };
            let error = match self.slots[&key].flight {
                Flight::Queued { .. } => self.queued(key, now),
                Flight::Following { .. } | Flight::Reading { .. } | Flight::Leasing { .. } => {
                    AcquireError::HeldElsewhere
                }
                _ => AcquireError::DeadlineExceeded,
            };
            self.fail_waiter(waiter, error, now);
            self.leave_queue_if_unneeded(key, now);
        }
        self.dispatch(None, now);
    }

    fn patience_ended(&mut self, key: KeyId, now: Now) {
        match self.slots[&key].flight {
            Flight::Requesting { op, patience_ends, .. } if patience_ends <= now.mono => {
                self.outputs.withdraw(op);
                let waited = format!("{} s", self.slots[&key].patience.span().as_secs());
                self.failed(op, Failure::new(FailureKind::Timeout, waited), now);
            }
            Flight::Reading { op, patience_ends, .. } | Flight::Leasing { op, patience_ends, .. }
                if patience_ends <= now.mono =>
            {
                self.store_overdue(op, now);
            }
            _ => {}
        }
    }

    /// After a suspend that the monotonic clock did not count, a request is dead although its patience goes on: only the wall
    /// clock tells, and a caller asks anew (R21). Where that clock was merely set, this costs one request (R22).
    pub(super) fn bury_suspended(&mut self, key: KeyId, now: Now) {
        let Some(Slot { flight: Flight::Requesting { op, sent, .. }, patience, .. }) = self.slots.get(&key) else {
            return;
        };
        let op = *op;
        if now.unix.since(sent.unix) < patience.span() {
            return;
        }
        self.outputs.withdraw(op);
        if let Some(Landed { tenure, .. }) = self.land(op) {
            self.counters.aborted += 1;
            let cause = Cause::Failed(Failure::new(FailureKind::Aborted, "this machine was suspended"));
            self.outputs.event(Event::Failed { key, cause, retry_at: now.unix });
            self.requeue(key, tenure, now);
        }
    }

    /// The gate has moved: whoever cannot wait for its key's next slot fails now, and is told when to come back (R36).
    pub(super) fn shed(&mut self, now: Now) {
        // In the queue's order, since each key that leaves it brings the ones behind it forward.
        let queued: BTreeSet<_> = (self.slots.values())
            .filter_map(|slot| match slot.flight {
                Flight::Queued { place, .. } => Some(place),
                _ => None,
            })
            .collect();
        for Place { key, .. } in queued {
            let next = self.slot_time(key, now);
            let hopeless: Vec<_> = (self.slots[&key].waiters.iter().copied())
                .filter(|waiter| self.waiters.get(*waiter).is_some_and(|waiter| waiter.deadline <= next))
                .collect();
            for waiter in hopeless {
                self.fail_waiter(waiter, self.queued(key, now), now);
            }
            self.leave_queue_if_unneeded(key, now);
        }
    }

    pub(super) fn fail_with_trouble(&mut self, key: KeyId, now: Now) {
        if let Flight::BackingOff { trouble, .. } = &self.slots[&key].flight {
            let error = self.trouble(key, trouble, now);
            self.fail_waiters(key, &error, now);
        }
        self.settle(key, now);
    }

    pub(super) fn fail_waiters(&mut self, key: KeyId, error: &AcquireError, now: Now) {
        let fallback = self.slots[&key].fallback(&self.policy, now).cloned();
        self.resolve_waiters(key, &fallback.ok_or_else(|| error.clone()));
    }

    fn fail_waiter(&mut self, waiter: WaiterId, error: AcquireError, now: Now) {
        if let Some(key) = self.drop_waiter(waiter) {
            let fallback = self.slots[&key].fallback(&self.policy, now).cloned();
            self.outputs.push(Output::Resolve(waiter, fallback.ok_or(error)));
        }
    }

    pub(super) fn resolve_waiters(&mut self, key: KeyId, result: &Result<Token, AcquireError>) {
        for waiter in core::mem::take(&mut self.slot_mut(key).waiters) {
            if let Some(Waiter { deadline, .. }) = self.waiters.remove(waiter) {
                self.timers.clear(deadline, Timer::Waiter(waiter));
                self.outputs.push(Output::Resolve(waiter, result.clone()));
            }
        }
    }

    pub(super) fn drop_waiter(&mut self, waiter: WaiterId) -> Option<KeyId> {
        let Waiter { key, deadline } = self.waiters.remove(waiter)?;
        self.timers.clear(deadline, Timer::Waiter(waiter));
        self.slot_mut(key).waiters.remove(&waiter);
        Some(key)
    }

    pub(super) fn leave_queue_if_unneeded(&mut self, key: KeyId, now: Now) {
        if !self.slots[&key].is_wanted(now) {
            self.leave_queue(key);
        }
    }

    fn leave_queue(&mut self, key: KeyId) {
        if let Flight::Queued { place, spaced_until, .. } = self.slots[&key].flight {
            self.queue.remove(&place);
            self.timers.clear(spaced_until, Timer::Spaced(key));
            self.slot_mut(key).flight = Flight::Idle;
            self.changed.insert(key);
        }
    }

    /// After every transition: the driver's copy is out of date, and a warm key has another next deadline.
    pub(super) fn settle(&mut self, key: KeyId, now: Now) {
        self.changed.insert(key);
        let slot = &self.slots[&key];
        let warm = slot.warmers > 0 && self.phase == Phase::Open;
        let warm_at = match (&slot.flight, slot.valid(now)) {
            _ if !warm => None,
            (Flight::Idle, None) => Some(now.mono),
            (Flight::Idle, Some(held)) => Some(now.mono + self.refresh_at(held, now).left(now)),
            (Flight::BackingOff { until, .. }, None) => Some(now.mono + until.left(now)),
            (Flight::BackingOff { until, .. }, Some(held)) => {
                // Refreshes may have become late since it began.
                Some(now.mono + until.max(self.refresh_at(held, now)).left(now))
            }
            _ => None,
        };
        let before = core::mem::replace(&mut self.slot_mut(key).warm_at, warm_at);
        if let Some(at) = before {
            self.timers.clear(at, Timer::Warm(key));
        }
        if let Some(at) = warm_at {
            self.timers.set(at, Timer::Warm(key));
        }
        self.settle_look(key, now);
    }

    pub(super) fn withdraw_all(&mut self, now: Now) {
        let keys: Vec<_> = self.slots.keys().copied().collect();
        for key in keys {
            match self.slots[&key].flight {
                Flight::Queued { .. } => self.leave_queue(key),
                Flight::Reading { op, patience_ends, .. } => {
                    self.ops.remove(&op);
                    self.outputs.withdraw(op);
                    self.timers.clear(patience_ends, Timer::Flight(key));
                    self.slot_mut(key).flight = Flight::Idle;
                }
                Flight::Following { look_at } => {
                    self.timers.clear(look_at, Timer::Follow(key));
                    self.slot_mut(key).flight = Flight::Idle;
                }
                // A lease that is asked for has to be given back.
                Flight::Leasing { .. } => {}
                Flight::Idle | Flight::Requesting { .. } | Flight::BackingOff { .. } => {
                    self.settle(key, now);
                    continue;
                }
            }
            self.fail_waiters(key, &AcquireError::Closed, now);
            self.settle(key, now);
        }
    }

    /// Nobody is left who would report or wait.
    pub(super) fn orphan_all(&mut self, now: Now) {
        self.ops.clear();
        self.queue.clear();
        self.waiters.clear();
        self.timers = Timers::default();
        self.looks.clear();
        for slot in self.slots.values_mut() {
            slot.waiters.clear();
            slot.warmers = 0;
            slot.warm_at = None;
            if !matches!(slot.flight, Flight::BackingOff { .. }) {
                slot.flight = Flight::Idle;
            }
        }
        let keys: Vec<_> = self.slots.keys().copied().collect();
        keys.into_iter().for_each(|key| self.settle(key, now));
    }

    pub(super) fn forget(&mut self, key: KeyId, now: Now) {
        if !self.slots.contains_key(&key) {
            return;
        }
        self.leave_queue(key);
        self.resolve_waiters(key, &Err(AcquireError::UnknownKey));
        match core::mem::replace(&mut self.slot_mut(key).flight, Flight::Idle) {
            Flight::Requesting { op, patience_ends, tenure, .. } => {
                self.ops.remove(&op);
                self.outputs.withdraw(op);
                self.timers.clear(patience_ends, Timer::Flight(key));
                if let Some(tenure) = &tenure {
                    self.timers.clear(tenure.renew_at, Timer::Renew(key));
                }
                self.let_go(key, tenure, now);
            }
            Flight::Reading { op, patience_ends, .. } => {
                self.ops.remove(&op);
                self.outputs.withdraw(op);
                self.timers.clear(patience_ends, Timer::Flight(key));
            }
            Flight::Leasing { op, patience_ends, vault } => {
                self.ops.remove(&op);
                self.outputs.withdraw(op);
                self.timers.clear(patience_ends, Timer::Flight(key));
                self.give_up_lease(key, &vault, now);
            }
            Flight::Following { look_at } => self.timers.clear(look_at, Timer::Follow(key)),
            Flight::Idle | Flight::Queued { .. } | Flight::BackingOff { .. } => {}
        }
        let slot = self.slots.remove(&key).expect(KNOWN);
        if let Some(at) = slot.warm_at {
            self.timers.clear(at, Timer::Warm(key));
        }
        if let Some(at) = slot.source.as_ref().and_then(Source::look_at) {
            self.timers.clear(at, Timer::Look(key));
        }
        if let Some(op) = self.looks.forget(key) {
            self.outputs.withdraw(op);
        }
        self.keys.remove(&slot.key.identity());
        self.outage.forget(key);
        if self.changed.len() > self.slots.len() + REMOVED_KEPT {
            // Nobody takes them.
            self.changed.retain(|key| self.slots.contains_key(key));
        }
        self.changed.insert(key);
    }

    pub(super) fn slot_mut(&mut self, key: KeyId) -> &mut Slot {
        self.slots.get_mut(&key).expect(KNOWN)
    }
}

const KNOWN: &str = "keys in flights, queue, timers and waiters are removed together with their slot";

/// What must not show in any text: the secret that was sent, those that the key has now, and the token that lives.
pub(super) fn secrets(slot: &Slot, sent: &ClientSecret) -> Vec<Zeroizing<Vec<u8>>> {
    let known = [sent].into_iter().chain(slot.key.credentials.secrets()).map(ClientSecret::expose);
    let held = slot.held.as_ref().map(|held| held.token.expose());
    known.chain(held).map(|text| Zeroizing::new(text.as_bytes().to_vec())).collect()
}

/// A share of a lifetime, in whole milliseconds.
fn share(lifetime: Duration, share: f64) -> Duration {
    Duration::from_millis((millis(lifetime) as f64 * share) as u64)
}

/// Whether two scopes hold other tokens, whatever their order.
fn differs(granted: &str, requested: Option<&str>) -> bool {
    let set = |scope: &str| scope.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    requested.is_none_or(|requested| set(granted) != set(requested))
}

fn told(at: Mono, now: Now) -> Unix {
    now.unix + at.since(now.mono)
}
