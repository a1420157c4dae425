//! Whether a driver keeps to the [guide](storm_auth_core::driver_guide): what it says on one side, an emulator on the other.
//!
//! To have a driver checked, tell the suite how it is spoken to, by a [`Subject`] of a dozen lines. Each [`Check`] has the number of
//! the point in the guide that it stands for, and a [`Violation`] names both. Clocks are moved and not waited for, as far as that can
//! be: all of it takes some seconds.
//!
//! ```
//! use std::time::Duration;
//! use storm_auth_core::machine::{Acquire, Action, Output};
//! use storm_auth_core::{
//!     AcquireError, Counters, Failure, FailureKind, KeyId, Machine, Now, Settings, Status, Token, TokenId,
//! };
//! use storm_auth_tests::driver_conformance::{Subject, checks};
//!
//! /// A driver that never gets anything sent.
//! struct Offline {
//!     machine: Machine,
//!     key: KeyId,
//!     now: Now,
//! }
//!
//! impl Offline {
//!     fn drain(&mut self) {
//!         while let Some(output) = self.machine.poll_output() {
//!             if let Output::Perform(Action::Send(send)) = output {
//!                 self.machine.handle_failure(send.op, Failure::new(FailureKind::Connect, "offline"), self.now);
//!             }
//!         }
//!     }
//! }
//!
//! impl Subject for Offline {
//!     type Caller = Option<Result<Token, AcquireError>>;
//!     type Error = AcquireError;
//!
//!     fn start(settings: Settings) -> Self {
//!         let config = settings.check().expect("the suite gives all of them");
//!         let (mut machine, now) = (Machine::new(config.policy, 7), Now::from_millis(0, 1_700_000_000_000));
//!         let key = machine.add_key(config.key, now);
//!         Self { machine, key, now }
//!     }
//!
//!     fn call(&mut self, deadline: Duration) -> Self::Caller {
//!         let acquired = self.machine.acquire(self.key, Some(deadline), self.now);
//!         self.drain();
//!         match acquired {
//!             Acquire::Ready(token) => Some(Ok(token)),
//!             Acquire::Failed(error) => Some(Err(error)),
//!             Acquire::Wait(_) => None, // and nobody ever looks after it
//!         }
//!     }
//!
//!     fn poll(&mut self, caller: &mut Self::Caller) -> Option<Result<Token, AcquireError>> {
//!         caller.take()
//!     }
//!
//!     // The other methods in the same way.
//! #   fn rest(&mut self) {}
//! #   fn leave(&mut self, _: Self::Caller) -> bool { false }
//! #   fn invalidate(&mut self, token: TokenId) { self.machine.invalidate(token, self.now); }
//! #   fn close(&mut self) { self.machine.shut_down(self.now); }
//! #   fn status(&mut self) -> Status { self.machine.status(self.now) }
//! #   fn counters(&mut self) -> Counters { self.machine.counters() }
//! #   fn acquire_error(error: &AcquireError) -> Option<&AcquireError> { Some(error) }
//! #   fn advance(&mut self, span: Duration) {
//! #       self.now = Now { mono: self.now.mono + span, unix: self.now.unix + span };
//! #   }
//! #   fn step_wall_forward(&mut self, span: Duration) { self.now.unix = self.now.unix + span; }
//! #   fn step_wall_back(&mut self, span: Duration) { self.now.unix = self.now.unix - span; }
//! }
//!
//! let check = checks::<Offline>().into_iter().find(|check| check.name == "one_request_serves_all_who_wait");
//! let violation = check.expect("there is one").run(Duration::from_millis(100)).expect_err("nothing was sent");
//! assert_eq!(violation.point, 8);
//! ```
//!
//! A driver that keeps to all of it passes [`check`]. What the suite cannot see from outside (entropy, forks, what is owed to a store)
//! is told by the guide alone.

mod checks;

use std::error::Error;
use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_core::{AcquireError, Counters, Credentials, Environment, Settings, Status, Token, TokenId};

use crate::emulator::{Builder, Clock, Counts, Emulator, Limiter};

/// How long [`check`] waits for what has to come, in real time: so long that only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A driver with one key, as the suite speaks to it. A caller is whatever stands for one: a waiter of an event loop, a task, a thread.
pub trait Subject: Sized {
    /// A caller that was told to wait.
    type Caller;
    /// Why a caller gets no token.
    type Error: Error + 'static;

    /// A driver with these settings, all of which are good, and with clocks that can be moved. The suite has several, one after
    /// another, and drops them.
    fn start(settings: Settings) -> Self;

    /// A caller asks for the token, to be had within `deadline`. It returns at once, whether there is one or not.
    fn call(&mut self, deadline: Duration) -> Self::Caller;

    /// What became of the caller, once it is there, without waiting for it.
    fn poll(&mut self, caller: &mut Self::Caller) -> Option<Result<Token, Self::Error>>;

    /// Some milliseconds go by. A driver that is turned by its callers is turned meanwhile.
    fn rest(&mut self) {
        std::thread::sleep(Duration::from_millis(2));
    }

    /// The caller goes away before it has a result. `false` where callers of this kind cannot: it is left to its deadline then.
    fn leave(&mut self, caller: Self::Caller) -> bool;

    /// The API rejected this token.
    fn invalidate(&mut self, token: TokenId);

    /// The driver starts nothing more, as at the end of a process.
    fn close(&mut self);

    /// The machine's.
    fn status(&mut self) -> Status;

    /// The machine's.
    fn counters(&mut self) -> Counters;

    /// The machine's error in one of the driver's.
    fn acquire_error(error: &Self::Error) -> Option<&AcquireError>;

    /// Lets a time pass on both of the driver's clocks. Nobody who sleeps need wake up from it.
    fn advance(&mut self, span: Duration);

    /// Sets the wall clock alone.
    fn step_wall_forward(&mut self, span: Duration);

    /// Sets the wall clock alone.
    fn step_wall_back(&mut self, span: Duration);
}

/// One thing that a driver has to do.
pub struct Check<S> {
    /// What it is called, here and in the guide.
    pub name: &'static str,
    /// The point of the [guide](storm_auth_core::driver_guide) that it stands for.
    pub point: u8,
    run: fn(&mut Desk<S>) -> Verdict,
}

impl<S: Subject> Check<S> {
    /// Checks this alone. What has to come is waited for as long as `patience`.
    ///
    /// # Errors
    /// The driver does something else, or does not come back from it within twice that.
    pub fn run(&self, patience: Duration) -> Result<(), Violation> {
        let Self { name: check, point, run } = *self;
        let mut desk = Desk::new(patience);
        let clock = desk.emulator.clock().clone();
        let (over, is_over) = mpsc::channel::<()>();
        let verdict = thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let hangs = is_over.recv_timeout(patience * 2) == Err(RecvTimeoutError::Timeout);
                if hangs {
                    // Whoever waits for the server's answer gets it, and comes back.
                    clock.advance(LONG);
                }
                hangs
            });
            let verdict = run(&mut desk);
            drop(over);
            match watch.join() {
                Ok(true) => Err("the driver keeps its caller: `call`, `poll` and the others return at once, and a request is waited \
                                 for on another thread or in a task"
                    .to_owned()),
                _ => verdict,
            }
        });
        verdict.map_err(|what| Violation { check, point, what })
    }
}

impl<S> fmt::Debug for Check<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (point {})", self.name, self.point)
    }
}

/// What a driver does that it must not, or the other way round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The check that found it.
    pub check: &'static str,
    /// The point of the [guide](storm_auth_core::driver_guide) that says why it matters.
    pub point: u8,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, point, what } = self;
        write!(f, "{check}: {what} (point {point} of storm_auth_core::driver_guide)")
    }
}

impl Error for Violation {}

/// All checks, in the order of the guide, behind one that says whether the driver brings a token at all.
pub fn checks<S: Subject>() -> Vec<Check<S>> {
    checks::all()
}

/// Runs all checks against a driver; where it brings no token at all, the first alone.
///
/// # Panics
/// It does something else than the guide says; the message has each [`Violation`] in a line.
pub fn check<S: Subject>() {
    let checks = checks::<S>();
    let (first, others) = checks.split_first().expect("there are checks");
    let found: Vec<_> = match first.run(PATIENCE) {
        Err(violation) => vec![violation],
        Ok(()) => others.iter().filter_map(|check| check.run(PATIENCE).err()).collect(),
    };
    let lines: Vec<_> = found.iter().map(|violation| format!("\n- {violation}")).collect();
    assert!(found.is_empty(), "the driver does not keep to the guide:{}", lines.concat());
}

/// What came of a check: what was seen, where it is something else than what has to be.
type Verdict = Result<(), String>;

/// A driver and its server, at one table. The server goes first, so that a request which hangs ends, and its driver with it.
struct Desk<S> {
    emulator: Emulator,
    subject: S,
    patience: Duration,
}

/// So long that no caller comes to it.
const LONG: Duration = Duration::from_secs(24 * 3_600);
const ID: &str = "conformance";
/// Any eight bytes of it would be recognised.
const SECRET: &str = "cAn4ry-S3cret-of-the-suite";
const SCOPE: &str = "playground";
/// The lifetime of a token. It is refreshed from 450 s on, and not handed out from 590 s on.
const LIFETIME: Duration = Duration::from_secs(600);

impl<S: Subject> Desk<S> {
    fn new(patience: Duration) -> Self {
        let builder = Builder::default().client(ID, SECRET, &[SCOPE]).lifetime(LIFETIME).limiter(Limiter::none());
        // What the server delays is held until the check moves this clock.
        let emulator = builder.clock(Clock::manual(1_700_000_000_000)).start();
        Self { subject: S::start(settings(&emulator.token_url())), emulator, patience }
    }

    /// Another driver that knows nothing, in place of this one.
    fn another(&mut self) {
        let url = self.emulator.token_url();
        self.another_at(&url);
    }

    fn another_at(&mut self, token_url: &str) {
        self.subject = S::start(settings(token_url));
    }

    /// A caller asks and gets a result.
    fn call(&mut self) -> Result<Result<Token, S::Error>, String> {
        let mut caller = self.subject.call(LONG);
        self.result(&mut caller)
    }

    fn result(&mut self, caller: &mut S::Caller) -> Result<Result<Token, S::Error>, String> {
        let start = Instant::now();
        loop {
            if let Some(result) = self.subject.poll(caller) {
                return Ok(result);
            }
            if start.elapsed() >= self.patience {
                return Err("a caller gets no result".to_owned());
            }
            self.subject.rest();
        }
    }

    /// A caller asks and gets a token.
    fn token(&mut self) -> Result<Token, String> {
        self.call()?.map_err(|error| format!("a caller gets no token, but: {error}"))
    }

    /// A caller asks and gets the machine's error.
    fn error(&mut self) -> Result<AcquireError, String> {
        let mut caller = self.subject.call(LONG);
        self.error_of(&mut caller)
    }

    fn error_of(&mut self, caller: &mut S::Caller) -> Result<AcquireError, String> {
        match self.result(caller)? {
            Ok(token) => Err(format!("a caller gets a token where there is none to be had: {token:?}")),
            Err(error) => {
                S::acquire_error(&error).cloned().ok_or_else(|| format!("this is no error of the machine's: {error}"))
            }
        }
    }

    /// Waits until it is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) -> Verdict {
        let start = Instant::now();
        while !so(self) {
            if start.elapsed() >= self.patience {
                return Err(what.to_owned());
            }
            self.subject.rest();
        }
        Ok(())
    }

    /// Waits until the server's counts fit.
    fn counted(&mut self, what: &str, fits: impl Fn(&Counts) -> bool) -> Verdict {
        self.until(what, |desk| fits(&desk.emulator.counts()))
    }

    /// Waits until the server has a request whose answer waits for its clock.
    fn arrived(&mut self) -> Verdict {
        self.counted("no request comes to the server", |counts| counts.token_in_flight == 1)
    }

    /// Waits until so many callers wait, in the machine's own count.
    fn waiters(&mut self, count: usize) -> Verdict {
        self.until(&format!("the machine does not come to have {count} waiters"), |desk| {
            desk.subject.status().waiters == count
        })
    }

    /// That so many requests came to the server, and the machine knows of as many.
    fn requests(&mut self, count: u64) -> Verdict {
        let (sent, known) = (self.emulator.token_requests(), self.subject.counters().requests);
        must(sent == count && known == count, || {
            format!("{sent} token requests came to the server, and the machine let {known} go, where it is {count}")
        })
    }

    /// Lets a time pass for driver and server. Moved clocks wake nobody: a call that changes nothing does.
    fn pass(&mut self, span: Duration) {
        self.emulator.clock().advance(span);
        self.subject.advance(span);
        self.poke();
    }

    fn poke(&mut self) {
        self.subject.invalidate(Token::fake("nobody's").id());
    }
}

fn settings(token_url: &str) -> Settings {
    let environment = Environment::custom(token_url, "http://127.0.0.1:1", SCOPE);
    let credentials = Credentials::new(ID, SECRET).expect("it has no odd characters");
    Settings::new().environment(environment).credentials(credentials)
}

fn must(so: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if so { Ok(()) } else { Err(otherwise()) }
}
