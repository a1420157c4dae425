//! Where tokens come from, as a trait: so that code which needs one is tested without sockets.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use storm_auth_core::{AcquireError, Token, TokenId};

use crate::error::Error;
use crate::provider::TokenProvider;

/// Something that hands out tokens: a [`TokenProvider`], or a [`FakeTokens`] in a test.
///
/// ```
/// use storm_auth_blocking::{FakeTokens, Token, TokenSource};
///
/// fn authorization(tokens: &dyn TokenSource) -> String {
///     match tokens.token() {
///         Ok(token) => format!("Bearer {}", token.expose()),
///         Err(_) => "none".to_owned(),
///     }
/// }
///
/// let tokens = FakeTokens::new([Ok(Token::fake("first")), Ok(Token::fake("second"))]);
/// assert_eq!(authorization(&tokens), "Bearer first");
/// assert_eq!(authorization(&tokens), "Bearer second");
/// assert_eq!(authorization(&tokens), "none");
/// ```
pub trait TokenSource: Send + Sync {
    /// A valid token.
    ///
    /// # Errors
    /// No token can be had; the error says why.
    fn token(&self) -> Result<Token, Error>;

    /// The API rejected this token.
    fn invalidate(&self, token: TokenId);
}

impl TokenSource for TokenProvider {
    fn token(&self) -> Result<Token, Error> {
        TokenProvider::token(self)
    }

    fn invalidate(&self, token: TokenId) {
        TokenProvider::invalidate(self, token);
    }
}

/// Hands out what it was given, in order, and remembers what was rejected. When nothing is left, it is closed.
#[derive(Debug, Default)]
pub struct FakeTokens {
    script: Mutex<VecDeque<Result<Token, AcquireError>>>,
    rejected: Mutex<Vec<TokenId>>,
}

impl FakeTokens {
    /// One answer per call.
    pub fn new(script: impl IntoIterator<Item = Result<Token, AcquireError>>) -> Self {
        Self { script: Mutex::new(script.into_iter().collect()), ..Self::default() }
    }

    /// The tokens that were rejected, in order.
    pub fn rejected(&self) -> Vec<TokenId> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl TokenSource for FakeTokens {
    fn token(&self) -> Result<Token, Error> {
        let next = self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        Ok(next.unwrap_or(Err(AcquireError::Closed))?)
    }

    fn invalidate(&self, token: TokenId) {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).push(token);
    }
}
