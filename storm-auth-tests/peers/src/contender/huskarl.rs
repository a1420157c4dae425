//! `huskarl`: a cache in memory over its client-credentials grant. It refreshes early where it is told to, and without the random
//! part of the time, so that all refresh at the same time.

use http::HeaderValue;
use huskarl::cache::{GrantTokenSource, InMemoryRefreshTokenStore, InMemoryTokenCache, TokenSource as _};
use huskarl::core::client_auth::ClientSecret;
use huskarl::core::secrets::{ProvidedSecret, SecretString};
use huskarl::grant::client_credentials::{ClientCredentialsGrant, ClientCredentialsGrantParameters};
use huskarl_reqwest::ReqwestClient;
use tokio::runtime::EnterGuard;

use super::polled::Polled;
use super::{CLIENT_ID, CLIENT_SECRET, Contender, Error, Setup};

type Source = GrantTokenSource<ClientCredentialsGrant, InMemoryRefreshTokenStore>;

pub struct Huskarl {
    cache: InMemoryTokenCache<Source>,
    runtime: Polled,
}

impl Huskarl {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        let runtime = Polled::new()?;
        let grant = ClientCredentialsGrant::builder()
            .client_id(CLIENT_ID)
            .http_client(runtime.wait(ReqwestClient::builder().build())?)
            .client_auth(ClientSecret::new(ProvidedSecret::new(SecretString::new(CLIENT_SECRET))))
            .token_endpoint(setup.url.parse()?)
            .build();
        let source = GrantTokenSource::builder()
            .grant(grant)
            .grant_parameters(ClientCredentialsGrantParameters::new())
            .refresh_store(InMemoryRefreshTokenStore::default())
            .build();
        let cache = InMemoryTokenCache::builder()
            .source(source)
            .refresh_ahead(setup.margin())
            .expires_margin(setup.margin() / 8)
            .refresh_jitter(None)
            .build();
        Ok(Box::new(Self { cache, runtime }))
    }
}

impl Contender for Huskarl {
    /// What its `HttpAuthorizer` does for a bearer token, without the map of headers around it.
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        let mut header = self.runtime.ready(self.cache.token())?.access_token().expose_header_value()?;
        header.set_sensitive(true);
        Ok(header)
    }

    fn enter(&self) -> Option<EnterGuard<'_>> {
        Some(self.runtime.enter())
    }
}
