//! A call whose token is there already.
//!
//! `cargo bench -p storm-auth-tests --bench cached_call` times it as a header and as a token, over both adapters, on 1, 2 and 4
//! threads, with one key and with one of 10,000. What it costs in ratio to others is the comparison's to say (`peers`), and what it
//! costs exactly the one's in instructions (`--bench instructions`); the bound here is that it allocates nothing.

#![allow(clippy::unwrap_used, reason = "a program of one page, for people")]

mod support;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::LazyLock;

use divan::{AllocProfiler, Bencher};
use storm_auth_core::Budget;
use support::adapter::{Adapter, Reqwest, Ureq};
use support::counting::{Counting, allocations};
use support::report::{Report, figure};
use support::server::Server;
use support::{bench, ready, settings};

#[global_allocator]
static ALLOCATOR: AllocProfiler<Counting> = AllocProfiler::new(Counting);

const THREADS: [usize; 3] = [1, 2, 4];

/// Fixed, since the first calls of a thread would mislead whoever chose them by these.
const SAMPLES: u32 = 300;
const CALLS: u32 = 1_000;

const KEYS: [usize; 2] = [1, 10_000];

fn main() -> ExitCode {
    bench(|report| {
        divan::main();
        no_allocation(report);
    })
}

/// Providers of one limiter group, each of which holds its token.
fn holding<A: Adapter>(keys: usize) -> Vec<A> {
    let server = Server::tokens();
    let first = A::new(settings(&server.url()).budget(Budget::unlimited()));
    let holding = |number| {
        let tokens = first.for_client(number);
        A::wait(tokens.token()).unwrap();
        tokens
    };
    (0..keys).map(holding).collect()
}

mod over_reqwest {
    use super::*;

    static ONE: LazyLock<Vec<Reqwest>> = LazyLock::new(|| holding(KEYS[0]));
    static MANY: LazyLock<Vec<Reqwest>> = LazyLock::new(|| holding(KEYS[1]));

    pub(super) fn one_of(keys: usize) -> &'static Reqwest {
        if keys == KEYS[0] { &ONE[0] } else { &MANY[0] }
    }

    #[divan::bench(threads = THREADS, args = KEYS, sample_count = SAMPLES, sample_size = CALLS)]
    fn header(bencher: Bencher<'_, '_>, keys: usize) {
        let Reqwest { tokens, .. } = one_of(keys);
        bencher.bench(|| drop(black_box(ready(tokens.header()).unwrap())));
    }

    #[divan::bench(threads = THREADS, args = KEYS, sample_count = SAMPLES, sample_size = CALLS)]
    fn token(bencher: Bencher<'_, '_>, keys: usize) {
        let Reqwest { tokens, .. } = one_of(keys);
        bencher.bench(|| drop(black_box(ready(tokens.token()).unwrap())));
    }
}

mod over_ureq {
    use super::*;

    static ONE: LazyLock<Vec<Ureq>> = LazyLock::new(|| holding(KEYS[0]));
    static MANY: LazyLock<Vec<Ureq>> = LazyLock::new(|| holding(KEYS[1]));

    pub(super) fn one_of(keys: usize) -> &'static Ureq {
        if keys == KEYS[0] { &ONE[0] } else { &MANY[0] }
    }

    #[divan::bench(threads = THREADS, args = KEYS, sample_count = SAMPLES, sample_size = CALLS)]
    fn header(bencher: Bencher<'_, '_>, keys: usize) {
        let Ureq { tokens, .. } = one_of(keys);
        bencher.bench(|| drop(black_box(tokens.header().unwrap())));
    }

    #[divan::bench(threads = THREADS, args = KEYS, sample_count = SAMPLES, sample_size = CALLS)]
    fn token(bencher: Bencher<'_, '_>, keys: usize) {
        let Ureq { tokens, .. } = one_of(keys);
        bencher.bench(|| drop(black_box(tokens.token().unwrap())));
    }
}

fn no_allocation(report: &mut Report) {
    let (reqwest, ureq) = (&over_reqwest::one_of(1).tokens, &over_ureq::one_of(1).tokens);
    let row = |call: &str, act: &dyn Fn()| {
        let before = allocations();
        (0..1_000).for_each(|_| act());
        let counted = allocations() - before;
        vec![figure(call), figure(counted as f64 / 1_000.0).bound("0", counted == 0)]
    };
    let rows = vec![
        row("reqwest header", &|| drop(black_box(ready(reqwest.header()).unwrap()))),
        row("reqwest token", &|| drop(black_box(ready(reqwest.token()).unwrap()))),
        row("ureq header", &|| drop(black_box(ureq.header().unwrap()))),
        row("ureq token", &|| drop(black_box(ureq.token().unwrap()))),
    ];
    report.table("Allocations of a cached call", &["", "allocations"], rows);
}
