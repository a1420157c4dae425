//! What went wrong, and with which status the process ends.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::SystemTime;

use storm_auth_blocking::{AcquireError, ConfigError, Error, Unix};

use crate::output;

/// The kinds of failure, and the exit status of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Usage,
    Configuration,
    Refused,
    RateLimited,
    Api,
    Unavailable,
    Output,
    /// Whoever reads the output has seen enough: no failure, but the end.
    Unread,
}

impl Kind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Unread => 0,
            Self::Usage | Self::Configuration => 2,
            Self::Refused => 3,
            Self::RateLimited => 4,
            Self::Api => 5,
            Self::Unavailable | Self::Output => 6,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Configuration => "configuration",
            Self::Refused => "refused",
            Self::RateLimited => "rate_limited",
            Self::Api => "api",
            Self::Unavailable => "unavailable",
            Self::Output | Self::Unread => "output",
        }
    }

    /// What stands behind an error of the library.
    pub(crate) fn of(error: &Error) -> Self {
        match error.acquire_error() {
            Some(AcquireError::RateLimited { .. }) => Self::RateLimited,
            Some(error) if error.is_configuration() => Self::Refused,
            Some(_) => Self::Unavailable,
            None if error.is_api() => Self::Api,
            None => Self::Configuration,
        }
    }
}

/// A failure in words that tell what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) retry_at: Option<Unix>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_at: None }
    }

    pub(crate) fn configuration(message: impl Display) -> Self {
        Self::new(Kind::Configuration, message.to_string())
    }

    /// Says it, as JSON on standard output or as text on standard error, and returns the exit status.
    pub(crate) fn report(&self, as_json: bool) -> ExitCode {
        let Self { kind, message, retry_at } = self;
        if *kind != Kind::Unread {
            if as_json {
                let retry_at = retry_at.map(|at| at.to_string());
                let error = serde_json::json!({ "kind": kind.name(), "message": message, "retry_at": retry_at });
                let _ = output::print_json(&serde_json::json!({ "error": error }));
            } else {
                let now = Unix::from(SystemTime::now());
                let wait = retry_at.filter(|at| *at > now).map(|at| format!(" (in {})", output::span(at.since(now))));
                output::tell(&format!("storm-token: {message}{}", wait.unwrap_or_default()));
            }
        }
        ExitCode::from(kind.code())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let retry_at = error.acquire_error().and_then(AcquireError::retry_at);
        Self { kind: Kind::of(&error), message: error.to_string(), retry_at }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::configuration(error)
    }
}
