//! R25, R27, R35, R37, R47, R79 and the end: what goes wrong, who is told, and what is asked again.

use core::time::Duration;

use storm_auth_core::machine::{Acquire, Activity, Severity, TokenRequest};
use storm_auth_core::wire::response::Class;
use storm_auth_core::{AcquireError, Budget, Cause, Event, Failure, FailureKind, KeyId, Policy};

use crate::harness::{Lab, cause, failure, granted, json, millis, oauth_error, retry_after, secs, status};

/// Calls until a request goes out.
fn until_asked(lab: &mut Lab, key: KeyId) {
    while lab.sends.is_empty() {
        lab.drive(millis(100));
        let _ = lab.acquire(key);
    }
}

#[test]
fn failures_have_the_names_that_are_documented() {
    for (kind, name) in [
        (FailureKind::Connect, "connect"),
        (FailureKind::Timeout, "timeout"),
        (FailureKind::Io, "io"),
        (FailureKind::Aborted, "aborted"),
    ] {
        assert_eq!((kind.name(), Cause::Failed(failure(kind)).name()), (name, name));
    }
}

#[test]
fn r25_a_failure_ends_the_flight_for_all_at_once() {
    let kinds = [FailureKind::Connect, FailureKind::Io, FailureKind::Timeout];
    for kind in kinds {
        let (mut lab, key) = Lab::with_key();
        let waiters: Vec<_> = (0..200).map(|_| lab.wait(key)).collect();
        lab.advance(millis(20));
        lab.fail(kind);
        for waiter in waiters {
            assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::Failed(failure(kind)));
        }
        assert_eq!(lab.requests(), 1);
    }
    for answer in [status(500), status(403), json(200, "<html>"), json(200, r#"{"access_token":""}"#)] {
        let (mut lab, key) = Lab::with_key();
        let waiters: Vec<_> = (0..200).map(|_| lab.wait(key)).collect();
        lab.answer(answer);
        for waiter in waiters {
            let AcquireError::Unavailable { cause: Cause::Refused(refusal), .. } = lab.result(waiter).unwrap_err()
            else {
                panic!()
            };
            assert_eq!(refusal.class, Class::Transient);
        }
    }
}

#[test]
fn r25_an_aborted_request_is_repeated_for_those_who_wait_and_then_fails() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.fail(FailureKind::Aborted);
    lab.fail(FailureKind::Aborted);
    assert!(!lab.is_resolved(waiter));
    lab.fail(FailureKind::Aborted);
    assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::Failed(failure(FailureKind::Aborted)));
    assert_eq!(lab.times(), [0, 0, 0]);
    assert_eq!(lab.machine.counters().aborted, 3);

    // With nobody waiting it is not.
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.cancel(waiter);
    lab.fail(FailureKind::Aborted);
    lab.drive_to(60_000);
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r35_failures_back_off_with_full_jitter_and_a_success_starts_anew() {
    let (mut lab, key) = Lab::with_key();
    let mut waits = Vec::new();
    for _ in 0..30 {
        until_asked(&mut lab, key);
        lab.fail(FailureKind::Connect);
        waits.push(match lab.acquire(key) {
            Acquire::Failed(error) => error.retry_at().unwrap().since(lab.now().unix),
            _ => Duration::ZERO,
        });
        if waits.last() == Some(&Duration::ZERO) {
            lab.sends.clear();
        }
    }
    assert!(waits[0] <= secs(5), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= secs(120)), "{waits:?}");
    assert!(waits.iter().any(|wait| *wait > secs(60)), "{waits:?}");
    until_asked(&mut lab, key);
    lab.answer(granted("t", 1));
    lab.drive(secs(60));
    until_asked(&mut lab, key);
    lab.fail(FailureKind::Connect);
    let again = lab.status(key).error.map_or(Duration::ZERO, |error| error.retry_at().unwrap().since(lab.now().unix));
    assert!(again <= secs(5), "{again:?}");
}

#[test]
fn r37_a_wrong_secret_costs_one_request_and_is_named_from_memory_until_it_may_be_probed() {
    let (mut lab, key) = Lab::with_key();
    let waiters: Vec<_> = (0..50).map(|_| lab.wait(key)).collect();
    lab.answer(oauth_error(400, "invalid_client"));
    for waiter in waiters {
        let error = lab.result(waiter).unwrap_err();
        assert!(error.is_configuration());
        assert_eq!(error.refusal().unwrap().error.as_ref().unwrap().error, "invalid_client");
        assert!(error.to_string().starts_with("invalid_client (HTTP 400)"), "{error}");
    }
    for second in 1..60 {
        lab.drive_to(second * 1000);
        assert!(matches!(lab.error(key), AcquireError::Configuration { .. }));
    }
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r37_it_is_probed_after_60_s_and_then_every_5_min_at_the_most() {
    let (mut lab, key) = Lab::with_key();
    while lab.elapsed() < 2_000_000 {
        let _ = lab.acquire(key);
        while !lab.sends.is_empty() {
            lab.answer(oauth_error(401, "invalid_client"));
        }
        lab.drive(secs(1));
    }
    assert_eq!(lab.times(), [0, 60_000, 360_000, 660_000, 960_000, 1_260_000, 1_560_000, 1_860_000]);
}

#[test]
fn r37_a_later_429_does_not_hide_it() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.advance_to(60_000);
    let waiter = lab.wait(key);
    lab.answer(retry_after(status(429), "100"));
    let probed = lab.result(waiter).unwrap_err();
    for error in [probed, lab.error(key)] {
        assert!(error.is_rate_limited() && error.is_configuration());
        let text = error.to_string();
        assert!(text.contains("rate limited") && text.contains("before that: invalid_client"), "{text}");
    }
    // One that hits another key does not either, and that key has nothing to hide.
    let other = lab.key("erp");
    assert!(!lab.error(other).is_configuration());
    // A token ends it.
    lab.drive_to(170_000);
    lab.wait(key);
    lab.answer(granted("t", 1));
    lab.drive_to(171_000);
    lab.wait(key);
    lab.answer(retry_after(status(429), "100"));
    assert!(!lab.error(key).is_configuration());
}

#[test]
fn r37_while_the_token_lives_nobody_sees_it() {
    let (mut lab, key) = Lab::with_token(600);
    lab.advance_to(450_000);
    lab.token(key);
    lab.events.clear();
    lab.answer(oauth_error(400, "invalid_client"));
    assert!(matches!(&lab.events[..], [Event::Refused { .. }]));
    for second in 450..590 {
        lab.drive_to(second * 1000);
        assert_eq!(lab.token(key), "first");
        lab.sends.clear();
    }
}

#[test]
fn r28_an_outage_while_the_token_lives_is_seen_by_no_caller() {
    // Down from the refresh at 450 s until shortly before the token dies, in every way there is.
    for way in 0..4 {
        let (mut lab, key) = Lab::with_token(600);
        while lab.elapsed() < 580_000 {
            lab.drive(millis(500));
            assert_eq!(lab.token(key), "first", "way {way} at {} ms", lab.elapsed());
            while !lab.sends.is_empty() {
                match way {
                    0 => lab.fail(FailureKind::Connect),
                    1 => _ = lab.answer(status(502)),
                    2 => _ = lab.answer(status(429)),
                    _ => lab.sends.clear(),
                }
            }
        }
        assert!(lab.requests() <= 3 + (580 - 450) / 20, "way {way}: {} requests", lab.requests());
        assert!(lab.requests() >= 2, "way {way}");
    }
}

#[test]
fn r47_a_silent_request_ends_by_its_patience_which_doubles_and_falls_back() {
    let (mut lab, key) = Lab::with_key();
    let mut patience = Vec::new();
    for _ in 0..5 {
        until_asked(&mut lab, key);
        let send = lab.sends.pop_front().unwrap();
        let sent = lab.elapsed();
        patience.push(send.patience.as_secs());
        lab.drive_to(sent + send.patience.as_millis() as u64 - 1);
        assert_eq!(lab.status(key).activity, Activity::Requesting);
        lab.drive_to(sent + send.patience.as_millis() as u64);
        assert_ne!(lab.status(key).activity, Activity::Requesting);
    }
    assert_eq!(patience, [60, 120, 240, 420, 420]);
    assert_eq!(TokenRequest::CONNECT_PATIENCE, secs(5));
    assert_eq!(lab.machine.counters().timed_out, 5);
    // The limiter that refuses this one may hold the next.
    until_asked(&mut lab, key);
    lab.answer(retry_after(status(429), "20"));
    until_asked(&mut lab, key);
    assert_eq!(lab.sends[0].patience, secs(420));
    lab.answer(status(500));
    until_asked(&mut lab, key);
    assert_eq!(lab.sends[0].patience, secs(60));
}

#[test]
fn r47_an_answer_after_the_callers_deadline_is_kept_for_later_callers() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait_within(key, millis(20));
    lab.drive_to(20);
    assert_eq!(lab.result(waiter).unwrap_err(), AcquireError::DeadlineExceeded);
    lab.advance_to(59_000);
    lab.answer(granted("kept", 600));
    assert_eq!(lab.token(key), "kept");
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r47_a_request_that_was_never_taken_is_withdrawn_with_its_patience() {
    let mut lab = Lab::new();
    let key = lab.key("shop");
    // Nobody drains the outputs.
    let _ = lab.machine.acquire(key, Some(secs(30)), lab.now());
    lab.advance(secs(61));
    lab.machine.handle_timeout(lab.now());
    lab.drain();
    assert!(lab.sends.is_empty());
    assert_eq!(lab.take_results().len(), 1);
}

#[test]
fn r48_a_cancelled_caller_leaves_the_others_served() {
    let (mut lab, key) = Lab::with_key();
    let (first, second) = (lab.wait(key), lab.wait(key));
    lab.cancel(first);
    lab.cancel(first);
    lab.answer(granted("t", 600));
    assert!(!lab.is_resolved(first));
    assert_eq!(lab.result(second).unwrap().expose(), "t");
    lab.cancel(second);

    // The one who waits for the gate alone takes the request with it; one of two does not.
    let (mut lab, key) = Lab::with_key();
    let (first, second) = (lab.wait_within(key, secs(60)), lab.wait_within(key, secs(60)));
    lab.answer(status(429));
    lab.cancel(first);
    assert!(lab.machine.poll_timeout().is_some());
    lab.cancel(second);
    assert_eq!(lab.machine.poll_timeout(), None);
    assert!(lab.machine.is_idle());
    lab.drive_to(600_000);
    assert_eq!(lab.requests(), 1);
    assert!(lab.take_results().is_empty());
}

#[test]
fn r47_closing_lets_requests_end_and_starts_none() {
    let mut lab = Lab::new();
    let (running, queued, cached) = (lab.key("running"), lab.key("queued"), lab.key("cached"));
    lab.fetch(cached, "cached", 600);
    let runs = lab.wait_within(running, secs(60));
    let other = lab.wait_within(queued, secs(120));
    lab.answer_key(queued, retry_after(status(429), "50"));
    assert!(!lab.is_resolved(other));
    lab.machine.shut_down(lab.now());
    lab.drain();
    assert_eq!(lab.result(other).unwrap_err(), AcquireError::Closed);
    assert!(!lab.machine.is_idle());
    assert_eq!(lab.error(queued), AcquireError::Closed);
    assert_eq!(lab.token(cached), "cached");
    let late = lab.wait(running);
    lab.advance(secs(1));
    lab.answer(granted("last", 600));
    assert_eq!(lab.result(runs).unwrap().expose(), "last");
    assert_eq!(lab.result(late).unwrap().expose(), "last");
    assert!(lab.machine.is_idle());
    // It is served while it lives, and no refresh starts.
    lab.drive_to(580_000);
    assert_eq!(lab.token(running), "last");
    assert_eq!(lab.token(cached), "cached");
    lab.drive_to(600_000);
    assert_eq!(lab.error(cached), AcquireError::Closed);
    assert_eq!(lab.requests(), 3);

    // A request that is throttled after the end is not repeated.
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait_within(key, secs(600));
    lab.machine.shut_down(lab.now());
    lab.machine.keep_warm(key, lab.now());
    lab.answer(status(429));
    assert_eq!(lab.result(waiter).unwrap_err(), AcquireError::Closed);
    lab.drive_to(600_000);
    assert_eq!(lab.requests(), 1);
}

#[test]
fn a_refresh_that_waits_for_its_slot_is_not_idle() {
    let (mut lab, key) = Lab::with_key();
    for _ in 0..2 {
        lab.wait(key);
        lab.answer(granted("zero", 0));
    }
    lab.fetch(key, "short", 10);
    lab.advance_to(7_500);
    assert_eq!(lab.token(key), "short");
    assert_eq!(lab.status(key).activity, Activity::Queued);
    assert!(!lab.machine.is_idle());
}

#[test]
fn a_removed_key_is_forgotten_with_all_that_it_had() {
    let (mut lab, key) = Lab::with_token(600);
    let other = lab.key("erp");
    lab.wait(other);
    lab.advance_to(450_000);
    lab.token(key);
    let op = lab.take_send(key).op;
    lab.machine.remove_key(key, lab.now());
    lab.drain();
    lab.answer_op(op, granted("late", 600));
    assert!(lab.events.contains(&Event::LateReport { op }));
    assert_eq!(lab.error(key), AcquireError::UnknownKey);
    assert!(lab.machine.peek(key, lab.now()).is_none());
    assert_eq!(lab.machine.status(lab.now()).keys.len(), 1);
    let again = lab.key("shop");
    assert_ne!(again, key);
    lab.wait(again);

    let waiter = lab.wait(again);
    lab.machine.remove_key(again, lab.now());
    lab.machine.remove_key(again, lab.now());
    lab.drain();
    assert_eq!(lab.result(waiter).unwrap_err(), AcquireError::UnknownKey);
    lab.drive_to(600_000);
}

#[test]
fn events_that_nobody_takes_are_dropped_and_counted() {
    let (mut lab, key) = Lab::with_token(600);
    let token = lab.machine.peek(key, lab.now()).unwrap().token.id();
    lab.machine.invalidate(token, lab.now());
    for _ in 0..10_000 {
        lab.machine.invalidate(token, lab.now());
    }
    let waiter = lab.machine.acquire(key, None, lab.now());
    lab.events.clear();
    lab.drain();
    assert_eq!(lab.events.len(), 257, "256 of them, and one that counts the rest");
    // One rejection, ten thousand that are ignored, and the request.
    assert_eq!(lab.events.last(), Some(&Event::Dropped { count: 10_002 - 256 }));
    // Nothing but events is ever dropped.
    assert!(matches!(waiter, Acquire::Wait(_)));
    assert_eq!(lab.sends.len(), 1);
    lab.events.clear();
    lab.answer(granted("second", 600));
    assert_eq!(lab.take_results().len(), 1);
    assert!(lab.events.iter().all(|event| !matches!(event, Event::Dropped { .. })));
}

#[test]
fn changes_that_nobody_takes_do_not_pile_up() {
    let mut lab = Lab::new();
    for client in 0..10_000 {
        let key = lab.key(&format!("client-{client}"));
        lab.machine.remove_key(key, lab.now());
    }
    let (kept, added) = (lab.key("kept"), lab.machine.status(lab.now()).keys.len());
    assert_eq!(added, 1);
    lab.wait(kept);
    let changes: Vec<_> = std::iter::from_fn(|| lab.machine.poll_change()).collect();
    assert!(changes.len() <= 300, "{} changes", changes.len());
    assert!(changes.contains(&kept));
}

#[test]
fn the_status_tells_what_stands_in_the_way() {
    let mut lab = Lab::new();
    let (key, other) = (lab.key("shop"), lab.key("erp"));
    lab.fetch(key, "t", 600);
    lab.wait_within(other, secs(90));
    let status = lab.machine.status(lab.now());
    assert_eq!((status.budget_left, status.waiters, status.gate_closed_until), (19, 1, None));
    assert_eq!(lab.status(key).token_until, Some(lab.unix(590_000)));
    assert_eq!(lab.status(key).activity, Activity::Idle);
    assert_eq!(lab.status(other).activity, Activity::Requesting);
    lab.answer(retry_after(crate::harness::status(429), "60"));
    let status = lab.machine.status(lab.now());
    assert!(status.budget_left <= 1, "the limiter said so");
    assert!(status.gate_closed_until.unwrap() >= lab.unix(60_000));
    assert_eq!(lab.status(other).activity, Activity::Queued);
    assert!(lab.status(other).error.unwrap().is_rate_limited());
    assert_eq!(lab.status(key).error, None);
    lab.drive_to(63_000);
    lab.answer(oauth_error(400, "invalid_scope"));
    assert_eq!(lab.status(other).activity, Activity::BackingOff);
    assert!(lab.status(other).error.unwrap().is_configuration());
    assert_eq!(lab.machine.status(lab.now()).waiters, 0);
    assert!(lab.machine.key_status(key, lab.now()).is_some());
    lab.machine.remove_key(key, lab.now());
    assert!(lab.machine.key_status(key, lab.now()).is_none());
}

#[test]
fn events_matter_as_much_as_a_person_has_to_do() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.drive_to(60_000);
    lab.wait(key);
    lab.answer(status(500));
    let told: Vec<_> = lab.events.iter().map(Event::severity).collect();
    assert_eq!(told, [Severity::Info, Severity::Debug, Severity::Error, Severity::Debug, Severity::Warn]);
    assert_eq!(lab.events[0].to_string(), "key 0: client shop, scope lab");
    assert_eq!(
        lab.events[2].to_string(),
        "key 0: invalid_client (HTTP 400): check the client id and the client secret; asked again from 2023-11-14T22:14:20Z"
    );
}

#[test]
fn r79_the_counters_equal_what_was_seen_from_outside() {
    let mut lab = Lab::new();
    let mut key = {
        let mut number = 0;
        move |lab: &mut Lab| {
            number += 1;
            let key = lab.key(&format!("client-{number}"));
            lab.wait(key);
            key
        }
    };
    for _ in 0..3 {
        key(&mut lab);
        lab.answer(granted("t", 600));
    }
    let first = key(&mut lab);
    lab.answer(granted("u", 600));
    let token = lab.machine.peek(first, lab.now()).unwrap().token.id();
    lab.machine.invalidate(token, lab.now());
    lab.machine.invalidate(token, lab.now());
    for answer in [oauth_error(400, "invalid_client"), status(404), status(500), json(200, "[]")] {
        key(&mut lab);
        lab.answer(answer);
    }
    for kind in [FailureKind::Connect, FailureKind::Io, FailureKind::Timeout, FailureKind::Timeout] {
        key(&mut lab);
        lab.fail(kind);
    }
    let silent = key(&mut lab);
    lab.sends.clear();
    lab.drive_to(60_000);
    let throttled = key(&mut lab);
    lab.answer(retry_after(status(503), "30"));
    let until = lab.machine.status(lab.now()).gate_closed_until.unwrap();
    let _ = (silent, throttled);

    let counters = lab.machine.counters();
    assert_eq!(counters.requests, lab.requests() as u64);
    assert_eq!(
        [counters.granted, counters.refused, counters.unusable, counters.unconnected, counters.broken],
        [4, 2, 2, 1, 1]
    );
    assert_eq!([counters.timed_out, counters.throttled, counters.aborted, counters.rejected], [3, 1, 0, 1]);
    assert_eq!(counters.gated, until.since(lab.now().unix));
}

#[test]
fn late_and_unknown_reports_are_ignored() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    let op = lab.answer(granted("t", 600));
    lab.result(waiter).unwrap();
    lab.answer_op(op, oauth_error(400, "invalid_client"));
    lab.machine.handle_failure(op, failure(FailureKind::Io), lab.now());
    lab.drain();
    assert_eq!(lab.events.iter().filter(|event| matches!(event, Event::LateReport { .. })).count(), 2);
    assert_eq!(lab.token(key), "t");
    assert_eq!(lab.status(key).error, None);
}

/// Calls every key each second while the endpoint fails for an hour, and then until the last key has its token. Returns how many
/// requests went out in the outage, what the budget had left at its end, and after how many seconds the last key was served.
fn outage_of_an_hour(clients: usize) -> (usize, u32, u64) {
    let mut lab = Lab::new();
    let keys: Vec<_> = (0..clients).map(|client| lab.key(&format!("client-{client}"))).collect();
    for _ in 0..3_600 {
        lab.drive(secs(1));
        keys.iter().for_each(|key| drop(lab.acquire(*key)));
        while !lab.sends.is_empty() {
            lab.fail(FailureKind::Connect);
        }
    }
    let (requests, left) = (lab.requests(), lab.machine.status(lab.now()).budget_left);
    let mut served_after = 0;
    while keys.iter().any(|key| lab.machine.peek(*key, lab.now()).is_none()) {
        lab.drive(secs(1));
        served_after += 1;
        keys.iter().for_each(|key| drop(lab.acquire(*key)));
        while !lab.sends.is_empty() {
            lab.answer(granted("t", 3_600));
        }
        assert!(served_after < 3_600, "nobody is served");
    }
    (requests, left, served_after)
}

#[test]
fn r28_r35_thirty_keys_leave_the_bucket_full_as_one_does_when_the_outage_ends() {
    for (clients, most_requests, least_left, slowest) in [(1, 90, 18, 125), (5, 140, 18, 125), (30, 180, 16, 310)] {
        let (requests, left, served_after) = outage_of_an_hour(clients);
        assert!(requests <= most_requests, "{clients} keys: {requests} requests");
        assert!(left >= least_left, "{clients} keys: {left} left");
        assert!(served_after <= slowest, "{clients} keys: the last after {served_after} s");
    }
}

/// Lets each of these keys fail twice in a row, so that they retry in turns from here on.
fn fail_twice(lab: &mut Lab, keys: &[KeyId]) {
    for _ in 0..2 {
        for key in keys {
            lab.wait(*key);
            lab.fail(FailureKind::Connect);
        }
        lab.advance(secs(10));
    }
}

fn held_until(lab: &Lab) -> Option<u64> {
    let until = lab.machine.status(lab.now()).retries_held_until?;
    Some(until.since(lab.now().unix).as_millis() as u64)
}

#[test]
fn r64_removals_that_nobody_takes_notice_of_are_kept_up_to_a_few_hundred() {
    let mut lab = Lab::new();
    let mut noticed = |keys: usize| {
        while lab.machine.poll_change().is_some() {}
        for client in 0..keys {
            let key = lab.key(&client.to_string());
            lab.machine.remove_key(key, lab.now());
        }
        std::iter::from_fn(|| lab.machine.poll_change()).count()
    };
    assert_eq!(noticed(3), 3);
    assert_eq!(noticed(257), 257);
    assert!(noticed(5_000) <= 257);
}

#[test]
fn r35_r36_a_key_whose_turn_has_come_is_told_what_it_waits_for_then() {
    let mut policy = Policy::default();
    policy.budget = Budget::per_minute(3, 5);
    let mut lab = Lab::with_policy(policy);
    let (first, second, healthy) = (lab.key("first"), lab.key("second"), lab.key("healthy"));
    fail_twice(&mut lab, &[first, second]);
    lab.wait(first);
    lab.wait(healthy);
    let Acquire::Failed(error) = lab.acquire_within(second, millis(1)) else { panic!("it is not its turn") };
    assert!(matches!(error, AcquireError::Unavailable { .. }));
    // Nobody holds it back any more, but the bucket is empty.
    lab.advance(secs(6));
    let another = lab.key("another");
    lab.wait(another);
    let Acquire::Failed(error) = lab.acquire_within(second, millis(1)) else { panic!("there is no slot") };
    assert!(error.is_rate_limited(), "{error}");
}

#[test]
fn r66_what_makes_the_endpoint_unavailable_is_said_with_what_to_check() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.fail(FailureKind::Connect);
    let error = lab.result(waiter).unwrap_err();
    assert!(!error.is_rate_limited());
    let retry_at = error.retry_at().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "no connection to the token endpoint (on purpose); check the token URL and the way there: network, name, TLS, \
             proxy; a call tries again from {retry_at} on"
        )
    );
    assert_eq!(Failure::new(FailureKind::Io, "").to_string(), "the connection to the token endpoint broke");
    for (cause, text, advice) in [
        (
            Cause::Failed(failure(FailureKind::Aborted)),
            "the token request was aborted on this side (on purpose)",
            "call again",
        ),
        (
            Cause::ExpiredOnArrival,
            "the token had expired when it arrived: the token endpoint is too slow",
            "check this machine's clock, and the lifetime that the endpoint gives its tokens",
        ),
        (
            Cause::AlreadyRejected,
            "the token endpoint answers a token that the API has rejected",
            "check that the API and the token belong to the same environment",
        ),
        (
            Cause::NoLifetime,
            "the token endpoint answers a token that lives for zero seconds",
            "check the lifetime that the endpoint gives its tokens",
        ),
    ] {
        let error = AcquireError::Unavailable { cause, retry_at };
        assert_eq!(error.to_string(), format!("{text}; {advice}; a call tries again from {retry_at} on"));
    }
}

#[test]
fn r35_a_retry_holds_other_keys_that_fail_and_no_others_until_a_token_comes() {
    let mut lab = Lab::new();
    let (first, second, healthy, unlucky) =
        (lab.key("first"), lab.key("second"), lab.key("healthy"), lab.key("unlucky"));
    fail_twice(&mut lab, &[first, second]);
    lab.wait(unlucky);
    lab.fail(FailureKind::Connect);
    lab.advance(secs(5));
    assert_eq!(held_until(&lab), None);
    lab.wait(first);
    let held = held_until(&lab).expect("the others are held back");
    assert!((1..=5_000).contains(&held), "{held}");
    let Acquire::Failed(error) = lab.acquire_within(second, millis(1)) else { panic!("it is not its turn") };
    assert_eq!(error.retry_at(), Some(lab.now().unix + millis(held)));
    assert!(matches!(cause(error), Cause::Failed(failure) if failure.kind == FailureKind::Connect));
    // One that has not failed, and one that failed once, are not concerned.
    lab.wait(healthy);
    lab.wait(unlucky);
    assert_eq!(lab.wire[5..].iter().map(|(_, key)| *key).collect::<Vec<_>>(), [first, healthy, unlucky]);
    // A caller that can wait does, and is sent for as soon as the endpoint answers anybody.
    lab.wait(second);
    lab.answer_key(healthy, granted("t", 600));
    assert_eq!(lab.wire[8..].iter().map(|(_, key)| *key).collect::<Vec<_>>(), [second]);
    assert_eq!(held_until(&lab), None);
}

#[test]
fn r35_a_turn_that_comes_is_taken_without_a_call() {
    let mut lab = Lab::new();
    let (first, second) = (lab.key("first"), lab.key("second"));
    fail_twice(&mut lab, &[first, second]);
    lab.wait(first);
    let (held, now) = (held_until(&lab).unwrap(), lab.elapsed());
    lab.wait(second);
    lab.drive(millis(held - 1));
    assert_eq!(lab.requests(), 5);
    lab.drive(millis(1));
    assert_eq!((lab.requests(), lab.times()[5]), (6, now + held));
}

#[test]
fn r28_after_the_first_token_everybody_may_ask() {
    let mut lab = Lab::new();
    let keys: Vec<_> = (0..8).map(|client| lab.key(&format!("client-{client}"))).collect();
    fail_twice(&mut lab, &keys);
    lab.wait(keys[0]);
    lab.answer(granted("t", 600));
    lab.advance(secs(20));
    for key in &keys[1..] {
        lab.wait(*key);
    }
}

#[test]
fn r28_a_refused_configuration_shows_too_that_the_endpoint_works() {
    let mut lab = Lab::new();
    let (first, second) = (lab.key("first"), lab.key("second"));
    fail_twice(&mut lab, &[first, second]);
    lab.wait(first);
    assert!(held_until(&lab).is_some());
    lab.answer(oauth_error(401, "invalid_client"));
    assert_eq!(held_until(&lab), None);
    lab.wait(second);
}

#[test]
fn r27_an_outage_that_is_over_leaves_no_error_for_a_later_one() {
    let mut lab = Lab::new();
    let (first, second) = (lab.key("first"), lab.key("second"));
    fail_twice(&mut lab, &[first, second]);
    lab.wait(first);
    lab.answer(granted("t", 600));
    lab.drive(secs(3 * 3_600));
    fail_twice(&mut lab, &[first]);
    lab.wait(first);
    assert!(held_until(&lab).is_some());
    assert_eq!(lab.status(second).error, None);
    lab.wait(second);
}

#[test]
fn r28_keys_that_fail_alone_starve_no_other() {
    // The endpoint works, but not for three of its clients. Another one met so many failures; each is called every second.
    for (failures, longest) in [(1, 10), (2, 500), (4, 500)] {
        let mut lab = Lab::new();
        let broken: Vec<_> = (0..3).map(|client| lab.key(&format!("broken-{client}"))).collect();
        let shop = lab.key("shop");
        let mut left = failures;
        let mut failed_at = 0;
        for second in 0..7_200 {
            lab.drive(secs(1));
            broken.iter().for_each(|key| drop(lab.acquire(*key)));
            if second > 1_800 {
                let _ = lab.acquire(shop);
            }
            while let Some(send) = lab.sends.pop_front() {
                let answer = match send.key == shop {
                    true if left == 0 => granted("t", 3_600),
                    true => {
                        left -= 1;
                        failed_at = second;
                        status(502)
                    }
                    false => status(500),
                };
                lab.answer_op(send.op, answer);
            }
            if lab.machine.peek(shop, lab.now()).is_some() {
                assert!(second - failed_at <= longest, "{} s after {failures} failures", second - failed_at);
                break;
            }
        }
        assert!(lab.machine.peek(shop, lab.now()).is_some(), "starved after {failures} failures");
    }
}

#[test]
fn r28_a_key_that_is_removed_holds_nobody() {
    let mut lab = Lab::new();
    let (first, second) = (lab.key("first"), lab.key("second"));
    fail_twice(&mut lab, &[first, second]);
    lab.wait(first);
    lab.machine.remove_key(first, lab.now());
    assert_eq!(held_until(&lab), None);
    lab.wait(second);
}
