//! What the benchmarks share.

#![allow(dead_code, reason = "each benchmark uses its part of it")]
#![allow(clippy::unwrap_used, reason = "programs of one page, for people")]

pub(crate) mod adapter;
pub(crate) mod callgrind;
pub(crate) mod counting;
pub(crate) mod report;
pub(crate) mod server;

use std::pin::pin;
use std::process::ExitCode;
use std::task::{Context, Poll, Waker};

use storm_auth_core::{Credentials, Scope, Settings};
use storm_auth_tests::emulator::Emulator;

use report::Report;

/// As long as the service's own tokens, in round numbers.
pub(crate) const TOKEN_LENGTH: usize = 1_024;

/// The settings of a provider for a token endpoint that takes any client.
pub(crate) fn settings(token_url: &str) -> Settings {
    Settings::new().token_url(token_url).scope(Scope::new("playground").unwrap()).credentials(client(0))
}

/// The settings of a provider for the emulator's client.
pub(crate) fn emulated(emulator: &Emulator) -> Settings {
    let credentials = Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap();
    settings(&emulator.token_url()).scope(Scope::new(emulator.scope()).unwrap()).credentials(credentials)
}

/// One of any number of clients.
pub(crate) fn client(number: usize) -> Credentials {
    Credentials::new(format!("client-{number}"), "S3cret").unwrap()
}

/// The whole of a benchmark. `cargo test --benches` starts it too, without saying `--bench`: it is no test, and does nothing then.
pub(crate) fn bench(run: impl FnOnce(&mut Report)) -> ExitCode {
    let mut report = Report::default();
    if arguments().iter().any(|argument| argument == "--bench") {
        run(&mut report);
    }
    report.end()
}

/// Cargo's `--bench`, and what follows `--` in `cargo bench --bench NAME -- …`.
pub(crate) fn arguments() -> Vec<String> {
    std::env::args().skip(1).collect()
}

/// Polls a future that has to be ready at once, as that of a cached call and of everything that blocks.
#[inline(always)]
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it is not ready at its first poll"),
    }
}
