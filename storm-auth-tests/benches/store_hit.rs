//! What sharing costs.
//!
//! `cargo bench -p storm-auth-tests --bench store_hit` times, on this machine: one operation of each store; and the first token of a
//! new provider that finds it in the store, from the call to the token, with the threads and the checks that are part of it. Redis is
//! measured where `redis-server` is installed.
//!
//! `… --bench store_hit -- calls file 1000` makes so many calls of a provider that holds its token, with a store or with `none`:
//! `valgrind --tool=callgrind --toggle-collect='*one_call*'` tells their instructions.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program of one page, for people")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use storm_auth_blocking::{Credentials, Scope, TokenProvider};
use storm_auth_core::store::{StoreCommand, StoreOp, TokenStore};
use storm_auth_core::{HttpHosts, Key, TokenUrl};
use storm_auth_store::{FileStore, RedisStore, Sealed};
use storm_auth_tests::emulator::Emulator;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let folder = std::env::temp_dir().join(format!("storm-auth-bench-{}", std::process::id()));
    let file = || Arc::new(FileStore::new(&folder).unwrap());
    match &arguments[..] {
        [calls, store, number] if calls == "calls" => {
            let emulator = Emulator::start();
            let tokens = match store.as_str() {
                "none" => provider(&emulator, None),
                _ => provider(&emulator, Some(file())),
            };
            tokens.token().unwrap();
            for _ in 0..number.parse().unwrap() {
                std::hint::black_box(one_call(&tokens));
            }
        }
        _ => {
            measure("files", file());
            measure("files, sealed", Arc::new(Sealed::new(file())));
            match redis() {
                Some((server, store)) => {
                    measure("Redis", Arc::new(store));
                    drop(server);
                }
                None => println!("Redis: not measured, redis-server is not installed"),
            }
        }
    }
    std::fs::remove_dir_all(folder).ok();
}

#[inline(never)]
fn one_call(tokens: &TokenProvider) -> http::HeaderValue {
    tokens.header().unwrap()
}

fn measure(name: &str, store: Arc<dyn TokenStore>) {
    let emulator = Emulator::start();
    provider(&emulator, Some(store.clone())).token().unwrap();
    // The token is published behind the call.
    std::thread::sleep(Duration::from_millis(200));
    let url = TokenUrl::parse(&emulator.token_url(), &HttpHosts::default()).unwrap();
    let key = Key::new(url, credentials(&emulator), Scope::new(emulator.scope()).unwrap());
    let op = StoreOp::for_key(&key, "", StoreCommand::Read);
    let reads = times(2_000, || assert!(store.perform(&op).unwrap().record.is_some()));
    let hits = times(300, || {
        let tokens = provider(&emulator, Some(store.clone()));
        let since = Instant::now();
        tokens.token().unwrap();
        since.elapsed()
    });
    assert_eq!(emulator.token_requests(), 1, "all of them found the token");
    println!("{name}: an operation {}; the first token of a provider {}", told(reads), told(hits));
}

trait Measured {
    fn span(self, whole: Duration) -> Duration;
}

impl Measured for () {
    fn span(self, whole: Duration) -> Duration {
        whole
    }
}

impl Measured for Duration {
    fn span(self, _whole: Duration) -> Duration {
        self
    }
}

fn times<M: Measured>(number: usize, act: impl Fn() -> M) -> Vec<Duration> {
    let mut spans: Vec<_> = (0..number)
        .map(|_| {
            let since = Instant::now();
            let measured = act();
            measured.span(since.elapsed())
        })
        .collect();
    spans.sort_unstable();
    spans
}

fn told(spans: Vec<Duration>) -> String {
    let at = |share: usize| spans[spans.len() * share / 100].as_micros();
    format!("{} µs (median), {} µs (95 of 100)", at(50), at(95))
}

fn credentials(emulator: &Emulator) -> Credentials {
    Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap()
}

fn provider(emulator: &Emulator, store: Option<Arc<dyn TokenStore>>) -> TokenProvider {
    let builder = TokenProvider::builder()
        .token_url(emulator.token_url())
        .credentials(credentials(emulator))
        .scope(Scope::new(emulator.scope()).unwrap());
    let builder = if let Some(store) = store { builder.store(store) } else { builder };
    builder.build_tokens().unwrap()
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn redis() -> Option<(Server, RedisStore)> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
        .stdout(Stdio::null())
        .spawn();
    let server = Server(server.ok()?);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Some((server, RedisStore::new(&format!("redis://127.0.0.1:{port}")).unwrap()))
}
