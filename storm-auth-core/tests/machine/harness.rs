//! A machine, both clocks, and the wire, all in one hand.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use http::{HeaderValue, Response, header};
use storm_auth_core::machine::{
    Acquire, Action, CredentialsRequest, OpId, Output, StoreRequest, TokenRequest, WaiterId,
};
use storm_auth_core::store::{StoreCommand, StoreFailure, StoreReply};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Cause, Credentials, CredentialsFailure, Event, Failure, FailureKind, HttpHosts, Key, KeyId,
    KeyStatus, Machine, Mono, Now, Policy, Scope, Token, TokenUrl, Unix, scope,
};

/// Where both clocks start. Neither is zero, so that nothing can rest on it.
const MONO: u64 = 5_000_000;
const UNIX: u64 = 1_700_000_000_000;

/// Timeouts in a row that may come without time passing. More of them is a livelock.
const TIMEOUTS_AT_ONCE: u32 = 1_000;

/// Calls of `drive` in one story. More of them wait for something that never comes.
const DRIVES: u32 = 100_000;

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An answer with a token that lives for `lifetime` seconds.
pub(crate) fn granted(token: &str, lifetime: u64) -> Response<ResponseBody> {
    json(200, &format!(r#"{{"access_token":"{token}","expires_in":{lifetime},"token_type":"Bearer","scope":"lab"}}"#))
}

/// The answer that an OAuth server gives to a request it refuses.
pub(crate) fn oauth_error(status: u16, error: &str) -> Response<ResponseBody> {
    json(status, &format!(r#"{{"error":"{error}"}}"#))
}

/// An answer that has only a status.
pub(crate) fn status(status: u16) -> Response<ResponseBody> {
    json(status, "")
}

pub(crate) fn json(status: u16, body: &str) -> Response<ResponseBody> {
    let body = ResponseBody::try_from(body.as_bytes()).unwrap();
    Response::builder().status(status).body(body).unwrap()
}

pub(crate) fn retry_after(mut response: Response<ResponseBody>, field: &str) -> Response<ResponseBody> {
    response.headers_mut().append(header::RETRY_AFTER, HeaderValue::from_str(field).unwrap());
    response
}

pub(crate) fn failure(kind: FailureKind) -> Failure {
    Failure::new(kind, "on purpose")
}

pub(crate) fn key(client_id: &str, secret: &str) -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default()).unwrap();
    Key::new(url, Credentials::new(client_id, secret).unwrap(), Scope::new(scope::LAB).unwrap())
}

/// A machine in virtual time.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) machine: Machine,
    now: Now,
    /// Requests that went out and were not answered yet, oldest first.
    pub(crate) sends: VecDeque<TokenRequest>,
    /// When each request went out, in milliseconds since the start, and whose it was.
    pub(crate) wire: Vec<(u64, KeyId)>,
    pub(crate) events: Vec<Event>,
    results: BTreeMap<WaiterId, Result<Token, AcquireError>>,
    /// Everything that came out, with its time, as `Debug` shows it.
    pub(crate) transcript: Vec<String>,
    drives: u32,
    /// Operations for the store that were not performed yet, oldest first.
    pub(crate) stores: VecDeque<StoreRequest>,
    /// Looks where credentials come from that were not reported yet, oldest first.
    pub(crate) looks: VecDeque<CredentialsRequest>,
    /// The bytes of each request's body, which `Debug` does not show.
    pub(crate) bodies: Vec<Vec<u8>>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_policy(Policy::default())
    }

    pub(crate) fn with_policy(policy: Policy) -> Self {
        Self::seeded(policy, 7)
    }

    pub(crate) fn seeded(policy: Policy, seed: u64) -> Self {
        Self {
            machine: Machine::new(policy, seed),
            now: Now::from_millis(MONO, UNIX),
            sends: VecDeque::new(),
            wire: Vec::new(),
            events: Vec::new(),
            results: BTreeMap::new(),
            transcript: Vec::new(),
            drives: 0,
            stores: VecDeque::new(),
            looks: VecDeque::new(),
            bodies: Vec::new(),
        }
    }

    /// A machine with one key.
    pub(crate) fn with_key() -> (Self, KeyId) {
        let mut lab = Self::new();
        let key = lab.key("shop");
        (lab, key)
    }

    /// A machine with one key whose token `first` was sent for and granted at the start.
    pub(crate) fn with_token(lifetime: u64) -> (Self, KeyId) {
        let (mut lab, key) = Self::with_key();
        lab.fetch(key, "first", lifetime);
        (lab, key)
    }

    pub(crate) fn key(&mut self, client_id: &str) -> KeyId {
        let id = self.machine.add_key(key(client_id, "S3cret"), self.now);
        self.drain();
        id
    }

    // The clocks

    pub(crate) fn now(&self) -> Now {
        self.now
    }

    /// Milliseconds since the start, by the monotonic clock.
    pub(crate) fn elapsed(&self) -> u64 {
        self.now.mono.as_millis() - MONO
    }

    /// The point that lies `millis` after the start, by the monotonic clock.
    pub(crate) fn mono(&self, millis: u64) -> Mono {
        Mono::from_millis(MONO + millis)
    }

    /// The point that lies `millis` after the start, by the wall clock.
    pub(crate) fn unix(&self, millis: u64) -> Unix {
        Unix::from_millis(UNIX + millis)
    }

    /// Time passes, and nobody tells the machine.
    pub(crate) fn advance(&mut self, span: Duration) {
        self.now = Now { mono: self.now.mono + span, unix: self.now.unix + span };
    }

    /// The same, to a point since the start.
    pub(crate) fn advance_to(&mut self, millis: u64) {
        let span = self.mono(millis).since(self.now.mono);
        self.advance(span);
    }

    /// The wall clock is set forward.
    pub(crate) fn wall_forward(&mut self, span: Duration) {
        self.now.unix = self.now.unix + span;
    }

    /// The wall clock is set back.
    pub(crate) fn wall_back(&mut self, span: Duration) {
        self.now.unix = self.now.unix - span;
    }

    /// The process is suspended: the monotonic clock stands still.
    pub(crate) fn suspend(&mut self, span: Duration) {
        self.wall_forward(span);
    }

    /// Time passes as in a driver: from one `poll_timeout` to the next.
    pub(crate) fn drive(&mut self, span: Duration) {
        let end = self.elapsed() + u64::try_from(span.as_millis()).unwrap();
        self.drive_to(end);
    }

    /// The same, to a point since the start.
    pub(crate) fn drive_to(&mut self, millis: u64) {
        let end = self.mono(millis);
        self.drives += 1;
        assert!(self.drives < DRIVES, "nothing comes any more at {} ms", self.elapsed());
        let mut at_once = 0;
        while let Some(timeout) = self.machine.poll_timeout()
            && timeout.at <= end
        {
            if timeout.at > self.now.mono {
                self.advance(timeout.at.since(self.now.mono));
                at_once = 0;
            }
            at_once += 1;
            assert!(at_once < TIMEOUTS_AT_ONCE, "livelock at {} ms: {timeout:?}", self.elapsed());
            self.tick();
        }
        self.advance_to(millis);
    }

    // Commands

    /// Tells the machine the time.
    pub(crate) fn tick(&mut self) {
        self.machine.handle_timeout(self.now);
        self.drain();
    }

    pub(crate) fn acquire(&mut self, key: KeyId) -> Acquire {
        let acquire = self.machine.acquire(key, None, self.now);
        self.drain();
        acquire
    }

    pub(crate) fn acquire_within(&mut self, key: KeyId, patience: Duration) -> Acquire {
        let acquire = self.machine.acquire(key, Some(patience), self.now);
        self.drain();
        acquire
    }

    /// Calls, and gets a token at once.
    #[track_caller]
    pub(crate) fn token(&mut self, key: KeyId) -> String {
        match self.acquire(key) {
            Acquire::Ready(token) => token.expose().to_owned(),
            other => panic!("no token at {} ms: {other:?}", self.elapsed()),
        }
    }

    /// Calls, and has to wait.
    #[track_caller]
    pub(crate) fn wait(&mut self, key: KeyId) -> WaiterId {
        self.wait_within(key, secs(30))
    }

    #[track_caller]
    pub(crate) fn wait_within(&mut self, key: KeyId, patience: Duration) -> WaiterId {
        match self.acquire_within(key, patience) {
            Acquire::Wait(waiter) => waiter,
            other => panic!("nothing to wait for at {} ms: {other:?}", self.elapsed()),
        }
    }

    /// Calls, and fails at once.
    #[track_caller]
    pub(crate) fn error(&mut self, key: KeyId) -> AcquireError {
        match self.acquire(key) {
            Acquire::Failed(error) => error,
            other => panic!("no error at {} ms: {other:?}", self.elapsed()),
        }
    }

    /// Gets a token for a key that has none, at this very moment.
    #[track_caller]
    pub(crate) fn fetch(&mut self, key: KeyId, token: &str, lifetime: u64) -> Token {
        let waiter = self.wait(key);
        self.answer(granted(token, lifetime));
        self.result(waiter).unwrap()
    }

    pub(crate) fn cancel(&mut self, waiter: WaiterId) {
        self.machine.cancel(waiter, self.now);
        self.drain();
    }

    // The wire

    /// Answers the oldest request.
    #[track_caller]
    pub(crate) fn answer(&mut self, response: Response<ResponseBody>) -> OpId {
        let op = self.sends.pop_front().expect("a request went out").op;
        self.answer_op(op, response);
        op
    }

    /// Answers the request of one key.
    #[track_caller]
    pub(crate) fn answer_key(&mut self, key: KeyId, response: Response<ResponseBody>) {
        let op = self.take_send(key).op;
        self.answer_op(op, response);
    }

    /// An answer for an operation, whatever became of it.
    pub(crate) fn answer_op(&mut self, op: OpId, response: Response<ResponseBody>) {
        self.machine.handle_response(op, &response, self.now);
        self.drain();
    }

    /// The oldest request gets no answer.
    #[track_caller]
    pub(crate) fn fail(&mut self, kind: FailureKind) {
        let op = self.sends.pop_front().expect("a request went out").op;
        self.machine.handle_failure(op, failure(kind), self.now);
        self.drain();
    }

    #[track_caller]
    pub(crate) fn take_send(&mut self, key: KeyId) -> TokenRequest {
        let place = self.sends.iter().position(|send| send.key == key).expect("a request of this key went out");
        self.sends.remove(place).unwrap()
    }

    // The store

    /// A machine that shares, with one key; `seed` is what tells processes apart.
    pub(crate) fn sharing(seed: u64) -> (Self, KeyId) {
        let mut lab = Self::seeded(Policy::default(), seed);
        lab.machine.share();
        let key = lab.key("shop");
        (lab, key)
    }

    /// What the store is asked for, oldest first.
    #[track_caller]
    pub(crate) fn asked(&mut self) -> StoreRequest {
        self.stores.pop_front().expect("the store is asked for something")
    }

    /// The store answers the oldest operation, and what it was asked for is returned.
    #[track_caller]
    pub(crate) fn reply(&mut self, reply: StoreReply) -> StoreCommand {
        let request = self.asked();
        self.machine.handle_store(request.op, Ok(reply), self.now);
        self.drain();
        request.store_op.command
    }

    /// The store cannot do the oldest operation.
    #[track_caller]
    pub(crate) fn store_fails(&mut self) {
        let op = self.asked().op;
        self.machine.handle_store(op, Err(StoreFailure::new("it burns")), self.now);
        self.drain();
    }

    // Where credentials come from

    /// The oldest look there finds this.
    #[track_caller]
    pub(crate) fn found(&mut self, found: Result<Credentials, CredentialsFailure>) {
        let op = self.looks.pop_front().expect("it is looked where the credentials come from").op;
        self.machine.handle_credentials(op, found, self.now);
        self.drain();
    }

    /// How many requests went out so far.
    pub(crate) fn requests(&self) -> usize {
        self.wire.len()
    }

    /// When the requests went out, in milliseconds since the start.
    pub(crate) fn times(&self) -> Vec<u64> {
        self.wire.iter().map(|(at, _)| *at).collect()
    }

    // What came of it

    /// The result of a waiter, once.
    #[track_caller]
    pub(crate) fn result(&mut self, waiter: WaiterId) -> Result<Token, AcquireError> {
        self.results.remove(&waiter).expect("the waiter was resolved")
    }

    pub(crate) fn is_resolved(&self, waiter: WaiterId) -> bool {
        self.results.contains_key(&waiter)
    }

    pub(crate) fn take_results(&mut self) -> BTreeMap<WaiterId, Result<Token, AcquireError>> {
        core::mem::take(&mut self.results)
    }

    #[track_caller]
    pub(crate) fn status(&self, key: KeyId) -> KeyStatus {
        self.machine.key_status(key, self.now).expect("the key is known")
    }

    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.transcript.push(format!("{} {output:?}", self.elapsed()));
            match output {
                Output::Perform(Action::Send(send)) => {
                    self.wire.push((self.elapsed(), send.key));
                    self.bodies.push(send.request.body().as_bytes().to_vec());
                    self.sends.push_back(send);
                }
                Output::Perform(Action::Store(request)) => self.stores.push_back(request),
                Output::Perform(Action::Credentials(request)) => self.looks.push_back(request),
                Output::Resolve(waiter, result) => {
                    assert!(self.results.insert(waiter, result).is_none(), "{waiter:?} was resolved twice");
                }
                Output::Event(event) => self.events.push(event),
            }
        }
    }
}

/// The cause of an error that says that the endpoint is not available.
#[track_caller]
pub(crate) fn cause(error: AcquireError) -> Cause {
    match error {
        AcquireError::Unavailable { cause, .. } => cause,
        other => panic!("another error: {other:?}"),
    }
}
