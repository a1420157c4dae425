//! A `moka` cache of a token, which `oauth2` fetches when the entry has expired.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use moka::Expiry;
use moka::future::Cache;
use oauth2::TokenResponse as _;
use tokio::runtime::EnterGuard;

use super::oauth2::{Client, client, http_client};
use super::polled::Polled;
use super::{Contender, Error, Setup, bearer};

#[derive(Clone)]
struct Entry {
    token: Arc<str>,
    keep_for: Duration,
}

/// Lets each entry live as long as its own token says.
struct ByToken;

impl Expiry<(), Entry> for ByToken {
    fn expire_after_create(&self, _: &(), entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.keep_for)
    }
}

pub struct Moka {
    client: Client,
    http: reqwest::Client,
    cache: Cache<(), Entry>,
    margin: Duration,
    runtime: Polled,
}

impl Moka {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        Ok(Box::new(Self {
            client: client(setup)?,
            http: http_client()?,
            cache: Cache::builder().expire_after(ByToken).build(),
            margin: setup.margin(),
            runtime: Polled::new()?,
        }))
    }

    async fn token(&self) -> Result<Arc<str>, Error> {
        Ok(self.cache.try_get_with((), self.fetch()).await?.token)
    }

    async fn fetch(&self) -> Result<Entry, FetchFailed> {
        let response = self.client.exchange_client_credentials().request_async(&self.http).await?;
        let keep_for = response.expires_in().unwrap_or_default().saturating_sub(self.margin);
        Ok(Entry { token: response.access_token().secret().as_str().into(), keep_for })
    }
}

type FetchFailed = oauth2::basic::BasicRequestTokenError<oauth2::HttpClientError<reqwest::Error>>;

impl Contender for Moka {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        bearer(&self.runtime.ready(self.token())?)
    }

    fn enter(&self) -> Option<EnterGuard<'_>> {
        Some(self.runtime.enter())
    }
}
