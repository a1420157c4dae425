//! A cached token costs no allocation, in either adapter.
//!
//! Counting needs a global allocator, and that is `unsafe` by its trait; it forwards to the system's.
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use storm_auth_tests::emulator::{APPLICATION_ID, Emulator};

struct Counting;

thread_local!(static COUNT: Cell<u64> = const { Cell::new(0) });

// SAFETY: every call goes to the system's allocator as it came; the counter is a plain number of the calling thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(act: impl FnOnce()) -> u64 {
    let before = COUNT.with(Cell::get);
    act();
    COUNT.with(Cell::get) - before
}

#[test]
fn a_cached_token_costs_no_allocation_async() {
    use storm_auth_reqwest::{Credentials, Environment, StormClient};

    let emulator = Emulator::start();
    let storm = StormClient::builder()
        .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap())
        .application_id(APPLICATION_ID)
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        storm.tokens().token().await.unwrap();
        // The first read of a thread may set up its place in the cell.
        black_box(storm.tokens().header().await.unwrap());
    });
    assert!(allocations(|| drop(black_box(vec![1_u8; 100]))) > 0, "the counter counts");
    let cached = allocations(|| {
        runtime.block_on(async {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            for _ in 0..1_000 {
                // Ready at the first poll.
                let mut header = std::pin::pin!(storm.tokens().header());
                assert!(header.as_mut().poll(&mut context).is_ready());
                let mut token = std::pin::pin!(storm.tokens().token());
                assert!(token.as_mut().poll(&mut context).is_ready());
            }
        });
    });
    assert_eq!(cached, 0);
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn a_cached_token_costs_no_allocation_blocking() {
    use storm_auth_blocking::{Credentials, Environment, StormClient};

    let emulator = Emulator::start();
    let storm = StormClient::builder()
        .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap())
        .application_id(APPLICATION_ID)
        .build()
        .unwrap();
    storm.tokens().token().unwrap();
    black_box(storm.tokens().header().unwrap());
    let cached = allocations(|| {
        for _ in 0..1_000 {
            black_box(storm.tokens().header().unwrap());
            black_box(storm.tokens().token().unwrap());
        }
    });
    assert_eq!(cached, 0);
    assert_eq!(emulator.token_requests(), 1);
}
