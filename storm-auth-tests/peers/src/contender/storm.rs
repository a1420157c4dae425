//! storm-auth, in both styles.

use http::HeaderValue;
use storm_auth_reqwest::{Credentials, Scope};
use tokio::runtime::EnterGuard;

use super::polled::Polled;
use super::{CLIENT_ID, CLIENT_SECRET, Contender, Error, Setup};

pub struct Async {
    tokens: storm_auth_reqwest::TokenProvider,
    runtime: Polled,
}

impl Async {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        let tokens = storm_auth_reqwest::TokenProvider::builder()
            .token_url(&setup.url)
            .credentials(Credentials::new(CLIENT_ID, CLIENT_SECRET)?)
            .scope(Scope::new("playground")?)
            .budget(setup.budget.clone())
            .build_tokens()?;
        Ok(Box::new(Self { tokens, runtime: Polled::new()? }))
    }
}

impl Contender for Async {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        self.runtime.ready(self.tokens.header())
    }

    fn enter(&self) -> Option<EnterGuard<'_>> {
        Some(self.runtime.enter())
    }
}

pub struct Blocking(storm_auth_blocking::TokenProvider);

impl Blocking {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        let tokens = storm_auth_blocking::TokenProvider::builder()
            .token_url(&setup.url)
            .credentials(Credentials::new(CLIENT_ID, CLIENT_SECRET)?)
            .scope(Scope::new("playground")?)
            .budget(setup.budget.clone())
            .build_tokens()?;
        Ok(Box::new(Self(tokens)))
    }
}

impl Contender for Blocking {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        Ok(self.0.header()?)
    }
}
