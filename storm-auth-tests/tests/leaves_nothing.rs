//! The one test of its process, so that it can count the process's threads and files.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "what the test shares stands outside of its function")]

#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/face.rs"]
mod face;

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use face::{Adapter, OverReqwest, OverUreq, PATIENCE, Setup, get, until};
use storm_auth_core::{Credentials, Settings};
use storm_auth_tests::emulator::{At, Emulator, Endpoint, Fault, Limiter};

/// The process's threads, by number and name.
fn threads() -> BTreeMap<String, String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let named = tasks.filter_map(|task| {
        let task = task.unwrap();
        // One that ends meanwhile has no name any more.
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().to_string_lossy().into_owned(), name.trim().to_owned()))
    });
    named.collect()
}

fn files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// What is there besides `before`.
fn new_threads(before: &BTreeMap<String, String>) -> Vec<String> {
    threads().into_iter().filter(|(number, _)| !before.contains_key(number)).map(|(_, name)| name).collect()
}

/// R55: after the last handle, also with a request that stalls, no thread and no socket is left.
#[test]
fn r55_when_the_last_handle_goes_nothing_stays() {
    let emulator = Emulator::builder().limiter(Limiter::none()).start();
    // The runtime of the suite, the emulator's key, and what else is made once.
    scenes::<OverReqwest>(&emulator);
    scenes::<OverUreq>(&emulator);
    futures(&emulator);
    let before = (threads(), files());
    for _ in 0..3 {
        scenes::<OverReqwest>(&emulator);
        assert_nothing(&emulator, &before);
        scenes::<OverUreq>(&emulator);
        assert_nothing(&emulator, &before);
        futures(&emulator);
        assert_nothing(&emulator, &before);
    }
}

/// Futures that are dropped in mid-flight, with their runtime, and one that never runs again.
fn futures(emulator: &Emulator) {
    emulator.fail(Endpoint::Token, Fault::Stall(At::Headers));
    let requests = emulator.token_requests();
    let tokens = Setup::<OverReqwest>::at(emulator).tokens();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let waiting = [(); 3].map(|()| {
        let tokens = tokens.clone();
        runtime.spawn(async move { tokens.token().await.map(drop) })
    });
    runtime.block_on(async {
        while emulator.token_requests() == requests {
            tokio::task::yield_now().await;
        }
        waiting[1].abort();
    });
    drop(runtime);
    drop(tokens);
    drop(waiting);
    // Requests that are tasks of a runtime go with their provider, too.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let builder = OverReqwest::builder(Setup::at(emulator)).flights_on(runtime.handle().clone());
    let tokens = builder.build_tokens().unwrap();
    runtime.block_on(async {
        tokens.token_within(Duration::from_millis(20)).await.unwrap_err();
        drop(tokens);
    });
    drop(runtime);
    // Nor does a source outlive its provider that never answers.
    let asked = Arc::new(AtomicBool::new(false));
    let source = asked.clone();
    let builder = OverReqwest::builder(Setup::at(emulator)).credentials_source(move || {
        source.store(true, Ordering::Relaxed);
        std::future::pending::<Result<Credentials, String>>()
    });
    let tokens = builder.build_tokens().unwrap();
    face::block_on(tokens.token_within(Duration::from_millis(20))).unwrap_err();
    until("its source is asked", || asked.load(Ordering::Relaxed));
    drop(tokens);
    emulator.heal(Endpoint::Token);
}

fn assert_nothing(emulator: &Emulator, before: &(BTreeMap<String, String>, usize)) {
    until("all threads are gone", || new_threads(&before.0).is_empty());
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_open == 0), "a socket is left");
    assert!(emulator.wait_for(PATIENCE, |counts| counts.api_open == 0), "a pooled socket is left");
    until("all files are closed", || files() <= before.1);
}

fn scenes<A: Adapter>(emulator: &Emulator) {
    // A request that is stalled, at whatever point, by whoever started it.
    let faults = [
        Some(Fault::Stall(At::Headers)),
        Some(Fault::Stall(At::Body)),
        Some(Fault::Drip(Duration::from_secs(60))),
        None,
    ];
    for fault in faults {
        let requests = emulator.token_requests();
        let stalls = fault.is_some();
        emulator.fail(Endpoint::Token, fault.unwrap_or(Fault::json(200, r#"{"access_token":"abc","expires_in":600}"#)));
        let tokens = Setup::<A>::at(emulator).source(|| Err("none".to_owned())).tokens();
        let deadline = if stalls { Duration::from_millis(20) } else { PATIENCE };
        assert_eq!(A::token_within(&tokens, deadline).is_err(), stalls);
        let warm = A::keep_warm(&tokens);
        assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests > requests));
        // The guard is a handle like any other, and here it is the last one.
        drop(tokens);
        drop(warm);
    }
    // Whatever the answer is, and whether there is one.
    let answers = [
        Fault::html(502),
        Fault::status(429),
        Fault::json(400, r#"{"error":"invalid_client"}"#),
        Fault::redirect(307, "http://127.0.0.1:1/"),
        Fault::Reset(At::Headers),
        Fault::Reset(At::Body),
        Fault::Oversize,
        Fault::Encoded,
        Fault::Outage,
    ];
    for fault in answers {
        emulator.fail(Endpoint::Token, fault);
        let tokens = Setup::<A>::at(emulator).tokens();
        let warm = A::keep_warm(&tokens);
        A::token_within(&tokens, Duration::from_secs(5)).unwrap_err();
        A::close(&tokens, PATIENCE).unwrap();
        drop((warm, tokens));
    }
    let refused = Setup::<A>::at(emulator).set(|settings| settings.token_url("http://127.0.0.1:9/token")).tokens();
    A::token(&refused).unwrap_err();
    drop(refused);
    // Many callers who give up while it stalls.
    emulator.fail(Endpoint::Token, Fault::Stall(At::Headers));
    let impatient = |settings: Settings| settings.caller_deadline(Duration::from_millis(20));
    let tokens = Setup::<A>::at(emulator).set(impatient).tokens();
    assert!(A::tokens_at_once(&tokens, 20).iter().all(Result::is_err));
    drop(tokens);
    // Kept warm, and forgotten by its guard before the provider goes.
    let tokens = Setup::<A>::at(emulator).tokens();
    drop(A::keep_warm(&tokens));
    drop(tokens);
    // One that was closed while a request stalled.
    emulator.fail(Endpoint::Token, Fault::Stall(At::Headers));
    let tokens = Setup::<A>::at(emulator).tokens();
    A::token_within(&tokens, Duration::from_millis(20)).unwrap_err();
    A::close(&tokens, Duration::from_millis(20)).unwrap_err();
    drop(tokens);
    // A client with a connection to the API in its pool, the one before being gone.
    emulator.heal(Endpoint::Token);
    assert!(emulator.wait_for(PATIENCE, |counts| counts.api_open == 0), "a pooled socket is left");
    let storm = Setup::<A>::at(emulator).client();
    assert_eq!(A::call(&storm, get("/")).unwrap().status.as_u16(), 200);
    assert_eq!(emulator.open_connections(Endpoint::Api), 1);
}
