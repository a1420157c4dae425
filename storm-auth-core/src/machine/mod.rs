//! The machine: it decides when a token is requested, cached, refreshed or given up.
//!
//! One [`Machine`] serves one limiter group, because the limit is per address: the budget and the gate stand above its slots.
//! Inside it is one slot per [`Key`]. It has four kinds of method, and they stand in this order:
//!
//! 1. **Commands** from callers: [`add_key`](Machine::add_key), [`acquire`](Machine::acquire), [`cancel`](Machine::cancel),
//!    [`invalidate`](Machine::invalidate), [`set_credentials`](Machine::set_credentials),
//!    [`renew_credentials`](Machine::renew_credentials), [`keep_warm`](Machine::keep_warm), [`shut_down`](Machine::shut_down),
//!    [`start_anew`](Machine::start_anew).
//! 2. **Inputs** from the driver: [`handle_response`](Machine::handle_response),
//!    [`handle_failure`](Machine::handle_failure), [`handle_store`](Machine::handle_store),
//!    [`handle_credentials`](Machine::handle_credentials), [`handle_timeout`](Machine::handle_timeout). They never fail; a late or
//!    unknown id is ignored and reported as an event.
//! 3. **Outputs** to the driver: [`poll_output`](Machine::poll_output), to be drained after every call of the first two
//!    kinds, and [`poll_timeout`](Machine::poll_timeout). Draining late or in part loses nothing: while outputs are queued,
//!    `poll_timeout` says so.
//! 4. **Getters**: [`peek`](Machine::peek), [`status`](Machine::status), [`counters`](Machine::counters),
//!    [`is_idle`](Machine::is_idle).
//!
//! `now` is the last parameter of whatever depends on time.
//!
//! # States
//!
//! What a key is doing. A single call of the machine may take it through several states at once; these are the changes that can be seen
//! between two calls, and a test compares them with what long random walks do. Whether a token is held is independent of all of them.
//!
//! | from | to | when |
//! |---|---|---|
//! | Idle | Reading | a call, or keeping warm, finds no token or a due refresh, and there is a store that works |
//! | Idle | Queued | the same without a store, or with one that has just failed; and the gate, the budget or another key's retry holds it back |
//! | Idle | Requesting | the same, and nothing holds it back |
//! | Idle | BackingOff | the API rejected the second fresh token in a row; or the wall clock was set back behind the end of a back-off |
//! | Reading | Idle | another process's token was found; or nobody wants one any more |
//! | Reading | Queued | nobody has the lease, or the store failed, and a request has to wait |
//! | Reading | Leasing | nobody has the lease, and a request may go |
//! | Reading | Following | another process has the lease |
//! | Reading | Requesting | the store failed, or the lease comes to no end: alone, and at once |
//! | Reading | BackingOff | the lease rests, since another process asked in vain |
//! | Queued | Idle | nobody wants it any more |
//! | Queued | Reading | its token was rejected, or expired while it waited, and it is wanted anew |
//! | Queued | Leasing | its turn has come, where there is a store |
//! | Queued | Requesting | its turn has come, alone |
//! | Queued | BackingOff | the API rejected the second fresh token in a row while its refresh waited |
//! | Leasing | Idle | another process's token was found; or nobody wants one any more |
//! | Leasing | Queued | the lease was had too late, or the store failed, and a request has to wait |
//! | Leasing | Following | another process was faster |
//! | Leasing | Requesting | the lease is had; or the store failed, or the lease comes to no end: alone, and at once |
//! | Leasing | BackingOff | the lease rests, since another process asked in vain |
//! | Following | Idle | nobody wants it any more |
//! | Following | Reading | whoever has the lease is looked after |
//! | Following | Queued | the store failed meanwhile, and a request has to wait |
//! | Following | Requesting | the store failed meanwhile: alone, and at once |
//! | Requesting | Idle | a token came; or it was throttled or spoilt on this side, and nobody wants another |
//! | Requesting | Reading | throttled, or spoilt on this side, while wanted, and there is a store that works |
//! | Requesting | Queued | the same without a store |
//! | Requesting | BackingOff | refused, failed, or silent to the end |
//! | BackingOff | Idle | its time is over; or other credentials came after a refusal |
//!
//! Nobody wants anything of a machine that was [shut down](Machine::shut_down), but what is under way is finished. A forked child
//! [starts](Machine::start_anew) with all keys idle, but for those that back off. [`Activity`] shows Reading and Leasing as
//! [`AskingStore`](Activity::AskingStore); the diagrams stand in the [crate docs](crate#how-it-decides).

mod backoff;
mod budget;
mod flight;
mod gate;
mod outage;
mod output;
mod renewal;
mod sharing;
mod timer;
mod waiters;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::Policy;
use crate::credentials::{Credentials, CredentialsFailure, Scope};
use crate::environment::TokenUrl;
use crate::error::{AcquireError, ConfigError, Failure, Field};
use crate::store::{StoreFailure, StoreReply};
use crate::time::{Moment, Now};
use crate::token::{Token, TokenId};
use crate::wire::response::ResponseBody;

pub use budget::Budget;
pub use output::{
    Action, Activity, Counters, CredentialsRequest, Event, Facts, KeyStatus, OpId, Output, Reason, RecordFault,
    Severity, Status, StoreRequest, Timeout, TimeoutReason, TokenRequest,
};
pub use waiters::WaiterId;

use budget::Bucket;
use flight::{Flight, Slot};
use gate::Gate;
use outage::Outage;
use output::Outputs;
use renewal::Looks;
use sharing::Sharing;
use timer::{Timer, Timers};
use waiters::{Waiter, Waiters};

/// Whose token: one per token URL, client id and set of scopes. The application id is no part of it (R6).
///
/// ```
/// use storm_auth_core::{Credentials, HttpHosts, Key, Scope, TokenUrl, scope};
///
/// let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default())?;
/// let shop = Key::new(url, Credentials::new("shop", "S3cret")?, Scope::new(scope::LAB)?);
/// let other_client = shop.for_credentials(Credentials::new("erp", "0ther")?);
/// assert_eq!(other_client.credentials().client_id(), "erp");
/// # Ok::<(), storm_auth_core::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Key {
    token_url: TokenUrl,
    credentials: Credentials,
    scope: Scope,
}

impl Key {
    /// A key of checked parts.
    pub fn new(token_url: TokenUrl, credentials: Credentials, scope: Scope) -> Self {
        Self { token_url, credentials, scope }
    }

    /// The same endpoint and scope for another client.
    pub fn for_credentials(&self, credentials: Credentials) -> Self {
        Self { credentials, ..self.clone() }
    }

    /// The same endpoint and client for another scope.
    pub fn for_scope(&self, scope: Scope) -> Self {
        Self { scope, ..self.clone() }
    }

    /// The token endpoint.
    pub fn token_url(&self) -> &TokenUrl {
        &self.token_url
    }

    /// The client.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The scope.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    fn identity(&self) -> Identity {
        let mut scopes: Vec<_> = self.scope.tokens().map(str::to_owned).collect();
        scopes.sort_unstable();
        let scopes = self.scope.as_str().map(|_| scopes);
        Identity { token_url: self.token_url.canonical(), client_id: self.credentials.client_id().to_owned(), scopes }
    }
}

/// What makes two keys the same one. The secret is no part of it, so that it can be replaced in place.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Identity {
    token_url: String,
    client_id: String,
    scopes: Option<Vec<String>>,
}

/// Names a key within its machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyId(u64);

impl KeyId {
    /// The key of tokens that belong to no machine.
    pub(crate) const NONE: Self = Self(u64::MAX);

    /// Its number: keys are counted from 0 in the order they were added, and no number is used twice.
    pub fn index(self) -> u64 {
        self.0
    }
}

/// What [`Machine::acquire`] answers.
#[derive(Clone, Debug)]
#[must_use = "a token, a waiter that will be resolved, or an error"]
pub enum Acquire {
    /// A valid token.
    Ready(Token),
    /// The result will come as [`Output::Resolve`] for this waiter, at its deadline at the latest.
    Wait(WaiterId),
    /// No token can be had before the caller's deadline.
    Failed(AcquireError),
}

/// What became of a rejected token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidated {
    /// It was the current one and is never served again; the next `acquire` asks for another.
    Dropped,
    /// The same, but it was the second fresh token in a row: no other is asked for until 60 s from now (R40).
    HeldOff,
    /// It was not the current one, so nothing changed.
    NotCurrent,
}

/// A held token, and how long a driver may serve it without asking the machine.
#[derive(Clone, Debug)]
pub struct Peek {
    /// The token.
    pub token: Token,
    /// From here on it is never served (R20).
    pub hard: Moment,
    /// From here on somebody must call `acquire` again: a refresh is due, or the state may have changed.
    pub look: Moment,
}

/// The machine of one limiter group. The [module docs](self) say how to drive it.
///
/// A clone is another machine in the same state, as for a search through what may happen; two that go on with the same requests would
/// both be told of one answer.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    rng: fastrand::Rng,
    keys: BTreeMap<Identity, KeyId>,
    slots: BTreeMap<KeyId, Slot>,
    next_key: u64,
    ops: BTreeMap<OpId, KeyId>,
    next_op: u64,
    waiters: Waiters,
    timers: Timers,
    /// The keys that want a request and may have one as soon as gate and budget let it go, the earliest need first.
    queue: BTreeSet<flight::Place>,
    bucket: Bucket,
    gate: Gate,
    outage: Outage,
    /// The store, where there is one.
    sharing: Option<Sharing>,
    looks: Looks,
    phase: Phase,
    outputs: Outputs,
    changed: BTreeSet<KeyId>,
    counters: Counters,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    ShutDown,
}

impl Machine {
    /// An empty machine. `seed` feeds what is random in it: equal seeds and inputs give equal outputs (R63). Give every
    /// process another one, or processes that collide keep colliding.
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            bucket: policy.budget.group(),
            policy,
            keys: BTreeMap::new(),
            slots: BTreeMap::new(),
            next_key: 0,
            ops: BTreeMap::new(),
            next_op: 0,
            waiters: Waiters::default(),
            timers: Timers::default(),
            queue: BTreeSet::new(),
            gate: Gate::default(),
            outage: Outage::default(),
            sharing: None,
            looks: Looks::default(),
            phase: Phase::Open,
            outputs: Outputs::default(),
            changed: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    // Commands

    /// A store stands behind this machine: from now on it shares its tokens with the other processes that use the store, and gives
    /// out [`Action::Store`].
    pub fn share(&mut self) {
        self.sharing = Some(Sharing::new(&mut self.rng));
    }

    /// Adds a key, or finds it when its token URL, client id and set of scopes are known already; a secret that differs then
    /// replaces the known one, as [`set_credentials`](Self::set_credentials) does. Nothing is requested yet.
    pub fn add_key(&mut self, key: Key, now: Now) -> KeyId {
        let identity = key.identity();
        if let Some(&id) = self.keys.get(&identity) {
            self.replace_credentials(id, key.credentials, now);
            return id;
        }
        let id = KeyId(self.next_key);
        self.next_key += 1;
        self.keys.insert(identity, id);
        self.outputs.event(Event::KeyAdded {
            key: id,
            client_id: key.credentials.client_id().to_owned(),
            scope: key.scope.as_str().map(str::to_owned),
        });
        self.slots.insert(id, Slot::new(key, self.policy.budget.key()));
        id
    }

    /// Forgets a key and its token. Its waiters get [`AcquireError::UnknownKey`], and a late answer is ignored.
    pub fn remove_key(&mut self, key: KeyId, now: Now) {
        self.forget(key, now);
    }

    /// Asks for a key's token, to be had within `patience` (or the policy's [`caller_deadline`](Policy::caller_deadline)).
    ///
    /// A valid token is ready at once, and when its refresh is due, the refresh starts behind it (R24): so drain
    /// [`poll_output`](Self::poll_output) whatever the answer is.
    pub fn acquire(&mut self, key: KeyId, patience: Option<Duration>, now: Now) -> Acquire {
        self.elapse(now);
        self.bury_suspended(key, now);
        let deadline = now.mono + patience.unwrap_or(self.policy.caller_deadline);
        let Some(slot) = self.slots.get(&key) else {
            return Acquire::Failed(AcquireError::UnknownKey);
        };
        let valid = slot.valid(now).cloned();
        if valid.as_ref().is_none_or(|held| self.refresh_due(held, now)) {
            self.want(key, now);
        }
        match valid {
            Some(held) => Acquire::Ready(held.token),
            None => match self.outlook(key, deadline, now) {
                Ok(()) => {
                    let waiter = self.waiters.add(Waiter { key, deadline });
                    self.timers.set(deadline, Timer::Waiter(waiter));
                    let slot = self.slot_mut(key);
                    slot.waiters.insert(waiter);
                    if slot.waiters.len() == 1 {
                        self.announce_deferral(key, now);
                    }
                    Acquire::Wait(waiter)
                }
                Err(error) => {
                    self.look_for_correction(key, now);
                    self.leave_queue_if_unneeded(key, now);
                    match self.slots[&key].fallback(&self.policy, now) {
                        Some(token) => Acquire::Ready(token.clone()),
                        None => Acquire::Failed(error),
                    }
                }
            },
        }
    }

    /// Takes a waiter back. Its request, once sent, goes on for later callers (R48).
    pub fn cancel(&mut self, waiter: WaiterId, now: Now) {
        if let Some(key) = self.drop_waiter(waiter) {
            self.leave_queue_if_unneeded(key, now);
        }
    }

    /// The API rejected this token. It is named by identity: if it is still the current one it is never served again, if not,
    /// nothing changes (R38).
    pub fn invalidate(&mut self, token: TokenId, now: Now) -> Invalidated {
        self.elapse(now);
        self.reject(token, now)
    }

    /// Replaces the secret of a key in place: the next request uses it, the current token stays, a refused configuration is
    /// forgotten, and a late error of the old secret is dropped (R43). The secrets that are known already, in whichever order, change
    /// nothing.
    ///
    /// # Errors
    /// Another client id: that is another key, so add it with [`add_key`](Self::add_key).
    pub fn set_credentials(&mut self, key: KeyId, credentials: Credentials, now: Now) -> Result<(), ConfigError> {
        match self.slots.get(&key) {
            Some(slot) if slot.key.credentials.client_id() == credentials.client_id() => {
                self.replace_credentials(key, credentials, now);
                Ok(())
            }
            Some(_) => {
                Err(ConfigError::new(Field::ClientId, "another client is another key; derive one for it instead"))
            }
            None => Err(ConfigError::new(Field::ClientId, "no such key; add it to the machine first")),
        }
    }

    /// This key's credentials come from somewhere: from now on the machine gives out [`Action::Credentials`] for it, beside each of
    /// its token requests, and while a refused configuration stands: then when a caller is told so from memory, or by itself where the
    /// key is kept warm, and at most once per 10 s.
    pub fn renew_credentials(&mut self, key: KeyId, now: Now) {
        self.announce_source(key, now);
    }

    /// Refreshes this key's token without being called, until [`keep_cold`](Self::keep_cold) was called as often.
    pub fn keep_warm(&mut self, key: KeyId, now: Now) {
        self.elapse(now);
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.warmers += 1;
            self.settle(key, now);
        }
    }

    /// Takes one [`keep_warm`](Self::keep_warm) back.
    pub fn keep_cold(&mut self, key: KeyId, now: Now) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.warmers = slot.warmers.saturating_sub(1);
            self.settle(key, now);
            self.leave_queue_if_unneeded(key, now);
        }
    }

    /// Starts nothing more. What is under way goes on, so that its request is not wasted; who waits for less fails with
    /// [`AcquireError::Closed`]. Held tokens are served while they live. Wait for [`is_idle`](Self::is_idle).
    pub fn shut_down(&mut self, now: Now) {
        self.phase = Phase::ShutDown;
        self.withdraw_all(now);
    }

    /// This is a copy in another process, a forked child (R54). Requests under way, waiters and what is kept warm are the
    /// parent's: they are forgotten here, and their reports would come late. What is known of the world stays: the tokens, the
    /// gate, and the budget, since both processes have one address. Counters start at zero, and `process`, which has to
    /// differ between children, goes into the seed, or their jitter would be the same.
    pub fn start_anew(&mut self, process: u32, now: Now) {
        self.rng = fastrand::Rng::with_seed(self.rng.u64(..).wrapping_add(process.into()));
        self.counters = Counters::default();
        self.outputs = Outputs::default();
        if let Some(sharing) = &mut self.sharing {
            sharing.start_anew(&mut self.rng);
        }
        self.orphan_all(now);
    }

    // Inputs

    /// The answer to a token request. Report it as it came, whatever its status.
    pub fn handle_response(&mut self, op: OpId, response: &http::Response<ResponseBody>, now: Now) {
        self.gate.read_clocks(now);
        self.answered(op, response, now);
        self.elapse(now);
    }

    /// A token request brought no answer.
    pub fn handle_failure(&mut self, op: OpId, failure: Failure, now: Now) {
        self.gate.read_clocks(now);
        self.failed(op, failure, now);
        self.elapse(now);
    }

    /// An operation was performed by the store, or could not be.
    pub fn handle_store(&mut self, op: OpId, result: Result<StoreReply, StoreFailure>, now: Now) {
        self.gate.read_clocks(now);
        self.store_answered(op, result, now);
        self.elapse(now);
    }

    /// It was looked where a key's credentials come from. Others than the known ones take effect as with
    /// [`set_credentials`](Self::set_credentials); where none were found, or another client's, the known ones stay in use, and an
    /// event says so.
    pub fn handle_credentials(&mut self, op: OpId, found: Result<Credentials, CredentialsFailure>, now: Now) {
        self.gate.read_clocks(now);
        self.credentials_found(op, found, now);
        self.elapse(now);
    }

    /// Time has passed. Harmless at any time; needed when [`poll_timeout`](Self::poll_timeout) says so.
    pub fn handle_timeout(&mut self, now: Now) {
        self.elapse(now);
    }

    /// The caller of the API got its 401, and no second attempt was made. Only reported, as an event (R39).
    pub fn note_abandoned_replay(&mut self, token: TokenId, error: Option<AcquireError>) {
        self.outputs.event(Event::ReplayAbandoned { token, error });
    }

    // Outputs

    /// The next thing to do or to know.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout); `None` while nothing waits for time to pass.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        if !self.outputs.is_empty() {
            return Some(Timeout { at: Default::default(), reason: TimeoutReason::Output });
        }
        let timer = self.timers.next().map(|(at, timer)| Timeout {
            at,
            reason: match timer {
                Timer::Flight(_) | Timer::Errand(_) => TimeoutReason::Patience,
                Timer::Renew(_) | Timer::Follow(_) => TimeoutReason::Lease,
                Timer::Waiter(_) => TimeoutReason::Deadline,
                Timer::Spaced(_) => TimeoutReason::NextSlot,
                Timer::Warm(_) => TimeoutReason::KeepWarm,
                Timer::Look(_) => TimeoutReason::Credentials,
            },
        });
        let slot = self.next_sending().map(|at| Timeout { at, reason: TimeoutReason::NextSlot });
        [timer, slot].into_iter().flatten().min_by_key(|timeout| timeout.at)
    }

    /// A key whose [`peek`](Self::peek) may have changed since it was last returned here, a removed one included. A driver
    /// that keeps a copy for its fast path takes these after every call; any other may leave them.
    pub fn poll_change(&mut self) -> Option<KeyId> {
        self.changed.pop_first()
    }

    fn next_op(&mut self) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        op
    }

    // Getters

    /// A key as it is now, its credentials replaced ones included; `None` when it was removed.
    pub fn key(&self, key: KeyId) -> Option<&Key> {
        self.slots.get(&key).map(|slot| &slot.key)
    }

    /// Whether a report for this operation is still awaited.
    #[cfg(feature = "driver")]
    pub(crate) fn awaits(&self, op: OpId) -> bool {
        self.ops.contains_key(&op)
            || self.looks.awaits(op)
            || self.sharing.as_ref().is_some_and(|sharing| sharing.awaits(op))
    }

    /// Whether a flight waits for this operation.
    #[cfg(feature = "driver")]
    pub(crate) fn flies(&self, op: OpId) -> bool {
        self.ops.contains_key(&op)
    }

    /// How many requests the budget would let go at once; `u32::MAX` without one.
    #[cfg(feature = "driver")]
    pub(crate) fn budget_left(&self, now: Now) -> u32 {
        self.bucket.available(now.mono)
    }

    /// How many operations of the store are under way that no flight waits for.
    pub(crate) fn errands(&self) -> usize {
        self.sharing.as_ref().map_or(0, Sharing::errands)
    }

    #[cfg(feature = "driver")]
    pub(crate) fn knows(&self, key: KeyId) -> bool {
        self.slots.contains_key(&key)
    }

    /// The token that is held and valid, without asking for anything.
    pub fn peek(&self, key: KeyId, now: Now) -> Option<Peek> {
        let slot = self.slots.get(&key)?;
        let held = slot.valid(now)?;
        Some(Peek { token: held.token.clone(), hard: held.hard, look: self.look(key, held, now).min(held.hard) })
    }

    /// The state of the whole group, for a health endpoint.
    pub fn status(&self, now: Now) -> Status {
        Status {
            gate_closed_until: self.gate.closed_until(now).map(|until| until.told(now)),
            retries_held_until: self.outage.held_until(now).map(|until| until.told(now)),
            budget_left: self.bucket.available(now.mono),
            waiters: self.waiters.len(),
            keys: self.slots.keys().filter_map(|key| self.key_status(*key, now)).collect(),
        }
    }

    /// The state of one key.
    pub fn key_status(&self, key: KeyId, now: Now) -> Option<KeyStatus> {
        let slot = self.slots.get(&key)?;
        let held = slot.valid(now);
        Some(KeyStatus {
            key,
            client_id: slot.key.credentials.client_id().to_owned(),
            scope: slot.key.scope.as_str().map(str::to_owned),
            token_until: held.map(|held| held.token.expires_at()),
            refresh_at: held.map(|held| self.refresh_at(held, now).told(now)),
            activity: match slot.flight {
                Flight::Idle => Activity::Idle,
                Flight::Reading { .. } | Flight::Leasing { .. } => Activity::AskingStore,
                Flight::Following { .. } => Activity::Following,
                Flight::Queued { .. } => Activity::Queued,
                Flight::Requesting { .. } => Activity::Requesting,
                Flight::BackingOff { until, .. } if until.reached(now) => Activity::Idle,
                Flight::BackingOff { .. } => Activity::BackingOff,
            },
            error: self.standing_error(key, now),
        })
    }

    /// What was counted since the machine was made.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether nothing is under way and nothing is queued: no request, no store's operation, no waiter, no output.
    pub fn is_idle(&self) -> bool {
        let rests = |slot: &Slot| matches!(slot.flight, Flight::Idle | Flight::BackingOff { .. });
        let told = self.errands() == 0 || self.sharing.as_ref().is_some_and(Sharing::fails);
        self.slots.values().all(rests) && told && self.waiters.len() == 0 && self.outputs.is_empty()
    }
}
