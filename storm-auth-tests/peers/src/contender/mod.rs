//! The ways to get a token, each called as its user would call it.

mod aliri;
mod huskarl;
mod middle;
mod moka;
mod oauth2;
mod polled;
mod reference;
mod storm;

use std::hint::black_box;
use std::time::Duration;

use http::HeaderValue;
use storm_auth_reqwest::Budget;
use tokio::runtime::EnterGuard;

/// Whatever kept a contender from a token.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The contender that the ratios are to.
pub const OURS: &str = "storm-auth-reqwest";

/// The credentials, which the endpoint does not look at.
const CLIENT_ID: &str = "shop";
const CLIENT_SECRET: &str = "a secret";

/// A contender that runs.
pub trait Contender: Send + Sync {
    /// A valid token as a header that is ready to be put in a request. Waits when there is none. All of them are `#[inline(always)]`, so
    /// that the harness costs each of them the same.
    fn header(&self) -> Result<HeaderValue, Error>;

    /// What a thread holds while it calls: the runtime, for those that need one.
    fn enter(&self) -> Option<EnterGuard<'_>> {
        None
    }

    /// So many calls in a row. It is a method of the trait so that it is compiled for each contender by itself, and a call costs
    /// no dispatch.
    ///
    /// # Panics
    /// When there is no token.
    fn run(&self, calls: u64) {
        for _ in 0..calls {
            match self.header() {
                Ok(header) => drop(black_box(header)),
                Err(error) => panic!("no token: {error}"),
            }
        }
    }
}

/// When a contender asks the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// When a call finds that it has to.
    OnCall,
    /// In a task of its own, which starts with a token: there are no calls without one.
    InBackground,
    /// Never: it is a reference for the cached call alone.
    Never,
}

/// What a contender starts from.
pub struct Setup {
    pub url: String,
    /// The lifetime of the tokens. Who can be told when to refresh is told three quarters of it.
    pub lifetime: Duration,
    /// For the contenders that keep one.
    pub budget: Budget,
}

impl Setup {
    /// How long before a token's end it is refreshed.
    fn margin(&self) -> Duration {
        self.lifetime / 4
    }
}

/// A way to get a token that can be started.
pub struct Candidate {
    pub name: &'static str,
    pub asks: Asks,
    start: fn(&Setup) -> Result<Box<dyn Contender>, Error>,
}

impl Candidate {
    const fn new(name: &'static str, asks: Asks, start: fn(&Setup) -> Result<Box<dyn Contender>, Error>) -> Self {
        Self { name, asks, start }
    }

    /// Starts it, without a token if it can.
    pub fn start(&self, setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        (self.start)(setup)
    }

    /// Starts it and gets its first token.
    pub fn start_with_token(&self, setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        let contender = self.start(setup)?;
        let runtime = contender.enter();
        contender.header()?;
        drop(runtime);
        Ok(contender)
    }

    /// The candidate of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|candidate| candidate.name == name)
    }
}

/// All of them, ours first and the references last.
pub const ALL: &[Candidate] = &[
    Candidate::new(OURS, Asks::OnCall, storm::Async::start),
    Candidate::new("storm-auth-blocking", Asks::OnCall, storm::Blocking::start),
    Candidate::new("middle", Asks::InBackground, middle::Middle::start),
    Candidate::new("aliri_tokens", Asks::InBackground, aliri::Aliri::start),
    Candidate::new("oauth2+ureq+mutex", Asks::OnCall, oauth2::Blocking::start),
    Candidate::new("oauth2+reqwest+mutex", Asks::OnCall, oauth2::Async::start),
    Candidate::new("huskarl", Asks::OnCall, huskarl::Huskarl::start),
    Candidate::new("oauth2+reqwest+moka", Asks::OnCall, moka::Moka::start),
    Candidate::new("ref:arcswap+instant", Asks::Never, reference::Swapped::start),
    Candidate::new("ref:copy-per-thread", Asks::Never, reference::PerThread::start),
    Candidate::new("ref:16-copies", Asks::Never, reference::Lanes::start),
    Candidate::new("ref:clone-alone", Asks::Never, reference::Shared::start),
];

/// The header that a user makes of a token's text, as reqwest's `bearer_auth` does.
fn bearer(token: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))?;
    header.set_sensitive(true);
    Ok(header)
}
