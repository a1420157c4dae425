//! What is drawn from a seed before anything happens.

use core::time::Duration;

use storm_auth_core::{Budget, Policy};

use super::server::Mood;
use crate::emulator::{Limiter, LimiterKind, Nginx};

pub(super) const SECOND: u64 = 1_000;
pub(super) const MINUTE: u64 = 60 * SECOND;

/// A story: who takes part, and what goes wrong when. All spans are in milliseconds.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything follows from it.
    pub seed: u64,
    /// Processes behind the one address.
    pub processes: usize,
    /// Callers in each process.
    pub callers: usize,
    /// Client ids that each process asks tokens for.
    pub keys: usize,
    /// What stands before the token endpoint.
    pub limiter: Limiter,
    /// The requests a minute and the burst of each process's budget; `None` for no budget.
    pub budget: Option<(u32, u32)>,
    /// How long past its expiry a token may be served in place of an error.
    pub stale: u64,
    /// The lifetime of the tokens at first.
    pub lifetime: u64,
    /// The longest pause of a caller between two calls.
    pub pause: u64,
    /// Whether callers differ in how long they wait for a token, and some go before it comes.
    pub restless: bool,
    /// Whether processes keep their keys warm.
    pub warm: bool,
    /// Whether processes drive the machine through the board that the adapters use.
    pub board: bool,
    /// The shortest and the longest way through the network.
    pub latency: (u64, u64),
    /// What goes wrong with single requests.
    pub rates: Rates,
    /// What the store is like that the processes share; `None` where each works alone.
    pub store: Option<StoreRates>,
    /// How a process knows its clients' secrets.
    pub secrets: Secrets,
    /// The most that a clock is wrong by, in parts per million.
    pub drift: i64,
    /// From then on nothing goes wrong any more.
    pub faults_until: u64,
    /// What goes wrong when.
    pub(super) faults: Vec<(u64, Fault)>,
}

/// How a process knows a secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Secrets {
    /// It is told another one.
    #[default]
    Told,
    /// It is told the one that is to follow as well.
    Two,
    /// It looks where the secret lies.
    Found,
}

/// How often a request meets each fault, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// No connection.
    pub connect: u32,
    /// The request or its answer is lost.
    pub loss: u32,
    /// The connection is reset.
    pub reset: u32,
    /// The flight ends on this side.
    pub abort: u32,
    /// The answer comes much later.
    pub late: u32,
    /// The answer is reported twice.
    pub twice: u32,
    /// The answer is a status without a token.
    pub status: u32,
    /// The answer cannot be read.
    pub garbage: u32,
    /// The token's lifetime is an odd one.
    pub lifetime: u32,
    /// The answer has a `Retry-After`.
    pub retry_after: u32,
}

/// What a store is like, and how often an operation meets each fault, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreRates {
    /// The shortest and the longest way there, or back.
    pub latency: (u64, u64),
    /// How far its clock is ahead of the true time, or behind.
    pub wrong_by: i64,
    /// It says that it cannot.
    pub fails: u32,
    /// It does what it is asked for, or not, and says nothing for longer than anybody waits.
    pub hangs: u32,
    /// It answers with a record that was there before.
    pub lags: u32,
    /// It answers with something absurd.
    pub lies: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    Mood(Mood),
    Lifetime(u64),
    Revoke {
        client: usize,
    },
    RejectAll {
        span: u64,
    },
    /// The server's secret changes; each process is told up to so much later.
    Rotate {
        client: usize,
        told_within: u64,
    },
    /// A process is told a secret that is wrong, and the right one so much later.
    Misconfigure {
        process: usize,
        client: usize,
        span: u64,
    },
    Crash {
        process: usize,
        down: u64,
    },
    Close {
        process: usize,
        down: u64,
    },
    StepWall {
        process: usize,
        by: i64,
    },
    Suspend {
        process: usize,
        span: u64,
    },
    Warm {
        process: usize,
        on: bool,
    },
    Store(StoreMood),
    /// The store loses everything.
    StoreLoses,
}

/// What the store is like for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StoreMood {
    Well,
    Down,
    Silent,
}

impl Fault {
    /// Whom alone it strikes.
    fn process(self) -> Option<usize> {
        match self {
            Self::Misconfigure { process, .. }
            | Self::Crash { process, .. }
            | Self::Close { process, .. }
            | Self::StepWall { process, .. }
            | Self::Suspend { process, .. }
            | Self::Warm { process, .. } => Some(process),
            Self::Mood(_)
            | Self::Lifetime(_)
            | Self::Revoke { .. }
            | Self::RejectAll { .. }
            | Self::Rotate { .. }
            | Self::Store(_)
            | Self::StoreLoses => None,
        }
    }
}

impl Scenario {
    /// The story of a seed.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5EED_0F5C_E7A2_1000);
        let rng = &mut rng;
        let processes = match rng.u8(0..10) {
            0..4 => 1,
            4..9 => rng.usize(2..=8),
            _ => rng.usize(9..=40),
        };
        let name = Limiter::NAMES[rng.usize(0..Limiter::NAMES.len())];
        // Half of all stories meet the limiter that the service documents.
        let name = if rng.bool() { "nginx" } else { name };
        let limiter = Limiter::named(name).expect("it is one of the names");
        let lifetime = [600, 3_600, rng.u64(20..7_200)][rng.usize(0..3)] * SECOND;
        let hour = 60 * MINUTE;
        let faults_until = if rng.u8(0..16) == 0 { rng.u64(hour..20 * hour) } else { rng.u64(5 * MINUTE..90 * MINUTE) };
        let rate = |rng: &mut fastrand::Rng| match rng.u8(0..6) {
            0..4 => 0,
            4 => rng.u32(1..60),
            _ => rng.u32(60..500),
        };
        let latency = match rng.u8(0..4) {
            0 | 1 => (5, rng.u64(20..450)),
            2 => (1, 2),
            _ => (20, rng.u64(500..20_000)),
        };
        let drift = if rng.bool() { 0 } else { rng.i64(1..300) };
        let mut scenario = Self {
            seed,
            processes,
            callers: if processes < 9 { rng.usize(1..=6) } else { rng.usize(1..=2) },
            keys: if processes < 9 { rng.usize(1..=3) } else { 1 },
            limiter,
            budget: match rng.u8(0..10) {
                0 => None,
                1 => Some((rng.u32(1..60), rng.u32(0..40))),
                _ => Some((3, 20)),
            },
            stale: if rng.u8(0..6) == 0 { rng.u64(1..400) * SECOND } else { 0 },
            lifetime,
            pause: if rng.u8(0..16) == 0 { 2 * SECOND } else { [30, 60, 120, 300, 900][rng.usize(0..5)] * SECOND },
            restless: rng.bool(),
            warm: rng.u8(0..4) == 0,
            board: rng.u8(0..4) == 0,
            latency,
            rates: Rates {
                connect: rate(rng),
                loss: rate(rng),
                reset: rate(rng),
                abort: rate(rng),
                late: rate(rng),
                twice: rate(rng),
                status: rate(rng),
                garbage: rate(rng),
                lifetime: rate(rng),
                retry_after: rate(rng),
            },
            store: None,
            secrets: Secrets::Told,
            drift,
            faults_until,
            faults: Vec::new(),
        };
        if rng.u8(0..6) == 0 {
            scenario.rates = Rates::default();
        }
        scenario.draw_faults(rng);
        // The stories of odd seeds are those without a store.
        if seed.is_multiple_of(2) {
            scenario.draw_store(rng);
        }
        scenario.secrets = match rng.u8(0..8) {
            0 => Secrets::Two,
            1 => Secrets::Found,
            _ => Secrets::Told,
        };
        scenario
    }

    /// A story in which nothing goes wrong.
    pub fn calm(seed: u64, processes: usize, limiter: Limiter) -> Self {
        Self {
            seed,
            processes,
            callers: 2,
            keys: 1,
            limiter,
            budget: Some((3, 20)),
            stale: 0,
            lifetime: 600 * SECOND,
            pause: 10 * SECOND,
            restless: false,
            warm: false,
            board: false,
            latency: (20, 80),
            rates: Rates::default(),
            store: None,
            secrets: Secrets::Told,
            drift: 0,
            faults_until: 60 * MINUTE,
            faults: Vec::new(),
        }
    }

    /// The same with a store that all processes share, a few milliseconds away.
    pub fn shared(mut self) -> Self {
        self.store = Some(StoreRates { latency: (1, 4), ..StoreRates::default() });
        self
    }

    /// Takes out what makes the same story differ when it is told in other steps: clocks of one process that disagree.
    pub fn steady(mut self) -> Self {
        self.drift = 0;
        self.faults.retain(|(_, fault)| !matches!(fault, Fault::StepWall { .. } | Fault::Suspend { .. }));
        self
    }

    /// The same for one process that is driven plainly, whose callers do not go before they are answered.
    pub fn alone(mut self) -> Self {
        (self.processes, self.board, self.restless, self.store) = (1, false, false, None);
        self.faults.retain(|(_, fault)| fault.process().is_none_or(|process| process == 0));
        self
    }

    pub(super) fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        policy.budget = self.budget.map_or(Budget::unlimited(), |(rate, burst)| Budget::per_minute(rate, burst));
        policy.serve_stale_on_error = Duration::from_millis(self.stale);
        policy
    }

    /// Whether the limiter, if it is nginx's, never refuses a request of a process that keeps its budget.
    pub(super) fn never_throttled(&self) -> bool {
        let documented = LimiterKind::Nginx(Nginx::DOCUMENTED) == self.limiter.kind();
        let restarts = self.faults.iter().any(|(_, fault)| matches!(fault, Fault::Crash { .. } | Fault::Close { .. }));
        let on_time = self.latency.1 - self.latency.0 <= 450 && self.drift == 0;
        documented && self.processes == 1 && !restarts && on_time && self.budget == Some((3, 20))
    }

    fn draw_store(&mut self, rng: &mut fastrand::Rng) {
        let rate = |rng: &mut fastrand::Rng| match rng.u8(0..6) {
            0..4 => 0,
            4 => rng.u32(1..60),
            _ => rng.u32(60..500),
        };
        self.store = Some(StoreRates {
            latency: [(0, 2), (1, 20), (5, 600)][rng.usize(0..3)],
            wrong_by: if self.drift == 0 { 0 } else { rng.i64(-300_000..=300_000) },
            fails: rate(rng),
            hangs: rate(rng),
            lags: rate(rng),
            lies: rate(rng),
        });
        let end = self.faults_until;
        for _ in 0..rng.usize(0..3) {
            let from = rng.u64(0..end);
            let mood = if rng.bool() { StoreMood::Down } else { StoreMood::Silent };
            let span = [10, 60, 1_800, 3_600][rng.usize(0..4)] * SECOND;
            self.faults.push((from, Fault::Store(mood)));
            self.faults.push(((from + rng.u64(1..=span)).min(end), Fault::Store(StoreMood::Well)));
        }
        for _ in 0..rng.usize(0..3) {
            self.faults.push((rng.u64(0..end), Fault::StoreLoses));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    fn draw_faults(&mut self, rng: &mut fastrand::Rng) {
        let (processes, keys) = (self.processes, self.keys);
        let end = self.faults_until;
        let count = |rng: &mut fastrand::Rng| if rng.bool() { 0 } else { rng.usize(1..4) };
        let mut faults = Vec::new();
        for _ in 0..count(rng) {
            let mood = match rng.u8(0..6) {
                0 => Mood::Down,
                1 => Mood::Silent,
                2 => Mood::Garbled,
                3 => Mood::Sick([429, 503][rng.usize(0..2)], [0, 1, 30, 600, 9_999][rng.usize(0..5)]),
                4 => Mood::Sick([400, 401, 403, 404, 302][rng.usize(0..5)], 0),
                _ => Mood::Sick([500, 502, 504][rng.usize(0..3)], [0, 0, 20][rng.usize(0..3)]),
            };
            let from = rng.u64(0..end);
            let span = [10, 60, 1_800][rng.usize(0..3)] * SECOND;
            faults.push((from, Fault::Mood(mood)));
            faults.push(((from + rng.u64(1..=span)).min(end), Fault::Mood(Mood::Well)));
        }
        for _ in 0..count(rng) {
            faults.push((rng.u64(0..end), Fault::Lifetime([600, 3_600, 120][rng.usize(0..3)] * SECOND)));
        }
        for _ in 0..count(rng) {
            faults.push((rng.u64(0..end), Fault::Revoke { client: rng.usize(0..keys) }));
        }
        if rng.u8(0..4) == 0 {
            let from = rng.u64(0..end);
            faults.push((from, Fault::RejectAll { span: rng.u64(1..=600 * SECOND).min(end - from) }));
        }
        for _ in 0..count(rng) {
            let at = rng.u64(0..end);
            let told_within = [1, 60, 900][rng.usize(0..3)] * SECOND;
            let told_within = told_within.min(end - at).max(1);
            faults.push((at, Fault::Rotate { client: rng.usize(0..keys), told_within }));
        }
        for _ in 0..count(rng) {
            let (at, process) = (rng.u64(0..end), rng.usize(0..processes));
            let span = rng.u64(1..=900 * SECOND).min(end - at);
            faults.push((
                at,
                match rng.u8(0..7) {
                    0 => Fault::Misconfigure { process, client: rng.usize(0..keys), span },
                    1 => Fault::Crash { process, down: span },
                    2 => Fault::Close { process, down: span },
                    3 => Fault::StepWall { process, by: rng.i64(1..=7_200_000) },
                    4 => Fault::StepWall { process, by: -rng.i64(1..=7_200_000) },
                    5 => Fault::Suspend { process, span: (span * rng.u64(1..8)).min(end - at) },
                    _ => Fault::Warm { process, on: rng.bool() },
                },
            ));
        }
        faults.sort_by_key(|(at, _)| *at);
        self.faults = faults;
    }
}
