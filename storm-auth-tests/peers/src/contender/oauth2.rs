//! `oauth2` with the cache that its users write: a token and its end behind a mutex, held while a request is under way.

use std::time::{Duration, Instant};

use http::HeaderValue;
use oauth2::basic::{BasicClient, BasicTokenResponse};
use oauth2::{AuthType, ClientId, ClientSecret, EndpointNotSet, EndpointSet, TokenResponse as _, TokenUrl};
use tokio::runtime::EnterGuard;

use super::polled::Polled;
use super::{CLIENT_ID, CLIENT_SECRET, Contender, Error, Setup, bearer};

pub type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

pub fn client(setup: &Setup) -> Result<Client, Error> {
    Ok(BasicClient::new(ClientId::new(CLIENT_ID.to_owned()))
        .set_client_secret(ClientSecret::new(CLIENT_SECRET.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::new(setup.url.clone())?))
}

/// The HTTP client that the docs of `oauth2` ask for.
pub fn http_client() -> Result<reqwest::Client, Error> {
    Ok(reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?)
}

struct Cached {
    token: String,
    refresh_at: Instant,
}

impl Cached {
    fn new(response: &BasicTokenResponse, margin: Duration) -> Self {
        let lifetime = response.expires_in().unwrap_or_default();
        Self {
            token: response.access_token().secret().clone(),
            refresh_at: Instant::now() + lifetime.saturating_sub(margin),
        }
    }

    fn valid(cached: &Option<Self>) -> Option<String> {
        cached.as_ref().filter(|cached| Instant::now() < cached.refresh_at).map(|cached| cached.token.clone())
    }
}

pub struct Async {
    client: Client,
    http: reqwest::Client,
    cached: tokio::sync::Mutex<Option<Cached>>,
    margin: Duration,
    runtime: Polled,
}

impl Async {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        Ok(Box::new(Self {
            client: client(setup)?,
            http: http_client()?,
            cached: tokio::sync::Mutex::default(),
            margin: setup.margin(),
            runtime: Polled::new()?,
        }))
    }

    async fn token(&self) -> Result<String, Error> {
        let mut cached = self.cached.lock().await;
        if let Some(token) = Cached::valid(&cached) {
            return Ok(token);
        }
        let response = self.client.exchange_client_credentials().request_async(&self.http).await?;
        Ok(cached.insert(Cached::new(&response, self.margin)).token.clone())
    }
}

impl Contender for Async {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        bearer(&self.runtime.ready(self.token())?)
    }

    fn enter(&self) -> Option<EnterGuard<'_>> {
        Some(self.runtime.enter())
    }
}

pub struct Blocking {
    client: Client,
    http: ureq::Agent,
    cached: std::sync::Mutex<Option<Cached>>,
    margin: Duration,
}

impl Blocking {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        Ok(Box::new(Self {
            client: client(setup)?,
            http: ureq::AgentBuilder::new().redirects(0).build(),
            cached: std::sync::Mutex::default(),
            margin: setup.margin(),
        }))
    }

    fn token(&self) -> Result<String, Error> {
        let mut cached = self.cached.lock().map_err(|_| "a caller panicked")?;
        if let Some(token) = Cached::valid(&cached) {
            return Ok(token);
        }
        let response = self.client.exchange_client_credentials().request(&self.http)?;
        Ok(cached.insert(Cached::new(&response, self.margin)).token.clone())
    }
}

impl Contender for Blocking {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        bearer(&self.token()?)
    }
}
