//! An endpoint that fails.
//!
//! `cargo bench -p storm-auth-tests --bench outage` lets callers call for three minutes, on clocks that are moved, while the token endpoint
//! fails in one way and in another: first while a token is valid, which nobody may feel, and then after it has expired. Then 200
//! callers start at once against an endpoint that fails.

#![allow(clippy::unwrap_used, reason = "a program of one page, for people")]

mod support;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_core::AcquireError;
use storm_auth_tests::emulator::{At, Emulator, Endpoint, Fault};
use support::adapter::{Adapter, Reqwest, Ureq};
use support::report::{Figure, figure, span};
use support::{bench, emulated};

const CALLERS: usize = 8;

const WINDOW: u64 = 180;

/// What a key may send in the window: three requests at once and then one per 20 s.
const BUDGET: u64 = 3 + WINDOW / 20;

/// Seconds that a caller waits at the longest, unless it says otherwise.
const DEADLINE: u64 = 30;

const COLD_CALLERS: usize = 200;

const ANSWER_TIME: Duration = Duration::from_millis(100);

/// What no call may take while a token is valid.
const BOUND: Duration = Duration::from_millis(1);

/// How the endpoint fails.
#[derive(Clone, Copy)]
enum Failing {
    Not,
    Status500,
    Status429,
    Reset,
    Refused,
    InvalidClient,
}

const FAILING: [(&str, Failing); 5] = [
    ("500", Failing::Status500),
    ("429", Failing::Status429),
    ("reset", Failing::Reset),
    ("refused", Failing::Refused),
    ("invalid_client", Failing::InvalidClient),
];

impl Failing {
    fn fault(self) -> Option<Fault> {
        match self {
            Self::Not | Self::Refused => None,
            Self::Status500 => Some(Fault::status(500)),
            Self::Status429 => Some(Fault::html(429)),
            Self::Reset => Some(Fault::Reset(At::Headers)),
            Self::InvalidClient => Some(Fault::json(400, r#"{"error":"invalid_client"}"#)),
        }
    }
}

fn main() -> ExitCode {
    bench(|report| {
        let columns = ["", "calls", "errors", "longest call", "requests"];
        let title =
            format!("{WINDOW} s of an outage with a valid token; the first rows are those of a healthy endpoint");
        let healthy = [valid::<Reqwest>("none", Failing::Not), valid::<Ureq>("none", Failing::Not)];
        let failing = FAILING.map(|(name, failing)| [valid::<Reqwest>(name, failing), valid::<Ureq>(name, failing)]);
        report.table(&title, &columns, healthy.into_iter().chain(failing.into_iter().flatten()).collect());

        let columns = ["", "calls", "errors", "that say when to come back", "longest wait, moved clock", "requests"];
        let title = format!("{WINDOW} s of an outage with an expired token");
        let rows = FAILING.map(|(name, failing)| [expired::<Reqwest>(name, failing), expired::<Ureq>(name, failing)]);
        report.table(&title, &columns, rows.into_iter().flatten().collect());

        let columns = ["", "errors", "that say when to come back", "longest wait", "requests"];
        let title = format!("{COLD_CALLERS} callers start against an endpoint that fails after {ANSWER_TIME:?}");
        let rows = FAILING.map(|(name, failing)| [cold::<Reqwest>(name, failing), cold::<Ureq>(name, failing)]);
        report.table(&title, &columns, rows.into_iter().flatten().collect());
    })
}

/// What came of a call.
struct Call {
    error: Option<AcquireError>,
    /// In real time.
    took: Duration,
    /// By the clock that is moved, to the second.
    waited: u64,
}

/// A provider whose token is `age` seconds old when the endpoint begins to fail.
struct Scene<A> {
    adapter: A,
    /// `None` when nobody listens any more.
    emulator: Option<Emulator>,
    /// Seconds that have passed.
    passed: Arc<AtomicU64>,
    before: u64,
}

impl<A: Adapter> Scene<A> {
    fn new(failing: Failing, age: u64) -> Self {
        let emulator = Emulator::start();
        let adapter = A::movable(emulated(&emulator));
        A::wait(adapter.token()).unwrap();
        let before = adapter.counters().requests;
        let emulator = match failing {
            Failing::Refused => None,
            _ => Some(emulator),
        };
        if let (Some(emulator), Some(fault)) = (&emulator, failing.fault()) {
            emulator.fail(Endpoint::Token, fault);
        }
        let scene = Self { adapter, emulator, passed: Arc::default(), before };
        scene.pass(age);
        scene
    }

    fn pass(&self, seconds: u64) {
        if let Some(emulator) = &self.emulator {
            emulator.clock().advance(Duration::from_secs(seconds));
        }
        self.passed.fetch_add(seconds, Ordering::SeqCst);
        self.adapter.advance(Duration::from_secs(seconds));
    }

    /// Calls for the length of the window, a second of which passes every ten milliseconds: enough for a request to land.
    fn calls(&self) -> Vec<Call> {
        let end = self.passed.load(Ordering::SeqCst) + WINDOW;
        let callers: Vec<_> = (0..CALLERS).map(|_| caller(self.adapter.clone(), self.passed.clone(), end)).collect();
        thread::scope(|scope| {
            let calls = scope.spawn(|| A::all(callers.into_iter()));
            // Whoever still waits at the end waits for its deadline.
            while !calls.is_finished() {
                thread::sleep(Duration::from_millis(10));
                self.pass(1);
            }
            calls.join().unwrap().into_iter().flatten().collect()
        })
    }

    fn requests(&self) -> u64 {
        self.adapter.counters().requests - self.before
    }
}

async fn caller<A: Adapter>(adapter: A, passed: Arc<AtomicU64>, end: u64) -> Vec<Call> {
    let mut calls = Vec::new();
    loop {
        let now = || passed.load(Ordering::SeqCst);
        let (begun, since) = (now(), Instant::now());
        if begun >= end {
            return calls;
        }
        let result = adapter.token().await;
        calls.push(Call { took: since.elapsed(), waited: now() - begun, error: result.err() });
        A::sleep(Duration::from_millis(2)).await;
    }
}

fn valid<A: Adapter>(name: &str, failing: Failing) -> Vec<Figure> {
    // Its refresh is due after 450 s, and it is valid for 590 s.
    let scene = Scene::<A>::new(failing, 400);
    let calls = scene.calls();
    let errors = calls.iter().filter(|call| call.error.is_some()).count();
    let longest = calls.iter().map(|call| call.took).max().unwrap();
    vec![
        figure(format!("{}, {name}", A::NAME)),
        figure(calls.len()),
        figure(errors).bound("0", errors == 0),
        span(longest).bound("at most 1 ms", longest <= BOUND),
        requests(scene.requests()),
    ]
}

fn requests(number: u64) -> Figure {
    figure(number).bound(&format!("at most {BUDGET}"), number <= BUDGET)
}

fn say_when(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.error.as_ref().is_some_and(|error| error.retry_at().is_some())).count()
}

fn expired<A: Adapter>(name: &str, failing: Failing) -> Vec<Figure> {
    let scene = Scene::<A>::new(failing, 600);
    let calls = scene.calls();
    let longest = calls.iter().map(|call| call.waited).max().unwrap();
    vec![
        figure(format!("{}, {name}", A::NAME)),
        figure(calls.len()),
        figure(calls.iter().filter(|call| call.error.is_some()).count()),
        figure(say_when(&calls)),
        figure(format!("{longest} s")).bound("at most 30", longest <= DEADLINE),
        requests(scene.requests()),
    ]
}

fn cold<A: Adapter>(name: &str, failing: Failing) -> Vec<Figure> {
    let emulator = Emulator::start();
    let adapter = A::new(emulated(&emulator));
    let _listening = match failing.fault() {
        Some(fault) => {
            emulator.fail(Endpoint::Token, fault.after(ANSWER_TIME));
            Some(emulator)
        }
        None => {
            drop(emulator);
            None
        }
    };
    let calls = A::all((0..COLD_CALLERS).map(|_| {
        let adapter = adapter.clone();
        async move {
            let since = Instant::now();
            let result = adapter.token().await;
            Call { took: since.elapsed(), waited: 0, error: result.err() }
        }
    }));
    let errors = calls.iter().filter(|call| call.error.is_some()).count();
    let longest = span(calls.iter().map(|call| call.took).max().unwrap());
    // After a throttle a slot is free before the callers' deadlines, so they wait for it (R36), and it is asked once more. What is
    // over the answer's own time otherwise is the way there and back, and waking them.
    let (bound, most, requests) = match failing {
        Failing::Status429 => ("at most 30 s", Duration::from_secs(DEADLINE), 2),
        _ => ("at most 150 ms", ANSWER_TIME + ANSWER_TIME / 2, 1),
    };
    let within = calls.iter().all(|call| call.took <= most);
    let sent = adapter.counters().requests;
    vec![
        figure(format!("{}, {name}", A::NAME)),
        figure(errors).bound(&COLD_CALLERS.to_string(), errors == COLD_CALLERS),
        figure(say_when(&calls)).bound("all", say_when(&calls) == errors),
        longest.bound(bound, within),
        figure(sent).bound(&format!("at most {requests}"), sent <= requests),
    ]
}
