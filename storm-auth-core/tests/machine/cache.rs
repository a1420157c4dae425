//! R15, R19 to R28, R30: when a token is served, refreshed and given up.

use core::time::Duration;

use storm_auth_core::machine::{Acquire, Action, Activity, Output, Reason};
use storm_auth_core::{AcquireError, Budget, Cause, Event, FailureKind, Machine, Mono, Now, Policy};

use crate::harness::{Lab, cause, failure, granted, json, key, millis, oauth_error, retry_after, secs, status};

#[test]
fn r20_the_life_is_counted_from_the_send_less_the_skew_once() {
    // Lifetime in seconds, and the last millisecond of service after the send: 2 % less, or 10 s.
    for (lifetime, last) in [(1, 979), (50, 48_999), (100, 97_999), (500, 489_999), (600, 589_999), (3_600, 3_589_999)]
    {
        let (mut lab, key) = Lab::with_key();
        let waiter = lab.wait(key);
        lab.advance(millis(900));
        lab.answer(granted("first", lifetime));
        let token = lab.result(waiter).unwrap();
        assert_eq!(token.expires_at(), lab.unix(last + 1), "a lifetime of {lifetime} s");
        assert_eq!(lab.machine.peek(key, lab.now()).unwrap().hard.mono, lab.mono(last + 1));

        lab.advance_to(last);
        assert_eq!(lab.token(key), "first", "a lifetime of {lifetime} s");
        lab.advance_to(last + 1);
        assert!(lab.machine.peek(key, lab.now()).is_none());
        assert!(matches!(lab.acquire(key), Acquire::Wait(_)), "a lifetime of {lifetime} s");
    }
}

#[test]
fn r20_a_token_that_expired_on_its_way_is_not_served() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.advance(millis(4_900));
    lab.answer(granted("late", 5));
    assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::ExpiredOnArrival);
    assert!(lab.machine.peek(key, lab.now()).is_none());
    assert!(matches!(lab.error(key), AcquireError::Unavailable { cause: Cause::ExpiredOnArrival, .. }));
}

#[test]
fn r20_an_expired_token_is_served_in_place_of_an_error_only_where_that_was_chosen() {
    for (grace, served_until) in [(0, 590), (60, 660), (300, 900), (9_000, 900)] {
        let mut policy = Policy::default();
        policy.serve_stale_on_error = secs(grace);
        let mut lab = Lab::with_policy(policy);
        let key = lab.key("shop");
        lab.fetch(key, "first", 600);

        lab.advance_to(590_000);
        let waiter = lab.wait(key);
        lab.answer(oauth_error(400, "invalid_client"));
        assert_eq!(lab.result(waiter).is_ok(), grace > 0, "the waiter, with {grace} s of grace");
        // The error stands for a minute, then for five.
        for at in [600, 640, 659, 660, 899, 900] {
            lab.advance_to(at * 1000);
            match lab.acquire(key) {
                Acquire::Ready(token) => {
                    assert_eq!(token.expose(), "first");
                    assert!(at < served_until, "served at {at} s with {grace} s of grace");
                }
                Acquire::Failed(error) => {
                    assert!(error.is_configuration());
                    assert!(at >= served_until, "not served at {at} s with {grace} s of grace");
                }
                Acquire::Wait(waiter) => {
                    lab.answer(oauth_error(400, "invalid_client"));
                    assert_eq!(lab.result(waiter).is_ok(), at < served_until, "the waiter of {at} s with {grace} s");
                }
            }
        }
    }
}

#[test]
fn r20_a_rejected_token_is_not_served_stale_either() {
    let mut policy = Policy::default();
    policy.serve_stale_on_error = secs(300);
    let mut lab = Lab::with_policy(policy);
    let key = lab.key("shop");
    let token = lab.fetch(key, "first", 600);
    lab.advance_to(100_000);
    lab.machine.invalidate(token.id(), lab.now());
    let waiter = lab.wait(key);
    lab.answer(status(500));
    assert!(lab.result(waiter).is_err());
}

#[test]
fn r20_no_waiter_gets_an_expired_token_when_the_endpoint_is_down_at_expiry() {
    let (mut lab, key) = Lab::with_token(600);
    lab.advance_to(580_000);
    assert_eq!(lab.token(key), "first");
    lab.advance_to(590_000);
    let waiter = lab.wait(key);
    lab.fail(FailureKind::Connect);
    assert!(matches!(cause(lab.result(waiter).unwrap_err()), Cause::Failed(_)));
}

#[test]
fn r15_a_lifetime_of_zero_serves_those_who_wait_and_nobody_else() {
    for lifetime in ["0", "-1", "0.9", "-3600"] {
        let (mut lab, key) = Lab::with_key();
        let waiters = [lab.wait(key), lab.wait(key), lab.wait(key)];
        lab.advance(millis(80));
        lab.answer(json(200, &format!(r#"{{"access_token":"once","expires_in":{lifetime},"token_type":"Bearer"}}"#)));
        for waiter in waiters {
            assert_eq!(lab.result(waiter).unwrap().expose(), "once");
        }
        assert!(lab.machine.peek(key, lab.now()).is_none());
        assert!(matches!(lab.acquire(key), Acquire::Wait(_)), "a lifetime of {lifetime}");
        assert_eq!(lab.requests(), 2);
    }
}

#[test]
fn r15_an_unknown_lifetime_is_300_s_and_a_long_one_24_h() {
    for (expires_in, hard) in
        [("null", 294), ("[]", 294), ("\"soon\"", 294), ("\"600\"", 590), ("600.9", 590), ("1e9", 86_390)]
    {
        let (mut lab, key) = Lab::with_key();
        let waiter = lab.wait(key);
        lab.answer(json(200, &format!(r#"{{"access_token":"t","expires_in":{expires_in},"token_type":"Bearer"}}"#)));
        assert_eq!(lab.result(waiter).unwrap().expires_at(), lab.unix(hard * 1000), "expires_in {expires_in}");
        let noticed = lab.events.iter().any(|event| matches!(event, Event::Noticed { .. }));
        assert_eq!(noticed, !expires_in.contains("600"), "expires_in {expires_in}");
    }
}

#[test]
fn r19_a_granted_scope_that_differs_succeeds_and_both_are_visible() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.answer(json(200, r#"{"access_token":"t","expires_in":600,"token_type":"Bearer","scope":"qa lab"}"#));
    assert_eq!(lab.result(waiter).unwrap().granted_scope(), Some("qa lab"));
    assert_eq!(lab.status(key).scope.as_deref(), Some("lab"));
    assert!(
        lab.events
            .iter()
            .any(|event| matches!(event, Event::Granted { other_scope: Some(scope), .. } if scope == "qa lab"))
    );

    lab.advance_to(450_000);
    lab.token(key);
    lab.events.clear();
    lab.answer(json(200, r#"{"access_token":"u","expires_in":600,"token_type":"Bearer","scope":"lab"}"#));
    assert!(lab.events.iter().any(|event| matches!(event, Event::Granted { other_scope: None, .. })));
}

#[test]
fn r21_the_first_call_after_a_suspend_decides_rightly_without_a_timer() {
    // The monotonic clock slept with the machine.
    for asleep in [590, 600, 3_600, 86_400 * 365] {
        let (mut lab, key) = Lab::with_token(600);
        lab.suspend(secs(asleep));
        let waiter = lab.wait(key);
        lab.answer(granted("second", 600));
        assert_eq!(lab.result(waiter).unwrap().expose(), "second");
        lab.advance(secs(400));
        assert_eq!(lab.token(key), "second", "asleep for {asleep} s");
        assert_eq!(lab.requests(), 2);
    }
    let (mut lab, key) = Lab::with_token(600);
    lab.suspend(secs(589));
    assert_eq!(lab.token(key), "first");
    assert_eq!(lab.requests(), 2, "its refresh is due");
}

#[test]
fn r21_a_gate_or_an_error_from_before_a_suspend_does_not_outlast_it() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    assert!(lab.result(waiter).is_err());
    lab.suspend(secs(3_600));
    lab.wait(key);
    lab.answer(crate::harness::retry_after(status(429), "3600"));
    lab.suspend(secs(3_700));
    lab.wait(key);
    assert_eq!(lab.requests(), 3);
}

#[test]
fn r21_nobody_waits_for_a_request_from_before_a_suspend() {
    let (mut lab, key) = Lab::with_key();
    let before = lab.wait(key);
    lab.suspend(secs(600));
    let after = lab.wait(key);
    assert_eq!(lab.requests(), 2);
    lab.answer(granted("old", 600));
    lab.answer(granted("new", 600));
    for waiter in [before, after] {
        assert_eq!(lab.result(waiter).unwrap().expose(), "new");
    }
}

#[test]
fn r22_a_wall_clock_that_is_set_during_the_first_request_costs_one_more_request() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.suspend(secs(55));
    lab.answer(granted("first", 50));
    assert_eq!(lab.requests(), 2);
    lab.answer(granted("second", 50));
    assert_eq!(lab.result(waiter).unwrap().expose(), "second");
}

#[test]
fn r20_a_token_that_has_expired_when_it_arrives_is_an_error() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.advance_to(20_000);
    lab.answer(granted("old", 20));
    assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::ExpiredOnArrival);
}

#[test]
fn r22_a_wall_clock_that_is_set_back_never_extends_a_life() {
    for back in [1, 600, 86_400 * 365] {
        let (mut lab, key) = Lab::with_token(600);
        lab.wall_back(secs(back));
        lab.advance_to(589_999);
        assert_eq!(lab.token(key), "first");
        lab.advance_to(590_000);
        assert!(matches!(lab.acquire(key), Acquire::Wait(_)), "set back by {back} s");
    }
}

#[test]
fn r22_a_wall_clock_that_is_set_forward_costs_one_request() {
    let (mut lab, key) = Lab::with_token(600);
    lab.wall_forward(secs(86_400));
    let waiter = lab.wait(key);
    lab.answer(granted("second", 600));
    lab.result(waiter).unwrap();
    // It is set right again, and nothing more is asked for.
    lab.wall_back(secs(86_400));
    for at in (0..450).step_by(10) {
        lab.drive_to(at * 1000);
        assert_eq!(lab.token(key), "second");
    }
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r22_r26_who_waits_gets_the_token_that_a_wall_clock_set_back_has_made_valid_again() {
    for failure in [status(429), status(500), json(400, r#"{"error":"invalid_client"}"#)] {
        let (mut lab, key) = Lab::with_token(600);
        lab.wall_forward(secs(86_400));
        let waiter = lab.wait(key);
        lab.wall_back(secs(86_400));
        lab.answer(failure);
        assert_eq!(lab.result(waiter).unwrap().expose(), "first");
        assert_eq!(lab.token(key), "first");
    }
}

#[test]
fn r22_a_wall_clock_that_is_set_back_does_not_close_an_open_gate_again() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(crate::harness::retry_after(status(429), "100"));
    lab.wall_forward(secs(200));
    lab.tick();
    lab.wall_back(secs(200));
    lab.wait(key);
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r23_the_ends_of_time_and_of_the_settings_overflow_nothing() {
    let ends = [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for (mono, unix) in ends.into_iter().flat_map(|mono| ends.map(|unix| (mono, unix))) {
        for share in [0.0, 1.0, 1e300, -1.0, f64::NAN, f64::INFINITY] {
            let mut policy = Policy::default();
            policy.caller_deadline = Duration::MAX;
            policy.serve_stale_on_error = Duration::MAX;
            policy.refresh_early = share;
            policy.refresh_late = share;
            policy.budget = Budget::per_minute(u32::MAX, u32::MAX);
            let now = Now::from_millis(mono, unix);
            let mut machine = Machine::new(policy, u64::MAX);
            let key = machine.add_key(key("shop", "S3cret"), now);
            let retry = crate::harness::retry_after(status(429), "18446744073709551615");
            for response in
                [granted("a", u64::MAX), retry, status(500), oauth_error(400, "invalid_client"), granted("b", 1)]
            {
                let _ = machine.acquire(key, Some(Duration::MAX), now);
                // No gate stays closed at the end of time, so the answers are counted.
                for _ in 0..20 {
                    if let Some(Output::Perform(Action::Send(send))) = machine.poll_output() {
                        machine.handle_response(send.op, &response, now);
                    }
                }
                machine.handle_timeout(now);
                assert!(
                    !format!("{:?} {:?} {:?}", machine.poll_timeout(), machine.status(now), machine.counters())
                        .is_empty()
                );
            }
        }
    }
}

#[test]
fn r24_in_the_refresh_window_everybody_is_served_and_one_refresh_runs() {
    let (mut lab, key) = Lab::with_token(600);
    lab.advance_to(449_999);
    assert_eq!(lab.token(key), "first");
    assert_eq!(lab.requests(), 1);
    lab.advance_to(450_000);
    for _ in 0..100 {
        assert_eq!(lab.token(key), "first");
    }
    assert_eq!(lab.requests(), 2);
    lab.advance_to(480_000);
    assert_eq!(lab.token(key), "first");
    assert_eq!(lab.requests(), 2);
    lab.answer(granted("second", 600));
    assert_eq!(lab.token(key), "second");
}

#[test]
fn r24_the_published_look_tells_when_somebody_must_ask_again() {
    let (mut lab, key) = Lab::with_token(600);
    let look = |lab: &Lab| lab.machine.peek(key, lab.now()).unwrap().look.mono;
    assert_eq!(look(&lab), lab.mono(450_000), "its refresh");
    lab.advance_to(450_000);
    lab.token(key);
    assert_eq!(look(&lab), lab.mono(510_000), "the end of the request's patience");
    lab.advance_to(451_000);
    lab.answer(oauth_error(400, "invalid_client"));
    assert_eq!(look(&lab), lab.mono(511_000), "the next probe");
    lab.advance_to(511_000);
    lab.token(key);
    lab.answer(oauth_error(400, "invalid_client"));
    assert_eq!(look(&lab), lab.mono(590_000), "the end of its life");
}

#[test]
fn r25_a_thousand_callers_cause_one_request_and_all_are_served() {
    let (mut lab, key) = Lab::with_key();
    let waiters: Vec<_> = (0..1_000).map(|_| lab.wait(key)).collect();
    assert_eq!(lab.requests(), 1);
    lab.advance(millis(60));
    lab.answer(granted("first", 600));
    for waiter in waiters {
        assert_eq!(lab.result(waiter).unwrap().expose(), "first");
    }
    assert!(lab.machine.is_idle());
}

#[test]
fn r25_the_default_deadline_is_30_s_and_the_request_goes_on() {
    let (mut lab, key) = Lab::with_key();
    let Acquire::Wait(waiter) = lab.acquire(key) else { panic!() };
    lab.drive_to(29_999);
    assert!(!lab.is_resolved(waiter));
    lab.drive_to(30_000);
    assert_eq!(lab.result(waiter).unwrap_err(), AcquireError::DeadlineExceeded);
    assert_eq!(lab.status(key).activity, Activity::Requesting);
    lab.advance_to(45_000);
    lab.answer(granted("first", 600));
    assert_eq!(lab.token(key), "first");
}

#[test]
fn r26_a_failed_refresh_never_displaces_a_valid_token() {
    let answers = [status(500), oauth_error(400, "invalid_client"), status(429), json(200, "[]"), granted("zero", 0)];
    for (number, answer) in answers.into_iter().enumerate() {
        let (mut lab, key) = Lab::with_token(600);
        lab.advance_to(450_000);
        lab.token(key);
        lab.answer(answer);
        for at in [450_000, 500_000, 560_000, 589_999] {
            lab.drive_to(at);
            assert_eq!(lab.token(key), "first", "answer {number}");
        }
    }
    for kind in [FailureKind::Connect, FailureKind::Io, FailureKind::Timeout, FailureKind::Aborted] {
        let (mut lab, key) = Lab::with_token(600);
        lab.advance_to(450_000);
        lab.token(key);
        lab.fail(kind);
        lab.drive_to(589_999);
        assert_eq!(lab.token(key), "first", "{kind:?}");
    }
}

#[test]
fn r26_the_reply_to_an_older_request_changes_nothing() {
    let (mut lab, key) = Lab::with_key();
    lab.wait_within(key, secs(100));
    let older = lab.sends.pop_front().unwrap().op;
    // Its patience ends, and another one goes out.
    lab.drive_to(70_000);
    let waiter = lab.wait(key);
    lab.answer(granted("newer", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "newer");
    lab.answer_op(older, granted("older", 86_400));
    assert!(lab.events.contains(&Event::LateReport { op: older }));
    assert_eq!(lab.token(key), "newer");
    lab.machine.handle_failure(older, failure(FailureKind::Io), lab.now());
    assert_eq!(lab.token(key), "newer");
}

#[test]
fn r26_the_newest_request_wins_also_with_a_shorter_life() {
    let (mut lab, key) = Lab::with_token(3_600);
    lab.advance_to(2_700_000);
    lab.token(key);
    lab.answer(granted("short", 60));
    assert_eq!(lab.token(key), "short");
    lab.advance_to(2_758_800);
    assert!(matches!(lab.acquire(key), Acquire::Wait(_)));
}

#[test]
fn r27_an_error_is_answered_from_memory_only_until_its_gate_opens() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    let error = lab.result(waiter).unwrap_err();
    assert_eq!(error.retry_at(), Some(lab.unix(60_000)));
    lab.advance_to(59_999);
    assert_eq!(lab.error(key), error);
    assert_eq!(lab.status(key).error, Some(error));
    assert_eq!(lab.requests(), 1);
    lab.advance_to(60_000);
    assert_eq!(lab.status(key).error, None, "a call would not get it any more");
    assert_eq!(lab.status(key).activity, Activity::Idle);
    lab.wait(key);
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r28_the_call_after_an_outage_gets_its_token_after_one_request() {
    // An outage of minutes, hours, or a month, with a caller each second of its first hour.
    for outage in [60, 3_600, 86_400 * 30] {
        let (mut lab, key) = Lab::with_key();
        let mut at = 0;
        while at < outage {
            lab.drive_to(at * 1000);
            let _ = lab.acquire(key);
            while !lab.sends.is_empty() {
                lab.fail(FailureKind::Connect);
            }
            at += if at < 3_600 { 1 } else { 3_600 };
        }
        lab.drive_to(outage * 1000);
        let gate = match lab.acquire(key) {
            Acquire::Failed(error) => error.retry_at().unwrap().since(lab.now().unix),
            _ => Duration::ZERO,
        };
        assert!(gate <= secs(120), "an outage of {outage} s leaves a gate of {gate:?}");
        lab.drive(gate);
        if lab.sends.is_empty() {
            lab.wait(key);
        }
        lab.answer(granted("back", 600));
        assert_eq!(lab.token(key), "back");
    }
}

#[test]
fn r21_a_request_is_given_up_when_the_wall_clock_alone_has_seen_its_patience_end() {
    let (mut lab, key) = Lab::with_key();
    lab.wait_within(key, secs(100));
    lab.suspend(millis(59_999));
    lab.wait_within(key, secs(100));
    assert_eq!(lab.requests(), 1);
    lab.suspend(millis(1));
    lab.wait_within(key, secs(100));
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r66_why_a_request_goes_out_is_said_in_words() {
    let said = |reason: Reason| reason.to_string();
    assert_eq!(said(Reason::First), "the first one");
    assert_eq!(said(Reason::Refresh), "to refresh it in time");
    assert_eq!(said(Reason::Expired), "since it has expired");
    assert_eq!(said(Reason::Rejected), "since the API rejected it");
}

#[test]
fn r44_a_held_token_is_served_to_its_end_after_a_shutdown_and_nobody_has_to_look() {
    let (mut lab, key) = Lab::with_token(600);
    lab.machine.shut_down(lab.now());
    let peek = lab.machine.peek(key, lab.now()).unwrap();
    assert_eq!((peek.look, peek.hard.mono), (peek.hard, lab.mono(590_000)));
}

#[test]
fn r30_windows_scale_with_the_lifetime() {
    for lifetime in [1, 8, 60, 600, 3_600, 86_400] {
        let (mut lab, key) = Lab::with_token(lifetime);
        assert_eq!(lab.status(key).refresh_at, Some(lab.unix(lifetime * 750)));
        lab.advance_to(lifetime * 750 - 1);
        lab.token(key);
        assert_eq!(lab.requests(), 1, "a lifetime of {lifetime} s");
        lab.advance_to(lifetime * 750);
        lab.token(key);
        assert_eq!(lab.requests(), 2, "a lifetime of {lifetime} s");
    }
}

#[test]
fn r30_a_key_that_nobody_calls_expires_without_a_request() {
    let (mut lab, key) = Lab::with_token(600);
    lab.drive_to(449_000);
    lab.token(key);
    lab.drive_to(86_400_000);
    assert_eq!(lab.requests(), 1);
    assert_eq!(lab.machine.poll_timeout(), None);
    assert!(lab.machine.is_idle());
}

#[test]
fn r30_keep_warm_needs_no_call_and_keeps_a_steady_period() {
    let (mut lab, key) = Lab::with_key();
    lab.machine.keep_warm(key, lab.now());
    let (mut due, mut times) = (0, Vec::new());
    for refresh in 0..20 {
        lab.drive_to(due);
        lab.answer(granted(&format!("t{refresh}"), 600));
        times.push(due);
        // The first refresh parts those that started together; from then on the period is steady.
        due += match refresh {
            1 => lab.status(key).refresh_at.unwrap().since(lab.unix(due)).as_millis() as u64,
            _ => 450_000,
        };
    }
    assert_eq!(lab.times(), times);
    // As often as it was asked for, it has to be taken back.
    lab.machine.keep_warm(key, lab.now());
    lab.machine.keep_cold(key, lab.now());
    lab.drive_to(due);
    assert_eq!(lab.requests(), 21);
    lab.answer(granted("last", 600));
    lab.machine.keep_cold(key, lab.now());
    lab.drive_to(86_400_000);
    assert_eq!(lab.requests(), 21);
    assert_eq!(lab.machine.poll_timeout(), None);
}

#[test]
fn r30_a_warm_key_survives_failures_rejections_and_clocks_that_step() {
    let (mut lab, key) = Lab::with_key();
    lab.machine.keep_warm(key, lab.now());
    lab.drive_to(0);
    lab.answer(oauth_error(400, "invalid_client"));
    // The wall clock goes forward, the machine looks at its timers, and the wall clock comes back.
    lab.wall_forward(secs(50));
    lab.machine.keep_warm(key, lab.now());
    lab.wall_back(secs(50));
    lab.drive_to(60_000);
    assert_eq!(lab.times(), [0, 60_000]);
    lab.answer(granted("first", 600));
    let token = lab.machine.peek(key, lab.now()).unwrap().token;
    lab.machine.invalidate(token.id(), lab.now());
    lab.drive_to(61_000);
    assert_eq!(lab.times(), [0, 60_000, 60_000]);
    lab.fail(FailureKind::Io);
    lab.drive_to(80_000);
    lab.answer(granted("second", 600));
    assert!(lab.machine.peek(key, lab.now()).is_some());
}

#[test]
fn r28_r30_a_warm_key_whose_refresh_failed_asks_again_while_its_token_lives() {
    let (mut lab, key) = Lab::with_token(600);
    lab.machine.keep_warm(key, lab.now());
    lab.drive_to(450_000);
    lab.fail(FailureKind::Io);
    lab.drive_to(589_999);
    // After 65 to 85 % of the 140 s that are left.
    let [_, 450_000, again] = lab.times()[..] else { panic!("{:?}", lab.times()) };
    assert!((541_000..=569_000).contains(&again), "{again}");
}

#[test]
fn r30_a_warm_key_that_backs_off_waits_for_its_refresh_where_that_becomes_late_meanwhile() {
    let mut asked = Vec::new();
    for seed in 0..50 {
        let mut lab = Lab::seeded(Policy::default(), seed);
        let (key, other) = (lab.key("shop"), lab.key("other"));
        lab.fetch(key, "first", 3_600);
        lab.machine.keep_warm(key, lab.now());
        lab.drive_to(2_700_000);
        lab.fail(FailureKind::Io);
        // Long after the failure, as its own short lifetimes go, another key finds the address crowded.
        lab.advance_to(3_100_000);
        lab.fetch(other, "short", 40);
        lab.advance_to(3_130_000);
        lab.token(other);
        lab.answer(status(429));
        lab.drive_to(3_589_999);
        let (at, of) = lab.wire[4];
        assert_eq!(of, key);
        asked.push(at);
    }
    // The back-off alone would have ended from 3,278 to 3,456 s: 65 to 85 % of the 890 s that were left.
    let least = asked.iter().min().unwrap();
    assert_eq!(*least, 3_384_000, "0.94 of 3,600 s");
}

#[test]
fn r30_a_warm_key_stays_in_the_queue_when_its_last_caller_leaves() {
    let (mut lab, key) = Lab::with_key();
    lab.machine.keep_warm(key, lab.now());
    lab.drive_to(0);
    lab.answer(retry_after(status(429), "100"));
    let waiter = lab.wait_within(key, secs(300));
    lab.cancel(waiter);
    lab.drive_to(103_000);
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r30_calls_keep_a_steady_period_and_only_the_first_refresh_draws_the_next_one() {
    let times = |seed| {
        let mut lab = Lab::seeded(Policy::default(), seed);
        let key = lab.key("shop");
        lab.fetch(key, "t0", 600);
        for second in 1..7_200 {
            lab.drive_to(second * 1000);
            lab.token(key);
            if !lab.sends.is_empty() {
                lab.answer(granted(&format!("t{second}"), 600));
            }
        }
        lab.times()
    };
    let mut drawn = Vec::new();
    for seed in 0..100 {
        let times = times(seed);
        let periods: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(periods.iter().enumerate().all(|(life, period)| life == 1 || *period == 450_000), "{periods:?}");
        drawn.push(periods[1] / 1_000);
    }
    // Those that started together would meet an outage together, so they part: over half of a period.
    let (least, most) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
    assert!((225..=240).contains(least) && (435..=450).contains(most), "{drawn:?}");
}

#[test]
fn r30_refreshes_are_late_for_long_after_one_was_throttled_and_come_back_to_early() {
    let (mut lab, key) = Lab::with_token(600);
    lab.advance_to(450_000);
    assert_eq!(lab.token(key), "first");
    lab.answer(status(429));
    // It leaves the slots to the others, until it is late itself: at 0.94 of 600 s.
    assert_eq!(lab.status(key).refresh_at, Some(lab.unix(564_000)));
    lab.drive_to(563_999);
    assert_eq!((lab.token(key).as_str(), lab.requests()), ("first", 2));
    lab.advance_to(564_000);
    assert_eq!((lab.token(key).as_str(), lab.requests()), ("first", 3));
    lab.answer(granted("second", 600));

    // Late for two hundred lifetimes, half as late after three hundred, early after four hundred.
    for (lives, age) in [(200, 564_000), (300, 507_000), (400, 450_000)] {
        lab.drive_to(450_000 + lives * 600_000);
        let waiter = lab.wait(key);
        lab.answer(granted(&format!("after {lives}").replace(' ', "-"), 600));
        lab.result(waiter).unwrap();
        let sent = lab.elapsed();
        assert_eq!(lab.status(key).refresh_at, Some(lab.unix(sent + age)), "{lives} lives");
    }
}

#[test]
fn r30_a_first_request_that_is_throttled_makes_refreshes_late_only_where_it_waited_for_long() {
    // An early period, less the 420 s in which a bucket fills: half of the 30 s that are left.
    for (seconds, age) in [(15, 450_000), (16, 564_000)] {
        let (mut lab, key) = Lab::with_key();
        lab.wait_within(key, secs(5));
        lab.answer(retry_after(status(429), "5"));
        lab.drive_to(seconds * 1_000);
        lab.wait(key);
        lab.answer(granted("first", 600));
        assert_eq!(lab.status(key).refresh_at, Some(lab.unix(seconds * 1_000 + age)));
    }
}

#[test]
fn r30_a_failure_makes_refreshes_early_again_and_spreads_the_next_one() {
    let (mut ages, mut throttled) = (Vec::new(), Vec::new());
    for seed in 0..200 {
        let mut lab = Lab::seeded(Policy::default(), seed);
        let key = lab.key("shop");
        lab.fetch(key, "first", 600);
        lab.advance_to(450_000);
        lab.token(key);
        lab.answer(status(429));
        lab.advance_to(564_000);
        lab.token(key);
        lab.answer(status(500));
        lab.advance_to(587_000);
        lab.token(key);
        lab.answer(granted("second", 600));
        ages.push(lab.status(key).refresh_at.unwrap().since(lab.unix(587_000)).as_secs());
        // A throttle says nothing for a while after it.
        lab.advance_to(1_040_000);
        lab.token(key);
        lab.answer(status(429));
        assert_eq!(lab.status(key).refresh_at, Some(lab.unix(1_040_000)), "still due");
        // But since it met a throttle, the token that comes is refreshed at a time of its own.
        lab.advance_to(1_060_000);
        lab.token(key);
        lab.answer(granted("third", 600));
        throttled.push(lab.status(key).refresh_at.unwrap().since(lab.unix(1_060_000)).as_secs());
    }
    for ages in [ages, throttled] {
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!((225..240).contains(least) && (435..=450).contains(most), "{least}..{most}");
    }
}

#[test]
fn r30_a_limiter_that_holds_a_request_gives_it_a_place_of_its_own() {
    let mut lab = Lab::new();
    let key = lab.key("shop");
    lab.wait(key);
    lab.advance_to(40_000);
    lab.answer(granted("first", 600));
    assert_eq!(lab.status(key).refresh_at, Some(lab.unix(490_000)), "0.75 of 600 s after the answer");
}

#[test]
fn r30_a_first_request_that_was_held_for_ten_seconds_says_nothing_of_throttles() {
    for (held, age) in [(9_999, 564_000), (10_000, 450_000)] {
        let (mut lab, key) = Lab::with_key();
        lab.wait_within(key, secs(5));
        lab.answer(retry_after(status(429), "5"));
        lab.drive_to(16_000);
        lab.wait(key);
        lab.advance(millis(held));
        lab.answer(granted("first", 600));
        let refreshed = lab.status(key).refresh_at.unwrap();
        lab.advance_to(refreshed.since(lab.unix(0)).as_millis() as u64);
        lab.token(key);
        lab.answer(granted("second", 600));
        assert_eq!(lab.status(key).refresh_at, Some(refreshed + millis(age)), "held for {held} ms");
    }
}

#[test]
fn r30_a_first_request_is_never_delayed() {
    let mut lab = Lab::new();
    for client in 0..21 {
        lab.advance(millis(1));
        let key = lab.key(&format!("client-{client}"));
        lab.wait(key);
        assert_eq!(lab.requests(), client + 1);
    }
    assert!(lab.events.iter().all(|event| !matches!(event, Event::Deferred { .. })));
}

#[test]
fn the_reason_of_each_request_is_told() {
    let (mut lab, key) = Lab::with_token(600);
    lab.advance_to(450_000);
    lab.token(key);
    lab.answer(granted("second", 600));
    lab.advance_to(1_100_000);
    lab.wait(key);
    lab.answer(granted("third", 600));
    let third = lab.machine.peek(key, lab.now()).unwrap().token;
    lab.machine.invalidate(third.id(), lab.now());
    lab.wait(key);
    let reasons: Vec<_> = (lab.events.iter())
        .filter_map(|event| match event {
            Event::Requested { reason, .. } => Some(*reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [Reason::First, Reason::Refresh, Reason::Expired, Reason::Rejected]);
    let numbers = lab.events.iter().filter_map(|event| match event {
        Event::Requested { op, .. } => Some(op.index()),
        _ => None,
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn while_outputs_are_queued_poll_timeout_says_so() {
    let mut lab = Lab::new();
    let key = lab.key("shop");
    assert_eq!(lab.machine.poll_timeout(), None);
    let _ = lab.machine.acquire(key, None, lab.now());
    let timeout = lab.machine.poll_timeout().unwrap();
    assert_eq!((timeout.at, timeout.reason), (Mono::default(), storm_auth_core::machine::TimeoutReason::Output));
    assert!(!lab.machine.is_idle());
    // Drained in part, it still does.
    assert!(lab.machine.poll_output().is_some());
    assert_eq!(lab.machine.poll_timeout(), Some(timeout));
}

#[test]
fn r24_nobody_asks_before_there_is_something_to_do() {
    let (mut lab, key) = Lab::with_token(3_600);
    lab.advance_to(2_700_000);
    lab.token(key);
    lab.answer(status(429)); // from now on refreshes are late: at 0.94 of the life
    lab.advance_to(2_800_000);
    lab.token(key);
    assert_eq!(lab.machine.peek(key, lab.now()).unwrap().look.mono, lab.mono(3_384_000));
}

#[test]
fn r29_a_warm_key_whose_tokens_live_for_no_time_backs_off() {
    let mut policy = Policy::default();
    policy.budget = Budget::unlimited();
    let mut lab = Lab::with_policy(policy);
    let key = lab.key("shop");
    lab.machine.keep_warm(key, lab.now());
    lab.drive(secs(1));
    for _ in 0..100 {
        if !lab.sends.is_empty() {
            lab.answer(granted("gone", 0));
        }
        lab.drive(Duration::from_millis(10));
    }
    assert!(lab.requests() < 10, "{}", lab.requests());
}

#[test]
fn r30_a_warm_key_that_was_throttled_waits_for_its_late_refresh() {
    let (mut lab, key) = Lab::with_token(3_600);
    lab.machine.keep_warm(key, lab.now());
    lab.drive_to(2_700_000);
    lab.answer(status(429));
    lab.drive_to(3_383_999);
    assert_eq!(lab.requests(), 2);
    lab.drive_to(3_384_000);
    assert_eq!(lab.requests(), 3);
}

#[test]
fn r35_a_refresh_that_failed_waits_for_a_part_of_what_is_left_and_no_longer_than_there_is_a_token() {
    let (mut lab, key) = Lab::with_token(3_600);
    lab.advance_to(2_700_000);
    assert_eq!(lab.token(key), "first");
    lab.answer(status(500));
    let peek = lab.machine.peek(key, lab.now()).unwrap();
    let wait = peek.look.mono.since(lab.now().mono).as_secs();
    assert!((578..=757).contains(&wait), "{wait} s of 890");
    // Once the token is gone, callers wait for a new one.
    lab.machine.invalidate(peek.token.id(), lab.now());
    lab.drive(millis(119_999));
    assert!(matches!(lab.acquire(key), Acquire::Failed(_)));
    lab.drive(millis(1));
    lab.wait(key);
    assert_eq!(lab.requests(), 3);
}
