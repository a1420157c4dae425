//! Calls across refreshes.
//!
//! `cargo bench -p storm-auth-tests --bench refresh` lets 200 callers call while tokens are refreshed at an endpoint that takes 100 ms,
//! and counts the calls that began while a refresh was under way. Then time jumps past the end of a token's life, as after a
//! suspend, where all have to wait for another one. Whether a token has expired is judged by the emulator, which issued it.

#![allow(clippy::unwrap_used, reason = "a program of one page, for people")]

mod support;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use storm_auth_core::TokenId;
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};
use support::adapter::{Adapter, Reqwest, Ureq};
use support::report::{Figure, figure, per_mille, span};
use support::{bench, emulated};

const CALLERS: usize = 200;

const ANSWER_TIME: Duration = Duration::from_millis(100);

const REFRESHES: usize = 40;

/// Three quarters of a life of 600 s: the next call starts the refresh.
const UNTIL_REFRESH: Duration = Duration::from_secs(450);

const SUSPENDS: usize = 10;

const SUSPENDED: Duration = Duration::from_secs(1_000);

/// What 999 of 1,000 calls stay under.
const BOUND: Duration = Duration::from_millis(1);

fn main() -> ExitCode {
    bench(|report| {
        let columns = ["", "calls", "p50", "p99", "p99.9", "longest", "expired tokens"];
        let title = format!("{CALLERS} callers, while {REFRESHES} refreshes are under way");
        let rows = vec![row::<Reqwest>(UNTIL_REFRESH, REFRESHES), row::<Ureq>(UNTIL_REFRESH, REFRESHES)];
        report.table(&title, &columns, rows);
        let title = format!("{CALLERS} callers, after {SUSPENDS} suspends that a token did not outlast");
        let rows = vec![row::<Reqwest>(SUSPENDED, SUSPENDS), row::<Ureq>(SUSPENDED, SUSPENDS)];
        report.table(&title, &columns, rows);
    })
}

/// One call that began while a request was under way.
struct Call {
    took: Duration,
    expired: bool,
}

fn row<A: Adapter>(jump: Duration, times: usize) -> Vec<Figure> {
    let mut calls = calls::<A>(jump, times);
    calls.sort_unstable_by_key(|call| call.took);
    let took: Vec<_> = calls.iter().map(|call| call.took).collect();
    let expired = calls.iter().filter(|call| call.expired).count();
    let late = per_mille(&took, 999);
    vec![
        figure(A::NAME),
        figure(calls.len()),
        span(per_mille(&took, 500)),
        span(per_mille(&took, 990)),
        span(late).bound_if(jump == UNTIL_REFRESH, "under 1 ms", late < BOUND),
        span(per_mille(&took, 1_000)),
        figure(expired).bound("0", expired == 0),
    ]
}

fn calls<A: Adapter>(jump: Duration, times: usize) -> Vec<Call> {
    let emulator = Arc::new(Emulator::start());
    let adapter = A::movable(emulated(&emulator));
    A::wait(adapter.token()).unwrap();
    emulator.fail(Endpoint::Token, Fault::Delay(ANSWER_TIME));
    let (under_way, over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let callers: Vec<_> =
        (0..CALLERS).map(|_| caller(adapter.clone(), emulator.clone(), under_way.clone(), over.clone())).collect();
    thread::scope(|scope| {
        let calls = scope.spawn(|| A::all(callers.into_iter()));
        for number in 1..=times as u64 {
            thread::sleep(ANSWER_TIME);
            under_way.store(true, Ordering::SeqCst);
            // In this order: a token that the emulator takes for expired is then one that the adapter could know of.
            adapter.advance(jump);
            emulator.clock().advance(jump);
            let answered = emulator
                .wait_for(Duration::from_secs(10), |counts| counts.issued == number + 1 && counts.token_in_flight == 0);
            assert!(answered, "no refresh came");
            under_way.store(false, Ordering::SeqCst);
        }
        over.store(true, Ordering::SeqCst);
        calls.join().unwrap().into_iter().flatten().collect()
    })
}

async fn caller<A: Adapter>(
    adapter: A,
    emulator: Arc<Emulator>,
    under_way: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut last: Option<(TokenId, u64)> = None;
    while !over.load(Ordering::Relaxed) {
        let counts = under_way.load(Ordering::Relaxed);
        let (by_the_emulator, since) = (emulator.clock().now_ms(), Instant::now());
        let token = adapter.token().await.unwrap();
        let took = since.elapsed();
        let expires_at = match last {
            Some((id, expires_at)) if id == token.id() => expires_at,
            _ => expires_at_ms(token.expose()),
        };
        last = Some((token.id(), expires_at));
        if counts {
            calls.push(Call { took, expired: expires_at <= by_the_emulator });
        }
        A::sleep(Duration::from_millis(5)).await;
    }
    calls
}

/// What the token itself says, to whoever issued it.
fn expires_at_ms(token: &str) -> u64 {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    claims["exp"].as_u64().unwrap() * 1_000
}
