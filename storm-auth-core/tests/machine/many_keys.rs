//! R29, R30, R34: many keys behind one limiter.

use storm_auth_core::machine::{Acquire, Reason};
use storm_auth_core::{Budget, Credentials, Event, HttpHosts, Key, KeyId, Policy, Scope, TokenUrl};

use crate::harness::{Lab, granted, key, millis, oauth_error, retry_after, secs, status};

fn agency(lab: &mut Lab, clients: usize) -> Vec<KeyId> {
    (0..clients).map(|client| lab.key(&format!("client-{client}"))).collect()
}

#[test]
fn r29_an_agency_with_30_client_ids_starts_21_at_once_and_then_one_every_20_s() {
    let mut lab = Lab::new();
    let keys = agency(&mut lab, 30);
    let waiters: Vec<_> = keys.iter().map(|key| lab.wait_within(*key, secs(600))).collect();
    while !lab.sends.is_empty() {
        lab.answer(granted("t", 3_600));
    }
    for _ in 0..9 {
        lab.drive(secs(20));
        lab.drive(crate::harness::millis(1_000));
        while !lab.sends.is_empty() {
            lab.answer(granted("t", 3_600));
        }
    }
    // 21 at once; one slot later, with half a second once; then one every slot. 20 ms each for what nginx may drop.
    let expected: Vec<_> = (0..21).map(|_| 0).chain((1..=9).map(|slot| slot * 20_020 + 880)).collect();
    assert_eq!(lab.times(), expected);
    for waiter in waiters {
        assert!(lab.result(waiter).is_ok());
    }
}

#[test]
fn r36_an_agencys_impatient_callers_are_told_when_each_ones_turn_comes() {
    let mut lab = Lab::new();
    let keys = agency(&mut lab, 24);
    let mut told = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        match lab.acquire_within(*key, secs(if number == 21 { 30 } else { 10 })) {
            Acquire::Wait(_) => {}
            Acquire::Failed(error) => told.push(error.retry_at().unwrap().since(lab.unix(0)).as_millis()),
            Acquire::Ready(token) => panic!("{token:?}"),
        }
    }
    // The one that waits has the next slot, so those who do not are told the one after it.
    assert_eq!(lab.requests(), 21);
    assert_eq!(told, [40_920, 40_920]);
}

#[test]
fn r30_when_the_budget_is_short_the_earliest_need_goes_first() {
    let mut policy = Policy::default();
    policy.budget = Budget::per_minute(3, 0);
    let mut lab = Lab::with_policy(policy);
    let keys = agency(&mut lab, 4);
    // Their tokens end at 1180, 895 and 1000 s; the last key has none.
    for (number, lifetime) in [1_190, 880, 960].into_iter().enumerate() {
        lab.advance_to(number as u64 * 25_000);
        lab.fetch(keys[number], "t", lifetime);
    }
    // A request of another key spends the slot just before all refreshes are asked for.
    let other = lab.key("other");
    lab.advance_to(770_000);
    lab.wait(other);
    lab.advance_to(775_000);
    for key in &keys[..3] {
        assert_eq!(lab.token(*key), "t");
    }
    lab.wait_within(keys[3], secs(100));
    lab.drive_to(900_000);
    let order: Vec<_> = lab.wire[4..].iter().map(|(_, key)| *key).collect();
    assert_eq!(order, [keys[3], keys[1], keys[2]], "none at all, then by expiry; the first is not due yet");
}

#[test]
fn r30_a_refresh_whose_token_expired_in_the_queue_is_not_sent_for_nobody() {
    let (mut lab, key) = Lab::with_token(600);
    let other = lab.key("other");
    lab.advance_to(570_000);
    lab.wait(other);
    lab.answer(retry_after(status(429), "60"));
    lab.token(key);
    lab.drive_to(6_400_000);
    assert_eq!(lab.requests(), 2);
    assert!(lab.machine.is_idle());
}

#[test]
fn r34_a_neighbour_is_not_starved_by_a_wrong_secret() {
    let mut lab = Lab::new();
    let (wrong, right) = (lab.key("wrong"), lab.key("right"));
    let mut served = 0;
    for _ in 0..600 {
        lab.drive(secs(1));
        let _ = lab.acquire(wrong);
        if matches!(lab.acquire(right), Acquire::Ready(_)) {
            served += 1;
        }
        while let Some(send) = lab.sends.front() {
            let answer = if send.key == wrong { oauth_error(400, "invalid_client") } else { granted("t", 600) };
            lab.answer(answer);
        }
    }
    assert_eq!(served, 599, "all but the first call");
    assert_eq!(lab.wire.iter().filter(|(_, key)| *key == wrong).count(), 3);
}

#[test]
fn r30_a_deferred_refresh_is_told() {
    let mut lab = Lab::new();
    let key = lab.key("shop");
    lab.fetch(key, "t", 600);
    let other = lab.key("other");
    lab.advance_to(560_000);
    lab.wait(other);
    lab.answer(retry_after(status(429), "10"));
    lab.token(key);
    lab.token(key);
    let deferred: Vec<_> = (lab.events.iter())
        .filter_map(|event| match event {
            Event::Deferred { key, reason, .. } => Some((*key, *reason)),
            _ => None,
        })
        .collect();
    assert_eq!(deferred, [(key, Reason::Refresh)], "once, not with every call");
}

#[test]
fn r36_that_a_first_request_has_to_wait_is_told_once() {
    let mut lab = Lab::new();
    for client in 0..21 {
        let key = lab.key(&format!("client {client}"));
        lab.fetch(key, "t", 600);
    }
    let late = lab.key("late");
    lab.wait(late);
    let told = |lab: &Lab| -> Vec<String> {
        let deferred = lab.events.iter().filter(|event| matches!(event, Event::Deferred { .. }));
        deferred.map(ToString::to_string).collect()
    };
    let first = told(&lab);
    lab.wait(late);
    assert_eq!(told(&lab), first, "once, not with every call");
    assert_eq!(first, ["key 21: token request, the first one, has to wait until 2023-11-14T22:13:40Z"]);
}

#[test]
fn r36_a_wait_is_told_again_where_it_ends_more_than_a_second_later_than_was_told() {
    let mut lab = Lab::new();
    for client in 0..21 {
        let key = lab.key(&format!("client {client}"));
        lab.fetch(key, "t", 600);
    }
    let late = lab.key("late");
    let mut told = Vec::new();
    for forward in [0, 1_000, 1] {
        lab.wall_forward(millis(forward));
        let waiter = lab.wait(late);
        lab.cancel(waiter);
        told.push(lab.events.iter().filter(|event| matches!(event, Event::Deferred { .. })).count());
    }
    assert_eq!(told, [1, 1, 2]);
}

#[test]
fn r6_keys_are_the_same_by_url_client_and_set_of_scopes() {
    let mut lab = Lab::new();
    let base = key("shop", "S3cret");
    let id = lab.machine.add_key(base.clone(), lab.now());
    let scoped = |scope: &str| base.for_scope(Scope::new(scope).unwrap());
    let two = lab.machine.add_key(scoped("lab qa"), lab.now());
    assert_ne!(two, id);
    assert_eq!(lab.machine.add_key(scoped("qa lab"), lab.now()), two);
    let default = lab.machine.add_key(base.for_scope(Scope::server_default()), lab.now());
    assert!(default != id && default != two);
    assert_ne!(lab.machine.add_key(base.for_credentials(Credentials::new("SHOP", "S3cret").unwrap()), lab.now()), id);
    let elsewhere = |url: &str| {
        let url = TokenUrl::parse(url, &HttpHosts::default()).unwrap();
        Key::new(url, base.credentials().clone(), base.scope().clone())
    };
    assert_eq!(lab.machine.add_key(elsewhere("https://IDENTITY.storm.io:443/1.0/connect/token"), lab.now()), id);
    assert_ne!(lab.machine.add_key(elsewhere("https://identity.storm.io/2.0/connect/token"), lab.now()), id);
    assert_eq!(lab.machine.status(lab.now()).keys.len(), 5);
}
