//! What holds a token in a process: the machine, or what a peer has in its place.

use core::time::Duration;

use http::{Response, StatusCode};
use storm_auth_core::machine::{Acquire, Action, OpId, Output, StoreRequest, WaiterId};
use storm_auth_core::store::{StoreFailure, StoreReply};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Credentials, Failure, FailureKind, HttpHosts, Key, KeyId, Machine, Now, Scope, TokenUrl, Unix, scope,
};

use super::peer::Client;
use super::plan::{Plan, Policy};

/// When the story begins, in milliseconds since the Unix epoch.
pub(super) const START: u64 = 1_700_000_000_000;

/// How long a caller waits for its token; the policy's default.
const CALLER: u64 = 30_000;

/// What became of a request.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// The token of this number; it lives for so many milliseconds.
    Token { serial: usize, life: u64 },
    /// The limiter refused it.
    Throttled(Response<bytes::Bytes>),
    /// The endpoint answered 502.
    Sick,
    /// No connection.
    Refused,
}

/// Names a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    Ours(OpId),
    Peers(u64),
}

/// What a holder wants done.
#[derive(Debug)]
pub(super) enum Wish {
    Send(Op),
    Store(StoreRequest),
}

/// The token that callers are given, and until when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Holding {
    pub(super) serial: usize,
    pub(super) until: u64,
}

/// One per process and life. A driver calls it, and does for it what it asks for.
#[derive(Debug)]
pub(super) enum Holder {
    Ours(Box<Ours>),
    Peers(Client),
}

impl Holder {
    pub(super) fn new(plan: &Plan, seed: u64, at: u64) -> Self {
        match &plan.policy {
            Policy::Storm(policy) => {
                Self::Ours(Box::new(Ours::new((**policy).clone(), plan.store.is_some(), seed, at)))
            }
            Policy::Peer(peer) => Self::Peers(Client::new(peer, seed)),
        }
    }

    /// A caller asks for the token.
    pub(super) fn call(&mut self, at: u64) {
        match self {
            Self::Ours(ours) => ours.call(at),
            Self::Peers(client) => client.call(at),
        }
    }

    /// Time has passed.
    pub(super) fn elapse(&mut self, at: u64) {
        match self {
            Self::Ours(ours) => ours.machine.handle_timeout(now(at)),
            Self::Peers(client) => client.elapse(at),
        }
    }

    pub(super) fn report(&mut self, op: Op, news: &News, at: u64) {
        match (self, op) {
            (Self::Ours(ours), Op::Ours(op)) => ours.report(op, news, at),
            (Self::Peers(client), Op::Peers(op)) => client.report(op, news, at),
            _ => unreachable!("a request belongs to the holder that sent it"),
        }
    }

    /// The store has done what it was asked for, or could not.
    pub(super) fn report_store(&mut self, op: OpId, result: Result<StoreReply, StoreFailure>, at: u64) {
        if let Self::Ours(ours) = self {
            ours.machine.handle_store(op, result, now(at));
        }
    }

    /// The next thing that it wants done; to be asked until there is none.
    pub(super) fn next_wish(&mut self) -> Option<Wish> {
        match self {
            Self::Ours(ours) => ours.next_wish(),
            Self::Peers(client) => client.next_request().map(|op| Wish::Send(Op::Peers(op))),
        }
    }

    pub(super) fn holding(&self, at: u64) -> Option<Holding> {
        match self {
            Self::Ours(ours) => ours.holding(at),
            Self::Peers(client) => client.holding(at),
        }
    }

    /// When it wants to be told the time.
    pub(super) fn timeout(&self) -> Option<u64> {
        match self {
            Self::Ours(ours) => ours.machine.poll_timeout().map(|timeout| timeout.at.as_millis()),
            Self::Peers(client) => client.timeout(),
        }
    }

    /// From when on a call may change something, if nothing else happens; `None` while nothing depends on calls.
    pub(super) fn look(&self, at: u64) -> Option<u64> {
        match self {
            Self::Ours(ours) => ours.look(at),
            Self::Peers(client) => client.look(at),
        }
    }
}

/// A process of ours, with one caller at a time where there is no token: a second one would wait beside it.
#[derive(Debug)]
pub(super) struct Ours {
    machine: Machine,
    key: KeyId,
    waiting: Option<WaiterId>,
    /// Until when callers fail anyway, because none would wait for as long.
    hopeless_until: u64,
}

impl Ours {
    fn new(policy: storm_auth_core::Policy, shares: bool, seed: u64, at: u64) -> Self {
        let mut machine = Machine::new(policy, seed);
        if shares {
            machine.share();
        }
        let key = machine.add_key(key(), now(at));
        Self { machine, key, waiting: None, hopeless_until: 0 }
    }

    fn call(&mut self, at: u64) {
        match self.machine.acquire(self.key, None, now(at)) {
            Acquire::Ready(_) => {}
            Acquire::Wait(waiter) => self.waiting = Some(waiter),
            Acquire::Failed(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &AcquireError) {
        let retry_at = match error {
            AcquireError::RateLimited { retry_at, .. } | AcquireError::Unavailable { retry_at, .. } => *retry_at,
            _ => Unix::default(),
        };
        self.hopeless_until = retry_at.as_millis().saturating_sub(START).saturating_sub(CALLER);
    }

    fn report(&mut self, op: OpId, news: &News, at: u64) {
        let now = now(at);
        let response = match news {
            News::Refused => {
                let failure = Failure::new(FailureKind::Connect, "nobody listens");
                return self.machine.handle_failure(op, failure, now);
            }
            News::Token { serial, life } => {
                let seconds = life / 1_000;
                let body = format!(r#"{{"access_token":"{serial}","expires_in":{seconds},"token_type":"Bearer"}}"#);
                Response::new(read(body.as_bytes()))
            }
            News::Throttled(refusal) => {
                let (parts, body) = refusal.clone().into_parts();
                Response::from_parts(parts, read(&body))
            }
            News::Sick => {
                let mut response = Response::new(read(b"<html>502 Bad Gateway</html>"));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        };
        self.machine.handle_response(op, &response, now);
    }

    fn next_wish(&mut self) -> Option<Wish> {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => return Some(Wish::Send(Op::Ours(send.op))),
                Output::Perform(Action::Store(request)) => return Some(Wish::Store(request)),
                Output::Resolve(waiter, result) => {
                    self.waiting.take_if(|waiting| *waiting == waiter);
                    if let Err(error) = &result {
                        self.failed(error);
                    }
                }
                Output::Perform(Action::Credentials(_)) | Output::Event(_) => {}
            }
        }
        None
    }

    fn holding(&self, at: u64) -> Option<Holding> {
        let peek = self.machine.peek(self.key, now(at))?;
        let serial = peek.token.expose().parse().expect("the server's tokens are their numbers");
        Some(Holding { serial, until: peek.hard.mono.as_millis() })
    }

    fn look(&self, at: u64) -> Option<u64> {
        match self.machine.peek(self.key, now(at)) {
            Some(peek) => Some(peek.look.mono.as_millis()),
            None if self.waiting.is_some() => None,
            None => Some(self.hopeless_until),
        }
    }
}

fn read(bytes: &[u8]) -> ResponseBody {
    ResponseBody::try_from(bytes).expect("the answers are short")
}

fn now(at: u64) -> Now {
    Now::from_millis(at, START + at)
}

fn key() -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default());
    Key::new(
        url.expect("the documented URL is one"),
        Credentials::new("shop", "S3cret").expect("they have no odd characters"),
        Scope::new(scope::LAB).expect("a known scope is one"),
    )
}

/// A span in whole milliseconds.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
