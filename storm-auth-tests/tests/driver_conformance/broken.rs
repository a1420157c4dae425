//! A driver that can be told to do one thing wrong, and the check that finds it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::sync::LazyLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use http::{Response, StatusCode, header};
use storm_auth_core::driver::{Clock, SystemClocks};
use storm_auth_core::machine::{Acquire, Action, OpId, Output, TokenRequest, WaiterId};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Counters, Failure, FailureKind, KeyId, Machine, Mono, Now, Settings, Status, Token, TokenId, Unix,
};
use storm_auth_tests::driver_conformance::{Subject, check, checks};
use ureq::Agent;

/// What it does wrong. A number, so that it can be a parameter of the type.
pub(crate) type Wrong = u8;

const NOTHING: Wrong = 0;
const READS_ONE_CLOCK: Wrong = 1;
const LEAVES_OUTPUTS: Wrong = 2;
const FOLLOWS_REDIRECTS: Wrong = 3;
const SENDS_AGAIN: Wrong = 4;
const KEEPS_STATUSES_TO_ITSELF: Wrong = 5;
const REPORTS_NO_FAILURE: Wrong = 6;
const READS_ON: Wrong = 7;
const DECODES_BODIES: Wrong = 8;
const IS_HASTY: Wrong = 9;
const NEVER_TELLS_THE_TIME: Wrong = 10;
const LOSES_RESULTS: Wrong = 11;
const CANCELS_NOBODY: Wrong = 12;
const CACHES_ON_ITS_OWN: Wrong = 13;
const FORGETS_EVERY_TOKEN: Wrong = 14;
const REJECTS_WHATEVER_IS_CURRENT: Wrong = 15;
const RETRIES: Wrong = 16;
const TELLS_THE_SECRET: Wrong = 17;
const STARTS_AFTER_THE_END: Wrong = 18;
const READS_THE_OTHER_CLOCK: Wrong = 19;
const SLEEPS_ON: Wrong = 20;
const TAKES_HALVES: Wrong = 21;
const ENDS_REQUESTS_WITH_CALLERS: Wrong = 22;
const REPORTS_NOTHING: Wrong = 23;
const KEEPS_ITS_CALLERS: Wrong = 24;

#[test]
fn a_driver_that_does_nothing_wrong_is_not_blamed() {
    check::<Broken<NOTHING>>();
}

/// The others would find no more in it, and take long for that.
#[test]
fn a_driver_that_brings_no_token_is_told_so_and_nothing_else() {
    let first = &checks::<Broken<REPORTS_NOTHING>>()[0];
    let violation = first.run(Duration::from_millis(200)).unwrap_err();
    let told = "a_caller_gets_a_token: a caller gets no result (point 8 of storm_auth_core::driver_guide)";
    assert_eq!(violation.to_string(), told);
}

/// Each mistake, the check that finds it, and its point.
macro_rules! finds {
    ($($name:ident: $wrong:ident, $check:literal, $point:literal;)+) => {$(
        #[test]
        fn $name() {
            finds::<$wrong>($check, $point);
        }
    )+};
}

finds! {
    one_clock_is_found: READS_ONE_CLOCK, "a_suspend_is_felt", 1;
    the_other_clock_is_found: READS_THE_OTHER_CLOCK, "a_clock_that_is_set_back_prolongs_nothing", 1;
    outputs_that_are_left_are_found: LEAVES_OUTPUTS, "a_refresh_starts_behind_a_token_that_is_served", 2;
    a_redirect_that_is_followed_is_found: FOLLOWS_REDIRECTS, "no_redirect_is_followed", 3;
    a_request_that_is_sent_again_is_found: SENDS_AGAIN, "a_request_is_sent_once", 3;
    a_failure_in_place_of_an_answer_is_found: KEEPS_STATUSES_TO_ITSELF, "every_answer_is_reported", 4;
    a_failure_that_is_not_reported_is_found: REPORTS_NO_FAILURE, "a_request_without_an_answer_is_reported", 4;
    a_body_without_an_end_is_found: READS_ON, "a_body_past_64_kib_fails", 5;
    a_body_that_is_decoded_is_found: DECODES_BODIES, "an_encoded_body_fails", 5;
    half_an_answer_is_found: TAKES_HALVES, "half_an_answer_fails", 5;
    a_caller_that_is_kept_is_found: KEEPS_ITS_CALLERS, "a_request_outlives_the_deadline_of_its_caller", 6;
    a_request_that_goes_with_its_caller_is_found: IS_HASTY, "a_request_outlives_the_deadline_of_its_caller", 6;
    a_timeout_that_nobody_keeps_is_found: NEVER_TELLS_THE_TIME, "a_deadline_comes_though_nothing_happens", 7;
    a_gate_that_nobody_opens_is_found: NEVER_TELLS_THE_TIME, "a_throttle_ends_though_nothing_happens", 7;
    a_deadline_that_is_slept_through_is_found: SLEEPS_ON, "a_deadline_that_comes_forward_is_kept", 7;
    a_result_that_is_lost_is_found: LOSES_RESULTS, "one_request_serves_all_who_wait", 8;
    waiters_that_are_left_behind_are_found: CANCELS_NOBODY, "a_caller_that_goes_leaves_the_others_served", 9;
    a_request_that_ends_with_its_caller_is_found: ENDS_REQUESTS_WITH_CALLERS, "a_caller_that_goes_leaves_its_request", 9;
    a_cache_that_keeps_too_long_is_found: CACHES_ON_ITS_OWN, "an_expired_token_is_never_handed_out", 10;
    a_cache_that_keeps_nothing_is_found: FORGETS_EVERY_TOKEN, "a_cached_token_costs_no_request", 10;
    a_rejection_of_the_wrong_token_is_found: REJECTS_WHATEVER_IS_CURRENT, "a_rejected_token_is_replaced_once", 11;
    a_retry_of_a_throttle_is_found: RETRIES, "a_throttle_is_felt_once", 12;
    a_retry_of_a_failure_is_found: RETRIES, "a_failure_is_not_retried_by_the_driver", 12;
    a_secret_in_an_error_is_found: TELLS_THE_SECRET, "no_error_shows_the_secret", 13;
    work_after_the_end_is_found: STARTS_AFTER_THE_END, "a_closed_driver_starts_nothing", 14;
}

#[track_caller]
fn finds<const WRONG: Wrong>(name: &str, point: u8) {
    let check = checks::<Broken<WRONG>>().into_iter().find(|check| check.name == name).unwrap();
    // Some of them show by never coming to an end.
    let violation = check.run(Duration::from_secs(1)).unwrap_err();
    assert_eq!((violation.check, violation.point), (name, point));
    let text = violation.to_string();
    assert!(text.contains(&format!("(point {point} of storm_auth_core::driver_guide)")), "{text}");
}

/// One thread owns the machine, each request has a thread with a ureq, and whoever waits turns it.
pub(crate) struct Broken<const WRONG: Wrong> {
    machine: Machine,
    key: KeyId,
    clock: Clock<Ticking>,
    secret: String,
    resolved: BTreeMap<WaiterId, Result<Token, AcquireError>>,
    /// What it keeps beside the machine, where that is its mistake.
    cached: Option<Token>,
    /// Until when it means to sleep.
    sleeps_until: Option<Mono>,
    last_op: Option<OpId>,
    reporter: Sender<Report>,
    reports: Receiver<Report>,
}

type Report = (OpId, Result<Response<ResponseBody>, Failure>);

#[derive(Clone, Copy, Debug)]
struct Ticking;

impl SystemClocks for Ticking {
    fn fine() -> Now {
        static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        Now::from_millis(ORIGIN.elapsed().as_millis() as u64, Unix::from(SystemTime::now()).as_millis())
    }

    fn coarse() -> Now {
        Self::fine()
    }
}

/// The machine's error, and what the driver has to say about it.
#[derive(Debug)]
pub(crate) struct Error(AcquireError, String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, self.1)
    }
}

impl std::error::Error for Error {}

impl<const WRONG: Wrong> Broken<WRONG> {
    fn now(&self) -> Now {
        let now = self.clock.now();
        match WRONG {
            READS_ONE_CLOCK => Now { unix: Unix::from_millis(1_700_000_000_000 + now.mono.as_millis()), ..now },
            READS_THE_OTHER_CLOCK => Now { mono: Mono::from_millis(now.unix.as_millis()), ..now },
            _ => now,
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => {
                    let (op, reporter) = (send.op, self.reporter.clone());
                    self.last_op = Some(op);
                    let request = std::thread::spawn(move || match post(WRONG, &send) {
                        Err(_) if WRONG == REPORTS_NO_FAILURE => {}
                        _ if WRONG == REPORTS_NOTHING => {}
                        outcome => drop(reporter.send((op, outcome))),
                    });
                    if WRONG == KEEPS_ITS_CALLERS {
                        request.join().unwrap();
                    }
                }
                Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
                Output::Resolve(waiter, result) => {
                    if WRONG == LOSES_RESULTS {
                        self.resolved.clear();
                    }
                    self.resolved.insert(waiter, result);
                }
                Output::Event(_) => {}
            }
        }
    }

    fn told(&self, error: AcquireError) -> Error {
        let more = if WRONG == TELLS_THE_SECRET { format!(" (client_secret={})", self.secret) } else { String::new() };
        Error(error, more)
    }
}

impl<const WRONG: Wrong> Subject for Broken<WRONG> {
    type Caller = Acquire;
    type Error = Error;

    fn start(settings: Settings) -> Self {
        let config = settings.check().unwrap();
        let secret = config.key.credentials().secret().expose().to_owned();
        let (mut machine, clock) = (Machine::new(config.policy, 7), Clock::movable());
        let key = machine.add_key(config.key, clock.now());
        let (reporter, reports) = mpsc::channel();
        let (resolved, cached, sleeps_until, last_op) = Default::default();
        Self { machine, key, clock, secret, resolved, cached, sleeps_until, last_op, reporter, reports }
    }

    fn call(&mut self, deadline: Duration) -> Acquire {
        match self.machine.peek(self.key, self.now()) {
            Some(peek) if WRONG == CACHES_ON_ITS_OWN => self.cached = Some(peek.token),
            Some(peek) if WRONG == FORGETS_EVERY_TOKEN => drop(self.machine.invalidate(peek.token.id(), self.now())),
            _ => {}
        }
        if let Some(token) = &self.cached {
            return Acquire::Ready(token.clone());
        }
        let acquired = self.machine.acquire(self.key, Some(deadline), self.now());
        if WRONG != LEAVES_OUTPUTS || !matches!(acquired, Acquire::Ready(_)) {
            self.drain();
        }
        acquired
    }

    fn poll(&mut self, caller: &mut Acquire) -> Option<Result<Token, Error>> {
        match caller {
            Acquire::Ready(token) => Some(Ok(token.clone())),
            Acquire::Failed(error) => Some(Err(self.told(error.clone()))),
            Acquire::Wait(waiter) => Some(self.resolved.remove(waiter)?.map_err(|error| self.told(error))),
        }
    }

    fn rest(&mut self) {
        match self.reports.recv_timeout(Duration::from_millis(2)) {
            Ok((op, Ok(response))) => self.machine.handle_response(op, &response, self.now()),
            Ok((op, Err(failure))) => self.machine.handle_failure(op, failure, self.now()),
            Err(_) if WRONG == NEVER_TELLS_THE_TIME || WRONG == LEAVES_OUTPUTS => return,
            Err(_) if WRONG == SLEEPS_ON => {
                let due = self.machine.poll_timeout().map(|due| due.at);
                if self.sleeps_until.or(due).is_none_or(|until| self.now().mono < until) {
                    self.sleeps_until = self.sleeps_until.or(due);
                    return;
                }
                self.sleeps_until = None;
                self.machine.handle_timeout(self.now());
            }
            Err(_) => self.machine.handle_timeout(self.now()),
        }
        self.drain();
    }

    fn leave(&mut self, caller: Acquire) -> bool {
        if let Acquire::Wait(waiter) = caller
            && WRONG != CANCELS_NOBODY
        {
            self.machine.cancel(waiter, self.now());
            if let Some(op) = self.last_op.filter(|_| WRONG == ENDS_REQUESTS_WITH_CALLERS) {
                self.machine.handle_failure(op, Failure::new(FailureKind::Aborted, "its caller has gone"), self.now());
            }
            self.drain();
        }
        true
    }

    fn invalidate(&mut self, token: TokenId) {
        let current = self.machine.peek(self.key, self.now()).filter(|_| WRONG == REJECTS_WHATEVER_IS_CURRENT);
        self.machine.invalidate(current.map_or(token, |peek| peek.token.id()), self.now());
        self.drain();
    }

    fn close(&mut self) {
        if WRONG != STARTS_AFTER_THE_END {
            self.machine.shut_down(self.now());
            self.drain();
        }
    }

    fn status(&mut self) -> Status {
        self.machine.status(self.now())
    }

    fn counters(&mut self) -> Counters {
        self.machine.counters()
    }

    fn acquire_error(error: &Error) -> Option<&AcquireError> {
        Some(&error.0)
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
}

fn post(wrong: Wrong, send: &TokenRequest) -> Result<Response<ResponseBody>, Failure> {
    let agent = Agent::config_builder()
        .proxy(None)
        .http_status_as_error(wrong == KEEPS_STATUSES_TO_ITSELF)
        .max_redirects(if wrong == FOLLOWS_REDIRECTS { 5 } else { 0 })
        .max_redirects_will_error(false)
        .timeout_global(Some(if wrong == IS_HASTY { Duration::from_millis(10) } else { send.patience }))
        .build()
        .new_agent();
    let ask = || agent.run(send.request.clone().map(|body| body.as_bytes().to_vec()));
    let mut answer = ask();
    if wrong == SENDS_AGAIN && answer.is_err() {
        answer = ask();
    }
    if wrong == RETRIES && answer.as_ref().is_ok_and(|answer| answer.status() != StatusCode::OK) {
        answer = ask();
    }
    let (mut head, body) = answer.map_err(|error| failure(&error))?.into_parts();
    if wrong == DECODES_BODIES {
        head.headers.remove(header::CONTENT_ENCODING);
    }
    let (mut reader, mut chunk, mut body) = (body.into_reader(), [0; 8 * 1_024], ResponseBody::new());
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) if body.push(&chunk[..length]).is_err() && wrong != READS_ON => break,
            Ok(_) => {}
            Err(_) if wrong == TAKES_HALVES => break,
            Err(error) => return Err(failure(&error.into())),
        }
    }
    Ok(Response::from_parts(head, body))
}

fn failure(error: &ureq::Error) -> Failure {
    let kind = match error {
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => FailureKind::Connect,
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => FailureKind::Connect,
        ureq::Error::Timeout(_) => FailureKind::Timeout,
        _ => FailureKind::Io,
    };
    Failure::new(kind, error.to_string())
}
