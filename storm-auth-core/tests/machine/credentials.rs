//! R43 and R37: credentials that are replaced in place.

use storm_auth_core::{AcquireError, Credentials, Event, Failure, FailureKind, Field, KeyId};

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
