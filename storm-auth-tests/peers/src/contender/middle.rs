//! `middle`: a task refreshes, and a call takes the header that is there.

use std::sync::Arc;

use http::HeaderValue;
use middle::{Authorizer as _, BasicClientCredentialAuthorizer};

use super::polled::Polled;
use super::{CLIENT_ID, CLIENT_SECRET, Contender, Error, Setup};

pub struct Middle {
    authorizer: BasicClientCredentialAuthorizer,
    /// The task's.
    _runtime: Polled,
}

impl Middle {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        let runtime = Polled::new()?;
        let builder = BasicClientCredentialAuthorizer::basic_builder(CLIENT_ID, CLIENT_SECRET, setup.url.parse()?)
            .refresh_tolerance(setup.margin());
        let authorizer = runtime.wait(builder.build())?;
        Ok(Box::new(Self { authorizer, _runtime: runtime }))
    }
}

impl Contender for Middle {
    /// As its own HTTP client takes it.
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        Ok(Arc::unwrap_or_clone(self.authorizer.authorization_header()?))
    }
}
