//! The machine and the model side by side: each command goes to both, and what came of it is compared.

use core::fmt::Debug;
use std::collections::BTreeMap;
use std::time::Duration;

use http::Response;
use storm_auth_core::machine::{self, Acquire, Action, OpId, Output, WaiterId};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Budget, Cause, Credentials, CredentialsFailure, Failure, FailureKind, HttpHosts, Invalidated, Key,
    KeyId, Machine, Now, Policy, Scope, Token, TokenId, TokenUrl, scope,
};

use super::reference::{
    self, Activity, Answer, Draws, KeyStatus, Kind, Model, Rejection, Reply, Request, Rules, Says, Status, Tally, Time,
    Verdict,
};

/// Where both clocks start. Neither is zero, so that nothing can rest on it.
const START: Time = Time { mono: 5_000_000, wall: 1_700_000_000_000 };

/// The clients whose keys are added at the start; the last ones are not.
pub(crate) const CLIENTS: [&str; 5] = ["shop", "erp", "crm", "feed", "bot"];
const AT_THE_START: usize = 3;

/// A user's choices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Requests a minute, a divisor of 60, and a burst.
    pub(crate) budget: Option<(u32, u32)>,
    /// How long an expired token is served in place of an error, in seconds.
    pub(crate) stale: u64,
    pub(crate) seed: u64,
}

/// What happens to a machine. Keys, waiters, requests and tokens are named by a number that is taken modulo those there are.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Acquire {
        key: usize,
        patience: Option<u64>,
    },
    Cancel {
        waiter: usize,
    },
    RejectCurrent {
        key: usize,
    },
    /// One that was seen before, of any key: replaced, rejected, expired or, by chance, current.
    RejectSeen {
        token: usize,
    },
    /// One that this machine never saw.
    RejectForeign,
    SetSecret {
        key: usize,
        secret: u8,
        /// The one beside it.
        next: Option<u8>,
    },
    /// The key's secrets lie somewhere.
    Renew {
        key: usize,
    },
    /// One who was sent to where secrets lie comes back: with secrets, another client's, or without any.
    ComeBack {
        look: usize,
        with: Found,
    },
    /// One comes back for the second time, or whose key is gone.
    ComeBackLate {
        look: usize,
    },
    SetOtherClient {
        key: usize,
    },
    AddKey {
        client: usize,
        secret: u8,
        next: Option<u8>,
    },
    RemoveKey {
        key: usize,
    },
    KeepWarm {
        key: usize,
    },
    KeepCold {
        key: usize,
    },
    ShutDown,
    Answer {
        request: usize,
        with: Wire,
    },
    /// A report for a request that is over.
    AnswerLate {
        request: usize,
        with: Wire,
    },
    /// Time passes, and the driver tells the machine whenever it asked for it.
    Advance {
        span: u64,
    },
    /// Time passes, and nobody tells the machine: a frozen process.
    Sleep {
        span: u64,
    },
    /// The wall clock alone goes on: a suspend, or a clock that is set.
    WallForward {
        span: u64,
    },
    WallBack {
        span: u64,
    },
}

/// What lies where a key's secrets are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Secrets { secret: u8, next: Option<u8> },
    AnotherClients,
    Nothing,
}

/// What comes of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire {
    /// A lifetime in seconds.
    Token {
        lifetime: u64,
        retry_after: Option<u64>,
    },
    /// The token that the key was given before.
    SameToken {
        lifetime: u64,
    },
    Error {
        status: u16,
        error: Option<&'static str>,
        retry_after: Option<u64>,
    },
    /// A 200 without a usable token.
    Unusable,
    Fail {
        kind: FailureKind,
    },
}

impl Wire {
    /// R17, as literal as it stands.
    fn class(status: u16, error: Option<&str>) -> Says {
        match (status, error) {
            (429 | 503, _) => Says::Throttle,
            (500.., _) => Says::Nonsense,
            (_, Some("invalid_client")) => Says::WrongClient,
            (_, Some("invalid_scope")) | (400.., Some(_)) | (300..400 | 400 | 401 | 404 | 405, None) => {
                Says::Misconfigured
            }
            _ => Says::Nonsense,
        }
    }
}

/// Reads from the machine what it drew.
struct Drawn<'m> {
    machine: &'m Machine,
    keys: &'m BTreeMap<u64, KeyId>,
    now: Now,
}

impl Draws for Drawn<'_> {
    /// The first moment at which the key would no longer be backing off; asked of a getter, which changes nothing.
    fn back_off(&self, key: u64) -> u64 {
        let backs_off = |span: u64| {
            let then = Now { mono: self.now.mono + Duration::from_millis(span), ..self.now };
            let status = self.machine.key_status(self.keys[&key], then).expect("the key is there");
            status.activity == machine::Activity::BackingOff
        };
        let (mut least, mut most) = (0, 1 << 27);
        while least < most {
            let middle = (least + most) / 2;
            match backs_off(middle) {
                true => least = middle + 1,
                false => most = middle,
            }
        }
        least
    }

    fn refresh(&self, key: u64, from: Time) -> u64 {
        let then = Now::from_millis(from.mono, from.wall);
        let status = self.machine.key_status(self.keys[&key], then).expect("the key is there");
        status.refresh_at.expect("it has a token").as_millis() - from.wall
    }

    fn gate(&self) -> u64 {
        let until = self.machine.status(self.now).gate_closed_until.expect("the gate is closed");
        until.as_millis() - self.now.unix.as_millis()
    }

    fn hold(&self) -> u64 {
        let until = self.machine.status(self.now).retries_held_until.expect("retries are held back");
        until.as_millis() - self.now.unix.as_millis()
    }
}

pub(crate) struct Stage {
    machine: Machine,
    model: Model,
    now: Time,
    keys: BTreeMap<u64, KeyId>,
    /// Requests that are not answered yet, by ticket; and those that were.
    under_way: Vec<(OpId, Request)>,
    over: Vec<(OpId, Request)>,
    /// Who was sent to where secrets lie and for which key; and those who have come back, or whose key is gone.
    looks: Vec<(OpId, u64)>,
    looked: Vec<OpId>,
    waiters: BTreeMap<WaiterId, u64>,
    /// All tokens that came out of the machine: whose, and their text.
    seen: Vec<(TokenId, String)>,
    /// The last text that was issued to each key.
    issued: BTreeMap<u64, String>,
    texts: u64,
    /// How many sends and results were compared.
    pub(crate) compared: (usize, usize),
}

impl Stage {
    pub(crate) fn new(setting: Setting) -> Self {
        let mut policy = Policy::default();
        policy.budget = match setting.budget {
            None => Budget::unlimited(),
            Some((per_minute, burst)) => Budget::per_minute(per_minute, burst),
        };
        policy.serve_stale_on_error = Duration::from_secs(setting.stale);
        let rules = Rules {
            budget: setting.budget.map(|(per_minute, burst)| (per_minute.into(), burst.into())),
            patience: 30_000,
            early: 0.75,
            late: 0.94,
            stale: setting.stale * 1_000,
        };
        let mut stage = Self {
            machine: Machine::new(policy, setting.seed),
            model: Model::new(rules),
            now: START,
            keys: BTreeMap::new(),
            under_way: Vec::new(),
            over: Vec::new(),
            looks: Vec::new(),
            looked: Vec::new(),
            waiters: BTreeMap::new(),
            seen: Vec::new(),
            issued: BTreeMap::new(),
            texts: 0,
            compared: (0, 0),
        };
        (0..AT_THE_START).for_each(|client| stage.play(&Command::AddKey { client, secret: 0, next: None }));
        stage
    }

    pub(crate) fn play(&mut self, command: &Command) {
        let now = self.machine_now();
        match *command {
            Command::Acquire { key, patience } => {
                let Some((id, key)) = self.some_key(key) else { return };
                let acquired = self.machine.acquire(key, patience.map(Duration::from_millis), now);
                let expected = self.with_model(|model, now, draws| model.acquire(id, patience, now, draws));
                self.compare_acquire(&acquired, expected);
            }
            Command::Cancel { waiter } => {
                let Some((waiter, number)) = pick(self.waiters.iter(), waiter).map(|(id, number)| (*id, *number))
                else {
                    return;
                };
                self.waiters.remove(&waiter);
                self.machine.cancel(waiter, now);
                self.model.cancel(number, self.now);
                // Twice is once.
                self.machine.cancel(waiter, now);
            }
            Command::RejectCurrent { key } => {
                let Some((_, key)) = self.some_key(key) else { return };
                let Some(peek) = self.machine.peek(key, now) else { return };
                self.reject(peek.token.id(), peek.token.expose());
                assert!(self.machine.peek(key, now).is_none_or(|new| new.token.id() != peek.token.id()));
            }
            Command::RejectSeen { token } => {
                let Some((token, text)) = pick(self.seen.iter(), token).cloned() else { return };
                self.reject(token, &text);
            }
            Command::RejectForeign => self.reject(Token::fake("foreign").id(), "foreign"),
            Command::SetSecret { key, secret, next } => {
                let Some((id, key)) = self.some_key(key) else { return };
                let client = self.client(key);
                let set = self.machine.set_credentials(key, credentials(&client, secret, next), now);
                let (secret, next) = texts(secret, next);
                assert_eq!(set.is_ok(), self.model.set_secret(id, &secret, next.as_deref(), self.now));
            }
            Command::Renew { key } => {
                let Some((id, key)) = self.some_key(key) else { return };
                self.machine.renew_credentials(key, now);
                self.model.lie_somewhere(id, self.now);
            }
            Command::ComeBack { look, with } => {
                if self.looks.is_empty() {
                    return;
                }
                let (op, id) = self.looks.remove(look % self.looks.len());
                self.looked.push(op);
                let client = self.client(self.keys[&id]);
                let nothing = || CredentialsFailure::new("on purpose");
                let (found, secrets) = match with {
                    Found::Secrets { secret, next } => {
                        (Ok(credentials(&client, secret, next)), Some(texts(secret, next)))
                    }
                    Found::AnotherClients => (Ok(credentials("another", 9, None)), None),
                    Found::Nothing => (Err(nothing()), None),
                };
                self.machine.handle_credentials(op, found, now);
                self.with_model(|model, now, draws| {
                    let secrets = secrets.as_ref().map(|(secret, next)| (&**secret, next.as_deref()));
                    model.come_back(id, secrets, now, draws);
                });
            }
            Command::ComeBackLate { look } => {
                let Some(op) = pick(self.looked.iter(), look).copied() else { return };
                self.machine.handle_credentials(op, Ok(credentials("shop", 9, None)), now);
                self.with_model(|model, now, draws| model.hear_late(now, draws));
            }
            Command::SetOtherClient { key } => {
                let Some((_, key)) = self.some_key(key) else { return };
                assert!(self.machine.set_credentials(key, credentials("another", 9, None), now).is_err());
            }
            Command::AddKey { client, secret, next } => {
                let client = CLIENTS[client % CLIENTS.len()];
                let url =
                    TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default()).unwrap();
                let key = Key::new(url, credentials(client, secret, next), Scope::new(scope::LAB).unwrap());
                let key = self.machine.add_key(key, now);
                let (secret, next) = texts(secret, next);
                assert_eq!(key.index(), self.model.add_key(client, &secret, next.as_deref(), self.now));
                self.keys.insert(key.index(), key);
            }
            Command::RemoveKey { key } => {
                let Some((id, key)) = self.some_key(key) else { return };
                self.machine.remove_key(key, now);
                self.model.remove_key(id);
                self.retire(|request| request.key == id);
                let gone = self.looks.extract_if(.., |(_, key)| *key == id);
                self.looked.extend(gone.map(|(op, _)| op));
            }
            Command::KeepWarm { key } => {
                let Some((id, key)) = self.some_key(key) else { return };
                self.machine.keep_warm(key, now);
                self.with_model(|model, now, draws| model.keep_warm(id, now, draws));
            }
            Command::KeepCold { key } => {
                let Some((id, key)) = self.some_key(key) else { return };
                self.machine.keep_cold(key, now);
                self.model.keep_cold(id, self.now);
            }
            Command::ShutDown => {
                self.machine.shut_down(now);
                self.model.shut_down(self.now);
            }
            Command::Answer { request, with } => {
                if self.under_way.is_empty() {
                    return;
                }
                let request = request % self.under_way.len();
                let (op, request) = self.under_way.remove(request);
                self.over.push((op, request.clone()));
                self.report(op, &request, with);
            }
            Command::AnswerLate { request, with } => {
                let Some((op, request)) = pick(self.over.iter(), request).cloned() else { return };
                self.report(op, &request, with);
            }
            Command::Advance { span } => return self.advance(span),
            Command::Sleep { span } => {
                self.now = Time { mono: self.now.mono + span, wall: self.now.wall + span };
            }
            Command::WallForward { span } => self.now.wall += span,
            Command::WallBack { span } => self.now.wall = self.now.wall.saturating_sub(span),
        }
        self.compare();
    }

    /// From one deadline of the machine to the next.
    pub(crate) fn advance(&mut self, span: u64) {
        let end = self.now.mono + span;
        let mut at_once = 0;
        while let Some(timeout) = self.machine.poll_timeout()
            && timeout.at.as_millis() <= end
        {
            let step = timeout.at.as_millis().saturating_sub(self.now.mono);
            at_once = if step > 0 { 0 } else { at_once + 1 };
            assert!(at_once < 100, "a livelock at {:?}: {timeout:?}", self.now);
            self.now = Time { mono: self.now.mono + step, wall: self.now.wall + step };
            self.machine.handle_timeout(self.machine_now());
            self.with_model(Model::tick);
            self.compare();
        }
        let rest = end - self.now.mono;
        self.now = Time { mono: end, wall: self.now.wall + rest };
        self.compare();
    }

    /// Left alone, all who wait are resolved, and nothing is under way any more.
    pub(crate) fn come_to_rest(&mut self) {
        for key in self.keys.values().copied().collect::<Vec<_>>() {
            while self.machine.poll_change().is_some() {}
            for _ in 0..200 {
                self.machine.keep_cold(key, self.machine_now());
                self.model.keep_cold(key.index(), self.now);
            }
        }
        self.compare();
        self.advance(3_600_000 + 420_000 + 600_000);
        assert!(self.waiters.is_empty(), "these wait for ever: {:?}", self.waiters);
        assert!(self.machine.is_idle());
        let counters = self.machine.counters();
        let outcomes = [
            counters.granted,
            counters.throttled,
            counters.refused,
            counters.unusable,
            counters.unconnected,
            counters.timed_out,
            counters.broken,
            counters.aborted,
        ];
        assert!(outcomes.iter().sum::<u64>() <= counters.requests);
    }

    /// The client id of a key; of one that is gone, any.
    fn client(&self, key: KeyId) -> String {
        self.machine.key(key).map_or("gone", |key| key.credentials().client_id()).to_owned()
    }

    fn machine_now(&self) -> Now {
        Now::from_millis(self.now.mono, self.now.wall)
    }

    /// Keys that were removed are among them.
    fn some_key(&self, number: usize) -> Option<(u64, KeyId)> {
        pick(self.keys.iter(), number).map(|(id, key)| (*id, *key))
    }

    fn with_model<T>(&mut self, call: impl FnOnce(&mut Model, Time, &dyn Draws) -> T) -> T {
        let draws = Drawn { machine: &self.machine, keys: &self.keys, now: self.machine_now() };
        call(&mut self.model, self.now, &draws)
    }

    fn reject(&mut self, token: TokenId, text: &str) {
        let id = (token != Token::fake("foreign").id()).then(|| token.key().index());
        let became = self.machine.invalidate(token, self.machine_now());
        let expected = self.with_model(|model, now, draws| model.invalidate(id, text, now, draws));
        let became = match became {
            Invalidated::Dropped => Rejection::Dropped,
            Invalidated::HeldOff => Rejection::HeldOff,
            Invalidated::NotCurrent => Rejection::NotCurrent,
        };
        assert_eq!(became, expected, "what became of {text}");
    }

    fn report(&mut self, op: OpId, request: &Request, with: Wire) {
        let now = self.machine_now();
        let (status, body, says, retry_after) = match with {
            Wire::Token { lifetime, retry_after } => {
                self.texts += 1;
                let text = format!("token-{}", self.texts);
                self.issued.insert(request.key, text.clone());
                (200, token_body(&text, lifetime), Says::Token { text, lifetime }, retry_after)
            }
            Wire::SameToken { lifetime } => {
                let text = self.issued.get(&request.key).cloned().unwrap_or_else(|| "token-0".to_owned());
                (200, token_body(&text, lifetime), Says::Token { text, lifetime }, None)
            }
            Wire::Error { status, error, retry_after } => {
                let body = error.map_or_else(String::new, |error| format!(r#"{{"error":"{error}"}}"#));
                (status, body, Wire::class(status, error), retry_after)
            }
            Wire::Unusable => (200, r#"{"access_token":"two words"}"#.to_owned(), Says::Nonsense, None),
            Wire::Fail { kind } => {
                self.machine.handle_failure(op, Failure::new(kind, "on purpose"), now);
                let (ticket, kind) = (request.ticket, kind_of(kind));
                return self.with_model(|model, now, draws| model.fail(ticket, kind, now, draws));
            }
        };
        let mut response = Response::builder().status(status);
        if let Some(seconds) = retry_after {
            response = response.header("retry-after", seconds);
        }
        let response = response.body(ResponseBody::try_from(body.as_bytes()).unwrap()).unwrap();
        self.machine.handle_response(op, &response, now);
        let reply = Reply { says, retry_after };
        let ticket = request.ticket;
        self.with_model(|model, now, draws| model.answer(ticket, &reply, now, draws));
    }

    fn compare_acquire(&mut self, acquired: &Acquire, expected: Answer) {
        match (acquired, expected) {
            (Acquire::Wait(waiter), Answer::Later(number)) => {
                self.waiters.insert(*waiter, number);
            }
            (Acquire::Ready(token), Answer::Now(verdict)) => {
                self.see(token);
                assert_eq!(Verdict::Token(token.expose().to_owned()), verdict, "at {:?}", self.now);
            }
            (Acquire::Failed(error), Answer::Now(verdict)) => {
                assert_eq!(verdict_of(error), verdict, "at {:?}", self.now);
                // R27, R36: what a caller is told lies ahead.
                assert!(error.retry_at().is_none_or(|at| at.as_millis() >= self.now.wall), "{error:?}");
            }
            (acquired, expected) => panic!("at {:?}: {acquired:?}, and not {expected:?}", self.now),
        }
    }

    fn see(&mut self, token: &Token) {
        if !self.seen.iter().any(|(id, _)| *id == token.id()) {
            self.seen.push((token.id(), token.expose().to_owned()));
        }
    }

    fn compare(&mut self) {
        let (mut sent, mut looks) = (Vec::new(), Vec::new());
        let mut resolved = BTreeMap::new();
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => sent.push(send),
                Output::Perform(Action::Store(request)) => panic!("no store was announced: {request:?}"),
                Output::Perform(Action::Credentials(request)) => looks.push((request.op, request.key.index())),
                Output::Resolve(waiter, result) => {
                    if let Ok(token) = &result {
                        self.see(token);
                    }
                    let verdict = match &result {
                        Ok(token) => Verdict::Token(token.expose().to_owned()),
                        Err(error) => verdict_of(error),
                    };
                    let number = self.waiters.remove(&waiter).expect("who waits is resolved once, and nobody else");
                    resolved.insert(number, verdict);
                }
                Output::Event(_) => {}
            }
        }
        let expected = std::mem::take(&mut self.model.visits);
        self.same(&looks.iter().map(|(_, key)| *key).collect(), &expected, "looks");
        for (op, key) in looks {
            // One before it has been given up.
            let gone = self.looks.extract_if(.., |(_, looked_at)| *looked_at == key);
            self.looked.extend(gone.map(|(op, _)| op));
            self.looks.push((op, key));
        }
        let expected = std::mem::take(&mut self.model.sent);
        let wire: Vec<_> = (sent.iter())
            .map(|send| {
                let body = String::from_utf8(send.request.body().as_bytes().to_vec()).unwrap();
                let secret = body.split('&').find_map(|field| field.strip_prefix("client_secret=")).unwrap().to_owned();
                (send.key.index(), secret, send.patience.as_millis() as u64)
            })
            .collect();
        let wanted: Vec<_> =
            expected.iter().map(|request| (request.key, request.secret.clone(), request.patience)).collect();
        self.same(&wire, &wanted, "sent");
        self.compared.0 += sent.len();
        for (send, request) in sent.into_iter().zip(expected) {
            // R25: one request per key. One before it was given up by the machine itself.
            self.retire(|earlier| earlier.key == request.key);
            self.under_way.push((send.op, request));
        }
        let expected = std::mem::take(&mut self.model.resolved);
        self.compared.1 += expected.len();
        self.same(&resolved, &expected, "resolved");
        self.same(&self.machine_status(), &self.model.status(self.now), "status");
        self.same(&tally_of(&self.machine), &self.model.tally, "counters");
        // Requests that ran out of patience are over.
        let requesting: Vec<_> = (self.machine.status(self.machine_now()).keys.iter())
            .filter(|status| status.activity == machine::Activity::Requesting)
            .map(|status| status.key.index())
            .collect();
        self.retire(|request| !requesting.contains(&request.key));
    }

    fn retire(&mut self, is_over: impl Fn(&Request) -> bool) {
        let (over, under_way) =
            std::mem::take(&mut self.under_way).into_iter().partition(|(_, request)| is_over(request));
        self.under_way = under_way;
        let over: Vec<_> = over;
        self.over.extend(over);
    }

    fn same<T: PartialEq + Debug>(&self, machine: &T, model: &T, what: &str) {
        assert!(machine == model, "{what} at {:?}\n machine: {machine:?}\n   model: {model:?}", self.now);
    }

    fn machine_status(&self) -> Status {
        let now = self.machine_now();
        let status = self.machine.status(now);
        let point = |at: storm_auth_core::Moment| Time { mono: at.mono.as_millis(), wall: at.unix.as_millis() };
        Status {
            gate: status.gate_closed_until.map(|at| at.as_millis()),
            hold: status.retries_held_until.map(|at| at.as_millis()),
            budget_left: status.budget_left.into(),
            waiters: status.waiters,
            keys: (status.keys.iter())
                .map(|key| KeyStatus {
                    key: key.key.index(),
                    client: key.client_id.clone(),
                    token_until: key.token_until.map(|at| at.as_millis()),
                    refresh_at: key.refresh_at.map(|at| at.as_millis()),
                    activity: match key.activity {
                        machine::Activity::Idle => Activity::Idle,
                        machine::Activity::Queued => Activity::Queued,
                        machine::Activity::Requesting => Activity::Requesting,
                        machine::Activity::BackingOff => Activity::BackingOff,
                        other => panic!("an activity that the model does not know: {other:?}"),
                    },
                    error: key.error.as_ref().map(verdict_of),
                })
                .collect(),
            peeks: (status.keys.iter())
                .map(|key| {
                    let peek = self.machine.peek(key.key, now)?;
                    Some((peek.token.expose().to_owned(), point(peek.hard), point(peek.look)))
                })
                .collect(),
            timeout: self.machine.poll_timeout().map(|timeout| timeout.at.as_millis()),
            is_idle: self.machine.is_idle(),
        }
    }
}

/// One of those there are.
fn pick<T>(mut from: impl ExactSizeIterator<Item = T>, number: usize) -> Option<T> {
    let length = from.len();
    (length > 0).then(|| from.nth(number % length)).flatten()
}

fn secret_text(number: u8) -> String {
    format!("S3cret-{number}")
}

fn texts(secret: u8, next: Option<u8>) -> (String, Option<String>) {
    // The same twice is one.
    (secret_text(secret), next.filter(|next| *next != secret).map(secret_text))
}

fn credentials(client: &str, secret: u8, next: Option<u8>) -> Credentials {
    let credentials = Credentials::new(client, secret_text(secret)).unwrap();
    match next {
        Some(next) => credentials.with_next(secret_text(next)).unwrap(),
        None => credentials,
    }
}

fn token_body(text: &str, lifetime: u64) -> String {
    format!(r#"{{"access_token":"{text}","expires_in":{lifetime},"token_type":"Bearer"}}"#)
}

fn kind_of(kind: FailureKind) -> Kind {
    match kind {
        FailureKind::Connect => Kind::Connect,
        FailureKind::Timeout => Kind::Timeout,
        FailureKind::Io => Kind::Io,
        FailureKind::Aborted => Kind::Aborted,
    }
}

fn verdict_of(error: &AcquireError) -> Verdict {
    let retry_at = error.retry_at().map_or(0, |at| at.as_millis());
    match error {
        AcquireError::Configuration { .. } => Verdict::Configuration { retry_at },
        AcquireError::RateLimited { before, .. } => Verdict::RateLimited { retry_at, before: before.is_some() },
        AcquireError::Unavailable { cause, .. } => {
            let cause = match cause {
                Cause::Failed(failure) => reference::Cause::Failed(kind_of(failure.kind)),
                Cause::Refused(_) => reference::Cause::Refused,
                Cause::ExpiredOnArrival => reference::Cause::ExpiredOnArrival,
                Cause::AlreadyRejected => reference::Cause::AlreadyRejected,
                Cause::NoLifetime => reference::Cause::NoLifetime,
                other => panic!("a cause that the model does not know: {other:?}"),
            };
            Verdict::Unavailable { cause, retry_at }
        }
        AcquireError::TokensRejected { .. } => Verdict::TokensRejected { retry_at },
        AcquireError::DeadlineExceeded => Verdict::DeadlineExceeded,
        AcquireError::Closed => Verdict::Closed,
        AcquireError::UnknownKey => Verdict::UnknownKey,
        other => panic!("an error that the model does not know: {other:?}"),
    }
}

fn tally_of(machine: &Machine) -> Tally {
    let counters = machine.counters();
    Tally {
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
        gated: counters.gated.as_millis() as u64,
    }
}
