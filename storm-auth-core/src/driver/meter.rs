//! What a board measures of its machine, as data. A driver that knows a metrics library hands it on, and decides nothing.

use core::fmt;
use core::time::Duration;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::FailureKind;
use crate::machine::{Counters, Event, KeyId, OpId, WaiterId};
use crate::store::{Lease, StoreFailure, StoreReply};
use crate::time::{Mono, Now, Unix};

/// A metric: its name and what it tells. Names and labels are stable, and the labels have few values.
///
/// Each has the label [`group`](Self::GROUP) beside its own: which limiter group of the process it is about. Its value is the driver's to
/// give, as a name that the user chose or a number.
///
/// | metric | kind | label | |
/// |---|---|---|---|
/// | `storm_auth_calls_total` | counter | `state` | calls for a token: `cached` (in memory), `ready` (there when the machine was asked), `waited` (it came), `failed` (it did not), `given_up` (the caller went away) |
/// | `storm_auth_wait_seconds` | histogram | `state` | how long a call waited: `waited`, `failed`, `given_up` |
/// | `storm_auth_token_requests_total` | counter | `reason` | token requests that went out: [`first`, `refresh`, `expired`, `rejected`](crate::machine::Reason) |
/// | `storm_auth_token_outcomes_total` | counter | `outcome` | what came of them: [`granted`, `throttled`, …](Landing) |
/// | `storm_auth_token_request_seconds` | histogram | `outcome` | how long they took |
/// | `storm_auth_token_expiry_timestamp_seconds` | gauge | `key` | when the held token is no longer handed out, in seconds since 1970, and 0 after it was rejected; its remaining lifetime is this less the time now |
/// | `storm_auth_gate_closed_until_timestamp_seconds` | gauge | | until when the gate was closed last |
/// | `storm_auth_budget_left` | gauge | | requests that the budget would let go at once, when one went out or came back; none without a budget |
/// | `storm_auth_leases_total` | counter | `outcome` | what a store answered to who asked for a lease: `mine`, `free`, `taken`, `lapsed`, `resting`, `failed` |
/// | `storm_auth_store_records_total` | counter | `result` | looks into the store: `hit` (another process's token), `miss` |
/// | `storm_auth_store_failures_total` | counter | | operations that the store could not do |
/// | `storm_auth_events_total` | counter | `event` | events, by [their names](Event::name): closed gates, rejected tokens, abandoned replays, … |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What kind it is.
    pub kind: MetricKind,
    /// What it is counted in.
    pub unit: MetricUnit,
    /// Its only label beside the group's, where it has one.
    pub label: Option<&'static str>,
    /// What it tells, for people.
    pub description: &'static str,
}

/// The kinds of metric. There will be no other one: a driver that hands metrics on has to know each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A number that is what it is now.
    Gauge,
    /// Many spans, in seconds.
    Histogram,
}

/// What a metric is counted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MetricUnit {
    /// Whole things.
    Count,
    /// Seconds: of a span, or since 1970.
    Seconds,
}

impl Metric {
    /// The name of the label that all have.
    pub const GROUP: &'static str = "group";

    /// Calls for a token, by state.
    pub const CALLS: Self = Self::counter("storm_auth_calls_total", Some("state"), "calls for a token");
    const WAITS: Self = Self::histogram("storm_auth_wait_seconds", "state", "how long a call waited for a token");
    const REQUESTS: Self =
        Self::counter("storm_auth_token_requests_total", Some("reason"), "token requests that went out");
    const OUTCOMES: Self =
        Self::counter("storm_auth_token_outcomes_total", Some("outcome"), "what came of token requests");
    const DURATIONS: Self =
        Self::histogram("storm_auth_token_request_seconds", "outcome", "how long token requests took");
    const EXPIRY: Self = Self::gauge(
        "storm_auth_token_expiry_timestamp_seconds",
        MetricUnit::Seconds,
        Some("key"),
        "when the held token is no longer handed out, since 1970",
    );
    const GATE: Self = Self::gauge(
        "storm_auth_gate_closed_until_timestamp_seconds",
        MetricUnit::Seconds,
        None,
        "until when the gate was closed last, since 1970",
    );
    const BUDGET: Self =
        Self::gauge("storm_auth_budget_left", MetricUnit::Count, None, "token requests that may go at once");
    const LEASES: Self =
        Self::counter("storm_auth_leases_total", Some("outcome"), "what the store answered to who asked for a lease");
    const RECORDS: Self = Self::counter("storm_auth_store_records_total", Some("result"), "looks into the token store");
    const STORE_FAILURES: Self =
        Self::counter("storm_auth_store_failures_total", None, "operations that the token store could not do");
    const EVENTS: Self = Self::counter("storm_auth_events_total", Some("event"), "events by name");

    /// All of them, to be described to a metrics library.
    pub const ALL: &'static [Self] = &[
        Self::CALLS,
        Self::WAITS,
        Self::REQUESTS,
        Self::OUTCOMES,
        Self::DURATIONS,
        Self::EXPIRY,
        Self::GATE,
        Self::BUDGET,
        Self::LEASES,
        Self::RECORDS,
        Self::STORE_FAILURES,
        Self::EVENTS,
    ];

    const fn counter(name: &'static str, label: Option<&'static str>, description: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, unit: MetricUnit::Count, label, description }
    }

    const fn gauge(
        name: &'static str,
        unit: MetricUnit,
        label: Option<&'static str>,
        description: &'static str,
    ) -> Self {
        Self { name, kind: MetricKind::Gauge, unit, label, description }
    }

    const fn histogram(name: &'static str, label: &'static str, description: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram, unit: MetricUnit::Seconds, label: Some(label), description }
    }
}

/// One measurement, to be handed to a metrics library.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Measurement {
    /// What was measured.
    pub metric: Metric,
    /// The value of its label, where it has one.
    pub label: Option<Cow<'static, str>>,
    /// What to add to a counter, to set a gauge to, or to record in a histogram.
    pub value: Reading,
}

/// What was read, one for each [`MetricKind`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Reading {
    /// To be added to a counter.
    Add(u64),
    /// To set a gauge to.
    Set(f64),
    /// To be recorded in a histogram, in seconds.
    Record(f64),
}

impl Measurement {
    /// Calls that were served from a cell, for the driver that counted them.
    pub fn cached_calls(count: u64) -> Self {
        Self { metric: Metric::CALLS, label: Some("cached".into()), value: Reading::Add(count) }
    }
}

/// What came of a token request, in one word: in spans the field `outcome`, in metrics the label.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Landing {
    /// `granted`: a token.
    Granted,
    /// `throttled`: a 429 or 503.
    Throttled,
    /// `refused`: the configuration was.
    Refused,
    /// `unusable`: any other answer.
    Unusable,
    /// `connect`: no connection.
    Connect,
    /// `timeout`: its patience ran out.
    Timeout,
    /// `io`: the connection broke.
    Io,
    /// `aborted`: on this side.
    Aborted,
    /// `late`: nobody waited for the answer any more.
    Late,
}

impl Landing {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::Unusable => "unusable",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Io => "io",
            Self::Aborted => "aborted",
            Self::Late => "late",
        }
    }

    /// What an answer, or a failure, made the machine count.
    pub(super) fn between(before: &Counters, after: &Counters) -> Self {
        let counted = OUTCOMES.iter().find(|(_, count)| count(after) > count(before));
        counted.map_or(Self::Late, |(landing, _)| *landing)
    }
}

impl From<FailureKind> for Landing {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Connect => Self::Connect,
            FailureKind::Timeout => Self::Timeout,
            FailureKind::Io => Self::Io,
            FailureKind::Aborted => Self::Aborted,
        }
    }
}

impl fmt::Display for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is read off one of the machine's counters.
type Count = fn(&Counters) -> u64;

/// Every request that went out and came to an end is counted in one of these.
const OUTCOMES: [(Landing, Count); 8] = [
    (Landing::Granted, |counters| counters.granted),
    (Landing::Throttled, |counters| counters.throttled),
    (Landing::Refused, |counters| counters.refused),
    (Landing::Unusable, |counters| counters.unusable),
    (Landing::Connect, |counters| counters.unconnected),
    (Landing::Io, |counters| counters.broken),
    (Landing::Aborted, |counters| counters.aborted),
    (Landing::Timeout, |counters| counters.timed_out),
];

const RECORDS: [(&str, Count); 2] =
    [("hit", |counters| counters.store_hits), ("miss", |counters| counters.store_misses)];

/// Calls and requests under way, and what was measured since it was last taken.
#[derive(Default, Debug)]
pub(super) struct Meter {
    counted: Counters,
    flights: BTreeMap<OpId, Mono>,
    waits: BTreeMap<WaiterId, Mono>,
    measured: Vec<Measurement>,
    /// The last value of each gauge that has not been set to it yet.
    gauges: Vec<Measurement>,
    /// Whether somebody sets gauges.
    setting: bool,
}

impl Meter {
    pub(super) fn take(&mut self) -> Vec<Measurement> {
        core::mem::take(&mut self.measured)
    }

    /// The gauges to be set, for one who sets them at a time.
    pub(super) fn take_gauges(&mut self) -> Vec<Measurement> {
        if self.setting { Vec::new() } else { self.next_gauges() }
    }

    /// What has changed while they were set.
    pub(super) fn next_gauges(&mut self) -> Vec<Measurement> {
        self.setting = !self.gauges.is_empty();
        core::mem::take(&mut self.gauges)
    }

    /// This is another process now, whose machine counts from zero.
    pub(super) fn start_anew(&mut self) {
        *self = Self::default();
    }

    pub(super) fn call(&mut self, state: &'static str) {
        self.add(Metric::CALLS, Some(state), 1);
    }

    pub(super) fn waits(&mut self, waiter: WaiterId, now: Now) {
        self.waits.insert(waiter, now.mono);
    }

    /// A caller's waiting is over.
    pub(super) fn waited(&mut self, waiter: WaiterId, state: &'static str, now: Now) {
        if let Some(since) = self.waits.remove(&waiter) {
            self.call(state);
            self.record(Metric::WAITS, state, now.mono.since(since));
        }
    }

    pub(super) fn event(&mut self, event: &Event, now: Now) {
        self.add(Metric::EVENTS, Some(event.name()), 1);
        match event {
            Event::Requested { op, reason, .. } => {
                self.flights.insert(*op, now.mono);
                self.add(Metric::REQUESTS, Some(reason.name()), 1);
            }
            Event::Granted { key, expires_at, .. } | Event::Adopted { key, expires_at, .. } => {
                self.expires(*key, seconds(*expires_at));
            }
            Event::TokenRejected { token, .. } => self.expires(token.key(), 0.0),
            Event::GateClosed { until, .. } => self.set(Metric::GATE, None, seconds(*until)),
            _ => {}
        }
    }

    /// A request has come to an end.
    pub(super) fn landed(&mut self, op: OpId, landing: Landing, now: Now) {
        if let Some(since) = self.flights.remove(&op) {
            self.record(Metric::DURATIONS, landing.name(), now.mono.since(since));
        }
    }

    /// What the store answered to who asked for a lease.
    pub(super) fn leased(&mut self, result: &Result<StoreReply, StoreFailure>) {
        let outcome = match result.as_ref().map(|reply| &reply.lease) {
            Ok(Lease::Mine) => "mine",
            Ok(Lease::Free) => "free",
            Ok(Lease::Taken) => "taken",
            Ok(Lease::Lapsed) => "lapsed",
            Ok(Lease::Resting(_)) => "resting",
            Err(_) => "failed",
        };
        self.add(Metric::LEASES, Some(outcome), 1);
    }

    /// Whatever has happened is over: what the machine has counted, which of its requests nobody waits for any more, and what is left
    /// of its budget.
    pub(super) fn read(&mut self, counters: Counters, awaits: impl Fn(OpId) -> bool, budget_left: u32, now: Now) {
        let before = core::mem::replace(&mut self.counted, counters);
        let since = |count: Count| count(&counters).saturating_sub(count(&before));
        for (landing, count) in OUTCOMES {
            self.add(Metric::OUTCOMES, Some(landing.name()), since(count));
        }
        for (result, count) in RECORDS {
            self.add(Metric::RECORDS, Some(result), since(count));
        }
        self.add(Metric::STORE_FAILURES, None, since(|counters| counters.store_failures));
        // These ended by the machine's own clock, and their reports will come late.
        let ended = if counters.timed_out > before.timed_out { Landing::Timeout } else { Landing::Aborted };
        let gone: Vec<_> = self.flights.keys().copied().filter(|op| !awaits(*op)).collect();
        let landed = !gone.is_empty() || OUTCOMES.iter().any(|(_, count)| since(*count) > 0);
        gone.into_iter().for_each(|op| self.landed(op, ended, now));
        if (landed || counters.requests > before.requests) && budget_left < u32::MAX {
            self.set(Metric::BUDGET, None, budget_left.into());
        }
    }

    fn expires(&mut self, key: KeyId, at: f64) {
        self.set(Metric::EXPIRY, Some(key.index().to_string().into()), at);
    }

    fn add(&mut self, metric: Metric, label: Option<&'static str>, count: u64) {
        if count > 0 {
            self.push(metric, label, Reading::Add(count));
        }
    }

    fn set(&mut self, metric: Metric, label: Option<Cow<'static, str>>, value: f64) {
        let value = Reading::Set(value);
        match self.gauges.iter_mut().find(|gauge| gauge.metric == metric && gauge.label == label) {
            Some(gauge) => gauge.value = value,
            None => self.gauges.push(Measurement { metric, label, value }),
        }
    }

    fn record(&mut self, metric: Metric, label: &'static str, span: Duration) {
        self.push(metric, Some(label), Reading::Record(span.as_secs_f64()));
    }

    fn push(&mut self, metric: Metric, label: Option<&'static str>, value: Reading) {
        self.measured.push(Measurement { metric, label: label.map(Cow::Borrowed), value });
    }
}

fn seconds(at: Unix) -> f64 {
    at.as_millis() as f64 / 1_000.0
}

/// How many lanes the calls are counted in.
const LANES: usize = 8;

/// How many calls of a lane are counted before they are told.
const BATCH: u64 = 256;

/// Counts the calls that were served from a cell, without a line of cache that two threads write (R79).
///
/// ```
/// use storm_auth_core::driver::Served;
///
/// let served = Served::default();
/// assert_eq!((0..300).map(|_| served.count(0)).sum::<u64>(), 256, "told in one go");
/// assert_eq!((served.take(), served.take(), served.total()), (44, 0, 300));
/// ```
#[derive(Default, Debug)]
pub struct Served([Lane; LANES]);

/// Alone on what a processor fetches at once, which are two lines of cache.
#[derive(Default, Debug)]
#[repr(align(128))]
struct Lane {
    counted: AtomicU64,
    told: AtomicU64,
}

impl Served {
    /// One more, on the calling thread's lane, whatever that number's range. Returns how many are to be told now: none, or a batch.
    #[inline]
    pub fn count(&self, lane: usize) -> u64 {
        let lane = &self.0[lane % LANES];
        let counted = lane.counted.fetch_add(1, Ordering::Relaxed) + 1;
        if counted.is_multiple_of(BATCH) { lane.take() } else { 0 }
    }

    /// How many have not been told yet; from now on they have.
    pub fn take(&self) -> u64 {
        self.0.iter().map(Lane::take).sum()
    }

    /// How many there were; exact when no call is under way.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|lane| lane.counted.load(Ordering::Relaxed)).sum()
    }
}

impl Lane {
    fn take(&self) -> u64 {
        let counted = self.counted.load(Ordering::Relaxed);
        counted.saturating_sub(self.told.fetch_max(counted, Ordering::Relaxed))
    }
}
