//! Errors, grouped by who is to blame: the configuration ([`ConfigError`]), or what happened while a token was wanted
//! ([`AcquireError`]). Both are `Clone + PartialEq`, tell what to do next, and never hold a secret.

use core::fmt;

use crate::time::Unix;
use crate::wire::response::Refusal;

/// A setting that a person has to change, found before any request.
///
/// It names the setting and the fix, never the value.
///
/// `Debug` is the same text, since that is what a `main` that returns it shows.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigError {
    field: Field,
    problem: &'static str,
    /// The key of a configuration file that the value stands under.
    key: Option<&'static str>,
}

impl ConfigError {
    pub(crate) const fn new(field: Field, problem: &'static str) -> Self {
        Self { field, problem, key: None }
    }

    /// A setting that a builder needs and did not get.
    pub const fn missing(field: Field) -> Self {
        Self::new(field, "not set; set it in the builder, or choose an environment that has it")
    }

    /// A part of a request that cannot be sent as it is.
    pub const fn malformed(field: Field) -> Self {
        Self::new(field, "malformed; look for characters that HTTP does not allow there")
    }

    /// A request whose URI names no origin, so that nobody can tell whether the bearer may go there (R45).
    pub const fn without_origin() -> Self {
        Self::new(Field::Target, "it names no origin; give the whole URL, or say where its service sends it")
    }

    /// A logger that would be given the bytes of requests and answers by the HTTP library, tokens included.
    pub const fn logged(problem: &'static str) -> Self {
        Self::new(Field::Logging, problem)
    }

    /// The same problem, of the setting that its value came from.
    pub(crate) fn about(self, field: Field) -> Self {
        Self { field, ..self }
    }

    /// The same problem, of a value that stands in a configuration file.
    #[cfg(feature = "serde")]
    pub(crate) fn under(self, key: &'static str) -> Self {
        Self { key: Some(key), ..self }
    }

    /// What is wrong and what to do, without the setting's name: for a value that came from elsewhere, such as a flag.
    pub fn problem(&self) -> &'static str {
        self.problem
    }

    /// The setting at fault.
    pub fn field(&self) -> Field {
        self.field
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, problem, key } = self;
        match key {
            None => write!(f, "{field}: {problem}"),
            Some(key) => write!(f, "{} ({key} in the configuration file): {problem}", field.names().0),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The settings, as [`ConfigError`] names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Field {
    /// The URL of the token endpoint (`STORM_TOKEN_URL`).
    TokenUrl,
    /// The base URL of the API (`STORM_API_URL`).
    ApiUrl,
    /// A request's target that is neither a path nor a URL below a configured API.
    Target,
    /// A header of a request.
    Header,
    /// The body of a request.
    Body,
    /// The client id (`STORM_CLIENT_ID`).
    ClientId,
    /// The client secret (`STORM_CLIENT_SECRET`, `STORM_CLIENT_SECRET_FILE`).
    ClientSecret,
    /// The file that holds the client secret (`STORM_CLIENT_SECRET_FILE`).
    ClientSecretFile,
    /// The secret beside the client secret (`STORM_CLIENT_SECRET_NEXT`, `STORM_CLIENT_SECRET_NEXT_FILE`).
    NextSecret,
    /// The file that holds it (`STORM_CLIENT_SECRET_NEXT_FILE`).
    NextSecretFile,
    /// The scope (`STORM_SCOPE`).
    Scope,
    /// The application id (`STORM_APPLICATION_ID`).
    ApplicationId,
    /// The name of the header that carries the application id.
    ApplicationHeader,
    /// The tenant's slug or region in a Norce Commerce host name.
    Tenant,
    /// The request budget of the token endpoint.
    Budget,
    /// The share of a token's life after which it is refreshed.
    Refresh,
    /// The process's logger.
    Logging,
    /// The environment that is chosen by name.
    Environment,
    /// The label of the address that token requests leave by.
    Egress,
    /// The name of the limiter group.
    Group,
    /// How long a caller waits for a token.
    CallerDeadline,
    /// The hosts for which plain http is taken.
    HttpHosts,
}

impl Field {
    /// What it is called, and the variable that sets it.
    const fn names(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::TokenUrl => ("token URL", Some("STORM_TOKEN_URL")),
            Self::ApiUrl => ("API URL", Some("STORM_API_URL")),
            Self::Target => ("request target", None),
            Self::Header => ("request header", None),
            Self::Body => ("request body", None),
            Self::ClientId => ("client id", Some("STORM_CLIENT_ID")),
            Self::ClientSecret => ("client secret", Some("STORM_CLIENT_SECRET")),
            Self::ClientSecretFile => ("client secret file", Some("STORM_CLIENT_SECRET_FILE")),
            Self::NextSecret => ("next client secret", Some("STORM_CLIENT_SECRET_NEXT")),
            Self::NextSecretFile => ("next client secret file", Some("STORM_CLIENT_SECRET_NEXT_FILE")),
            Self::Scope => ("scope", Some("STORM_SCOPE")),
            Self::ApplicationId => ("application id", Some("STORM_APPLICATION_ID")),
            Self::ApplicationHeader => ("application id header", None),
            Self::Tenant => ("tenant slug or region", None),
            Self::Budget => ("token request budget", None),
            Self::Refresh => ("refresh time", None),
            Self::Logging => ("logger", None),
            Self::Environment => ("environment", None),
            Self::Egress => ("egress label", None),
            Self::Group => ("limiter group's name", None),
            Self::CallerDeadline => ("caller's deadline", None),
            Self::HttpHosts => ("hosts of plain http", None),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names() {
            (name, None) => f.write_str(name),
            (name, Some(variable)) => write!(f, "{name} ({variable})"),
        }
    }
}

/// What a driver reports when a token request brought no answer.
///
/// The text is the driver's own description, for people; it is cut, and cleared of secrets by the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What kind of failure it was.
    pub kind: FailureKind,
    /// The driver's description; may be empty.
    pub detail: String,
}

impl Failure {
    /// A failure with the driver's description of it.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            FailureKind::Connect => "no connection to the token endpoint",
            FailureKind::Timeout => "the token endpoint did not answer in time",
            FailureKind::Io => "the connection to the token endpoint broke",
            FailureKind::Aborted => "the token request was aborted on this side",
        })?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

/// The kinds of failure that end a token request without an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FailureKind {
    /// No connection: name resolution, refusal, TLS, a connect timeout.
    Connect,
    /// The request's patience ran out in silence.
    Timeout,
    /// The connection broke, or spoke something that is not HTTP.
    Io,
    /// The flight itself ended: its thread panicked, or its runtime went away.
    Aborted,
}

/// Why a caller got no token.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AcquireError {
    /// The token endpoint refused the configuration. No request goes out before `retry_at`, unless the credentials change.
    Configuration {
        /// What the endpoint said.
        refusal: Box<Refusal>,
        /// When the endpoint may be asked again.
        retry_at: Unix,
    },
    /// The endpoint throttles, or the request budget is empty, beyond this caller's deadline.
    RateLimited {
        /// When a token can next be had.
        retry_at: Unix,
        /// A configuration error that came before, and would otherwise be hidden behind the throttle (R37).
        before: Option<Box<Refusal>>,
    },
    /// The endpoint cannot be reached, or gives no usable answer.
    Unavailable {
        /// What went wrong.
        cause: Cause,
        /// When the endpoint may be asked again.
        retry_at: Unix,
    },
    /// The API rejected two fresh tokens in a row: asking for a third would not help (R40).
    TokensRejected {
        /// When a token is asked for again.
        retry_at: Unix,
    },
    /// The caller's deadline passed while a request was under way. The request goes on for later callers.
    DeadlineExceeded,
    /// Another process that shares the token store was to fetch the token, or the store was still being asked, when this call's
    /// deadline passed. Nothing was requested from here.
    HeldElsewhere,
    /// The provider was closed.
    Closed,
    /// A request is still under way after the deadline for closing.
    StillBusy,
    /// The key was never added to this machine, or was removed.
    UnknownKey,
}

/// What made the token endpoint unavailable.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Cause {
    /// No answer came.
    Failed(Failure),
    /// An answer came that holds no token.
    Refused(Box<Refusal>),
    /// The token had already expired when it arrived: the answer took longer than the token lives.
    ExpiredOnArrival,
    /// The endpoint handed out, again, a token that the API had rejected.
    AlreadyRejected,
    /// The endpoint answered a token that lives for zero seconds while a valid one is held.
    NoLifetime,
    /// A process that shares the store asked, and got no token.
    FailedElsewhere,
    /// A process that shares the store asked with the same configuration, and was refused.
    RefusedElsewhere,
}

impl AcquireError {
    /// When a token can next be had, where that is known.
    pub fn retry_at(&self) -> Option<Unix> {
        match self {
            Self::Configuration { retry_at, .. }
            | Self::RateLimited { retry_at, .. }
            | Self::Unavailable { retry_at, .. }
            | Self::TokensRejected { retry_at } => Some(*retry_at),
            Self::DeadlineExceeded | Self::HeldElsewhere | Self::Closed | Self::StillBusy | Self::UnknownKey => None,
        }
    }

    /// Whether the endpoint throttles, or the request budget is empty.
    pub fn is_rate_limited(&self) -> bool {
        matches!(self, Self::RateLimited { .. })
    }

    /// Whether a person has to change the configuration, also when a throttle now stands before that error.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Configuration { .. }
                | Self::RateLimited { before: Some(_), .. }
                | Self::Unavailable { cause: Cause::RefusedElsewhere, .. }
        )
    }

    /// What the token endpoint answered last, where an answer is to blame.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Configuration { refusal, .. }
            | Self::RateLimited { before: Some(refusal), .. }
            | Self::Unavailable { cause: Cause::Refused(refusal), .. } => Some(refusal),
            _ => None,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration { refusal, retry_at } => {
                write!(f, "{refusal}; the endpoint is not asked again before {retry_at}")
            }
            Self::RateLimited { retry_at, before } => {
                write!(f, "rate limited: the next token can be had at {retry_at}")?;
                match before {
                    Some(refusal) => write!(f, "; before that: {refusal}"),
                    None => f.write_str("; wait, or give the call a longer deadline"),
                }
            }
            Self::Unavailable { cause, retry_at } => {
                write!(f, "{cause}; {}; a call tries again from {retry_at} on", cause.advice())
            }
            Self::TokensRejected { retry_at } => write!(
                f,
                "the API rejected two fresh tokens in a row: check that the API and the token belong to the same \
                 environment, and this machine's clock; a new token is asked for from {retry_at}"
            ),
            Self::DeadlineExceeded => f.write_str(
                "the token endpoint has not answered within this call's deadline; the request goes on, so a later call \
                 may find its token",
            ),
            Self::HeldElsewhere => f.write_str(
                "no token came from the token store, or from the process that is to fetch one for all who share it, within this \
                 call's deadline; call again, or give the call a longer deadline: a process that died or hangs is passed by \
                 after some ten seconds",
            ),
            Self::Closed => f.write_str("the token provider was closed; build a new one"),
            Self::StillBusy => f.write_str(
                "a token request is still under way, or the token store is still being told; give closing a longer deadline, or drop \
                 the provider to end it",
            ),
            Self::UnknownKey => f.write_str("no such key; add it to the machine first"),
        }
    }
}

impl std::error::Error for AcquireError {}

impl FailureKind {
    /// The word for it in logs and metrics: `connect`, `timeout`, `io`, `aborted`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Io => "io",
            Self::Aborted => "aborted",
        }
    }
}

impl Cause {
    /// The word for it in logs: a [failure's](FailureKind::name), or `unusable_answer`, `expired_on_arrival`, `already_rejected`,
    /// `no_lifetime`, `failed_elsewhere`, `refused_elsewhere`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Failed(failure) => failure.kind.name(),
            Self::Refused(_) => "unusable_answer",
            Self::ExpiredOnArrival => "expired_on_arrival",
            Self::AlreadyRejected => "already_rejected",
            Self::NoLifetime => "no_lifetime",
            Self::FailedElsewhere => "failed_elsewhere",
            Self::RefusedElsewhere => "refused_elsewhere",
        }
    }

    fn advice(&self) -> &'static str {
        match self {
            Self::Failed(Failure { kind: FailureKind::Aborted, .. }) => "call again",
            Self::Failed(_) => "check the token URL and the way there: network, name, TLS, proxy",
            Self::Refused(_) => {
                "the endpoint has trouble of its own, or something in front of it: wait, and tell its operator"
            }
            Self::ExpiredOnArrival => "check this machine's clock, and the lifetime that the endpoint gives its tokens",
            Self::AlreadyRejected => "check that the API and the token belong to the same environment",
            Self::NoLifetime => "check the lifetime that the endpoint gives its tokens",
            Self::FailedElsewhere => "look into that process's log for the reason",
            Self::RefusedElsewhere => "check the client id, the client secret and the scope",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failure) => failure.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::ExpiredOnArrival => {
                f.write_str("the token had expired when it arrived: the token endpoint is too slow")
            }
            Self::AlreadyRejected => f.write_str("the token endpoint answers a token that the API has rejected"),
            Self::NoLifetime => f.write_str("the token endpoint answers a token that lives for zero seconds"),
            Self::FailedElsewhere => f.write_str("another process that shares the token store asked in vain"),
            Self::RefusedElsewhere => f.write_str(
                "the endpoint refused another process that shares the token store and has the same configuration",
            ),
        }
    }
}
