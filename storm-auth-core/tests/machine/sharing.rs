//! R69, R71 to R76: what the machine asks of a store, and what it makes of the answers.

use core::time::Duration;
use std::sync::Arc;

use storm_auth_core::machine::{Acquire, Activity, RecordFault, Severity};
use storm_auth_core::store::{
    Lease, Order, Owner, Record, Seen, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore,
};
use storm_auth_core::{AcquireError, Cause, Config, Credentials, Event, FailureKind, KeyId, Settings, Unix};
use storm_auth_tests::memory_store::MemoryStore;

use crate::harness::{self, Lab, cause, granted, millis, oauth_error, retry_after, secs, status};

fn nothing() -> StoreReply {
    StoreReply::default()
}

fn lease(lease: Lease) -> StoreReply {
    StoreReply { lease, ..StoreReply::default() }
}

fn record(record: &Record) -> StoreReply {
    StoreReply { record: Some(record.clone()), ..StoreReply::default() }
}

/// Lets a key without a token find an empty store and win the lease; its request is out then.
#[track_caller]
fn lead(lab: &mut Lab) {
    assert!(matches!(lab.reply(nothing()), StoreCommand::Read));
    assert!(matches!(lab.reply(lease(Lease::Mine)), StoreCommand::Lease { .. }));
    assert_eq!(lab.sends.len(), 1);
}

/// The record that a process publishes of a token that it requested at this moment.
pub(crate) fn published(lab: &mut Lab, key: KeyId, token: &str, lifetime: u64) -> Record {
    let waiter = lab.wait(key);
    lead(lab);
    lab.answer(granted(token, lifetime));
    lab.result(waiter).unwrap();
    let StoreCommand::Publish { record, .. } = lab.reply(nothing()) else { panic!("nothing was published") };
    record
}

/// A record of another process, written when the lab's clocks start.
fn of_another(token: &str, lifetime: u64) -> Record {
    let (mut other, key) = Lab::sharing(99);
    published(&mut other, key, token, lifetime)
}

fn events(lab: &mut Lab) -> Vec<String> {
    core::mem::take(&mut lab.events).iter().map(ToString::to_string).collect()
}

#[test]
fn r72_the_record_is_read_and_the_lease_won_before_a_request_and_the_token_published_after_it() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    assert_eq!((lab.sends.len(), lab.stores.len()), (0, 1));
    assert_eq!(lab.status(key).activity, Activity::AskingStore);
    assert!(matches!(lab.reply(nothing()), StoreCommand::Read));
    assert_eq!((lab.sends.len(), lab.stores.len()), (0, 1));
    let StoreCommand::Lease { owner, ttl } = lab.reply(lease(Lease::Mine)) else { panic!("no lease was asked for") };
    assert_eq!(ttl, secs(10));
    assert!(lab.sends[0].leased);
    lab.advance(millis(80));
    lab.answer(granted("first", 600));
    // Its own callers do not wait for the store.
    assert_eq!(lab.result(waiter).unwrap().expose(), "first");
    assert!(!lab.machine.is_idle(), "it has to be published yet");
    let StoreCommand::Publish { owner: publisher, record } = lab.reply(nothing()) else { panic!("not published") };
    assert_eq!(publisher, Some(owner));
    assert_eq!((record.order.sent, record.expires_at), (lab.unix(0), lab.unix(600_000)));
    assert!(lab.machine.is_idle());
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r72_a_record_serves_in_place_of_a_request() {
    let of_another = of_another("theirs", 600);
    let (mut lab, key) = Lab::sharing(1);
    lab.advance(secs(100));
    let (one, other) = (lab.wait(key), lab.wait(key));
    lab.reply(record(&of_another));
    assert_eq!(lab.result(one).unwrap().expose(), "theirs");
    assert_eq!(lab.result(other).unwrap().expires_at(), lab.unix(590_000));
    assert_eq!((lab.requests(), lab.stores.len()), (0, 0));
    let counters = lab.machine.counters();
    assert_eq!((counters.store_hits, counters.store_misses), (1, 0));
    // Its times are those of the process that asked for it.
    let peek = lab.machine.peek(key, lab.now()).unwrap();
    assert_eq!(
        (peek.look.unix, peek.hard.unix, peek.hard.mono),
        (lab.unix(450_000), lab.unix(590_000), lab.mono(590_000))
    );
    assert_eq!(
        events(&mut lab).last().unwrap(),
        "key 0: token of another process taken until 2023-11-14T22:23:10Z, refreshed from 2023-11-14T22:20:50Z"
    );
}

#[test]
fn r72_a_record_that_was_written_before_the_lease_was_won_ends_the_matter() {
    let of_another = of_another("theirs", 600);
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(nothing());
    lab.reply(StoreReply { lease: Lease::Mine, ..record(&of_another) });
    assert_eq!(lab.result(waiter).unwrap().expose(), "theirs");
    let StoreCommand::Release { rest, failures, .. } = lab.reply(nothing()) else { panic!("the lease is kept") };
    assert_eq!((rest, failures), (Duration::ZERO, 0));
    assert_eq!(lab.requests(), 0);
    assert!(lab.machine.is_idle());
}

#[test]
fn r24_r72_a_refresh_asks_the_store_behind_the_callers_back() {
    let (mut lab, key) = Lab::sharing(1);
    published(&mut lab, key, "first", 600);
    lab.advance_to(450_000);
    assert_eq!(lab.token(key), "first");
    assert!(matches!(lab.reply(nothing()), StoreCommand::Read));
    assert_eq!(lab.token(key), "first");
    assert!(matches!(lab.reply(lease(Lease::Taken)), StoreCommand::Lease { .. }));
    // Another process sees to it; it is looked after within two seconds, by whoever calls then.
    assert_eq!(lab.status(key).activity, Activity::Following);
    let look = lab.machine.peek(key, lab.now()).unwrap().look.mono;
    assert!((lab.mono(451_000)..=lab.mono(452_000)).contains(&look), "{look:?}");
    lab.advance_to(452_000);
    assert_eq!(lab.token(key), "first");
    let (mut other, others) = Lab::sharing(2);
    other.advance_to(451_000);
    let second = published(&mut other, others, "second", 600);
    assert!(matches!(lab.reply(record(&second)), StoreCommand::Read));
    assert_eq!(lab.token(key), "second");
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r72_who_waits_looks_after_the_holder_four_times_a_second_or_more() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(lease(Lease::Taken));
    let mut looks = Vec::new();
    for _ in 0..8 {
        let before = lab.elapsed();
        let at = lab.machine.poll_timeout().unwrap().at;
        lab.advance_to(before + at.since(lab.mono(before)).as_millis() as u64);
        lab.tick();
        looks.push(lab.elapsed() - before);
        assert!(matches!(lab.reply(lease(Lease::Taken)), StoreCommand::Read));
    }
    assert!(looks.iter().all(|look| (125..=250).contains(look)), "{looks:?}");
    assert!(looks.iter().any(|look| *look != looks[0]), "they are spread");
    assert!(!lab.is_resolved(waiter));
    // The holder has gone: the lease is to be had.
    lab.advance(millis(250));
    lab.tick();
    lead(&mut lab);
    lab.answer(granted("own", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "own");
}

#[test]
fn r73_a_lease_is_renewed_for_as_long_as_its_request_is_under_way() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait_within(key, secs(100));
    lead(&mut lab);
    let mut renewed = Vec::new();
    while lab.elapsed() < 20_000 {
        let at = lab.machine.poll_timeout().unwrap().at;
        lab.advance_to(at.since(lab.mono(0)).as_millis() as u64);
        lab.tick();
        assert!(matches!(lab.reply(lease(Lease::Mine)), StoreCommand::Lease { ttl, .. } if ttl == secs(10)));
        renewed.push(lab.elapsed());
    }
    assert_eq!(renewed, [3_333, 6_666, 9_999, 13_332, 16_665, 19_998, 23_331]);
    lab.answer(granted("late", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "late");
    assert!(matches!(lab.reply(nothing()), StoreCommand::Publish { owner: Some(_), .. }));
    lab.drive(secs(60));
    assert!(lab.stores.is_empty(), "nothing is renewed any more");
}

#[test]
fn r73_a_lease_whose_request_fails_rests_for_as_long_as_its_holder() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lead(&mut lab);
    lab.fail(FailureKind::Connect);
    let retry_at = lab.result(waiter).unwrap_err().retry_at().unwrap();
    let StoreCommand::Release { rest, failures, .. } = lab.reply(nothing()) else { panic!("the lease is kept") };
    assert_eq!((lab.unix(0) + rest, failures), (retry_at, 1));

    // Another process does not ask meanwhile, and says why.
    let (mut other, others) = Lab::sharing(2);
    let waiter = other.wait(others);
    other.reply(StoreReply { lease: Lease::Resting(millis(2_500)), failures: 5, ..nothing() });
    let error = other.result(waiter).unwrap_err();
    assert_eq!(error.retry_at(), Some(other.unix(2_500)));
    assert_eq!(cause(error.clone()), Cause::FailedElsewhere);
    assert_eq!(
        error.to_string(),
        "another process that shares the token store asked in vain; look into that process's log for the reason; a call tries \
         again from 2023-11-14T22:13:22Z on"
    );
    assert_eq!(other.requests(), 0);
    // Then it is its turn, and its failure is the sixth.
    other.advance(millis(2_500));
    other.wait(others);
    lead(&mut other);
    other.fail(FailureKind::Connect);
    assert!(matches!(other.reply(nothing()), StoreCommand::Release { failures: 6, .. }));
}

#[test]
fn r37_r73_a_refused_configuration_rests_for_all() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lead(&mut lab);
    lab.answer(oauth_error(400, "invalid_client"));
    let StoreCommand::Release { rest, .. } = lab.reply(nothing()) else { panic!("the lease is kept") };
    assert_eq!(rest, secs(60));
}

#[test]
fn r71_r75_a_rest_that_is_absurd_is_not_believed() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(lease(Lease::Resting(Duration::MAX)));
    assert_eq!(lab.result(waiter).unwrap_err().retry_at(), Some(lab.unix(300_000)));
}

#[test]
fn r71_a_holder_that_hangs_is_left_and_the_order_alone_decides_what_is_published() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(lease(Lease::Lapsed));
    assert!(!lab.sends[0].leased);
    lab.answer(granted("alone", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "alone");
    assert!(matches!(lab.reply(nothing()), StoreCommand::Publish { owner: None, .. }));
    assert!(
        events(&mut lab)
            .contains(&"key 0: the process that holds the lease does not come to an end; going on alone".to_owned())
    );
}

#[test]
fn r71_a_store_that_never_frees_the_lease_is_followed_for_two_to_four_minutes() {
    let (mut lab, key) = Lab::sharing(1);
    while lab.sends.is_empty() {
        if lab.status(key).activity == Activity::Idle {
            lab.wait(key);
        }
        while !lab.stores.is_empty() {
            lab.reply(lease(Lease::Taken));
        }
        lab.drive(millis(100));
    }
    assert!((120_000..=240_500).contains(&lab.elapsed()), "{}", lab.elapsed());
    assert!(!lab.sends[0].leased);
}

#[test]
fn r71_r72_a_holder_is_followed_as_long_as_the_one_before() {
    let theirs = of_another("theirs", 600);
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lab.reply(lease(Lease::Taken));
    lab.advance(millis(250));
    lab.tick();
    lab.reply(record(&theirs));
    // Longer after the first one than any is followed.
    lab.advance_to(450_000);
    assert_eq!(lab.token(key), "theirs");
    lab.reply(lease(Lease::Taken));
    assert_eq!((lab.status(key).activity, lab.sends.len()), (Activity::Following, 0));
}

#[test]
fn r75_a_store_that_gives_the_lease_to_nobody_is_done_without() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lab.reply(nothing());
    assert!(matches!(lab.reply(lease(Lease::Free)), StoreCommand::Lease { .. }));
    assert_eq!((lab.sends.len(), lab.stores.len()), (1, 0));
}

#[test]
fn r75_without_its_store_a_process_goes_on_alone_and_says_so_once() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.store_fails();
    lab.answer(granted("alone", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "alone");
    lab.store_fails();
    assert!(lab.stores.is_empty(), "it is left alone for a while");
    let warning = lab.events.iter().find(|event| matches!(event, Event::StoreFailed { .. })).unwrap();
    assert_eq!(warning.severity(), Severity::Warn);
    assert!(
        warning.to_string().starts_with("the token store cannot be used, going on alone: it burns; asked again from ")
    );

    // It is asked again, and no second warning is given while it fails.
    for _ in 0..3 {
        lab.advance(secs(450));
        lab.token(key);
        lab.store_fails();
        let held = lab.sends.len();
        assert_eq!(held, 1, "its token is its own, so it asks at its own time");
        lab.answer(granted("alone-again", 600));
        lab.store_fails();
    }
    assert_eq!(lab.events.iter().filter(|event| matches!(event, Event::StoreFailed { .. })).count(), 1);
    assert_eq!(lab.machine.counters().store_failures, 8);

    // It works again: so does sharing.
    lab.advance(secs(450));
    lab.token(key);
    lead(&mut lab);
    assert!(events(&mut lab).contains(&"the token store works again".to_owned()));
}

#[test]
fn r75_a_store_that_can_be_read_alone_has_not_recovered() {
    let (mut lab, key) = Lab::sharing(1);
    for life in 0..5 {
        lab.advance_to(life * 600_000);
        lab.wait(key);
        lab.reply(nothing());
        lab.store_fails();
        lab.answer(granted(&format!("alone-{life}"), 600));
        lab.store_fails();
    }
    let failed = |event: &&Event| matches!(event, Event::StoreFailed { .. });
    let recovered = |event: &&Event| matches!(event, Event::StoreRecovered);
    assert_eq!(lab.events.iter().filter(failed).count(), 1);
    assert_eq!(lab.events.iter().filter(recovered).count(), 0);
    // It can be written again.
    lab.advance_to(3_000_000);
    lab.wait(key);
    lead(&mut lab);
    assert_eq!(lab.events.iter().filter(recovered).count(), 1);
    lab.answer(granted("shared", 600));
    lab.store_fails();
    assert_eq!(lab.events.iter().filter(failed).count(), 2);
}

#[test]
fn r44_r75_closing_does_not_wait_for_a_store_that_fails() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lab.store_fails();
    lab.answer(granted("alone", 600));
    lab.machine.shut_down(lab.now());
    assert_eq!(lab.stores.len(), 1, "its token is told once");
    assert!(lab.machine.is_idle());
}

#[test]
fn r36_calls_that_cannot_wait_tell_once_that_a_request_has_to() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait_within(key, secs(1));
    lead(&mut lab);
    lab.answer(retry_after(status(429), "300"));
    let told = |lab: &Lab| lab.events.iter().filter(|event| matches!(event, Event::Deferred { .. })).count();
    let before = told(&lab);
    for _ in 0..50 {
        lab.advance(millis(20));
        let _ = lab.acquire_within(key, millis(500));
        while !lab.stores.is_empty() {
            lab.reply(nothing());
        }
    }
    assert!(told(&lab) <= before + 1, "{} after {before}", told(&lab));
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r36_r71_who_waits_for_another_process_in_vain_is_told_so() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait_within(key, secs(3));
    lab.reply(lease(Lease::Taken));
    for _ in 0..30 {
        lab.drive(millis(250));
        if !lab.stores.is_empty() {
            lab.reply(lease(Lease::Taken));
        }
    }
    assert_eq!(lab.result(waiter).unwrap_err(), AcquireError::HeldElsewhere);
    assert_eq!(lab.requests(), 0);
    let text = AcquireError::HeldElsewhere.to_string();
    assert!(text.starts_with("no token came from the token store, or from the process that is to fetch one"), "{text}");
}

#[test]
fn r75_a_store_that_is_silent_costs_a_caller_one_second() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    let late = lab.asked().op;
    lab.drive_to(999);
    assert_eq!(lab.sends.len(), 0);
    lab.drive_to(1_000);
    assert_eq!(lab.times(), [1_000]);
    // What it says in the end is not heard.
    lab.machine.handle_store(late, Ok(lease(Lease::Mine)), lab.now());
    lab.drain();
    assert!(matches!(lab.events.last(), Some(Event::LateReport { .. })));
    lab.answer(granted("alone", 600));
    assert_eq!(lab.token(key), "alone");
    lab.store_fails();
    // The next caller does not wait for it again.
    lab.machine.invalidate(lab.machine.peek(key, lab.now()).unwrap().token.id(), lab.now());
    lab.wait(key);
    assert_eq!((lab.sends.len(), lab.stores.len()), (1, 0));
}

#[test]
fn r75_those_who_share_a_token_ask_at_times_of_their_own_when_the_store_is_lost() {
    let of_another = of_another("theirs", 600);
    let mut times: Vec<u64> = (0..50)
        .map(|seed| {
            let (mut lab, key) = Lab::sharing(seed);
            let waiter = lab.wait(key);
            lab.reply(record(&of_another));
            lab.result(waiter).unwrap();
            lab.advance_to(450_000);
            lab.token(key);
            lab.store_fails();
            while lab.sends.is_empty() {
                lab.drive(secs(1));
                lab.token(key);
            }
            lab.times()[0]
        })
        .collect();
    times.sort_unstable();
    // Over most of the 140 s that the token still lives.
    assert!(times[0] < 460_000 && times[49] > 560_000 && times[49] <= 577_000, "{times:?}");
    let most =
        (0..50).map(|first| times.iter().filter(|at| (times[first]..times[first] + 10_000).contains(*at)).count());
    assert!(most.max() < Some(12), "{times:?}");
}

#[test]
fn r75_who_waits_for_a_token_does_not_wait_for_the_spread() {
    let of_another = of_another("theirs", 600);
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(record(&of_another));
    lab.result(waiter).unwrap();
    lab.advance_to(595_000);
    lab.wait(key);
    lab.store_fails();
    assert_eq!(lab.times(), [595_000]);
}

/// What a process makes of a record that lies in the store at `at` milliseconds.
fn judged(of_another: &Record, at: u64) -> (bool, Vec<RecordFault>) {
    let (mut lab, key) = Lab::sharing(1);
    lab.advance_to(at);
    let waiter = lab.wait(key);
    lab.reply(record(of_another));
    let faults = lab.events.iter().filter_map(|event| match event {
        Event::RecordIgnored { fault, .. } => Some(*fault),
        _ => None,
    });
    (lab.is_resolved(waiter), faults.collect())
}

#[test]
fn r20_r75_a_record_is_worth_what_this_processs_clock_says() {
    let theirs = of_another("theirs", 600);
    assert_eq!(judged(&theirs, 589_999), (true, vec![]));
    assert_eq!(judged(&theirs, 590_000), (false, vec![]), "it has expired");

    // From the future, by more than the ten seconds that are kept back of its life.
    let (mut ahead, key) = Lab::sharing(9);
    ahead.advance_to(10_000);
    assert_eq!(judged(&published(&mut ahead, key, "theirs", 600), 0), (true, vec![]));
    let (mut ahead, key) = Lab::sharing(9);
    ahead.advance_to(10_001);
    assert_eq!(judged(&published(&mut ahead, key, "theirs", 600), 0), (false, vec![RecordFault::FromTheFuture]));
}

#[test]
fn r75_a_record_that_is_ignored_says_where_to_look() {
    let ends = |fault: RecordFault, text| assert!(fault.to_string().ends_with(text), "{fault}");
    ends(RecordFault::FromTheFuture, "look at the clocks of the machines that share the store");
    ends(RecordFault::Unreadable, "look at who may write to the store");
}

#[test]
fn r70_r75_a_record_that_no_holder_of_the_secret_wrote_is_a_miss() {
    let theirs = of_another("theirs", 600);
    let unreadable = (false, vec![RecordFault::Unreadable]);
    for bit in (0..theirs.body.len() * 8).step_by(7) {
        let mut changed = theirs.clone();
        changed.body[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(judged(&changed, 0), unreadable, "bit {bit}");
    }
    for length in 0..theirs.body.len() {
        let mut torn = theirs.clone();
        torn.body.truncate(length);
        assert_eq!(judged(&torn, 0), unreadable, "{length} bytes");
    }
    let later = Record { order: Order { sent: theirs.order.sent + millis(1), ..theirs.order }, ..theirs.clone() };
    assert_eq!(judged(&later, 0), unreadable);
    let longer = Record { expires_at: theirs.expires_at + secs(60), ..theirs };
    assert_eq!(judged(&longer, 0), unreadable);
    let (mut stranger, key) = Lab::sharing(99);
    stranger.machine.set_credentials(key, Credentials::new("shop", "0ther").unwrap(), stranger.now()).unwrap();
    assert_eq!(judged(&published(&mut stranger, key, "theirs", 600), 0), unreadable);
}

#[test]
fn r38_r75_a_rejected_token_is_not_taken_from_the_store_again() {
    let theirs = of_another("theirs", 600);
    let (mut lab, key) = Lab::sharing(1);
    lab.advance(secs(100));
    let waiter = lab.wait(key);
    lab.reply(record(&theirs));
    let token = lab.result(waiter).unwrap();
    lab.machine.invalidate(token.id(), lab.now());
    let waiter = lab.wait(key);
    lab.reply(record(&theirs));
    assert!(!lab.is_resolved(waiter));
    lab.reply(StoreReply { lease: Lease::Mine, ..record(&theirs) });
    lab.answer(granted("own", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "own");
}

#[test]
fn r74_an_older_record_never_takes_the_place_of_a_newer_token() {
    let older = of_another("older", 3_600);
    let (mut lab, key) = Lab::sharing(1);
    lab.advance(secs(10));
    published(&mut lab, key, "newer", 600);
    lab.advance_to(460_000);
    assert_eq!(lab.token(key), "newer");
    lab.reply(record(&older));
    assert_eq!(lab.token(key), "newer");
    assert_eq!(lab.machine.counters().store_misses, 3);
}

#[test]
fn r76_a_throttle_is_told_to_all_and_heeded_by_all() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait_within(key, secs(60));
    lead(&mut lab);
    lab.answer(retry_after(status(429), "30"));
    let StoreCommand::CloseGate { until } = lab.reply(nothing()) else { panic!("nobody is told") };
    assert!((lab.unix(30_000)..=lab.unix(32_000)).contains(&until));
    assert!(matches!(lab.reply(nothing()), StoreCommand::Release { rest: Duration::ZERO, failures: 0, .. }));
    // It stays in line: the store is read again, and the lease asked for when the gate opens.
    assert!(matches!(lab.reply(nothing()), StoreCommand::Read));
    assert!(lab.stores.is_empty() && !lab.is_resolved(waiter));

    let (mut other, others) = Lab::sharing(2);
    let waiter = other.wait(others);
    other.reply(StoreReply { gate: Some(until), ..nothing() });
    let error = other.result(waiter).unwrap_err();
    assert!(error.is_rate_limited() && error.retry_at() >= Some(until), "{error}");
    assert_eq!((other.sends.len(), other.stores.len()), (0, 0));
}

#[test]
fn r76_a_gate_in_the_store_is_believed_for_an_hour() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lab.reply(StoreReply { gate: Some(Unix::from_millis(u64::MAX)), ..nothing() });
    let until = lab.machine.status(lab.now()).gate_closed_until.unwrap();
    assert!((lab.unix(3_600_000)..=lab.unix(3_602_000)).contains(&until), "{until}");
    // And for one hour only, however often it is read.
    lab.drive(secs(3_603));
    lab.wait(key);
    lab.reply(StoreReply { gate: Some(Unix::from_millis(u64::MAX)), ..nothing() });
    assert_eq!(lab.machine.status(lab.now()).gate_closed_until, None);
    let closed = lab.events.iter().filter(|event| matches!(event, Event::GateClosed { .. })).count();
    assert_eq!(closed, 1, "and it is told once");
}

#[test]
fn r76_each_new_gate_in_the_store_is_heeded() {
    let (mut lab, key) = Lab::sharing(1);
    for (closed_at, until) in [(0, 40_000), (60_000, 100_000)] {
        lab.drive_to(closed_at);
        lab.wait(key);
        lab.reply(StoreReply { gate: Some(lab.unix(until)), ..nothing() });
        let told = lab.machine.status(lab.now()).gate_closed_until.unwrap();
        assert!((lab.unix(until)..=lab.unix(until + 2_000)).contains(&told), "{told}");
    }
}

#[test]
fn r22_r76_a_wall_clock_that_is_set_back_does_not_close_the_stores_gate_again() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    let gate = Some(lab.unix(30_000));
    lab.reply(StoreReply { gate, ..nothing() });
    lab.wall_back(secs(7_200));
    lab.drive(secs(33));
    lab.wait(key);
    lab.reply(StoreReply { gate, ..nothing() });
    assert_eq!(lab.machine.status(lab.now()).gate_closed_until, None);
}

#[test]
fn r44_a_closed_machine_gives_back_what_it_asked_for() {
    // Reading: nothing is asked for any more.
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.machine.shut_down(lab.now());
    lab.drain();
    assert_eq!(lab.result(waiter).unwrap_err(), AcquireError::Closed);
    assert!(lab.machine.is_idle());

    // Leasing: the lease is given back.
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(nothing());
    lab.machine.shut_down(lab.now());
    lab.drain();
    assert_eq!(lab.result(waiter).unwrap_err(), AcquireError::Closed);
    assert!(!lab.machine.is_idle());
    lab.reply(lease(Lease::Mine));
    assert!(matches!(lab.reply(nothing()), StoreCommand::Release { .. }));
    assert!(lab.machine.is_idle() && lab.requests() == 0);

    // Requesting: it goes on, and is shared.
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lead(&mut lab);
    lab.machine.shut_down(lab.now());
    lab.answer(granted("first", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "first");
    assert!(matches!(lab.reply(nothing()), StoreCommand::Publish { .. }));
    assert!(lab.machine.is_idle());
}

#[test]
fn r48_a_lease_that_nobody_wants_any_more_is_given_back() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(nothing());
    lab.cancel(waiter);
    lab.reply(lease(Lease::Mine));
    assert!(matches!(lab.reply(nothing()), StoreCommand::Release { .. }));
    assert_eq!(lab.requests(), 0);
}

#[test]
fn r48_a_holder_whose_token_nobody_wants_is_not_followed() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.cancel(waiter);
    lab.reply(lease(Lease::Taken));
    assert_eq!(lab.status(key).activity, Activity::Idle);
    assert_eq!(lab.machine.poll_timeout(), None);
}

#[test]
fn r72_a_lease_that_was_not_asked_for_is_asked_for() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    assert!(matches!(lab.reply(lease(Lease::Mine)), StoreCommand::Read));
    assert_eq!(lab.requests(), 0);
    assert!(matches!(lab.reply(lease(Lease::Mine)), StoreCommand::Lease { .. }));
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r43_a_token_that_was_found_with_the_secret_before_changes_no_secret() {
    let of_another = of_another("theirs", 600);
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    let now = lab.now();
    lab.machine.set_credentials(key, Credentials::new("shop", "rotated").unwrap(), now).unwrap();
    lab.reply(record(&of_another));
    assert_eq!(lab.result(waiter).unwrap().expose(), "theirs");
    assert!(!lab.events.iter().any(|event| matches!(event, Event::SecretSwapped { .. })), "{:?}", lab.events);
}

#[test]
fn r43_a_lease_of_the_old_secret_is_given_back_and_one_of_the_new_asked_for() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lab.reply(nothing());
    let old = lab.stores[0].store_op.record;
    lab.machine.set_credentials(key, Credentials::new("shop", "n3w").unwrap(), lab.now()).unwrap();
    lab.reply(lease(Lease::Mine));
    let release = lab.asked();
    assert!(matches!(release.store_op.command, StoreCommand::Release { .. }));
    assert_eq!(release.store_op.record, old);
    let ask = lab.asked();
    assert!(matches!(ask.store_op.command, StoreCommand::Lease { .. }));
    assert_ne!(ask.store_op.record, old);
}

#[test]
fn r71_r73_a_lease_whose_answer_comes_too_late_or_for_a_removed_key_is_given_back() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lab.reply(nothing());
    let late = lab.asked();
    assert!(matches!(late.store_op.command, StoreCommand::Lease { .. }));
    lab.drive(secs(1));
    assert_eq!(lab.sends.len(), 1, "it goes on alone");
    assert!(matches!(lab.reply(nothing()), StoreCommand::Release { rest: Duration::ZERO, .. }));
    lab.machine.handle_store(late.op, Ok(lease(Lease::Mine)), lab.now());

    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lab.reply(nothing());
    lab.asked();
    lab.machine.remove_key(key, lab.now());
    lab.drain();
    assert!(matches!(lab.reply(nothing()), StoreCommand::Release { .. }));
    assert!(lab.machine.is_idle());
}

#[test]
fn r48_a_removed_key_gives_its_lease_back() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    lead(&mut lab);
    lab.machine.remove_key(key, lab.now());
    lab.drain();
    assert!(matches!(lab.reply(nothing()), StoreCommand::Release { .. }));
    lab.drive(secs(30));
    assert!(lab.stores.is_empty());
}

#[test]
fn r54_a_child_has_no_lease_of_its_parents() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    let parent = lab.stores[0].op;
    lab.reply(nothing());
    let StoreCommand::Lease { owner: parents, .. } = lab.reply(lease(Lease::Mine)) else { panic!() };
    lab.machine.start_anew(4_711, lab.now());
    lab.drain();
    assert!(lab.machine.is_idle());
    lab.machine.handle_store(parent, Ok(lease(Lease::Mine)), lab.now());
    lab.wait(key);
    lab.reply(nothing());
    let StoreCommand::Lease { owner, .. } = lab.reply(lease(Lease::Mine)) else { panic!() };
    assert_ne!(owner, parents);
}

#[test]
fn r65_an_answer_of_the_wrong_kind_is_ignored() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    let reading = lab.stores[0].op;
    lab.answer_op(reading, granted("forged", 600));
    assert!(!lab.is_resolved(waiter) && lab.machine.peek(key, lab.now()).is_none());
    lead(&mut lab);
    let sending = lab.sends[0].op;
    lab.machine.handle_store(sending, Err(StoreFailure::new("confused")), lab.now());
    lab.answer(granted("true", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "true");
}

#[test]
fn r58_what_a_store_says_shows_no_secret() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    let op = lab.asked();
    assert!(!format!("{op:?}").contains("S3cret"));
    lab.machine.handle_store(op.op, Err(StoreFailure::new("wrong password S3cret for redis")), lab.now());
    lab.drain();
    let said = events(&mut lab).join("\n");
    assert!(said.contains("wrong password") && !said.contains("S3cret"), "{said}");
}

#[test]
fn r46_a_machine_without_a_store_asks_none() {
    let (mut lab, key) = Lab::with_token(600);
    lab.drive_to(1_000_000);
    lab.wait(key);
    lab.answer(status(500));
    assert!(lab.stores.is_empty());
    assert!(matches!(lab.acquire(key), Acquire::Failed(_)));
}

// A store's format. What stands here in hexadecimal digits was worked out by other code: who changes it parts the processes that share
// by their versions.

/// A record of this end, tag and content, whose request was sent when the lab's clocks start.
fn of_version_1(expires_at: &str, tag: &str, content: &str) -> Vec<u8> {
    let tag = (0..tag.len()).step_by(2).map(|at| u8::from_str_radix(&tag[at..at + 2], 16).unwrap());
    let header = format!("storm-auth 1 0000018bcfe568000000000000000005 {expires_at}\n");
    header.into_bytes().into_iter().chain(tag).chain(content.bytes()).collect()
}

#[test]
fn r69_r70_names_and_keys_are_those_of_version_1() {
    let (mut lab, key) = Lab::sharing(1);
    lab.wait(key);
    let op = &lab.stores[0].store_op;
    let of_version_1 = [
        "2275fabac0697f2459ac7c0ae116687481f8d534888dea3dea772aaea67cd791",
        "0bc2d9a6bd88b6f78667069eed06300755595af5412cfd3c090d3eb3c722d631",
        "dfc64e3fb84fb94aef5a1a6dabdfc0f3d13bee5ba5d27db46d2e9713e7ec3384",
    ];
    let sealing_key = op.sealing_key().expose().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!([op.record.to_string(), op.gate.to_string(), sealing_key], of_version_1);
    assert_eq!(format!("{:?}", op.record), format!("RecordName({})", of_version_1[0]));
    assert_eq!(format!("{:?}", op.gate), format!("GateName({})", of_version_1[1]));
}

#[test]
fn r70_records_are_those_of_version_1_and_what_contradicts_itself_is_a_miss() {
    for (expires_at, tag, content, held) in [
        (
            "0000018bcfee8fc0",
            "d34ddb35971298948c0c169e2e572ecd2d25a95f3d990806ae9f3fba776de25e",
            "600000\n\ntheirs",
            Some(None),
        ),
        (
            "0000018bcfee8fc0",
            "34aae819d7550870b926e1f2b5dfb30d9cf289851b6fa433f77c1a0d8c7fb287",
            "600000\nlab qa\ntheirs",
            Some(Some("lab qa")),
        ),
        // It ends a millisecond after its lifetime does.
        (
            "0000018bcfee8fc1",
            "f1334b01fc8e6101cbe3bf8df5fa2e5c643008278870b56fbafd4657921c25fc",
            "600000\n\ntheirs",
            None,
        ),
        // A day, and a millisecond more.
        (
            "0000018bd50bc400",
            "a1129860e0d05302d09772acabf06fce9db414046c9c927737ba760039529997",
            "86400000\n\ntheirs",
            Some(None),
        ),
        (
            "0000018bd50bc401",
            "b5392cda106ab7ec7d9a2698a13b7b6d07109a1a7aef048af3c731467d7e4ecd",
            "86400001\n\ntheirs",
            None,
        ),
    ] {
        let bytes = of_version_1(expires_at, tag, content);
        let theirs = Record::from_bytes(&bytes).unwrap();
        assert_eq!(theirs.to_bytes()[..], bytes);
        let shown = format!("{theirs:?}");
        assert!(shown.starts_with("Record { order: ") && !shown.contains("body"), "{shown}");

        let (mut lab, key) = Lab::sharing(1);
        lab.wait(key);
        lab.reply(record(&theirs));
        let token = lab.machine.peek(key, lab.now()).map(|ready| ready.token);
        let found = token.as_ref().map(|token| token.granted_scope());
        assert_eq!(found, held, "{content:?} until {expires_at}");
        assert!(token.is_none_or(|token| token.expose() == "theirs"));
    }
}

#[test]
fn r70_what_is_not_written_like_a_record_is_none() {
    let (sent, id, expires_at) = ("0000018bcfe56800", "000000000000000a", "0000018bcfee8fc0");
    let header = format!("storm-auth 1 {sent}{id} {expires_at}\n");
    let order = Order { sent: Unix::from_millis(1_700_000_000_000), id: 10 };
    let (whole, longest) =
        (Record::from_bytes(header.as_bytes()).unwrap(), [header.as_bytes(), &[b'a'; 65_473]].concat());
    assert_eq!((whole.order, whole.expires_at.as_millis(), whole.body.len()), (order, 1_700_000_600_000, 0));
    assert_eq!(Record::from_bytes(&longest).map(|record| record.body.len()), Some(65_473), "64 KiB in all");

    for wrong in [
        "",
        &header[..header.len() - 1],
        &header.replace("auth 1", "auth 2"),
        &header.replace('\n', " "),
        &header.replace(&format!(" {expires_at}"), &format!("0{expires_at}")),
        &header.replace("000a", "000A"),
        &header.replace("000a", "000g"),
        &header.replace("00018b", "+0018b"),
        &header.replace("000a 0", "00a 00"),
        &header.replace("00a", "0é"),
    ] {
        assert!(Record::from_bytes(wrong.as_bytes()).is_none(), "{wrong:?}");
    }
    assert!(Record::from_bytes(&[&longest[..], b"a"].concat()).is_none());
    let no_text: Vec<_> = header.bytes().map(|byte| if byte == b'5' { 0xff } else { byte }).collect();
    assert!(Record::from_bytes(&no_text).is_none());
}

#[test]
fn a_store_is_one_behind_a_pointer_too_and_its_words_are_for_people() {
    let op = StoreOp::for_key(&harness::key("shop", "S3cret"), "", StoreCommand::Read);
    let burns = StoreFailure::new("it burns");
    let store = || ReadOnly(Err(burns.clone()));
    let (shared, boxed): (Arc<dyn TokenStore>, Box<dyn TokenStore>) = (Arc::new(store()), Box::new(store()));
    assert_eq!([shared.perform(&op), boxed.perform(&op)].map(Result::unwrap_err), [burns.clone(), burns.clone()]);
    assert_eq!((burns.to_string(), Owner(10).to_string()), ("it burns".to_owned(), format!("{}a", "0".repeat(31))));
    assert_eq!(format!("{:?} {:?}", op.sealing_key(), Owner(10)), format!("[sealing key] Owner({}a)", "0".repeat(31)));
}

/// A store that answers reads alone.
#[derive(Debug)]
struct ReadOnly(Result<StoreReply, StoreFailure>);

impl TokenStore for ReadOnly {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        assert!(matches!(op.command, StoreCommand::Read), "{op:?}");
        self.0.clone()
    }
}

fn config_of(lab: &Lab, key: KeyId) -> Config {
    let key = lab.machine.key(key).unwrap();
    let settings = Settings::new().token_url(key.token_url().uri().to_string()).scope(key.scope().clone());
    settings.credentials(key.credentials().clone()).check().unwrap()
}

#[test]
fn r72_who_only_looks_sees_what_a_call_would_find_and_asks_for_nothing() {
    let theirs = of_another("theirs", 600);
    let (mut lab, key) = Lab::sharing(1);
    let config = config_of(&lab, key);
    lab.advance(secs(100));
    let look = |reply| Seen::in_store(&config, &ReadOnly(reply), lab.now());

    let seen = look(Ok(record(&theirs))).unwrap();
    assert_eq!((seen.key.token_until, seen.lease, seen.fault), (Some(lab.unix(590_000)), Lease::Free, None));
    assert_eq!(seen.key.refresh_at, Some(lab.unix(450_000)));

    let until = lab.unix(160_000);
    let reply = StoreReply { gate: Some(until), lease: Lease::Resting(secs(60)), failures: 2, ..nothing() };
    let seen = look(Ok(reply)).unwrap();
    // Those who wait for the same gate spread.
    assert!(seen.gate_closed_until.is_some_and(|at| (until..until + secs(5)).contains(&at)), "{seen:?}");
    assert_eq!((seen.key.token_until, seen.lease, seen.failures), (None, Lease::Resting(secs(60)), 2));

    let mut forged = theirs;
    forged.body[40] ^= 1;
    let seen = look(Ok(record(&forged))).unwrap();
    assert_eq!((seen.key.token_until, seen.fault), (None, Some(RecordFault::Unreadable)));

    let burns = StoreFailure::new("it burns");
    assert_eq!(look(Err(burns.clone())).unwrap_err(), burns);
}

// Two secrets

/// A machine that shares, whose key has two secrets.
fn with_two(seed: u64, first: &str, next: &str) -> (Lab, KeyId) {
    let (mut lab, key) = Lab::sharing(seed);
    let two = Credentials::new("shop", first).unwrap().with_next(next).unwrap();
    lab.machine.set_credentials(key, two, lab.now()).unwrap();
    lab.drain();
    lab.events.clear();
    (lab, key)
}

/// What the oldest operation for the store is, and under which secret; the store answers.
#[track_caller]
fn reply_under(lab: &mut Lab, reply: StoreReply) -> (&'static str, StoreCommand) {
    let place = lab.stores[0].store_op.record;
    let under = ["former", "latter"]
        .into_iter()
        .find(|secret| StoreOp::for_key(&harness::key("shop", secret), "", StoreCommand::Read).record == place);
    (under.expect("it is one of the two"), lab.reply(reply))
}

fn secret_in_use(lab: &Lab, key: KeyId) -> &str {
    lab.machine.key(key).unwrap().credentials().secret().expose()
}

/// A record that a process with this secret wrote when the lab's clocks start.
fn of_holder(secret: &str) -> Record {
    let (mut other, key) = Lab::sharing(99);
    other.machine.set_credentials(key, Credentials::new("shop", secret).unwrap(), other.now()).unwrap();
    other.drain();
    published(&mut other, key, "theirs", 600)
}

#[test]
fn r43_r72_a_token_that_another_process_got_with_the_other_secret_is_taken_and_that_secret_used() {
    let (mut lab, key) = with_two(1, "former", "latter");
    let waiter = lab.wait(key);
    assert_eq!(reply_under(&mut lab, nothing()).0, "former");
    assert_eq!(reply_under(&mut lab, record(&of_holder("latter"))).0, "latter");
    assert_eq!(lab.result(waiter).unwrap().expose(), "theirs");
    assert!(lab.events.contains(&Event::SecretSwapped { key }));
    assert_eq!((lab.requests(), secret_in_use(&lab, key)), (0, "latter"));
    let counters = lab.machine.counters();
    assert_eq!((counters.store_hits, counters.store_misses), (1, 1));
    // It is there that it looks first from now on.
    lab.advance_to(450_000);
    lab.token(key);
    assert_eq!(reply_under(&mut lab, nothing()).0, "latter");
}

#[test]
fn r43_r72_where_there_is_a_token_under_neither_the_first_secrets_lease_is_taken() {
    let (mut lab, key) = with_two(1, "former", "latter");
    lab.wait(key);
    assert_eq!(reply_under(&mut lab, nothing()).0, "former");
    assert_eq!(reply_under(&mut lab, nothing()).0, "latter");
    let (under, command) = reply_under(&mut lab, lease(Lease::Mine));
    assert!(under == "former" && matches!(command, StoreCommand::Lease { .. }), "{under}: {command:?}");
    assert_eq!(lab.requests(), 1);
}

#[test]
fn r43_r73_a_refused_secrets_lease_rests_and_the_other_one_goes_on() {
    let (mut lab, key) = with_two(1, "former", "latter");
    let waiter = lab.wait(key);
    lab.reply(nothing());
    lead(&mut lab);
    lab.answer(oauth_error(400, "invalid_client"));
    let (under, command) = reply_under(&mut lab, nothing());
    let StoreCommand::Release { rest, failures, .. } = command else { panic!("{command:?}") };
    assert_eq!((under, rest, failures), ("former", secs(60), 0));
    assert_eq!(reply_under(&mut lab, nothing()).0, "latter");
    assert_eq!(reply_under(&mut lab, lease(Lease::Resting(secs(60)))).0, "former");
    assert_eq!(reply_under(&mut lab, lease(Lease::Mine)).0, "latter");
    lab.answer(granted("t", 600));
    assert_eq!(lab.result(waiter).unwrap().expose(), "t");
    let (under, command) = reply_under(&mut lab, nothing());
    assert!(under == "latter" && matches!(command, StoreCommand::Publish { .. }), "{under}: {command:?}");
    assert_eq!((lab.times(), secret_in_use(&lab, key)), (vec![0, 0], "latter"));
}

#[test]
fn r37_r43_a_secret_that_another_process_was_refused_with_is_not_tried() {
    let (mut lab, key) = with_two(1, "former", "latter");
    lab.wait(key);
    assert_eq!(reply_under(&mut lab, lease(Lease::Resting(secs(60)))).0, "former");
    assert_eq!(secret_in_use(&lab, key), "latter");
    assert_eq!(reply_under(&mut lab, nothing()).0, "latter");
    assert_eq!(reply_under(&mut lab, lease(Lease::Resting(secs(60)))).0, "former");
    assert_eq!(reply_under(&mut lab, lease(Lease::Mine)).0, "latter");
    assert_eq!(lab.requests(), 1);
    // Where both rest, so does this one.
    let (mut lab, key) = with_two(1, "former", "latter");
    let waiter = lab.wait(key);
    for under in ["former", "latter", "former"] {
        assert_eq!(reply_under(&mut lab, lease(Lease::Resting(secs(60)))).0, under);
    }
    assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::RefusedElsewhere);
    assert_eq!((lab.requests(), lab.stores.len()), (0, 0));
}

#[test]
fn r37_what_another_process_was_refused_with_is_a_refused_configuration_until_the_secret_is_another() {
    let (mut lab, key) = Lab::sharing(1);
    let waiter = lab.wait(key);
    lab.reply(lease(Lease::Resting(secs(60))));
    let error = lab.result(waiter).unwrap_err();
    assert!(error.is_configuration() && error.retry_at() == Some(lab.unix(60_000)), "{error}");
    let Acquire::Failed(again) = lab.acquire(key) else { panic!("it is told from memory") };
    assert_eq!((again, lab.stores.len(), lab.requests()), (error, 0, 0));
    lab.machine.set_credentials(key, Credentials::new("shop", "another").unwrap(), lab.now()).unwrap();
    lab.drain();
    lab.wait(key);
    assert_eq!(lab.stores.len(), 1);
}

#[test]
fn r37_r43_a_correction_of_what_another_process_was_refused_with_is_looked_for() {
    let (mut lab, key) = Lab::sharing(1);
    lab.machine.renew_credentials(key, lab.now());
    lab.wait(key);
    lab.reply(lease(Lease::Resting(secs(60))));
    assert!(lab.looks.is_empty());
    assert!(matches!(lab.acquire(key), Acquire::Failed(_)));
    assert_eq!(lab.looks.len(), 1);
    lab.found(Ok(Credentials::new("shop", "another").unwrap()));
    lab.wait(key);
    assert_eq!(lab.stores.len(), 1);
}

#[test]
fn r73_an_outage_that_others_met_is_none_for_the_other_secret_to_try() {
    let (mut lab, key) = with_two(1, "former", "latter");
    let waiter = lab.wait(key);
    reply_under(&mut lab, StoreReply { failures: 2, ..lease(Lease::Resting(secs(7))) });
    assert_eq!(reply_under(&mut lab, nothing()).0, "latter");
    assert_eq!(cause(lab.result(waiter).unwrap_err()), Cause::FailedElsewhere);
    assert_eq!((lab.requests(), secret_in_use(&lab, key)), (0, "former"));
}

#[test]
fn r43_r72_whoever_fetches_a_token_with_the_other_secret_is_followed() {
    let (mut lab, key) = with_two(1, "former", "latter");
    let waiter = lab.wait(key);
    reply_under(&mut lab, nothing());
    assert_eq!(reply_under(&mut lab, lease(Lease::Taken)).0, "latter");
    assert_eq!(lab.status(key).activity, Activity::Following);
    lab.drive(millis(250));
    reply_under(&mut lab, nothing());
    reply_under(&mut lab, record(&of_holder("latter")));
    assert_eq!(lab.result(waiter).unwrap().expose(), "theirs");
    assert_eq!(lab.requests(), 0);
}

/// A store that answers reads alone, of each secret's place by itself.
#[derive(Debug)]
struct ReadOnlyOfTwo {
    former: StoreReply,
    latter: StoreReply,
}

impl TokenStore for ReadOnlyOfTwo {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        let of = |secret| StoreOp::for_key(&harness::key("shop", secret), "", StoreCommand::Read).record;
        assert!(
            matches!(op.command, StoreCommand::Read) && [of("former"), of("latter")].contains(&op.record),
            "{op:?}"
        );
        Ok(if op.record == of("former") { self.former.clone() } else { self.latter.clone() })
    }
}

#[test]
fn r43_r72_who_only_looks_sees_the_record_that_a_call_would_go_by() {
    let (lab, key) = with_two(1, "former", "latter");
    let config = config_of(&lab, key);
    let resting = |failures| StoreReply { failures, ..lease(Lease::Resting(secs(60))) };
    let look = |former, latter| {
        let seen = Seen::in_store(&config, &ReadOnlyOfTwo { former, latter }, lab.now()).unwrap();
        (seen.lease, seen.failures, seen.is_refused(), seen.key.token_until.is_some())
    };
    // An outage that others met with the first, and nothing of the second.
    assert_eq!(look(resting(2), nothing()), (Lease::Resting(secs(60)), 2, false, false));
    // What rests under the second is no matter where the first is used.
    assert_eq!(look(nothing(), resting(2)), (Lease::Free, 0, false, false));
    // Whoever fetches a token with the second is followed.
    assert_eq!(look(resting(2), lease(Lease::Taken)), (Lease::Taken, 0, false, false));
    // A token under the second is taken, whatever stands beside the first.
    assert_eq!(look(resting(2), record(&of_holder("latter"))), (Lease::Free, 0, false, true));
    // The first was refused, and the second goes on; where both were, nobody does.
    assert_eq!(look(resting(0), nothing()), (Lease::Free, 0, false, false));
    assert_eq!(look(resting(0), resting(3)), (Lease::Resting(secs(60)), 3, false, false));
    assert_eq!(look(resting(0), resting(0)), (Lease::Resting(secs(60)), 0, true, false));
}

/// A store does all that is asked of it.
fn perform(lab: &mut Lab, store: &MemoryStore) {
    store.set_time(lab.now().unix);
    while let Some(request) = lab.stores.pop_front() {
        let result = store.perform(&request.store_op);
        lab.machine.handle_store(request.op, result, lab.now());
        lab.drain();
    }
}

#[test]
fn r43_r72_processes_that_name_two_secrets_in_another_order_come_to_share() {
    let store = MemoryStore::new();
    let mut labs = [with_two(1, "former", "latter"), with_two(2, "latter", "former"), with_two(3, "former", "latter")];
    let mut requests = Vec::new();
    // Each calls every five seconds, for twenty lives; from the tenth on the former secret is no good.
    for at in (0..20 * 600).step_by(5) {
        for (lab, key) in &mut labs {
            lab.drive_to(at * 1_000);
            perform(lab, &store);
            let _ = lab.acquire(*key);
            perform(lab, &store);
            while !lab.sends.is_empty() {
                let body = String::from_utf8(lab.bodies.last().unwrap().clone()).unwrap();
                let refused = at > 10 * 600 && body.contains("client_secret=former");
                requests.push(at);
                let answer = if refused { oauth_error(400, "invalid_client") } else { granted(&format!("t{at}"), 600) };
                lab.answer(answer);
                perform(lab, &store);
            }
        }
    }
    // One every 450 s or so, and one that is refused.
    assert!((24..=28).contains(&requests.len()), "{requests:?}");
    assert!(labs.iter().all(|(lab, key)| lab.machine.peek(*key, lab.now()).is_some()));
}
