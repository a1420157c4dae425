//! What is measured with the feature `metrics`.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::sync::Arc;
use std::time::Duration;

use storm_auth_core::store::TokenStore;
use storm_auth_core::{Scope, Settings, Token, TokenId};
use storm_auth_reqwest::{Builder, Clock, TokenProvider};

#[path = "../../storm-auth-tests/tests/metrics/story.rs"]
mod story;

#[derive(Clone)]
struct Tokens {
    tokens: TokenProvider,
    clock: Clock,
}

impl story::Adapter for Tokens {
    fn build(settings: Settings, store: Option<Arc<dyn TokenStore>>) -> Self {
        let clock = Clock::movable();
        let builder = Builder::from(settings).clock(clock.clone()).seed(7);
        let builder = match store {
            Some(store) => builder.store(store),
            None => builder,
        };
        Self { tokens: builder.build_tokens().unwrap(), clock }
    }

    fn token(&self) -> Option<Token> {
        block_on(self.tokens.token()).ok()
    }

    fn token_within(&self, deadline: Duration) -> Option<Token> {
        block_on(self.tokens.token_within(deadline)).ok()
    }

    fn advance(&self, span: Duration) {
        self.clock.advance(span);
    }

    fn invalidate(&self, token: TokenId) {
        self.tokens.invalidate(token);
    }

    fn for_scope(&self, scope: Scope) -> Self {
        Self { tokens: self.tokens.for_scope(scope), clock: self.clock.clone() }
    }

    fn look(&self) {
        self.tokens.status();
    }

    fn served(&self) -> u64 {
        self.tokens.served()
    }
}

#[test]
fn r58_r79_calls_and_requests_are_measured() {
    story::tell::<Tokens>();
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
