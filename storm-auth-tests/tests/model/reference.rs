//! The machine as its callers and the wire must see it, written down plainly.
//!
//! It keeps lists, not structures: every request that was sent, every throttle that was met, who waits. What follows from them
//! is computed anew each time it is asked for, by going through the lists. It shares no code with the machine, knows no HTTP,
//! and draws nothing: where a wait is random it asks how long it is ([`Draws`]) and judges whether it may be.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

const SECOND: u64 = 1_000;

/// A moment on both clocks, in milliseconds; one to come is there as soon as either clock says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Time {
    pub(crate) mono: u64,
    pub(crate) wall: u64,
}

impl Time {
    fn after(self, span: u64) -> Self {
        Self { mono: self.mono.saturating_add(span), wall: self.wall.saturating_add(span) }
    }

    fn has_come(self, now: Self) -> bool {
        now.mono >= self.mono || now.wall >= self.wall
    }

    fn left(self, now: Self) -> u64 {
        self.mono.saturating_sub(now.mono).min(self.wall.saturating_sub(now.wall))
    }

    fn earlier(self, other: Self) -> Self {
        Self { mono: self.mono.min(other.mono), wall: self.wall.min(other.wall) }
    }

    fn later(self, other: Self) -> Self {
        Self { mono: self.mono.max(other.mono), wall: self.wall.max(other.wall) }
    }

    /// What a caller is told of a point on the monotonic clock.
    fn told(self, mono: u64) -> u64 {
        self.wall.saturating_add(mono.saturating_sub(self.mono))
    }
}

/// What the users may set.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Requests a minute and the burst beside them, where there is a budget.
    pub(crate) budget: Option<(u64, u64)>,
    pub(crate) patience: u64,
    pub(crate) early: f64,
    pub(crate) late: f64,
    pub(crate) stale: u64,
}

impl Rules {
    fn slot(&self) -> u64 {
        self.budget.map_or(20 * SECOND, |(per_minute, _)| 60 * SECOND / per_minute)
    }
}

/// The waits that are random, as they turned out.
pub(crate) trait Draws {
    /// How long the back-off of a key lasts from now, that has just begun.
    fn back_off(&self, key: u64) -> u64;
    /// How long after `from` the refresh of a key's token is due.
    fn refresh(&self, key: u64, from: Time) -> u64;
    /// How long the gate is closed from now.
    fn gate(&self) -> u64;
    /// How long the retries of other keys are held back from now.
    fn hold(&self) -> u64;
}

/// What happened in front of the limiter, by the monotonic clock.
#[derive(Clone, Copy, Debug)]
enum Spent {
    Request {
        at: u64,
    },
    /// The limiter refused the request of then: it had nothing left.
    Nothing {
        at: u64,
    },
}

/// A bucket as all that was spent leaves it.
struct Left {
    /// When all is paid for, one slot each.
    paid: u64,
    /// When all was paid for the last time, before a request.
    calm: u64,
    /// What of `paid` is fractions of a grain that the limiter dropped since then: nginx counts thousandths of a request.
    dropped: u64,
}

impl Left {
    /// As a request at `at` finds it.
    fn found(self, at: u64, margin: u64) -> Self {
        if self.paid + margin <= at || self.paid == 0 {
            return Self { paid: at, calm: at, dropped: 0 };
        }
        Self { paid: self.paid.max(at), ..self }
    }

    /// When the next request may go. The burst does not suffer from what was dropped.
    fn ready(&self, slot: u64, burst: u64, margin: u64) -> u64 {
        let ready = self.paid.saturating_sub(slot * burst);
        let in_burst = ready.saturating_sub(self.dropped);
        if in_burst <= self.calm { in_burst } else { ready + margin }
    }
}

/// The time of a thousandth of a request; nothing is dropped where a millisecond is whole thousandths.
fn grain(slot: u64) -> u64 {
    if slot <= SECOND && SECOND.is_multiple_of(slot) { 0 } else { slot.div_ceil(1_000) }
}

fn left(spent: &[Spent], slot: u64, burst: u64, margin: u64) -> Left {
    let grain = if margin > 0 { grain(slot) } else { 0 };
    let mut left = Left { paid: 0, calm: 0, dropped: 0 };
    for spent in spent {
        match *spent {
            Spent::Request { at } => {
                left = left.found(at, margin);
                let dropped = if left.paid > at { grain } else { 0 };
                left.paid += dropped + slot;
                left.dropped += dropped;
            }
            Spent::Nothing { at } => {
                left.paid = left.paid.max(at + slot * burst);
                left.dropped = 0;
            }
        }
    }
    left
}

/// When the next request may go after all that was spent: 1 + `burst` at once, one per `slot` behind them, and these by
/// `margin` later, once.
fn ready(spent: &[Spent], slot: u64, burst: u64, margin: u64) -> u64 {
    left(spent, slot, burst, margin).ready(slot, burst, margin)
}

/// What a caller gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Token(String),
    Configuration { retry_at: u64 },
    RateLimited { retry_at: u64, before: bool },
    Unavailable { cause: Cause, retry_at: u64 },
    TokensRejected { retry_at: u64 },
    DeadlineExceeded,
    Closed,
    UnknownKey,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    Failed(Kind),
    Refused,
    ExpiredOnArrival,
    AlreadyRejected,
    NoLifetime,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Connect,
    Timeout,
    Io,
    Aborted,
}

/// What `acquire` answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Now(Verdict),
    /// The caller waits, under this number.
    Later(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rejection {
    Dropped,
    HeldOff,
    NotCurrent,
}

/// A token request that goes out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) ticket: u64,
    pub(crate) key: u64,
    pub(crate) secret: String,
    pub(crate) patience: u64,
}

/// What the endpoint answers, already read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reply {
    pub(crate) says: Says,
    /// In seconds.
    pub(crate) retry_after: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Says {
    /// A lifetime in seconds.
    Token {
        text: String,
        lifetime: u64,
    },
    Throttle,
    Misconfigured,
    /// Misconfigured too: it is the client id or the secret.
    WrongClient,
    Nonsense,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) granted: u64,
    pub(crate) throttled: u64,
    pub(crate) refused: u64,
    pub(crate) unusable: u64,
    pub(crate) unconnected: u64,
    pub(crate) timed_out: u64,
    pub(crate) broken: u64,
    pub(crate) aborted: u64,
    pub(crate) rejected: u64,
    pub(crate) gated: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Status {
    pub(crate) gate: Option<u64>,
    pub(crate) hold: Option<u64>,
    pub(crate) budget_left: u64,
    pub(crate) waiters: usize,
    pub(crate) keys: Vec<KeyStatus>,
    /// The held token of each key in `keys`, and when it dies.
    pub(crate) peeks: Vec<Option<(String, Time, Time)>>,
    pub(crate) timeout: Option<u64>,
    pub(crate) is_idle: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeyStatus {
    pub(crate) key: u64,
    pub(crate) client: String,
    pub(crate) token_until: Option<u64>,
    pub(crate) refresh_at: Option<u64>,
    pub(crate) activity: Activity,
    pub(crate) error: Option<Verdict>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Activity {
    Idle,
    Queued,
    Requesting,
    BackingOff,
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    sent: Time,
    received: Time,
    lifetime: u64,
    /// The age at which it is refreshed when that is early.
    early: u64,
    dies: Time,
}

/// Whether an answer took as long as only a limiter does that holds requests.
fn is_held(sent: Time, received: Time) -> bool {
    received.mono.saturating_sub(sent.mono) >= 10 * SECOND
}

#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    /// It wants a request: `in_line` once its own three at once and one per slot let it.
    Wanting {
        need: u64,
        spaced: u64,
        in_line: bool,
    },
    Asking {
        ticket: u64,
        sent: Time,
        silence: u64,
        secret: String,
    },
    Resting {
        until: Time,
        why: Trouble,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Misconfigured,
    Unavailable(Cause),
    TokensRejected,
}

#[derive(Clone, Debug)]
struct Key {
    client: String,
    secret: String,
    /// The secret that is tried in its place when that is refused, and whether one of the two was, since a token came.
    other: Option<String>,
    one_refused: bool,
    place: Option<Place>,
    token: Option<Token>,
    doing: Doing,
    /// By number, with their deadlines.
    waiting: BTreeMap<u64, u64>,
    warm: u32,
    /// When a warm key looks after itself next, and when it has its secret looked for.
    alarm: Option<u64>,
    visit: Option<u64>,
    spent: Vec<Spent>,
    silences: u32,
    failures: u32,
    /// When it failed since the endpoint answered any key, and why.
    failed: Option<(Time, Cause)>,
    refusals: u32,
    /// A refused configuration stands until a token comes or the secret changes.
    refused: bool,
    fresh_rejections: u32,
    /// A token was refreshed while it lived.
    refreshed: bool,
    rejected: Vec<String>,
}

/// Where a key's secrets lie.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// When somebody was sent there last, and whether that one is there yet.
    visited: Option<u64>,
    visitor: bool,
}

impl Place {
    /// Since when the place is free: somebody who stays for ten minutes does not come back.
    fn free(self) -> Option<u64> {
        self.visited.filter(|_| self.visitor).map(|at| at + 600 * SECOND)
    }
}

impl Key {
    /// When it is worth going to the place again: every ten seconds while a configuration is refused.
    fn next_visit(&self, now: Time) -> Option<u64> {
        let place = self.place.filter(|_| self.refused)?;
        let next = place.visited.map_or(now.mono, |at| at + 10 * SECOND);
        Some(next.max(place.free().unwrap_or(0)))
    }

    fn valid(&self, now: Time) -> Option<&Token> {
        self.token.as_ref().filter(|token| !token.dies.has_come(now))
    }

    /// A secret was refused, the `first` one or the other: returns whether there is one that was not.
    fn swapped(&mut self, first: bool) -> bool {
        let Some(other) = &mut self.other else { return false };
        if first {
            std::mem::swap(other, &mut self.secret);
        }
        !std::mem::replace(&mut self.one_refused, true)
    }

    fn is_wanted(&self, now: Time) -> bool {
        !self.waiting.is_empty() || self.warm > 0 || self.valid(now).is_some()
    }

    fn patience(&self) -> u64 {
        ((60 * SECOND) << self.silences.min(3)).min(420 * SECOND)
    }
}

/// Something that is due, in the order in which it is seen to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Due {
    Silence(u64),
    Spaced(u64),
    Alarm(u64),
    Visit(u64),
    Deadline(u64),
}

#[derive(Debug)]
pub(crate) struct Model {
    rules: Rules,
    keys: BTreeMap<u64, Key>,
    added: u64,
    tickets: u64,
    waiters: u64,
    spent: Vec<Spent>,
    /// When the gate opens, and when that is by the monotonic clock, as the clocks told when they were read last.
    gate: Option<Time>,
    opening: u64,
    /// Retries of all keys since the last token, and until when the last one holds those of other keys back.
    retries: u32,
    hold: Option<(u64, Time)>,
    /// Throttles in a row, and when the last one was felt.
    throttles: u32,
    felt: Option<u64>,
    /// The first throttle since a token came, the last one that says how crowded the address is, and the last failure.
    starved: Option<u64>,
    crowded: Option<u64>,
    troubled: Option<u64>,
    is_closed: bool,
    pub(crate) tally: Tally,
    /// What came out and was not taken yet.
    pub(crate) sent: Vec<Request>,
    /// The keys for whose secrets somebody is sent.
    pub(crate) visits: Vec<u64>,
    pub(crate) resolved: BTreeMap<u64, Verdict>,
}

// What callers say
impl Model {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            keys: BTreeMap::new(),
            added: 0,
            tickets: 0,
            waiters: 0,
            spent: Vec::new(),
            gate: None,
            opening: 0,
            retries: 0,
            hold: None,
            throttles: 0,
            felt: None,
            starved: None,
            crowded: None,
            troubled: None,
            is_closed: false,
            tally: Tally::default(),
            sent: Vec::new(),
            visits: Vec::new(),
            resolved: BTreeMap::new(),
        }
    }

    pub(crate) fn add_key(&mut self, client: &str, secret: &str, other: Option<&str>, now: Time) -> u64 {
        let known = self.keys.iter().find(|(_, key)| key.client == client).map(|(id, _)| *id);
        if let Some(id) = known {
            self.set_secret(id, secret, other, now);
            return id;
        }
        let id = self.added;
        self.added += 1;
        let key = Key {
            client: client.to_owned(),
            secret: secret.to_owned(),
            other: other.map(str::to_owned),
            one_refused: false,
            place: None,
            token: None,
            doing: Doing::Nothing,
            waiting: BTreeMap::new(),
            warm: 0,
            alarm: None,
            visit: None,
            spent: Vec::new(),
            silences: 0,
            failures: 0,
            failed: None,
            refusals: 0,
            refused: false,
            fresh_rejections: 0,
            refreshed: false,
            rejected: Vec::new(),
        };
        self.keys.insert(id, key);
        id
    }

    pub(crate) fn remove_key(&mut self, id: u64) {
        self.hold.take_if(|(by, _)| *by == id);
        if let Some(key) = self.keys.remove(&id) {
            self.resolved.extend(key.waiting.into_keys().map(|waiter| (waiter, Verdict::UnknownKey)));
        }
    }

    pub(crate) fn acquire(&mut self, id: u64, patience: Option<u64>, now: Time, draws: &dyn Draws) -> Answer {
        self.tick(now, draws);
        let Some(key) = self.keys.get(&id) else { return Answer::Now(Verdict::UnknownKey) };
        // R21: a request of before a suspend is dead, whatever the monotonic clock says of its patience.
        if matches!(key.doing, Doing::Asking { sent, .. } if now.wall.saturating_sub(sent.wall) >= key.patience()) {
            self.key(id).doing = Doing::Nothing;
            self.tally.aborted += 1;
            self.ask_again(id, now, draws);
        }
        let deadline = now.mono.saturating_add(patience.unwrap_or(self.rules.patience));
        let valid = self.keys[&id].valid(now).map(|token| token.text.clone());
        if valid.is_none() || self.refresh_at(&self.keys[&id], now).is_some_and(|at| at.has_come(now)) {
            self.want(id, now, draws);
        }
        if let Some(text) = valid {
            return Answer::Now(Verdict::Token(text));
        }
        let turn = self.turn(id, now);
        let waits = match self.keys[&id].doing {
            Doing::Asking { .. } => true,
            Doing::Wanting { .. } => deadline > turn,
            Doing::Resting { .. } | Doing::Nothing => false,
        };
        if waits {
            self.waiters += 1;
            let waiter = self.waiters;
            self.key(id).waiting.insert(waiter, deadline);
            return Answer::Later(waiter);
        }
        let error = self.error(id, now).unwrap_or(Verdict::Closed);
        self.look_again(id, now);
        self.leave_if_unwanted(id, now);
        Answer::Now(self.fallback(id, now).unwrap_or(error))
    }

    pub(crate) fn cancel(&mut self, waiter: u64, now: Time) {
        let of = self.keys.iter().find(|(_, key)| key.waiting.contains_key(&waiter)).map(|(id, _)| *id);
        if let Some(id) = of {
            self.key(id).waiting.remove(&waiter);
            self.leave_if_unwanted(id, now);
        }
    }

    /// A token of this text was rejected; `None` is a key that was never here.
    pub(crate) fn invalidate(&mut self, id: Option<u64>, text: &str, now: Time, draws: &dyn Draws) -> Rejection {
        self.tick(now, draws);
        let Some(id) = id.filter(|id| self.keys.contains_key(id)) else { return Rejection::NotCurrent };
        let key = self.key(id);
        if !key.rejected.iter().any(|rejected| rejected == text) {
            key.rejected.push(text.to_owned());
            if key.rejected.len() > 8 {
                key.rejected.remove(0);
            }
        }
        let Some(token) = key.token.take_if(|token| token.text == text) else { return Rejection::NotCurrent };
        // R40: a minute of no forced refresh after two that were younger than a minute.
        let fresh = !token.received.after(60 * SECOND).has_come(now);
        key.fresh_rejections = if fresh { key.fresh_rejections + 1 } else { 0 };
        let hold_off = key.fresh_rejections >= 2 && !matches!(key.doing, Doing::Asking { .. });
        self.tally.rejected += 1;
        self.leave(id);
        if hold_off {
            let until = now.after(60 * SECOND);
            self.rest(id, until, Trouble::TokensRejected, now);
            return Rejection::HeldOff;
        }
        if let Doing::Resting { until, why: Trouble::Unavailable(cause) } = &self.keys[&id].doing {
            let (until, cause) = (*until, *cause);
            let soonest = until.earlier(now.after(120 * SECOND));
            self.key(id).doing = Doing::Resting { until: soonest, why: Trouble::Unavailable(cause) };
        }
        if self.keys[&id].is_wanted(now) {
            self.want(id, now, draws);
        }
        self.set_alarm(id, now);
        Rejection::Dropped
    }

    /// Whether the key is known.
    pub(crate) fn set_secret(&mut self, id: u64, secret: &str, other: Option<&str>, now: Time) -> bool {
        let Some(key) = self.keys.get_mut(&id) else { return false };
        let (mut known, mut told) = ([Some(&*key.secret), key.other.as_deref()], [Some(secret), other]);
        known.sort_unstable();
        told.sort_unstable();
        if known != told {
            secret.clone_into(&mut key.secret);
            key.other = other.map(str::to_owned);
            key.one_refused = false;
            key.refusals = 0;
            key.refused = false;
            if matches!(key.doing, Doing::Resting { why: Trouble::Misconfigured, .. }) {
                key.doing = Doing::Nothing;
            }
            self.set_alarm(id, now);
        }
        true
    }

    /// The key's secrets lie somewhere.
    pub(crate) fn lie_somewhere(&mut self, id: u64, now: Time) {
        if let Some(key) = self.keys.get_mut(&id) {
            key.place.get_or_insert_default();
            self.set_alarm(id, now);
        }
    }

    /// Whoever was sent there comes back, with a secret or without.
    pub(crate) fn come_back(&mut self, id: u64, with: Option<(&str, Option<&str>)>, now: Time, draws: &dyn Draws) {
        self.open_gate(now);
        if let Some(place) = self.keys.get_mut(&id).and_then(|key| key.place.as_mut()) {
            place.visitor = false;
            if let Some((secret, other)) = with {
                self.set_secret(id, secret, other, now);
            }
            self.set_alarm(id, now);
        }
        self.tick(now, draws);
    }

    /// Somebody came back who was not sent, or who was here before: only the time is told.
    pub(crate) fn hear_late(&mut self, now: Time, draws: &dyn Draws) {
        self.tick(now, draws);
    }

    pub(crate) fn keep_warm(&mut self, id: u64, now: Time, draws: &dyn Draws) {
        self.tick(now, draws);
        if let Some(key) = self.keys.get_mut(&id) {
            key.warm += 1;
            self.set_alarm(id, now);
        }
    }

    pub(crate) fn keep_cold(&mut self, id: u64, now: Time) {
        if let Some(key) = self.keys.get_mut(&id) {
            key.warm = key.warm.saturating_sub(1);
            self.set_alarm(id, now);
            self.leave_if_unwanted(id, now);
        }
    }

    pub(crate) fn shut_down(&mut self, now: Time) {
        self.is_closed = true;
        for id in self.ids() {
            if matches!(self.keys[&id].doing, Doing::Wanting { .. }) {
                self.leave(id);
                self.fail_all(id, &Verdict::Closed, now);
            }
            self.set_alarm(id, now);
        }
    }
}

// What the wire says
impl Model {
    pub(crate) fn answer(&mut self, ticket: u64, reply: &Reply, now: Time, draws: &dyn Draws) {
        self.open_gate(now);
        if let Some((id, sent, secret)) = self.land(ticket) {
            // R47: where requests are held back or refused, the next one may be held for long.
            let is_throttle = reply.says == Says::Throttle;
            self.key(id).silences = if is_throttle || is_held(sent, now) { 3 } else { 0 };
            if let (true, Some(token)) = (is_throttle, self.keys[&id].valid(now)) {
                let lifetime = token.lifetime;
                self.crowd(lifetime, now);
            }
            self.feel(id, &reply.says, reply.retry_after, sent, now, draws);
            match &reply.says {
                Says::Token { text, lifetime } => self.grant(id, text, *lifetime, sent, now, draws),
                Says::Throttle => self.ask_again(id, now, draws),
                Says::Misconfigured | Says::WrongClient | Says::Nonsense => {
                    let is_refused = reply.says != Says::Nonsense;
                    if is_refused {
                        self.end_outage();
                    }
                    *(if is_refused { &mut self.tally.refused } else { &mut self.tally.unusable }) += 1;
                    let key = self.key(id);
                    let is_first = key.secret == secret;
                    if !is_first && key.other.as_ref() != Some(&secret) {
                        // R43: what the old secret is told says nothing about the new one.
                        self.ask_again(id, now, draws);
                    } else if reply.says == Says::WrongClient && key.swapped(is_first) {
                        self.ask_again(id, now, draws);
                    } else if is_refused {
                        key.refusals += 1;
                        key.refused = true;
                        // R37: after a minute, then after five each.
                        let wait = if key.refusals == 1 { 60 } else { 300 };
                        self.rest(id, now.after(wait * SECOND), Trouble::Misconfigured, now);
                    } else {
                        self.back_off(id, Cause::Refused, now, draws);
                    }
                }
            }
            if reply.retry_after.is_some() {
                self.shed(now);
            }
        }
        self.tick(now, draws);
    }

    pub(crate) fn fail(&mut self, ticket: u64, kind: Kind, now: Time, draws: &dyn Draws) {
        self.open_gate(now);
        if let Some((id, ..)) = self.land(ticket) {
            self.failed(id, kind, now, draws);
        }
        self.tick(now, draws);
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Time, draws: &dyn Draws) {
        self.open_gate(now);
        let mut due = Vec::new();
        for (id, key) in &self.keys {
            match key.doing {
                Doing::Asking { silence, .. } => due.push((silence, Due::Silence(*id))),
                Doing::Wanting { spaced, in_line: false, .. } => due.push((spaced, Due::Spaced(*id))),
                _ => {}
            }
            due.extend(key.alarm.map(|at| (at, Due::Alarm(*id))));
            due.extend(key.visit.map(|at| (at, Due::Visit(*id))));
            due.extend(key.waiting.iter().map(|(waiter, deadline)| (*deadline, Due::Deadline(*waiter))));
        }
        due.retain(|(at, _)| *at <= now.mono);
        due.sort_unstable();
        let mut overdue = Vec::new();
        for (_, due) in due {
            match due {
                Due::Silence(id) => {
                    if matches!(self.keys[&id].doing, Doing::Asking { silence, .. } if silence <= now.mono) {
                        self.key(id).doing = Doing::Nothing;
                        self.failed(id, Kind::Timeout, now, draws);
                    }
                }
                Due::Spaced(id) => {
                    if let Doing::Wanting { spaced, in_line, .. } = &mut self.key(id).doing {
                        *in_line |= *spaced <= now.mono;
                    }
                }
                Due::Alarm(id) => {
                    let key = &self.keys[&id];
                    if key.alarm.is_some_and(|at| at <= now.mono) {
                        self.key(id).alarm = None;
                        if self.refresh_at(&self.keys[&id], now).is_none_or(|at| at.has_come(now)) {
                            self.want(id, now, draws);
                        }
                        self.set_alarm(id, now);
                    }
                }
                Due::Visit(id) => {
                    self.look_again(id, now);
                    self.set_alarm(id, now);
                }
                Due::Deadline(waiter) => overdue.push(waiter),
            }
        }
        // Nothing is sent for those alone whose deadline has passed.
        for waiter in overdue {
            let of = self.keys.iter().find(|(_, key)| key.waiting.contains_key(&waiter)).map(|(id, _)| *id);
            let Some(id) = of else { continue };
            let error = match self.keys[&id].doing {
                Doing::Wanting { .. } => self.queued(id, now),
                _ => Verdict::DeadlineExceeded,
            };
            self.fail_one(id, waiter, error, now);
            self.leave_if_unwanted(id, now);
        }
        self.let_go(None, now, draws);
    }
}

// What is seen
impl Model {
    pub(crate) fn status(&self, now: Time) -> Status {
        let budget_left = match self.rules.budget {
            None => u64::from(u32::MAX),
            Some((_, burst)) => {
                let (slot, margin) = (self.rules.slot(), self.rules.slot() / 40);
                let left = left(&self.spent, slot, burst, margin).found(now.mono, margin);
                let until = |reach: u64, cost: u64| {
                    (reach + slot * burst).checked_sub(left.paid).map_or(0, |spare| spare / cost + 1)
                };
                let behind = until(now.mono.saturating_sub(margin), slot + grain(slot));
                until(left.calm + left.dropped, slot).max(behind)
            }
        };
        let timers = self.keys.values().flat_map(|key| {
            let doing = match key.doing {
                Doing::Asking { silence, .. } => Some(silence),
                Doing::Wanting { spaced, in_line: false, .. } => Some(spaced),
                _ => None,
            };
            doing.into_iter().chain(key.alarm).chain(key.visit).chain(key.waiting.values().copied())
        });
        let first = self.line().iter().map(|(_, id)| self.held(*id).map_or(0, |held| held.mono)).min();
        let next = first.map(|first| first.max(self.opening).max(self.ready(&self.spent)));
        let rests = |key: &Key| matches!(key.doing, Doing::Nothing | Doing::Resting { .. }) && key.waiting.is_empty();
        Status {
            gate: self.gate.filter(|gate| !gate.has_come(now)).map(|gate| now.wall + gate.left(now)),
            hold: self.hold.filter(|(_, hold)| !hold.has_come(now)).map(|(_, hold)| now.wall + hold.left(now)),
            budget_left,
            waiters: self.keys.values().map(|key| key.waiting.len()).sum(),
            keys: self.keys.iter().map(|(id, key)| self.key_status(*id, key, now)).collect(),
            peeks: self.keys.iter().map(|(id, key)| self.peek(*id, key, now)).collect(),
            timeout: timers.chain(next).min(),
            is_idle: self.keys.values().all(rests),
        }
    }

    fn key_status(&self, id: u64, key: &Key, now: Time) -> KeyStatus {
        let token = key.valid(now);
        KeyStatus {
            key: id,
            client: key.client.clone(),
            token_until: token.map(|token| token.dies.wall),
            refresh_at: self.refresh_at(key, now).map(|at| now.wall + at.left(now)),
            activity: match key.doing {
                Doing::Nothing => Activity::Idle,
                Doing::Wanting { .. } => Activity::Queued,
                Doing::Asking { .. } => Activity::Requesting,
                Doing::Resting { until, .. } if until.has_come(now) => Activity::Idle,
                Doing::Resting { .. } => Activity::BackingOff,
            },
            error: match key.doing {
                Doing::Resting { until, .. } if until.has_come(now) => None,
                _ => self.error(id, now),
            },
        }
    }

    fn peek(&self, id: u64, key: &Key, now: Time) -> Option<(String, Time, Time)> {
        let token = key.valid(now)?;
        let refresh = self.refresh_at(key, now)?;
        let on_both = |mono: u64| now.after(mono.saturating_sub(now.mono));
        let look = match key.doing {
            Doing::Nothing if self.is_closed => token.dies,
            Doing::Nothing => refresh,
            Doing::Wanting { spaced, .. } => {
                on_both(self.opens(now).max(self.ready(&self.spent)).max(spaced).max(self.released(id, now)))
            }
            Doing::Asking { silence, .. } => on_both(silence),
            Doing::Resting { until, .. } => until.later(refresh),
        };
        Some((token.text.clone(), token.dies, look.earlier(token.dies)))
    }
}

// What follows from it
impl Model {
    fn ids(&self) -> Vec<u64> {
        self.keys.keys().copied().collect()
    }

    fn key(&mut self, id: u64) -> &mut Key {
        self.keys.get_mut(&id).expect("the model speaks of keys that it has")
    }

    /// R29, R30: when the valid token's refresh is due: at 75 % of its life, or when it drew; later where the address is crowded.
    fn refresh_at(&self, key: &Key, now: Time) -> Option<Time> {
        let token = key.valid(now)?;
        if is_held(token.sent, token.received) {
            return Some(token.received.after(token.early).earlier(token.dies));
        }
        let late = (token.lifetime as f64 * self.rules.late) as u64;
        let age = token.early as f64 + (late as f64 - token.early as f64) * self.lateness(token.lifetime, now);
        Some(token.sent.after(age as u64).earlier(token.dies))
    }

    /// Wholly late for two hundred lives after the address was crowded, and less and less over as many more.
    fn lateness(&self, lifetime: u64, now: Time) -> f64 {
        let Some(crowded) = self.crowded else { return 0.0 };
        let span = (200 * lifetime) as f64 / 1_000.0;
        (2.0 - now.mono.saturating_sub(crowded) as f64 / 1_000.0 / span.max(1.0)).clamp(0.0, 1.0)
    }

    /// A throttle says so, but for eight lives after a failure.
    fn crowd(&mut self, lifetime: u64, now: Time) {
        if self.troubled.is_none_or(|troubled| now.mono.saturating_sub(troubled) >= 8 * lifetime) {
            self.crowded = Some(now.mono);
        }
    }

    fn ready(&self, spent: &[Spent]) -> u64 {
        let slot = self.rules.slot();
        self.rules.budget.map_or(0, |(_, burst)| ready(spent, slot, burst, slot / 40))
    }

    /// R29: three at once and then one per slot.
    fn key_ready(&self, key: &Key) -> u64 {
        self.rules.budget.map_or(0, |(_, burst)| ready(&key.spent, self.rules.slot(), burst.min(2), 0))
    }

    fn open_gate(&mut self, now: Time) {
        self.gate = self.gate.filter(|gate| !gate.has_come(now));
        self.opening = self.gate.map_or(0, |gate| now.mono + gate.left(now));
    }

    /// R35: until when another key's retry holds this one back, where it has failed itself; each gets its turn in the end.
    fn held(&self, id: u64) -> Option<Time> {
        let (_, hold) = self.hold.filter(|(by, _)| *by != id)?;
        let (failed, _) = self.keys[&id].failed?;
        let failing = self.keys.values().filter(|key| key.failed.is_some()).count() as u64;
        Some(hold.earlier(failed.after(120 * SECOND * failing)))
    }

    fn is_held(&self, id: u64, now: Time) -> bool {
        self.held(id).is_some_and(|held| !held.has_come(now))
    }

    /// The endpoint has answered: nobody has failed.
    fn end_outage(&mut self) {
        self.retries = 0;
        self.hold = None;
        self.keys.values_mut().for_each(|key| key.failed = None);
    }

    fn opens(&self, now: Time) -> u64 {
        now.mono + self.gate.map_or(0, |gate| gate.left(now))
    }

    fn released(&self, id: u64, now: Time) -> u64 {
        now.mono + self.held(id).map_or(0, |held| held.left(now))
    }

    /// Who is in line, the earliest need first.
    fn line(&self) -> Vec<(u64, u64)> {
        let mut line: Vec<_> = (self.keys.iter())
            .filter_map(|(id, key)| match key.doing {
                Doing::Wanting { need, in_line: true, .. } => Some((need, *id)),
                _ => None,
            })
            .collect();
        line.sort_unstable();
        line
    }

    /// When a request of this key can go if nothing else happens: all those before it in the line go first.
    fn turn(&self, id: u64, now: Time) -> u64 {
        let key = &self.keys[&id];
        let open = self.opens(now);
        let goes_before = |place: &&(u64, u64), need| **place < (need, id) && !self.is_held(place.1, now);
        let ahead = match key.doing {
            Doing::Wanting { need, .. } => self.line().iter().filter(|place| goes_before(place, need)).count() as u64,
            _ => 0,
        };
        let Some((_, burst)) = self.rules.budget.filter(|_| ahead > 0) else {
            return self.ready(&self.spent).max(open).max(self.key_ready(key)).max(self.released(id, now));
        };
        let (slot, margin) = (self.rules.slot(), self.rules.slot() / 40);
        let from = self.ready(&self.spent).max(open);
        let mut left = left(&self.spent, slot, burst, margin).found(from, margin);
        if burst == 0 {
            left.paid += margin * (ahead - 1);
        } else {
            let dropped = grain(slot) * (ahead - u64::from(left.paid <= from));
            left.paid += dropped;
            left.dropped += dropped;
        }
        left.paid += slot * ahead;
        left.ready(slot, burst, margin).max(open).max(self.key_ready(key)).max(self.released(id, now))
    }

    fn want(&mut self, id: u64, now: Time, draws: &dyn Draws) {
        let key = &self.keys[&id];
        match key.doing {
            Doing::Nothing => {}
            Doing::Resting { until, .. } if until.has_come(now) => {}
            _ => return,
        }
        if self.is_closed {
            self.key(id).doing = Doing::Nothing;
            return;
        }
        let need = now.mono + key.token.as_ref().map_or(0, |token| token.dies.left(now));
        let spaced = self.key_ready(key);
        self.key(id).doing = Doing::Wanting { need, spaced, in_line: spaced <= now.mono };
        self.let_go(Some(id), now, draws);
        self.set_alarm(id, now);
    }

    /// Sends for who is in line while gate and budget allow, and nothing for a key that nobody wants any more.
    fn let_go(&mut self, asked: Option<u64>, now: Time, draws: &dyn Draws) {
        while self.gate.is_none_or(|gate| gate.has_come(now)) && self.ready(&self.spent) <= now.mono {
            let line = self.line();
            let Some((_, id)) = line.into_iter().find(|(_, id)| !self.is_held(*id, now)) else { return };
            if asked == Some(id) || self.keys[&id].is_wanted(now) {
                self.send(id, now, draws);
            } else {
                self.key(id).doing = Doing::Nothing;
            }
            self.set_alarm(id, now);
        }
    }

    fn send(&mut self, id: u64, now: Time, draws: &dyn Draws) {
        self.tickets += 1;
        let ticket = self.tickets;
        self.spent.push(Spent::Request { at: now.mono });
        if self.keys[&id].failed.is_some() {
            self.retries += 1;
            if self.hold.is_none_or(|(by, hold)| by == id || hold.has_come(now)) {
                let most = ((5 * SECOND) << (self.retries - 1).min(10)).min(120 * SECOND);
                let wait = draws.hold();
                assert!((1..=most).contains(&wait), "retries are held for {wait} after {}", self.retries);
                self.hold = Some((id, now.after(wait)));
            }
        }
        self.visit(id, now);
        let key = self.key(id);
        key.spent.push(Spent::Request { at: now.mono });
        let (secret, patience) = (key.secret.clone(), key.patience());
        key.doing = Doing::Asking { ticket, sent: now, silence: now.mono + patience, secret: secret.clone() };
        self.tally.requests += 1;
        self.sent.push(Request { ticket, key: id, secret, patience });
    }

    fn land(&mut self, ticket: u64) -> Option<(u64, Time, String)> {
        self.keys.iter_mut().find_map(|(id, key)| match key.doing.clone() {
            Doing::Asking { ticket: own, sent, secret, .. } if own == ticket => {
                key.doing = Doing::Nothing;
                Some((*id, sent, secret))
            }
            _ => None,
        })
    }

    /// R34, R35: a throttle or a Retry-After closes the gate for all.
    fn feel(&mut self, id: u64, says: &Says, retry_after: Option<u64>, sent: Time, now: Time, draws: &dyn Draws) {
        let is_throttle = *says == Says::Throttle;
        if is_throttle {
            self.tally.throttled += 1;
            self.spent.push(Spent::Nothing { at: sent.mono });
            // Those that were under way together met the same empty bucket.
            if self.felt.is_none_or(|felt| sent.mono > felt) {
                self.throttles += 1;
                self.starved = self.starved.or(Some(sent.mono));
            }
            self.felt = Some(now.mono);
        }
        let range: RangeInclusive<u64> = match retry_after.filter(|seconds| *seconds > 0) {
            Some(seconds) => {
                let wait = seconds.min(3_600) * SECOND;
                wait..=wait + (wait / 10).min(2 * SECOND)
            }
            None if is_throttle => {
                let slot = self.rules.slot();
                let starved = self.starved.map_or(0, |starved| now.mono - starved);
                let wait = match self.keys[&id].token {
                    _ if self.throttles > 10 => (slot * 3 / 2).max(starved / 50),
                    Some(_) => slot * 4 / 5,
                    None => slot,
                };
                let wait = wait.min(300 * SECOND);
                wait * 3 / 4..=wait
            }
            None => return,
        };
        let before = self.gate.filter(|gate| !gate.has_come(now)).map_or(0, |gate| gate.left(now));
        let wait = draws.gate();
        assert!(wait >= before.max(*range.start()), "the gate is closed for {wait}, not {range:?}, {before} before");
        assert!(wait <= before.max(*range.end()), "the gate is closed for {wait}, not {range:?}, {before} before");
        if wait > before {
            self.gate = Some(now.after(wait));
            self.opening = now.mono + wait;
        }
        self.tally.gated += wait - before;
    }

    fn grant(&mut self, id: u64, text: &str, lifetime: u64, sent: Time, now: Time, draws: &dyn Draws) {
        let lifetime = lifetime.min(86_400) * SECOND;
        // Half of what an early period takes beside a burst.
        let refill = self.rules.slot() * (self.rules.budget.map_or(0, |(_, burst)| burst) + 1);
        let room = ((lifetime as f64 * self.rules.early) as u64).saturating_sub(refill) / 2;
        let (starved, is_first) = (self.starved.take(), self.keys[&id].token.is_none());
        if is_first && !is_held(sent, now) && starved.is_some_and(|starved| now.mono - starved > room) {
            self.crowd(lifetime, now);
        }
        let key = &self.keys[&id];
        // Whoever was held has its place from the limiter.
        let is_refresh = key.valid(sent).is_some();
        let parts = !key.refreshed && key.valid(sent).is_some_and(|token| !is_held(token.sent, token.received));
        let collided = parts || key.failures > 0 || self.throttles > 0 && !is_first;
        let draws_its_refresh = collided && self.lateness(lifetime, sent) == 0.0;
        self.throttles = 0;
        // R20
        let dies = match lifetime {
            0 => now,
            _ => sent.after(lifetime - (lifetime / 50).min(10 * SECOND)),
        };
        let key = self.key(id);
        let spoilt = if key.rejected.iter().any(|rejected| rejected == text) {
            Some(Cause::AlreadyRejected)
        } else if lifetime == 0 {
            // R15: for who waits already. Whoever did not ask for it may not ask again at once.
            let is_unasked = key.valid(now).is_some() || key.warm > 0;
            self.serve(id, text);
            is_unasked.then_some(Cause::NoLifetime)
        } else {
            dies.has_come(now).then_some(Cause::ExpiredOnArrival)
        };
        if let Some(cause) = spoilt {
            self.tally.unusable += 1;
            // R22: a step of the wall clock costs one request.
            let stepped = cause == Cause::ExpiredOnArrival && dies.mono > now.mono;
            match stepped && self.may_repeat(id) {
                true => self.ask_again(id, now, draws),
                false => self.back_off(id, cause, now, draws),
            }
            return;
        }
        self.tally.granted += 1;
        self.end_outage();
        let key = self.key(id);
        (key.failures, key.refusals, key.refused, key.one_refused) = (0, 0, false, false);
        if lifetime > 0 {
            let from = if is_held(sent, now) { now } else { sent };
            let mut early = ((lifetime as f64 * self.rules.early) as u64).min(dies.left(from));
            if draws_its_refresh {
                let drawn = draws.refresh(id, from);
                let least = (((lifetime as f64 * self.rules.early) as u64) / 2).min(early);
                assert!((least..=early).contains(&drawn), "refreshed after {drawn} of {early}");
                early = drawn;
            }
            let key = self.key(id);
            key.refreshed |= is_refresh;
            let token = Token { text: text.to_owned(), sent, received: now, lifetime, early, dies };
            if key.token.replace(token).is_some() {
                key.fresh_rejections = 0;
            }
        }
        self.serve(id, text);
        self.set_alarm(id, now);
    }

    fn serve(&mut self, id: u64, text: &str) {
        let waiting = std::mem::take(&mut self.key(id).waiting);
        self.resolved.extend(waiting.into_keys().map(|waiter| (waiter, Verdict::Token(text.to_owned()))));
    }

    fn failed(&mut self, id: u64, kind: Kind, now: Time, draws: &dyn Draws) {
        match kind {
            Kind::Connect => self.tally.unconnected += 1,
            Kind::Io => self.tally.broken += 1,
            Kind::Timeout => {
                self.tally.timed_out += 1;
                self.key(id).silences += 1;
            }
            Kind::Aborted => {
                self.tally.aborted += 1;
                if self.may_repeat(id) {
                    return self.ask_again(id, now, draws);
                }
            }
        }
        self.back_off(id, Cause::Failed(kind), now, draws);
    }

    /// What this side spoilt is repeated twice in a row at the most, for who waits.
    fn may_repeat(&mut self, id: u64) -> bool {
        let key = self.key(id);
        let repeat = key.failures < 2 && !key.waiting.is_empty();
        key.failures += u32::from(repeat);
        repeat
    }

    fn back_off(&mut self, id: u64, cause: Cause, now: Time, draws: &dyn Draws) {
        let key = self.key(id);
        key.failures += 1;
        // One failure may be bad luck.
        if key.failures > 1 {
            key.failed = Some((now, cause));
        }
        self.troubled = Some(now.mono);
        self.crowded = None;
        let wait = self.rested(id, now, draws);
        self.rest(id, now.after(wait), Trouble::Unavailable(cause), now);
    }

    /// R35: how long a key rests after a failure: while its token lives, for about three quarters of what is left; else full jitter,
    /// from 5 s, doubled each time up to two minutes.
    fn rested(&self, id: u64, now: Time, draws: &dyn Draws) -> u64 {
        let key = &self.keys[&id];
        let left = key.valid(now).map_or(0, |token| token.dies.left(now));
        let most = ((5 * SECOND) << (key.failures - 1).min(10)).min(120 * SECOND);
        let range = if left < 5 * SECOND { 0..=most } else { left * 13 / 20..=left * 17 / 20 };
        let wait = draws.back_off(id);
        // Its token may have been rejected in the same call.
        let cut = wait == 120 * SECOND && wait < *range.start();
        assert!(range.contains(&wait) || cut, "a back-off of {wait}, not {range:?}, after {} failures", key.failures);
        wait
    }

    fn rest(&mut self, id: u64, until: Time, why: Trouble, now: Time) {
        self.key(id).doing = Doing::Resting { until, why };
        let error = self.error(id, now).expect("it is in trouble");
        self.fail_all(id, &error, now);
        self.set_alarm(id, now);
    }

    /// Whoever can wait for the next slot does, without being told.
    fn ask_again(&mut self, id: u64, now: Time, draws: &dyn Draws) {
        // R30: whose refresh has become late leaves the slots to the others.
        let is_due = self.refresh_at(&self.keys[&id], now).is_none_or(|refresh| refresh.has_come(now));
        if self.keys[&id].is_wanted(now) && is_due {
            self.want(id, now, draws);
        }
        if matches!(self.keys[&id].doing, Doing::Nothing) {
            self.fail_all(id, &Verdict::Closed, now);
        }
        self.set_alarm(id, now);
        self.shed(now);
    }

    /// R36: who cannot wait for its turn fails now; the first in line first, since whoever leaves brings the others forward. So does
    /// a key that nobody wants any more.
    fn shed(&mut self, now: Time) {
        let mut wanting: Vec<_> = (self.keys.iter())
            .filter_map(|(id, key)| match key.doing {
                Doing::Wanting { need, .. } => Some((need, *id)),
                _ => None,
            })
            .collect();
        wanting.sort_unstable();
        for (_, id) in wanting {
            let turn = self.turn(id, now);
            let hopeless: Vec<_> =
                (self.keys[&id].waiting.iter()).filter(|(_, at)| **at <= turn).map(|(waiter, _)| *waiter).collect();
            for waiter in hopeless {
                let error = self.queued(id, now);
                self.fail_one(id, waiter, error, now);
            }
            self.leave_if_unwanted(id, now);
        }
    }

    /// Why a key in the line has to wait: for a slot, or in an outage for its turn.
    fn queued(&self, id: u64, now: Time) -> Verdict {
        let retry_at = now.told(self.turn(id, now));
        match self.keys[&id].failed.filter(|_| self.is_held(id, now)) {
            Some((_, cause)) => Verdict::Unavailable { cause, retry_at },
            None => Verdict::RateLimited { retry_at, before: self.keys[&id].refused },
        }
    }

    /// What stands in the way of this key.
    fn error(&self, id: u64, now: Time) -> Option<Verdict> {
        match self.keys[&id].doing {
            Doing::Nothing | Doing::Asking { .. } => None,
            Doing::Wanting { .. } => Some(self.queued(id, now)),
            Doing::Resting { until, why } => {
                let retry_at = now.told(self.turn(id, now).max(now.mono + until.left(now)));
                Some(match why {
                    Trouble::Misconfigured => Verdict::Configuration { retry_at },
                    Trouble::Unavailable(cause) => Verdict::Unavailable { cause, retry_at },
                    Trouble::TokensRejected => Verdict::TokensRejected { retry_at },
                })
            }
        }
    }

    /// In place of an error: a token that lives again, or the expired one where the user lets it be served.
    fn fallback(&self, id: u64, now: Time) -> Option<Verdict> {
        let key = &self.keys[&id];
        let token = key.token.as_ref()?;
        let end = token.sent.after(token.lifetime + self.rules.stale.min(300 * SECOND));
        let serves = key.valid(now).is_some() || (self.rules.stale > 0 && !end.has_come(now));
        serves.then(|| Verdict::Token(token.text.clone()))
    }

    fn fail_one(&mut self, id: u64, waiter: u64, error: Verdict, now: Time) {
        let result = self.fallback(id, now).unwrap_or(error);
        if self.key(id).waiting.remove(&waiter).is_some() {
            self.resolved.insert(waiter, result);
        }
    }

    fn fail_all(&mut self, id: u64, error: &Verdict, now: Time) {
        let waiting: Vec<_> = self.keys[&id].waiting.keys().copied().collect();
        for waiter in waiting {
            self.fail_one(id, waiter, error.clone(), now);
        }
    }

    fn leave(&mut self, id: u64) {
        let key = self.key(id);
        if matches!(key.doing, Doing::Wanting { .. }) {
            key.doing = Doing::Nothing;
        }
    }

    fn leave_if_unwanted(&mut self, id: u64, now: Time) {
        if !self.keys[&id].is_wanted(now) {
            self.leave(id);
        }
    }

    /// When a warm key that does nothing has to do something.
    fn set_alarm(&mut self, id: u64, now: Time) {
        let key = &self.keys[&id];
        let refresh = self.refresh_at(key, now);
        let left = match key.doing {
            _ if key.warm == 0 || self.is_closed => None,
            Doing::Nothing => Some(refresh.map_or(0, |at| at.left(now))),
            Doing::Resting { until, .. } => Some(refresh.map_or(until, |at| until.later(at)).left(now)),
            Doing::Wanting { .. } | Doing::Asking { .. } => None,
        };
        let visit = key.next_visit(now).filter(|_| key.warm > 0 && !self.is_closed);
        let key = self.key(id);
        (key.alarm, key.visit) = (left.map(|left| now.mono + left), visit);
    }

    /// Somebody is sent to where the secrets lie, unless one is there yet.
    fn visit(&mut self, id: u64, now: Time) {
        if let Some(place) = self.key(id).place.as_mut().filter(|place| place.free().is_none_or(|at| at <= now.mono)) {
            *place = Place { visited: Some(now.mono), visitor: true };
            self.visits.push(id);
        }
    }

    fn look_again(&mut self, id: u64, now: Time) {
        if !self.is_closed && self.keys[&id].next_visit(now).is_some_and(|at| at <= now.mono) {
            self.visit(id, now);
            self.set_alarm(id, now);
        }
    }
}
