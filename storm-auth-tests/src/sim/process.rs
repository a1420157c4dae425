//! One process: a machine, the driver around it, its clocks and its callers.

use std::collections::{BTreeMap, VecDeque};

use core::time::Duration;
use http::Response;
use storm_auth_core::driver::Board;
use storm_auth_core::machine::{Acquire, Action, OpId, Output, WaiterId};
use storm_auth_core::store::{StoreFailure, StoreReply};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    Counters, Credentials, CredentialsFailure, Failure, HttpHosts, Key, KeyId, Machine, Now, Scope, TokenUrl, scope,
};

use super::clock::Clock;
use super::judge::Judge;
use super::scenario::{Scenario, Secrets};

/// A machine, driven plainly or through the board that the adapters use.
#[derive(Debug)]
pub(super) enum Engine {
    Bare(Box<Machine>),
    Board { board: Box<Board<WaiterId>>, taken: VecDeque<Output> },
}

/// A command of the machine, or a report to it.
pub(super) enum Report<'a> {
    Response(&'a Response<bytes::Bytes>),
    Failure(Failure),
}

impl Engine {
    pub(super) fn new(scenario: &Scenario, seed: u64) -> Self {
        let mut machine = Machine::new(scenario.policy(), seed);
        if scenario.store.is_some() {
            machine.share();
        }
        match scenario.board {
            false => Self::Bare(Box::new(machine)),
            true => Self::Board { board: Box::new(Board::new(machine, 2)), taken: VecDeque::new() },
        }
    }

    pub(super) fn add_key(&mut self, key: Key, now: Now) -> KeyId {
        match self {
            Self::Bare(machine) => machine.add_key(key, now),
            Self::Board { board, .. } => board.add_key(key, now).0,
        }
    }

    pub(super) fn acquire(&mut self, key: KeyId, patience: Option<Duration>, now: Now) -> Acquire {
        match self {
            Self::Bare(machine) => machine.acquire(key, patience, now),
            Self::Board { board, taken } => {
                let acquire = board.acquire(key, patience, now);
                if let Acquire::Wait(waiter) = acquire
                    && let Some(result) = board.poll_wait(waiter, waiter)
                {
                    taken.push_back(Output::Resolve(waiter, result));
                }
                acquire
            }
        }
    }

    pub(super) fn cancel(&mut self, waiter: WaiterId, now: Now) {
        match self {
            Self::Bare(machine) => machine.cancel(waiter, now),
            Self::Board { board, .. } => board.cancel(waiter, now),
        }
    }

    pub(super) fn command<T>(&mut self, now: Now, command: impl FnOnce(&mut Machine) -> T) -> T {
        match self {
            Self::Bare(machine) => command(machine),
            Self::Board { board, .. } => board.command(now, command),
        }
    }

    pub(super) fn report(&mut self, op: OpId, report: Report<'_>, now: Now) {
        let read = |response: &Response<bytes::Bytes>| {
            let (parts, bytes) = response.clone().into_parts();
            let body = ResponseBody::try_from(&bytes[..]).expect("the simulator's answers are short");
            Response::from_parts(parts, body)
        };
        match (self, report) {
            (Self::Bare(machine), Report::Response(response)) => machine.handle_response(op, &read(response), now),
            (Self::Bare(machine), Report::Failure(failure)) => machine.handle_failure(op, failure, now),
            (Self::Board { board, .. }, report) => {
                let outcome = match report {
                    Report::Response(response) => Ok(read(response)),
                    Report::Failure(failure) => Err(failure),
                };
                board.report(op, outcome, now);
            }
        }
    }

    pub(super) fn report_store(&mut self, op: OpId, result: Result<StoreReply, StoreFailure>, now: Now) {
        match self {
            Self::Bare(machine) => machine.handle_store(op, result, now),
            Self::Board { board, .. } => board.report_store(op, result, now),
        }
    }

    pub(super) fn report_credentials(&mut self, op: OpId, found: Result<Credentials, CredentialsFailure>, now: Now) {
        match self {
            Self::Bare(machine) => machine.handle_credentials(op, found, now),
            Self::Board { board, .. } => board.report_credentials(op, found, now),
        }
    }

    pub(super) fn elapse(&mut self, now: Now) {
        match self {
            Self::Bare(machine) => machine.handle_timeout(now),
            Self::Board { board, .. } => board.elapse(now),
        }
    }

    /// The next output, as a driver sees it.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        match self {
            Self::Bare(machine) => machine.poll_output(),
            Self::Board { board, taken } => {
                let work = board.take_work();
                taken.extend(work.events.into_iter().map(Output::Event));
                let looks = work.looks.into_iter().map(Action::Credentials);
                let sends = work.sends.into_iter().map(Action::Send);
                taken.extend(looks.chain(sends).map(Output::Perform));
                if work.store {
                    let stores = core::iter::from_fn(|| board.next_store());
                    taken.extend(stores.map(|request| Output::Perform(Action::Store(request))));
                }
                for waiter in work.wakes {
                    if let Some(result) = board.poll_wait(waiter, waiter) {
                        taken.push_back(Output::Resolve(waiter, result));
                    }
                }
                taken.pop_front()
            }
        }
    }

    /// When the machine is to be told the time, on its monotonic clock.
    pub(super) fn timeout(&self) -> Option<u64> {
        let timeout = match self {
            Self::Bare(machine) => machine.poll_timeout(),
            Self::Board { board, taken } if taken.is_empty() => board.poll_timeout(),
            Self::Board { .. } => return Some(0),
        };
        timeout.map(|timeout| timeout.at.as_millis())
    }

    pub(super) fn counters(&self) -> Counters {
        match self {
            Self::Bare(machine) => machine.counters(),
            Self::Board { board, .. } => board.machine().counters(),
        }
    }
}

/// One caller: it asks for a token, uses it, and asks again.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) key: usize,
    pub(super) waiting: Option<WaiterId>,
    /// The token whose rejection it asks again for.
    pub(super) replaying: Option<usize>,
    pub(super) rng: fastrand::Rng,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) clock: Clock,
    /// Which of its lives this is; whatever belongs to an earlier one is gone.
    pub(super) life: u32,
    /// `None` while it is down.
    pub(super) alive: Option<Alive>,
    pub(super) suspended_until: u64,
    /// The version of each client's secret that it was told, or that lies where it looks.
    pub(super) secrets: Vec<u64>,
    pub(super) warm: bool,
}

/// What a crash takes away.
#[derive(Debug)]
pub(super) struct Alive {
    pub(super) engine: Engine,
    pub(super) keys: Vec<KeyId>,
    pub(super) callers: Vec<Caller>,
    pub(super) by_waiter: BTreeMap<WaiterId, usize>,
    pub(super) judge: Judge,
    /// The timer that is set: its true time and its number.
    pub(super) timer: Option<u64>,
    pub(super) timer_number: u64,
    /// Timeouts since time last moved.
    pub(super) at_once: (u64, u32),
    pub(super) sends: u64,
    /// Looks where a secret lies so far.
    pub(super) looks: u64,
    /// Operations of the store so far, and when the last of them is done: they are performed one after the other.
    pub(super) errands: u64,
    pub(super) store_free_at: u64,
}

/// What every secret begins with.
pub(super) const SECRET: &str = "S3cret-0000-";

pub(super) fn secret_text(secret: u64) -> String {
    format!("{SECRET}{secret}")
}

pub(super) fn key(client: usize, secret: u64, secrets: Secrets) -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default());
    Key::new(
        url.expect("the documented URL is one"),
        credentials(client, secret, secrets),
        Scope::new(scope::LAB).expect("a known scope is one"),
    )
}

pub(super) fn credentials(client: usize, secret: u64, secrets: Secrets) -> Credentials {
    let credentials = Credentials::new(format!("client-{client}"), secret_text(secret));
    let credentials = match other(secret, secrets) {
        Some(other) => credentials.and_then(|credentials| credentials.with_next(secret_text(other))),
        None => credentials,
    };
    credentials.expect("they have no odd characters")
}

/// The secret beside this one, where a process is told two.
pub(super) fn other(secret: u64, secrets: Secrets) -> Option<u64> {
    (secrets == Secrets::Two).then_some(secret + 1)
}

/// The secret's version in a request's form.
pub(super) fn secret(form: &[u8]) -> Option<u64> {
    let form = core::str::from_utf8(form).ok()?;
    form.split('&').find_map(|field| field.strip_prefix("client_secret=")?.strip_prefix(SECRET))?.parse().ok()
}
