//! R54: a machine that is copied into a forked child.

use http::HeaderValue;
use storm_auth_core::machine::Activity;
use storm_auth_core::{Counters, Event, FailureKind};

use crate::harness::{Lab, granted, secs, status};

#[test]
fn r54_a_child_forgets_what_is_under_way_and_knows_what_its_parent_knew() {
    let (mut lab, shop) = Lab::with_token(600);
    let erp = lab.key("erp");
    lab.machine.keep_warm(shop, lab.now());
    lab.wait(erp);
    let parents = lab.take_send(erp).op;
    lab.machine.start_anew(4_711, lab.now());
    lab.drain();

    // No waiter, no request, nobody who keeps warm: nothing waits for time to pass, and nothing is idle's opposite.
    assert!(lab.machine.is_idle());
    assert_eq!(lab.machine.poll_timeout(), None);
    assert_eq!(lab.status(erp).activity, Activity::Idle);
    assert_eq!(lab.machine.counters(), Counters::default());
    // The token is still good, and both requests came from this address.
    assert_eq!(lab.token(shop), "first");
    assert_eq!(lab.machine.status(lab.now()).budget_left, 19);
    // The parent's answer is none here; a request of the child's own is.
    lab.answer_op(parents, granted("parents", 600));
    assert!(matches!(lab.events.last(), Some(Event::LateReport { .. })));
    assert_eq!(lab.fetch(erp, "own", 600).expose(), "own");
    assert_eq!(lab.machine.counters().requests, 1);
}

#[test]
fn r54_a_gate_that_the_parent_felt_is_closed_for_its_child() {
    let (mut lab, key) = Lab::with_key();
    let waiter = lab.wait(key);
    let mut throttle = status(429);
    throttle.headers_mut().insert("retry-after", HeaderValue::from(100));
    lab.answer(throttle);
    lab.result(waiter).unwrap_err();
    lab.machine.start_anew(4_711, lab.now());
    lab.drain();
    assert!(lab.error(key).is_rate_limited());
    lab.advance(secs(140));
    lab.wait(key);
    assert_eq!(lab.requests(), 2);
}

#[test]
fn r54_r30_children_do_not_share_their_jitter() {
    let retry_at = |process: u32| {
        let (mut lab, key) = Lab::with_key();
        lab.machine.start_anew(process, lab.now());
        let times = (0..4).map(|_| {
            lab.wait(key);
            lab.fail(FailureKind::Io);
            let at = lab.error(key).retry_at().unwrap();
            lab.advance(secs(600));
            at
        });
        times.collect::<Vec<_>>()
    };
    assert_eq!(retry_at(1), retry_at(1));
    assert_ne!(retry_at(1), retry_at(2));
}
