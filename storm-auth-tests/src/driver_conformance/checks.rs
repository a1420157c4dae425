//! The checks, by the points of the guide.

use std::error::Error;
use std::net::TcpListener;
use std::time::Duration;

use storm_auth_core::{AcquireError, Cause, Failure, FailureKind};

use super::{Check, Desk, LONG, SECRET, Subject, Verdict, must};
use crate::emulator::{At, Endpoint, Fault};

/// By which the server's clock is moved to let a held answer go.
const HELD: Duration = Duration::from_secs(1);
/// Real time, since only real time shows whether somebody sleeps.
const SOON: Duration = Duration::from_millis(50);

/// Names each check by its function.
macro_rules! checks {
    ($($point:literal: $($name:ident),+;)+) => {
        vec![$($(Check { name: stringify!($name), point: $point, run: $name }),+),+]
    };
}

pub(super) fn all<S: Subject>() -> Vec<Check<S>> {
    checks![
        8: a_caller_gets_a_token;
        1: a_clock_that_is_set_back_prolongs_nothing, a_suspend_is_felt;
        2: a_refresh_starts_behind_a_token_that_is_served;
        3: a_request_is_sent_once, no_redirect_is_followed;
        4: every_answer_is_reported, a_request_without_an_answer_is_reported;
        5: a_body_past_64_kib_fails, an_encoded_body_fails, half_an_answer_fails;
        6: a_request_outlives_the_deadline_of_its_caller, a_silent_request_is_given_up;
        7: a_deadline_comes_though_nothing_happens, a_deadline_that_comes_forward_is_kept,
           a_throttle_ends_though_nothing_happens;
        8: one_request_serves_all_who_wait;
        9: a_caller_that_goes_leaves_the_others_served, a_caller_that_goes_leaves_its_request;
        10: a_cached_token_costs_no_request, an_expired_token_is_never_handed_out;
        11: a_rejected_token_is_replaced_once;
        12: a_throttle_is_felt_once, a_failure_is_not_retried_by_the_driver;
        13: no_error_shows_the_secret;
        14: a_closed_driver_starts_nothing;
    ]
}

/// The first one, since without it nothing else can be seen.
fn a_caller_gets_a_token<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.token()?;
    desk.requests(1)
}

// 1: both clocks.

fn a_clock_that_is_set_back_prolongs_nothing<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let first = desk.token()?;
    // The wall clock says that nothing has passed.
    desk.subject.advance(Duration::from_secs(595));
    desk.subject.step_wall_back(Duration::from_secs(595));
    must(desk.token()?.id() != first.id(), || "a token lives on for as long as the wall clock is set back".to_owned())
}

fn a_suspend_is_felt<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let first = desk.token()?;
    // The monotonic clock says that nothing has passed, as most do of a suspend.
    desk.subject.step_wall_forward(Duration::from_secs(595));
    must(desk.token()?.id() != first.id(), || "a token outlives a suspend that was longer than its life".to_owned())
}

// 2: the outputs.

fn a_refresh_starts_behind_a_token_that_is_served<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let first = desk.token()?;
    desk.pass(Duration::from_secs(460));
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Delay(HELD));
    for _ in 0..10 {
        must(desk.token()?.id() == first.id(), || {
            "a call in the refresh window is not served the valid token".to_owned()
        })?;
    }
    desk.counted("no refresh starts behind a call that is served: its outputs stay where they are", |counts| {
        counts.token_in_flight == 1
    })?;
    desk.emulator.clock().advance(HELD);
    desk.until("the refreshed token is not taken", |desk| desk.subject.counters().granted == 2)?;
    must(desk.token()?.id() != first.id(), || "the refreshed token is not served".to_owned())?;
    desk.requests(2)
}

// 3: the request.

fn a_request_is_sent_once<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    // As a server does that has just timed out the connection: HTTP clients like to repeat.
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Reset(At::Headers));
    desk.error()?;
    desk.requests(1)?;
    let connections = desk.emulator.connections(Endpoint::Token);
    must(connections == 1, || format!("{connections} connections were made for one request"))
}

fn no_redirect_is_followed<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    for (status, sent) in [(301, 1), (302, 2), (303, 3), (307, 4), (308, 5)] {
        desk.another();
        // The emulator's other socket.
        let elsewhere = format!("{}/connect/token", desk.emulator.api_url());
        desk.emulator.fail_next(Endpoint::Token, 1, Fault::redirect(status, &elsewhere));
        let outcome = desk.error();
        must(desk.emulator.connections(Endpoint::Api) == 0, || {
            format!("a {status} is followed, and what answers elsewhere sees the secret")
        })?;
        must(matches!(outcome?, AcquireError::Configuration { .. }), || {
            format!("a {status} is not reported as it came")
        })?;
        must(desk.emulator.token_requests() == sent, || format!("a {status} makes the driver ask again"))?;
    }
    Ok(())
}

// 4: the report.

fn every_answer_is_reported<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let answers = [
        (400, Fault::json(400, r#"{"error":"invalid_client"}"#)),
        (401, Fault::json(401, r#"{"error":"invalid_client"}"#)),
        (404, Fault::html(404)),
        (200, Fault::json(200, "{}")),
        (500, Fault::status(500)),
        (502, Fault::html(502)),
    ];
    for (status, fault) in answers {
        desk.another();
        desk.emulator.fail_next(Endpoint::Token, 1, fault);
        let error = desk.error()?;
        must(error.refusal().is_some_and(|refusal| refusal.status == status), || {
            format!("an answer with status {status} does not reach the machine as it came: {error}")
        })?;
    }
    for status in [429, 503] {
        desk.another();
        desk.emulator.fail_next(Endpoint::Token, 1, Fault::answer(status, &[("retry-after", "3000")], "quiet, please"));
        let mut caller = desk.subject.call(Duration::from_secs(60));
        let error = desk.error_of(&mut caller)?;
        must(error.is_rate_limited(), || format!("a {status} does not reach the machine: {error}"))?;
        let closed = desk.subject.status().gate_closed_until;
        let far =
            closed.zip(error.retry_at()).is_some_and(|(closed, retry)| retry.since(closed) < Duration::from_secs(60));
        must(far, || format!("the Retry-After beside a {status} does not reach the machine: {error}"))?;
    }
    Ok(())
}

fn a_request_without_an_answer_is_reported<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    for fault in [Fault::Reset(At::Headers), Fault::Outage] {
        desk.another();
        desk.emulator.fail_next(Endpoint::Token, 1, fault.clone());
        let error = desk.error()?;
        let told = failure(&error).map(|failure| failure.kind);
        must(matches!(told, Some(FailureKind::Io | FailureKind::Connect)), || {
            format!("a connection that broke ({fault:?}) is reported as something else than Io or Connect: {error}")
        })?;
    }
    let refusing = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let refusing = refusing.map_err(|error| format!("the suite itself has no socket: {error}"))?;
    desk.another_at(&format!("http://{refusing}/connect/token"));
    let error = desk.error()?;
    must(failure(&error).is_some_and(|failure| failure.kind == FailureKind::Connect), || {
        format!("a refused connection is reported as something else than Connect: {error}")
    })?;
    let counters = desk.subject.counters();
    must((counters.requests, counters.unconnected) == (1, 1), || {
        format!("one request that got no connection is counted as {counters:?}")
    })
}

fn failure(error: &AcquireError) -> Option<&Failure> {
    match error {
        AcquireError::Unavailable { cause: Cause::Failed(failure), .. } => Some(failure),
        _ => None,
    }
}

// 5: the body.

fn a_body_past_64_kib_fails<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Oversize);
    let error = desk.error()?;
    must(error.refusal().is_some_and(|refusal| refusal.problem.is_some()), || {
        format!("an endless answer is not reported with what was read of it: {error}")
    })?;
    desk.counted("an endless answer is read on after 64 KiB", |counts| counts.token_open == 0)?;
    // What is before it counts.
    desk.another();
    let page = vec![b'<'; 200 * 1_024];
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::answer(429, &[("retry-after", "3000")], page));
    let mut caller = desk.subject.call(Duration::from_secs(60));
    let error = desk.error_of(&mut caller)?;
    must(error.is_rate_limited(), || format!("a 429 with a long page does not reach the machine: {error}"))
}

fn an_encoded_body_fails<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Encoded);
    let error = desk.error()?;
    must(matches!(error, AcquireError::Unavailable { .. }), || {
        format!("an encoded answer is reported as something else: {error}")
    })?;
    let asked = desk.emulator.recorded(Endpoint::Token);
    let asks = asked.iter().flat_map(|request| request.headers.get_all("accept-encoding"));
    must(asks.into_iter().all(|value| value == "identity"), || "the driver asks for an encoding".to_owned())
}

fn half_an_answer_fails<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Reset(At::Body));
    let error = desk.error()?;
    must(failure(&error).is_some(), || format!("an answer that was cut off is reported as a whole one: {error}"))
}

// 6: patience.

fn a_request_outlives_the_deadline_of_its_caller<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Delay(HELD));
    let mut hasty = desk.subject.call(SOON);
    let error = desk.error_of(&mut hasty)?;
    must(error == AcquireError::DeadlineExceeded, || {
        format!("a caller's deadline is told as something else: {error}")
    })?;
    let mut later = desk.subject.call(LONG);
    desk.waiters(1)?;
    desk.counted("the request ends with its caller's deadline", |counts| counts.token_in_flight == 1)?;
    desk.emulator.clock().advance(HELD);
    desk.result(&mut later)?.map_err(|error| format!("the request was given up with its caller: {error}"))?;
    desk.requests(1)
}

fn a_silent_request_is_given_up<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Stall(At::Headers));
    let mut caller = desk.subject.call(LONG);
    desk.waiters(1)?;
    desk.arrived()?;
    // Its patience is a minute.
    desk.pass(Duration::from_secs(61));
    let error = desk.error_of(&mut caller)?;
    must(failure(&error).is_some_and(|failure| failure.kind == FailureKind::Timeout), || {
        format!("a request that stays silent is reported as something else: {error}")
    })?;
    // Past the back-off of a first failure.
    desk.pass(Duration::from_secs(6));
    desk.token()?;
    desk.requests(2)
}

// 7: the timeout.

fn a_deadline_comes_though_nothing_happens<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Stall(At::Headers));
    let mut caller = desk.subject.call(SOON);
    let error = desk.error_of(&mut caller).map_err(|what| format!("{what}: nobody sleeps until poll_timeout"))?;
    must(error == AcquireError::DeadlineExceeded, || format!("a caller's deadline is told as something else: {error}"))
}

fn a_deadline_that_comes_forward_is_kept<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Delay(HELD));
    let mut patient = desk.subject.call(LONG);
    desk.waiters(1)?;
    desk.arrived()?;
    // Whoever sleeps does so until the request's patience ends; now there is something earlier.
    let mut hasty = desk.subject.call(SOON);
    let error =
        desk.error_of(&mut hasty).map_err(|what| format!("{what}: the sleeper missed that its time came forward"))?;
    must(error == AcquireError::DeadlineExceeded, || {
        format!("a caller's deadline is told as something else: {error}")
    })?;
    desk.emulator.clock().advance(HELD);
    desk.result(&mut patient)?.map(drop).map_err(|error| format!("the other caller got no token, but: {error}"))
}

/// In real time: a second.
fn a_throttle_ends_though_nothing_happens<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::answer(429, &[("retry-after", "1")], ""));
    let token = desk.token().map_err(|what| format!("{what}: nobody calls handle_timeout when the gate opens"));
    token.map(drop)?;
    desk.requests(2)
}

// 8: the results.

fn one_request_serves_all_who_wait<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Delay(HELD));
    let mut callers: Vec<_> = (0..20).map(|_| desk.subject.call(LONG)).collect();
    desk.waiters(20)?;
    desk.arrived()?;
    desk.emulator.clock().advance(HELD);
    let mut ids = Vec::new();
    for caller in &mut callers {
        ids.push(desk.result(caller)?.map_err(|error| format!("a caller gets no token, but: {error}"))?.id());
    }
    must(ids.iter().all(|id| *id == ids[0]), || "callers of one key got different tokens".to_owned())?;
    desk.requests(1)
}

// 9: callers that go.

fn a_caller_that_goes_leaves_the_others_served<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Delay(HELD));
    let mut callers: Vec<_> = (0..5).map(|_| desk.subject.call(LONG)).collect();
    desk.waiters(5)?;
    desk.arrived()?;
    // The one that started the request among them.
    let first = callers.remove(0);
    if desk.subject.leave(first) {
        let last = callers.remove(3);
        desk.subject.leave(last);
        desk.waiters(3).map_err(|what| format!("{what}: those who went were not cancelled"))?;
    }
    desk.emulator.clock().advance(HELD);
    for caller in &mut callers {
        desk.result(caller)?.map_err(|error| format!("another caller went, and this one gets: {error}"))?;
    }
    desk.requests(1)
}

fn a_caller_that_goes_leaves_its_request<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail_next(Endpoint::Token, 1, Fault::Delay(HELD));
    let only = desk.subject.call(LONG);
    desk.waiters(1)?;
    desk.arrived()?;
    desk.subject.leave(only);
    desk.emulator.clock().advance(HELD);
    desk.until("the answer to a request whose caller has gone is not reported", |desk| {
        desk.subject.counters().granted == 1
    })?;
    desk.token()?;
    desk.requests(1)
}

// 10: the cache.

fn a_cached_token_costs_no_request<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let first = desk.token()?;
    desk.pass(Duration::from_secs(440));
    for _ in 0..50 {
        must(desk.token()?.id() == first.id(), || "a fresh token is not served again".to_owned())?;
    }
    desk.requests(1)
}

fn an_expired_token_is_never_handed_out<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let first = desk.token()?;
    desk.emulator.fail(Endpoint::Token, Fault::html(502));
    desk.pass(Duration::from_secs(580));
    // The refresh that this starts fails.
    must(desk.token()?.id() == first.id(), || "a token is not served to the end of its life".to_owned())?;
    desk.until("the failed refresh is not reported", |desk| desk.subject.counters().unusable == 1)?;
    desk.pass(Duration::from_secs(11));
    let error = desk.error()?;
    must(matches!(error, AcquireError::Unavailable { .. }), || format!("the reason is told as something else: {error}"))
}

// 11: rejections.

fn a_rejected_token_is_replaced_once<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let first = desk.token()?;
    desk.subject.invalidate(first.id());
    let second = desk.token()?;
    must(second.id() != first.id(), || "a rejected token is served again".to_owned())?;
    // A call that took longer finds out later.
    desk.subject.invalidate(first.id());
    must(desk.token()?.id() == second.id(), || "a late rejection evicts the token that came after it".to_owned())?;
    desk.requests(2)
}

// 12: decisions.

fn a_throttle_is_felt_once<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    desk.emulator.fail(Endpoint::Token, Fault::html(429));
    for _ in 0..10 {
        // It cannot be over so soon.
        let mut caller = desk.subject.call(Duration::from_secs(5));
        let error = desk.error_of(&mut caller)?;
        must(error.is_rate_limited(), || format!("a throttle is told as something else: {error}"))?;
    }
    desk.requests(1)
}

fn a_failure_is_not_retried_by_the_driver<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    for (sent, fault) in (1..).zip([Fault::html(502), Fault::status(500), Fault::Encoded, Fault::Reset(At::Body)]) {
        desk.another();
        desk.emulator.fail_next(Endpoint::Token, 1, fault.clone());
        desk.error()?;
        let (seen, counters) = (desk.emulator.token_requests(), desk.subject.counters());
        must(seen == sent && counters.requests == 1, || {
            format!("behind {fault:?} there is another request: the machine decides when there is")
        })?;
    }
    Ok(())
}

// 13: secrets.

fn no_error_shows_the_secret<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let faults = [
        Fault::json(400, format!(r#"{{"error":"invalid_client","error_description":"not {SECRET}"}}"#)),
        Fault::redirect(302, &format!("http://127.0.0.1:1/?client_secret={SECRET}")),
        Fault::answer(502, &[("x-request", SECRET)], format!("<p>client_secret={SECRET}</p>")),
        Fault::json(200, format!(r#"{{"access_token":"{SECRET}\u0000"}}"#)),
        Fault::Reset(At::Headers),
    ];
    for fault in faults {
        desk.another();
        desk.emulator.fail_next(Endpoint::Token, 1, fault);
        let Err(error) = desk.call()? else { return Err("a caller gets a token where there is none".to_owned()) };
        let mut text = format!("{error:?} {error:#?}");
        let mut cause: Option<&dyn Error> = Some(&error);
        while let Some(error) = cause {
            text += &format!(" {error} {error:?}");
            cause = error.source();
        }
        must(!SECRET.as_bytes().windows(8).any(|part| text.as_bytes().windows(8).any(|seen| seen == part)), || {
            "an error shows the client secret: look at what the driver adds to the machine's".to_owned()
        })?;
    }
    Ok(())
}

// 14: the end.

fn a_closed_driver_starts_nothing<S: Subject>(desk: &mut Desk<S>) -> Verdict {
    let first = desk.token()?;
    desk.subject.close();
    must(desk.token()?.id() == first.id(), || "a closed driver does not serve what it holds".to_owned())?;
    desk.subject.invalidate(first.id());
    let error = desk.error()?;
    must(error == AcquireError::Closed, || format!("a closed driver says something else: {error}"))?;
    desk.requests(1)
}
