//! The builder: settings that the core checks, and the few that are reqwest's.

use std::collections::hash_map::RandomState;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use storm_auth_core::store::TokenStore;
use storm_auth_core::{Api, Config, ConfigError, Credentials, Event, Field, Machine, Settings};

use crate::client::StormClient;
use crate::clock::Clock;
use crate::driver::{Driver, Handle, OnEvent, Runway, Source};
use crate::env;
use crate::error::Error;
use crate::observe;
use crate::provider::TokenProvider;
use crate::transport::{self, Transport};

type TokenClient = dyn Fn() -> reqwest::ClientBuilder + Send + Sync;

/// Builds a [`StormClient`] or a [`TokenProvider`]. Everything is checked by `build`, before any request.
#[derive(Clone, Default)]
pub struct Builder {
    settings: Settings,
    token_client: Option<Arc<TokenClient>>,
    api_client: Option<reqwest::Client>,
    runtime: Option<tokio::runtime::Handle>,
    limiter: Option<TokenProvider>,
    store: Option<Arc<dyn TokenStore>>,
    origin: Option<Origin>,
    on_event: Option<Arc<OnEvent>>,
    clock: Clock,
    seed: Option<u64>,
}

/// Where the credentials come from.
#[derive(Clone)]
enum Origin {
    Source(Source),
    File(String, PathBuf),
    /// Files that variables or a configuration file name.
    Settings(Arc<dyn Fn() -> Result<Credentials, ConfigError> + Send + Sync>),
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl From<Settings> for Builder {
    fn from(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }
}

/// Settings that both adapters have; the core documents and checks them.
impl Builder {
    storm_auth_core::forward_settings!();

    /// The settings of a configuration file, in whatever format it was read from; reads the file that it names for the client secret,
    /// and reads it again as [`credentials_file`](Self::credentials_file) says. [`config_file`](storm_auth_core::config_file) tells which keys
    /// there are.
    ///
    /// ```
    /// use storm_auth_reqwest::{Builder, FileSettings};
    ///
    /// let config: FileSettings = toml::from_str(
    ///     r#"
    ///     norce = { tenant = "acme", region = "se", stage = "playground" }
    ///     client_id = "shop"
    ///     client_secret_file = "storm-secret"
    ///     "#,
    /// )?;
    /// # let folder = std::env::temp_dir().join(format!("storm-auth-reqwest-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder)?;
    /// # std::fs::write(folder.join("storm-secret"), "S3cret\n")?;
    /// # let config = config.relative_to(&folder);
    /// let storm = Builder::from_config(&config)?.build()?;
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The first key that is missing or malformed, with what to write.
    #[cfg(feature = "serde")]
    pub fn from_config(config: &storm_auth_core::FileSettings) -> Result<Self, ConfigError> {
        crate::env::configured(config, |_| None)
    }

    /// Shares the limiter group of another provider, its budget, its gate and its store: for a second tenant behind the same address,
    /// even on another host. Policy, budget, token client, clock, seed, events and the group's name are then that
    /// provider's.
    pub fn share_limiter(mut self, provider: &TokenProvider) -> Self {
        self.limiter = Some(provider.clone());
        self
    }

    /// Shares tokens with the other processes that use this store: one request goes out for all of them. While the store cannot be
    /// used, the process goes on alone. `storm-auth-store` has one for a machine and one for a fleet.
    pub fn store(mut self, store: impl TokenStore + 'static) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// The client id and secret. They take the place of those in a file ([`credentials_file`](Self::credentials_file),
    /// `env::builder`); a [`credentials_source`](Self::credentials_source) goes on being asked.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.origin = self.origin.filter(|origin| matches!(origin, Origin::Source(_)));
        self.settings = self.settings.credentials(credentials);
        self
    }

    /// The client's secret is in a file that holds it alone, as orchestrators mount them, and that may be rewritten: it is read by
    /// `build`, beside each token request, and, while a refused configuration stands and a token is wanted, every 10 s. So another
    /// secret takes effect without a restart, and costs one refused request at the most. One line ending at the file's end is not
    /// part of the secret. Of this and [`credentials_source`](Self::credentials_source), the one that was called last counts.
    pub fn credentials_file(mut self, client_id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.origin = Some(Origin::File(client_id.into(), path.into()));
        self
    }

    /// Is told each event of the machine, on whatever thread it happened; it should be quick.
    pub fn on_event(mut self, on_event: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Arc::new(on_event));
        self
    }

    /// Where the time is read: for tests that move it.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The seed of what is random in the machine. Default: drawn from the process's own randomness.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// Settings of this adapter.
impl Builder {
    /// Where the credentials come from, be it a vault: it is asked beside each token request, and, while a refused configuration stands
    /// and a token is wanted, every 10 s. Others than the known ones take effect at once. [`credentials`](Self::credentials) are
    /// needed too: they are used until it has answered.
    ///
    /// It runs where token requests do, on a short-lived thread with a runtime of its own unless
    /// [`flights_on`](Self::flights_on) names one, so a client that it uses should be its own. There is one at a time, unless one hangs
    /// for ten minutes: give it a timeout. Nothing waits for it, and it ends with the last handle. Where it fails or panics, or answers
    /// another client id, an event says so and the known credentials stay in use. It belongs to the builder's own client and scope:
    /// what is derived from the provider has none.
    ///
    /// ```no_run
    /// # use storm_auth_reqwest::{ConfigError, Credentials, Environment, StormClient, env};
    /// # async fn ask_the_vault() -> Result<String, ConfigError> { unimplemented!() }
    /// # fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let storm = StormClient::builder()
    ///     .environment(Environment::storm_lab())
    ///     .credentials(env::credentials()?)
    ///     .credentials_source(|| async { Credentials::new("shop", ask_the_vault().await?) })
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn credentials_source<F, E>(mut self, source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        let ask = move || {
            let asking = source();
            async { asking.await.map_err(Into::into) }
        };
        self.origin = Some(Origin::Source(Source::Async(Arc::new(move || Box::pin(ask())))));
        self
    }

    /// The files that the settings came from are read again.
    pub(crate) fn read_again(
        mut self,
        read: impl Fn() -> Result<Credentials, ConfigError> + Send + Sync + 'static,
    ) -> Self {
        self.origin = Some(Origin::Settings(Arc::new(read)));
        self
    }

    /// Makes the client of the token requests from settings of yours: TLS roots, a proxy, a resolver, a user agent. What a token
    /// request needs to be safe is set after it: no redirect, no retry, no decompression, no idle connection, and its timeouts.
    ///
    /// ```
    /// # use storm_auth_reqwest::{Credentials, Environment, StormClient};
    /// let storm = StormClient::builder()
    ///     .environment(Environment::storm_lab())
    ///     .credentials(Credentials::new("shop", "S3cret")?)
    ///     .token_client(|| reqwest::Client::builder().user_agent("acme-shop/1.0"))
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn token_client(mut self, builder: impl Fn() -> reqwest::ClientBuilder + Send + Sync + 'static) -> Self {
        self.token_client = Some(Arc::new(builder));
        self
    }

    /// The client of the API calls. Where a redirect takes the bearer is then up to that client's policy; the default client
    /// follows none, and hands out a 3xx as the answer it is. Nor is it this crate's to replace after a fork: a child needs
    /// another one, since nobody drives the idle connections of this one there.
    pub fn api_client(mut self, client: reqwest::Client) -> Self {
        self.api_client = Some(client);
        self
    }

    /// Runs token requests as tasks of this runtime instead of on short-lived threads of their own. It saves a thread per
    /// request, and makes every caller depend on that runtime being driven. A forked child has not that runtime, and uses threads.
    pub fn flights_on(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Checks the settings and builds a client for authorised API calls. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::is_configuration`]: a setting that is missing or malformed, by name, with the fix.
    pub fn build(self) -> Result<StormClient, Error> {
        let api_http = self.api_client.clone();
        let (tokens, api) = self.finish()?;
        let api = api.ok_or_else(|| ConfigError::missing(Field::ApiUrl))?;
        Ok(StormClient::new(api_http, api, tokens)?)
    }

    /// Checks the settings and builds a provider of tokens alone; no API base is needed. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_tokens(self) -> Result<TokenProvider, Error> {
        self.finish().map(|(tokens, _)| tokens)
    }

    fn finish(self) -> Result<(TokenProvider, Option<Api>), Error> {
        let (settings, source) = match self.origin {
            Some(Origin::File(client_id, path)) => {
                let read = move || Credentials::from_file(&*client_id, env::read(&path));
                (self.settings.credentials(read()?), Some(Source::Blocking(Arc::new(read))))
            }
            Some(Origin::Settings(read)) => (self.settings, Some(Source::Blocking(read))),
            Some(Origin::Source(source)) => (self.settings, Some(source)),
            None => (self.settings, None),
        };
        let Config { key, api, policy, group, .. } = settings.check()?;
        if let Some(provider) = self.limiter {
            return Ok((provider.for_key(key).with_source(source), api));
        }
        let transport = Transport::new(self.token_client.as_deref().unwrap_or(&transport::ours))?;
        let mut machine = Machine::new(policy, self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish()));
        let runway = self.runtime.map_or(Runway::OwnThreads, Runway::Runtime);
        if self.store.is_some() {
            machine.share();
        }
        let group = group.unwrap_or_else(observe::next_group);
        let driver = Driver::new(machine, self.clock, transport, runway, self.store, self.on_event, group);
        Ok((TokenProvider::new(Arc::new(Handle(driver)), key).with_source(source), api))
    }
}
