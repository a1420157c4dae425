//! Panics of the caller's own code, and callers inside other runtimes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use storm_auth_core::{AcquireError, Cause, Event, FailureKind, Settings};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault, Limiter};

use crate::face::{Adapter, Events, PATIENCE, Setup, TokenClient, get, named_url, until};

both!(
    r52_a_callback_that_panics_poisons_nothing,
    r52_a_flight_that_panics_is_a_failed_request,
    r52_a_callback_may_use_its_own_provider,
    r52_a_subscriber_that_panics_poisons_nothing,
);

/// Takes what the adapters say, and panics over it.
struct Panics(Arc<AtomicU64>);

impl tracing::Subscriber for Panics {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "storm_auth"
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("the subscriber's own panic");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

fn r52_a_subscriber_that_panics_poisons_nothing<A: Adapter>() {
    let play = || {
        let emulator = Emulator::builder().limiter(Limiter::none()).start();
        let clock = A::movable_clock();
        let events = Events::default();
        let storm = Setup::<A>::at(&emulator).clock(&clock).events(&events).client();
        let tokens = A::tokens(&storm);
        A::token(&tokens).unwrap();
        emulator.revoke_all();
        assert_eq!(A::call(&storm, get("/")).unwrap().status.as_u16(), 200);
        A::advance(&clock, Duration::from_secs(595));
        emulator.fail_next(Endpoint::Token, 1, Fault::html(502));
        A::token(&tokens).unwrap_err();
        A::advance(&clock, Duration::from_secs(6));
        A::token(&tokens).unwrap();
        A::close(&tokens, PATIENCE).unwrap();
        assert_eq!(emulator.token_requests(), A::counters(&tokens).requests);
    };
    // Once without it: `tracing` may leave a subscriber out for good where an event's place is met for the first time while it comes.
    // Another test may be meeting one even so, on a thread that waits for its turn; so how often it is told is left open.
    play();
    let told = Arc::new(AtomicU64::new(0));
    tracing::subscriber::with_default(Panics(told.clone()), play);
    assert!(told.load(Ordering::Relaxed) > 0, "it never panicked");
}

fn r52_a_callback_that_panics_poisons_nothing<A: Adapter>() {
    let emulator = Emulator::builder().limiter(Limiter::none()).start();
    let events = Events::panicking();
    let clock = A::movable_clock();
    let storm = Setup::<A>::at(&emulator).clock(&clock).events(&events).client();
    let tokens = A::tokens(&storm);
    for token in A::tokens_at_once(&tokens, 20) {
        token.unwrap();
    }
    emulator.revoke_all();
    assert_eq!(A::call(&storm, get("/")).unwrap().status.as_u16(), 200);
    A::advance(&clock, Duration::from_secs(595));
    emulator.fail_next(Endpoint::Token, 1, Fault::html(502));
    A::token(&tokens).unwrap_err();
    A::advance(&clock, Duration::from_secs(6));
    A::token(&tokens).unwrap();
    A::close(&tokens, PATIENCE).unwrap();
    until("the callback is told to the end", || {
        events.seen().iter().filter(|event| matches!(event, Event::Granted { .. })).count() == 3
    });
    assert_eq!(emulator.token_requests(), A::counters(&tokens).requests);
}

fn r52_a_flight_that_panics_is_a_failed_request<A: Adapter>() {
    let emulator = Emulator::start();
    let named = |settings: Settings| settings.token_url(named_url(&emulator));
    let all_wait: &AtomicBool = Box::leak(Box::default());
    let tokens = Setup::<A>::at(&emulator).set(named).token_client(TokenClient::Panicking(all_wait)).tokens();
    let errors = std::thread::scope(|scope| {
        let callers = scope.spawn(|| A::tokens_at_once(&tokens, 20));
        // One who came after the back-off would start a request of his own.
        until("all of them wait", || A::status(&tokens).waiters == 20);
        all_wait.store(true, Ordering::Relaxed);
        callers.join().unwrap()
    });
    for error in errors.into_iter().map(|token| token.unwrap_err()) {
        let Some(AcquireError::Unavailable { cause: Cause::Failed(failure), .. }) = &error.acquire else {
            panic!("{error:?}")
        };
        assert_eq!(failure.kind, FailureKind::Aborted);
    }
    // Not for ever: three at once, and then the back-off of any failure.
    assert!(A::counters(&tokens).aborted <= 3, "{:?}", A::counters(&tokens));
    assert_eq!(A::status(&tokens).waiters, 0);
    A::close(&tokens, PATIENCE).unwrap();
    // Another provider is none the worse for it.
    A::token(&Setup::<A>::at(&emulator).set(named).tokens()).unwrap();
}

fn r52_a_callback_may_use_its_own_provider<A: Adapter>() {
    let emulator = Emulator::start();
    let events = Events::default();
    let tokens = Setup::<A>::at(&emulator).events(&events).tokens();
    let asked = events.clone();
    events.act({
        let tokens = tokens.clone();
        move |_| drop((A::status(&tokens), A::counters(&tokens)))
    });
    A::token(&tokens).unwrap();
    A::close(&tokens, PATIENCE).unwrap();
    until("the last event", || asked.any(|event| matches!(event, Event::Granted { .. })));
    // The callback holds the provider, which holds the callback: the test lets go of it.
    asked.act(|_| ());
}
