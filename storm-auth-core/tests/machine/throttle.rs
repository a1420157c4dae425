//! R29, R31 to R36: the budget, the gate, and who waits for them.

use core::time::Duration;

use http::{HeaderValue, header};
use storm_auth_core::machine::{Acquire, TimeoutReason};
use storm_auth_core::{AcquireError, Budget, Event, KeyId, Policy};

use crate::harness::{Lab, granted, json, millis, oauth_error, retry_after, secs, status};

/// How long the gate stays closed from now on.
fn gate(lab: &Lab) -> Duration {
    lab.machine.status(lab.now()).gate_closed_until.map_or(Duration::ZERO, |until| until.since(lab.now().unix))
}

/// Calls every 100 ms until `end` (in seconds), and answers each request at once.
fn insist(
    lab: &mut Lab,
    key: KeyId,
    end: u64,
    mut answer: impl FnMut() -> http::Response<storm_auth_core::wire::response::ResponseBody>,
) {
    while lab.elapsed() < end * 1000 {
        lab.drive(millis(100));
        let _ = lab.acquire(key);
        while !lab.sends.is_empty() {
            lab.answer(answer());
        }
    }
}

#[test]
fn r29_a_key_gets_three_requests_at_once_and_then_one_per_20_s() {
    let (mut lab, key) = Lab::with_key();
    for _ in 0..3 {
        lab.wait(key);
        lab.answer(granted("zero", 0));
    }
    let waiter = lab.wait(key);
    assert!(lab.sends.is_empty());
    assert_eq!(lab.machine.poll_timeout().unwrap().reason, TimeoutReason::NextSlot);
    lab.drive_to(20_000);
    lab.answer(granted("fourth", 0));
    assert_eq!(lab.result(waiter).unwrap().expose(), "fourth");
    lab.wait(key);
    lab.drive_to(40_000);
    assert_eq!(lab.times(), [0, 0, 0, 20_000, 40_000]);
}

#[test]
fn r29_no_answer_that_is_given_for_ever_costs_more_than_three_at_once_and_one_per_20_s() {
    type Make = fn() -> http::Response<storm_auth_core::wire::response::ResponseBody>;
    let answers: [Make; 9] = [
        || granted("zero", 0),
        || granted("short", 1),
        || status(429),
        || retry_after(status(429), "1"),
        || retry_after(status(503), "0"),
        || status(500),
        || oauth_error(400, "invalid_client"),
        || json(200, "{}"),
        || retry_after(granted("short", 1), "1"),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let (mut lab, key) = Lab::with_key();
        insist(&mut lab, key, 600, answer);
        let times = lab.times();
        for (first, window) in times.iter().zip(times.windows(4)) {
            assert!(window[3] - first >= 20_000, "answer {number}: {window:?}");
        }
        for (first, window) in times.iter().zip(times.windows(13)) {
            assert!(window[12] - first >= 200_000, "answer {number}: {window:?}");
        }
        assert!(times.len() >= 3, "answer {number}: it was asked again");
    }
}

#[test]
fn r29_tokens_that_are_all_rejected_cost_no_more() {
    let (mut lab, key) = Lab::with_key();
    let mut number = 0;
    while lab.elapsed() < 600_000 {
        lab.drive(millis(100));
        if let Acquire::Ready(token) = lab.acquire(key) {
            lab.machine.invalidate(token.id(), lab.now());
        }
        while !lab.sends.is_empty() {
            number += 1;
            lab.answer(granted(&format!("t{number}"), 600));
        }
    }
    // Two fresh ones, and one a minute.
    assert!((10..=12).contains(&lab.requests()), "{:?}", lab.times());
}

#[test]
fn r29_the_budget_of_the_group_can_be_set_or_be_none() {
    let burst = |budget| {
        let mut policy = Policy::default();
        policy.budget = budget;
        let mut lab = Lab::with_policy(policy);
        for client in 0..100 {
            let key = lab.key(&format!("client-{client}"));
            let _ = lab.acquire_within(key, secs(600));
        }
        let at_once = lab.requests();
        lab.drive_to(60_000);
        (at_once, lab.requests())
    };
    assert_eq!(burst(Budget::default()), (21, 23));
    assert_eq!(burst(Budget::per_minute(60, 0)), (1, 59));
    assert_eq!(burst(Budget::per_minute(6, 4)), (5, 10));
    assert_eq!(burst(Budget::unlimited()), (100, 100));
}

#[test]
fn r31_r33_a_retry_after_is_digits_or_a_date_and_the_largest_counts() {
    let wait = |fields: &[&'static str], date: Option<&'static str>| {
        let (mut lab, key) = Lab::with_key();
        lab.wait(key);
        let mut response = fields.iter().fold(status(429), |response, field| retry_after(response, field));
        if let Some(date) = date {
            response.headers_mut().insert(header::DATE, HeaderValue::from_static(date));
        }
        lab.answer(response);
        gate(&lab).as_secs_f64()
    };
    let spread =
        |wait: f64, least: f64, most: f64| assert!(wait >= least && wait <= most, "{least} <= {wait} <= {most}");
    spread(wait(&["30"], None), 30.0, 32.0);
    spread(wait(&["30", "90", "7"], None), 90.0, 92.0);
    spread(wait(&["+90", "30"], None), 30.0, 32.0);
    // The clock of the lab starts on 14 November 2023 at 22:13:20.
    spread(wait(&["Tue, 14 Nov 2023 22:15:00 GMT"], None), 100.0, 102.0);
    let date = Some("Wed, 01 Jan 2020 00:00:00 GMT");
    spread(wait(&["Wed, 01 Jan 2020 00:00:50 GMT"], date), 50.0, 52.0);
    // A past date, zero and nonsense name no wait: about one slot.
    spread(wait(&["Tue, 31 Dec 2019 23:59:59 GMT"], date), 15.0, 25.0);
    spread(wait(&["0"], None), 15.0, 25.0);
    spread(wait(&["soon"], None), 15.0, 25.0);
}

#[test]
fn r32_nothing_is_sent_before_retry_after_says_up_to_an_hour() {
    for (field, seconds) in [("1", 1), ("45", 45), ("3600", 3_600), ("7200", 3_600), ("99999999999999999999", 3_600)] {
        let mut lab = Lab::new();
        let (key, other) = (lab.key("shop"), lab.key("erp"));
        lab.wait(key);
        lab.answer(retry_after(status(429), field));
        lab.machine.keep_warm(other, lab.now());
        let _ = lab.acquire_within(key, secs(10_000));
        lab.drive_to(seconds * 1000 - 1);
        assert_eq!(lab.requests(), 1, "Retry-After: {field}");
        lab.drive_to(seconds * 1000 + 2_000);
        assert!(lab.requests() >= 2, "Retry-After: {field}");
    }
}

#[test]
fn r34_a_throttle_or_any_retry_after_closes_one_gate_for_all() {
    let answers = [
        status(429),
        status(503),
        oauth_error(503, "temporarily_unavailable"),
        granted("t", 600),
        status(500),
        oauth_error(400, "invalid_scope"),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let mut lab = Lab::new();
        let (first, second, third, rejected) = (lab.key("a"), lab.key("b"), lab.key("c"), lab.key("d"));
        let token = lab.fetch(rejected, "d1", 600);
        lab.wait(first);
        lab.answer(retry_after(answer, "25"));
        assert!(lab.events.iter().any(|event| matches!(event, Event::GateClosed { retry_after: Some(_), .. })));
        // Another key's caller, a patient one, a forced refresh, and one that is kept warm.
        assert!(lab.acquire_within(second, secs(20)).is_failed_by_a_limit(), "answer {number}");
        lab.wait_within(second, secs(60));
        lab.machine.invalidate(token.id(), lab.now());
        lab.wait_within(rejected, secs(60));
        lab.machine.keep_warm(third, lab.now());
        lab.drive_to(24_999);
        assert_eq!(lab.requests(), 2, "answer {number}");
        lab.drive_to(100_000);
        assert!(lab.requests() >= 5, "answer {number}");
    }
}

trait FailedByALimit {
    fn is_failed_by_a_limit(&self) -> bool;
}

impl FailedByALimit for Acquire {
    fn is_failed_by_a_limit(&self) -> bool {
        matches!(self, Acquire::Failed(error) if error.is_rate_limited())
    }
}

#[test]
fn r34_a_shorter_wait_does_not_open_the_gate_earlier() {
    let mut lab = Lab::new();
    let (first, second) = (lab.key("a"), lab.key("b"));
    lab.wait(first);
    lab.wait(second);
    lab.answer(retry_after(status(429), "100"));
    let closed = gate(&lab);
    lab.answer(retry_after(status(429), "5"));
    assert_eq!(gate(&lab), closed);
}

#[test]
fn r35_a_throttle_without_retry_after_waits_about_one_slot_and_grows_only_after_ten_in_a_row() {
    let (mut lab, key) = Lab::with_key();
    let mut waits = Vec::new();
    for _ in 0..300 {
        lab.wait_within(key, secs(100_000));
        while lab.sends.is_empty() {
            lab.drive(secs(3));
        }
        lab.answer(status(429));
        waits.push(gate(&lab).as_secs());
    }
    assert!(waits[..10].iter().all(|wait| (14..=20).contains(wait)), "{waits:?}");
    assert!(waits[10..50].iter().all(|wait| (22..=30).contains(wait)), "{waits:?}");
    // A fiftieth of the time for which nothing else came, up to five minutes.
    let starved: u64 = waits[..100].iter().sum();
    assert!((starved * 3 / 200..=starved / 50 + 5).contains(&waits[100]), "{} after {starved} s", waits[100]);
    assert!(waits[290..].iter().all(|wait| (224..=300).contains(wait)), "{waits:?}");

    // A success ends the row.
    while lab.sends.is_empty() {
        lab.drive(millis(100));
    }
    lab.answer(granted("t", 600));
    let other = lab.key("erp");
    lab.wait(other);
    lab.answer(status(429));
    assert!((15..=20).contains(&gate(&lab).as_secs()));
}

#[test]
fn r35_throttles_of_requests_that_were_under_way_together_count_as_one() {
    // Somebody else behind this address emptied the bucket; twenty of our keys start at once and learn it.
    let mut lab = Lab::new();
    for client in 0..20 {
        let key = lab.key(&format!("client-{client}"));
        lab.wait(key);
    }
    lab.advance(millis(50));
    for _ in 0..20 {
        lab.answer(status(429));
    }
    assert!(gate(&lab) <= secs(25), "the gate is closed for {:?}", gate(&lab));
    assert_eq!(lab.machine.counters().throttled, 20);
}

#[test]
fn r35_a_throttle_says_that_the_burst_is_gone_whoever_used_it() {
    // One request of ours was throttled; of the 20 that our own count would let go, one goes, and then one per slot.
    let mut lab = Lab::new();
    let key = lab.key("first");
    lab.wait_within(key, millis(500));
    lab.answer(retry_after(status(429), "1"));
    lab.drive_to(3_000);
    for client in 0..4 {
        let key = lab.key(&format!("client-{client}"));
        lab.wait_within(key, secs(100));
    }
    lab.drive_to(100_000);
    assert_eq!(lab.times(), [0, 3_000, 20_520, 40_540, 60_560]);
}

#[test]
fn r35_throttles_are_spread_from_one_seed_to_the_next() {
    let wait = |seed| {
        let mut lab = Lab::seeded(Policy::default(), seed);
        let key = lab.key("shop");
        lab.wait(key);
        lab.answer(status(429));
        gate(&lab)
    };
    let waits: std::collections::BTreeSet<_> = (0..20).map(wait).collect();
    assert!(waits.len() > 15, "{waits:?}");
}

#[test]
fn r35_an_outage_leaves_enough_of_the_bucket_for_its_end() {
    // Ten keys, each called every second, and an endpoint that is down for 10 minutes.
    let mut lab = Lab::new();
    let keys: Vec<_> = (0..10).map(|client| lab.key(&format!("client-{client}"))).collect();
    while lab.elapsed() < 600_000 {
        lab.drive(secs(1));
        for key in &keys {
            let _ = lab.acquire(*key);
        }
        while !lab.sends.is_empty() {
            lab.fail(storm_auth_core::FailureKind::Connect);
        }
    }
    // Mean back-off is a minute then, so 10 keys cost 10 a minute at the most, and never more than the budget lets go.
    let left = lab.machine.status(lab.now()).budget_left;
    assert!(lab.requests() <= 21 + 30, "{} requests", lab.requests());
    // It is up again. Everybody has a token within the longest back-off and the slots that are missing.
    let mut served = 0;
    while lab.elapsed() < 600_000 + 120_000 + 200_000 && served < keys.len() {
        lab.drive(secs(1));
        for key in &keys {
            let _ = lab.acquire(*key);
        }
        while let Some(send) = lab.sends.front() {
            let token = format!("{:?}", send.op);
            let token: String = token.chars().filter(char::is_ascii_alphanumeric).collect();
            lab.answer(granted(&token, 3_600));
        }
        served = keys.iter().filter(|key| lab.machine.peek(**key, lab.now()).is_some()).count();
    }
    assert_eq!(served, keys.len(), "with {left} left in the bucket");
}

#[test]
fn r36_a_caller_that_cannot_wait_for_the_gate_fails_at_once_and_is_told_when() {
    let (mut lab, key) = Lab::with_key();
    let (short, long) = (lab.wait_within(key, secs(30)), lab.wait_within(key, secs(120)));
    lab.answer(retry_after(status(429), "60"));
    let AcquireError::RateLimited { retry_at, before: None } = lab.result(short).unwrap_err() else { panic!() };
    assert!(!lab.is_resolved(long));
    assert!(retry_at >= lab.unix(60_000) && retry_at <= lab.unix(62_000));

    let AcquireError::RateLimited { retry_at: told, .. } = lab.error(key) else { panic!() };
    assert_eq!(told, retry_at);
    lab.advance_to(35_000);
    let AcquireError::RateLimited { retry_at: told, .. } = lab.acquire_within(key, secs(20)).into_error() else {
        panic!()
    };
    assert_eq!(told, retry_at);
    // Whoever comes back when it was told to gets a request.
    lab.drive_to(retry_at.since(lab.unix(0)).as_millis() as u64);
    assert_eq!(lab.requests(), 2);
    lab.answer(granted("t", 600));
    assert_eq!(lab.result(long).unwrap().expose(), "t");
}

#[test]
fn r36_a_deadline_at_the_very_opening_of_the_gate_is_too_early() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(retry_after(status(429), "60"));
    let AcquireError::RateLimited { retry_at, .. } = lab.error(key) else { panic!() };
    let wait = retry_at.since(lab.now().unix);
    assert!(matches!(lab.acquire_within(key, wait), Acquire::Failed(AcquireError::RateLimited { .. })));
    lab.wait_within(key, wait + millis(1));
}

#[test]
fn r36_a_late_tick_sends_nothing_for_those_whose_deadline_has_passed() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.answer(retry_after(status(429), "5"));
    lab.advance(secs(600));
    lab.tick();
    assert_eq!(lab.requests(), 1);
    let error = lab.result(waiter).unwrap_err();
    assert_eq!(error, AcquireError::RateLimited { retry_at: lab.now().unix, before: None });
}

#[test]
fn r36_nothing_is_queued_for_a_caller_that_failed() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(retry_after(status(429), "60"));
    assert_eq!(lab.machine.poll_timeout(), None, "its only caller could not wait");
    lab.error(key);
    assert!(lab.machine.is_idle());
    assert_eq!(lab.machine.poll_timeout(), None);
    lab.drive_to(600_000);
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r36_whoever_cannot_wait_for_its_own_keys_spacing_fails_at_once() {
    let (mut lab, key) = Lab::with_key();
    for _ in 0..2 {
        lab.wait(key);
        lab.answer(granted("zero", 0));
    }
    // The third request of the burst is throttled for a second; the key's own slot comes only 20 s after the burst.
    let (short, long) = (lab.wait_within(key, secs(10)), lab.wait_within(key, secs(30)));
    lab.answer(retry_after(status(429), "1"));
    let AcquireError::RateLimited { retry_at, .. } = lab.result(short).unwrap_err() else { panic!() };
    assert_eq!(retry_at, lab.unix(20_000));
    lab.drive_to(20_000);
    lab.answer(granted("t", 600));
    assert!(lab.result(long).is_ok());
}

#[test]
fn r36_whoever_stands_too_far_behind_in_the_queue_fails_at_once() {
    // Three keys are throttled together. When the gate opens, the bucket has room for two of them; the third is 20 s behind.
    let mut lab = Lab::new();
    let keys = [lab.key("a"), lab.key("b"), lab.key("c")];
    let waiters = keys.map(|key| lab.wait_within(key, secs(30)));
    for _ in 0..3 {
        lab.answer(retry_after(status(429), "20"));
    }
    assert!(!lab.is_resolved(waiters[0]));
    assert!(!lab.is_resolved(waiters[1]));
    let error = lab.result(waiters[2]).unwrap_err();
    assert_eq!(error.retry_at(), Some(lab.unix(40_540)));
    lab.drive_to(25_000);
    assert_eq!(lab.requests(), 5);
}

#[test]
fn r36_a_waiter_whose_turn_did_not_come_is_told_when_it_comes() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait_within(key, secs(40));
    lab.answer(retry_after(status(429), "30"));
    // The next key's answer closes the gate for longer.
    assert!(!lab.is_resolved(waiter));
    lab.drive_to(33_000);
    lab.answer(retry_after(status(429), "30"));
    let error = lab.result(waiter).unwrap_err();
    assert!(error.is_rate_limited());
    assert!(error.retry_at().unwrap() >= lab.unix(60_000));
}

trait IntoError {
    fn into_error(self) -> AcquireError;
}

impl IntoError for Acquire {
    #[track_caller]
    fn into_error(self) -> AcquireError {
        match self {
            Acquire::Failed(error) => error,
            other => panic!("no error: {other:?}"),
        }
    }
}

/// R21, R28, R36: the monotonic clock slept through half of the gate, and the wall clock did not.
#[test]
fn r21_r28_r36_a_gate_that_was_slept_through_opens_when_the_wall_clock_says_so() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(retry_after(status(429), "600"));
    lab.suspend(secs(500));
    // Up to 2 s are spread on top of the 600.
    let error = lab.error(key);
    let left = error.retry_at().unwrap().since(lab.now().unix);
    assert!(left >= secs(100) && left <= secs(102), "{error:?}");
    let waiter = lab.wait_within(key, secs(103));
    lab.drive(left);
    lab.answer(granted("first", 600));
    assert!(lab.result(waiter).is_ok());
}

#[test]
fn r35_throttles_of_one_moment_count_as_one() {
    let mut lab = Lab::new();
    for client in 0..12 {
        let key = lab.key(&format!("client-{client}"));
        lab.wait(key);
    }
    for _ in 0..12 {
        lab.answer(status(429));
    }
    // Twelve in a row would wait for 300 s.
    let until = lab.machine.status(lab.now()).gate_closed_until.unwrap();
    assert!(until <= lab.unix(25_000), "{until}");
}
