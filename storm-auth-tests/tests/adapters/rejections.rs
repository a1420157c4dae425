//! The API rejects a token: one replay, with another token, at no more than one token request.

use std::{collections::BTreeSet, time::Duration};

use http::{Method, StatusCode, header};
use storm_auth_core::{AcquireError, Event, Invalidated};
use storm_auth_tests::emulator::{Clock, Emulator, Endpoint, Fault, Limiter, Recorded};

use crate::face::{Adapter, Events, Payload, Setup, get, request, until};

both!(
    r38_a_rejected_token_is_never_served_again,
    r38_a_rejection_of_an_older_token_changes_nothing,
    r39_a_rejected_call_is_sent_once_more_with_another_token,
    r39_a_401_without_a_challenge_rejects_the_token,
    r39_a_body_that_can_be_read_once_gets_the_401,
    r39_without_another_token_the_caller_gets_the_401,
    r39_a_call_is_not_sent_a_third_time,
    r40_fifty_rejected_calls_cost_one_token,
    r40_after_two_fresh_rejections_the_key_is_held_off,
    r41_forbidden_and_failed_calls_cost_no_token,
);

fn bearer(request: &Recorded) -> &[u8] {
    request.headers[header::AUTHORIZATION].as_bytes()
}

fn r38_a_rejected_token_is_never_served_again<A: Adapter>() {
    let emulator = Emulator::start();
    let tokens = Setup::<A>::at(&emulator).tokens();
    let first = A::token(&tokens).unwrap();
    assert_eq!(A::invalidate(&tokens, first.id()), Invalidated::Dropped);
    for token in A::tokens_at_once(&tokens, 50) {
        assert_ne!(token.unwrap().id(), first.id());
    }
    assert_eq!(emulator.token_requests(), 2);
    // Also when the endpoint hands it out again.
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let again = Fault::json(200, r#"{"access_token":"again","expires_in":600}"#);
    emulator.fail_next(Endpoint::Token, 2, again);
    let first = A::token(&tokens).unwrap();
    A::invalidate(&tokens, first.id());
    A::token(&tokens).unwrap_err();
    A::advance(&clock, Duration::from_secs(6));
    assert_ne!(A::token(&tokens).unwrap().id(), first.id());
}

fn r38_a_rejection_of_an_older_token_changes_nothing<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let first = A::token(&tokens).unwrap().id();
    A::advance(&clock, Duration::from_secs(595));
    let second = A::token(&tokens).unwrap().id();
    assert_eq!(A::invalidate(&tokens, first), Invalidated::NotCurrent);
    assert_eq!(A::token(&tokens).unwrap().id(), second);
    assert_eq!(emulator.token_requests(), 2);
}

fn r39_a_rejected_call_is_sent_once_more_with_another_token<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    A::call(&storm, get("/warm")).unwrap();
    emulator.revoke_all();
    let bytes: Vec<u8> = (0..=255).cycle().take(40_000).collect();
    let call = request(Method::POST, "/p?a=1").body(Payload::Bytes(bytes.clone())).header("x-trace", "abc");
    let answer = A::call(&storm, call.application_id(7)).unwrap();
    assert_eq!(answer.status, StatusCode::OK);

    let seen = emulator.recorded(Endpoint::Api);
    let [_, first, second] = &seen[..] else { panic!("{} requests", seen.len()) };
    assert_ne!(bearer(first), bearer(second));
    for sent in [first, second] {
        assert_eq!((&sent.method, sent.uri.to_string()), (&Method::POST, "/p?a=1".to_owned()));
        assert!(sent.body == bytes, "the body is not the same byte for byte");
        assert_eq!((&sent.headers["x-trace"], &sent.headers["applicationid"]), (&"abc".parse().unwrap(), &7.into()));
        assert_eq!(sent.headers.get_all("applicationid").iter().count(), 1);
    }
    assert_eq!(emulator.token_requests(), 2);
}

fn r39_a_401_without_a_challenge_rejects_the_token<A: Adapter>() {
    let emulator = Emulator::start();
    for setup in [Setup::<A>::at(&emulator), Setup::at(&emulator).own_api_client()] {
        let storm = setup.client();
        emulator.fail_next(Endpoint::Api, 1, Fault::status(401));
        assert_eq!(A::call(&storm, get("/")).unwrap().status, StatusCode::OK);
    }
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (4, 4));
}

fn r39_a_body_that_can_be_read_once_gets_the_401<A: Adapter>() {
    let emulator = Emulator::start();
    let events = Events::default();
    let storm = Setup::<A>::at(&emulator).events(&events).client();
    let token = A::token(&A::tokens(&storm)).unwrap();
    emulator.revoke_all();
    let call = request(Method::POST, "/").body(Payload::Once(b"once".to_vec()));
    let answer = A::call(&storm, call.clone()).unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE));
    assert_eq!((emulator.api_requests(), emulator.token_requests()), (1, 1));
    let told = |event: &Event| matches!(event, Event::ReplayAbandoned { token: rejected, error: None } if *rejected == token.id());
    assert!(events.any(told), "{:?}", events.seen());
    // The next call has another token.
    assert_eq!(A::call(&storm, call).unwrap().status, StatusCode::OK);
}

fn r39_without_another_token_the_caller_gets_the_401<A: Adapter>() {
    let emulator = Emulator::start();
    let events = Events::default();
    let storm = Setup::<A>::at(&emulator).events(&events).client();
    let token = A::token(&A::tokens(&storm)).unwrap();
    emulator.revoke_all();
    emulator.fail(Endpoint::Token, Fault::json(400, r#"{"error":"unauthorized_client"}"#));
    let answer = A::call(&storm, get("/")).unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!((emulator.api_requests(), emulator.token_requests()), (1, 2));
    let told = |event: &Event| {
        matches!(event, Event::ReplayAbandoned { token: rejected, error: Some(AcquireError::Configuration { .. }) }
            if *rejected == token.id())
    };
    assert!(events.any(told), "{:?}", events.seen());
}

fn r39_a_call_is_not_sent_a_third_time<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    emulator.fail(Endpoint::Api, Fault::unauthorized(r#"Bearer error="invalid_token""#));
    let answer = A::call(&storm, get("/")).unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!((emulator.api_requests(), emulator.token_requests()), (2, 2));
}

fn r40_fifty_rejected_calls_cost_one_token<A: Adapter>() {
    let emulator = Emulator::builder().clock(Clock::manual(1_700_000_000_000)).start();
    let storm = Setup::<A>::at(&emulator).client();
    A::token(&A::tokens(&storm)).unwrap();
    emulator.revoke_all();
    // All fifty are under way before the first is told.
    emulator.fail_next(Endpoint::Api, 50, Fault::Delay(Duration::from_secs(1)));
    std::thread::scope(|scope| {
        let callers = scope.spawn(|| A::calls_at_once(&storm, vec![get("/"); 50]));
        until("fifty calls", || emulator.in_flight(Endpoint::Api) == 50);
        emulator.clock().advance(Duration::from_secs(1));
        for answer in callers.join().unwrap() {
            assert_eq!(answer.unwrap().status, StatusCode::OK);
        }
    });
    assert_eq!((emulator.api_requests(), emulator.token_requests()), (100, 2));
    let bearers: BTreeSet<_> = emulator.recorded(Endpoint::Api).iter().map(|sent| bearer(sent).to_vec()).collect();
    assert_eq!(bearers.len(), 2);
}

fn r40_after_two_fresh_rejections_the_key_is_held_off<A: Adapter>() {
    let emulator = Emulator::builder().limiter(Limiter::none()).start();
    let events = Events::default();
    let clock = A::movable_clock();
    let storm = Setup::<A>::at(&emulator).clock(&clock).events(&events).client();
    emulator.fail(Endpoint::Api, Fault::unauthorized(r#"Bearer error="invalid_token", error_description="audience""#));
    assert_eq!(A::call(&storm, get("/")).unwrap().status, StatusCode::UNAUTHORIZED);
    assert_eq!(emulator.token_requests(), 2);
    for _ in 0..20 {
        let error = A::call(&storm, get("/")).unwrap_err();
        assert!(matches!(error.acquire, Some(AcquireError::TokensRejected { .. })), "{error:?}");
        assert!(error.is_token && error.retry_at.is_some() && error.text.contains("environment"), "{error:?}");
    }
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (2, 2));
    let told = |event: &Event| matches!(event, Event::TokenRejected { held_off_until: Some(_), .. });
    assert!(events.any(told), "{:?}", events.seen());
    emulator.heal(Endpoint::Api);
    A::advance(&clock, Duration::from_secs(61));
    assert_eq!(A::call(&storm, get("/")).unwrap().status, StatusCode::OK);
}

fn r41_forbidden_and_failed_calls_cost_no_token<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    let answers = [
        Fault::status(403),
        Fault::answer(403, &[("www-authenticate", r#"Bearer error="invalid_token""#)], ""),
        Fault::unauthorized(r#"Bearer error="insufficient_scope""#),
        Fault::unauthorized(r#"Bearer realm="x", error="invalid_request""#),
        Fault::status(400),
        Fault::status(407),
        Fault::html(500),
    ];
    let sent = answers.len() as u64;
    for fault in answers {
        emulator.fail_next(Endpoint::Api, 1, fault);
        assert_ne!(A::call(&storm, get("/")).unwrap().status, StatusCode::OK);
    }
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (1, sent));
}
