//! Every block of memory that is given back is searched for a secret and a token: what the core owned of them has to be wiped by then.
//!
//! The one test of its process, since it puts itself in the allocator's place.
#![allow(unsafe_code, reason = "a global allocator cannot be written without: it looks at blocks as they are freed")]
#![allow(clippy::unwrap_used, reason = "what the test shares stands outside of its function")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{HeaderMap, Response};
use storm_auth_core::{
    AcquireError, Credentials, Environment, Failure, FailureKind, KeyId, Machine, Now, Settings,
    driver::{Board, Cell},
    machine::Acquire,
    wire::response::ResponseBody,
};

/// Sixteen bytes of each are looked for; none of them stands on the heap for another reason.
const SECRET: &str = "sEcReT-cAnArY-0123456789abcdefghijklmnopqrstuvwxyz";
const TOKEN: &str = "tOkEn-CaNaRy-abcdefghijklmnopqrstuvwxyz0123456789.ABCDEFGHIJKLMNOPQRSTUVWXYZ";

struct Watched;

static FREED_UNWIPED: AtomicUsize = AtomicUsize::new(0);
static SEARCHED: AtomicUsize = AtomicUsize::new(0);

/// Without allocating: it runs inside the allocator.
fn shows_a_canary(block: *const u8, size: usize) -> bool {
    let is_at = |at: usize, needle: &[u8]| {
        at + needle.len() <= size
            && needle.iter().enumerate().all(|(offset, byte)| {
                // SAFETY: `at + offset` lies in the block, which is still allocated. The read is volatile because parts of
                // the block may never have been written.
                *byte == unsafe { block.add(at + offset).read_volatile() }
            })
    };
    (0..size).any(|at| is_at(at, &SECRET.as_bytes()[..16]) || is_at(at, &TOKEN.as_bytes()[..16]))
}

// SAFETY: every call goes to the system's allocator as it came. `realloc` is the trait's own, which allocates, copies and
// frees, so that what a growing buffer leaves behind is searched too.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        SEARCHED.fetch_add(1, Ordering::Relaxed);
        if shows_a_canary(block, layout.size()) {
            FREED_UNWIPED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn at(millis: u64) -> Now {
    Now::from_millis(millis, 1_700_000_000_000 + millis)
}

fn board() -> (Board<()>, KeyId, Arc<Cell>) {
    let config = Settings::new()
        .environment(Environment::storm_lab())
        .credentials(Credentials::new("shop", SECRET).unwrap())
        .check()
        .unwrap();
    let mut board = Board::new(Machine::new(config.policy, 7), 8);
    let (key, cell) = board.add_key(config.key, at(0));
    (board, key, cell)
}

/// One request of a new board, answered with this; its body in pieces that make buffers grow.
fn exchange(status: u16, headers: &[(&'static str, &'static str)], body: &[&str]) -> Board<()> {
    let (mut board, key, cell) = board();
    let Acquire::Wait(waiter) = board.acquire(key, None, at(0)) else { panic!("nothing is cached") };
    let mut work = board.take_work();
    let send = work.sends.pop_front().unwrap();
    drop(send.clone());
    let (_, form) = send.request.into_parts();
    let bytes = form.into_bytes();
    assert!(bytes.windows(16).any(|window| window == &SECRET.as_bytes()[..16]));
    drop((bytes.clone(), bytes));

    let mut answer = ResponseBody::new();
    for piece in body {
        if answer.push(piece.as_bytes()).is_err() {
            break;
        }
    }
    let mut response = Response::new(answer);
    *response.status_mut() = status.try_into().unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    board.report(send.op, Ok(response), at(50));
    let result = board.poll_wait(waiter, ()).unwrap_or_else(|| {
        // Throttled: it would wait.
        board.cancel(waiter, at(51));
        Err(AcquireError::DeadlineExceeded)
    });
    if let Ok(token) = &result {
        let header = token.header();
        let mut headers = HeaderMap::new();
        headers.insert("authorization", header.clone());
        // A reader on each lane, and what it may do with its token.
        let read: Vec<_> = (0..8).map(|lane| (cell.header(lane, at(60)), cell.token(lane, at(60)))).collect();
        let told = format!("{token:?} {header:?} {headers:?} {read:?}");
        assert!(!told.contains("CaNaRy"), "{told}");
    }
    let told = format!("{result:?} {:?} {board:?}", board.take_work().events);
    assert!(!told.contains("CaNaRy") && !told.contains("cAnArY"), "{told}");
    if let Err(error) = result {
        drop(error.to_string());
    }
    board
}

/// What runs leaves no block unwiped.
fn assert_wiped(what: &str, act: impl FnOnce()) {
    let before = (FREED_UNWIPED.load(Ordering::Relaxed), SEARCHED.load(Ordering::Relaxed));
    act();
    let unwiped = FREED_UNWIPED.load(Ordering::Relaxed) - before.0;
    assert!(SEARCHED.load(Ordering::Relaxed) > before.1, "{what}: nothing was freed");
    assert_eq!(unwiped, 0, "{what}: blocks that were freed with a secret or a token in them");
}

#[test]
fn r7_r60_what_the_core_owned_is_wiped_when_its_last_holder_goes() {
    // The eyes are open.
    drop(String::from(TOKEN));
    drop(vec![0_u8; 64].into_iter().chain(SECRET.bytes()).collect::<Vec<_>>());
    assert!(FREED_UNWIPED.load(Ordering::Relaxed) >= 2);

    let granted = [r#"{"access_token":""#, TOKEN, r#"","expires_in":600,"token_type":"Bearer","scope":"lab"}"#];
    let escaped =
        ["{\"access_token\":\"\\u0074OkEn-CaNaRy-abcdefghijklmnopqrstuvwxyz0123456789", "\",\"expires_in\":600}"];
    let long = "x".repeat(5_000);
    let with_long = [r#"{"unknown":""#, &long, r#"","access_token":""#, TOKEN, &long, r#"","expires_in":600}"#];
    let too_large = [TOKEN, &"x".repeat(70_000)];
    let echoed = [r#"{"error":"invalid_client","error_description":""#, SECRET, r#""}"#];
    let twice = [r#"{"access_token":""#, TOKEN, r#"","access_token":""#, TOKEN, r#""}"#];
    let with_error = [r#"{"access_token":""#, TOKEN, r#"","error":"x","error_description":""#, TOKEN, r#""}"#];
    let cut = [r#"{"access_token":""#, TOKEN];
    let wrong_type = [r#"{"access_token":""#, TOKEN, r#"","token_type":"mac","refresh_token":""#, TOKEN, r#""}"#];
    let page = ["<html>", SECRET, TOKEN];

    assert_wiped("a board that never asks", || drop(board()));
    assert_wiped("credentials that are refused", || {
        drop(Credentials::new("shop\n", SECRET));
        drop(Credentials::new("shop", [SECRET, "\n"].concat()));
    });
    assert_wiped("a token", || drop(exchange(200, &[], &granted)));
    assert_wiped("a token with an escape in it", || drop(exchange(200, &[], &escaped)));
    assert_wiped("a token in a long answer", || drop(exchange(200, &[], &with_long)));
    assert_wiped("an answer that is too large", || drop(exchange(200, &[], &too_large)));
    assert_wiped("an error that echoes the secret", || drop(exchange(400, &[], &echoed)));
    assert_wiped("a token that stands twice", || drop(exchange(200, &[], &twice)));
    assert_wiped("an error beside a token", || drop(exchange(200, &[], &with_error)));
    assert_wiped("an answer that is cut", || drop(exchange(200, &[], &cut)));
    assert_wiped("a token of another type", || drop(exchange(200, &[], &wrong_type)));
    assert_wiped("a page", || drop(exchange(502, &[], &page)));
    assert_wiped("a throttle", || drop(exchange(429, &[("retry-after", "5")], &page)));
    assert_wiped("a refresh, a rejection, other credentials and the end", || {
        let mut board = exchange(200, &[], &granted);
        let key = board.machine().status(at(60)).keys[0].key;
        let Acquire::Ready(first) = board.acquire(key, None, at(500_000)) else { panic!("it is cached") };
        let send = board.take_work().sends.pop_front().unwrap();
        board.report(send.op, Err(Failure::new(FailureKind::Io, "reset")), at(500_001));
        board.command(at(500_002), |machine| machine.invalidate(first.id(), at(500_002)));
        drop(first);
        let other = Credentials::new("shop", "0ther").unwrap();
        board.command(at(500_003), |machine| machine.set_credentials(key, other, at(500_003))).unwrap();
        let _ = board.take_work();
        board.command(at(500_004), |machine| machine.shut_down(at(500_004)));
    });
}
