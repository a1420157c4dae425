//! R72, R73, R75: providers that share a store, as processes do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use storm_auth_core::Event;
use storm_auth_core::store::{StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore};
use storm_auth_tests::emulator::{At, Emulator, Endpoint, Fault};
use storm_auth_tests::memory_store::MemoryStore;

use crate::face::{Adapter, Events, PATIENCE, Setup, arrived, pass, until};

both!(
    r72_providers_that_share_send_one_request,
    r72_r76_all_keys_of_all_callers_share,
    r75_a_store_that_fails_is_done_without_and_told_once,
    r75_a_store_that_hangs_costs_a_second_and_no_caller_its_token,
    r75_a_store_that_panics_is_done_without,
    r73_a_lease_is_renewed_although_nobody_waits,
    r44_closing_waits_until_the_token_is_published,
    r44_r71_a_provider_that_is_dropped_leaves_its_token_and_no_lease,
);

fn memory() -> Arc<MemoryStore> {
    let store = MemoryStore::new();
    store.set_time(SystemTime::now().into());
    Arc::new(store)
}

fn r72_providers_that_share_send_one_request<A: Adapter>() {
    let (emulator, store) = (Emulator::start(), memory());
    let all: Vec<_> = (0..5).map(|seed| Setup::<A>::at(&emulator).store(&store, seed).tokens()).collect();
    let tokens: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = all.iter().map(|tokens| scope.spawn(|| A::tokens_at_once(tokens, 20))).collect();
        callers.into_iter().flat_map(|callers| callers.join().unwrap()).map(|token| token.unwrap()).collect()
    });
    assert_eq!(tokens.len(), 100);
    assert!(tokens.iter().all(|token| token.expose() == tokens[0].expose()));
    assert_eq!(emulator.token_requests(), 1);
}

fn r72_r76_all_keys_of_all_callers_share<A: Adapter>() {
    let (emulator, store) = (Emulator::start(), memory());
    let one = Setup::<A>::at(&emulator).store(&store, 1).client();
    let other = Setup::<A>::at(&emulator).store(&store, 2).client();
    let token = A::token(&A::tokens(&one)).unwrap();
    // The API rejects it: one of them gets another, and the other one finds that.
    emulator.revoke(token.expose());
    A::invalidate(&A::tokens(&one), token.id());
    let next = A::token(&A::tokens(&one)).unwrap();
    assert_ne!(next.expose(), token.expose());
    A::close(&A::tokens(&one), PATIENCE).unwrap();
    // A machine under load may take longer than a store is waited for; then the other one finds the rejected token, or none.
    until("the other one has a good token", || {
        let found = A::token(&A::tokens(&other)).unwrap();
        if found.expose() == token.expose() {
            A::invalidate(&A::tokens(&other), found.id());
        }
        found.expose() != token.expose()
    });
    assert!((2..=3).contains(&emulator.token_requests()));
}

/// A store that does something else in place of what it is asked for, for as long as it is to.
struct Odd {
    store: Arc<MemoryStore>,
    is: AtomicBool,
    does: fn(&Self) -> Result<StoreReply, StoreFailure>,
    leases: AtomicU64,
    publications: AtomicU64,
    go_on: (Mutex<bool>, Condvar),
}

impl std::fmt::Debug for Odd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Odd").finish_non_exhaustive()
    }
}

impl Odd {
    fn new(does: fn(&Self) -> Result<StoreReply, StoreFailure>) -> Arc<Self> {
        Arc::new(Self {
            store: memory(),
            is: AtomicBool::new(true),
            does,
            leases: AtomicU64::new(0),
            publications: AtomicU64::new(0),
            go_on: (Mutex::new(false), Condvar::new()),
        })
    }

    fn wait(&self) {
        let (go_on, told) = &self.go_on;
        drop(told.wait_while(go_on.lock().unwrap(), |go_on| !*go_on).unwrap());
    }

    fn release(&self) {
        *self.go_on.0.lock().unwrap() = true;
        self.go_on.1.notify_all();
    }
}

impl TokenStore for Odd {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        match op.command {
            StoreCommand::Lease { .. } => _ = self.leases.fetch_add(1, Ordering::Relaxed),
            StoreCommand::Publish { .. } => _ = self.publications.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
        if self.is.load(Ordering::Relaxed) {
            return (self.does)(self);
        }
        self.store.perform(op)
    }
}

fn r75_a_store_that_fails_is_done_without_and_told_once<A: Adapter>() {
    let (emulator, events) = (Emulator::start(), Events::default());
    let store = Odd::new(|_| Err(StoreFailure::new("no way there")));
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).store(&store, 1).events(&events).clock(&clock).tokens();
    let first = A::token(&tokens).unwrap();
    for _ in 0..3 {
        A::invalidate(&tokens, A::token(&tokens).unwrap().id());
        A::advance(&clock, Duration::from_secs(70));
    }
    assert_ne!(A::token(&tokens).unwrap().expose(), first.expose());
    let failed = |event: &Event| matches!(event, Event::StoreFailed { detail, .. } if detail == "no way there");
    let failures = || events.seen().iter().filter(|event| failed(event)).count();
    until("it is told", || failures() > 0);

    // It can be used again, and is.
    store.is.store(false, Ordering::Relaxed);
    A::invalidate(&tokens, A::token(&tokens).unwrap().id());
    A::advance(&clock, Duration::from_secs(70));
    let shared = A::token(&tokens).unwrap();
    until("it says so", || events.seen().iter().any(|event| matches!(event, Event::StoreRecovered)));
    // The token before it may have been told to the store first, by an operation that was on its way when the store came back.
    until("it is shared", || {
        let other = Setup::<A>::at(&emulator).store(&store, 2).clock(&clock).tokens();
        A::token(&other).unwrap().expose() == shared.expose()
    });
    assert_eq!(failures(), 1);
}

fn r75_a_store_that_hangs_costs_a_second_and_no_caller_its_token<A: Adapter>() {
    let emulator = Emulator::start();
    let store = Odd::new(|odd| {
        odd.wait();
        Err(StoreFailure::new("too late"))
    });
    let tokens = Setup::<A>::at(&emulator).store(&store, 1).tokens();
    for token in A::tokens_at_once(&tokens, 10) {
        token.unwrap();
    }
    assert_eq!(emulator.token_requests(), 1);
    // Dropping and closing wait for nothing that hangs.
    A::close(&tokens, PATIENCE).unwrap();
    drop(tokens);
    store.release();
}

fn r75_a_store_that_panics_is_done_without<A: Adapter>() {
    let emulator = Emulator::start();
    let store = Odd::new(|_| panic!("a store's own panic"));
    let tokens = Setup::<A>::at(&emulator).store(&store, 1).tokens();
    A::token(&tokens).unwrap();
    A::token(&tokens).unwrap();
    assert_eq!(emulator.token_requests(), 1);
}

fn r73_a_lease_is_renewed_although_nobody_waits<A: Adapter>() {
    let emulator = Emulator::start();
    let store = Odd::new(|_| unreachable!());
    store.is.store(false, Ordering::Relaxed);
    emulator.fail(Endpoint::Token, Fault::Stall(At::Headers));
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).store(&store, 1).clock(&clock).tokens();
    leave_a_request::<A>(&emulator, &clock, &tokens);
    until("the lease is renewed", || store.leases.load(Ordering::Relaxed) >= 2);
}

/// The caller goes, its request stays.
fn leave_a_request<A: Adapter>(emulator: &Emulator, clock: &A::Clock, tokens: &A::Tokens) {
    let (patience, longer) = (Duration::from_secs(1), Duration::from_secs(2));
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| A::token_within(tokens, patience));
        arrived(emulator);
        pass::<A>(clock, tokens, longer);
        caller.join().unwrap().unwrap_err();
    });
}

fn r44_closing_waits_until_the_token_is_published<A: Adapter>() {
    let (emulator, store) = (Emulator::start(), Odd::new(|_| unreachable!()));
    store.is.store(false, Ordering::Relaxed);
    let tokens = Setup::<A>::at(&emulator).store(&store, 1).tokens();
    A::token(&tokens).unwrap();
    A::close(&tokens, PATIENCE).unwrap();
    assert_eq!(store.publications.load(Ordering::Relaxed), 1);
    let other = Setup::<A>::at(&emulator).store(&store, 2).tokens();
    A::token(&other).unwrap();
    assert_eq!(emulator.token_requests(), 1);
}

fn r44_r71_a_provider_that_is_dropped_leaves_its_token_and_no_lease<A: Adapter>() {
    let (emulator, store) = (Emulator::start(), memory());
    for seed in 1..20 {
        let tokens = Setup::<A>::at(&emulator).store(&store, seed).tokens();
        A::token(&tokens).unwrap();
        drop(tokens);
        assert_eq!(emulator.token_requests(), 1, "the job of seed {seed}");
    }
    // One whose request is under way gives the lease back.
    let (emulator, store) = (Emulator::start(), memory());
    emulator.fail(Endpoint::Token, Fault::Stall(At::Headers));
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).store(&store, 1).clock(&clock).tokens();
    leave_a_request::<A>(&emulator, &clock, &tokens);
    drop(tokens);
    emulator.heal(Endpoint::Token);
    let other = Setup::<A>::at(&emulator).store(&store, 2).tokens();
    A::token_within(&other, Duration::from_secs(5)).unwrap();
}
