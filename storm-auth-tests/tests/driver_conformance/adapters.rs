//! Both adapters keep to the guide. What else they promise is in the suite `adapters`.

use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use storm_auth_core::{AcquireError, Counters, Settings, Status, Token, TokenId};
use storm_auth_tests::driver_conformance::{PATIENCE, Subject, check};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

#[test]
fn reqwest_keeps_to_the_guide() {
    check::<OverReqwest>();
}

#[test]
fn ureq_keeps_to_the_guide() {
    check::<OverUreq>();
}

/// What both say in the same words.
macro_rules! same_words {
    ($adapter:ident) => {
        type Error = $adapter::Error;

        fn invalidate(&mut self, token: TokenId) {
            self.tokens.invalidate(token);
        }

        fn status(&mut self) -> Status {
            self.tokens.status()
        }

        fn counters(&mut self) -> Counters {
            self.tokens.counters()
        }

        fn acquire_error(error: &Self::Error) -> Option<&AcquireError> {
            error.acquire_error()
        }

        fn advance(&mut self, span: Duration) {
            self.clock.advance(span);
        }

        fn step_wall_forward(&mut self, span: Duration) {
            self.clock.step_wall_forward(span);
        }

        fn step_wall_back(&mut self, span: Duration) {
            self.clock.step_wall_back(span);
        }
    };
}

struct OverReqwest {
    tokens: storm_auth_reqwest::TokenProvider,
    clock: storm_auth_reqwest::Clock,
    runtime: Runtime,
}

impl Subject for OverReqwest {
    same_words!(storm_auth_reqwest);

    type Caller = JoinHandle<Result<Token, Self::Error>>;

    fn start(settings: Settings) -> Self {
        let clock = storm_auth_reqwest::Clock::movable();
        let tokens = storm_auth_reqwest::Builder::from(settings).clock(clock.clone()).build_tokens().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { tokens, clock, runtime }
    }

    fn call(&mut self, deadline: Duration) -> Self::Caller {
        let tokens = self.tokens.clone();
        self.runtime.spawn(async move { tokens.token_within(deadline).await })
    }

    fn poll(&mut self, caller: &mut Self::Caller) -> Option<Result<Token, Self::Error>> {
        caller.is_finished().then(|| self.runtime.block_on(caller).unwrap())
    }

    fn leave(&mut self, caller: Self::Caller) -> bool {
        caller.abort();
        true
    }

    fn close(&mut self) {
        self.runtime.block_on(self.tokens.close(PATIENCE)).unwrap();
    }
}

struct OverUreq {
    tokens: storm_auth_blocking::TokenProvider,
    clock: storm_auth_blocking::Clock,
}

impl Subject for OverUreq {
    same_words!(storm_auth_blocking);

    type Caller = Receiver<Result<Token, Self::Error>>;

    fn start(settings: Settings) -> Self {
        let clock = storm_auth_blocking::Clock::movable();
        let tokens = storm_auth_blocking::Builder::from(settings).clock(clock.clone()).build_tokens().unwrap();
        Self { tokens, clock }
    }

    fn call(&mut self, deadline: Duration) -> Self::Caller {
        let (tell, told) = mpsc::channel();
        let tokens = self.tokens.clone();
        std::thread::spawn(move || drop(tell.send(tokens.token_within(deadline))));
        told
    }

    fn poll(&mut self, caller: &mut Self::Caller) -> Option<Result<Token, Self::Error>> {
        caller.try_recv().ok()
    }

    fn leave(&mut self, _caller: Self::Caller) -> bool {
        false // a thread that waits is not called off
    }

    fn close(&mut self) {
        self.tokens.close(PATIENCE).unwrap();
    }
}
