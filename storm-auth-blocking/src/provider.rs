//! The provider: tokens for one key, from the cell when they are cached.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use storm_auth_core::driver::Cell;
use storm_auth_core::{
    AcquireError, Counters, Credentials, Invalidated, Key, KeyId, KeyStatus, Scope, Status, Token, TokenId,
};

use crate::builder::Builder;
use crate::driver::{Driver, Handle, KeepWarm, Source};
use crate::error::Error;

/// Hands out the token of one key: from memory in nanoseconds, with at most one request under way for all its clones.
///
/// Cheap to clone. Providers for other clients or scopes behind the same limiter are derived from it, and share its budget.
///
/// ```no_run
/// # use storm_auth_blocking::{Credentials, Environment, TokenProvider, env};
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let tokens = TokenProvider::builder()
///     .environment(Environment::storm_lab())
///     .credentials(env::credentials()?)
///     .build_tokens()?;
/// let token = tokens.token()?;                                   // for gRPC, GraphQL, another client
/// let erp = tokens.for_credentials(Credentials::new("erp", "S3cret")?);  // another client id, the same budget
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TokenProvider {
    /// The handle's, so that a call comes to its clock in one step.
    driver: Arc<Driver>,
    key: KeyId,
    cell: Arc<Cell>,
    /// Where its callers wait.
    bell: Arc<Condvar>,
    handle: Arc<Handle>,
}

impl TokenProvider {
    /// A builder; finish it with [`Builder::build_tokens`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(handle: Arc<Handle>, key: Key) -> Self {
        let driver = handle.0.clone();
        let (key, cell) = driver.add_key(key);
        Self { driver, key, cell, bell: Arc::new(Condvar::new()), handle }
    }

    /// A valid token. One that is cached costs neither a lock nor an allocation.
    ///
    /// # Errors
    /// No token can be had within the caller's deadline (30 s unless the builder says otherwise): [`Error`] says why, and when
    /// to come back.
    #[inline]
    pub fn token(&self) -> Result<Token, Error> {
        self.call(None, Token::clone)
    }

    /// The same with a deadline of this call's own. The request that it may start goes on past it, for later callers.
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn token_within(&self, deadline: Duration) -> Result<Token, Error> {
        self.call(Some(deadline), Token::clone)
    }

    /// A valid token as a ready `Authorization` value, marked sensitive: the cheapest way to a cached token.
    ///
    /// # Errors
    /// As [`token`](Self::token).
    #[inline]
    pub fn header(&self) -> Result<HeaderValue, Error> {
        self.call(None, Token::header)
    }

    /// Sets `Authorization` for a client of your own. When its answer rejects the token
    /// ([`rejects_token`](storm_auth_core::wire::challenge::rejects_token)), tell [`invalidate`](Self::invalidate).
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn authorize(&self, headers: &mut HeaderMap) -> Result<TokenId, Error> {
        let token = self.token()?;
        headers.insert(AUTHORIZATION, token.header());
        Ok(token.id())
    }

    /// The API rejected this token: if it is still the current one it is never served again, if not, nothing changes.
    pub fn invalidate(&self, token: TokenId) -> Invalidated {
        self.driver.command(|machine, now| machine.invalidate(token, now))
    }

    /// A provider for another client behind the same limiter. It shares the budget and the gate. With the same client id it is
    /// the same key: another secret then replaces the known one, as [`set_credentials`](Self::set_credentials) does. A key lives
    /// as long as its limiter group, so that its token is still there when it is derived again.
    pub fn for_credentials(&self, credentials: Credentials) -> Self {
        self.derive(|key| key.for_credentials(credentials))
    }

    /// A provider for another scope of the same client. It shares the budget and the gate.
    pub fn for_scope(&self, scope: Scope) -> Self {
        self.derive(|key| key.for_scope(scope))
    }

    fn derive(&self, derive: impl FnOnce(&Key) -> Key) -> Self {
        let key = self.driver.command(|machine, _| machine.key(self.key).map(derive));
        self.for_key(key.expect("a provider's key is never removed"))
    }

    pub(crate) fn with_source(self, source: Option<Arc<Source>>) -> Self {
        if let Some(source) = source {
            self.driver.renew(self.key, source);
        }
        self
    }

    pub(crate) fn for_key(&self, key: Key) -> Self {
        Self::new(self.handle.clone(), key)
    }

    /// Replaces the secret in place, for all clones: the next request uses it, and the current token stays. Providers of other
    /// scopes are other keys, which keep theirs. Where the builder named a file or a source, that one's next word counts again.
    ///
    /// # Errors
    /// [`Error::is_configuration`]: another client id; derive a provider with [`for_credentials`](Self::for_credentials).
    pub fn set_credentials(&self, credentials: Credentials) -> Result<(), Error> {
        Ok(self.driver.command(|machine, now| machine.set_credentials(self.key, credentials, now))?)
    }

    /// Waits until a token is there, to fail fast at start-up.
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn ready(&self, deadline: Duration) -> Result<(), Error> {
        self.token_within(deadline).map(drop)
    }

    /// Starts nothing more, for all providers of this limiter group, and waits until nothing is under way, so that no request
    /// is wasted. Tokens that are cached are served while they live.
    ///
    /// Where a store is shared and this was not called, dropping the last handle tells it what it is owed, on the dropping
    /// thread: as a rule within a millisecond, and within a second where it hangs.
    ///
    /// # Errors
    /// The deadline passed while a request was under way, or while the store was told; a request ends when the last handle is
    /// dropped.
    pub fn close(&self, deadline: Duration) -> Result<(), Error> {
        Ok(self.driver.shut_down(deadline)?)
    }

    /// Refreshes the token in time without being called, while the guard lives.
    pub fn keep_warm(&self) -> KeepWarm {
        self.handle.keep_warm(self.key)
    }

    /// The state of the limiter group and its keys, for a health endpoint.
    pub fn status(&self) -> Status {
        self.driver.meter().tell_served();
        self.driver.command(|machine, now| machine.status(now))
    }

    /// The state of this provider's key.
    pub fn key_status(&self) -> Option<KeyStatus> {
        self.driver.command(|machine, now| machine.key_status(self.key, now))
    }

    /// What the limiter group has counted.
    pub fn counters(&self) -> Counters {
        self.driver.command(|machine, _| machine.counters())
    }

    /// How many calls were served from memory, by all providers of this limiter group. It is exact while none is under way. What else
    /// there is to count of calls is among the [metrics](crate::core::driver::Metric).
    ///
    /// ```no_run
    /// # fn scrape(tokens: &storm_auth_blocking::TokenProvider) {
    /// tokens.status(); // tells the recorder what it has not been told yet
    /// println!("{} calls were served from memory", tokens.served());
    /// # }
    /// ```
    #[cfg(feature = "metrics")]
    pub fn served(&self) -> u64 {
        self.driver.meter().total()
    }

    /// The API rejected this token: what is to be sent again, and another token for it. Without either the caller gets the 401, and
    /// the reason is an event (R39).
    pub(crate) fn replay<R>(&self, rejected: TokenId, again: Option<R>) -> Option<(R, Token)> {
        self.invalidate(rejected);
        let Some(again) = again else {
            self.abandon_replay(rejected, None);
            return None;
        };
        match self.token() {
            Ok(other) => Some((again, other)),
            Err(error) => {
                self.abandon_replay(rejected, error.acquire_error().cloned());
                None
            }
        }
    }

    fn abandon_replay(&self, token: TokenId, error: Option<AcquireError>) {
        self.driver.command(|machine, _| machine.note_abandoned_replay(token, error));
    }

    #[inline]
    fn call<T>(&self, deadline: Option<Duration>, read: impl Fn(&Token) -> T) -> Result<T, Error> {
        let lane = lane();
        let hit = |token: &Token| {
            self.driver.meter().served(lane);
            Ok(read(token))
        };
        let ask = || self.acquire(deadline).map(|token| read(&token));
        self.cell.serve(lane, self.driver.clock(), hit, ask)
    }

    #[cold]
    fn acquire(&self, deadline: Option<Duration>) -> Result<Token, Error> {
        Ok(self.driver.acquire(self.key, &self.bell, deadline)?)
    }
}

/// The calling thread's number: threads take turns, so that neighbours do not share a reference count.
#[inline]
fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static LANE: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    LANE.with(|lane| *lane)
}
