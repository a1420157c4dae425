#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
//! OAuth2 client-credentials tokens as a pure state machine: it decides *when* a token is requested, cached, refreshed or
//! given up, and *what* bytes are sent. It is told the time; it never asks. It does no IO, starts no thread, reads no clock,
//! no entropy and no environment.
//!
//! Most people want one of the drivers, `storm-auth-reqwest` (async) or `storm-auth-blocking`. This crate is for those who
//! embed the machine in a runtime of their own, and for writing drivers: [`driver_guide`] has a list for them. The [guide] is for all: a
//! [cookbook](guide::cookbook), [errors](guide::errors), [defaults](guide::defaults), [migration](guide::migration) and
//! [threats](guide::threats).
//!
//! # How to run it
//!
//! 1. Read both clocks into a [`Now`], make a [`Machine`] and [`add_key`](Machine::add_key).
//! 2. Call [`acquire`](Machine::acquire) when a token is wanted: it is ready, or it is waited for, or it cannot be had.
//! 3. Drain [`poll_output`](Machine::poll_output): perform each action, hand each result to its waiter, log the events.
//! 4. Report what came of an action with [`handle_response`](Machine::handle_response) or
//!    [`handle_failure`](Machine::handle_failure), and with [`handle_store`](Machine::handle_store) where a [store] was announced
//!    with [`share`](Machine::share) and [`handle_credentials`](Machine::handle_credentials) where
//!    [`renew_credentials`](Machine::renew_credentials) says that they come from somewhere; go to 3.
//! 5. Sleep until [`poll_timeout`](Machine::poll_timeout) at the longest, call
//!    [`handle_timeout`](Machine::handle_timeout), and go to 3.
//!
//! ```
//! use storm_auth_core::machine::{Action, Acquire, Output};
//! use storm_auth_core::wire::response::ResponseBody;
//! use storm_auth_core::{Credentials, Environment, Machine, Now, Settings, Stage};
//!
//! let config = Settings::new()
//!     .environment(Environment::norce("acme", "se", Stage::Playground))
//!     .credentials(Credentials::new("shop", "S3cret")?)
//!     .check()?;
//! let mut machine = Machine::new(config.policy, 7);
//! let start = Now::from_millis(0, 1_700_000_000_000);
//! let key = machine.add_key(config.key, start);
//!
//! let Acquire::Wait(waiter) = machine.acquire(key, None, start) else { panic!("nothing is cached yet") };
//! let later = Now::from_millis(80, 1_700_000_000_080);
//! let mut token = None;
//! while let Some(output) = machine.poll_output() {
//!     match output {
//!         Output::Perform(Action::Send(send)) => {
//!             assert_eq!(send.request.uri().path(), "/identity/1.0/connect/token");
//!             // A driver sends it here. This is what comes back:
//!             let body = br#"{"access_token":"eyJ0...","expires_in":3600,"token_type":"Bearer"}"#;
//!             let body = ResponseBody::try_from(&body[..]).expect("it is shorter than 64 KiB");
//!             machine.handle_response(send.op, &http::Response::new(body), later);
//!         }
//!         Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
//!         Output::Resolve(id, result) => {
//!             assert_eq!(id, waiter);
//!             token = Some(result?);
//!         }
//!         Output::Event(event) => println!("{event:?}"),
//!     }
//! }
//! assert_eq!(token.expect("the waiter was resolved").header(), "Bearer eyJ0...");
//! assert!(matches!(machine.acquire(key, None, later), Acquire::Ready(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it decides
//!
//! Each key is in one of four states, or of seven where processes share a [store]. Whether it holds a token is independent of that: a
//! call that finds a valid one never waits.
//!
//! ```text
//!             a call finds no token,              gate open, budget left,
//!             or its refresh is due               the earliest need first
//!  ┌──────┐ ──────────────────────▶ ┌────────┐ ────────────────────────────▶ ┌────────────┐
//!  │ Idle │                         │ Queued │                               │ Requesting │
//!  └──────┘ ◀────────────────────── └────────┘ ◀──────────────────────────── └────────────┘
//!   ▲ ▲  │   nobody wants it any       ▲  │       throttled, or spoilt on         │    │
//!   │ │  │   more, or shut down         │  │       this side, while wanted          │    │
//!   │ └──│──────────────────────────────│──│────────────────────────────────────────┘    │
//!   │    │           a token came       │  │                                             │
//!   │    │ two fresh tokens were        │  │ the same              refused, failed, or   │
//!   │    │ rejected by the API          │  │                       silent to the end     │
//!   │    ▼                              │  ▼                                             │
//!   │   ┌────────────────────────────────────┐                                           │
//!   └── │             BackingOff             │ ◀─────────────────────────────────────────┘
//!       └────────────────────────────────────┘
//!  other       its time is over, and a call
//!  credentials wants a token: to Queued
//! ```
//!
//! With a store, a key that wants a token first reads its record. It takes another process's token from there, and is done; or it
//! queues, and takes the lease before its request goes out; or it follows whoever has the lease, and reads again. What comes of a request
//! is published, and a failure lets the lease rest for as long as the key backs off. Where the store fails, the key goes on alone.
//!
//! ```text
//!  Idle ──▶ Reading ──▶ Queued ──▶ Leasing ──▶ Requesting ──▶ Idle, and the token is published
//!              │  │                 │  ▲
//!              │  └── taken ──▶ Following ──▶ Reading again
//!              └── a token of another process: Idle
//! ```
//!
//! # A secret that changes
//!
//! While a client's secret is being changed, [`Credentials::with_next`] names both. A request that is refused with `invalid_client`
//! goes out once more with the other secret, and whichever worked is kept to; when both are refused, each probe tries the other one.
//! Processes that share a [store] find a token under either secret, so that one which names them in another order, or starts with
//! the old one, comes to use what the others use; at worst it works alone meanwhile, within its budget.
//!
//! Credentials that live somewhere else, in a file or a vault, are announced with [`Machine::renew_credentials`]: then somebody is sent
//! to look there beside each token request, and every 10 s while a refused configuration stands and a token is wanted. Others
//! that are found there take effect at once. So a secret that was changed costs one request that is refused, and no restart.
//!
//! # What it keeps to
//!
//! - A token is never handed out at or past its hard expiry: the time its request was *sent*, plus its lifetime, less 2 % of
//!   it or 10 s, whichever is less; by the monotonic or the wall clock, whichever comes first.
//! - From 75 % of its life on (94 % for a while after a throttle was felt) the first call starts a refresh, and is served.
//! - One request per key at a time, three at once and then one per 20 s at the most; 21 at once and then one per 20 s for
//!   the whole group, until [`Budget`] says otherwise.
//! - A throttle closes one gate for all keys. Whoever cannot wait for it fails at once and is told when to come back.
//! - Other failures back off, with full jitter up to two minutes. Keys that fail again and again retry in turns: each retry
//!   holds those of the others back for such a span, and an answer of the endpoint ends it for all.
//!
//! Every number stands with its reason among the [defaults](guide::defaults), and every change of a state in the docs of the
//! [machine](machine#states).
//!
//! # Time
//!
//! Whoever drives it hands both clocks over with each call, as a [`Now`]: a monotonic one, by which it waits, and the wall clock, which
//! alone knows of a suspend. A token has expired as soon as either says so. Neither clock need be fine, and the wall clock may step; the
//! monotonic one may stand still, and not go back.
//!
//! # Errors
//!
//! [`ConfigError`] is a setting that a person has to change, found before anything is sent; [`AcquireError`] is why a caller got no
//! token. The inputs of the machine never fail: what is late or unknown is ignored, and an [`Event`] says so. The page of
//! [errors](guide::errors) has all of them.
//!
//! # Cancellation and forks
//!
//! A caller that goes is taken back with [`cancel`](Machine::cancel), and its request goes on for the next one. A request cannot be
//! taken back: a driver that gives one up reports a [`Failure`]. A process that has forked says so with
//! [`start_anew`](Machine::start_anew).
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `serde` | no | the module `config_file`: settings from a configuration file, in any format of serde's |
//! | `driver` | no | the module `driver`: what a driver of several threads needs beside the machine, a lock-free cell and a board of waiters |
//!
//! # Platforms
//!
//! Wherever `std` has collections and `Arc`: neither it nor what is below it asks an operating system for a clock, entropy or a socket,
//! with `wasm32-unknown-unknown` in mind. It has no unsafe code. The oldest Rust that it builds with is the `rust-version` of its
//! manifest.
//!
//! # Panics
//!
//! Bad input never panics: a panic here is a bug of this crate.
//!
//! # Out of scope
//!
//! Other grants than client credentials, refresh tokens, and looking into a token: it is opaque.

pub mod authorize;
pub mod config;
#[cfg(feature = "serde")]
pub mod config_file;
pub mod credentials;
#[cfg(feature = "driver")]
pub mod driver;
pub mod driver_guide;
pub mod environment;
pub mod error;
pub mod guide;
pub mod machine;
pub mod store;
pub mod time;
pub mod token;
pub mod wire;

pub use authorize::Api;
pub use config::{Config, Policy, Settings};
#[cfg(feature = "serde")]
pub use config_file::FileSettings;
pub use credentials::{ClientSecret, Credentials, CredentialsFailure, Scope, scope};
pub use environment::{ApiUrl, Environment, HttpHosts, Origin, Stage, TokenUrl};
pub use error::{AcquireError, Cause, ConfigError, Failure, FailureKind, Field};
pub use machine::{Budget, Counters, Event, Invalidated, Key, KeyId, KeyStatus, Machine, Status};
pub use time::{Moment, Mono, Now, Unix};
pub use token::{Token, TokenId};
