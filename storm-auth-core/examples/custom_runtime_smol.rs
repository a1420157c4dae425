//! The machine driven in an async runtime that is not tokio: behind a mutex, with a task for each token request and one that
//! keeps the time. `Driver` is what to copy; the rest puts on the show.
//!
//! ```text
//! cargo run -p storm-auth-core --example custom_runtime_smol                   # the show, in five scenes
//! cargo run -p storm-auth-core --example custom_runtime_smol -- --once /path   # one authorised GET: its status and body
//! ```
//!
//! It asks the server that the STORM_* variables name, and an emulator of its own when none of them is set. The HTTP client
//! is a few lines over a socket that speak plain http, to loopback only. A runtime of yours brings its own, and TLS with it.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clocks, sockets and entropy are what a runtime brings"
)]

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{Request, Response};
use smol::channel::{self, Receiver, Sender};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::TcpStream;
use smol::{Timer, future};
use storm_auth_core::machine::{Acquire, Action, Output, TokenRequest, WaiterId};
use storm_auth_core::wire::challenge::rejects_token;
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Api, Config, Counters, Credentials, Environment, Failure, FailureKind, KeyId, KeyStatus, Machine,
    Now, Settings, Token,
};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};

mod plain_http;

/// All that a program needs. Everything else in this file makes it possible, and visible.
async fn one_call(settings: Settings, path: &str) -> Result<Response<Vec<u8>>, Trouble> {
    let client = Client::new(settings.check()?)?; // every setting is checked here, before any request
    client.get(path).await // the token, the application id, and one replay after a 401
}

/// Drives one machine for any number of tasks. Everything goes through `with`: lock, act, and do what the machine then wants.
struct Driver {
    state: Mutex<State>,
    clock: Clock,
    /// Rings when the next deadline is another one.
    bell: Sender<()>,
}

struct State {
    machine: Machine,
    waiting: BTreeMap<WaiterId, Sender<Result<Token, AcquireError>>>,
}

impl Driver {
    fn start(machine: Machine, clock: Clock) -> Arc<Self> {
        let (bell, rung) = channel::bounded(1);
        let state = Mutex::new(State { machine, waiting: BTreeMap::new() });
        let driver = Arc::new(Self { state, clock, bell });
        smol::spawn(Self::keep_time(Arc::downgrade(&driver), rung)).detach();
        driver
    }

    async fn token(self: &Arc<Self>, key: KeyId) -> Result<Token, AcquireError> {
        let (resolve, resolved) = channel::bounded(1);
        let acquired = self.with(|state, now| {
            let acquired = state.machine.acquire(key, None, now);
            if let Acquire::Wait(waiter) = acquired {
                state.waiting.insert(waiter, resolve);
            }
            acquired
        });
        match acquired {
            Acquire::Ready(token) => Ok(token),
            // Whoever stops waiting is resolved at its deadline, to nobody; `Machine::cancel` would tell the machine sooner.
            Acquire::Wait(_) => resolved.recv().await.unwrap_or(Err(AcquireError::Closed)),
            Acquire::Failed(error) => Err(error),
        }
    }

    fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut State, Now) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.machine.poll_timeout();
        let result = act(&mut state, self.clock.now());
        while let Some(output) = state.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => smol::spawn(self.clone().fly(send)).detach(),
                Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
                Output::Resolve(waiter, result) => {
                    if let Some(resolve) = state.waiting.remove(&waiter) {
                        let _ = resolve.try_send(result); // it may have stopped waiting
                    }
                }
                Output::Event(_) => {} // log it: each has a text and a severity
            }
        }
        if state.machine.poll_timeout() != due {
            let _ = self.bell.try_send(()); // one ring that is still unheard is enough
        }
        result
    }

    /// One token request: a task of its own, so that no caller who goes away takes it along.
    async fn fly(self: Arc<Self>, send: TokenRequest) {
        let op = send.op;
        let outcome = post(send).await;
        self.with(|state, now| match outcome {
            Ok(response) => state.machine.handle_response(op, &response, now),
            Err(failure) => state.machine.handle_failure(op, failure, now),
        });
    }

    /// Tells the machine when its next deadline has come. Ends with the driver.
    async fn keep_time(weak: Weak<Self>, rung: Receiver<()>) {
        while let Some(driver) = weak.upgrade() {
            let timer = {
                let state = driver.state.lock().unwrap_or_else(PoisonError::into_inner);
                match state.machine.poll_timeout() {
                    // A millisecond more than the clock says, or a timer fires a tick early and spins.
                    Some(due) => Timer::after(due.at.since(driver.clock.now().mono) + Duration::from_millis(1)),
                    None => Timer::never(),
                }
            };
            // A driver that nobody else holds ends here, and its bell with it.
            drop(driver);
            let due = async {
                timer.await;
                true
            };
            let rang = async {
                let _ = rung.recv().await;
                false
            };
            if future::or(due, rang).await
                && let Some(driver) = weak.upgrade()
            {
                driver.with(|state, now| state.machine.handle_timeout(now));
            }
        }
    }
}

/// Sends a token request, once, and collects its answer, whatever its status.
async fn post(send: TokenRequest) -> Result<Response<ResponseBody>, Failure> {
    let answer = exchange(send.request, send.patience).await;
    let answer = answer.map_err(|(kind, error)| Failure::new(kind, error.to_string()))?;
    let (parts, bytes) = answer.into_parts();
    let mut body = ResponseBody::new();
    let _ = body.push(&bytes); // the body remembers that it was too large, and the machine sees it
    Ok(Response::from_parts(parts, body))
}

/// One request over one connection.
async fn exchange(
    request: Request<impl AsRef<[u8]>>,
    patience: Duration,
) -> Result<Response<Vec<u8>>, (FailureKind, io::Error)> {
    let (parts, body) = request.into_parts();
    let connect = async { TcpStream::connect(plain_http::peer(&parts.uri)?).await };
    let connected = within(TokenRequest::CONNECT_PATIENCE, connect).await;
    let mut stream = connected.map_err(|error| (FailureKind::Connect, error))?;
    let talk = async {
        stream.write_all(&plain_http::head(&parts, body.as_ref().len())).await?;
        stream.write_all(body.as_ref()).await?;
        let (mut bytes, mut chunk) = (Vec::new(), [0; 8 * 1024]);
        loop {
            let read = stream.read(&mut chunk).await?;
            bytes.extend_from_slice(&chunk[..read]);
            if let Some(answer) = plain_http::answer(&bytes, read == 0)? {
                return Ok(answer);
            }
        }
    };
    within(patience, talk).await.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => (FailureKind::Timeout, error),
        _ => (FailureKind::Io, error),
    })
}

async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = async {
        Timer::after(patience).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    future::or(work, late).await
}

/// The clocks, as the machine is told them. What they were moved by is for the show's last scene.
#[derive(Clone)]
struct Clock {
    origin: Instant,
    moved_ms: Arc<AtomicU64>,
}

impl Clock {
    fn new() -> Self {
        Self { origin: Instant::now(), moved_ms: Arc::default() }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let moved = self.moved_ms.load(Ordering::Relaxed);
        let [mono, unix] = [self.origin.elapsed(), unix].map(|span| span.as_millis() as u64 + moved);
        Now::from_millis(mono, unix)
    }

    fn advance(&self, span: Duration) {
        self.moved_ms.fetch_add(span.as_millis() as u64, Ordering::Relaxed);
    }
}

/// Makes authorised calls: a driver, one key, and an API.
struct Client {
    driver: Arc<Driver>,
    key: KeyId,
    api: Api,
}

impl Client {
    fn new(config: Config) -> Result<Self, Trouble> {
        let api = config.api.ok_or("API URL (STORM_API_URL): not set; set the variable")?;
        // Before any request: what this example's HTTP client cannot do.
        plain_http::peer(config.key.token_url().uri())
            .map_err(|error| format!("token URL (STORM_TOKEN_URL): {error}"))?;
        plain_http::peer(&api.target("/")?.parse()?).map_err(|error| format!("API URL (STORM_API_URL): {error}"))?;
        // Every process another seed, or processes that collide keep colliding.
        let mut machine = Machine::new(config.policy, RandomState::new().build_hasher().finish());
        let clock = Clock::new();
        let key = machine.add_key(config.key, clock.now());
        Ok(Self { driver: Driver::start(machine, clock), key, api })
    }

    async fn token(&self) -> Result<Token, AcquireError> {
        self.driver.token(self.key).await
    }

    /// A GET. When the API rejects the token, it is sent once more with another one, if that can be had.
    async fn get(&self, path: &str) -> Result<Response<Vec<u8>>, Trouble> {
        let token = self.token().await?;
        let answer = self.get_with(path, &token).await?;
        if !rejects_token(answer.status(), answer.headers()) {
            return Ok(answer);
        }
        self.reject(&token);
        let Ok(other) = self.token().await else { return Ok(answer) };
        let answer = self.get_with(path, &other).await?;
        if rejects_token(answer.status(), answer.headers()) {
            self.reject(&other);
        }
        Ok(answer)
    }

    async fn get_with(&self, path: &str, token: &Token) -> Result<Response<Vec<u8>>, Trouble> {
        let mut request = Request::get(self.api.target(path)?).body([])?;
        self.api.authorize(request.headers_mut(), token.header(), None);
        let answer = exchange(request, Duration::from_secs(30)).await;
        answer.map_err(|(_, error)| ApiFailed(error).into())
    }

    /// Names the token, so that one which was replaced meanwhile costs nothing.
    fn reject(&self, token: &Token) {
        self.driver.with(|state, now| state.machine.invalidate(token.id(), now));
    }

    fn counters(&self) -> Counters {
        self.driver.with(|state, _| state.machine.counters())
    }

    fn status(&self) -> Option<KeyStatus> {
        self.driver.with(|state, now| state.machine.key_status(self.key, now))
    }
}

/// The settings from the STORM_* variables, or by hand for an emulator when none of them is set.
fn settings() -> Result<(Settings, Option<Emulator>), Trouble> {
    if VARIABLES.iter().any(|name| std::env::var_os(name).is_some()) {
        return Ok((Settings::from_variables(|name| std::env::var_os(name), std::fs::read)?, None));
    }
    let emulator = Emulator::builder().try_start()?;
    // As far away as a real server, so that there is something to wait for.
    emulator.fail(Endpoint::Token, Fault::Delay(Duration::from_millis(50)));
    let settings = Settings::new()
        .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret())?)
        .application_id(emulator.application_id());
    Ok((settings, Some(emulator)))
}

const VARIABLES: [&str; 7] = [
    "STORM_TOKEN_URL",
    "STORM_API_URL",
    "STORM_CLIENT_ID",
    "STORM_CLIENT_SECRET",
    "STORM_CLIENT_SECRET_FILE",
    "STORM_SCOPE",
    "STORM_APPLICATION_ID",
];
const USAGE: &str = "usage: custom_runtime_smol [--once [PATH]]";

type Trouble = Box<dyn StdError + Send + Sync>;

/// An API call that brought no answer.
#[derive(Debug)]
struct ApiFailed(io::Error);

impl std::fmt::Display for ApiFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the API call failed: {}; check STORM_API_URL, and that the API is up", self.0)
    }
}

impl StdError for ApiFailed {}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).map(|text| text.to_string_lossy().into_owned()).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [] => smol::block_on(show()),
        ["--once"] => smol::block_on(once("/")),
        ["--once", path] if !path.starts_with('-') => smol::block_on(once(path)),
        _ => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|trouble| {
        let _ = writeln!(io::stderr(), "custom_runtime_smol: {trouble}");
        ExitCode::FAILURE
    })
}

/// One GET: status and body to stdout, success for a 2xx alone.
async fn once(path: &str) -> Result<ExitCode, Trouble> {
    let (settings, _emulator) = settings()?;
    // Somebody waits at a prompt, who is better told when to come back than kept until a throttle is over.
    let (head, body) = one_call(settings.caller_deadline(Duration::from_secs(10)), path).await?.into_parts();
    let mut out = io::stdout().lock();
    writeln!(out, "{}", head.status)?;
    out.write_all(&body)?;
    if !body.is_empty() && !body.ends_with(b"\n") {
        writeln!(out)?;
    }
    out.flush()?;
    if head.status.is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(io::stderr(), "custom_runtime_smol: {}", advice(head.status.as_u16()))?;
    Ok(ExitCode::FAILURE)
}

/// What to do about an answer that is no success.
fn advice(status: u16) -> &'static str {
    match status {
        300..=399 => "the API points elsewhere; check STORM_API_URL",
        401 => "the API rejected the token; check that STORM_API_URL and STORM_SCOPE belong to the same environment",
        403 => "this client may not do that; ask whoever administers it",
        404 => "there is nothing here; check the path and STORM_API_URL",
        500 => "the API failed; Norce's do so without STORM_APPLICATION_ID, so check that it is set",
        _ => "the API did not do it; its answer says why, if anything does",
    }
}

async fn show() -> Result<ExitCode, Trouble> {
    let (settings, emulator) = settings()?;
    let config = settings.check()?;
    let stage = Stage { client: Client::new(config.clone())?, config, emulator };

    let mut out = io::stdout();
    writeln!(out, "storm-auth in a runtime of your own: smol, any number of tasks")?;
    match &stage.emulator {
        Some(_) => {
            line("server", "an emulator on loopback; set STORM_TOKEN_URL and the others for another one")?;
            line("wire", "requests counted by the emulator's token endpoint")?;
        }
        None => {
            line("server", "the one that the STORM_* variables name")?;
            line("wire", "requests counted by the library")?;
        }
    }
    let mut sent = stage.first_token().await?;
    sent += stage.cached_calls().await?;
    sent += stage.cold_start().await?;
    sent += stage.rejected().await?;
    sent += stage.growing_old().await?;
    writeln!(out, "\n{} in all; the service takes 21 at once, and then one every 20 s.", requests(sent))?;
    Ok(ExitCode::SUCCESS)
}

struct Stage {
    config: Config,
    client: Client,
    emulator: Option<Emulator>,
}

impl Stage {
    async fn first_token(&self) -> Result<u64, Trouble> {
        scene(1, "The first token")?;
        let (before, start) = (self.requests(&self.client), Instant::now());
        let token = self.client.token().await?;
        line("token", format!("there after {}, served until {}", span(start.elapsed()), token.expires_at()))?;
        if let Some(scope) = token.granted_scope() {
            line("scope", scope)?;
        }
        self.wire(&self.client, before)
    }

    async fn cached_calls(&self) -> Result<u64, Trouble> {
        const CALLS: u32 = 10_000;
        scene(2, "Calls from the cache")?;
        let (before, start) = (self.requests(&self.client), Instant::now());
        for _ in 0..CALLS {
            self.client.token().await?;
        }
        line("tokens", format!("10,000 calls, {} each", span(start.elapsed() / CALLS)))?;
        self.get("an API call").await?;
        self.wire(&self.client, before)
    }

    async fn cold_start(&self) -> Result<u64, Trouble> {
        scene(3, "A cold start: 200 tasks ask a machine that holds nothing")?;
        let client = Arc::new(Client::new(self.config.clone())?);
        let (before, start) = (self.requests(&client), Instant::now());
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let client = client.clone();
                smol::spawn(async move { client.token().await })
            })
            .collect();
        let (mut served, mut different) = (0, BTreeSet::new());
        for task in tasks {
            different.insert(task.await?.id());
            served += 1;
        }
        line("tasks", format!("{served} served after {}", span(start.elapsed())))?;
        line("tokens", format!("{} for all of them", different.len()))?;
        self.wire(&client, before)
    }

    async fn rejected(&self) -> Result<u64, Trouble> {
        scene(4, "A revoked token heals")?;
        let before = self.requests(&self.client);
        match &self.emulator {
            Some(emulator) => {
                emulator.revoke_all();
                line("revoked", "every token, at the server")?;
                self.get("the next call").await?;
            }
            None => {
                // Servers whose tokens tell time in seconds would hand out the very same one again.
                Timer::after(Duration::from_millis(1_100)).await;
                let token = self.client.token().await?;
                self.client.reject(&token);
                line("rejected", "the token, as after a 401: it is never served again")?;
                let start = Instant::now();
                let token = self.client.token().await?;
                line("token", format!("a new one after {}, until {}", span(start.elapsed()), token.expires_at()))?;
            }
        }
        self.wire(&self.client, before)
    }

    async fn growing_old(&self) -> Result<u64, Trouble> {
        scene(5, "A token grows old, and nobody waits for the next one")?;
        let (before, granted) = (self.requests(&self.client), self.client.counters().granted);
        let throttled = self.client.counters().throttled;
        let old = self.client.token().await?;
        let refresh_at = self.client.status().and_then(|status| status.refresh_at).ok_or("no token is held")?;
        let passing = refresh_at.since(self.client.driver.clock.now().unix) + Duration::from_millis(50);
        self.emulator.iter().for_each(|emulator| emulator.clock().advance(passing));
        self.client.driver.clock.advance(passing);
        let left = old.expires_at().since(self.client.driver.clock.now().unix);
        line("time", format!("{} pass; {} are left of the token", span(passing), span(left)))?;

        let start = Instant::now();
        self.client.token().await?;
        line("a call", format!("served from the cache after {}; it starts the refresh", span(start.elapsed())))?;
        while self.client.counters().granted == granted {
            match self.client.status().and_then(|status| status.error) {
                Some(error) if !error.is_rate_limited() => return Err(error.into()),
                // Another server's limiter lives in real time, and this clock was moved.
                error if error.is_some() || self.client.counters().throttled > throttled => {
                    line(
                        "behind it",
                        "no new token yet: the limiter has no request to spare, and the old one lives on",
                    )?;
                    self.get("an API call").await?;
                    return self.wire(&self.client, before);
                }
                _ => {}
            }
            Timer::after(Duration::from_millis(2)).await;
        }
        let token = self.client.token().await?;
        line("behind it", format!("a new token after {}, until {}", span(start.elapsed()), token.expires_at()))?;
        self.get("an API call").await?;
        self.wire(&self.client, before)
    }

    /// An API call, and what came of it. Another server need not have anything at `/`: any answer will do.
    async fn get(&self, label: &str) -> Result<(), Trouble> {
        let start = Instant::now();
        match self.client.get("/").await {
            Ok(answer) => line(label, format!("GET / answered {} after {}", answer.status(), span(start.elapsed()))),
            Err(trouble) if trouble.is::<ApiFailed>() => line(label, trouble.to_string()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Token requests so far: as the emulator saw them, or as the machine counted them.
    fn requests(&self, client: &Client) -> u64 {
        match &self.emulator {
            Some(emulator) => emulator.token_requests(),
            None => client.counters().requests,
        }
    }

    /// Prints how many of them the scene took.
    fn wire(&self, client: &Client, before: u64) -> Result<u64, Trouble> {
        let sent = self.requests(client) - before;
        line("wire", requests(sent))?;
        Ok(sent)
    }
}

fn scene(number: u8, title: &str) -> Result<(), Trouble> {
    Ok(writeln!(io::stdout(), "\n{number}  {title}")?)
}

fn line(label: &str, text: impl AsRef<str>) -> Result<(), Trouble> {
    Ok(writeln!(io::stdout(), "   {label:<15}{}", text.as_ref())?)
}

fn requests(count: u64) -> String {
    match count {
        0 => "no request".to_owned(),
        1 => "1 request".to_owned(),
        more => format!("{more} requests"),
    }
}

fn span(span: Duration) -> String {
    match span.as_nanos() {
        nanos @ 0..1_000 => format!("{nanos} ns"),
        nanos @ 1_000..1_000_000 => format!("{} µs", nanos / 1_000),
        nanos @ 1_000_000..10_000_000_000 => format!("{} ms", nanos / 1_000_000),
        nanos => format!("{} s", nanos / 1_000_000_000),
    }
}
