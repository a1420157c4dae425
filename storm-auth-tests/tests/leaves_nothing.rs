//! The one test of its process, so that it can count the process's threads and files.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "what the test shares stands outside of its function")]

#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/face.rs"]
mod face;

use std::{collections::BTreeMap, fs, time::Duration};

use face::{Adapter, OverReqwest, OverUreq, PATIENCE, Setup, get, until};
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
    let before = (threads(), files());
    for _ in 0..3 {
        scenes::<OverReqwest>(&emulator);
        assert_nothing(&emulator, &before);
        scenes::<OverUreq>(&emulator);
        assert_nothing(&emulator, &before);
    }
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
        let tokens = Setup::<A>::at(emulator).tokens();
        let deadline = if stalls { Duration::from_millis(20) } else { PATIENCE };
        assert_eq!(A::token_within(&tokens, deadline).is_err(), stalls);
        let warm = A::keep_warm(&tokens);
        assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests > requests));
        // The guard goes last, and is not a handle.
        drop(tokens);
        drop(warm);
    }
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
    // A client with a connection to the API in its pool.
    emulator.heal(Endpoint::Token);
    let storm = Setup::<A>::at(emulator).client();
    assert_eq!(A::call(&storm, get("/")).unwrap().status.as_u16(), 200);
    assert_eq!(emulator.open_connections(Endpoint::Api), 1);
}
