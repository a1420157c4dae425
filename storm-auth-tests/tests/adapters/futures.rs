//! What only futures and runtimes can do to a provider, and what only a blocking caller can do to a runtime.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use storm_auth_core::machine::Activity;
use storm_auth_tests::emulator::{At, Clock, Emulator, Endpoint, Fault, Limiter};
use tokio::runtime::{Builder, Runtime};

use crate::face::{Adapter, OverReqwest, OverUreq, PATIENCE, Setup, pass, until};

type Async = OverReqwest;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn stalled_first() -> Emulator {
    let emulator = Emulator::builder().clock(Clock::manual(1_700_000_000_000)).start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Delay(Duration::from_secs(1)));
    emulator
}

/// Polls a future as often as it wakes its task, so many times at most, and drops it.
async fn wake_times(times: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|context| {
        polls += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if polls >= times => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Polls a future so many times, and drops it.
async fn poll_times(times: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    for _ in 0..times {
        let ready = poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await;
        if ready {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

#[test]
fn r48_a_future_that_is_dropped_leaves_the_others_served() {
    let emulator = stalled_first();
    let tokens = Setup::<Async>::at(&emulator).tokens();
    runtime().block_on(async {
        let other = tokio::spawn({
            let tokens = tokens.clone();
            async move { tokens.token().await }
        });
        // Never polled, polled once, polled more than once; the first to come and the last.
        for times in 0..4 {
            assert!(!poll_times(times, tokens.token()).await);
            let aborted = tokio::spawn({
                let tokens = tokens.clone();
                async move { tokens.token().await.map(drop) }
            });
            tokio::task::yield_now().await;
            aborted.abort();
            assert!(aborted.await.unwrap_err().is_cancelled());
        }
        assert_eq!(tokens.status().waiters, 1);
        emulator.when(|counts| counts.token_in_flight == 1).await;
        emulator.clock().advance(Duration::from_secs(1));
        other.await.unwrap().unwrap();
    });
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn r48_a_future_that_is_dropped_in_the_queue_leaves_the_others_served() {
    // Behind a gate: nothing is under way, and whoever is left when it opens is served by one request.
    let emulator = Emulator::start();
    emulator.fail_next(Endpoint::Token, 1, Fault::status(429));
    let clock = Async::movable_clock();
    let tokens = Setup::<Async>::at(&emulator).clock(&clock).tokens();
    let runtime = runtime();
    let [first, second, third] = [(); 3].map(|()| {
        let tokens = tokens.clone();
        runtime.spawn(async move { tokens.token_within(Duration::from_secs(300)).await.map(drop) })
    });
    runtime.block_on(async {
        while tokens.status().gate_closed_until.is_none() || tokens.status().waiters < 3 {
            tokio::task::yield_now().await;
        }
        // The one that came first, and one in the middle.
        for gone in [first, second] {
            gone.abort();
            assert!(gone.await.unwrap_err().is_cancelled());
        }
        assert_eq!(tokens.status().waiters, 1);
        pass::<Async>(&clock, &tokens, Duration::from_secs(26));
        third.await.unwrap().unwrap();
    });
    assert_eq!((emulator.token_requests(), tokens.status().waiters), (2, 0));
}

#[test]
fn r48_when_all_who_wait_behind_a_gate_are_gone_nothing_is_sent() {
    let emulator = Emulator::start();
    emulator.fail_next(Endpoint::Token, 1, Fault::status(429));
    let clock = Async::movable_clock();
    let tokens = Setup::<Async>::at(&emulator).clock(&clock).tokens();
    runtime().block_on(async {
        let waiting = tokio::spawn({
            let tokens = tokens.clone();
            async move { tokens.token_within(Duration::from_secs(300)).await.map(drop) }
        });
        while tokens.status().gate_closed_until.is_none() {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        pass::<Async>(&clock, &tokens, Duration::from_secs(60));
        tokens.close(PATIENCE).await.unwrap();
    });
    assert_eq!((emulator.token_requests(), tokens.counters().requests), (1, 1));
}

#[test]
fn r48_an_api_call_that_is_dropped_at_any_point_leaves_the_client_whole() {
    let emulator = Emulator::builder().limiter(Limiter::none()).start();
    let clock = Async::movable_clock();
    let storm = Setup::<Async>::at(&emulator).clock(&clock).client();
    let runtime = runtime();
    runtime.block_on(storm.get("/").send()).unwrap();
    // At the request, the rejection, the new token, the second request, and wherever else it waits, until it waits no more.
    let whole = (1..200).find(|times| {
        emulator.revoke_all();
        // So that a rejection is believed, and a request that the last call has left does not time out.
        until("nothing is under way", || {
            storm.tokens().key_status().is_none_or(|status| status.activity == Activity::Idle)
        });
        clock.advance(Duration::from_secs(61));
        let whole = runtime.block_on(wake_times(*times, storm.get("/").send()));
        assert_eq!(storm.tokens().status().waiters, 0);
        whole
    });
    assert!(whole.is_some_and(|times| times > 3), "{whole:?}");
    assert!(storm.tokens().key_status().unwrap().error.is_none());
    assert_eq!(runtime.block_on(storm.get("/").send()).unwrap().status().as_u16(), 200);
}

#[test]
fn r49_the_first_callers_runtime_is_dropped_in_mid_request() {
    let emulator = stalled_first();
    let tokens = Setup::<Async>::at(&emulator).tokens();
    let first = runtime();
    let caller = tokens.clone();
    first.spawn(async move { caller.token().await });
    first
        .block_on(async { tokio::time::timeout(PATIENCE, emulator.when(|counts| counts.token_in_flight == 1)).await })
        .unwrap();
    let second = runtime();
    let waiting = second.spawn(async move { tokens.token().await });
    second.block_on(tokio::task::yield_now());
    drop(first);
    emulator.clock().advance(Duration::from_secs(1));
    second.block_on(waiting).unwrap().unwrap();
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn r49_the_first_callers_runtime_is_kept_and_never_driven_again() {
    let emulator = stalled_first();
    let tokens = Setup::<Async>::at(&emulator).tokens();
    let frozen = runtime();
    let caller = tokens.clone();
    let never = frozen.spawn(async move { caller.token().await });
    frozen
        .block_on(async { tokio::time::timeout(PATIENCE, emulator.when(|counts| counts.token_in_flight == 1)).await })
        .unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| runtime().block_on(tokens.token()));
        until("both wait", || tokens.status().waiters == 2);
        emulator.clock().advance(Duration::from_secs(1));
        second.join().unwrap().unwrap();
    });
    assert!(!never.is_finished());
    assert_eq!(emulator.token_requests(), 1);
    // Driven again after all, it has its token too.
    frozen.block_on(never).unwrap().unwrap();
}

#[test]
fn r49_a_runtime_that_carries_the_flights_may_go() {
    let emulator = stalled_first();
    let carrier = runtime();
    let tokens = Async::builder(Setup::at(&emulator)).flights_on(carrier.handle().clone()).build_tokens().unwrap();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| runtime().block_on(tokens.token()));
        carrier
            .block_on(async {
                tokio::time::timeout(PATIENCE, emulator.when(|counts| counts.token_in_flight == 1)).await
            })
            .unwrap();
        drop(carrier);
        // No flight can start any more: the caller is told, long before its deadline.
        caller.join().unwrap().unwrap_err();
    });
}

#[test]
fn r50_many_runtimes_one_after_another_and_at_once_and_some_of_them_frozen() {
    let emulator = Emulator::builder().clock(Clock::manual(1_700_000_000_000)).limiter(Limiter::none()).start();
    let clock = Async::movable_clock();
    let tokens = Setup::<Async>::at(&emulator).clock(&clock).tokens();
    let mut frozen = Vec::new();
    for turn in 1..=20 {
        emulator.fail_next(Endpoint::Token, 1, Fault::Delay(Duration::from_secs(1)));
        let one = runtime();
        let caller = tokens.clone();
        let task = one.spawn(async move { caller.token().await.map(drop) });
        let requested = emulator.when(|counts| counts.token_in_flight == 1);
        one.block_on(async { tokio::time::timeout(PATIENCE, requested).await }).unwrap();
        std::thread::scope(|scope| {
            let waiters = tokens.status().waiters;
            let others = [(); 2].map(|()| scope.spawn(|| runtime().block_on(tokens.token()).map(drop)));
            until("the others wait too", || tokens.status().waiters == waiters + 2);
            emulator.clock().advance(Duration::from_secs(1));
            for other in others {
                other.join().unwrap().unwrap();
            }
        });
        assert_eq!(emulator.token_requests(), turn);
        if turn % 2 == 0 {
            assert!(!task.is_finished());
            frozen.push((one, task));
        } else {
            one.block_on(task).unwrap().unwrap();
        }
        // The token's life is over.
        clock.advance(Duration::from_secs(600));
    }
    let emulator = Emulator::start();
    let fresh = Setup::<Async>::at(&emulator).tokens();
    let first = runtime();
    let caller = fresh.clone();
    first.spawn(async move { caller.token().await.map(drop) });
    first.block_on(tokio::task::yield_now());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| runtime().block_on(fresh.token()).unwrap());
        }
    });
    drop((first, frozen));
}

#[test]
fn r53_another_task_of_the_thread_runs_while_a_request_is_stalled() {
    let emulator = Emulator::start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Stall(At::Headers));
    let tokens = Setup::<Async>::at(&emulator).tokens();
    let mut turns = 0_u32;
    runtime().block_on(async {
        let waiting = tokens.token_within(Duration::from_secs(1));
        let busy = async {
            loop {
                turns += 1;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            result = waiting => drop(result.unwrap_err()),
            () = busy => {}
        }
    });
    assert!(turns > 100, "{turns}");
}

#[test]
fn r53_the_blocking_adapter_works_inside_a_runtime() {
    let emulator = Emulator::start();
    let storm = Setup::<OverUreq>::at(&emulator).client();
    for runtime in [runtime(), Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()] {
        let storm = storm.clone();
        runtime.block_on(async {
            tokio::spawn(async move {
                storm.tokens().ready(PATIENCE).unwrap();
                assert_eq!(storm.get("/").call().unwrap().status().as_u16(), 200);
                let warm = storm.tokens().keep_warm();
                drop((warm, storm));
            })
            .await
            .unwrap();
        });
    }
    // Built, used and dropped inside one.
    runtime().block_on(async {
        let tokens = Setup::<OverUreq>::at(&emulator).tokens();
        tokens.token().unwrap();
        tokens.close(PATIENCE).unwrap();
    });
    // As the other one is, whose own runtimes must not end inside of it.
    runtime().block_on(async {
        let tokens = Setup::<Async>::at(&emulator).tokens();
        tokens.token().await.unwrap();
        tokens.close(PATIENCE).await.unwrap();
    });
}

#[test]
fn r53_a_cached_token_is_ready_at_the_first_poll_without_a_runtime() {
    let emulator = Emulator::start();
    let tokens = Setup::<Async>::at(&emulator).tokens();
    runtime().block_on(tokens.token()).unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(pin!(tokens.token()).poll(&mut context).is_ready());
    assert!(pin!(tokens.header()).poll(&mut context).is_ready());
}
