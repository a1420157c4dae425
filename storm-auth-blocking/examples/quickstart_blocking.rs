//! The library at work, over ureq.
//!
//! ```text
//! cargo run -p storm-auth-blocking --example quickstart_blocking                   # the show, scene by scene
//! cargo run -p storm-auth-blocking --example quickstart_blocking -- --once /path   # one authorised GET: its status and body
//! ```
//!
//! It asks the server that the STORM_* variables name, and an emulator of its own when none of them is set.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_blocking::{Builder, Clock, Credentials, Environment, Error, StormClient, TokenProvider, env};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};
use ureq::Body;
use ureq::http::Response;

/// All that a program needs. Everything else in this file only makes it visible.
fn one_call(settings: Builder, path: &str) -> Result<Response<Body>, Error> {
    let storm = settings.build()?; // every setting is checked here, before any request
    storm.get(path).timeout(PATIENCE).call() // the token, the application id, and one replay after a 401
}

/// The settings from the STORM_* variables, or by hand for an emulator when none of them is set.
fn settings() -> Result<(Builder, Option<Emulator>), Failure> {
    if VARIABLES.iter().any(|name| std::env::var_os(name).is_some()) {
        return Ok((env::builder()?, None));
    }
    let emulator = Emulator::builder().try_start()?;
    // As far away as a real server, so that there is something to wait for.
    emulator.fail(Endpoint::Token, Fault::Delay(Duration::from_millis(50)));
    let settings = StormClient::builder()
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
const USAGE: &str = "usage: quickstart_blocking [--once [PATH]]";
/// How long an answer of the API may take.
const PATIENCE: Duration = Duration::from_secs(30);

type Failure = Box<dyn StdError + Send + Sync>;

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
    outcome.unwrap_or_else(|failure| {
        let _ = writeln!(io::stderr(), "quickstart_blocking: {}", failure);
        ExitCode::FAILURE
    })
}

/// One GET: status and body to stdout, success for a 2xx alone.
fn once(path: &str) -> Result<ExitCode, Failure> {
    let (settings, _emulator) = settings()?;
    // Somebody waits at a prompt, who is better told when to come back than kept until a throttle is over.
    let mut response = one_call(settings.caller_deadline(Duration::from_secs(10)), path)?;
    let status = response.status();
    let body = response.body_mut().read_to_vec()?;
    let mut out = io::stdout().lock();
    writeln!(out, "{status}")?;
    out.write_all(&body)?;
    if !body.is_empty() && !body.ends_with(b"\n") {
        writeln!(out)?;
    }
    out.flush()?;
    if status.is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(io::stderr(), "quickstart_blocking: {}", advice(status.as_u16()))?;
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

fn show() -> Result<ExitCode, Failure> {
    let (settings, emulator) = settings()?;
    // A clock that can be moved, for the last scene. A program leaves it out, and has the system's.
    let clock = Clock::movable();
    let settings = settings.clock(clock.clone());
    let storm = settings.clone().build()?;
    let stage = Stage { settings, storm, clock, emulator };

    let mut out = io::stdout();
    writeln!(out, "storm-auth over ureq: blocking calls, on any number of threads")?;
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
    stage.outage()?;
    writeln!(out, "\n{} in all; the service takes 21 at once, and then one every 20 s.", requests(sent))?;
    Ok(ExitCode::SUCCESS)
}

struct Stage {
    settings: Builder,
    storm: StormClient,
    clock: Clock,
    emulator: Option<Emulator>,
}

impl Stage {
    fn first_token(&self) -> Result<u64, Failure> {
        scene(1, "The first token")?;
        let tokens = self.storm.tokens();
        let (before, start) = (self.requests(tokens), Instant::now());
        let token = tokens.token()?;
        line("token", format!("there after {}, served until {}", span(start.elapsed()), token.expires_at()))?;
        if let Some(scope) = token.granted_scope() {
            line("scope", scope)?;
        }
        self.wire(tokens, before)
    }

    fn cached_calls(&self) -> Result<u64, Failure> {
        const CALLS: u32 = 10_000;
        scene(2, "Calls from the cache")?;
        let tokens = self.storm.tokens();
        let (before, start) = (self.requests(tokens), Instant::now());
        for _ in 0..CALLS {
            tokens.token()?;
        }
        line("tokens", format!("10,000 calls, {} each", span(start.elapsed() / CALLS)))?;
        self.get("an API call")?;
        self.wire(tokens, before)
    }

    fn cold_start(&self) -> Result<u64, Failure> {
        scene(3, "A cold start: 200 threads ask a provider that holds nothing")?;
        let tokens = self.settings.clone().build_tokens()?;
        let (before, start) = (self.requests(&tokens), Instant::now());
        let threads: Vec<_> = (0..200)
            .map(|_| {
                let tokens = tokens.clone();
                thread::spawn(move || tokens.token())
            })
            .collect();
        let (mut served, mut different) = (0, BTreeSet::new());
        for thread in threads {
            different.insert(thread.join().map_err(|_| "a thread panicked")??.id());
            served += 1;
        }
        line("threads", format!("{served} served after {}", span(start.elapsed())))?;
        line("tokens", format!("{} for all of them", different.len()))?;
        self.wire(&tokens, before)
    }

    fn rejected(&self) -> Result<u64, Failure> {
        scene(4, "A revoked token heals")?;
        let tokens = self.storm.tokens();
        let before = self.requests(tokens);
        match &self.emulator {
            Some(emulator) => {
                emulator.revoke_all();
                line("revoked", "every token, at the server")?;
                // The API says 401; the client drops that token, gets another one and sends the call again.
                self.get("the next call")?;
            }
            None => {
                // Servers whose tokens tell time in seconds would hand out the very same one again.
                thread::sleep(Duration::from_millis(1_100));
                tokens.invalidate(tokens.token()?.id());
                line("rejected", "the token, as after a 401: it is never served again")?;
                let start = Instant::now();
                let token = tokens.token()?;
                line("token", format!("a new one after {}, until {}", span(start.elapsed()), token.expires_at()))?;
            }
        }
        self.wire(tokens, before)
    }

    fn growing_old(&self) -> Result<u64, Failure> {
        scene(5, "A token grows old, and nobody waits for the next one")?;
        let tokens = self.storm.tokens();
        let (before, granted) = (self.requests(tokens), tokens.counters().granted);
        let throttled = tokens.counters().throttled;
        let old = tokens.token()?;
        let passing = self.pass_refresh_time()?;
        let left = old.expires_at().since(self.clock.now().unix);
        line("time", format!("{} pass; {} are left of the token", span(passing), span(left)))?;

        let start = Instant::now();
        tokens.token()?;
        line("a call", format!("served from the cache after {}; it starts the refresh", span(start.elapsed())))?;
        while tokens.counters().granted == granted {
            match tokens.key_status().and_then(|status| status.error) {
                Some(error) if !error.is_rate_limited() => return Err(error.into()),
                // Another server's limiter lives in real time, and this clock was moved.
                error if error.is_some() || tokens.counters().throttled > throttled => {
                    line(
                        "behind it",
                        "no new token yet: the limiter has no request to spare, and the old one lives on",
                    )?;
                    self.get("an API call")?;
                    return self.wire(tokens, before);
                }
                _ => {}
            }
            thread::sleep(Duration::from_millis(2));
        }
        let token = tokens.token()?;
        line("behind it", format!("a new token after {}, until {}", span(start.elapsed()), token.expires_at()))?;
        self.get("an API call")?;
        self.wire(tokens, before)
    }

    /// Nobody else's endpoint can be switched off, so this is for the emulator alone.
    fn outage(&self) -> Result<(), Failure> {
        let Some(emulator) = &self.emulator else { return Ok(()) };
        scene(6, "The token endpoint goes down, and nobody notices")?;
        let tokens = self.storm.tokens();
        let before = tokens.counters().requests;
        emulator.fail(Endpoint::Token, Fault::Outage);
        let passing = self.pass_refresh_time()?;
        line("time", format!("{} pass; a refresh is due, and fails", span(passing)))?;
        for _ in 0..1_000 {
            tokens.token()?;
        }
        line("tokens", "1,000 calls, all served from the cache")?;
        self.get("an API call")?;
        line("tried", requests(tokens.counters().requests - before))?;
        Ok(())
    }

    /// Lets time pass, on both sides, until the token's refresh is due.
    fn pass_refresh_time(&self) -> Result<Duration, Failure> {
        let status = self.storm.tokens().key_status();
        let refresh_at = status.and_then(|status| status.refresh_at).ok_or("no token is held")?;
        let passing = refresh_at.since(self.clock.now().unix) + Duration::from_millis(50);
        self.emulator.iter().for_each(|emulator| emulator.clock().advance(passing));
        self.clock.advance(passing);
        Ok(passing)
    }

    /// An API call, and what came of it. Another server need not have anything at `/`: any answer will do.
    fn get(&self, label: &str) -> Result<(), Failure> {
        let start = Instant::now();
        match self.storm.get("/").timeout(PATIENCE).call() {
            Ok(response) => {
                line(label, format!("GET / answered {} after {}", response.status(), span(start.elapsed())))?;
            }
            Err(error) if error.is_api() => line(label, error.to_string())?,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Token requests so far: as the emulator saw them, or as the library counted them.
    fn requests(&self, tokens: &TokenProvider) -> u64 {
        match &self.emulator {
            Some(emulator) => emulator.token_requests(),
            None => tokens.counters().requests,
        }
    }

    /// Prints how many of them the scene took.
    fn wire(&self, tokens: &TokenProvider, before: u64) -> Result<u64, Failure> {
        let sent = self.requests(tokens) - before;
        line("wire", requests(sent))?;
        Ok(sent)
    }
}

fn scene(number: u8, title: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "\n{number}  {title}")?)
}

fn line(label: &str, text: impl AsRef<str>) -> Result<(), Failure> {
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
