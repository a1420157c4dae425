//! What a client of Norce Commerce is tested against: an [`emulator`] of the token endpoint, of the limiter in front of
//! it, and of an API that checks tokens, on loopback sockets.
//!
//! It serves the tests of `storm-auth` and those of its users alike, as a library and as a binary
//! (`cargo run -p storm-auth-tests --bin emulator -- --help`). The README says how a test is written with it: with clocks that are
//! moved, scripted faults and counts; `examples/shop.rs` is a whole file of such tests.
//!
//! ```
//! use std::time::Duration;
//! use storm_auth_tests::emulator::{Clock, Emulator, Endpoint, Fault, Limiter};
//!
//! let emulator = Emulator::builder()
//!     .client("shop", "a secret", &["playground"])
//!     .lifetime(Duration::from_secs(600))
//!     .limiter(Limiter::nginx())
//!     .clock(Clock::manual(1_700_000_000_000))
//!     .start();
//!
//! // The next token request is answered 502 by a proxy's page; then all is well again.
//! emulator.fail_next(Endpoint::Token, 1, Fault::html(502));
//!
//! // Here stands the client under test: it is given emulator.token_url(), emulator.api_url() and the credentials.
//!
//! // Every token that was issued so far expires, without waiting for it.
//! emulator.clock().advance(Duration::from_secs(600));
//! emulator.assert_token_requests(0);
//! ```
//!
//! # What is here
//!
//! | module | for |
//! |---|---|
//! | [`emulator`] | tests of a client, over real sockets on loopback; with limiters of five kinds, faults, revocation, and a clock that is moved |
//! | `memory_store` | tests of processes that share, without a disk or a server |
//! | `store_conformance` | a token store of one's own: whether it keeps to the protocol |
//! | `driver_conformance` | a driver of one's own: whether it keeps to what the core asks of one |
//! | `sim` | this workspace: random stories of many processes in virtual time, with oracles |
//! | `fleet` | a question: how many processes fit behind one address? The binary of that name draws the answer |
//!
//! How a client of one's own is tested with it stands in the [cookbook](storm_auth_core::guide::cookbook).
//!
//! # Features
//!
//! The emulator is always there, and alone with `default-features = false`. `conformance` adds the suites that check a
//! driver (`driver_conformance`) or a token store (`store_conformance`) of one's own, and a store in memory (`memory_store`); `sim`
//! the simulator (`sim`); `cli` and `fleet`, the defaults, the programs `emulator` and `fleet`, and fleets in virtual time (`fleet`).
//!
//! # Threads and sockets
//!
//! An emulator is one thread with a runtime of its own and two sockets on 127.0.0.1, and leaves nothing when it is dropped. It works
//! inside and outside of any runtime. Its tokens and secrets are made up, and may be shown.
//!
//! # Errors and panics
//!
//! `start()` panics where a port is taken, `try_start()` says so instead. `store_conformance::check` panics with what the store did
//! wrong, as a test does.
//!
//! # Platforms
//!
//! Where tokio has sockets. There is no unsafe code. The oldest Rust that it builds with is the `rust-version` of its manifest.

#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod driver_conformance;
pub mod emulator;
#[cfg(feature = "fleet")]
pub mod fleet;
#[cfg(feature = "conformance")]
pub mod memory_store;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "conformance")]
pub mod store_conformance;

/// The programs of README.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// And those of this crate's own, run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct OwnReadme;
