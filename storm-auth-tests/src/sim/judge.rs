//! The oracles of one process. They see what went in and what came out, they have the server's records, and they know nothing
//! of how a machine decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use core::time::Duration;
use storm_auth_core::machine::{Acquire, OpId, StoreRequest, TokenRequest, WaiterId};
use storm_auth_core::store::{Order, StoreCommand, StoreFailure, StoreReply};
use storm_auth_core::{AcquireError, Cause, Counters, Event, FailureKind, Moment, Now, Token, Unix};

use super::process::{SECRET, other};
use super::scenario::{SECOND, Scenario, Secrets};
use super::server::{Answer, Issued, Meaning, serial};
use super::shelf::Published;
use crate::emulator::{Limiter, LimiterKind, Nginx, Verdict};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What is wrong, in words.
pub(super) type Wrong = String;
pub(super) type Ruling = Result<(), Wrong>;

/// One key's share of the budget: a bucket kept as the time at which it is full again, exact to the millisecond. (nginx's own
/// arithmetic drops fractions, against which the group has its margin.)
#[derive(Clone, Copy, Debug)]
struct Share {
    interval: u64,
    burst: u64,
    full: u64,
}

impl Share {
    fn takes(&mut self, at: u64) -> bool {
        let full = self.full.max(at);
        self.full = full + self.interval;
        full - at <= self.interval * self.burst
    }
}

/// A token by the records: when its request went out, by the process's own clocks, and how long the server said it lives.
#[derive(Clone, Copy, Debug)]
struct Held {
    serial: usize,
    life: u64,
    /// R20: the request's time, plus the lifetime, less 2 % or 10 s.
    dies: Moment,
    /// Until when it may be served in place of an error.
    stale: Moment,
    /// By the wall clock of whoever asked for it.
    sent: Unix,
}

impl Held {
    fn new(serial: usize, sent: Now, life: u64, stale: u64) -> Self {
        let dies = sent.after(Duration::from_millis(life - skew(life)));
        Self { serial, life, dies, stale: sent.after(Duration::from_millis(life + stale)), sent: sent.unix }
    }

    fn dead(&self, now: Now) -> bool {
        self.dies.reached(now)
    }
}

fn skew(life: u64) -> u64 {
    (life / 50).min(10 * SECOND)
}

/// What the store's answer showed of a record.
#[derive(Clone, Copy, Debug)]
struct Found {
    order: Order,
    published: Published,
    at: Now,
}

/// An operation of the store that the machine waits for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    key: usize,
    sent: Now,
    patience: Duration,
    reads: bool,
    /// Whether its answer is looked at for a record.
    counts: bool,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    op: OpId,
    sent: Now,
    patience: Duration,
    secret: u64,
}

/// One key, as it looks from outside.
#[derive(Debug)]
struct Record {
    held: Option<Held>,
    /// A token of no lifetime, while those who waited for it are served.
    fleeting: Option<(usize, Now)>,
    flight: Option<Flight>,
    patience: Duration,
    warmers: u32,
    found: Option<Found>,
    share: Share,
    /// A refused configuration is not tried again before.
    refused_until: Option<Moment>,
    held_off_until: Option<Moment>,
    secret: u64,
    /// The other one that it may send in its place, and whether one of them was refused since a token came.
    other: Option<u64>,
    one_refused: bool,
    /// Somebody looks where the secret lies.
    sought: bool,
    /// Rejected tokens, the youngest last.
    rejected: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: usize,
    /// On the monotonic clock.
    deadline: u64,
    /// The token that had expired when it came. A wall clock that is set back may make it valid again, and nobody promised to
    /// look at it twice.
    expired: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Gate {
    until: Moment,
    /// Where the wall clock was moved to while it was closed: forward or back.
    moved: Option<bool>,
}

#[derive(Debug)]
pub(super) struct Judge {
    records: Vec<Record>,
    waiting: BTreeMap<WaiterId, Waiting>,
    cancelled: BTreeSet<WaiterId>,
    asked: BTreeMap<OpId, Asked>,
    group: Limiter,
    limited: bool,
    /// The shortest wait after a throttle that names none: that of a refresh.
    slot: u64,
    stale: u64,
    secrets: Secrets,
    /// Which of two secrets is good may be learnt from the store.
    shares: bool,
    gates: Vec<Gate>,
    closed: bool,
    in_part: bool,
    /// What the events say of the gate.
    told_gate: Option<Moment>,
    clock_moved: bool,
    counts: Counts,
}

/// The simulator's own count (R79).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Counts {
    requests: u64,
    granted: u64,
    throttled: u64,
    refused: u64,
    unusable: u64,
    unconnected: u64,
    timed_out: u64,
    broken: u64,
    aborted: u64,
    rejected: u64,
    hits: u64,
    misses: u64,
    store_failures: u64,
    gated: Duration,
}

impl Judge {
    pub(super) fn new(scenario: &Scenario, secrets: &[u64], in_part: bool) -> Self {
        let group = match scenario.budget {
            None => Limiter::none(),
            Some((per_minute, burst)) => Limiter::new(LimiterKind::Nginx(Nginx { per_minute, burst, nodelay: true })),
        };
        let interval = match scenario.budget {
            None => 20 * SECOND,
            Some((per_minute, _)) => 1_000_000_u64.div_ceil(u64::from(per_minute) * 1_000 / 60),
        };
        let record = |secret: &u64| Record {
            held: None,
            fleeting: None,
            flight: None,
            patience: Duration::from_secs(60),
            warmers: 0,
            found: None,
            share: match scenario.budget {
                None => Share { interval: 0, burst: 0, full: 0 },
                Some((_, burst)) => Share { interval, burst: u64::from(burst.min(2)), full: 0 },
            },
            refused_until: None,
            held_off_until: None,
            secret: *secret,
            other: other(*secret, scenario.secrets),
            one_refused: false,
            sought: false,
            rejected: BTreeSet::new(),
        };
        Self {
            records: secrets.iter().map(record).collect(),
            waiting: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            asked: BTreeMap::new(),
            group,
            limited: scenario.budget.is_some(),
            // Three quarters of four fifths, each in whole milliseconds.
            slot: scenario.budget.map_or(20 * SECOND, |(per_minute, _)| 60 * SECOND / u64::from(per_minute)) * 4 / 5
                * 3
                / 4,
            stale: scenario.stale.min(300 * SECOND),
            secrets: scenario.secrets,
            shares: scenario.store.is_some(),
            gates: Vec::new(),
            closed: false,
            in_part,
            told_gate: None,
            clock_moved: false,
            counts: Counts::default(),
        }
    }

    // What goes in

    /// Before any input: gates that have opened stay open.
    pub(super) fn look(&mut self, now: Now) {
        self.gates.retain(|gate| !gate.until.reached(now));
        for record in &mut self.records {
            record.fleeting = record.fleeting.filter(|(_, at)| *at == now);
            record.refused_until = record.refused_until.filter(|until| !until.reached(now));
            record.held_off_until = record.held_off_until.filter(|until| !until.reached(now));
        }
    }

    /// An input that lets time pass: requests that were silent to the end of their patience are over (R47).
    pub(super) fn elapse(&mut self, now: Now) {
        for record in &mut self.records {
            if record.flight.is_some_and(|flight| flight.sent.mono + flight.patience <= now.mono) {
                record.flight = None;
                record.patience = (record.patience * 2).min(Duration::from_secs(420));
                self.counts.timed_out += 1;
            }
        }
        // R75: a store that is silent is done without.
        let before = self.asked.len();
        self.asked.retain(|_, asked| asked.sent.mono + asked.patience > now.mono);
        self.counts.store_failures += (before - self.asked.len()) as u64;
    }

    /// A caller asks. A request that a suspend outlasted is given up (R21).
    pub(super) fn ask(&mut self, key: usize, now: Now) {
        self.elapse(now);
        let record = &mut self.records[key];
        if record.flight.is_some_and(|flight| now.unix.since(flight.sent.unix) >= flight.patience) {
            record.flight = None;
            self.counts.aborted += 1;
        }
    }

    /// What a caller was answered: a valid token at once whatever is under way (R24, R26), or reasons.
    pub(super) fn answered(
        &mut self,
        key: usize,
        deadline: u64,
        answer: &Acquire,
        issued: &[Issued],
        now: Now,
    ) -> Result<Option<usize>, Wrong> {
        let valid = self.valid(key, now);
        match answer {
            Acquire::Ready(token) => self.handed_out(key, token, issued, now).map(Some),
            Acquire::Wait(_) | Acquire::Failed(_) if valid.is_some() => {
                Err(format!("R24: token {} is valid, and a caller got {answer:?}", valid.unwrap_or_default()))
            }
            Acquire::Wait(waiter) => {
                let expired = self.records[key].held.map(|held| held.serial);
                match self.waiting.insert(*waiter, Waiting { key, deadline, expired }) {
                    Some(_) => Err(format!("{waiter:?} is two callers' name")),
                    None => Ok(None),
                }
            }
            Acquire::Failed(error) => self.failed(error, now).map(|()| None),
        }
    }

    pub(super) fn cancel(&mut self, waiter: WaiterId) {
        if self.waiting.remove(&waiter).is_some() && self.in_part {
            // Its result may be queued already.
            self.cancelled.insert(waiter);
        }
    }

    /// The API rejected a token (R38).
    pub(super) fn reject(&mut self, key: usize, rejected: usize) {
        let record = &mut self.records[key];
        if record.held.is_some_and(|held| held.serial == rejected) {
            record.held = None;
            self.counts.rejected += 1;
        }
        record.rejected.insert(rejected);
    }

    /// R40: after two fresh tokens were rejected in a row, none is asked for during a minute.
    pub(super) fn hold_off(&mut self, key: usize, now: Now) {
        self.records[key].held_off_until = Some(now.after(Duration::from_secs(60)));
    }

    pub(super) fn told_secret(&mut self, key: usize, secret: u64) {
        let other = other(secret, self.secrets);
        let record = &mut self.records[key];
        // Two in another order are the same two.
        let known = [Some(record.secret), record.other];
        if !known.contains(&Some(secret)) || !known.contains(&other) {
            (record.secret, record.other, record.one_refused) = (secret, other, false);
            record.refused_until = None;
        }
    }

    /// The machine wants to know what lies where a secret comes from: nobody is there yet.
    pub(super) fn seek(&mut self, key: usize) -> Ruling {
        match core::mem::replace(&mut self.records[key].sought, true) {
            false if self.secrets == Secrets::Found => Ok(()),
            false => Err("it is looked where no secret lies".to_owned()),
            true => Err("R43: it is looked for the secret while somebody is there already".to_owned()),
        }
    }

    /// The secret that lay there; `None` when it could not be read.
    pub(super) fn found(&mut self, key: usize, secret: Option<u64>) {
        self.records[key].sought = false;
        if let Some(secret) = secret {
            self.told_secret(key, secret);
        }
    }

    pub(super) fn warm(&mut self, key: usize, on: bool) {
        let record = &mut self.records[key];
        record.warmers = if on { record.warmers + 1 } else { record.warmers.saturating_sub(1) };
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.asked.retain(|_, asked| !asked.reads);
    }

    /// Somebody moved one of the clocks against the other: forward for a suspend too.
    pub(super) fn moved_clock(&mut self, forward: bool) {
        self.clock_moved = true;
        // Once it was moved there and back, which of several gates opens last is nothing that anybody promised.
        self.gates.retain(|gate| gate.moved.is_none_or(|before| before == forward));
        self.gates.iter_mut().for_each(|gate| gate.moved = Some(forward));
    }

    /// An answer is handed to the machine. Returns whether it is one that is awaited.
    pub(super) fn deliver(&mut self, key: usize, op: OpId, answer: &Answer, now: Now) -> bool {
        let Some(flight) = self.land(key, op) else { return false };
        let record = &mut self.records[key];
        // A limiter in front that refuses one request, or has held it, may hold the next one for as long as it holds any.
        let held_back = now.mono.since(flight.sent.mono) >= Duration::from_secs(10);
        record.patience = match answer.meaning == Meaning::Throttled || held_back {
            true => Duration::from_secs(420),
            false => Duration::from_secs(60),
        };
        match answer.meaning {
            Meaning::Throttled => self.counts.throttled += 1,
            Meaning::Unusable => self.counts.unusable += 1,
            Meaning::Refused | Meaning::WrongSecret => {
                self.counts.refused += 1;
                let known = [Some(record.secret), record.other].contains(&Some(flight.secret));
                // R43: the other secret is tried at once, unless that one was refused before.
                let swaps = answer.meaning == Meaning::WrongSecret && record.other.is_some() && known;
                if swaps && flight.secret == record.secret {
                    record.secret = record.other.replace(flight.secret).unwrap_or(flight.secret);
                }
                let is_over = swaps && !core::mem::replace(&mut record.one_refused, true);
                if known && !is_over {
                    record.refused_until = Some(now.after(Duration::from_secs(60)));
                }
            }
            Meaning::Token { serial, life } => {
                let held = Held::new(serial, flight.sent, life, self.stale);
                let valid = record.held.is_some_and(|held| !held.dead(now));
                let usable = !record.rejected.contains(&serial)
                    && if life == 0 { !valid && record.warmers == 0 } else { !held.dead(now) };
                match usable {
                    true => self.counts.granted += 1,
                    false => self.counts.unusable += 1,
                }
                record.one_refused &= !usable;
                if life == 0 {
                    record.fleeting = Some((serial, now));
                } else if usable {
                    record.held = Some(held);
                }
            }
        }
        let throttled = answer.meaning == Meaning::Throttled;
        let wait = match answer.retry_after {
            0 if throttled => self.slot,
            wait => wait,
        };
        if wait > 0 {
            self.gates.push(Gate { until: now.after(Duration::from_millis(wait)), moved: None });
        }
        true
    }

    /// A failure is handed to the machine.
    pub(super) fn deliver_failure(&mut self, key: usize, op: OpId, kind: FailureKind) {
        if self.land(key, op).is_none() {
            return;
        }
        match kind {
            FailureKind::Connect => self.counts.unconnected += 1,
            FailureKind::Io => self.counts.broken += 1,
            FailureKind::Aborted => self.counts.aborted += 1,
            FailureKind::Timeout => {
                let record = &mut self.records[key];
                record.patience = (record.patience * 2).min(Duration::from_secs(420));
                self.counts.timed_out += 1;
            }
        }
    }

    /// The store's answer is handed to the machine; `published` is what this side knows of its record.
    pub(super) fn deliver_store(
        &mut self,
        op: OpId,
        result: &Result<StoreReply, StoreFailure>,
        published: Option<Published>,
        now: Now,
    ) {
        let Some(asked) = self.asked.remove(&op) else { return };
        match result {
            Err(_) => self.counts.store_failures += 1,
            Ok(reply) => {
                self.counts.misses += u64::from(asked.counts);
                let order = reply.record.as_ref().map(|record| record.order);
                let found = order.zip(published).map(|(order, published)| Found { order, published, at: now });
                self.records[asked.key].found = found.filter(|_| asked.counts);
            }
        }
    }

    /// The store is asked for something. A token that is published is the one that has just come.
    pub(super) fn ask_store(&mut self, key: usize, request: &StoreRequest, now: Now) -> Option<Published> {
        let (op, command, patience) = (request.op, &request.store_op.command, request.patience);
        let record = &self.records[key];
        let reads = matches!(command, StoreCommand::Read);
        let leases = matches!(command, StoreCommand::Lease { .. }) && record.flight.is_none();
        self.asked.insert(op, Asked { key, sent: now, patience, reads, counts: reads || leases });
        match (command, record.held) {
            (StoreCommand::Publish { .. }, Some(Held { serial, life, .. })) => Some(Published { serial, life }),
            _ => None,
        }
    }

    /// R20, R38, R74, R75: a token that is taken from the store is one that has just been found there, newer than the held one, not
    /// rejected, and alive by this process's clock.
    fn adopted(&mut self, key: usize, now: Now) -> Ruling {
        let stale = self.stale;
        let record = &mut self.records[key];
        let Some(Found { order, published: Published { serial, life }, .. }) =
            record.found.take_if(|found| found.at == now)
        else {
            return Err("R75: a token was taken from the store that was not found there".to_owned());
        };
        if record.rejected.contains(&serial) {
            return Err(format!("R38: token {serial} was rejected, and is taken from the store"));
        }
        if record.held.is_some_and(|held| held.sent > order.sent) {
            return Err(format!("R74: token {serial} is older than the held one"));
        }
        if order.sent.since(now.unix) > Duration::from_millis(skew(life)) {
            return Err(format!("R75: token {serial} is from the future"));
        }
        let age = now.unix.since(order.sent).as_millis() as u64;
        let after = |span: u64| now.after(Duration::from_millis(span.saturating_sub(age)));
        let held = Held { serial, life, dies: after(life - skew(life)), stale: after(life + stale), sent: order.sent };
        if held.dead(now) {
            return Err(format!("R20: token {serial} had expired when it was taken from the store"));
        }
        record.held = Some(held);
        (record.refused_until, record.one_refused) = (None, false);
        self.counts.hits += 1;
        self.counts.misses -= 1;
        Ok(())
    }

    /// The secret in the request that is under way.
    pub(super) fn sent_secret(&self, key: usize) -> u64 {
        self.records[key].flight.map_or(self.records[key].secret, |flight| flight.secret)
    }

    fn land(&mut self, key: usize, op: OpId) -> Option<Flight> {
        self.records[key].flight.take_if(|flight| flight.op == op)
    }

    // What comes out

    /// A request goes over the wire.
    pub(super) fn send(&mut self, key: usize, send: &TokenRequest, secret: u64, now: Now) -> Ruling {
        self.counts.requests += 1;
        let record = &mut self.records[key];
        let at = now.mono.as_millis();
        if let Some(flight) = record.flight {
            return Err(format!("R25: {:?} goes out while {:?} is under way for the same key", send.op, flight.op));
        }
        if self.closed {
            return Err("a request goes out after the machine was shut down".to_owned());
        }
        if let Some(gate) = self.gates.iter().find(|gate| !gate.until.reached(now)) {
            return Err(format!("R32, R34: a request goes out before the gate opens: {now:?}, {gate:?}"));
        }
        if self.group.admit(HERE, at) != Verdict::Pass {
            return Err("R29: a request beyond the budget of the limiter group".to_owned());
        }
        if !record.share.takes(at) {
            return Err("R29: a request beyond the share of its key".to_owned());
        }
        if record.refused_until.is_some() {
            return Err("R37: a refused configuration is tried again within a minute".to_owned());
        }
        if record.held_off_until.is_some() {
            return Err("R40: a request within a minute of the second rejection of a fresh token".to_owned());
        }
        if send.patience != record.patience {
            return Err(format!("R47: a patience of {:?} in place of {:?}", send.patience, record.patience));
        }
        if self.shares && record.other == Some(secret) {
            record.other = Some(core::mem::replace(&mut record.secret, secret));
        }
        if secret != record.secret {
            return Err(format!("R43: secret {secret} is sent in place of {}", record.secret));
        }
        if self.secrets == Secrets::Found && !record.sought {
            return Err("R43: a request goes out, and nobody looks where its secret lies".to_owned());
        }
        record.flight = Some(Flight { op: send.op, sent: now, patience: send.patience, secret });
        Ok(())
    }

    /// A waiter is resolved: once, in time, and never after it was cancelled.
    pub(super) fn resolved(
        &mut self,
        waiter: WaiterId,
        result: &Result<Token, AcquireError>,
        issued: &[Issued],
        now: Now,
    ) -> Result<Option<usize>, Wrong> {
        let Some(Waiting { key, .. }) = self.waiting.remove(&waiter) else {
            return match self.cancelled.remove(&waiter) {
                true => Ok(None),
                false => Err(format!("{waiter:?} is resolved, and nobody waits under that name any more")),
            };
        };
        match result {
            Ok(token) => self.handed_out(key, token, issued, now).map(Some),
            Err(error) => self.failed(error, now).map(|()| None),
        }
    }

    pub(super) fn event(&mut self, event: &Event, now: Now) -> Ruling {
        if let Event::GateClosed { until, .. } = event {
            let left = until.since(now.unix);
            let before = self.told_gate.map_or(Duration::ZERO, |gate| gate.left(now));
            if left > before {
                self.told_gate = Some(now.after(left));
                self.counts.gated += left - before;
            }
        }
        if let Event::Adopted { token, .. } = event {
            let key = token.key().index() as usize;
            self.adopted(key, now)?;
        }
        if let Event::Failed { cause: Cause::Failed(failure), .. } = event
            && failure.detail.contains(SECRET)
        {
            return Err(format!("R58: a secret in {event:?}"));
        }
        Ok(())
    }

    /// After every input, when all outputs were taken.
    pub(super) fn settled(&self, now: Now) -> Ruling {
        for (waiter, Waiting { key, deadline, expired }) in &self.waiting {
            if *deadline < now.mono.as_millis() {
                return Err(format!("R25: {waiter:?} still waits after its deadline {deadline}"));
            }
            if let Some(valid) = self.valid(*key, now).filter(|valid| !self.clock_moved || Some(*valid) != *expired) {
                return Err(format!("R24: token {valid} is valid, and {waiter:?} waits"));
            }
        }
        Ok(())
    }

    /// The machine's counters against the count of this side (R46, R79).
    pub(super) fn counted(&self, counters: Counters) -> Ruling {
        let theirs = Counts {
            requests: counters.requests,
            granted: counters.granted,
            throttled: counters.throttled,
            refused: counters.refused,
            unusable: counters.unusable,
            unconnected: counters.unconnected,
            timed_out: counters.timed_out,
            broken: counters.broken,
            aborted: counters.aborted,
            rejected: counters.rejected,
            hits: counters.store_hits,
            misses: counters.store_misses,
            store_failures: counters.store_failures,
            // A clock that is set moves the end of a gate on one clock and not on the other.
            gated: if self.clock_moved { self.counts.gated } else { counters.gated },
        };
        match theirs == self.counts {
            true => Ok(()),
            false => Err(format!("R79: the machine counted {theirs:?}, the simulator {:?}", self.counts)),
        }
    }

    /// R20, R22, R38: the token is this key's own, has not expired by either clock, and was not rejected.
    fn handed_out(&self, key: usize, token: &Token, issued: &[Issued], now: Now) -> Result<usize, Wrong> {
        let record = &self.records[key];
        let Some(serial) = serial(token.expose()).filter(|serial| issued[*serial].client == key) else {
            return Err(format!("{token:?} was never issued for client {key}"));
        };
        if record.fleeting == Some((serial, now)) {
            return Ok(serial);
        }
        if record.rejected.contains(&serial) {
            return Err(format!("R38: token {serial} is handed out after the API rejected it"));
        }
        match record.held {
            Some(held) if held.serial != serial => {
                Err(format!("R26: token {serial} is handed out in place of the newer {}", held.serial))
            }
            None => Err(format!("token {serial} is handed out, and no answer brought it")),
            Some(held) if !held.dead(now) => Ok(serial),
            Some(held) => match self.stale > 0 && !held.stale.reached(now) {
                true => Ok(serial),
                false => Err(format!("R20: token {serial} is handed out at {now:?}, past its expiry: {held:?}")),
            },
        }
    }

    /// R27, R36: who fails is told when, and that is not in the past.
    fn failed(&self, error: &AcquireError, now: Now) -> Ruling {
        match error {
            AcquireError::Closed if !self.closed => Err("R25: closed, says a machine that is open".to_owned()),
            AcquireError::UnknownKey => Err("a key is unknown that was added".to_owned()),
            error if error.retry_at().is_some_and(|at| at < now.unix) => {
                Err(format!("R36: told to come back in the past: {error:?}"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn valid(&self, key: usize, now: Now) -> Option<usize> {
        self.records[key].held.filter(|held| !held.dead(now)).map(|held| held.serial)
    }

    /// The monotonic time at which nothing holds this process's requests back any more that was told or sent before `now`.
    pub(super) fn held_back_until(&self, now: Now) -> Duration {
        let gates = self.gates.iter().map(|gate| gate.until.left(now));
        let told = self.told_gate.iter().map(|gate| gate.left(now));
        let flights = self.records.iter().filter_map(|record| record.flight);
        let flights = flights.map(|flight| (flight.sent.mono + flight.patience).since(now.mono));
        gates.chain(told).chain(flights).max().unwrap_or_default()
    }

    pub(super) fn is_limited(&self) -> bool {
        self.limited
    }
}
