//! Many callers, no token; a token that ages; an endpoint that fails, refuses or throttles.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use storm_auth_core::{
    AcquireError, Budget, Cause, Credentials, Event, FailureKind, KeyStatus, Settings, Unix, machine::Activity,
};
use storm_auth_tests::emulator::{At, Clock, Emulator, Endpoint, Fault, Limiter};

use crate::{
    face::{Adapter, Events, PATIENCE, Setup, arrived, credentials, pass, until},
    peers::refusing,
};

both!(
    r25_a_thousand_callers_at_once_cost_one_request,
    r25_a_failure_reaches_all_who_wait,
    r23_a_deadline_may_be_without_end,
    r24_in_the_refresh_window_nobody_waits,
    r24_r20_callers_without_pause_never_wait_across_refreshes,
    r26_an_outage_while_the_token_lives_is_not_felt,
    r20_a_token_past_its_expiry_is_not_handed_out,
    r22_a_wall_clock_that_jumps_costs_at_most_a_request,
    r15_a_token_without_a_lifetime_serves_who_waits,
    r27_a_wrong_secret_costs_one_request_and_then_memory_answers,
    r43_a_replaced_secret_heals_at_once,
    r34_a_throttle_closes_the_gate_for_all_keys,
    r36_who_can_wait_for_the_gate_is_served_when_it_opens,
    r36_who_sleeps_until_a_deadline_is_woken_for_the_gate,
    r37_a_refused_configuration_stays_visible_behind_a_throttle,
    r28_after_an_outage_the_next_call_has_a_token,
    r29_the_budget_is_kept_with_an_endpoint_that_always_fails,
    error_texts_say_what_to_do,
);

fn manual() -> Clock {
    Clock::manual(1_700_000_000_000)
}

fn is_idle(status: Option<KeyStatus>) -> bool {
    status.is_some_and(|status| status.activity == Activity::Idle)
}

fn r25_a_thousand_callers_at_once_cost_one_request<A: Adapter>() {
    let emulator = Emulator::builder().clock(manual()).start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Delay(Duration::from_secs(1)));
    let tokens = Setup::<A>::at(&emulator).tokens();
    std::thread::scope(|scope| {
        let callers = scope.spawn(|| A::tokens_at_once(&tokens, 1_000));
        until("all of them wait", || A::status(&tokens).waiters == 1_000);
        arrived(&emulator);
        emulator.clock().advance(Duration::from_secs(1));
        let got: Vec<_> = callers.join().unwrap().into_iter().map(|token| token.unwrap().id()).collect();
        assert!(got.iter().all(|id| *id == got[0]));
    });
    assert_eq!((emulator.token_requests(), A::status(&tokens).waiters), (1, 0));
    assert_eq!(A::tokens_at_once(&tokens, 200).into_iter().filter(Result::is_ok).count(), 200);
    assert_eq!(emulator.token_requests(), 1);
}

fn r25_a_failure_reaches_all_who_wait<A: Adapter>() {
    let emulator = Emulator::builder().clock(manual()).start();
    emulator.fail_next(Endpoint::Token, 1, Fault::html(502).after(Duration::from_secs(1)));
    let tokens = Setup::<A>::at(&emulator).tokens();
    std::thread::scope(|scope| {
        let callers = scope.spawn(|| A::tokens_at_once(&tokens, 50));
        until("all of them wait", || A::status(&tokens).waiters == 50);
        arrived(&emulator);
        emulator.clock().advance(Duration::from_secs(1));
        let errors: Vec<_> = callers.join().unwrap().into_iter().map(|token| token.unwrap_err()).collect();
        for error in &errors {
            assert_eq!(error.acquire, errors[0].acquire);
            assert!(error.is_token && error.retry_at.is_some() && !error.is_configuration, "{error:?}");
        }
    });
    assert_eq!(emulator.token_requests(), 1);
}

fn r23_a_deadline_may_be_without_end<A: Adapter>() {
    let emulator = Emulator::start();
    let tokens = Setup::<A>::at(&emulator).tokens();
    A::ready(&tokens, Duration::MAX).unwrap();
    A::token_within(&tokens, Duration::MAX).unwrap();
    A::close(&tokens, Duration::MAX).unwrap();
}

fn r24_in_the_refresh_window_nobody_waits<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let first = A::token(&tokens).unwrap().id();
    A::advance(&clock, Duration::from_secs(451));
    emulator.fail_next(Endpoint::Token, 1, Fault::Stall(At::Headers));
    // The refresh never ends, and all of these come back.
    for token in A::tokens_at_once(&tokens, 100) {
        assert_eq!(token.unwrap().id(), first);
    }
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_in_flight == 1));
    for token in A::tokens_at_once(&tokens, 100) {
        assert_eq!(token.unwrap().id(), first);
    }
    assert_eq!(emulator.token_requests(), 2);
    // It is given up by its patience, and the next call refreshes.
    A::advance(&clock, Duration::from_secs(61));
    A::token(&tokens).unwrap();
    // At the latest after 17 of 20 parts of the 78 s that are left of the token.
    A::advance(&clock, Duration::from_secs(67));
    A::token(&tokens).unwrap();
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests == 3));
    until("the new token", || A::token(&tokens).unwrap().id() != first);
    assert_eq!(emulator.token_requests(), 3);
}

/// 200 callers with a deadline of zero ask without pause: a call that had to wait would fail. Meanwhile an endpoint that takes
/// 100 ms refreshes the token four times.
fn r24_r20_callers_without_pause_never_wait_across_refreshes<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let mut last = A::token(&tokens).unwrap().id();
    emulator.fail(Endpoint::Token, Fault::Delay(Duration::from_millis(100)));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let ask = || {
            while !over.load(Ordering::Relaxed) {
                A::token_within(&tokens, Duration::ZERO).unwrap();
                thread::yield_now();
            }
        };
        let callers: Vec<_> = (0..200).map(|_| scope.spawn(ask)).collect();
        for refresh in 1..=4 {
            A::advance(&clock, Duration::from_secs(451));
            until("the next token", || A::token_within(&tokens, Duration::ZERO).unwrap().id() != last);
            last = A::token(&tokens).unwrap().id();
            assert_eq!(emulator.issued(), refresh + 1);
        }
        over.store(true, Ordering::Relaxed);
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    });
}

fn r26_an_outage_while_the_token_lives_is_not_felt<A: Adapter>() {
    let emulator = Emulator::builder().lifetime(Duration::from_secs(86_400)).start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let first = A::token(&tokens).unwrap().id();
    let mut passed = Duration::from_secs(64_801);
    A::advance(&clock, passed);
    let troubles = [
        Fault::Outage,
        Fault::html(502),
        Fault::Reset(At::Body),
        Fault::json(400, r#"{"error":"invalid_client"}"#),
        Fault::ExpiresIn("0".to_owned()),
        Fault::json(200, "[]"),
        // The last one: after it, refreshes are late.
        Fault::status(429),
    ];
    for fault in troubles {
        let requests = A::counters(&tokens).requests;
        emulator.fail(Endpoint::Token, fault.clone());
        // Past the back-off that the one before left.
        let retry_at = A::key_status(&tokens).and_then(|status| status.error?.retry_at());
        let now = Unix::from(SystemTime::now()) + passed;
        let span = retry_at.map_or(Duration::ZERO, |retry_at| retry_at.since(now) + Duration::from_secs(1));
        A::advance(&clock, span);
        passed += span;
        assert_eq!(A::token(&tokens).unwrap().id(), first, "{fault:?}");
        let over = |status: KeyStatus| !matches!(status.activity, Activity::Requesting);
        until("its end", || A::key_status(&tokens).is_some_and(over));
        assert!(A::counters(&tokens).requests > requests, "{fault:?} was not met: {:?}", A::status(&tokens));
        assert_eq!(A::token(&tokens).unwrap().id(), first, "{fault:?}");
    }
    emulator.heal(Endpoint::Token);
    A::advance(&clock, Duration::from_secs(90));
    until("the new token", || A::token(&tokens).unwrap().id() != first);
}

fn r20_a_token_past_its_expiry_is_not_handed_out<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let first = A::token(&tokens).unwrap().id();
    A::advance(&clock, Duration::from_secs(591));
    emulator.fail_next(Endpoint::Token, 1, Fault::Outage);
    let error = A::token(&tokens).unwrap_err();
    assert!(matches!(error.acquire, Some(AcquireError::Unavailable { .. })), "{error:?}");
    A::advance(&clock, Duration::from_secs(10));
    assert_ne!(A::token(&tokens).unwrap().id(), first);
}

fn r22_a_wall_clock_that_jumps_costs_at_most_a_request<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    A::token(&tokens).unwrap();
    A::step_wall(&clock, 3_600);
    A::token(&tokens).unwrap();
    assert_eq!(emulator.token_requests(), 2);
    A::step_wall(&clock, -7_200);
    A::token(&tokens).unwrap();
    A::advance(&clock, Duration::from_secs(591));
    A::token(&tokens).unwrap();
    assert_eq!(emulator.token_requests(), 3);
}

fn r15_a_token_without_a_lifetime_serves_who_waits<A: Adapter>() {
    let emulator = Emulator::builder().clock(manual()).start();
    emulator.fail_next(Endpoint::Token, 1, Fault::ExpiresIn("0".to_owned()).after(Duration::from_secs(1)));
    let tokens = Setup::<A>::at(&emulator).tokens();
    std::thread::scope(|scope| {
        let callers = scope.spawn(|| A::tokens_at_once(&tokens, 20));
        until("all of them wait", || A::status(&tokens).waiters == 20);
        arrived(&emulator);
        emulator.clock().advance(Duration::from_secs(1));
        assert!(callers.join().unwrap().iter().all(Result::is_ok));
    });
    assert_eq!(emulator.token_requests(), 1);
    A::token(&tokens).unwrap();
    assert_eq!(emulator.token_requests(), 2);
}

fn r27_a_wrong_secret_costs_one_request_and_then_memory_answers<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let wrong = Credentials::new(emulator.client_id(), "wr0ng").unwrap();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).set(|settings| settings.credentials(wrong)).tokens();
    for error in A::tokens_at_once(&tokens, 100).into_iter().map(|token| token.unwrap_err()) {
        assert!(error.is_configuration && error.is_token && !error.is_rate_limited, "{error:?}");
        assert!(error.text.contains("invalid_client"), "{error:?}");
    }
    assert_eq!(emulator.token_requests(), 1);
    // It is probed again, so that a repair on the other side is noticed, and not often.
    A::advance(&clock, Duration::from_secs(61));
    A::token(&tokens).unwrap_err();
    A::advance(&clock, Duration::from_secs(61));
    A::token(&tokens).unwrap_err();
    assert_eq!(emulator.token_requests(), 2);
    emulator.rotate_secret(emulator.client_id(), "wr0ng");
    A::advance(&clock, Duration::from_secs(240));
    A::token(&tokens).unwrap();
}

fn r43_a_replaced_secret_heals_at_once<A: Adapter>() {
    let emulator = Emulator::start();
    let wrong = Credentials::new(emulator.client_id(), "wr0ng").unwrap();
    let tokens = Setup::<A>::at(&emulator).set(|settings| settings.credentials(wrong)).tokens();
    let clone = tokens.clone();
    A::token(&tokens).unwrap_err();
    A::set_credentials(&tokens, credentials(&emulator)).unwrap();
    let token = A::token(&clone).unwrap();
    assert_eq!(emulator.token_requests(), 2);
    // A secret that is rotated in time is not felt: the token stays.
    emulator.rotate_secret(emulator.client_id(), "n3w");
    A::set_credentials(&tokens, credentials(&emulator)).unwrap();
    assert_eq!(A::token(&tokens).unwrap().id(), token.id());
    assert_eq!(emulator.token_requests(), 2);
    let error = A::set_credentials(&tokens, Credentials::new("erp", "x").unwrap()).unwrap_err();
    assert!(error.is_configuration && error.text.contains("derive"), "{error:?}");
}

fn r34_a_throttle_closes_the_gate_for_all_keys<A: Adapter>() {
    let emulator = Emulator::builder().client("shop", "one", &["lab"]).client("erp", "two", &["lab"]).start();
    emulator.fail_next(Endpoint::Token, 1, Fault::answer(429, &[("retry-after", "120")], ""));
    let events = Events::default();
    let shop = Setup::<A>::at(&emulator).events(&events).tokens();
    let erp = A::for_credentials(&shop, Credentials::new("erp", "two").unwrap());
    for tokens in [&shop, &erp, &shop, &erp] {
        let error = A::token(tokens).unwrap_err();
        assert!(error.is_rate_limited && error.retry_at.is_some(), "{error:?}");
    }
    assert_eq!(emulator.token_requests(), 1);
    let told = |event: &Event| matches!(event, Event::GateClosed { retry_after: Some(wait), .. } if *wait == Duration::from_secs(120));
    until("an event", || events.any(told));
}

fn r36_who_can_wait_for_the_gate_is_served_when_it_opens<A: Adapter>() {
    let emulator = Emulator::start();
    emulator.fail_next(Endpoint::Token, 1, Fault::status(429));
    let clock = A::movable_clock();
    let patient = |settings: Settings| settings.caller_deadline(Duration::from_secs(300));
    let tokens = Setup::<A>::at(&emulator).clock(&clock).set(patient).tokens();
    std::thread::scope(|scope| {
        let callers = scope.spawn(|| A::tokens_at_once(&tokens, 10));
        until("the gate is closed", || A::status(&tokens).gate_closed_until.is_some());
        until("all of them wait", || A::status(&tokens).waiters == 10);
        // Who cannot wait is told at once.
        let hurried = A::token_within(&tokens, Duration::from_secs(10)).unwrap_err();
        assert!(hurried.is_rate_limited, "{hurried:?}");
        pass::<A>(&clock, &tokens, Duration::from_secs(26));
        assert!(callers.join().unwrap().iter().all(Result::is_ok));
    });
    assert_eq!(emulator.token_requests(), 2);
}

/// In real time, since it is the sleep of those who wait that is looked at: the gate opens after a second, long before any of their
/// deadlines, and nobody but the answer itself tells them of it.
fn r36_who_sleeps_until_a_deadline_is_woken_for_the_gate<A: Adapter>() {
    let emulator = Emulator::start();
    emulator.fail_next(Endpoint::Token, 1, Fault::answer(429, &[("retry-after", "1")], ""));
    let tokens = Setup::<A>::at(&emulator).tokens();
    assert!(A::tokens_at_once(&tokens, 3).iter().all(Result::is_ok));
    assert_eq!(emulator.token_requests(), 2);
}

fn r37_a_refused_configuration_stays_visible_behind_a_throttle<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let wrong = Credentials::new(emulator.client_id(), "wr0ng").unwrap();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).set(|settings| settings.credentials(wrong)).tokens();
    A::token(&tokens).unwrap_err();
    A::advance(&clock, Duration::from_secs(61));
    emulator.fail_next(Endpoint::Token, 1, Fault::status(429));
    let error = A::token_within(&tokens, Duration::from_secs(5)).unwrap_err();
    assert!(error.is_rate_limited && error.is_configuration, "{error:?}");
    assert!(error.text.contains("before that") && error.text.contains("invalid_client"), "{error:?}");
}

fn r28_after_an_outage_the_next_call_has_a_token<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    emulator.fail(Endpoint::Token, Fault::Outage);
    for _ in 0..30 {
        A::token(&tokens).unwrap_err();
        A::advance(&clock, Duration::from_secs(120));
    }
    emulator.heal(Endpoint::Token);
    A::token(&tokens).unwrap();
    until("rest", || is_idle(A::key_status(&tokens)));
}

fn r29_the_budget_is_kept_with_an_endpoint_that_always_fails<A: Adapter>() {
    let emulator = Emulator::builder().limiter(Limiter::none()).start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    emulator.fail(Endpoint::Token, Fault::ExpiresIn("0".to_owned()));
    for _ in 0..200 {
        let _ = A::token_within(&tokens, Duration::from_millis(900));
        A::advance(&clock, Duration::from_secs(1));
    }
    // 3 at once, and one per 20 s of the time that was moved; the real time that passed besides may bring one more.
    assert!(emulator.token_requests() <= 3 + 10 + 1, "{}", emulator.token_requests());
    assert!(emulator.token_requests() >= 10, "{}", emulator.token_requests());

    let unlimited = Setup::<A>::at(&emulator).set(|settings| settings.budget(Budget::unlimited())).tokens();
    let before = emulator.token_requests();
    for _ in 0..10 {
        A::token(&unlimited).unwrap();
    }
    assert_eq!(emulator.token_requests(), before + 10);
}

fn error_texts_say_what_to_do<A: Adapter>() {
    let emulator = Emulator::start();
    let tokens = || Setup::<A>::at(&emulator).tokens();
    let told = |tokens: &A::Tokens| A::token_within(tokens, Duration::from_secs(5)).unwrap_err();

    emulator.fail_next(Endpoint::Token, 1, Fault::status(429));
    let throttled = told(&tokens());
    assert!(throttled.text.contains("rate limited") && throttled.text.contains("wait"), "{throttled:?}");

    emulator.fail_next(Endpoint::Token, 1, Fault::redirect(301, "https://new.example/connect/token"));
    let moved = told(&tokens());
    assert!(moved.is_configuration && moved.text.contains("https://new.example/connect/token"), "{moved:?}");

    emulator.fail_next(Endpoint::Token, 1, Fault::html(502));
    let proxied = told(&tokens());
    assert!(proxied.text.contains("502") && !proxied.text.contains("html"), "{proxied:?}");

    emulator.fail_next(Endpoint::Token, 1, Fault::Outage);
    let reset = told(&tokens());
    assert!(matches!(reset.acquire, Some(AcquireError::Unavailable { .. })), "{reset:?}");

    emulator.fail_next(Endpoint::Token, 1, Fault::Stall(At::Headers));
    let silent = A::token_within(&tokens(), Duration::from_millis(50)).unwrap_err();
    assert_eq!(silent.acquire, Some(AcquireError::DeadlineExceeded));
    assert!(silent.text.contains("deadline") && silent.text.contains("later call"), "{silent:?}");

    let nobody = Setup::<A>::at(&emulator).set(|settings| settings.token_url(refusing())).tokens();
    let refused = told(&nobody);
    let Some(AcquireError::Unavailable { cause: Cause::Failed(failure), .. }) = &refused.acquire else {
        panic!("{refused:?}")
    };
    assert_eq!(failure.kind, FailureKind::Connect);
    assert!(refused.text.contains("no connection") && refused.text.to_lowercase().contains("refused"), "{refused:?}");
}
