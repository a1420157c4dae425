//! `aliri_tokens`: a task refreshes, and a call borrows the token that is there, expired or not.

use aliri::jwt::Audience;
use aliri_clock::DurationSecs;
use aliri_tokens::backoff::ErrorBackoffConfig;
use aliri_tokens::jitter::NullJitter;
use aliri_tokens::sources::oauth2::ClientCredentialsTokenSource;
use aliri_tokens::sources::oauth2::dto::{ClientCredentials, ClientCredentialsWithAudience};
use aliri_tokens::{ClientId, ClientSecret, TokenLifetimeConfig, TokenWatcher};
use http::HeaderValue;

use super::polled::Polled;
use super::{CLIENT_ID, CLIENT_SECRET, Contender, Error, Setup, bearer};

/// Its lower bound of the time to a refresh, whose default of 30 s is longer than the lives of tokens here.
const SOONEST_REFRESH: DurationSecs = DurationSecs(1);

pub struct Aliri {
    watcher: TokenWatcher,
    /// The task's.
    _runtime: Polled,
}

impl Aliri {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        let runtime = Polled::new()?;
        let credentials = ClientCredentials {
            client_id: ClientId::from_static(CLIENT_ID),
            client_secret: ClientSecret::from_static(CLIENT_SECRET),
        };
        let source = ClientCredentialsTokenSource::new(
            reqwest::Client::new(),
            setup.url.parse()?,
            ClientCredentialsWithAudience { credentials: credentials.into(), audience: Audience::from_static("api") },
            TokenLifetimeConfig::new(0.75, SOONEST_REFRESH),
        );
        let watcher =
            TokenWatcher::spawn_from_token_source(source.using_form_data(), NullJitter, ErrorBackoffConfig::default());
        let watcher = runtime.wait(watcher)?;
        Ok(Box::new(Self { watcher, _runtime: runtime }))
    }
}

impl Contender for Aliri {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        bearer(self.watcher.token().access_token().as_str())
    }
}
