//! What the examples of runtimes put on, and `--once`: the same for each of them, over whatever drives the machine. There is
//! nothing here to copy but [`Client::get`].

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use http::{Request, Response};
use storm_auth_core::wire::challenge::rejects_token;
use storm_auth_core::{AcquireError, Api, Credentials, Environment, KeyStatus, Settings, Token, Unix};
use storm_auth_tests::driver_conformance::Subject;
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};

use super::clock::Clock;
use super::plain_http;

/// A driver with a name. How it is spoken to otherwise is what the conformance suite needs, too.
pub(crate) trait Shown: Subject<Error = AcquireError> {
    /// The example's.
    const NAME: &str;
    /// What it shows, in a line.
    const WHAT: &str;
    /// What its callers are.
    const CALLERS: &str;

    /// A token, waited for by whoever calls.
    fn token(&mut self) -> Result<Token, AcquireError>;

    fn clock(&self) -> &Clock;
}

/// What the suite asks of a machine and of a clock that can be moved: here of a `driver` that gives its machine out by this method.
macro_rules! asks_its_machine {
    ($machine:ident) => {
        fn invalidate(&mut self, token: storm_auth_core::TokenId) {
            self.driver.$machine(|machine, now| machine.invalidate(token, now));
        }

        fn close(&mut self) {
            self.driver.$machine(|machine, now| machine.shut_down(now));
        }

        fn status(&mut self) -> storm_auth_core::Status {
            self.driver.$machine(|machine, now| machine.status(now))
        }

        fn counters(&mut self) -> storm_auth_core::Counters {
            self.driver.$machine(|machine, _| machine.counters())
        }

        fn acquire_error(error: &AcquireError) -> Option<&AcquireError> {
            Some(error)
        }

        fn advance(&mut self, span: Duration) {
            self.driver.clock.advance(span);
        }

        fn step_wall_forward(&mut self, span: Duration) {
            self.driver.clock.step_wall_forward(span);
        }

        fn step_wall_back(&mut self, span: Duration) {
            self.driver.clock.step_wall_back(span);
        }
    };
}
pub(crate) use asks_its_machine;

/// The program.
pub(crate) fn main<D: Shown>() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).map(|text| text.to_string_lossy().into_owned()).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        [] => show::<D>(),
        ["--once"] => once::<D>("/"),
        ["--once", path] if !path.starts_with('-') => once::<D>(path),
        _ => {
            let _ = writeln!(io::stderr(), "usage: {} [--once [PATH]]", D::NAME);
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|trouble| {
        let _ = writeln!(io::stderr(), "{}: {trouble}", D::NAME);
        ExitCode::FAILURE
    })
}

/// Makes authorised calls: a driver, and an API.
struct Client<D> {
    driver: D,
    api: Api,
}

impl<D: Shown> Client<D> {
    fn new(settings: &Settings) -> Result<Self, Trouble> {
        // Every setting is checked here, before any request.
        let config = settings.clone().check()?;
        let api = config.api.ok_or("API URL (STORM_API_URL): not set; set the variable")?;
        // And what the examples' HTTP client cannot do.
        plain_http::peer(config.key.token_url().uri())
            .map_err(|error| format!("token URL (STORM_TOKEN_URL): {error}"))?;
        plain_http::peer(&api.target("/")?.parse()?).map_err(|error| format!("API URL (STORM_API_URL): {error}"))?;
        Ok(Self { driver: D::start(settings.clone()), api })
    }

    /// A GET. When the API rejects the token, it is sent once more with another one, if that can be had.
    fn get(&mut self, path: &str) -> Result<Response<Vec<u8>>, Trouble> {
        let token = self.driver.token()?;
        let answer = self.get_with(path, &token)?;
        if !rejects_token(answer.status(), answer.headers()) {
            return Ok(answer);
        }
        // Named, so that one which was replaced meanwhile costs nothing.
        self.driver.invalidate(token.id());
        let Ok(other) = self.driver.token() else { return Ok(answer) };
        let answer = self.get_with(path, &other)?;
        if rejects_token(answer.status(), answer.headers()) {
            self.driver.invalidate(other.id());
        }
        Ok(answer)
    }

    fn get_with(&self, path: &str, token: &Token) -> Result<Response<Vec<u8>>, Trouble> {
        let mut request = Request::get(self.api.target(path)?).body(())?;
        self.api.authorize(request.headers_mut(), token.header(), None);
        plain_http::call(request).map_err(|error| ApiFailed(error).into())
    }

    fn status(&mut self) -> Option<KeyStatus> {
        self.driver.status().keys.pop()
    }

    fn now(&self) -> Unix {
        self.driver.clock().now().unix
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

/// One GET: status and body to stdout, success for a 2xx alone.
fn once<D: Shown>(path: &str) -> Result<ExitCode, Trouble> {
    let (settings, _emulator) = settings()?;
    // Somebody waits at a prompt, who is better told when to come back than kept until a throttle is over.
    let mut client = Client::<D>::new(&settings.caller_deadline(Duration::from_secs(10)))?;
    let (head, body) = client.get(path)?.into_parts();
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
    writeln!(io::stderr(), "{}: {}", D::NAME, advice(head.status.as_u16()))?;
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

fn show<D: Shown>() -> Result<ExitCode, Trouble> {
    let (settings, emulator) = settings()?;
    let mut stage = Stage { client: Client::<D>::new(&settings)?, settings, emulator };

    let mut out = io::stdout();
    writeln!(out, "storm-auth in a runtime of your own: {}", D::WHAT)?;
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
    writeln!(out, "\n{} in all; the service takes 21 at once, and then one every 20 s.", count(sent))?;
    Ok(ExitCode::SUCCESS)
}

struct Stage<D> {
    client: Client<D>,
    settings: Settings,
    emulator: Option<Emulator>,
}

impl<D: Shown> Stage<D> {
    fn first_token(&mut self) -> Result<u64, Trouble> {
        scene(1, "The first token")?;
        let (before, start) = (requests(&self.emulator, &mut self.client), Instant::now());
        let token = self.client.driver.token()?;
        line("token", format!("there after {}, served until {}", span(start.elapsed()), token.expires_at()))?;
        if let Some(scope) = token.granted_scope() {
            line("scope", scope)?;
        }
        wire(&self.emulator, &mut self.client, before)
    }

    fn cached_calls(&mut self) -> Result<u64, Trouble> {
        const CALLS: u32 = 10_000;
        scene(2, "Calls from the cache")?;
        let (before, start) = (requests(&self.emulator, &mut self.client), Instant::now());
        for _ in 0..CALLS {
            self.client.driver.token()?;
        }
        line("tokens", format!("10,000 calls, {} each", span(start.elapsed() / CALLS)))?;
        self.get("an API call")?;
        wire(&self.emulator, &mut self.client, before)
    }

    fn cold_start(&mut self) -> Result<u64, Trouble> {
        scene(3, "A cold start: 200 callers ask a machine that holds nothing")?;
        let mut client = Client::<D>::new(&self.settings)?;
        let (before, start) = (requests(&self.emulator, &mut client), Instant::now());
        let callers: Vec<_> = (0..200).map(|_| client.driver.call(Duration::from_secs(30))).collect();
        let (mut served, mut different) = (0, BTreeSet::new());
        for mut caller in callers {
            let token = loop {
                match client.driver.poll(&mut caller) {
                    Some(result) => break result?,
                    None => client.driver.rest(),
                }
            };
            different.insert(token.id());
            served += 1;
        }
        line("callers", format!("{served} served after {}: {}", span(start.elapsed()), D::CALLERS))?;
        line("tokens", format!("{} for all of them", different.len()))?;
        wire(&self.emulator, &mut client, before)
    }

    fn rejected(&mut self) -> Result<u64, Trouble> {
        scene(4, "A revoked token heals")?;
        let before = requests(&self.emulator, &mut self.client);
        match &self.emulator {
            Some(emulator) => {
                emulator.revoke_all();
                line("revoked", "every token, at the server")?;
                self.get("the next call")?;
            }
            None => {
                // Servers whose tokens tell time in seconds would hand out the very same one again.
                thread::sleep(Duration::from_millis(1_100));
                let token = self.client.driver.token()?;
                self.client.driver.invalidate(token.id());
                line("rejected", "the token, as after a 401: it is never served again")?;
                let start = Instant::now();
                let token = self.client.driver.token()?;
                line("token", format!("a new one after {}, until {}", span(start.elapsed()), token.expires_at()))?;
            }
        }
        wire(&self.emulator, &mut self.client, before)
    }

    fn growing_old(&mut self) -> Result<u64, Trouble> {
        scene(5, "A token grows old, and nobody waits for the next one")?;
        let (before, granted) = (requests(&self.emulator, &mut self.client), self.client.driver.counters().granted);
        let throttled = self.client.driver.counters().throttled;
        let old = self.client.driver.token()?;
        let refresh_at = self.client.status().and_then(|status| status.refresh_at).ok_or("no token is held")?;
        let passing = refresh_at.since(self.client.now()) + Duration::from_millis(50);
        self.emulator.iter().for_each(|emulator| emulator.clock().advance(passing));
        self.client.driver.advance(passing);
        let left = old.expires_at().since(self.client.now());
        line("time", format!("{} pass; {} are left of the token", span(passing), span(left)))?;

        let start = Instant::now();
        self.client.driver.token()?;
        line("a call", format!("served from the cache after {}; it starts the refresh", span(start.elapsed())))?;
        while self.client.driver.counters().granted == granted {
            self.client.driver.rest();
            match self.client.status().and_then(|status| status.error) {
                Some(error) if !error.is_rate_limited() => return Err(error.into()),
                // Another server's limiter lives in real time, and this clock was moved.
                error if error.is_some() || self.client.driver.counters().throttled > throttled => {
                    line(
                        "behind it",
                        "no new token yet: the limiter has no request to spare, and the old one lives on",
                    )?;
                    self.get("an API call")?;
                    return wire(&self.emulator, &mut self.client, before);
                }
                _ => {}
            }
        }
        let token = self.client.driver.token()?;
        line("behind it", format!("a new token after {}, until {}", span(start.elapsed()), token.expires_at()))?;
        self.get("an API call")?;
        wire(&self.emulator, &mut self.client, before)
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
}

/// Token requests so far: as the emulator saw them, or as the machine counted them.
fn requests<D: Shown>(emulator: &Option<Emulator>, client: &mut Client<D>) -> u64 {
    match emulator {
        Some(emulator) => emulator.token_requests(),
        None => client.driver.counters().requests,
    }
}

/// Prints how many of them the scene took.
fn wire<D: Shown>(emulator: &Option<Emulator>, client: &mut Client<D>, before: u64) -> Result<u64, Trouble> {
    let sent = requests(emulator, client) - before;
    line("wire", count(sent))?;
    Ok(sent)
}

fn scene(number: u8, title: &str) -> Result<(), Trouble> {
    Ok(writeln!(io::stdout(), "\n{number}  {title}")?)
}

fn line(label: &str, text: impl AsRef<str>) -> Result<(), Trouble> {
    Ok(writeln!(io::stdout(), "   {label:<15}{}", text.as_ref())?)
}

fn count(count: u64) -> String {
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
