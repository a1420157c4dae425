//! Callers that come and go, and threads and runtimes around them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use storm_auth_core::AcquireError;
use storm_auth_tests::emulator::{Clock, Emulator, Endpoint, Fault};

use crate::{
    face::{Adapter, Setup, arrived, get, until},
    peers::{Peer, answer, hear},
};

both!(
    r48_callers_that_give_up_leave_the_others_served,
    r48_who_gives_up_last_leaves_the_request_to_whoever_comes,
    r50_providers_work_from_threads_that_end,
    r56_an_api_connection_that_died_while_idle_costs_one_reconnect,
);

fn delayed() -> Emulator {
    let emulator = Emulator::builder().clock(Clock::manual(1_700_000_000_000)).start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Delay(Duration::from_secs(1)));
    emulator
}

fn r48_callers_that_give_up_leave_the_others_served<A: Adapter>() {
    let emulator = delayed();
    let tokens = Setup::<A>::at(&emulator).tokens();
    std::thread::scope(|scope| {
        // The first caller, whose call started the request, goes first.
        let first = A::token_within(&tokens, Duration::from_millis(20)).unwrap_err();
        assert_eq!(first.acquire, Some(AcquireError::DeadlineExceeded));
        let others = scope.spawn(|| A::tokens_at_once(&tokens, 20));
        until("all of them wait", || A::status(&tokens).waiters == 20);
        let hurried: Vec<_> = (0..10)
            .map(|span| {
                let tokens = &tokens;
                scope.spawn(move || A::token_within(tokens, Duration::from_millis(span)))
            })
            .collect();
        assert!(hurried.into_iter().all(|caller| caller.join().unwrap().is_err()));
        assert_eq!(A::status(&tokens).waiters, 20);
        arrived(&emulator);
        emulator.clock().advance(Duration::from_secs(1));
        assert!(others.join().unwrap().iter().all(Result::is_ok));
    });
    assert_eq!(emulator.token_requests(), 1);
}

fn r48_who_gives_up_last_leaves_the_request_to_whoever_comes<A: Adapter>() {
    let emulator = delayed();
    let tokens = Setup::<A>::at(&emulator).tokens();
    A::token_within(&tokens, Duration::ZERO).unwrap_err();
    arrived(&emulator);
    emulator.clock().advance(Duration::from_secs(1));
    until("the token", || A::key_status(&tokens).unwrap().token_until.is_some());
    A::token_within(&tokens, Duration::ZERO).unwrap();
    assert_eq!(emulator.token_requests(), 1);
}

fn r50_providers_work_from_threads_that_end<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    for _ in 0..5 {
        let storm = storm.clone();
        std::thread::spawn(move || A::call(&storm, get("/")).unwrap()).join().unwrap();
    }
    assert_eq!(emulator.token_requests(), 1);
}

fn r56_an_api_connection_that_died_while_idle_costs_one_reconnect<A: Adapter>() {
    let emulator = Emulator::start();
    let closed = Arc::new(AtomicU64::new(0));
    let peer = Peer::start({
        let closed = closed.clone();
        move |mut stream| {
            // It promises to stay, and closes. The client may not know yet when it calls again: then the request is repeated.
            hear(&mut stream);
            answer(&mut stream, "200 OK", "connection: keep-alive\r\n", "{}");
            drop(stream);
            closed.fetch_add(1, Ordering::Relaxed);
        }
    });
    let storm = Setup::<A>::at(&emulator).set(|settings| settings.api_url(peer.url())).client();
    for turn in 1..=10 {
        let answer = A::call(&storm, get(&format!("{}/p", peer.url()))).unwrap();
        assert_eq!(answer.status.as_u16(), 200);
        until("it is dead", || closed.load(Ordering::Relaxed) == turn);
    }
}
