//! The machine in virtual time: a driver whose clock is a number, without a socket, a thread or a sleep. A test double for code of
//! yours that lives with tokens for hours: a refresh, a 429, an outage and an expiry go by in microseconds.
//!
//! ```text
//! cargo run -p storm-auth-core --example custom_runtime_virtual    # a day, hour by hour
//! cargo test -p storm-auth-core --example custom_runtime_virtual   # the tests at the end of this file
//! ```
//!
//! [`Lab`] is what to copy. It decides nothing either: what it hands out, and when, is what the machine would do in production.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use http::{Response, StatusCode, header};
use storm_auth_core::machine::{Acquire, Action, OpId, Output, WaiterId};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Credentials, Environment, Failure, FailureKind, KeyId, Machine, Mono, Now, Settings, Stage, Token,
    Unix,
};

/// Where code of yours gets its tokens: in production from a driver, in a test from a [`Lab`].
trait Tokens {
    fn token(&mut self) -> Result<Token, AcquireError>;
}

/// Code of yours: it brings stock levels to the shop once a minute, and leaves a round out where there is no token.
#[derive(Default, Debug)]
struct StockSync {
    done: u32,
    left_out: u32,
    /// What it was told to wait for.
    quiet_until: Option<Unix>,
}

impl StockSync {
    fn round(&mut self, tokens: &mut impl Tokens, now: Unix) {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.left_out += 1;
            return;
        }
        match tokens.token() {
            Ok(_token) => self.done += 1, // the API call goes here
            Err(error) => {
                self.left_out += 1;
                self.quiet_until = error.retry_at();
            }
        }
    }
}

/// A driver in virtual time, its one key, and the token endpoint as a function of time.
struct Lab {
    machine: Machine,
    key: KeyId,
    now: Now,
    /// What the endpoint answers to a request that comes so long after the start.
    endpoint: Box<dyn Fn(Duration) -> Answer>,
    /// Answers that are under way, in the order they were asked for, and when they arrive.
    under_way: Vec<(Mono, OpId, Answer)>,
    /// Waiters that were resolved, until somebody fetches the result.
    resolved: BTreeMap<WaiterId, Result<Token, AcquireError>>,
    requests: u32,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// A token that lives so long.
    Token(Duration),
    /// A status, as of a proxy.
    Status(u16),
    /// A 429 that says for how many seconds.
    RetryAfter(u64),
    /// The connection breaks.
    Broken,
}

impl Lab {
    /// Both clocks at the start. Neither is zero, so that nothing rests on it.
    const START: Now = Now::from_millis(5_000_000, 1_700_000_000_000);
    /// How long a request takes.
    const LATENCY: Duration = Duration::from_millis(80);

    fn new(endpoint: impl Fn(Duration) -> Answer + 'static) -> Self {
        let config = Settings::new()
            .environment(Environment::norce("acme", "se", Stage::Playground))
            .credentials(Credentials::new("shop", "S3cret").expect("it has no odd characters"))
            .check()
            .expect("the settings are complete");
        let mut machine = Machine::new(config.policy, 7); // the same day each time
        let key = machine.add_key(config.key, Self::START);
        let (under_way, resolved) = (Vec::new(), BTreeMap::new());
        Self { machine, key, now: Self::START, endpoint: Box::new(endpoint), under_way, resolved, requests: 0 }
    }

    /// The time since the start.
    fn elapsed(&self) -> Duration {
        self.now.mono.since(Self::START.mono)
    }

    /// Lets a time pass, from one thing that happens to the next.
    fn pass(&mut self, span: Duration) {
        let end = self.now.mono + span;
        while let Some(next) = self.next().filter(|next| *next <= end) {
            self.jump(next);
        }
        self.elapse(end.since(self.now.mono));
    }

    fn elapse(&mut self, span: Duration) {
        self.now = Now { mono: self.now.mono + span, unix: self.now.unix + span };
    }

    /// When the next thing happens.
    fn next(&self) -> Option<Mono> {
        let arrivals = self.under_way.iter().map(|(at, ..)| *at);
        arrivals.chain(self.machine.poll_timeout().map(|due| due.at)).min()
    }

    /// Goes to the next thing that happens, and lets it happen.
    fn jump(&mut self, to: Mono) {
        self.elapse(to.since(self.now.mono));
        match self.under_way.iter().position(|(at, ..)| *at <= self.now.mono) {
            Some(arrived) => {
                let (_, op, answer) = self.under_way.remove(arrived);
                match self.response(answer) {
                    Ok(response) => self.machine.handle_response(op, &response, self.now),
                    Err(failure) => self.machine.handle_failure(op, failure, self.now),
                }
            }
            None => self.machine.handle_timeout(self.now),
        }
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => {
                    self.requests += 1;
                    let answer = (self.endpoint)(self.elapsed());
                    self.under_way.push((self.now.mono + Self::LATENCY, send.op, answer));
                }
                Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
                Output::Resolve(waiter, result) => drop(self.resolved.insert(waiter, result)),
                Output::Event(_) => {} // what happened, in words: `println!("{event}")` tells the story
            }
        }
    }

    fn response(&self, answer: Answer) -> Result<Response<ResponseBody>, Failure> {
        let (status, retry_after, body) = match answer {
            // No two are the same.
            Answer::Token(lives) => {
                (200, None, format!(r#"{{"access_token":"t{}","expires_in":{}}}"#, self.requests, lives.as_secs()))
            }
            Answer::Status(status) => (status, None, "<html>".to_owned()),
            Answer::RetryAfter(seconds) => (429, Some(seconds), String::new()),
            Answer::Broken => return Err(Failure::new(FailureKind::Io, "reset")),
        };
        let mut response = Response::new(ResponseBody::try_from(body.as_bytes()).expect("it is shorter than 64 KiB"));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status is between 100 and 999");
        response.headers_mut().extend(retry_after.map(|seconds| (header::RETRY_AFTER, seconds.into())));
        Ok(response)
    }
}

impl Tokens for Lab {
    /// Time passes while a caller waits, as it would.
    fn token(&mut self) -> Result<Token, AcquireError> {
        let acquired = self.machine.acquire(self.key, None, self.now);
        self.drain();
        match acquired {
            Acquire::Ready(token) => Ok(token),
            Acquire::Failed(error) => Err(error),
            Acquire::Wait(waiter) => loop {
                if let Some(result) = self.resolved.remove(&waiter) {
                    return result;
                }
                let next = self.next().expect("a waiter has a deadline");
                self.jump(next);
            },
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
/// How long the tokens live.
const LIFETIME: Duration = Duration::from_secs(600);

/// Runs the job for so many hours, a round a minute.
fn work(lab: &mut Lab, job: &mut StockSync, hours: u32) {
    let end = lab.elapsed() + hours * HOUR;
    let mut round = lab.elapsed();
    while round < end {
        lab.pass(round.saturating_sub(lab.elapsed()));
        job.round(lab, lab.now.unix);
        round += MINUTE;
    }
    lab.pass(end.saturating_sub(lab.elapsed()));
}

/// A day on which much goes wrong.
fn a_bad_day(at: Duration) -> Answer {
    match at.as_secs() {
        18_100..18_200 => Answer::RetryAfter(60),
        25_300..25_400 => Answer::Broken,
        36_000..38_400 => Answer::Status(502),
        _ => Answer::Token(LIFETIME),
    }
}

fn main() -> io::Result<()> {
    let (mut lab, mut job, mut out) = (Lab::new(a_bad_day), StockSync::default(), io::stdout().lock());
    writeln!(out, "hour  requests  rounds  left out")?;
    for hour in 1..=24 {
        let (requests, done, left_out) = (lab.requests, job.done, job.left_out);
        work(&mut lab, &mut job, 1);
        let (requests, done, left_out) = (lab.requests - requests, job.done - done, job.left_out - left_out);
        writeln!(out, "{hour:>4}  {requests:>8}  {done:>6}  {left_out:>8}")?;
    }
    writeln!(out, "a 429 in hour 6, connections that break in hour 8, an outage of 40 minutes in hour 11")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_good_day_costs_a_request_for_each_refresh() {
        let (mut lab, mut job) = (Lab::new(|_| Answer::Token(LIFETIME)), StockSync::default());
        work(&mut lab, &mut job, 24);
        assert_eq!((job.done, job.left_out), (24 * 60, 0));
        // By rounds of a minute, 480 s after another.
        assert!((180..=190).contains(&lab.requests), "{}", lab.requests);
    }

    #[test]
    fn r24_a_refresh_starts_at_three_quarters_of_a_life_and_nobody_waits_for_it() {
        let mut lab = Lab::new(|_| Answer::Token(LIFETIME));
        let first = lab.token().unwrap();
        assert_eq!(lab.elapsed(), Lab::LATENCY, "the first caller waits for its request");
        lab.pass(seconds(449));
        assert_eq!((lab.token().unwrap().id(), lab.requests), (first.id(), 1));
        lab.pass(seconds(1));
        let before = lab.elapsed();
        assert_eq!((lab.token().unwrap().id(), lab.requests), (first.id(), 2));
        assert_eq!(lab.elapsed(), before, "served at once");
        lab.pass(Lab::LATENCY);
        assert_ne!(lab.token().unwrap().id(), first.id());
    }

    #[test]
    fn r36_a_429_without_a_token_says_when_to_come_back_and_the_job_does() {
        let throttled = |at: Duration| match at.as_secs() {
            0..100 => Answer::RetryAfter(100),
            _ => Answer::Token(LIFETIME),
        };
        let (mut lab, mut job) = (Lab::new(throttled), StockSync::default());
        work(&mut lab, &mut job, 1);
        assert_eq!(job.left_out, 2, "the rounds at 0:00 and 0:01");
        assert_eq!(job.done, 58);
    }

    #[test]
    fn r26_an_outage_that_is_shorter_than_what_is_left_is_not_felt() {
        let outage = |at: Duration| match at.as_secs() {
            450..570 => Answer::Broken,
            _ => Answer::Token(LIFETIME),
        };
        let (mut lab, mut job) = (Lab::new(outage), StockSync::default());
        work(&mut lab, &mut job, 2);
        assert_eq!(job.left_out, 0);
    }

    #[test]
    fn r28_a_longer_outage_costs_the_rounds_between_the_expiry_and_its_end() {
        let outage = |at: Duration| match at.as_secs() {
            3_600..6_000 => Answer::Status(502),
            _ => Answer::Token(LIFETIME),
        };
        let (mut lab, mut job) = (Lab::new(outage), StockSync::default());
        work(&mut lab, &mut job, 2);
        // 40 minutes, less what was left of the token, and more by what was left of the back-off.
        assert!((30..=42).contains(&job.left_out), "{job:?}");
        assert_eq!(job.done + job.left_out, 120);
        assert!(lab.token().is_ok());
    }

    #[test]
    fn r20_r30_a_quiet_night_costs_nothing_and_the_expired_token_is_not_handed_out() {
        let mut lab = Lab::new(|_| Answer::Token(LIFETIME));
        let first = lab.token().unwrap();
        lab.pass(8 * HOUR);
        assert_eq!(lab.requests, 1);
        let before = lab.elapsed();
        assert_ne!(lab.token().unwrap().id(), first.id());
        assert_eq!((lab.elapsed() - before, lab.requests), (Lab::LATENCY, 2));
    }
}
