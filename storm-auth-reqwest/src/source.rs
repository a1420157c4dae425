//! Where tokens come from, as a trait: so that code which needs one is tested without sockets.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use storm_auth_core::{AcquireError, Token, TokenId};

use crate::error::Error;
use crate::provider::TokenProvider;

/// A future that brings a token.
pub type TokenFuture<'a> = Pin<Box<dyn Future<Output = Result<Token, Error>> + Send + 'a>>;

/// Something that hands out tokens: a [`TokenProvider`], or a [`FakeTokens`] in a test.
///
/// ```
/// use storm_auth_reqwest::{FakeTokens, Token, TokenSource};
///
/// async fn authorization(tokens: &dyn TokenSource) -> String {
///     match tokens.token().await {
///         Ok(token) => format!("Bearer {}", token.expose()),
///         Err(_) => "none".to_owned(),
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let tokens = FakeTokens::new([Ok(Token::fake("first")), Ok(Token::fake("second"))]);
/// assert_eq!(authorization(&tokens).await, "Bearer first");
/// assert_eq!(authorization(&tokens).await, "Bearer second");
/// assert_eq!(authorization(&tokens).await, "none");
/// # });
/// ```
pub trait TokenSource: Send + Sync {
    /// A valid token.
    fn token(&self) -> TokenFuture<'_>;

    /// The API rejected this token.
    fn invalidate(&self, token: TokenId);
}

impl TokenSource for TokenProvider {
    fn token(&self) -> TokenFuture<'_> {
        Box::pin(TokenProvider::token(self))
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
    fn token(&self) -> TokenFuture<'_> {
        let next = self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        Box::pin(async move { Ok(next.unwrap_or(Err(AcquireError::Closed))?) })
    }

    fn invalidate(&self, token: TokenId) {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).push(token);
    }
}
