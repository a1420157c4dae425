//! R38 to R42: the API rejects a token.

use storm_auth_core::machine::Acquire;
use storm_auth_core::wire::challenge;
use storm_auth_core::{AcquireError, Budget, Cause, Event, Invalidated, Policy, Token};

use crate::harness::{Lab, cause, granted, oauth_error, retry_after, secs, status};

#[test]
fn r38_a_rejected_token_is_never_served_again() {
    let (mut lab, key) = Lab::with_key();
    let first = lab.fetch(key, "first", 600);
    assert_eq!(lab.machine.invalidate(first.id(), lab.now()), Invalidated::Dropped);
    assert!(lab.machine.peek(key, lab.now()).is_none());
    let waiter = lab.wait(key);
    lab.answer(granted("second", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "second");
    assert_eq!(lab.token(key), "second");
}

#[test]
fn r38_a_rejected_token_that_was_replaced_changes_nothing() {
    let (mut lab, key) = Lab::with_key();
    let first = lab.fetch(key, "first", 600);
    lab.advance_to(450_000);
    lab.token(key);
    lab.answer(granted("second", 600));
    assert_eq!(lab.machine.invalidate(first.id(), lab.now()), Invalidated::NotCurrent);
    lab.drain();
    assert!(lab.events.contains(&Event::RejectionIgnored { token: first.id() }));
    assert_eq!(lab.token(key), "second");
    // Nor does the equal token of another key.
    let other = lab.key("erp");
    let twin = lab.fetch(other, "second", 600);
    lab.machine.invalidate(twin.id(), lab.now());
    assert_eq!(lab.token(key), "second");
    // Nor one that no machine knows.
    assert_eq!(lab.machine.invalidate(Token::fake("second").id(), lab.now()), Invalidated::NotCurrent);
    assert_eq!(lab.token(key), "second");
}

#[test]
fn r38_the_same_token_handed_out_again_is_not_served() {
    let (mut lab, key) = Lab::with_key();
    let first = lab.fetch(key, "first", 600);
    lab.machine.invalidate(first.id(), lab.now());
    let waiter = lab.wait(key);
    lab.answer(granted("first", 600));
    assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::AlreadyRejected);
    assert!(lab.machine.peek(key, lab.now()).is_none());
    lab.drive(secs(10));
    let waiter = lab.wait(key);
    lab.answer(granted("first", 0));
    assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::AlreadyRejected);
}

#[test]
fn r38_a_queued_refresh_whose_token_is_rejected_overtakes_those_that_can_wait() {
    let mut policy = Policy::default();
    policy.budget = Budget::per_minute(3, 0);
    let mut lab = Lab::with_policy(policy);
    let (soon, later, other) = (lab.key("soon"), lab.key("later"), lab.key("other"));
    lab.fetch(soon, "s", 600);
    lab.advance_to(25_000);
    let token = lab.fetch(later, "l", 600);
    lab.advance_to(500_000);
    lab.wait(other);
    // Both refreshes are due, and the bucket is empty.
    lab.advance_to(501_000);
    lab.token(soon);
    lab.token(later);
    assert_eq!(lab.requests(), 3);
    lab.machine.invalidate(token.id(), lab.now());
    lab.wait_within(later, secs(30));
    lab.drive_to(545_000);
    assert_eq!(lab.wire[3..].iter().map(|(_, key)| *key).collect::<Vec<_>>(), [later, soon]);
}

#[test]
fn r38_a_rejection_leaves_those_who_wait_in_the_queue() {
    // An expired token is rejected late, while callers wait for the next one.
    let (mut lab, key) = Lab::with_key();
    let token = lab.fetch(key, "first", 60);
    lab.advance_to(70_000);
    let waiter = lab.wait_within(key, secs(100));
    lab.answer(retry_after(status(429), "20"));
    assert_eq!(lab.machine.invalidate(token.id(), lab.now()), Invalidated::Dropped);
    lab.drive_to(95_000);
    lab.answer(granted("second", 60));
    assert_eq!(lab.result(waiter).unwrap().expose(), "second");
}

#[test]
fn r39_an_abandoned_replay_is_an_event() {
    let (mut lab, key) = Lab::with_key();
    let token = lab.fetch(key, "first", 600).id();
    lab.machine.note_abandoned_replay(token, None);
    lab.machine.note_abandoned_replay(token, Some(AcquireError::Closed));
    lab.drain();
    assert!(lab.events.contains(&Event::ReplayAbandoned { token, error: None }));
    assert!(lab.events.contains(&Event::ReplayAbandoned { token, error: Some(AcquireError::Closed) }));
}

#[test]
fn r40_fifty_concurrent_rejections_cause_one_request() {
    let (mut lab, key) = Lab::with_key();
    let first = lab.fetch(key, "first", 600);
    lab.advance_to(100_000);
    let mut waiters = Vec::new();
    for _ in 0..50 {
        lab.machine.invalidate(first.id(), lab.now());
        waiters.push(lab.wait(key));
    }
    assert_eq!(lab.requests(), 2);
    assert_eq!(lab.machine.counters().rejected, 1);
    lab.answer(granted("second", 600));
    for waiter in waiters {
        assert_eq!(lab.result(waiter).unwrap().expose(), "second");
    }
    // Those whose 401 comes late reject a token that is gone.
    for _ in 0..50 {
        assert_eq!(lab.machine.invalidate(first.id(), lab.now()), Invalidated::NotCurrent);
        assert_eq!(lab.token(key), "second");
    }
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r40_two_fresh_tokens_rejected_hold_the_key_off_for_60_s() {
    let (mut lab, key) = Lab::with_key();
    let first = lab.fetch(key, "first", 600);
    lab.advance_to(5_000);
    assert_eq!(lab.machine.invalidate(first.id(), lab.now()), Invalidated::Dropped);
    let second = lab.fetch(key, "second", 600);
    lab.advance_to(10_000);
    assert_eq!(lab.machine.invalidate(second.id(), lab.now()), Invalidated::HeldOff);
    let error = lab.error(key);
    assert_eq!(error, AcquireError::TokensRejected { retry_at: lab.unix(70_000) });
    lab.drive_to(69_999);
    assert_eq!(lab.error(key), error);
    lab.drive_to(70_000);
    let third = lab.fetch(key, "third", 600);
    // And again, at once, if the third is no better.
    assert_eq!(lab.machine.invalidate(third.id(), lab.now()), Invalidated::HeldOff);
    assert!(matches!(lab.acquire(key), Acquire::Failed(_)));
    assert_eq!(lab.times(), [0, 5_000, 70_000]);
}

#[test]
fn r40_a_token_that_was_60_s_old_is_no_fresh_one() {
    let (mut lab, key) = Lab::with_key();
    for number in 0..10 {
        let token = lab.fetch(key, &format!("t{number}"), 600);
        lab.advance(secs(60));
        assert_eq!(lab.machine.invalidate(token.id(), lab.now()), Invalidated::Dropped, "rejection {number}");
    }
    // Nor do rejections add up that have a good token between them.
    for number in 10..15 {
        let token = lab.fetch(key, &format!("t{number}"), 100);
        lab.advance(secs(10));
        assert_eq!(lab.machine.invalidate(token.id(), lab.now()), Invalidated::Dropped, "rejection {number}");
        lab.fetch(key, &format!("good{number}"), 100);
        lab.advance(secs(80));
        lab.token(key);
        lab.answer(granted(&format!("refreshed{number}"), 100));
        lab.advance(secs(98));
    }
}

#[test]
fn r40_r21_a_suspend_makes_tokens_old() {
    let (mut lab, key) = Lab::with_key();
    for number in 0..5 {
        let token = lab.fetch(key, &format!("t{number}"), 3_600);
        lab.advance(secs(20));
        lab.suspend(secs(600));
        assert_eq!(lab.machine.invalidate(token.id(), lab.now()), Invalidated::Dropped, "rejection {number}");
    }
}

#[test]
fn r40_a_hold_off_does_not_cut_a_longer_wait_short() {
    let (mut lab, key) = Lab::with_key();
    let first = lab.fetch(key, "first", 40);
    lab.machine.invalidate(first.id(), lab.now());
    let second = lab.fetch(key, "second", 40);
    lab.advance_to(30_000);
    lab.token(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.advance_to(32_000);
    // Its refresh was refused for 60 s; the hold-off lasts until 92 s.
    assert_eq!(lab.machine.invalidate(second.id(), lab.now()), Invalidated::HeldOff);
    assert_eq!(lab.error(key), AcquireError::TokensRejected { retry_at: lab.unix(92_000) });
}

#[test]
fn r40_r34_a_forced_refresh_waits_for_the_gate_like_any_other() {
    let (mut lab, key) = Lab::with_key();
    let token = lab.fetch(key, "first", 600);
    let other = lab.key("erp");
    lab.wait(other);
    lab.answer(retry_after(status(429), "60"));
    lab.machine.invalidate(token.id(), lab.now());
    assert!(lab.error(key).is_rate_limited());
    lab.wait_within(key, secs(90));
    lab.drive_to(59_999);
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r41_r42_only_a_rejected_token_counts_as_one() {
    let headers = |challenge: &'static str| {
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static(challenge));
        headers
    };
    let unauthorized = http::StatusCode::UNAUTHORIZED;
    assert!(challenge::rejects_token(unauthorized, &http::HeaderMap::new()));
    assert!(challenge::rejects_token(unauthorized, &headers("Bearer")));
    assert!(challenge::rejects_token(unauthorized, &headers("Basic realm=\"x\", Bearer error=\"invalid_token\"")));
    assert!(!challenge::rejects_token(unauthorized, &headers("Bearer error=\"insufficient_scope\"")));
    assert!(!challenge::rejects_token(unauthorized, &headers("Bearer error=\"invalid_request\"")));
    for status in [200, 400, 403, 404, 429, 500, 503] {
        let status = http::StatusCode::from_u16(status).unwrap();
        assert!(!challenge::rejects_token(status, &headers("Bearer error=\"invalid_token\"")), "{status}");
    }
}

#[test]
fn r41_r42_only_unauthenticated_counts_as_one_over_grpc() {
    let headers = |status: &'static str, challenge: Option<&'static str>| {
        let mut headers = http::HeaderMap::new();
        headers.insert("grpc-status", http::HeaderValue::from_static(status));
        if let Some(challenge) = challenge {
            headers.insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static(challenge));
        }
        headers
    };
    assert!(challenge::grpc_rejects_token(&headers("16", None)));
    assert!(challenge::grpc_rejects_token(&headers("16", Some("Bearer error=\"invalid_token\""))));
    assert!(!challenge::grpc_rejects_token(&headers("16", Some("Bearer error=\"insufficient_scope\""))));
    assert!(!challenge::grpc_rejects_token(&http::HeaderMap::new()));
    for status in ["0", "1", "7", "13", "14", "160", "016", "", " 16"] {
        assert!(!challenge::grpc_rejects_token(&headers(status, None)), "{status:?}");
    }
}

#[test]
fn r39_a_rejected_token_that_was_never_held_is_not_believed_when_it_comes_again() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.answer(granted("twin", 0));
    let token = lab.result(waiter).unwrap();
    lab.machine.invalidate(token.id(), lab.now());
    let waiter = lab.wait(key);
    lab.answer(granted("twin", 0));
    assert!(lab.result(waiter).is_err());
}

#[test]
fn r38_the_last_eight_rejected_tokens_are_remembered() {
    let (mut lab, key) = Lab::with_key();
    let rejected: Vec<_> = (0..8)
        .map(|number| {
            let token = lab.fetch(key, &format!("t{number}"), 600);
            lab.machine.invalidate(token.id(), lab.now());
            // Past the minute in which a token is fresh, and past the key's own spacing.
            lab.drive(secs(120));
            token
        })
        .collect();
    for token in &rejected {
        let waiter = lab.wait(key);
        lab.answer(granted(token.expose(), 600));
        assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::AlreadyRejected, "{token:?}");
        lab.drive(secs(300));
    }
}
