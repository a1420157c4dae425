//! What drivers share (feature `driver`): the board of waiters and the cell that a cached token is read from, in virtual time.

#![cfg(feature = "driver")]
#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use core::mem::swap;
use core::time::Duration;
use std::sync::Arc;

use http::Response;
use storm_auth_core::driver::{
    Board, Cell, CoarseClocks, Landing, Measurement, Metric, MetricKind, Reading, Served, Work,
};
use storm_auth_core::machine::{Acquire, OpId, TokenRequest, WaiterId};
use storm_auth_core::store::{Lease, StoreCommand, StoreFailure, StoreReply};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Budget, Credentials, Failure, FailureKind, HttpHosts, Invalidated, Key, KeyId, Machine, Now, Policy,
    Scope, Token, TokenUrl, scope,
};

/// What a coarse clock may lag, by which a cell gives up earlier than the machine.
const LAG: u64 = 16;

/// A board in virtual time. A caller's waker is its number.
struct Desk {
    board: Board<usize>,
    key: KeyId,
    cell: Arc<Cell>,
    now: Now,
}

impl Desk {
    fn new() -> Self {
        let now = Now::from_millis(1_000_000, 1_700_000_000_000);
        let mut board = Board::new(Machine::new(Policy::default(), 7), 4);
        let (key, cell) = board.add_key(key("shop"), now);
        Self { board, key, cell, now }
    }

    /// A desk whose token was sent for and granted at the start.
    fn with_token(lifetime: u64) -> Self {
        let mut desk = Self::new();
        let waiter = desk.wait();
        let send = desk.work().sends.pop_front().unwrap();
        desk.board.report(send.op, Ok(granted("first", lifetime)), desk.now);
        assert!(desk.board.poll_wait(waiter, 0).unwrap().is_ok());
        let _ = desk.work();
        desk
    }

    /// To a point in milliseconds since the start.
    fn at(&mut self, millis: u64) -> Now {
        self.now = Now::from_millis(1_000_000 + millis, 1_700_000_000_000 + millis);
        self.now
    }

    fn acquire(&mut self) -> Acquire {
        self.board.acquire(self.key, None, self.now)
    }

    #[track_caller]
    fn wait(&mut self) -> WaiterId {
        match self.acquire() {
            Acquire::Wait(waiter) => waiter,
            other => panic!("nothing to wait for: {other:?}"),
        }
    }

    fn work(&mut self) -> Work<usize> {
        let work = self.board.take_work();
        // They are set at once.
        assert!(work.gauges.is_empty() || self.board.next_gauges().is_empty());
        work
    }

    #[track_caller]
    fn send(&mut self) -> TokenRequest {
        self.work().sends.pop_front().expect("a request went out")
    }

    fn read(&self) -> Option<String> {
        self.cell.token(0, self.now).map(|token| token.expose().to_owned())
    }
}

fn key(client: &str) -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default()).unwrap();
    Key::new(url, Credentials::new(client, "S3cret").unwrap(), Scope::new(scope::LAB).unwrap())
}

fn granted(token: &str, lifetime: u64) -> Response<ResponseBody> {
    answer(200, &format!(r#"{{"access_token":"{token}","expires_in":{lifetime},"token_type":"Bearer"}}"#))
}

fn answer(status: u16, body: &str) -> Response<ResponseBody> {
    let body = ResponseBody::try_from(body.as_bytes()).unwrap();
    Response::builder().status(status).body(body).unwrap()
}

fn throttled(seconds: u64) -> Response<ResponseBody> {
    let mut response = answer(429, "");
    response.headers_mut().insert("retry-after", seconds.into());
    response
}

#[test]
fn r20_a_cell_is_empty_before_the_first_token_and_serves_it_until_shortly_before_its_end() {
    let desk = Desk::new();
    assert!(desk.read().is_none());

    let mut desk = Desk::with_token(600);
    desk.at(449_999);
    assert_eq!(desk.read().as_deref(), Some("first"));
    assert_eq!(desk.cell.header(3, desk.now).unwrap(), "Bearer first");
    assert!(desk.cell.header(3, desk.now).unwrap().is_sensitive());
}

#[test]
fn r24_past_look_exactly_one_caller_asks_and_all_others_are_served() {
    let mut desk = Desk::with_token(600);
    desk.at(450_000);
    let asking = (0..1_000).filter(|_| desk.read().is_none()).count();
    assert_eq!(asking, 1);
    // It asks, and is served like all others; its claim is given back, but nobody has to ask before the request's patience.
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert_eq!(desk.work().sends.len(), 1);
    desk.at(509_999);
    assert_eq!((0..1_000).filter(|_| desk.read().is_none()).count(), 0);
    // Then the next one asks.
    desk.at(510_000);
    assert_eq!((0..1_000).filter(|_| desk.read().is_none()).count(), 1);
}

/// Clocks that count how often both are read.
struct Ticking {
    tick: u64,
    now: Now,
    readings: std::cell::Cell<u32>,
}

impl CoarseClocks for &Ticking {
    fn tick(&self) -> u64 {
        self.tick
    }

    fn coarse(&self) -> Now {
        self.readings.set(self.readings.get() + 1);
        self.now
    }
}

#[test]
fn r22_both_clocks_are_read_once_in_each_tick_until_somebody_has_to_ask() {
    let mut desk = Desk::with_token(600);
    let mut clocks = Ticking { tick: 0, now: desk.at(449_990), readings: std::cell::Cell::default() };
    let mut served = |tick, now| {
        (clocks.tick, clocks.now) = (tick, now);
        clocks.readings.set(0);
        let served = (0..100).filter(|_| desk.cell.token(0, &clocks).is_some()).count();
        (served, clocks.readings.get())
    };
    // Where there is no tick, with each call.
    assert_eq!(served(0, Now::from_millis(1_000_000 + 449_990, 0)), (100, 100));
    assert_eq!(served(1, Now::from_millis(1_000_000 + 449_994, 0)), (100, 1));
    assert_eq!(served(2, Now::from_millis(1_000_000 + 449_998, 0)), (100, 1));
    // The refresh is due: one caller asks.
    assert_eq!(served(3, Now::from_millis(1_000_000 + 450_002, 0)), (99, 100));
    // Past its end nobody is served, whatever the other clock says.
    assert_eq!(served(4, Now::from_millis(0, 1_700_000_000_000 + 600_000)), (0, 100));
}

#[test]
fn r38_r49_what_is_published_within_a_tick_counts_within_it() {
    let mut desk = Desk::with_token(600);
    let clocks = Ticking { tick: 1, now: desk.at(100_000), readings: std::cell::Cell::default() };
    let token = desk.cell.token(0, &clocks).unwrap();
    // Nothing is due, but the board wants to be asked, as it does when a place that may start no thread left a request.
    desk.cell.token(0, Now { unix: desk.now.unix + Duration::from_secs(400), ..desk.now });
    assert!(desk.cell.token(0, &clocks).is_some());
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert!(desk.cell.token(0, &clocks).is_some());
    assert_eq!(clocks.readings.get(), 2, "the claim was given back, so both are read again");
    assert_eq!(desk.board.command(desk.now, |machine| machine.invalidate(token.id(), desk.now)), Invalidated::Dropped);
    assert!(desk.cell.token(0, &clocks).is_none());
}

#[test]
fn r24_a_claim_is_given_back_after_every_acquire_even_when_nothing_changed() {
    let mut desk = Desk::with_token(600);
    // The wall clock jumps to the refresh, is claimed, and comes back before the claimant asks: nothing is due, and the look
    // that is published again is the one that stood there.
    desk.at(100_000);
    let ahead = Now { unix: desk.now.unix + Duration::from_secs(400), ..desk.now };
    assert!(desk.cell.token(0, ahead).is_none());
    assert!(desk.cell.token(0, ahead).is_some(), "it is claimed");
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert!(desk.work().sends.is_empty());
    desk.at(450_000);
    assert!(desk.read().is_none(), "the next refresh was lost");
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert_eq!(desk.work().sends.len(), 1);
}

#[test]
fn r24_a_claim_is_given_back_through_a_whole_life() {
    // A refresh that fails again and again: after each back-off one caller asks.
    let mut desk = Desk::with_token(600);
    let mut asked = 0;
    for second in 450..589 {
        desk.at(second * 1000);
        for _ in 0..10 {
            if desk.read().is_none() {
                let acquire = desk.acquire();
                assert!(matches!(acquire, Acquire::Ready(_)), "at {second} s: {acquire:?}");
                for send in desk.work().sends {
                    asked += 1;
                    desk.board.report(send.op, Err(Failure::new(FailureKind::Connect, "")), desk.now);
                }
            }
        }
    }
    assert!((4..=9).contains(&asked), "{asked} requests in 139 s");
}

#[test]
fn r20_nobody_is_served_past_hard_by_either_clock() {
    let mut desk = Desk::with_token(600);
    desk.at(589_999 - LAG);
    let served = (0..10).filter(|_| desk.read().is_some()).count();
    assert_eq!(served, 9, "one of them asks");
    desk.at(590_000 - LAG);
    assert_eq!((0..10).filter(|_| desk.read().is_some()).count(), 0);
    // The machine itself reads a fine clock and serves the rest.
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert_eq!((0..10).filter(|_| desk.read().is_some()).count(), 0);
    desk.at(590_000);
    assert!(matches!(desk.acquire(), Acquire::Wait(_)));

    let mut desk = Desk::with_token(600);
    desk.at(1_000);
    desk.now.unix = desk.now.unix + Duration::from_secs(589);
    assert_eq!((desk.read(), desk.read()), (None, None), "the machine was suspended");
    desk.at(590_000 - LAG);
    desk.now.unix = desk.now.unix - Duration::from_secs(500);
    assert_eq!((desk.read(), desk.read()), (None, None), "the wall clock was set back");
    desk.at(590_000 - LAG);
    desk.now.mono = desk.now.mono - Duration::from_secs(500);
    assert_eq!((desk.read(), desk.read()), (None, None), "the monotonic clock stood still");
}

#[test]
fn r26_the_same_token_granted_again_lives_its_second_life() {
    let mut desk = Desk::with_token(600);
    desk.at(450_000);
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("first", 600)), desk.now);
    // A first refresh is followed by another one after half of an early period at the soonest.
    desk.at(674_999);
    assert_eq!(desk.read().as_deref(), Some("first"));
}

/// Who waits sleeps until the machine's deadline. When an answer brings that forward, it would be slept through.
#[test]
fn r36_who_waits_is_woken_when_the_deadline_comes_forward() {
    let mut desk = Desk::new();
    let waiters = [desk.wait(), desk.wait()];
    let send = desk.send();
    for (number, waiter) in waiters.into_iter().enumerate() {
        assert!(desk.board.poll_wait(waiter, number).is_none());
    }
    let now = desk.at(40);
    desk.board.report(send.op, Ok(throttled(5)), now);
    assert_eq!(desk.work().wakes, [0, 1]);
    let due = desk.board.poll_timeout().unwrap().at;
    assert!(due.since(desk.now.mono) >= Duration::from_secs(5) && due.since(desk.now.mono) < Duration::from_secs(6));
    // Neither for a caller that comes with a shorter deadline, which is its own to keep, nor when nothing comes forward.
    for (number, waiter) in waiters.into_iter().enumerate() {
        assert!(desk.board.poll_wait(waiter, number).is_none());
    }
    let now = desk.now;
    assert!(matches!(desk.board.acquire(desk.key, Some(Duration::from_secs(8)), now), Acquire::Wait(_)));
    let now = desk.at(80);
    desk.board.elapse(now);
    assert!(desk.work().wakes.is_empty());
}

#[test]
fn r38_a_rejected_token_leaves_the_cell_at_once() {
    let mut desk = Desk::with_token(600);
    desk.at(1_000);
    let token: Token = desk.cell.token(0, desk.now).unwrap();
    let now = desk.now;
    desk.board.command(now, |machine| machine.invalidate(token.id(), now));
    assert!(desk.read().is_none());
    let waiter = desk.wait();
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("second", 600)), desk.now);
    assert_eq!(desk.board.poll_wait(waiter, 0).unwrap().unwrap().expose(), "second");
    assert_eq!(desk.read().as_deref(), Some("second"));
}

#[test]
fn r26_a_new_token_replaces_the_one_in_the_cell_and_a_failure_does_not() {
    let mut desk = Desk::with_token(600);
    desk.at(450_000);
    let _ = desk.acquire();
    let send = desk.send();
    desk.board.report(send.op, Ok(answer(500, "")), desk.now);
    assert_eq!((0..10).filter_map(|_| desk.read()).next().as_deref(), Some("first"));
    desk.at(589_000);
    let _ = desk.acquire();
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("second", 600)), desk.now);
    assert_eq!(desk.read().as_deref(), Some("second"));
    assert_eq!(desk.cell.token(usize::MAX, desk.now).unwrap().expose(), "second");
}

#[test]
fn r25_a_thousand_waiters_cause_one_request_and_each_is_woken_once() {
    let mut desk = Desk::new();
    let waiters: Vec<_> = (0..1_000).map(|_| desk.wait()).collect();
    let work = desk.work();
    assert_eq!(work.sends.len(), 1);
    assert!(work.wakes.is_empty());
    for (number, waiter) in waiters.iter().enumerate() {
        // Polled twice, as an executor may; the last waker counts.
        assert!(desk.board.poll_wait(*waiter, usize::MAX).is_none());
        assert!(desk.board.poll_wait(*waiter, number).is_none());
    }
    desk.board.report(work.sends[0].op, Ok(granted("first", 600)), desk.now);
    let mut work = desk.work();
    work.wakes.sort_unstable();
    assert_eq!(work.wakes, (0..1_000).collect::<Vec<_>>());
    for waiter in waiters {
        assert_eq!(desk.board.poll_wait(waiter, 0).unwrap().unwrap().expose(), "first");
        // Its result is given out once.
        assert_eq!(desk.board.poll_wait(waiter, 0).unwrap().unwrap_err(), AcquireError::DeadlineExceeded);
    }
    assert!(desk.work().wakes.is_empty());
}

#[test]
fn r51_a_result_that_comes_before_the_waker_is_not_lost() {
    let mut desk = Desk::new();
    let waiter = desk.wait();
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("first", 600)), desk.now);
    assert!(desk.work().wakes.is_empty());
    assert!(desk.board.poll_wait(waiter, 1).unwrap().is_ok());
}

#[test]
fn r49_pending_sends_wake_a_waiter_who_takes_them() {
    let mut desk = Desk::new();
    let (first, second) = (desk.wait(), desk.wait());
    let send = desk.send();
    assert!(desk.board.poll_wait(first, 1).is_none());
    assert!(desk.board.poll_wait(second, 2).is_none());
    // The flight's runtime goes away: its guard may start nothing.
    desk.board.report(send.op, Err(Failure::new(FailureKind::Aborted, "")), desk.now);
    let work = desk.board.take_wakes();
    assert!(work.sends.is_empty());
    assert!(!work.wakes.is_empty(), "somebody has to start the next flight");
    // Whoever was woken looks, and takes the work.
    assert!(desk.board.poll_wait(first, 1).is_none());
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("first", 600)), desk.now);
    assert!(desk.board.poll_wait(first, 1).unwrap().is_ok());
    assert!(desk.board.poll_wait(second, 2).unwrap().is_ok());
}

#[test]
fn r48_when_the_one_who_should_start_a_flight_goes_away_another_is_woken() {
    let mut desk = Desk::new();
    let (first, second) = (desk.wait(), desk.wait());
    let send = desk.send();
    assert!(desk.board.poll_wait(first, 1).is_none());
    assert!(desk.board.poll_wait(second, 2).is_none());
    desk.board.report(send.op, Err(Failure::new(FailureKind::Aborted, "")), desk.now);
    let _ = desk.board.take_wakes();
    // Both were woken. One looks and keeps waiting, the other is dropped without having looked.
    assert!(desk.board.poll_wait(second, 2).is_none());
    desk.board.cancel(first, desk.now);
    assert_eq!(desk.board.take_wakes().wakes, [2]);
    assert_eq!(desk.work().sends.len(), 1);
}

#[test]
fn r46_a_request_that_nobody_started_in_time_is_not_sent_beside_the_next_one() {
    let mut desk = Desk::new();
    let waiter = desk.wait();
    let send = desk.send();
    desk.board.report(send.op, Err(Failure::new(FailureKind::Aborted, "")), desk.now);
    let _ = desk.board.take_wakes();
    desk.board.cancel(waiter, desk.now);
    let _ = desk.board.take_wakes();
    // The repeated request was never taken. Its patience ends, its back-off too, and somebody calls again.
    desk.at(60_000);
    let now = desk.now;
    desk.board.elapse(now);
    desk.at(300_000);
    let _ = desk.wait();
    assert_eq!(desk.work().sends.len(), 1);
}

#[test]
fn r48_a_cancelled_waiter_is_neither_woken_nor_kept() {
    let mut desk = Desk::new();
    let (first, second) = (desk.wait(), desk.wait());
    let send = desk.send();
    assert!(desk.board.poll_wait(first, 1).is_none());
    assert!(desk.board.poll_wait(second, 2).is_none());
    desk.board.cancel(first, desk.now);
    desk.board.report(send.op, Ok(granted("first", 600)), desk.now);
    assert_eq!(desk.work().wakes, [2]);
    // Cancelled with its result in hand.
    desk.board.cancel(second, desk.now);
    assert!(desk.board.machine().is_idle());
}

#[test]
fn r36_deadlines_and_gates_reach_the_waiters_through_elapse() {
    let mut desk = Desk::new();
    let short = desk.wait();
    let Acquire::Wait(long) = desk.board.acquire(desk.key, Some(Duration::from_secs(100)), desk.now) else { panic!() };
    let send = desk.send();
    assert!(desk.board.poll_wait(short, 1).is_none());
    assert!(desk.board.poll_wait(long, 2).is_none());
    desk.board.report(send.op, Ok(throttled(50)), desk.now);
    assert_eq!(desk.work().wakes, [1]);
    assert!(desk.board.poll_wait(short, 1).unwrap().unwrap_err().is_rate_limited());
    let timeout = desk.board.poll_timeout().unwrap().at;
    desk.now = Now { mono: timeout, unix: desk.now.unix + timeout.since(desk.now.mono) };
    let now = desk.now;
    desk.board.elapse(now);
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("first", 600)), desk.now);
    assert_eq!(desk.work().wakes, [2]);
    assert!(desk.board.poll_wait(long, 2).unwrap().is_ok());
}

#[test]
fn onlookers_are_woken_once_when_anything_happens() {
    let mut desk = Desk::new();
    desk.board.look_on(7, PartialEq::eq);
    assert!(desk.work().wakes.is_empty());
    let _ = desk.wait();
    let work = desk.work();
    assert_eq!(work.wakes, [7]);
    desk.board.report(work.sends[0].op, Ok(granted("first", 600)), desk.now);
    assert!(desk.work().wakes.is_empty());
    for onlooker in [8, 9, 8] {
        desk.board.look_on(onlooker, PartialEq::eq);
    }
    assert_eq!(desk.board.dismiss(), [9, 8]);
}

#[test]
fn r44_who_waits_for_idleness_is_woken_when_the_store_was_told() {
    let (mut desk, store) = (Desk::new(), StoreReply::default());
    let now = desk.now;
    desk.board.command(now, Machine::share);
    let _ = desk.wait();
    assert!(desk.work().store);
    for lease in [Lease::Free, Lease::Mine] {
        let op = desk.board.next_store().unwrap().op;
        desk.board.report_store(op, Ok(StoreReply { lease, ..store.clone() }), now);
    }
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("first", 600)), now);
    let _ = desk.work();
    desk.board.command(now, |machine| machine.shut_down(now));
    desk.board.look_on(7, PartialEq::eq);
    assert!(desk.work().wakes.is_empty() && !desk.board.machine().is_idle());
    let publish = desk.board.next_store().unwrap().op;
    desk.board.report_store(publish, Ok(store), now);
    assert!(desk.board.machine().is_idle());
    assert_eq!(desk.work().wakes, [7]);
}

#[test]
fn r73_one_thread_is_asked_for_where_the_store_has_work_and_another_where_it_went() {
    let mut desk = Desk::new();
    let now = desk.now;
    desk.board.command(now, Machine::share);
    let waiter = desk.wait();
    assert!(desk.board.poll_wait(waiter, 7).is_none());
    // A place without threads leaves it to a caller.
    assert_eq!(desk.board.take_wakes().wakes, [7]);
    assert!(desk.board.poll_wait(waiter, 8).is_none());
    assert!(desk.work().store);
    assert!(!desk.work().store, "one is on its way");
    assert!(desk.board.take_wakes().wakes.is_empty(), "so nobody has to be");
    desk.board.leave_store();
    assert!(desk.work().store, "it went without doing it");

    let read = desk.board.next_store().unwrap();
    assert!(!desk.work().store && desk.board.take_wakes().wakes.is_empty());
    desk.board.report_store(read.op, Ok(StoreReply::default()), now);
    assert!(!desk.work().store, "the same thread takes the next one");
    let lease = desk.board.next_store().unwrap();
    let mine = StoreReply { lease: Lease::Mine, ..StoreReply::default() };
    desk.board.report_store(lease.op, Ok(mine), now);
    assert!(desk.board.next_store().is_none());
    assert!(!desk.work().store, "there is nothing to do");
}

#[test]
fn r44_r71_who_leaves_performs_what_is_owed_to_the_store() {
    let shared = || {
        let mut desk = Desk::new();
        let now = desk.now;
        desk.board.command(now, Machine::share);
        let _ = desk.wait();
        for lease in [Lease::Free, Lease::Mine] {
            let op = desk.board.next_store().unwrap().op;
            desk.board.report_store(op, Ok(StoreReply { lease, ..StoreReply::default() }), now);
        }
        (desk, now)
    };
    let owed = |desk: &mut Desk, now| desk.board.leave(now).into_iter().map(|op| op.command).collect::<Vec<_>>();
    // A request is under way: its lease.
    let (mut desk, now) = shared();
    assert!(matches!(owed(&mut desk, now)[..], [StoreCommand::Release { rest: Duration::ZERO, .. }]));
    // A token came: it is published, also when a thread has begun to and may not come to the end.
    for begun in [false, true] {
        let (mut desk, now) = shared();
        let send = desk.send();
        desk.board.report(send.op, Ok(granted("first", 600)), now);
        assert!(!begun || desk.board.next_store().is_some());
        assert!(matches!(owed(&mut desk, now)[..], [StoreCommand::Publish { .. }]));
        assert!(owed(&mut desk, now).is_empty());
        assert!(desk.read().is_none());
    }
    // Nothing is owed, or the store has just failed.
    let (mut desk, now) = (Desk::with_token(600), Desk::new().now);
    assert!(owed(&mut desk, now).is_empty());
    let (mut desk, now) = shared();
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("first", 600)), now);
    let publish = desk.board.next_store().unwrap().op;
    desk.board.report_store(publish, Err(StoreFailure::new("it burns")), now);
    assert!(owed(&mut desk, now).is_empty());
}

#[test]
fn a_key_that_is_removed_leaves_its_cell_empty() {
    let mut desk = Desk::with_token(600);
    let (now, key) = (desk.now, desk.key);
    desk.board.command(now, |machine| machine.remove_key(key, now));
    assert!(desk.read().is_none());
    // Added again it is another key, with a cell of its own.
    let (again, cell) = desk.board.add_key(self::key("shop"), now);
    assert_ne!(again, key);
    assert!(!Arc::ptr_eq(&cell, &desk.cell));
    let (same, known) = desk.board.add_key(self::key("shop"), now);
    assert!(same == again && Arc::ptr_eq(&known, &cell));
    // Nobody but its holders keeps the old one.
    assert_eq!(Arc::strong_count(&desk.cell), 1);
}

#[test]
fn r26_a_new_token_takes_the_place_of_one_that_ends_at_the_same_moment() {
    let mut desk = Desk::with_token(600);
    desk.at(492_000);
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    let send = desk.send();
    // 0.98 of 100 s from here on, and ten seconds less than 600 s from the start.
    desk.board.report(send.op, Ok(granted("second", 100)), desk.now);
    assert_eq!(desk.read().as_deref(), Some("second"));
}

#[test]
fn r60_all_lanes_share_one_copy_of_the_token() {
    let desk = Desk::with_token(600);
    let places: Vec<_> = (0..8).map(|lane| desk.cell.header(lane, desk.now).unwrap().as_bytes().as_ptr()).collect();
    assert!(places.iter().all(|place| *place == places[0]));
}

#[test]
fn r58_neither_board_nor_cell_shows_a_secret() {
    let mut desk = Desk::with_token(600);
    desk.at(450_000);
    let _ = desk.acquire();
    let shown = format!("{:?} {:?}", desk.board, desk.cell);
    assert!(!shown.contains("S3cret") && !shown.contains("first"), "{shown}");
    let work = format!("{:?}", desk.work());
    assert!(!work.contains("S3cret"), "{work}");
}

#[test]
fn r49_a_refresh_that_nobody_took_is_taken_by_the_next_reader_of_its_cell() {
    let mut policy = Policy::default();
    policy.budget = Budget::per_minute(3, 0);
    let mut board: Board<usize> = Board::new(Machine::new(policy, 7), 1);
    let at = |millis: u64| Now::from_millis(1_000_000 + millis, 1_700_000_000_000 + millis);
    let (erp, _) = board.add_key(key("erp"), at(0));
    let (shop, cell) = board.add_key(key("shop"), at(0));
    assert!(matches!(board.acquire(shop, None, at(0)), Acquire::Wait(_)));
    let send = board.take_work().sends.pop_front().unwrap();
    board.report(send.op, Ok(granted("first", 600)), at(0));
    // One request fits: erp's goes, and the refresh of shop has to wait.
    let Acquire::Wait(erp_waits) = board.acquire(erp, None, at(460_000)) else { panic!("erp has no token") };
    let send = board.take_work().sends.pop_front().unwrap();
    assert!(matches!(board.acquire(shop, None, at(460_001)), Acquire::Ready(_)));
    assert!(board.take_work().sends.is_empty());
    // erp's flight ends where no thread may be started, and that lets shop's request go.
    board.cancel(erp_waits, at(460_002));
    board.report(send.op, Err(Failure::new(FailureKind::Aborted, "")), at(485_000));
    let _ = board.take_wakes();
    assert!(cell.token(0, at(485_001)).is_none(), "this reader asks the board");
    assert!(matches!(board.acquire(shop, None, at(485_001)), Acquire::Ready(_)));
    assert_eq!(board.take_work().sends.front().map(|send| send.key), Some(shop));
    assert!(cell.token(0, at(485_002)).is_some(), "and the others are served");
}

#[test]
fn r43_a_look_for_credentials_is_work_of_its_own_and_a_place_without_threads_leaves_it() {
    let mut desk = Desk::new();
    let (key, now) = (desk.key, desk.now);
    desk.board.command(now, |machine| machine.renew_credentials(key, now));
    desk.wait();
    let wakes = desk.board.take_wakes();
    assert!(wakes.looks.is_empty() && wakes.sends.is_empty());
    let mut work = desk.work();
    let look = work.looks.pop_front().expect("the credentials are looked for");
    assert_eq!((look.key, work.looks.len(), work.sends.len()), (key, 0, 1));
    assert!(desk.board.awaits(look.op));
    desk.board.report_credentials(look.op, Ok(Credentials::new("shop", "S3cret").unwrap()), now);
    assert!(!desk.board.awaits(look.op));
    assert!(desk.work().looks.is_empty());
}

#[test]
fn r73_a_report_is_awaited_until_it_has_come() {
    let mut machine = Machine::new(Policy::default(), 7);
    machine.share();
    let mut desk = Desk::new();
    let now = desk.now;
    desk.board = Board::new(machine, 1);
    (desk.key, desk.cell) = desk.board.add_key(key("shop"), now);
    desk.wait();
    let reply = |lease| Ok(StoreReply { record: None, lease, gate: None, failures: 0 });
    assert!(desk.work().store);
    for lease in [Lease::Free, Lease::Mine] {
        let request = desk.board.next_store().expect("the store is asked");
        assert!(desk.board.awaits(request.op));
        desk.board.report_store(request.op, reply(lease), now);
        assert!(!desk.board.awaits(request.op));
    }
    let send = desk.send();
    assert!(send.leased && desk.board.awaits(send.op));
    desk.board.report(send.op, Ok(granted("first", 600)), now);
    assert!(!desk.board.awaits(send.op));
    // What no flight waits for is awaited too.
    let publish = desk.board.next_store().expect("the token is published");
    assert!(desk.board.awaits(publish.op));
    desk.board.report_store(publish.op, reply(Lease::Free), now);
    assert!(!desk.board.awaits(publish.op));
}

#[test]
fn r54_a_board_in_a_child_wakes_nobody_of_its_parents_and_serves_on() {
    let mut desk = Desk::with_token(600);
    desk.board.in_process(1, desk.now);
    let other = desk.board.add_key(key("erp"), desk.now).0;
    let Acquire::Wait(waiter) = desk.board.acquire(other, None, desk.now) else { panic!("erp has no token") };
    assert!(desk.board.poll_wait(waiter, 7).is_none());
    desk.board.look_on(8, |one, other| one == other);
    // Reader and claim of the parent's, in mid-call.
    desk.at(450_000);
    assert_eq!(desk.read(), None);
    // The same process changes nothing.
    desk.board.in_process(1, desk.now);
    assert_eq!(desk.work().sends.len(), 1);

    desk.board.in_process(2, desk.now);
    let work = desk.work();
    assert!(work.wakes.is_empty() && work.sends.is_empty(), "{work:?}");
    assert_eq!(desk.board.poll_timeout(), None);
    assert_eq!(desk.board.poll_wait(waiter, 9).unwrap().unwrap_err(), AcquireError::DeadlineExceeded);
    // One reader asks again, and the others are served.
    assert_eq!((0..100).filter(|_| desk.read().is_none()).count(), 1);
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert_eq!(desk.work().sends.len(), 1);
}

/// What was measured, as `name{label} value`.
fn measured(work: &Work<usize>) -> Vec<String> {
    (work.measurements.iter().chain(&work.gauges)).map(shown).collect()
}

fn shown(Measurement { metric, label, value, .. }: &Measurement) -> String {
    assert_eq!(metric.label.is_some(), label.is_some(), "{metric:?}");
    assert!(Metric::ALL.contains(metric), "{metric:?}");
    let label = label.as_deref().map_or(String::new(), |label| format!("{{{label}}}"));
    let (kind, value) = match value {
        Reading::Add(count) => (MetricKind::Counter, count.to_string()),
        Reading::Set(value) => (MetricKind::Gauge, value.to_string()),
        Reading::Record(span) => (MetricKind::Histogram, span.to_string()),
    };
    assert_eq!(metric.kind, kind, "{metric:?}");
    format!("{}{label} {value}", metric.name.trim_start_matches("storm_auth_"))
}

fn metered() -> Desk {
    metered_by(Machine::new(Policy::default(), 7))
}

fn metered_by(machine: Machine) -> Desk {
    let desk = Desk::new();
    let mut board = Board::new(machine, 4).measured();
    let (key, cell) = board.add_key(key("shop"), desk.now);
    let _ = board.take_work();
    Desk { board, key, cell, now: desk.now }
}

#[test]
fn r79_a_board_measures_calls_requests_and_what_came_of_them() {
    let mut desk = metered();
    desk.wait();
    let mut work = desk.work();
    let first = ["events_total{token_requested} 1", "token_requests_total{first} 1", "budget_left 20"];
    assert_eq!(measured(&work), first);

    let send = work.sends.pop_front().unwrap();
    let now = desk.at(250);
    let landing = desk.board.report(send.op, Ok(granted("first", 600)), now);
    assert_eq!((landing, landing.to_string().as_str()), (Landing::Granted, "granted"));
    let landed = [
        "token_request_seconds{granted} 0.25",
        "events_total{token_granted} 1",
        "calls_total{waited} 1",
        "wait_seconds{waited} 0.25",
        "token_outcomes_total{granted} 1",
        "token_expiry_timestamp_seconds{0} 1700000590",
        "budget_left 20",
    ];
    assert_eq!(measured(&desk.work()), landed);

    // Served past the machine, which the driver counts itself; asked, and ready; and again what nobody waits for.
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert_eq!(measured(&desk.work()), ["calls_total{ready} 1"]);
    assert_eq!(desk.board.report(send.op, Ok(granted("late", 600)), now), Landing::Late);
    assert_eq!(desk.board.report(send.op, Err(Failure::new(FailureKind::Io, "late")), now), Landing::Late);
    assert_eq!(measured(&desk.work()), ["events_total{late_report} 1"; 2]);

    // Without being asked for there is none.
    let mut desk = Desk::with_token(600);
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert!(desk.work().measurements.is_empty());
}

#[test]
fn r79_a_board_measures_who_gave_up_and_what_ended_without_a_report() {
    let mut desk = metered();
    let (patient, hasty) = (desk.wait(), desk.wait());
    let _ = desk.work();
    let now = desk.at(1_000);
    desk.board.cancel(hasty, now);
    assert_eq!(measured(&desk.work()), ["calls_total{given_up} 1", "wait_seconds{given_up} 1"]);

    // The caller's deadline, and then the request's patience, by the machine's own clock.
    let now = desk.at(30_000);
    desk.board.elapse(now);
    assert!(desk.board.poll_wait(patient, 0).unwrap().is_err());
    assert_eq!(measured(&desk.work()), ["calls_total{failed} 1", "wait_seconds{failed} 30"]);
    let now = desk.at(60_000);
    desk.board.elapse(now);
    let ended = [
        "events_total{request_failed} 1",
        "token_outcomes_total{timeout} 1",
        "token_request_seconds{timeout} 60",
        "budget_left 21",
    ];
    assert_eq!(measured(&desk.work()), ended);
}

#[test]
fn work_is_empty_where_none_of_its_parts_has_anything() {
    type Swap = fn(&mut Work<usize>, &mut Work<usize>);
    let swaps: [Swap; 7] = [
        |one, other| swap(&mut one.wakes, &mut other.wakes),
        |one, other| swap(&mut one.events, &mut other.events),
        |one, other| swap(&mut one.sends, &mut other.sends),
        |one, other| swap(&mut one.looks, &mut other.looks),
        |one, other| swap(&mut one.measurements, &mut other.measurements),
        |one, other| swap(&mut one.gauges, &mut other.gauges),
        |one, other| swap(&mut one.store, &mut other.store),
    ];
    let mut desk = metered();
    let (key, now) = (desk.key, desk.now);
    desk.board.command(now, |machine| machine.renew_credentials(key, now));
    desk.wait();
    let (mut full, mut empty) = (desk.work(), desk.work());
    full.wakes.push(7);
    full.store = true;
    assert!(!full.is_empty() && empty.is_empty());
    for (part, swap) in swaps.into_iter().enumerate() {
        swap(&mut empty, &mut full);
        assert!(!empty.is_empty(), "{part}");
        swap(&mut empty, &mut full);
    }
}

#[test]
fn r79_a_request_whose_key_is_gone_is_measured_as_aborted() {
    let mut desk = metered();
    desk.wait();
    let _ = desk.work();
    let (key, now) = (desk.key, desk.at(2_000));
    desk.board.command(now, |machine| machine.remove_key(key, now));
    let work = measured(&desk.work());
    assert!(work.contains(&"token_request_seconds{aborted} 2".to_owned()), "{work:?}");
}

#[test]
fn r79_a_budget_without_a_limit_is_not_measured() {
    let mut policy = Policy::default();
    policy.budget = Budget::unlimited();
    let mut desk = metered_by(Machine::new(policy, 7));
    desk.wait();
    assert_eq!(measured(&desk.work()), ["events_total{token_requested} 1", "token_requests_total{first} 1"]);
}

/// A measured board that shares and has asked for the lease, and that operation.
fn leasing() -> (Desk, OpId) {
    let mut machine = Machine::new(Policy::default(), 7);
    machine.share();
    let mut desk = metered_by(machine);
    desk.wait();
    let read = desk.board.next_store().expect("the store is read");
    desk.board.report_store(read.op, Ok(StoreReply::default()), desk.now);
    let lease = desk.board.next_store().expect("the lease is asked for");
    (desk, lease.op)
}

#[test]
fn r79_what_a_store_answers_to_who_asks_for_a_lease_is_measured() {
    let leases = [Lease::Mine, Lease::Free, Lease::Taken, Lease::Lapsed, Lease::Resting(Duration::from_secs(9))];
    let replies = leases.map(|lease| Ok(StoreReply { lease, ..StoreReply::default() }));
    let outcomes = replies.into_iter().chain([Err(StoreFailure::new("it burns"))]).map(|reply| {
        let (mut desk, lease) = leasing();
        desk.board.report_store(lease, reply, desk.now);
        let mut work = measured(&desk.work());
        work.retain(|measured| measured.starts_with("leases_total"));
        work.concat()
    });
    let expected = ["mine", "free", "taken", "lapsed", "resting", "failed"].map(|it| format!("leases_total{{{it}}} 1"));
    assert_eq!(outcomes.collect::<Vec<_>>(), expected);

    // One that comes when nobody waits for it any more is none.
    let (mut desk, lease) = leasing();
    let now = desk.at(5_000);
    desk.board.elapse(now);
    desk.board.report_store(lease, Ok(StoreReply { lease: Lease::Mine, ..StoreReply::default() }), now);
    let work = measured(&desk.work());
    assert!(!work.iter().any(|measured| measured.starts_with("leases_total")), "{work:?}");
    assert!(work.contains(&"token_requests_total{first} 1".to_owned()), "{work:?}");
}

#[test]
fn r79_calls_are_counted_by_lane_and_told_in_batches() {
    let served = Served::default();
    // Thread numbers have no end; those of 0 and 8 share a lane.
    let told: Vec<_> = (0..256).map(|call| served.count(call % 2 * 8)).collect();
    assert_eq!((told[..255].iter().sum::<u64>(), told[255]), (0, 256));
    assert_eq!((served.count(1), served.count(7), served.total()), (0, 0, 258));
    assert_eq!((served.take(), served.take(), served.total()), (2, 0, 258));
}

#[test]
fn r79_a_throttle_is_measured_with_its_gate() {
    let mut desk = metered();
    desk.wait();
    let send = desk.send();
    assert_eq!(desk.board.report(send.op, Ok(throttled(120)), desk.now), Landing::Throttled);
    let work = measured(&desk.work());
    for expected in [
        "token_request_seconds{throttled} 0",
        "events_total{gate_closed} 1",
        "token_outcomes_total{throttled} 1",
        "calls_total{failed} 1",
        "budget_left 1",
    ] {
        assert!(work.iter().any(|measured| measured == expected), "{expected} in {work:?}");
    }
    let gate = work.iter().find_map(|text| text.strip_prefix("gate_closed_until_timestamp_seconds ")).unwrap();
    assert!((1_700_000_120.0..1_700_000_200.0).contains(&gate.parse::<f64>().unwrap()), "{gate}");
    // Who comes then is turned away at once.
    assert!(matches!(desk.acquire(), Acquire::Failed(_)));
    assert_eq!(measured(&desk.work()), ["calls_total{failed} 1"]);
}

/// What is told after unlocking may be overtaken; so whoever sets gauges is alone, and sets what has changed meanwhile.
#[test]
fn r79_no_gauge_ends_on_a_value_that_is_not_its_last_one() {
    let mut desk = metered();
    let waiter = desk.wait();
    let send = desk.send();
    let now = desk.at(250);
    desk.board.report(send.op, Ok(granted("first", 600)), now);
    let slow = desk.board.take_work();
    assert_eq!(slow.gauges.iter().map(shown).collect::<Vec<_>>()[0], "token_expiry_timestamp_seconds{0} 1700000590");

    // The slow one has not set it yet when two others find the token rejected and replaced, and are done.
    let token = desk.board.poll_wait(waiter, 0).unwrap().unwrap();
    desk.board.command(now, |machine| machine.invalidate(token.id(), now));
    let quick = desk.board.take_work();
    assert!(quick.gauges.is_empty() && !quick.measurements.is_empty(), "{quick:?}");
    desk.wait();
    let send = desk.board.take_work().sends.pop_front().unwrap();
    let now = desk.at(10_250);
    desk.board.report(send.op, Ok(granted("second", 600)), now);
    assert!(desk.board.take_wakes().gauges.is_empty());
    let gauges = |desk: &mut Desk| desk.board.next_gauges().iter().map(shown).collect::<Vec<_>>();
    assert_eq!(gauges(&mut desk), ["token_expiry_timestamp_seconds{0} 1700000590.25", "budget_left 19"]);
    assert!(gauges(&mut desk).is_empty());

    // And the next one sets them again; a child does so as well, whatever its parent was about to do.
    desk.board.in_process(1, desk.now);
    desk.at(470_000);
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert_eq!(desk.board.take_work().gauges.len(), 1);
    desk.board.in_process(2, desk.now);
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    assert_eq!(desk.board.take_work().gauges.len(), 1);
}

#[test]
fn r79_a_child_measures_what_it_does_itself() {
    let mut desk = metered();
    desk.board.in_process(1, desk.now);
    desk.wait();
    let send = desk.send();
    desk.board.report(send.op, Ok(granted("first", 600)), desk.now);
    let _ = desk.work();
    desk.at(480_000);
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    let _ = desk.work();
    desk.board.in_process(2, desk.now);
    assert_eq!(measured(&desk.work()), Vec::<String>::new());
    assert!(matches!(desk.acquire(), Acquire::Ready(_)));
    let work = measured(&desk.work());
    assert!(work.contains(&"token_requests_total{refresh} 1".to_owned()), "{work:?}");
    assert!(!work.iter().any(|measured| measured.starts_with("token_outcomes_total")), "{work:?}");
}
