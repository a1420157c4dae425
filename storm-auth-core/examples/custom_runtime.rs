//! The machine driven with nothing but std: behind a mutex, for callers on any number of threads, with a thread for each token
//! request. Who waits keeps the time.
//!
//! ```text
//! cargo run -p storm-auth-core --example custom_runtime                   # the show, in five scenes
//! cargo run -p storm-auth-core --example custom_runtime -- --once /path   # one authorised GET: its status and body
//! ```
//!
//! [`Driver`] is what to copy, by the guide in `storm_auth_core::driver_guide`; what stands behind it lets the suite of
//! `storm_auth_tests::driver_conformance` check it, and `show` put it on. It asks the server that the STORM_* variables name, and an
//! emulator of its own when none of them is set. The HTTP client is a few lines of std that speak plain http, to loopback only: a
//! program of yours brings its own, and TLS with it. Its clock uses the core's feature `driver`.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clocks, sockets and entropy are what a runtime brings"
)]

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use http::Response;
use storm_auth_core::machine::{Acquire, Action, Output, TokenRequest, WaiterId};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{AcquireError, Failure, FailureKind, KeyId, Machine, Now, Settings, Token};
use storm_auth_tests::driver_conformance::Subject;

mod clock;
mod plain_http;
mod show;

use clock::Clock;

/// Drives one machine for any number of threads. Everything goes through `with`: lock, act, and do what the machine then wants.
struct Driver {
    state: Mutex<State>,
    /// Rings when something came out of the machine, or its deadline is another one.
    changed: Condvar,
    clock: Clock,
}

struct State {
    machine: Machine,
    /// Waiters that were resolved, until their callers fetch the result.
    resolved: BTreeMap<WaiterId, Result<Token, AcquireError>>,
}

impl Driver {
    fn new(machine: Machine, clock: Clock) -> Arc<Self> {
        let state = State { machine, resolved: BTreeMap::new() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), clock })
    }

    /// A token, to be had within `deadline` or the policy's.
    fn token(self: &Arc<Self>, key: KeyId, deadline: Option<Duration>) -> Result<Token, AcquireError> {
        match self.with(|machine, now| machine.acquire(key, deadline, now)) {
            Acquire::Ready(token) => Ok(token),
            Acquire::Wait(waiter) => self.wait(waiter),
            Acquire::Failed(error) => Err(error),
        }
    }

    /// Sleeps until the machine's deadline at the longest, and tells it then. So no timer thread is needed.
    fn wait(self: &Arc<Self>, waiter: WaiterId) -> Result<Token, AcquireError> {
        loop {
            let mut state = self.lock();
            if let Some(result) = state.resolved.remove(&waiter) {
                return result;
            }
            match state.machine.poll_timeout() {
                // A millisecond more than the clock says, or a timer fires a tick early and spins.
                Some(due) => {
                    let rest = due.at.since(self.clock.now().mono) + Duration::from_millis(1);
                    drop(self.changed.wait_timeout(state, rest));
                }
                None => drop(self.changed.wait(state)),
            }
            self.with(|machine, now| machine.handle_timeout(now));
        }
    }

    fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut Machine, Now) -> T) -> T {
        let mut state = self.lock();
        let due = state.machine.poll_timeout();
        let result = act(&mut state.machine, self.clock.now());
        let (mut sends, mut changed) = (Vec::new(), false);
        while let Some(output) = state.machine.poll_output() {
            changed = true;
            match output {
                Output::Perform(Action::Send(send)) => sends.push(send),
                Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
                Output::Resolve(waiter, result) => drop(state.resolved.insert(waiter, result)),
                Output::Event(_) => {} // log it: each has a text and a severity
            }
        }
        changed |= state.machine.poll_timeout() != due;
        drop(state);
        if changed {
            self.changed.notify_all();
        }
        sends.into_iter().for_each(|send| self.launch(send));
        result
    }

    /// One token request, on a thread of its own, so that no caller who goes away takes it along. Whatever comes of it is reported.
    fn launch(self: &Arc<Self>, send: TokenRequest) {
        let (op, driver) = (send.op, self.clone());
        let flight = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| post(send)));
            let outcome = outcome.unwrap_or_else(|_| Err(Failure::new(FailureKind::Aborted, "it panicked")));
            driver.with(|machine, now| match outcome {
                Ok(response) => machine.handle_response(op, &response, now),
                Err(failure) => machine.handle_failure(op, failure, now),
            });
        };
        if let Err(error) = thread::Builder::new().spawn(flight) {
            let failure = Failure::new(FailureKind::Aborted, error.to_string());
            self.with(|machine, now| machine.handle_failure(op, failure, now));
        }
    }

    /// A thread that panicked has left the machine whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a token request, once, and collects its answer, whatever its status.
fn post(send: TokenRequest) -> Result<Response<ResponseBody>, Failure> {
    let (head, body) = send.request.into_parts();
    let mut stream = plain_http::connect(&head.uri).map_err(|error| plain_http::failure(false, &error))?;
    plain_http::talk(&mut stream, &head, body.as_ref(), send.patience, plain_http::token_answer)
        .map_err(|error| plain_http::failure(true, &error))
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
        Self { driver: Driver::new(machine, clock), key }
    }
}

impl Subject for Tokens {
    type Caller = Receiver<Result<Token, AcquireError>>;
    type Error = AcquireError;

    fn start(settings: Settings) -> Self {
        Self::new(settings)
    }

    fn call(&mut self, deadline: Duration) -> Self::Caller {
        let (tell, told) = mpsc::channel();
        let (driver, key) = (self.driver.clone(), self.key);
        // Nobody listens any more when the caller was left alone.
        thread::spawn(move || drop(tell.send(driver.token(key, Some(deadline)))));
        told
    }

    fn poll(&mut self, caller: &mut Self::Caller) -> Option<Result<Token, AcquireError>> {
        caller.try_recv().ok()
    }

    fn leave(&mut self, _caller: Self::Caller) -> bool {
        false // a thread that waits is not called off; it has a deadline
    }

    show::asks_its_machine!(with);
}

impl show::Shown for Tokens {
    const NAME: &str = "custom_runtime";
    const WHAT: &str = "std alone, any number of threads";
    const CALLERS: &str = "each a thread";

    fn token(&mut self) -> Result<Token, AcquireError> {
        self.driver.token(self.key, None)
    }

    fn clock(&self) -> &Clock {
        &self.driver.clock
    }
}

fn main() -> ExitCode {
    show::main::<Tokens>()
}
