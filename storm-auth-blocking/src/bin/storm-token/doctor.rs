//! `storm-token doctor`: each setting by itself, then one look at what they lead to.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::header;
use serde_json::{Value, json};
use storm_auth_blocking::config_file::{Draft, Source};
use storm_auth_blocking::core::store::Seen;
use storm_auth_blocking::core::wire::response::Refusal;
use storm_auth_blocking::core::{Config, Failure as NoAnswer, FailureKind, Field, Settings};
use storm_auth_blocking::{AcquireError, Builder, Cause, Error, Token, TokenProvider, Unix};
use storm_auth_store::FileStore;
use ureq::middleware::MiddlewareNext;

use crate::args::Common;
use crate::failure::{Failure, Kind};
use crate::jwt::Jwt;
use crate::output::Terminal;
use crate::settings::Configuration;
use crate::{output, settings};

/// How far this machine's clock may be from the endpoint's before that is told: a Date has whole seconds, and its way takes time.
const CLOCK: Duration = Duration::from_secs(5);

/// From how far on it is a failure: servers take a token some minutes before it is valid and past its end, and not more.
const CLOCK_OFF: Duration = Duration::from_secs(60);

pub(crate) fn run(common: &Common) -> Result<ExitCode, Failure> {
    let mut report = Report { common, checks: Vec::new(), first_failure: None };
    if let Some(Setup { settings, store }) = local(common, &mut report)? {
        let config = settings.clone().check()?;
        hints(&config, &mut report)?;
        token(common, &config, settings.into(), store, &mut report)?;
        api(&config, &mut report)?;
    }
    report.end()
}

/// What is right so far.
struct Setup {
    settings: Settings,
    store: Option<Arc<FileStore>>,
}

/// What can be seen without asking anybody.
fn local(common: &Common, report: &mut Report<'_>) -> Result<Option<Setup>, Failure> {
    let name = "configuration file";
    let configuration = match Configuration::load(common) {
        Ok(configuration) => configuration,
        Err(failure) => {
            report.fail(name, failure.kind, failure.message)?;
            return Ok(None);
        }
    };
    match (&configuration.path, settings::of_user()) {
        (Some(path), _) => report.ok(name, path.display().to_string())?,
        (None, Some(path)) => report.skip(name, format!("none; there could be one at {}", path.display()))?,
        (None, None) => report.skip(name, "none".to_owned())?,
    }
    let draft = configuration.draft()?;
    found(&draft, report)?;
    permissions(&configuration, &draft, report)?;
    let store = match settings::store(common) {
        Ok(store) => store,
        Err(failure) => {
            report.fail("token store", failure.kind, failure.message)?;
            return Ok(None);
        }
    };
    match &store {
        Some(store) => report.ok("token store", store.folder().display().to_string())?,
        None => report.skip("token store", "left out with --no-cache".to_owned())?,
    }
    if draft.found().iter().any(|found| found.fault.is_some()) {
        report.skip("token request", "not made: the settings come first".to_owned())?;
        return Ok(None);
    }
    Ok(Some(Setup { settings: configuration.finish(common, draft)?, store }))
}

fn found(draft: &Draft, report: &mut Report<'_>) -> Result<(), Failure> {
    for found in draft.found() {
        let name = name(found.field);
        match (&found.fault, found.source) {
            (Some(fault), _) => report.fail(name, Kind::Configuration, fault.to_string())?,
            (None, Source::Variable(variable)) => report.ok(name, format!("from {variable}"))?,
            (None, Source::Key(key)) => report.ok(name, format!("from {key} in the configuration file"))?,
            (None, Source::Preset(key)) => report.ok(name, format!("as {key} in the configuration file has it"))?,
            (None, Source::Program) => report.ok(name, "typed in".to_owned())?,
            (None, _) => report.ok(name, "set".to_owned())?,
        }
    }
    Ok(())
}

/// Who else may write to the configuration file could have the secret sent elsewhere, and who may read the secret's has it.
fn permissions(configuration: &Configuration, draft: &Draft, report: &mut Report<'_>) -> Result<(), Failure> {
    if let Some(path) = configuration.path.as_deref().filter(|path| mode(path) & 0o022 != 0) {
        let text = format!("others may write to {}, and so have the secret sent elsewhere; chmod go-w", path.display());
        report.warn("configuration file", text)?;
    }
    for found in draft.found() {
        let path = match (found.field, found.source) {
            (Field::ClientSecretFile | Field::NextSecretFile, Source::Variable(variable)) => {
                std::env::var_os(variable).map(PathBuf::from)
            }
            (Field::ClientSecretFile, Source::Key(_)) => configuration.settings.secret_file(),
            (Field::NextSecretFile, Source::Key(_)) => configuration.settings.next_secret_file(),
            _ => None,
        };
        if let Some(path) = path.filter(|path| mode(path) & 0o044 != 0) {
            let path = path.display();
            let text = format!("others may read {path}; chmod go-rwx, unless it is mounted for this process alone");
            report.warn(name(found.field), text)?;
        }
    }
    Ok(())
}

/// What a file's mode grants; nothing where there are no modes, or no file.
#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt as _;

    path.metadata().map_or(0, |file| file.mode())
}

#[cfg(not(unix))]
fn mode(_path: &Path) -> u32 {
    0
}

fn name(field: Field) -> &'static str {
    match field {
        Field::TokenUrl => "token URL",
        Field::ApiUrl => "API URL",
        Field::ClientId => "client id",
        Field::ClientSecret | Field::ClientSecretFile => "client secret",
        Field::NextSecret | Field::NextSecretFile => "next client secret",
        Field::Scope => "scope",
        Field::ApplicationId => "application id",
        Field::ApplicationHeader => "application header",
        Field::Budget => "budget",
        Field::Egress => "egress",
        Field::Group => "group",
        Field::CallerDeadline => "caller deadline",
        Field::HttpHosts => "plain http",
        Field::Environment | Field::Tenant => "environment",
        _ => "setting",
    }
}

/// What is allowed and still looks wrong.
fn hints(config: &Config, report: &mut Report<'_>) -> Result<(), Failure> {
    let asked: Vec<_> = config.key.scope().tokens().collect();
    let api = config.api.as_ref().map(|api| (api.urls()[0].origin(), "STORM_API_URL"));
    let origins = [Some((config.key.token_url().origin(), "STORM_TOKEN_URL")), api];
    for (origin, variable) in origins.into_iter().flatten() {
        let documented = origin.documented_scopes();
        if !documented.is_empty() && !asked.iter().any(|scope| documented.contains(scope)) {
            let (asked, scopes) = (asked.join(" "), documented.join(" or "));
            report.warn(
                "scope and host",
                format!(
                    "{origin} is documented for the scope {scopes}, and the scope that is asked for is {asked}; set STORM_SCOPE to fit \
                     the host, or {variable} to fit the scope"
                ),
            )?;
        }
    }
    match &config.api {
        None => report.skip("API URL", "not set; only `call` needs it".to_owned())?,
        Some(api) if api.application_id().is_none() => {
            let missing =
                "not set; Norce's API answers 500 without one: set STORM_APPLICATION_ID, or give --application-id";
            report.warn("application id", missing.to_owned())?;
        }
        Some(_) => {}
    }
    Ok(())
}

/// What the token endpoint said about the time, as seen by this machine's clock.
#[derive(Default)]
struct Times {
    /// How often it was asked.
    requests: usize,
    /// The Date of its answer, and when that came.
    date: Option<(SystemTime, SystemTime)>,
}

fn token(
    common: &Common,
    config: &Config,
    builder: Builder,
    store: Option<Arc<FileStore>>,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    if let Some(store) = &store
        && let Some(seen) = gate(config, store, report)?
        && let Some(until) = seen.gate_closed_until
    {
        let wait = output::span(until.since(settings::now().unix));
        let throttled = format!(
            "another process was throttled (HTTP 429), and the next request fits at {until} (in {wait}); the limit is per address, so look \
             for others behind it that request tokens of their own"
        );
        if seen.key.token_until.is_some() {
            report.warn("limiter", format!("{throttled}. The shared token serves meanwhile"))?;
        } else {
            let failure =
                Failure { kind: Kind::RateLimited, message: format!("not made: {throttled}"), retry_at: Some(until) };
            return report.fail_until("token request", failure);
        }
    }
    let times = Arc::new(Mutex::new(Times::default()));
    let noted = times.clone();
    // The second secret of two is tried at once where the first is refused.
    let most = 1 + usize::from(config.key.credentials().next_secret().is_some());
    let watch = move |request: http::Request<ureq::SendBody<'_>>, next: MiddlewareNext<'_>| {
        let times = || noted.lock().unwrap_or_else(PoisonError::into_inner);
        if times().requests == most {
            return Err(std::io::Error::other("one request with each secret is enough for a check").into());
        }
        times().requests += 1;
        let response = next.handle(request)?;
        let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        times().date = date.and_then(|date| httpdate::parse_http_date(date).ok()).map(|date| (date, SystemTime::now()));
        Ok(response)
    };
    let builder = builder.token_config(move |config| config.middleware(watch.clone()));
    let tokens = settings::with_store(common, builder, store).build_tokens()?;
    let began = Instant::now();
    let result = once(&tokens, config.policy.caller_deadline);
    let took = began.elapsed();
    settings::close(&tokens);
    let Times { requests, date } = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    match &result {
        Ok(token) => {
            let left = output::span(token.expires_at().since(settings::now().unix));
            report.ok(
                "token request",
                match requests {
                    0 => format!(
                        "not made: a valid token is shared, good for {left}; --no-cache asks the endpoint all the same"
                    ),
                    _ => format!("granted after {} ms, good for {left}", took.as_millis()),
                },
            )?;
            if requests > 1 {
                let other = "the endpoint refuses it and takes the next one; put that in its place".to_owned();
                report.warn("client secret", other)?;
            }
            let wanted = config.key.scope().as_str();
            if let Some(granted) = token.granted_scope().filter(|granted| Some(*granted) != wanted) {
                let granted = output::plain(granted);
                report.warn(
                    "granted scope",
                    format!("{granted}, which differs from the one asked for; check the client's scopes"),
                )?;
            }
        }
        Err(error) => {
            let retry_at = error.acquire_error().and_then(AcquireError::retry_at);
            let message = explain(error, config);
            report.fail_until("token request", Failure { kind: Kind::of(error), message, retry_at })?;
        }
    }
    clock(result.as_ref().ok(), requests > 0, date, report)
}

/// Waits in steps that are shorter than any wait for a slot: a throttle is an answer here, and not a reason to ask again.
fn once(tokens: &TokenProvider, patience: Duration) -> Result<Token, Error> {
    let began = Instant::now();
    loop {
        let result = tokens.token_within(Duration::from_millis(250));
        let open = |error: &Error| {
            matches!(error.acquire_error(), Some(AcquireError::DeadlineExceeded | AcquireError::HeldElsewhere))
        };
        if began.elapsed() >= patience || !result.as_ref().is_err_and(open) {
            return result;
        }
    }
}

fn gate(config: &Config, store: &FileStore, report: &mut Report<'_>) -> Result<Option<Seen>, Failure> {
    match Seen::in_store(config, store, settings::now()) {
        Ok(seen) => {
            if let Some(fault) = seen.fault {
                report.warn("shared token", format!("ignored: {fault}"))?;
            }
            if seen.failures > 0 {
                report.warn("earlier requests", format!("failed in a row so far: {}", seen.failures))?;
            }
            Ok(Some(seen))
        }
        Err(error) => {
            report.warn("token store", format!("it cannot be used, and each process works alone: {error}"))?;
            Ok(None)
        }
    }
}

/// The library's text, and what a person here should look at.
fn explain(error: &Error, config: &Config) -> String {
    let scope = config.key.scope().as_str().unwrap_or("(the server's)");
    let advice = match error.acquire_error() {
        Some(AcquireError::RateLimited { .. }) => {
            "The limit is 3 requests a minute and 20 more at once for each address: look for others behind it that request tokens \
             of their own"
                .to_owned()
        }
        Some(AcquireError::Configuration { refusal, .. }) => refused(refusal, scope, config),
        Some(AcquireError::Unavailable { cause: Cause::Failed(NoAnswer { kind, .. }), .. }) => unreachable_host(*kind, config),
        Some(AcquireError::Unavailable { cause: Cause::FailedElsewhere, .. }) => {
            "An earlier run failed, so nothing was asked now; --no-cache asks at once, and tells more".to_owned()
        }
        Some(AcquireError::Unavailable { cause: Cause::RefusedElsewhere, .. }) => {
            "An earlier run was refused, so nothing was asked now; --no-cache asks at once, and tells what for".to_owned()
        }
        _ => return error.to_string(),
    };
    format!("{error}. {advice}")
}

fn refused(refusal: &Refusal, scope: &str, config: &Config) -> String {
    let code = refusal.error.as_ref().map(|error| error.error.as_str());
    match (code, &refusal.location) {
        (Some("invalid_client"), _) => {
            let secret = match config.key.credentials().next_secret() {
                None => "the secret is",
                Some(_) => "both secrets are",
            };
            format!(
                "The client id or {secret} wrong, or the client is disabled; compare them with what the service shows for it"
            )
        }
        (Some("invalid_scope"), _) => {
            let documented = config.key.token_url().origin().documented_scopes();
            let hint = match documented {
                [] => "ask for the scopes that the client may have".to_owned(),
                scopes => format!("this host's is {}", scopes.join(" or ")),
            };
            format!("The client may not have the scope {scope}; {hint}: set STORM_SCOPE")
        }
        (Some("unauthorized_client"), _) => "The client has to be allowed the client_credentials grant".to_owned(),
        (None, Some(location)) => {
            format!("Set STORM_TOKEN_URL to {location} if that is the service's; no redirect is followed with a secret")
        }
        _ => format!("Look at STORM_TOKEN_URL, whose path is {}", config.key.token_url().uri().path()),
    }
}

fn unreachable_host(kind: FailureKind, config: &Config) -> String {
    let origin = config.key.token_url().origin();
    let proxies: Vec<_> =
        ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"]
            .into_iter()
            .filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
            .collect();
    let proxies = match proxies.as_slice() {
        [] => "no proxy is set in the environment".to_owned(),
        names => format!("the environment sets {}", names.join(", ")),
    };
    let look = match kind {
        FailureKind::Connect => "no connection came about: the name, a firewall, a certificate that is not trusted",
        FailureKind::Timeout => "the connection stood and no answer came",
        FailureKind::Io => "the connection broke: what speaks there may be no HTTP server, or no TLS one",
        FailureKind::Aborted => "this side gave up",
    };
    format!("{origin}: {look}; {proxies}")
}

fn clock(
    token: Option<&Token>,
    asked: bool,
    date: Option<(SystemTime, SystemTime)>,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let jwt = token.and_then(|token| Jwt::decode(token.expose()));
    let not_before =
        jwt.as_ref().and_then(|jwt| jwt.seconds("nbf")).map(|at| Unix::from_millis(at.saturating_mul(1_000)));
    // A token was made when it was asked for; one that is shared was made at any time before.
    let (theirs, ours, by) = match (date, not_before) {
        (Some((date, at)), _) => (Unix::from(date), Unix::from(at), "the answer's Date"),
        (None, Some(at)) if asked || at > settings::now().unix => (at, settings::now().unix, "the token's nbf"),
        _ => return report.skip("clock", "nothing to compare it with".to_owned()),
    };
    let (off, which) = if theirs > ours { (theirs.since(ours), "behind") } else { (ours.since(theirs), "ahead of") };
    let text = format!("{} {which} the endpoint's, by {by}; set this machine's clock (NTP)", output::span(off));
    match off {
        off if off <= CLOCK => report.ok("clock", format!("as the endpoint's, by {by}")),
        off if off <= CLOCK_OFF => report.warn("clock", text),
        _ => report.fail("clock", Kind::Unavailable, text),
    }
}

/// Whether an API answers, without a token: what it answers then does not matter.
fn api(config: &Config, report: &mut Report<'_>) -> Result<(), Failure> {
    let Some(url) = config.api.as_ref().and_then(|api| api.target("/").ok()) else { return Ok(()) };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(Duration::from_secs(15)))
        .build()
        .into();
    match agent.get(&url).call() {
        Ok(answer) => report.ok("API", format!("{url} answers (HTTP {} without a token)", answer.status().as_u16())),
        Err(error) => report.fail(
            "API",
            Kind::Api,
            format!("{url} does not answer: {error}; check STORM_API_URL and the way there"),
        ),
    }
}

/// What was found, told as it is found, or at the end as JSON.
struct Report<'a> {
    common: &'a Common,
    checks: Vec<Value>,
    /// What the process ends with: the failures after it follow from it, as a rule.
    first_failure: Option<(Kind, Option<Unix>)>,
}

impl Report<'_> {
    fn ok(&mut self, check: &str, detail: String) -> Result<(), Failure> {
        self.add("ok", check, detail)
    }

    fn skip(&mut self, check: &str, detail: String) -> Result<(), Failure> {
        self.add("skipped", check, detail)
    }

    fn warn(&mut self, check: &str, detail: String) -> Result<(), Failure> {
        self.add("warning", check, detail)
    }

    fn fail(&mut self, check: &str, kind: Kind, detail: String) -> Result<(), Failure> {
        self.fail_until(check, Failure::new(kind, detail))
    }

    fn fail_until(&mut self, check: &str, failure: Failure) -> Result<(), Failure> {
        self.first_failure.get_or_insert((failure.kind, failure.retry_at));
        self.add("failed", check, failure.message)
    }

    fn add(&mut self, result: &str, check: &str, detail: String) -> Result<(), Failure> {
        if self.common.json {
            self.checks.push(json!({ "check": check, "result": result, "detail": detail }));
            return Ok(());
        }
        let (sign, colour, plain) = match result {
            "ok" => ("✓", "32", "ok  "),
            "warning" => ("!", "33", "warn"),
            "failed" => ("✗", "31", "FAIL"),
            _ => ("-", "2", "skip"),
        };
        let line = |sign: &str| format!("{sign} {check}: {}\n", output::plain(&detail));
        let text = match output::terminal() {
            Terminal::None => line(plain),
            Terminal::Plain => output::broken(&line(sign)),
            Terminal::Painted => output::broken(&line(sign)).replacen(sign, &format!("\x1b[{colour}m{sign}\x1b[0m"), 1),
        };
        output::print(text.as_bytes())
    }

    fn end(self) -> Result<ExitCode, Failure> {
        let code = self.first_failure.map_or(0, |(kind, _)| kind.code());
        if self.common.json {
            let retry_at = self.first_failure.and_then(|(_, retry_at)| retry_at).map(|at| at.to_string());
            output::print_json(&json!({ "ok": code == 0, "retry_at": retry_at, "checks": self.checks }))?;
        }
        Ok(ExitCode::from(code))
    }
}
