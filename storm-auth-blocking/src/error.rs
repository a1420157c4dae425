//! The adapter's error: opaque, with predicates, so that a major version of the HTTP client is not a break of this crate.

use std::fmt;
use std::time::SystemTime;

use storm_auth_core::{AcquireError, ConfigError};

/// Why there is no token, or no response.
///
/// Its text says what to do next and never holds a secret.
///
/// `Debug` is the same text, since that is what a `main` that returns it shows.
pub struct Error(Box<Kind>);

enum Kind {
    Config(ConfigError),
    Acquire(AcquireError),
    Http(ureq::Error),
}

impl Error {
    /// A person has to change a setting: one that is missing or malformed, or one that the token endpoint refused.
    pub fn is_configuration(&self) -> bool {
        match &*self.0 {
            Kind::Config(_) => true,
            Kind::Acquire(error) => error.is_configuration(),
            Kind::Http(_) => false,
        }
    }

    /// The token endpoint throttles, or the request budget is empty; [`retry_at`](Self::retry_at) says when to come back.
    pub fn is_rate_limited(&self) -> bool {
        self.acquire_error().is_some_and(AcquireError::is_rate_limited)
    }

    /// No token could be had, for whatever reason; the API was not called.
    pub fn is_token(&self) -> bool {
        matches!(*self.0, Kind::Acquire(_))
    }

    /// The API call itself failed: no connection, a timeout, a broken body. An answer of any status is no error.
    pub fn is_api(&self) -> bool {
        matches!(*self.0, Kind::Http(_))
    }

    /// When a token can next be had, where that is known.
    pub fn retry_at(&self) -> Option<SystemTime> {
        self.acquire_error()?.retry_at().map(SystemTime::from)
    }

    /// The machine's own error, where no token could be had.
    pub fn acquire_error(&self) -> Option<&AcquireError> {
        match &*self.0 {
            Kind::Acquire(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Config(error) => error.fmt(f),
            Kind::Acquire(error) => write!(f, "no token: {error}"),
            #[cfg(feature = "json")]
            Kind::Http(ureq::Error::Json(error)) => {
                write!(f, "the API's answer is not what was expected: {error}; compare the type with the answer's text")
            }
            Kind::Http(error) => {
                write!(f, "the API call failed: {error}; check the API URL (STORM_API_URL) and the way there")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            // Their texts stand in ours already.
            Kind::Config(_) | Kind::Acquire(_) => None,
            Kind::Http(error) => Some(error),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self(Box::new(Kind::Config(error)))
    }
}

impl From<AcquireError> for Error {
    fn from(error: AcquireError) -> Self {
        Self(Box::new(Kind::Acquire(error)))
    }
}

impl From<ureq::Error> for Error {
    fn from(error: ureq::Error) -> Self {
        Self(Box::new(Kind::Http(error)))
    }
}
