//! The machine driven in an async runtime that is not tokio: behind a mutex, with a task for each token request and one that
//! keeps the time.
//!
//! ```text
//! cargo run -p storm-auth-core --example custom_runtime_smol                   # the show, in five scenes
//! cargo run -p storm-auth-core --example custom_runtime_smol -- --once /path   # one authorised GET: its status and body
//! ```
//!
//! [`Driver`] is what to copy, by the guide in `storm_auth_core::driver_guide`; what stands behind it lets the suite of
//! `storm_auth_tests::driver_conformance` check it, and `show` put it on. It asks the server that the STORM_* variables name, and an
//! emulator of its own when none of them is set. The HTTP client is a few lines over a socket that speak plain http, to loopback
//! only: a program of yours brings its own, and TLS with it.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clocks, sockets and entropy are what a runtime brings"
)]

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Response;
use smol::channel::{self, Receiver, Sender};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::TcpStream;
use smol::{Task, Timer, future};
use storm_auth_core::machine::{Acquire, Action, Output, TokenRequest, WaiterId};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{AcquireError, Failure, KeyId, Machine, Now, Settings, Token};
use storm_auth_tests::driver_conformance::Subject;

mod clock;
mod plain_http;
mod show;

use clock::Clock;

/// Drives one machine for any number of tasks. Everything goes through `with`: lock, act, and do what the machine then wants.
struct Driver {
    state: Mutex<State>,
    clock: Clock,
    /// Rings when the next deadline is another one.
    bell: Sender<()>,
}

struct State {
    machine: Machine,
    waiting: BTreeMap<WaiterId, Sender<Result<Token, AcquireError>>>,
}

impl Driver {
    fn start(machine: Machine, clock: Clock) -> Arc<Self> {
        let (bell, rung) = channel::bounded(1);
        let state = Mutex::new(State { machine, waiting: BTreeMap::new() });
        let driver = Arc::new(Self { state, clock, bell });
        smol::spawn(Self::keep_time(Arc::downgrade(&driver), rung)).detach();
        driver
    }

    /// A token, to be had within `deadline` or the policy's.
    async fn token(self: &Arc<Self>, key: KeyId, deadline: Option<Duration>) -> Result<Token, AcquireError> {
        let (resolve, resolved) = channel::bounded(1);
        let acquired = self.with(|state, now| {
            let acquired = state.machine.acquire(key, deadline, now);
            if let Acquire::Wait(waiter) = acquired {
                state.waiting.insert(waiter, resolve);
            }
            acquired
        });
        match acquired {
            Acquire::Ready(token) => Ok(token),
            Acquire::Failed(error) => Err(error),
            Acquire::Wait(waiter) => {
                let _waits = Waits { driver: self, waiter };
                resolved.recv().await.unwrap_or(Err(AcquireError::Closed))
            }
        }
    }

    fn machine<T>(self: &Arc<Self>, act: impl FnOnce(&mut Machine, Now) -> T) -> T {
        self.with(|state, now| act(&mut state.machine, now))
    }

    fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut State, Now) -> T) -> T {
        let mut state = self.lock();
        let due = state.machine.poll_timeout();
        let result = act(&mut state, self.clock.now());
        let (mut sends, mut results) = (Vec::new(), Vec::new());
        while let Some(output) = state.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => sends.push(send),
                Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
                Output::Resolve(waiter, result) => results.extend(state.waiting.remove(&waiter).zip(Some(result))),
                Output::Event(_) => {} // log it: each has a text and a severity
            }
        }
        let due_changed = state.machine.poll_timeout() != due;
        drop(state);
        // Whoever wakes up may come here at once.
        for (resolve, result) in results {
            let _ = resolve.try_send(result); // it may have stopped waiting
        }
        if due_changed {
            let _ = self.bell.try_send(()); // one ring that is still unheard is enough
        }
        sends.into_iter().for_each(|send| smol::spawn(self.clone().fly(send)).detach());
        result
    }

    /// One token request: a task of its own, so that no caller who goes away takes it along. Whatever comes of it is reported.
    async fn fly(self: Arc<Self>, send: TokenRequest) {
        let op = send.op;
        let outcome = post(send).await;
        self.with(|state, now| match outcome {
            Ok(response) => state.machine.handle_response(op, &response, now),
            Err(failure) => state.machine.handle_failure(op, failure, now),
        });
    }

    /// Tells the machine when its next deadline has come. Ends with the driver.
    async fn keep_time(weak: Weak<Self>, rung: Receiver<()>) {
        while let Some(driver) = weak.upgrade() {
            let timer = match driver.lock().machine.poll_timeout() {
                // A millisecond more than the clock says, or a timer fires a tick early and spins.
                Some(due) => Timer::after(due.at.since(driver.clock.now().mono) + Duration::from_millis(1)),
                None => Timer::never(),
            };
            // A driver that nobody else holds ends here, and its bell with it.
            drop(driver);
            let due = async {
                timer.await;
                true
            };
            let rang = async {
                let _ = rung.recv().await;
                false
            };
            if future::or(due, rang).await
                && let Some(driver) = weak.upgrade()
            {
                driver.with(|state, now| state.machine.handle_timeout(now));
            }
        }
    }

    /// A task that panicked has left the machine whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller that waits. Dropped in the middle of it, it is taken back.
struct Waits<'a> {
    driver: &'a Arc<Driver>,
    waiter: WaiterId,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.driver.with(|state, now| {
            if state.waiting.remove(&self.waiter).is_some() {
                state.machine.cancel(self.waiter, now);
            }
        });
    }
}

/// Sends a token request, once, and collects its answer, whatever its status.
async fn post(send: TokenRequest) -> Result<Response<ResponseBody>, Failure> {
    let (head, body) = send.request.into_parts();
    let connect = async { TcpStream::connect(plain_http::peer(&head.uri)?).await };
    let connected = within(TokenRequest::CONNECT_PATIENCE, connect).await;
    let mut stream = connected.map_err(|error| plain_http::failure(false, &error))?;
    let talk = async {
        stream.write_all(&plain_http::head(&head, body.as_ref().len())).await?;
        stream.write_all(body.as_ref()).await?;
        let (mut bytes, mut chunk) = (Vec::new(), [0; 8 * 1024]);
        loop {
            let read = stream.read(&mut chunk).await?;
            bytes.extend_from_slice(&chunk[..read]);
            if let Some(answer) = plain_http::token_answer(&bytes, read == 0)? {
                return Ok(answer);
            }
        }
    };
    within(send.patience, talk).await.map_err(|error| plain_http::failure(true, &error))
}

async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = async {
        Timer::after(patience).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    future::or(work, late).await
}

/// What a caller holds: a driver, and the key of its token.
pub(crate) struct Tokens {
    driver: Arc<Driver>,
    key: KeyId,
}

impl Tokens {
    fn new(settings: Settings) -> Self {
        let config = settings.check().expect("the settings were checked");
        // Every process another seed, or processes that collide keep colliding.
        let mut machine = Machine::new(config.policy, RandomState::new().build_hasher().finish());
        let clock = Clock::movable(); // `Clock::system()` where nobody plays with it
        let key = machine.add_key(config.key, clock.now());
        Self { driver: Driver::start(machine, clock), key }
    }
}

impl Subject for Tokens {
    type Caller = Task<Result<Token, AcquireError>>;
    type Error = AcquireError;

    fn start(settings: Settings) -> Self {
        Self::new(settings)
    }

    fn call(&mut self, deadline: Duration) -> Self::Caller {
        let (driver, key) = (self.driver.clone(), self.key);
        smol::spawn(async move { driver.token(key, Some(deadline)).await })
    }

    fn poll(&mut self, caller: &mut Self::Caller) -> Option<Result<Token, AcquireError>> {
        caller.is_finished().then(|| smol::block_on(caller))
    }

    fn leave(&mut self, caller: Self::Caller) -> bool {
        drop(caller); // and its future with it
        true
    }

    show::asks_its_machine!(machine);
}

impl show::Shown for Tokens {
    const NAME: &str = "custom_runtime_smol";
    const WHAT: &str = "smol, any number of tasks";
    const CALLERS: &str = "each a task";

    fn token(&mut self) -> Result<Token, AcquireError> {
        smol::block_on(self.driver.token(self.key, None))
    }

    fn clock(&self) -> &Clock {
        &self.driver.clock
    }
}

fn main() -> ExitCode {
    show::main::<Tokens>()
}
