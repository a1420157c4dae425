//! The driver of `storm-auth-blocking`, with loom's lock and threads, over a modelled clock and transport.

use std::{rc::Rc, sync::Arc, time::Duration};

use storm_auth_core::{
    AcquireError, Budget, Credentials, Event, Failure, FailureKind, HttpHosts, Key, KeyId, Machine, Policy, Scope,
    Token, TokenUrl, machine::TokenRequest, wire::response::ResponseBody,
};

use self::{
    clock::Clock,
    sync::{AtomicBool, Condvar, Ordering, thread},
    transport::{Outcome, Transport},
};
use crate::explore;

#[path = "../../../storm-auth-blocking/src/driver.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is used and public where it lives")]
mod real;

use real::{Driver, Handle, KeepWarm, OnEvent};

pub(crate) mod sync {
    pub(crate) use std::sync::{Arc, PoisonError, Weak};

    use std::{sync::LockResult, time::Duration};

    pub(crate) use loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    };

    /// Up to the longest sleep of the story, time passes as soon as somebody sleeps. No clock comes to the end of a longer one:
    /// who is not woken is lost, and loom says so.
    fn passes(span: Duration) -> bool {
        let short = span <= super::LONGEST_SLEEP;
        if short {
            super::clock::advance(span);
        }
        short
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            span: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            let guard = if passes(span) { guard } else { self.0.wait(guard).unwrap() };
            Ok((guard, ()))
        }
    }

    pub(crate) mod thread {
        use std::{io, time::Duration};

        pub(crate) use loom::thread::{JoinHandle, Thread, current, park, spawn};

        pub(crate) fn park_timeout(span: Duration) {
            if !super::passes(span) {
                park();
            }
        }

        /// Starts threads, but those of flights that a story says cannot be had.
        pub(crate) struct Builder(loom::thread::Builder);

        impl Builder {
            pub(crate) fn new() -> Self {
                Self(loom::thread::Builder::new())
            }

            pub(crate) fn name(self, name: String) -> Self {
                Self(self.0.name(name))
            }

            pub(crate) fn spawn<T: Send + 'static>(
                self,
                act: impl FnOnce() -> T + Send + 'static,
            ) -> io::Result<JoinHandle<T>> {
                match super::super::REFUSED_THREADS.with(|refused| refused.replace(refused.get().saturating_sub(1))) {
                    0 => self.0.spawn(act),
                    _ => Err(io::ErrorKind::OutOfMemory.into()),
                }
            }
        }
    }
}

std::thread_local! {
    /// How many threads cannot be had. Of the system's thread, which runs one interleaving after another.
    static REFUSED_THREADS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

pub(crate) mod clock {
    use std::{cell::Cell, time::Duration};

    use storm_auth_core::Now;

    std::thread_local! {
        static PASSED: Cell<u64> = const { Cell::new(0) };
    }

    /// Time stands still, but for those who sleep a little.
    #[derive(Clone, Debug)]
    pub(crate) struct Clock;

    impl Clock {
        pub(crate) fn at_the_start() -> Self {
            PASSED.set(0);
            Self
        }

        pub(crate) fn now(&self) -> Now {
            Now::from_millis(1_000_000 + PASSED.get(), 1_700_000_000_000 + PASSED.get())
        }
    }

    pub(crate) fn advance(span: Duration) {
        PASSED.set(PASSED.get() + u64::try_from(span.as_millis()).unwrap());
    }
}

pub(crate) mod observe {
    use std::{cell::RefCell, rc::Rc, sync::Arc};

    use storm_auth_core::{
        Event,
        driver::{Board, Landing, Measurement},
        machine::TokenRequest,
    };

    std::thread_local! {
        /// The recorder. Of the system's thread, as `REFUSED_THREADS`.
        pub(crate) static RECORDER: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
    }

    pub(crate) fn observe(_: &Event, _: &str) {}

    pub(crate) struct Meter(());

    impl Meter {
        pub(crate) fn new(_: Arc<str>) -> Self {
            Self(())
        }

        pub(crate) fn measure<W>(board: Board<W>) -> Board<W> {
            board
        }

        pub(crate) fn tell_served(&self) {}

        /// Any look at the board may bring something to be told.
        pub(crate) fn tell(&self, _: &[Measurement]) {
            if let Some(record) = RECORDER.with_borrow(Clone::clone) {
                record();
            }
        }
    }

    #[derive(Clone)]
    pub(crate) struct Span;

    impl Span {
        pub(crate) fn of(_: &TokenRequest, _: &str) -> Self {
            Self
        }

        pub(crate) fn enter<T>(&self, act: impl FnOnce() -> T) -> T {
            act()
        }

        pub(crate) fn land(&self, _: Landing, _: Option<http::StatusCode>) {}
    }

    pub(crate) struct Observer;

    impl Observer {
        pub(crate) fn current() -> Self {
            Self
        }

        pub(crate) fn carry<T>(self, act: impl FnOnce() -> T) -> T {
            act()
        }
    }
}

pub(crate) mod transport {
    use std::{collections::VecDeque, sync::Arc};

    use loom::sync::Mutex;

    use super::{Failure, FailureKind, ResponseBody, TokenRequest};

    #[derive(Clone, Copy)]
    pub(crate) enum Outcome {
        Granted,
        ServerError,
        /// With a Retry-After of a second.
        Throttled,
        Aborted,
    }

    /// Answers each request at once with what the story has next; loom decides when that is.
    #[derive(Clone)]
    pub(crate) struct Transport(Arc<Mutex<VecDeque<Outcome>>>);

    impl Transport {
        pub(crate) fn answering(script: &[Outcome]) -> Self {
            Self(Arc::new(Mutex::new(script.iter().copied().collect())))
        }

        pub(crate) fn send(&self, _: TokenRequest) -> Result<http::Response<ResponseBody>, Failure> {
            let next = self.0.lock().unwrap().pop_front().expect("no more requests than the story has answers");
            let answer = |status, body: &str| {
                let body = ResponseBody::try_from(body.as_bytes()).unwrap();
                http::Response::builder().status(status).body(body).unwrap()
            };
            match next {
                Outcome::Granted => Ok(answer(200, r#"{"access_token":"t","expires_in":600,"token_type":"Bearer"}"#)),
                Outcome::ServerError => Ok(answer(500, "")),
                Outcome::Throttled => {
                    let mut response = answer(429, "");
                    response.headers_mut().insert("retry-after", 1.into());
                    Ok(response)
                }
                Outcome::Aborted => Err(Failure::new(FailureKind::Aborted, "")),
            }
        }

        pub(crate) fn another(&self) -> Self {
            self.clone()
        }

        pub(crate) fn cancel(&self) {}

        pub(crate) fn left(&self) -> usize {
            self.0.lock().unwrap().len()
        }
    }
}

const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));
const LONGEST_SLEEP: Duration = Duration::from_secs(2);

fn key() -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default()).unwrap();
    Key::new(url, Credentials::new("shop", "S3cret").unwrap(), Scope::server_default())
}

/// A driver of one key, whose requests are answered by a script.
struct Story {
    driver: Arc<Driver>,
    key: KeyId,
    bell: Arc<Condvar>,
    transport: Transport,
}

impl Story {
    fn new(script: &[Outcome]) -> Self {
        Self::told(script, None)
    }

    /// The same, with somebody who is told of each event.
    fn told(script: &[Outcome], on_event: Option<Arc<OnEvent>>) -> Self {
        REFUSED_THREADS.set(0);
        observe::RECORDER.set(None);
        let mut policy = Policy::default();
        policy.budget = Budget::unlimited();
        let transport = Transport::answering(script);
        let (machine, clock) = (Machine::new(policy, 7), Clock::at_the_start());
        let driver = Driver::new(machine, clock, transport.clone(), None, on_event, "shop".to_owned());
        let (key, _cell) = driver.add_key(key());
        Self { driver, key, bell: Arc::new(Condvar::new()), transport }
    }

    fn keep_warm(&self) -> KeepWarm {
        Arc::new(Handle(self.driver.clone())).keep_warm(self.key)
    }

    fn call(&self) -> Result<Token, AcquireError> {
        self.driver.acquire(self.key, &self.bell, PATIENCE)
    }

    /// A call on another thread.
    fn caller(&self) -> thread::JoinHandle<Result<Token, AcquireError>> {
        let (driver, key, bell) = (self.driver.clone(), self.key, self.bell.clone());
        thread::spawn(move || driver.acquire(key, &bell, PATIENCE))
    }

    /// Calls from two threads.
    fn call_twice(&self) -> [Result<Token, AcquireError>; 2] {
        let other = self.caller();
        [self.call(), other.join().unwrap()]
    }

    /// The answers that nobody asked for.
    fn left(&self) -> usize {
        self.transport.left()
    }
}

#[test]
fn r25_r51_two_callers_share_one_flight_and_both_are_woken() {
    explore(3, || {
        let story = Story::new(&[Outcome::Granted]);
        assert!(story.call_twice().iter().all(Result::is_ok));
        assert_eq!(story.left(), 0);
    });
}

#[test]
fn r25_r51_a_failure_reaches_everyone_who_waits_for_it() {
    explore(3, || {
        let story = Story::new(&[Outcome::ServerError]);
        let results = story.call_twice();
        assert!(results.iter().all(|result| matches!(result, Err(AcquireError::Unavailable { .. }))), "{results:?}");
        assert_eq!(story.left(), 0);
    });
}

/// Who waits sleeps until its deadline, which no clock here comes to; the answer brings the time to look forward.
#[test]
fn r36_r51_whoever_waits_is_woken_for_a_gate_that_opens_before_its_deadline() {
    explore(2, || {
        let story = Story::new(&[Outcome::Throttled, Outcome::Granted]);
        assert!(story.call_twice().iter().all(Result::is_ok));
        assert_eq!(story.left(), 0);
    });
}

/// Sleeps on this thread until another one has done something, as one does that writes to a full channel.
fn sleep_a_while() {
    let written = Arc::new(AtomicBool::new(false));
    let writer = (written.clone(), thread::current());
    thread::spawn(move || {
        let (written, sleeper) = writer;
        written.store(true, Ordering::Release);
        sleeper.unpark();
    });
    while !written.load(Ordering::Acquire) {
        thread::park();
    }
}

/// The second request goes out when the gate opens, from the thread that keeps the key warm, which is told of it. Meanwhile it is
/// woken to end.
#[test]
fn r51_r52_a_callback_that_sleeps_takes_no_wake_up_from_a_warm_keys_thread() {
    explore(3, || {
        let requests = std::sync::Mutex::new(0);
        let on_event = move |event: &Event| {
            if matches!(event, Event::Requested { .. }) && std::mem::replace(&mut *requests.lock().unwrap(), 1) == 1 {
                sleep_a_while();
            }
        };
        let story = Story::told(&[Outcome::Throttled, Outcome::Granted], Some(Arc::new(on_event)));
        drop(story.keep_warm());
        std::mem::forget(story);
    });
}

/// A recorder does the same, whatever it is that it was told.
#[test]
fn r51_r79_a_recorder_that_sleeps_takes_no_wake_up_from_a_warm_keys_thread() {
    explore(2, || {
        let story = Story::new(&[Outcome::Granted]);
        let (main, slept) = (thread::current().id(), std::cell::Cell::new(false));
        observe::RECORDER.set(Some(Rc::new(move || {
            if thread::current().id() != main && !slept.replace(true) {
                sleep_a_while();
            }
        })));
        drop(story.keep_warm());
        std::mem::forget(story);
    });
}

#[test]
fn r48_r51_an_aborted_flight_is_repeated_for_those_who_wait() {
    explore(3, || {
        let story = Story::new(&[Outcome::Aborted, Outcome::Granted]);
        assert!(story.call_twice().iter().all(Result::is_ok));
        assert_eq!(story.left(), 0);
    });
}

/// A flight that never took off reports that it was aborted and starts no other, since it may be the end of a thread: a caller
/// that waits is woken for it.
#[test]
fn r49_r51_a_flight_without_a_thread_is_started_again_by_a_caller() {
    explore(3, || {
        let story = Story::new(&[Outcome::Granted]);
        REFUSED_THREADS.set(1);
        assert!(story.call_twice().iter().all(Result::is_ok));
        assert_eq!(story.left(), 0);
    });
}

#[test]
fn r47_r51_closing_waits_for_what_is_under_way_and_lets_nobody_hang() {
    explore(3, || {
        let story = Story::new(&[Outcome::Granted]);
        let other = story.caller();
        story.driver.shut_down(Duration::from_secs(3_600)).unwrap();
        match other.join().unwrap() {
            Ok(_) => assert_eq!(story.left(), 0),
            Err(error) => assert_eq!((error, story.left()), (AcquireError::Closed, 1)),
        }
    });
}

/// loom waits for every thread of a story: one that sleeps on is found.
#[test]
fn r51_r55_a_warm_keys_thread_ends_with_its_guard_whatever_it_is_doing() {
    explore(3, || {
        let story = Story::new(&[Outcome::Granted]);
        story.call().unwrap();
        drop(story.keep_warm());
        // The driver lives on: neither its end nor anything else wakes the thread.
        std::mem::forget(story);
    });
    explore(3, || {
        let story = Story::new(&[Outcome::Granted]);
        drop(story.keep_warm());
    });
}

#[test]
fn r51_r55_a_warm_keys_thread_ends_with_the_last_handle() {
    explore(3, || {
        let story = Story::new(&[Outcome::Granted]);
        let warm = story.keep_warm();
        drop(story);
        drop(warm);
    });
}

#[test]
fn r51_r55_the_last_handle_may_go_while_a_flight_is_under_way() {
    explore(3, || {
        let story = Story::new(&[Outcome::Granted]);
        let error = story.driver.acquire(story.key, &story.bell, Some(Duration::ZERO)).map(drop);
        assert_eq!(error, Err(AcquireError::DeadlineExceeded));
    });
}
