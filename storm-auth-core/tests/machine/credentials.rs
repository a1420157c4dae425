//! R43 and R37: credentials that are replaced in place, that are two for a while, and that come from somewhere.

use storm_auth_core::machine::{Action, Output};
use storm_auth_core::{AcquireError, Credentials, CredentialsFailure, Event, Failure, FailureKind, Field, Key, KeyId};

use crate::harness::{Lab, granted, json, key, oauth_error, retry_after, secs, status};

fn replace(lab: &mut Lab, key: KeyId, secret: &str) {
    lab.machine.set_credentials(key, Credentials::new("shop", secret).unwrap(), lab.now()).unwrap();
    lab.drain();
}

fn body(lab: &Lab) -> String {
    String::from_utf8(lab.sends.back().unwrap().request.body().as_bytes().to_vec()).unwrap()
}

#[test]
fn r43_the_next_request_uses_the_new_secret_and_the_token_stays() {
    let (mut lab, key) = Lab::with_token(600);
    replace(&mut lab, key, "new-one");
    assert!(lab.events.contains(&Event::CredentialsReplaced { key }));
    assert_eq!(lab.token(key), "first");
    assert_eq!(lab.requests(), 1);
    lab.advance_to(450_000);
    assert_eq!(lab.token(key), "first");
    assert!(body(&lab).contains("client_secret=new-one"));
}

#[test]
fn r43_a_late_error_of_the_old_secret_is_dropped_and_the_waiters_get_the_new_ones_token() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    replace(&mut lab, key, "new-one");
    let op = lab.answer(oauth_error(400, "invalid_client"));
    assert!(lab.events.contains(&Event::LateReport { op }));
    assert!(lab.events.iter().all(|event| !matches!(event, Event::Refused { .. })));
    assert!(!lab.is_resolved(waiter));
    assert!(body(&lab).contains("client_secret=new-one"));
    lab.answer(granted("t", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "t");
}

#[test]
fn r43_a_late_error_of_the_old_secret_leaves_no_trace_behind_a_429() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    replace(&mut lab, key, "new-one");
    lab.answer(oauth_error(400, "invalid_client"));
    lab.answer(retry_after(status(429), "60"));
    assert_eq!(lab.error(key).refusal(), None);
}

#[test]
fn r79_a_late_refusal_of_the_old_secret_is_counted_as_one() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    lab.machine.set_credentials(key, Credentials::new("shop", "n3w").unwrap(), lab.now()).unwrap();
    lab.answer(oauth_error(400, "invalid_client"));
    lab.drain();
    assert!(!lab.is_resolved(waiter));
    let counters = lab.machine.counters();
    assert_eq!((counters.refused, counters.unusable), (1, 0));
}

#[test]
fn r43_a_late_token_of_the_old_secret_is_taken() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    replace(&mut lab, key, "new-one");
    lab.answer(granted("old", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "old");
    assert_eq!(lab.token(key), "old");
}

#[test]
fn r37_a_refused_configuration_clears_at_once_when_the_credentials_change() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.advance_to(60_000);
    lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.error(key);
    replace(&mut lab, key, "new-one");
    assert_eq!(lab.status(key).error, None);
    let waiter = lab.wait(key);
    // And the next refusal is the first of its kind.
    lab.answer(oauth_error(400, "invalid_client"));
    let AcquireError::Configuration { retry_at, .. } = lab.result(waiter).unwrap_err() else { panic!() };
    assert_eq!(retry_at, lab.unix(120_000));
}

#[test]
fn r37_new_credentials_do_not_pass_a_closed_gate() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(retry_after(oauth_error(400, "invalid_client"), "100"));
    replace(&mut lab, key, "new-one");
    let error = lab.error(key);
    assert!(error.is_rate_limited() && !error.is_configuration());
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r37_a_warm_key_asks_with_the_new_credentials_by_itself() {
    let (mut lab, key) = Lab::with_key();
    lab.machine.keep_warm(key, lab.now());
    lab.drive_to(0);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.advance_to(10_000);
    replace(&mut lab, key, "new-one");
    lab.drive_to(11_000);
    assert_eq!(lab.times(), [0, 10_000]);
    assert!(body(&lab).contains("client_secret=new-one"));
}

#[test]
fn r43_adding_a_known_key_with_another_secret_replaces_it() {
    let (mut lab, first) = Lab::with_key();
    let same = lab.machine.add_key(key("shop", "S3cret"), lab.now());
    lab.drain();
    assert_eq!(same, first);
    assert_eq!(lab.events.len(), 1, "it was added once");
    let rotated = lab.machine.add_key(key("shop", "new-one"), lab.now());
    assert_eq!(rotated, first);
    lab.wait(first);
    assert!(body(&lab).contains("client_secret=new-one"));
}

#[test]
fn r43_another_client_id_is_another_key() {
    let (mut lab, key) = Lab::with_token(600);
    let error = lab.machine.set_credentials(key, Credentials::new("erp", "S3cret").unwrap(), lab.now()).unwrap_err();
    assert_eq!(error.field(), Field::ClientId);
    assert_eq!(lab.token(key), "first");
    lab.machine.remove_key(key, lab.now());
    assert!(lab.machine.set_credentials(key, Credentials::new("shop", "x").unwrap(), lab.now()).is_err());
}

#[test]
fn r58_a_late_answer_that_repeats_the_old_secret_shows_neither() {
    let echo = r#"{"error":"server_error","error_description":"bad secret 0123456789-former or QWERTYUIOP+latest"}"#;
    for way in 0..2 {
        let mut lab = Lab::new();
        let id = lab.machine.add_key(key("shop", "0123456789-former"), lab.now());
        let waiter = lab.wait(id);
        replace(&mut lab, id, "QWERTYUIOP+latest");
        match way {
            0 => _ = lab.answer(json(500, echo)),
            _ => {
                let op = lab.sends.pop_front().unwrap().op;
                lab.machine.handle_failure(op, Failure::new(FailureKind::Io, echo), lab.now());
                lab.drain();
            }
        }
        // The answer of the old secret is dropped, and its caller waits for the new one's.
        let told = if way == 0 { String::new() } else { format!("{:?}", lab.result(waiter).unwrap_err()) };
        let texts = format!("{told} {:?} {:?} {:?}", lab.transcript, lab.machine, lab.status(id));
        assert!(!texts.contains("01234567") && !texts.contains("QWERTYUI"), "{texts}");
    }
}

#[test]
fn r43_a_throttle_of_the_old_secret_still_closes_the_gate() {
    let (mut lab, key) = Lab::with_key();
    lab.wait_within(key, secs(100));
    replace(&mut lab, key, "new-one");
    lab.answer(retry_after(oauth_error(400, "invalid_client"), "60"));
    assert_eq!(lab.requests(), 1);
    lab.drive_to(62_000);
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r37_a_secret_that_is_set_again_unchanged_leaves_the_refusal_standing() {
    let mut lab = Lab::new();
    let id = lab.machine.add_key(key("shop", "wr0ng"), lab.now());
    let waiter = lab.wait(id);
    lab.answer(oauth_error(400, "invalid_client"));
    assert!(lab.result(waiter).is_err());
    replace(&mut lab, id, "wr0ng");
    assert!(lab.status(id).error.is_some_and(|error| error.is_configuration()));
    replace(&mut lab, id, "r1ght");
    lab.wait(id);
    assert_eq!(lab.requests(), 2);
    let credentials = lab.machine.key(id).unwrap().credentials();
    assert_eq!(credentials.secret().expose(), "r1ght");
}

// Two secrets, while one takes the other's place

/// A machine with one key that has two secrets, `former` and `latter`.
fn with_two() -> (Lab, KeyId) {
    let mut lab = Lab::new();
    let id = lab.machine.add_key(two("former", "latter"), lab.now());
    lab.drain();
    lab.events.clear();
    (lab, id)
}

fn two(first: &str, next: &str) -> Key {
    key("shop", "x").for_credentials(Credentials::new("shop", first).unwrap().with_next(next).unwrap())
}

fn set_two(lab: &mut Lab, key: KeyId, first: &str, next: &str) {
    lab.machine.set_credentials(key, two(first, next).credentials().clone(), lab.now()).unwrap();
    lab.drain();
}

/// The secrets of the requests that went out, in their order.
fn secrets(lab: &Lab) -> Vec<String> {
    let bodies = lab.bodies.iter().map(|body| String::from_utf8(body.clone()).unwrap());
    bodies
        .map(|body| body.split('&').find_map(|field| field.strip_prefix("client_secret=")).unwrap().to_owned())
        .collect()
}

#[test]
fn r43_the_other_secret_is_tried_at_once_and_kept_to() {
    let (mut lab, key) = with_two();
    let waiter = lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    assert!(!lab.is_resolved(waiter));
    assert!(lab.events.contains(&Event::SecretSwapped { key }));
    assert!(lab.events.iter().all(|event| !matches!(event, Event::Refused { .. })));
    lab.answer(granted("t", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "t");
    assert_eq!(lab.times(), [0, 0]);
    lab.advance_to(450_000);
    lab.token(key);
    assert_eq!(secrets(&lab), ["former", "latter", "latter"]);
    assert_eq!(lab.machine.key(key).unwrap().credentials().secret().expose(), "latter");
    let counters = lab.machine.counters();
    assert_eq!((counters.requests, counters.refused, counters.granted), (3, 1, 1));
}

#[test]
fn r43_a_refresh_with_the_other_secret_makes_nobody_wait() {
    let (mut lab, key) = with_two();
    lab.fetch(key, "first", 600);
    lab.advance_to(450_000);
    assert_eq!(lab.token(key), "first");
    lab.answer(oauth_error(401, "invalid_client"));
    assert_eq!(lab.token(key), "first");
    lab.answer(granted("second", 600));
    assert_eq!(lab.token(key), "second");
    assert_eq!(secrets(&lab), ["former", "former", "latter"]);
}

#[test]
fn r37_when_both_are_refused_one_request_each_probes_with_the_other_one() {
    let (mut lab, key) = with_two();
    let waiter = lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.answer(oauth_error(400, "invalid_client"));
    let AcquireError::Configuration { retry_at, .. } = lab.result(waiter).unwrap_err() else { panic!() };
    assert_eq!(retry_at, lab.unix(60_000));
    lab.error(key);
    for at in [60_000, 360_000, 660_000] {
        lab.advance_to(at - 1);
        lab.error(key);
        lab.advance_to(at);
        lab.wait(key);
        lab.answer(oauth_error(400, "invalid_client"));
    }
    assert_eq!(lab.times(), [0, 0, 60_000, 360_000, 660_000]);
    assert_eq!(secrets(&lab), ["former", "latter", "former", "latter", "former"]);
    // Once one of them has worked, the other one is tried again.
    lab.advance_to(960_000);
    lab.fetch(key, "t", 600);
    lab.advance_to(1_410_000);
    lab.token(key);
    lab.answer(oauth_error(400, "invalid_client"));
    assert_eq!(secrets(&lab)[5..], ["latter", "latter", "former"]);
}

#[test]
fn r37_only_an_invalid_client_is_answered_with_the_other_secret() {
    for answer in [oauth_error(400, "invalid_scope"), oauth_error(400, "unauthorized_client"), status(401)] {
        let (mut lab, key) = with_two();
        let waiter = lab.wait(key);
        lab.answer(answer);
        assert!(lab.result(waiter).unwrap_err().is_configuration());
        assert_eq!(lab.requests(), 1);
        lab.advance_to(60_000);
        lab.wait(key);
        assert_eq!(secrets(&lab), ["former", "former"]);
    }
}

#[test]
fn r36_r43_who_cannot_wait_for_the_other_secrets_request_is_told_when_to_come_back() {
    let (mut lab, key) = with_two();
    let (hasty, patient) = (lab.wait_within(key, secs(30)), lab.wait_within(key, secs(100)));
    lab.answer(retry_after(oauth_error(400, "invalid_client"), "60"));
    assert!(lab.result(hasty).unwrap_err().is_rate_limited());
    assert!(!lab.is_resolved(patient));
    assert_eq!(lab.requests(), 1);
    lab.drive_to(62_000);
    lab.answer(granted("t", 600));
    assert_eq!(lab.result(patient).unwrap().expose(), "t");
    assert_eq!(secrets(&lab), ["former", "latter"]);
}

#[test]
fn r29_two_secrets_take_no_more_than_their_keys_share() {
    let (mut lab, key) = with_two();
    lab.machine.keep_warm(key, lab.now());
    lab.drain();
    for _ in 0..200 {
        match lab.sends.is_empty() {
            true => lab.drive(secs(5)),
            false => _ = lab.answer(oauth_error(400, "invalid_client")),
        }
    }
    assert_eq!(lab.times()[..5], [0, 5_000, 65_000, 365_000, 665_000]);
}

#[test]
fn r43_the_same_two_in_another_order_change_nothing_and_another_pair_begins_anew() {
    let (mut lab, key) = with_two();
    lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.answer(granted("t", 20));
    lab.events.clear();
    set_two(&mut lab, key, "former", "latter");
    assert_eq!(lab.events, []);
    lab.advance_to(20_000);
    lab.wait(key);
    assert_eq!(secrets(&lab)[2], "latter");
    // A third one: the first of the new pair goes first.
    set_two(&mut lab, key, "third", "latter");
    assert_eq!(lab.events.pop(), Some(Event::CredentialsReplaced { key }));
    lab.answer(oauth_error(400, "invalid_client"));
    lab.drive_to(40_000);
    assert_eq!(secrets(&lab)[3], "third");
}

#[test]
fn r43_an_error_of_a_secret_that_is_in_no_pair_any_more_is_dropped() {
    let (mut lab, key) = with_two();
    let waiter = lab.wait(key);
    set_two(&mut lab, key, "third", "fourth");
    let op = lab.answer(oauth_error(400, "invalid_client"));
    assert!(lab.events.contains(&Event::LateReport { op }));
    assert!(!lab.is_resolved(waiter));
    // Neither of the new ones was refused by it.
    lab.answer(oauth_error(400, "invalid_client"));
    lab.answer(granted("t", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "t");
    assert_eq!(secrets(&lab), ["former", "third", "fourth"]);
}

#[test]
fn r43_a_secret_that_is_refused_after_it_became_the_other_one_is_not_tried_again() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    set_two(&mut lab, key, "new-one", "S3cret");
    lab.answer(oauth_error(400, "invalid_client"));
    assert!(!lab.is_resolved(waiter));
    lab.answer(oauth_error(400, "invalid_client"));
    assert!(lab.result(waiter).unwrap_err().is_configuration());
    assert_eq!(secrets(&lab), ["S3cret", "new-one"]);
}

#[test]
fn r37_a_second_secret_clears_a_refusal_and_is_tried() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    set_two(&mut lab, key, "S3cret", "new-one");
    let waiter = lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.answer(granted("t", 600));
    assert!(lab.result(waiter).is_ok());
    assert_eq!(secrets(&lab), ["S3cret", "S3cret", "new-one"]);
}

#[test]
fn r58_no_text_shows_either_of_two_secrets() {
    let echo = r#"{"error":"invalid_client","error_description":"0123456789-former, QWERTYUIOP+latest"}"#;
    let mut lab = Lab::new();
    let id = lab.machine.add_key(two("0123456789-former", "QWERTYUIOP+latest"), lab.now());
    lab.machine.renew_credentials(id, lab.now());
    let waiter = lab.wait(id);
    lab.answer(json(400, echo));
    lab.answer(json(400, echo));
    let told = lab.result(waiter).unwrap_err();
    lab.found(Err(CredentialsFailure::new(echo)));
    assert!(
        matches!(&lab.events.last(), Some(Event::CredentialsFailed { detail, .. }) if detail.contains("[redacted]"))
    );
    let events: Vec<_> = lab.events.iter().map(|event| event.to_string()).collect();
    let key = lab.machine.key(id).unwrap().credentials();
    let texts =
        format!("{told} {told:?} {events:?} {:?} {:?} {:?} {key:?}", lab.transcript, lab.machine, lab.status(id));
    assert!(!texts.contains("01234567") && !texts.contains("QWERTYUI"), "{texts}");
    assert!(format!("{key:?}").ends_with("secret: [client secret], next: [client secret] }"));
}

#[test]
fn r58_what_a_place_says_shows_no_secret_that_a_request_was_sent_with() {
    let mut lab = Lab::new();
    let key = lab.machine.add_key(two("0123456789-former", "QWERTYUIOP+latest"), lab.now());
    lab.machine.renew_credentials(key, lab.now());
    lab.wait(key);
    let now = lab.now();
    lab.machine.set_credentials(key, Credentials::new("shop", "another-one").unwrap(), now).unwrap();
    lab.found(Err(CredentialsFailure::new("no such file: 0123456789-former")));
    let Some(Event::CredentialsFailed { detail, .. }) = lab.events.last() else { panic!("{:?}", lab.events) };
    assert_eq!(detail, "no such file: [redacted]");
}

// Credentials that come from somewhere

/// A machine with one key whose credentials come from somewhere.
fn renewable() -> (Lab, KeyId) {
    let (mut lab, key) = Lab::with_key();
    lab.machine.renew_credentials(key, lab.now());
    lab.drain();
    lab.events.clear();
    (lab, key)
}

fn found(lab: &mut Lab, secret: &str) {
    lab.found(Ok(Credentials::new("shop", secret).unwrap()));
}

#[test]
fn r43_it_is_looked_where_the_credentials_come_from_before_each_request() {
    let (mut lab, key) = renewable();
    assert!(lab.looks.is_empty());
    let _ = lab.machine.acquire(key, None, lab.now());
    let mut order = Vec::new();
    while let Some(output) = lab.machine.poll_output() {
        match output {
            Output::Perform(Action::Credentials(request)) => {
                assert_eq!(request.key, key);
                order.push("look");
            }
            Output::Perform(Action::Send(_)) => order.push("send"),
            _ => {}
        }
    }
    assert_eq!(order, ["look", "send"]);
}

#[test]
fn r43_a_look_that_hangs_is_given_up_after_ten_minutes() {
    let (mut lab, key) = renewable();
    lab.fetch(key, "first", 400);
    let hangs = lab.looks.pop_front().unwrap();
    for (at, looks) in [(300_000, 0), (600_000, 1)] {
        lab.advance_to(at);
        lab.token(key);
        assert_eq!(lab.looks.len(), looks, "{at}");
        lab.answer(granted(&at.to_string(), 400));
    }
    let now = lab.now();
    lab.machine.handle_credentials(hangs.op, Ok(Credentials::new("shop", "from long ago").unwrap()), now);
    lab.drain();
    assert!(lab.events.contains(&Event::LateReport { op: hangs.op }));
}

#[test]
fn r43_a_secret_that_was_changed_where_it_comes_from_costs_one_request() {
    let (mut lab, key) = renewable();
    lab.fetch(key, "first", 600);
    found(&mut lab, "S3cret");
    assert_eq!(lab.looks.len(), 0);
    lab.advance_to(450_000);
    lab.token(key);
    // The old secret is under way while the new one is found.
    found(&mut lab, "new-one");
    assert!(lab.events.contains(&Event::CredentialsReplaced { key }));
    lab.answer(oauth_error(400, "invalid_client"));
    lab.answer(granted("second", 600));
    assert_eq!(lab.token(key), "second");
    assert_eq!(secrets(&lab), ["S3cret", "S3cret", "new-one"]);
    // And where it comes late, its callers have failed, and the next one is served.
    lab.advance_to(1_100_000);
    found(&mut lab, "new-one");
    let waiter = lab.wait(key);
    lab.answer(oauth_error(400, "invalid_client"));
    lab.result(waiter).unwrap_err();
    found(&mut lab, "newest");
    assert_eq!(lab.status(key).error, None);
    lab.fetch(key, "third", 600);
    assert_eq!(secrets(&lab)[3..], ["new-one", "newest"]);
}

#[test]
fn r43_the_known_credentials_stay_in_use_where_none_are_found() {
    let (mut lab, key) = renewable();
    lab.fetch(key, "first", 600);
    let failure = CredentialsFailure::new("no such file");
    assert_eq!(failure.to_string(), "no such file");
    lab.found(Err(failure));
    assert_eq!(lab.events.pop(), Some(Event::CredentialsFailed { key, detail: "no such file".to_owned() }));
    lab.advance_to(450_000);
    lab.token(key);
    lab.found(Ok(Credentials::new("erp", "an0ther").unwrap()));
    let Some(Event::CredentialsFailed { detail, .. }) = lab.events.pop() else { panic!("{:?}", lab.events) };
    assert!(detail.contains("another client"), "{detail}");
    lab.answer(granted("second", 600));
    lab.advance_to(1_000_000);
    lab.token(key);
    assert_eq!(secrets(&lab), ["S3cret"; 3]);
}

#[test]
fn r37_a_correction_is_looked_for_once_in_ten_seconds_while_callers_are_refused() {
    let (mut lab, key) = renewable();
    lab.wait(key);
    found(&mut lab, "S3cret");
    lab.answer(oauth_error(400, "invalid_client"));
    let mut looks = Vec::new();
    for second in 0..30 {
        lab.advance_to(second * 1_000);
        lab.error(key);
        if !lab.looks.is_empty() {
            looks.push(second);
            found(&mut lab, "S3cret");
        }
    }
    assert_eq!(looks, [10, 20]);
    lab.advance_to(30_000);
    lab.error(key);
    // Who takes long is not asked again meanwhile.
    lab.advance_to(50_000);
    lab.error(key);
    assert_eq!(lab.looks.len(), 1);
    found(&mut lab, "new-one");
    assert_eq!(lab.status(key).error, None);
    lab.fetch(key, "t", 600);
    assert_eq!(lab.times(), [0, 50_000]);
}

#[test]
fn r37_nobody_looks_where_nobody_calls() {
    let (mut lab, key) = renewable();
    lab.wait(key);
    found(&mut lab, "S3cret");
    lab.answer(oauth_error(400, "invalid_client"));
    lab.drive(secs(3_600));
    assert_eq!((lab.looks.len(), lab.requests()), (0, 1));
}

/// A warm key whose secret was refused: its next look is ten seconds away.
fn warm_and_refused() -> (Lab, KeyId) {
    let (mut lab, key) = renewable();
    lab.machine.keep_warm(key, lab.now());
    lab.drive_to(0);
    found(&mut lab, "S3cret");
    lab.answer(oauth_error(400, "invalid_client"));
    assert_eq!(lab.machine.poll_timeout().map(|timeout| timeout.at), Some(lab.mono(10_000)));
    (lab, key)
}

#[test]
fn r37_a_warm_key_looks_for_a_correction_by_itself() {
    let (mut lab, key) = warm_and_refused();
    lab.drive_to(9_999);
    assert!(lab.looks.is_empty());
    lab.drive_to(10_000);
    found(&mut lab, "S3cret");
    lab.drive_to(20_000);
    found(&mut lab, "new-one");
    lab.drive_to(20_000);
    assert_eq!(lab.times(), [0, 20_000]);
    lab.answer(granted("t", 600));
    assert_eq!(lab.token(key), "t");
    found(&mut lab, "new-one");
    lab.drive_to(100_000);
    assert!(lab.looks.is_empty());
}

#[test]
fn r43_a_removed_key_has_no_look_before_it() {
    let (mut lab, key) = warm_and_refused();
    lab.machine.remove_key(key, lab.now());
    lab.drain();
    assert_eq!(lab.machine.poll_timeout(), None);
}

#[test]
fn r43_nothing_waits_for_a_look_and_none_outlives_its_key_or_the_end() {
    let (mut lab, key) = renewable();
    lab.fetch(key, "t", 600);
    assert_eq!(lab.looks.len(), 1);
    assert!(lab.machine.is_idle());
    lab.machine.remove_key(key, lab.now());
    let op = lab.looks[0].op;
    found(&mut lab, "new-one");
    assert_eq!(lab.events.pop(), Some(Event::LateReport { op }));

    let (mut lab, key) = renewable();
    let waiter = lab.wait(key);
    lab.machine.shut_down(lab.now());
    lab.answer(oauth_error(400, "invalid_client"));
    lab.result(waiter).unwrap_err();
    found(&mut lab, "S3cret");
    lab.advance_to(30_000);
    lab.error(key);
    assert!(lab.looks.is_empty() && lab.machine.is_idle());
}

#[test]
fn r54_a_forked_child_looks_for_itself() {
    let (mut lab, key) = renewable();
    lab.wait(key);
    lab.machine.start_anew(17, lab.now());
    found(&mut lab, "new-one");
    assert!(matches!(lab.events.pop(), Some(Event::LateReport { .. })));
    lab.wait(key);
    assert_eq!(lab.looks.len(), 1);
    found(&mut lab, "new-one");
    assert!(lab.events.contains(&Event::CredentialsReplaced { key }));
}
