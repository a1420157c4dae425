//! The machine driven by hand, with nothing but std: one thread that owns it, a thread for each token request, and a channel
//! on which those report. `Driver` is what to copy; the rest puts on the show.
//!
//! ```text
//! cargo run -p storm-auth-core --example custom_runtime                   # the show, in five scenes
//! cargo run -p storm-auth-core --example custom_runtime -- --once /path   # one authorised GET: its status and body
//! ```
//!
//! It asks the server that the STORM_* variables name, and an emulator of its own when none of them is set. The HTTP client
//! is a few lines of std that speak plain http, to loopback only. A runtime of yours brings its own, and TLS with it.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clocks, sockets and entropy are what a runtime brings"
)]

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{Request, Response};
use storm_auth_core::machine::{Acquire, Action, OpId, Output, TokenRequest, WaiterId};
use storm_auth_core::wire::challenge::rejects_token;
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Api, Config, Counters, Credentials, Environment, Failure, FailureKind, KeyId, KeyStatus, Machine,
    Now, Settings, Token,
};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};

mod plain_http;

/// All that a program needs. Everything else in this file makes it possible, and visible.
fn one_call(settings: Settings, path: &str) -> Result<Response<Vec<u8>>, Trouble> {
    let mut client = Client::new(settings.check()?)?; // every setting is checked here, before any request
    client.get(path) // the token, the application id, and one replay after a 401
}

/// Drives one machine from the thread that owns it. The loop is `turn`: drain the outputs, then rest until a report or a
/// deadline comes. Were there callers on other threads, their wishes would come on the same channel.
struct Driver {
    machine: Machine,
    clock: Clock,
    /// Waiters that were resolved, until somebody fetches the result.
    resolved: BTreeMap<WaiterId, Result<Token, AcquireError>>,
    reports: Receiver<Report>,
    reporter: Sender<Report>,
}

/// What came of a token request.
type Report = (OpId, Result<Response<ResponseBody>, Failure>);

impl Driver {
    fn new(machine: Machine, clock: Clock) -> Self {
        let (reporter, reports) = mpsc::channel();
        Self { machine, clock, resolved: BTreeMap::new(), reports, reporter }
    }

    fn token(&mut self, key: KeyId) -> Result<Token, AcquireError> {
        // What came in since the last call, like the answer to a refresh that nobody waited for.
        while let Ok(report) = self.reports.try_recv() {
            self.hand_over(report);
        }
        let acquire = self.machine.acquire(key, None, self.clock.now());
        self.drain(); // whatever it is: this call may have started a request
        match acquire {
            Acquire::Ready(token) => Ok(token),
            Acquire::Wait(waiter) => self.wait(waiter),
            Acquire::Failed(error) => Err(error),
        }
    }

    fn hand_over(&mut self, (op, outcome): Report) {
        match outcome {
            Ok(response) => self.machine.handle_response(op, &response, self.clock.now()),
            Err(failure) => self.machine.handle_failure(op, failure, self.clock.now()),
        }
    }

    fn wait(&mut self, waiter: WaiterId) -> Result<Token, AcquireError> {
        self.drain();
        loop {
            if let Some(result) = self.resolved.remove(&waiter) {
                return result;
            }
            self.turn();
        }
    }

    /// Rests until a report or a deadline comes, tells the machine, and does what it then wants done.
    fn turn(&mut self) {
        let report = match self.machine.poll_timeout() {
            // A millisecond more than the clock says, or a timer fires a tick early and spins.
            Some(due) => {
                let rest = due.at.since(self.clock.now().mono) + Duration::from_millis(1);
                self.reports.recv_timeout(rest).ok()
            }
            None => self.reports.recv().ok(),
        };
        match report {
            Some(report) => self.hand_over(report),
            None => self.machine.handle_timeout(self.clock.now()),
        }
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => self.launch(send),
                Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
                Output::Resolve(waiter, result) => drop(self.resolved.insert(waiter, result)),
                Output::Event(_) => {} // log it: each has a text and a severity
            }
        }
    }

    fn launch(&mut self, send: TokenRequest) {
        let (op, reporter) = (send.op, self.reporter.clone());
        let flight = move || {
            // Nobody listens any more when the driver has gone.
            let _ = reporter.send((op, post(send)));
        };
        if let Err(error) = thread::Builder::new().spawn(flight) {
            let failure = Failure::new(FailureKind::Aborted, error.to_string());
            self.machine.handle_failure(op, failure, self.clock.now());
        }
    }
}

/// Sends a token request, once, and collects its answer, whatever its status.
fn post(send: TokenRequest) -> Result<Response<ResponseBody>, Failure> {
    let answer =
        exchange(send.request, send.patience).map_err(|(kind, error)| Failure::new(kind, error.to_string()))?;
    let (parts, bytes) = answer.into_parts();
    let mut body = ResponseBody::new();
    let _ = body.push(&bytes); // the body remembers that it was too large, and the machine sees it
    Ok(Response::from_parts(parts, body))
}

/// One request over one connection.
fn exchange(
    request: Request<impl AsRef<[u8]>>,
    patience: Duration,
) -> Result<Response<Vec<u8>>, (FailureKind, io::Error)> {
    let (parts, body) = request.into_parts();
    let connect = || {
        let mut last = io::Error::other("the name has no address");
        for address in plain_http::peer(&parts.uri)?.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, TokenRequest::CONNECT_PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let mut stream = connect().map_err(|error| (FailureKind::Connect, error))?;
    let mut talk = || {
        // Each read may take so long. The machine itself gives up when the whole exchange does.
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(&plain_http::head(&parts, body.as_ref().len()))?;
        stream.write_all(body.as_ref())?;
        let (mut bytes, mut chunk) = (Vec::new(), [0; 8 * 1024]);
        loop {
            let read = match stream.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            bytes.extend_from_slice(&chunk[..read]);
            if let Some(answer) = plain_http::answer(&bytes, read == 0)? {
                return Ok(answer);
            }
        }
    };
    talk().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => (FailureKind::Timeout, error),
        _ => (FailureKind::Io, error),
    })
}

/// The clocks, as the machine is told them. The span that they were moved by is for the show's last scene.
#[derive(Clone)]
struct Clock {
    origin: Instant,
    moved: Duration,
}

impl Clock {
    fn new() -> Self {
        Self { origin: Instant::now(), moved: Duration::ZERO }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let [mono, unix] = [self.origin.elapsed(), unix].map(|span| (span + self.moved).as_millis() as u64);
        Now::from_millis(mono, unix)
    }
}

/// Makes authorised calls: a driver, one key, and an API.
struct Client {
    driver: Driver,
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
        Ok(Self { driver: Driver::new(machine, clock), key, api })
    }

    fn token(&mut self) -> Result<Token, AcquireError> {
        self.driver.token(self.key)
    }

    /// A GET. When the API rejects the token, it is sent once more with another one, if that can be had.
    fn get(&mut self, path: &str) -> Result<Response<Vec<u8>>, Trouble> {
        let token = self.token()?;
        let answer = self.get_with(path, &token)?;
        if !rejects_token(answer.status(), answer.headers()) {
            return Ok(answer);
        }
        self.reject(&token);
        let Ok(other) = self.token() else { return Ok(answer) };
        let answer = self.get_with(path, &other)?;
        if rejects_token(answer.status(), answer.headers()) {
            self.reject(&other);
        }
        Ok(answer)
    }

    fn get_with(&self, path: &str, token: &Token) -> Result<Response<Vec<u8>>, Trouble> {
        let mut request = Request::get(self.api.target(path)?).body([])?;
        self.api.authorize(request.headers_mut(), token.header(), None);
        let answer = exchange(request, Duration::from_secs(30));
        answer.map_err(|(_, error)| ApiFailed(error).into())
    }

    /// Names the token, so that one which was replaced meanwhile costs nothing.
    fn reject(&mut self, token: &Token) {
        let now = self.driver.clock.now();
        self.driver.machine.invalidate(token.id(), now);
    }

    fn counters(&self) -> Counters {
        self.driver.machine.counters()
    }

    fn status(&self) -> Option<KeyStatus> {
        self.driver.machine.key_status(self.key, self.driver.clock.now())
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
const USAGE: &str = "usage: custom_runtime [--once [PATH]]";

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
        [] => show(),
        ["--once"] => once("/"),
        ["--once", path] if !path.starts_with('-') => once(path),
        _ => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|trouble| {
        let _ = writeln!(io::stderr(), "custom_runtime: {trouble}");
        ExitCode::FAILURE
    })
}

/// One GET: status and body to stdout, success for a 2xx alone.
fn once(path: &str) -> Result<ExitCode, Trouble> {
    let (settings, _emulator) = settings()?;
    // Somebody waits at a prompt, who is better told when to come back than kept until a throttle is over.
    let (head, body) = one_call(settings.caller_deadline(Duration::from_secs(10)), path)?.into_parts();
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
    writeln!(io::stderr(), "custom_runtime: {}", advice(head.status.as_u16()))?;
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

fn show() -> Result<ExitCode, Trouble> {
    let (settings, emulator) = settings()?;
    let config = settings.check()?;
    let mut stage = Stage { client: Client::new(config.clone())?, config, emulator };

    let mut out = io::stdout();
    writeln!(out, "storm-auth in a runtime of your own: std alone, one thread owns the machine")?;
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
    let mut sent = stage.first_token()?;
    sent += stage.cached_calls()?;
    sent += stage.cold_start()?;
    sent += stage.rejected()?;
    sent += stage.growing_old()?;
    writeln!(out, "\n{} in all; the service takes 21 at once, and then one every 20 s.", requests(sent))?;
    Ok(ExitCode::SUCCESS)
}

struct Stage {
    config: Config,
    client: Client,
    emulator: Option<Emulator>,
}

impl Stage {
    fn first_token(&mut self) -> Result<u64, Trouble> {
        scene(1, "The first token")?;
        let (before, start) = (self.requests(&self.client), Instant::now());
        let token = self.client.token()?;
        line("token", format!("there after {}, served until {}", span(start.elapsed()), token.expires_at()))?;
        if let Some(scope) = token.granted_scope() {
            line("scope", scope)?;
        }
        self.wire(&self.client, before)
    }

    fn cached_calls(&mut self) -> Result<u64, Trouble> {
        const CALLS: u32 = 10_000;
        scene(2, "Calls from the cache")?;
        let (before, start) = (self.requests(&self.client), Instant::now());
        for _ in 0..CALLS {
            self.client.token()?;
        }
        line("tokens", format!("10,000 calls, {} each", span(start.elapsed() / CALLS)))?;
        self.get("an API call")?;
        self.wire(&self.client, before)
    }

    fn cold_start(&mut self) -> Result<u64, Trouble> {
        scene(3, "A cold start: 200 tasks ask a machine that holds nothing")?;
        let mut client = Client::new(self.config.clone())?;
        let (before, start) = (self.requests(&client), Instant::now());
        let mut waiters = Vec::new();
        for _ in 0..200 {
            match client.driver.machine.acquire(client.key, None, client.driver.clock.now()) {
                Acquire::Wait(waiter) => waiters.push(waiter),
                Acquire::Ready(_) => return Err("a machine that holds nothing had a token".into()),
                Acquire::Failed(error) => return Err(error.into()),
            }
        }
        let (mut served, mut different) = (0, BTreeSet::new());
        for waiter in waiters {
            different.insert(client.driver.wait(waiter)?.id());
            served += 1;
        }
        line("tasks", format!("{served} served after {}: waiters of one thread", span(start.elapsed())))?;
        line("tokens", format!("{} for all of them", different.len()))?;
        self.wire(&client, before)
    }

    fn rejected(&mut self) -> Result<u64, Trouble> {
        scene(4, "A revoked token heals")?;
        let before = self.requests(&self.client);
        match &self.emulator {
            Some(emulator) => {
                emulator.revoke_all();
                line("revoked", "every token, at the server")?;
                self.get("the next call")?;
            }
            None => {
                // Servers whose tokens tell time in seconds would hand out the very same one again.
                thread::sleep(Duration::from_millis(1_100));
                let token = self.client.token()?;
                self.client.reject(&token);
                line("rejected", "the token, as after a 401: it is never served again")?;
                let start = Instant::now();
                let token = self.client.token()?;
                line("token", format!("a new one after {}, until {}", span(start.elapsed()), token.expires_at()))?;
            }
        }
        self.wire(&self.client, before)
    }

    fn growing_old(&mut self) -> Result<u64, Trouble> {
        scene(5, "A token grows old, and nobody waits for the next one")?;
        let (before, granted) = (self.requests(&self.client), self.client.counters().granted);
        let throttled = self.client.counters().throttled;
        let old = self.client.token()?;
        let refresh_at = self.client.status().and_then(|status| status.refresh_at).ok_or("no token is held")?;
        let passing = refresh_at.since(self.client.driver.clock.now().unix) + Duration::from_millis(50);
        self.emulator.iter().for_each(|emulator| emulator.clock().advance(passing));
        self.client.driver.clock.moved += passing;
        let left = old.expires_at().since(self.client.driver.clock.now().unix);
        line("time", format!("{} pass; {} are left of the token", span(passing), span(left)))?;

        let start = Instant::now();
        self.client.token()?;
        line("a call", format!("served from the cache after {}; it starts the refresh", span(start.elapsed())))?;
        while self.client.counters().granted == granted {
            self.client.driver.turn();
            match self.client.status().and_then(|status| status.error) {
                Some(error) if !error.is_rate_limited() => return Err(error.into()),
                // Another server's limiter lives in real time, and this clock was moved.
                error if error.is_some() || self.client.counters().throttled > throttled => {
                    line(
                        "behind it",
                        "no new token yet: the limiter has no request to spare, and the old one lives on",
                    )?;
                    self.get("an API call")?;
                    return self.wire(&self.client, before);
                }
                _ => {}
            }
        }
        let token = self.client.token()?;
        line("behind it", format!("a new token after {}, until {}", span(start.elapsed()), token.expires_at()))?;
        self.get("an API call")?;
        self.wire(&self.client, before)
    }

    /// An API call, and what came of it. Another server need not have anything at `/`: any answer will do.
    fn get(&mut self, label: &str) -> Result<(), Trouble> {
        let start = Instant::now();
        match self.client.get("/") {
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
