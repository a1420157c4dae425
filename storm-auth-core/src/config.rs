//! What a user configures, checked in one place for every adapter.

use core::time::Duration;
use std::ffi::OsString;
use std::io::ErrorKind;

use http::HeaderName;
use zeroize::Zeroizing;

use crate::authorize::Api;
use crate::credentials::{ClientSecret, Credentials, Scope};
use crate::environment::{ApiUrl, Environment, HttpHosts, TokenUrl, UncheckedUrl};
use crate::error::{ConfigError, Field};
use crate::machine::{Budget, Key};

/// How a machine behaves where a user may differ; each default has its reason beside it.
///
/// ```
/// use core::time::Duration;
/// use storm_auth_core::Policy;
///
/// let mut policy = Policy::default();
/// policy.caller_deadline = Duration::from_secs(5);
/// assert_eq!(policy.refresh_early, 0.75);
/// ```
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Policy {
    /// What the limiter group may send. Default: the documented 3 requests a minute with a burst of 20 more.
    pub budget: Budget,
    /// How long a caller waits for a token unless it says otherwise. Default: 30 s, one and a half slots of the documented
    /// limiter.
    pub caller_deadline: Duration,
    /// The share of a token's life after which a call starts its refresh. Default: 0.75, which leaves a quarter of the life
    /// to outlast an outage of the endpoint. The period is steady, but for one: the first refresh of a process that shares with
    /// nobody is followed by the next after a random part of it, half to all, so that processes that started together do not
    /// meet an outage together and empty the bucket when it ends.
    pub refresh_early: f64,
    /// The same where a refresh was throttled, for [`Policy::LATE_LIVES`] lifetimes; over as many more it comes back to the early
    /// one. Default: 0.94. The limit is per address, so such a throttle means that others share it, and a longer steady period
    /// lets more of them fit: 28 at 600 s. What is left of the life is two waits after a throttle. A process that
    /// has been late and then sees the endpoint fail needs its reserve more, and is early again.
    pub refresh_late: f64,
    /// How long past its expiry a token may still be served when the endpoint fails to give another one. Default: zero, which
    /// is never; capped at [`Policy::STALE_CAP`]. An API that takes tokens past their expiry (servers often allow 300 s)
    /// survives longer outages with it; any other answers 401.
    pub serve_stale_on_error: Duration,
    /// Which address token requests leave by, as a label of one's own choice. Processes that share a store share one gate for each
    /// label, since the limit is per address. Default: empty, the same for all.
    pub egress: String,
}

impl Policy {
    /// The most that [`Policy::serve_stale_on_error`] can be set to: 300 s, the leeway that servers usually grant.
    pub const STALE_CAP: Duration = Duration::from_secs(300);
    /// For how many lifetimes after a throttled refresh they are late. Many, because each process that tries whether it may be
    /// early again costs the others a throttle, and being late costs nothing until the endpoint fails.
    pub const LATE_LIVES: u32 = 200;
    /// For how many lifetimes after a failure a throttle makes nobody late: it came of the retries.
    pub const WARY_LIVES: u32 = 8;
}

impl Policy {
    fn check(&self) -> Result<(), ConfigError> {
        let share = |share: f64| share > 0.0 && share <= 1.0;
        if !share(self.refresh_early) || !share(self.refresh_late) {
            return Err(ConfigError::new(Field::Refresh, "not a share of a lifetime; give more than 0 and at most 1"));
        }
        self.budget.check()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            budget: Budget::default(),
            caller_deadline: Duration::from_secs(30),
            refresh_early: 0.75,
            refresh_late: 0.94,
            serve_stale_on_error: Duration::ZERO,
            egress: String::new(),
        }
    }
}

/// The settings as a user gives them, before they are checked. The adapters' builders wrap this.
///
/// ```
/// use storm_auth_core::{Credentials, Environment, Settings, Stage};
///
/// let config = Settings::new()
///     .environment(Environment::norce("acme", "se", Stage::Playground))
///     .credentials(Credentials::new("shop", "S3cret")?)
///     .application_id(1042)
///     .check()?;
/// assert_eq!(config.key.scope().as_str(), Some("playground"));
///
/// let error = Settings::new().credentials(Credentials::new("shop", "S3cret")?).check().unwrap_err();
/// assert_eq!(error.to_string(), "token URL (STORM_TOKEN_URL): not set; set an environment or the URL itself");
/// # Ok::<(), storm_auth_core::ConfigError>(())
/// ```
#[derive(Clone, Default, Debug)]
pub struct Settings {
    environment: Option<Environment>,
    token_url: Option<UncheckedUrl>,
    api_urls: Vec<UncheckedUrl>,
    scope: Option<Scope>,
    credentials: Option<Credentials>,
    application_id: Option<u64>,
    application_header: Option<String>,
    http_hosts: HttpHosts,
    policy: Policy,
    group: Option<String>,
}

/// Checked settings: what a machine and a client are built from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Whose token is asked for, where, and with which scope.
    pub key: Key,
    /// What an API call is authorised with; `None` when no API base was set.
    pub api: Option<Api>,
    /// How the machine behaves.
    pub policy: Policy,
    /// What the limiter group is called where it is told of; `None` when it has no name.
    pub group: Option<String>,
}

impl Settings {
    /// Nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A preset for token URL, API base and scope; each can be set alone as well, which then counts.
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// The URL of the token endpoint.
    pub fn token_url(mut self, url: impl Into<String>) -> Self {
        self.token_url = Some(UncheckedUrl(url.into()));
        self
    }

    /// The base URL of the API, in place of the environment's. The first one is what paths are appended to; each further one is
    /// an origin that may get the bearer too, when a request names it by its whole URL.
    pub fn api_url(mut self, url: impl Into<String>) -> Self {
        self.api_urls.push(UncheckedUrl(url.into()));
        self
    }

    /// The scope of the token requests.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = Some(scope);
        self
    }

    /// The client id and secret.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// Reads an application id as `STORM_APPLICATION_ID` has it: decimal digits, and nothing else.
    ///
    /// ```
    /// use storm_auth_core::Settings;
    ///
    /// assert_eq!(Settings::parse_application_id("1042")?, 1042);
    /// let error = Settings::parse_application_id("+7").unwrap_err();
    /// assert_eq!(error.problem(), "not a decimal number; give the number alone, like 1042");
    /// # Ok::<(), storm_auth_core::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// It is anything else, or too large.
    pub fn parse_application_id(text: &str) -> Result<u64, ConfigError> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let id = digits.then(|| text.parse().ok()).flatten();
        id.ok_or_else(|| {
            ConfigError::new(Field::ApplicationId, "not a decimal number; give the number alone, like 1042")
        })
    }

    /// The application id that API calls carry. It is no part of the token: many applications share one.
    pub fn application_id(mut self, id: u64) -> Self {
        self.application_id = Some(id);
        self
    }

    /// The header that carries the application id. Default: `ApplicationId`; newer endpoints document `application-id`.
    pub fn application_header(mut self, name: impl Into<String>) -> Self {
        self.application_header = Some(name.into());
        self
    }

    /// Takes plain http for this host, so that the secret and the tokens cross that network readable. For an emulator in a
    /// container; loopback is allowed without it.
    pub fn danger_allow_http(mut self, host: impl Into<String>) -> Self {
        self.http_hosts.danger_allow(host);
        self
    }

    /// How the machine behaves.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// What the limiter group may send, for an endpoint with another limit than the documented one, or none.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.policy.budget = budget;
        self
    }

    /// Which address token requests leave by, as a label of one's own choice: those who share a store share a gate for each.
    pub fn egress(mut self, label: impl Into<String>) -> Self {
        self.policy.egress = label.into();
        self
    }

    /// The name of the limiter group in logs and metrics, where a process has several.
    pub fn group(mut self, name: impl Into<String>) -> Self {
        self.group = Some(name.into());
        self
    }

    /// How long a caller waits for a token unless it says otherwise.
    pub fn caller_deadline(mut self, span: Duration) -> Self {
        self.policy.caller_deadline = span;
        self
    }

    /// Reads the `STORM_*` variables through `variable` and the secret's file through `file`, since the core itself reads
    /// neither: `STORM_TOKEN_URL`, `STORM_API_URL`, `STORM_SCOPE`, those of the [credentials](Credentials::from_variables), and, where
    /// it is set, `STORM_APPLICATION_ID`.
    ///
    /// # Errors
    /// The first variable that is missing or malformed, with what to set.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
        file: impl FnMut(OsString) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, ConfigError> {
        let text = |name, field| match variable(name) {
            None => Err(ConfigError::new(field, "not set; set the variable")),
            Some(value) => into_text(field, value),
        };
        let settings = Self::new()
            .token_url(text("STORM_TOKEN_URL", Field::TokenUrl)?)
            .api_url(text("STORM_API_URL", Field::ApiUrl)?)
            .credentials(Credentials::from_variables(&variable, file)?)
            .scope(Scope::new(text("STORM_SCOPE", Field::Scope)?)?);
        match variable("STORM_APPLICATION_ID") {
            None => Ok(settings),
            Some(id) => {
                let id = Self::parse_application_id(&into_text(Field::ApplicationId, id)?)?;
                Ok(settings.application_id(id))
            }
        }
    }

    /// Checks everything, before any request.
    ///
    /// # Errors
    /// The first setting that is missing or malformed, with what to change.
    pub fn check(self) -> Result<Config, ConfigError> {
        let missing = |field, fix| ConfigError::new(field, fix);
        let environment = self.environment.as_ref();
        environment.map_or(Ok(()), Environment::check)?;
        let token_url = (self.token_url.as_ref().map(|url| &*url.0))
            .or_else(|| environment.map(Environment::token_url))
            .ok_or_else(|| missing(Field::TokenUrl, "not set; set an environment or the URL itself"))?;
        let token_url = TokenUrl::parse(token_url, &self.http_hosts)?;
        let scope = match (self.scope, environment) {
            (Some(scope), _) => scope,
            (None, Some(environment)) => Scope::new(environment.scope())?,
            (None, None) => {
                return Err(missing(
                    Field::Scope,
                    "not set; name a scope, or choose Scope::server_default() on purpose",
                ));
            }
        };
        let credentials = (self.credentials)
            .ok_or_else(|| missing(Field::ClientId, "no credentials set; give a client id and its secret"))?;
        let mut api_urls = self.api_urls;
        if api_urls.is_empty() {
            api_urls.extend(environment.and_then(Environment::api_url).map(|url| UncheckedUrl(url.to_owned())));
        }
        let api_urls: Vec<ApiUrl> =
            api_urls.iter().map(|url| ApiUrl::parse(&url.0, &self.http_hosts)).collect::<Result<_, _>>()?;
        let header = match self.application_header {
            None => HeaderName::from_static("applicationid"),
            Some(name) => HeaderName::try_from(name).map_err(|_| {
                ConfigError::new(Field::ApplicationHeader, "not a header name; use one like application-id")
            })?,
        };
        self.policy.check()?;
        Ok(Config {
            key: Key::new(token_url, credentials, scope),
            api: Api::new(api_urls, header, self.application_id),
            policy: self.policy,
            group: self.group,
        })
    }
}

impl Credentials {
    /// The longest file that a secret is taken from, in bytes. Who reads one byte more and no further lets a longer file be refused,
    /// not cut.
    pub const LONGEST_FILE: usize = 64 * 1024;

    /// Takes the secret from what was read of a file that holds it alone: one line ending at its end, and a byte order mark in front,
    /// are not part of it.
    ///
    /// # Errors
    /// The file could not be read, is longer than [`LONGEST_FILE`](Self::LONGEST_FILE), or holds no secret.
    pub fn from_file(client_id: impl Into<String>, file: std::io::Result<Vec<u8>>) -> Result<Self, ConfigError> {
        let secret = text_of(Field::ClientSecretFile, file)?;
        Self::new(client_id, secret.as_str()).map_err(|error| match error.field() {
            Field::ClientSecret => error.about(Field::ClientSecretFile),
            _ => error,
        })
    }

    /// Reads `STORM_CLIENT_ID`, and `STORM_CLIENT_SECRET` or the file that `STORM_CLIENT_SECRET_FILE` names, through the two
    /// functions given; then, where one of them is set, `STORM_CLIENT_SECRET_NEXT` or the file that `STORM_CLIENT_SECRET_NEXT_FILE`
    /// names, for the [second secret](Self::with_next). An empty file of the second names none. How a file is read, see
    /// [`from_file`](Self::from_file).
    ///
    /// ```
    /// use storm_auth_core::Credentials;
    ///
    /// let variable = |name: &str| match name {
    ///     "STORM_CLIENT_ID" => Some("shop".into()),
    ///     "STORM_CLIENT_SECRET_FILE" => Some("/run/secrets/storm".into()),
    ///     _ => None,
    /// };
    /// let credentials = Credentials::from_variables(variable, |_path| Ok(b"S3cret\n".to_vec()))?;
    /// assert_eq!(credentials.secret().expose(), "S3cret");
    /// # Ok::<(), storm_auth_core::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// The variable that is missing or malformed, or the file that cannot be read or is longer than
    /// [`LONGEST_FILE`](Self::LONGEST_FILE), with what to set.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
        mut file: impl FnMut(OsString) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, ConfigError> {
        let id = variable("STORM_CLIENT_ID")
            .ok_or_else(|| ConfigError::new(Field::ClientId, "not set; set the variable"))
            .and_then(|id| into_text(Field::ClientId, id))?;
        // Tools that fill in variables set the one that is not used to nothing.
        let filled = |name| variable(name).filter(|value| !value.is_empty());
        let credentials = match (filled("STORM_CLIENT_SECRET"), filled("STORM_CLIENT_SECRET_FILE")) {
            (Some(secret), None) => Self::new(id, into_text(Field::ClientSecret, secret)?)?,
            (None, Some(path)) => Self::from_file(id, file(path))?,
            (Some(_), Some(_)) => {
                return Err(ConfigError::new(
                    Field::ClientSecret,
                    "set twice; unset STORM_CLIENT_SECRET or STORM_CLIENT_SECRET_FILE",
                ));
            }
            (None, None) => {
                return Err(ConfigError::new(
                    Field::ClientSecret,
                    "not set; set STORM_CLIENT_SECRET, or STORM_CLIENT_SECRET_FILE to a file that holds it",
                ));
            }
        };
        Ok(match next_from_variables(filled, file)? {
            None => credentials,
            Some(next) => credentials.and(next),
        })
    }
}

/// The second secret, where one of its variables is set and its file is not empty.
pub(crate) fn next_from_variables(
    filled: impl Fn(&'static str) -> Option<OsString>,
    mut file: impl FnMut(OsString) -> std::io::Result<Vec<u8>>,
) -> Result<Option<ClientSecret>, ConfigError> {
    match (filled("STORM_CLIENT_SECRET_NEXT"), filled("STORM_CLIENT_SECRET_NEXT_FILE")) {
        (None, None) => Ok(None),
        (Some(next), None) => ClientSecret::next(into_text(Field::NextSecret, next)?).map(Some),
        (None, Some(path)) => match text_of(Field::NextSecretFile, file(path))? {
            none if none.is_empty() => Ok(None),
            next => ClientSecret::next(next.as_str()).map(Some).map_err(|error| error.about(Field::NextSecretFile)),
        },
        (Some(_), Some(_)) => Err(ConfigError::new(
            Field::NextSecret,
            "set twice; unset STORM_CLIENT_SECRET_NEXT or STORM_CLIENT_SECRET_NEXT_FILE",
        )),
    }
}

/// What a secret's file says.
fn text_of(field: Field, file: std::io::Result<Vec<u8>>) -> Result<Zeroizing<String>, ConfigError> {
    // Not with the path: a secret may stand in its place.
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => {
            "there is no such file; check the path, which counts from where the process works if it is relative"
        }
        ErrorKind::PermissionDenied => "this user may not read it; give it the right to, and to the folders above",
        _ => "it cannot be read; check that the path is that of a file",
    };
    let bytes = Zeroizing::new(file.map_err(|error| ConfigError::new(field, unreadable(error)))?);
    if bytes.len() > Credentials::LONGEST_FILE {
        let long = "longer than 64 KiB; name the file that holds the client secret alone";
        return Err(ConfigError::new(field, long));
    }
    let text =
        core::str::from_utf8(&bytes).map_err(|_| ConfigError::new(field, "not UTF-8; write the secret as UTF-8"))?;
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(Zeroizing::new(line.strip_prefix('\u{FEFF}').unwrap_or(line).to_owned()))
}

pub(crate) fn into_text(field: Field, value: OsString) -> Result<String, ConfigError> {
    value.into_string().map_err(|_| ConfigError::new(field, "not UTF-8; write it as UTF-8"))
}
