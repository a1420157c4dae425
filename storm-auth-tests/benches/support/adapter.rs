//! Both adapters under one face. A caller is written once, as a future: over ureq it blocks the thread that polls it, and so is
//! ready at its first poll.

use std::sync::LazyLock;
use std::time::Duration;

use storm_auth_core::{AcquireError, Counters, Settings, Token};
use tokio::runtime::Runtime;

use super::{client, ready};

pub(crate) trait Adapter: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    /// By the system's clocks.
    fn new(settings: Settings) -> Self;

    /// By clocks that [`advance`](Self::advance) moves.
    fn movable(settings: Settings) -> Self;

    /// Lets time pass, and everybody who waits look at the clock.
    fn advance(&self, span: Duration);

    fn counters(&self) -> Counters;

    /// The same for another client of the limiter group.
    fn for_client(&self, number: usize) -> Self;

    fn token(&self) -> impl Future<Output = Result<Token, AcquireError>> + Send;

    fn sleep(span: Duration) -> impl Future<Output = ()> + Send;

    /// Waits for one caller.
    fn wait<T>(caller: impl Future<Output = T>) -> T;

    /// Runs callers at once, each in a task or on a thread of its own, and waits for all of them.
    fn all<T: Send + 'static>(callers: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T>;
}

/// storm-auth-reqwest.
#[derive(Clone)]
pub(crate) struct Reqwest {
    pub(crate) tokens: storm_auth_reqwest::TokenProvider,
    clock: storm_auth_reqwest::Clock,
}

/// storm-auth-blocking.
#[derive(Clone)]
pub(crate) struct Ureq {
    pub(crate) tokens: storm_auth_blocking::TokenProvider,
    clock: storm_auth_blocking::Clock,
}

macro_rules! same_words {
    ($adapter:ident) => {
        fn new(settings: Settings) -> Self {
            Self::by(settings, $adapter::Clock::system())
        }

        fn movable(settings: Settings) -> Self {
            Self::by(settings, $adapter::Clock::movable())
        }

        fn advance(&self, span: Duration) {
            self.clock.advance(span);
            // A clock that is moved wakes nobody; a call that changes nothing does.
            self.tokens.invalidate(Token::fake("nobody's").id());
        }

        fn counters(&self) -> Counters {
            self.tokens.counters()
        }

        fn for_client(&self, number: usize) -> Self {
            Self { tokens: self.tokens.for_credentials(client(number)), clock: self.clock.clone() }
        }
    };
}

macro_rules! by {
    ($face:ident, $adapter:ident) => {
        impl $face {
            fn by(settings: Settings, clock: $adapter::Clock) -> Self {
                let tokens = $adapter::Builder::from(settings).clock(clock.clone()).build_tokens().unwrap();
                Self { tokens, clock }
            }
        }
    };
}

by!(Reqwest, storm_auth_reqwest);
by!(Ureq, storm_auth_blocking);

impl Adapter for Reqwest {
    const NAME: &'static str = "reqwest";

    same_words!(storm_auth_reqwest);

    async fn token(&self) -> Result<Token, AcquireError> {
        self.tokens.token().await.map_err(|error| error.acquire_error().unwrap().clone())
    }

    async fn sleep(span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn wait<T>(caller: impl Future<Output = T>) -> T {
        runtime().block_on(caller)
    }

    fn all<T: Send + 'static>(callers: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
        let tasks: Vec<_> = callers.map(|caller| runtime().spawn(caller)).collect();
        tasks.into_iter().map(|task| runtime().block_on(task).unwrap()).collect()
    }
}

impl Adapter for Ureq {
    const NAME: &'static str = "ureq";

    same_words!(storm_auth_blocking);

    async fn token(&self) -> Result<Token, AcquireError> {
        self.tokens.token().map_err(|error| error.acquire_error().unwrap().clone())
    }

    async fn sleep(span: Duration) {
        std::thread::sleep(span);
    }

    fn wait<T>(caller: impl Future<Output = T>) -> T {
        ready(caller)
    }

    fn all<T: Send + 'static>(callers: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
        let start = |caller| std::thread::Builder::new().stack_size(256 * 1_024).spawn(|| ready(caller)).unwrap();
        let threads: Vec<_> = callers.map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

/// Where the callers over reqwest run.
fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    &RUNTIME
}
