#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
//! OAuth2 client-credentials tokens and authorised API calls for Norce Commerce (Storm), over ureq: no async runtime, neither
//! needed nor minded.
//!
//! A [`StormClient`] makes API calls with a valid token; its [`TokenProvider`] hands out the token alone.
//!
//! ```no_run
//! use storm_auth_blocking::{Environment, Stage, StormClient, env};
//!
//! # fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let storm = StormClient::builder()
//!     .environment(Environment::norce("acme", "se", Stage::Playground))
//!     .credentials(env::credentials()?)
//!     .application_id(1042)
//!     .build()?;
//! let products = storm.get("/commerce/product/1.1/Products").call()?.body_mut().read_to_string()?;
//! # Ok(()) }
//! ```
//!
//! # What it keeps to
//!
//! - A cached token costs no lock and no allocation, and nothing is formatted.
//! - One request is under way per key, on a short-lived thread: it outlives its callers, and ends with the last handle.
//! - The token request goes out on an agent that this crate builds, from your settings where you give some
//!   ([`Builder::token_config`], [`Builder::token_agent`]): redirects and pooling are then ours. API calls may use any agent
//!   ([`Builder::api_agent`]).
//! - A call waits for a token at most until its deadline, 30 s unless the builder says otherwise; the request's own patience is
//!   another matter.
//! - An answer of the API is `Ok`, whatever its status. Its 401 that rejects the token is answered once with another one.
//!
//! A client secret may change while the process runs. [`Credentials::with_next`] names the one that is to follow: a request that is
//! refused with `invalid_client` is sent once more with the other one. A file ([`Builder::credentials_file`], or `env::builder` with
//! `STORM_CLIENT_SECRET_FILE`) or a source of yours ([`Builder::credentials_source`]) is looked at beside each token request and
//! while a refusal stands, so that a rotated secret costs one refused request and no restart.
//!
//! What one builder built, its clones and what is derived from them ([`TokenProvider::for_credentials`],
//! [`Builder::share_limiter`]) are one limiter group, with one budget and one gate. Over plain http no proxy is taken that only the
//! environment names.
//!
//! All decisions about tokens are [`core`]'s, whose docs say what they are and why. Its [guide](storm_auth_core::guide) has a
//! [cookbook](storm_auth_core::guide::cookbook), and says what each [error](storm_auth_core::guide::errors) and each
//! [default](storm_auth_core::guide::defaults) is about, how to [move here](storm_auth_core::guide::migration), and what is
//! [protected](storm_auth_core::guide::threats).
//!
//! # What ureq logs
//!
//! At the level trace, ureq's protocol crate writes whole heads and bodies to the `log` crate's target `ureq_proto`, tokens
//! included, and cannot be told not to. So `build` fails while a logger takes that; keep the target at debug, also in a process
//! that changes its levels later.
//!
//! # Threads
//!
//! None while nothing is to be done. Those that there are have names, end by themselves, and keep no process alive:
//!
//! | name | from when to when |
//! |---|---|
//! | `storm-auth-flight` | while one token request is under way |
//! | `storm-auth-lease` | the same, where a store is shared: it renews the lease |
//! | `storm-auth-store` | while the store is asked something |
//! | `storm-auth-source` | while a source of credentials is looked at; one that hangs keeps it, also when the last handle has gone |
//! | `storm-auth-warm` | as long as a guard of [`keep_warm`](TokenProvider::keep_warm) lives |
//!
//! When the last handle goes, a request that is under way ends with its socket, and what is owed to a store is told on the thread that
//! drops. A look-up of a name and a connect under way end by their own timeouts.
//!
//! It may be called inside of an async runtime: the caller's thread waits, as with any blocking call, and nothing panics.
//!
//! # Cancellation
//!
//! A call cannot be interrupted: it waits for a token until its deadline at the longest, and the token request goes on for the next
//! caller. How long the API call may take is [`StormRequest::timeout`]'s to say.
//!
//! # Errors
//!
//! [`Error`] is opaque, with predicates: `is_configuration()` wants a person, `is_rate_limited()` and `retry_at()` say when to come
//! back, `is_api()` is the call itself. Its text says what to do, and the page of [errors](storm_auth_core::guide::errors) has all of
//! them. While a token is valid nothing that happens to the token endpoint is an error.
//!
//! # Forks
//!
//! A process may fork while none of its threads is inside a call and no thread of this crate is at work (one reports a request, or
//! looks after a key that is kept warm, for microseconds): a lock that is held then stays locked. The child serves the tokens that are
//! cached, keeps to the gate and the budget that its parent knew, and sends requests of its own; what its parent has under way
//! is none of its business, and neither closing nor dropping anything in the child touches it. Guards of
//! [`keep_warm`](TokenProvider::keep_warm) do nothing in it. API calls go out over connections of its own, unless the agent is
//! yours ([`Builder::api_agent`]).
//!
//! # What it tells
//!
//! With `tracing`, each event of the machine is one with the target `storm_auth`. Its field `event` is the event's name, and
//! beside it stand the `group`, and `key`, `op`, `reason`, `cause`, `expires_at`, `refresh_at` and `retry_at` where it has them:
//! [`Event`] lists which. A token request has the span `storm_auth.token_request` (level info, the same target) with `group`,
//! `key`, `op` and `reason`, and when it is over with `outcome`, one word of [`Landing`](crate::core::driver::Landing), and with
//! the `status` of an answer. The span is nobody's child, since the request serves many callers; it follows from the span of the
//! call that started it.
//!
//! With `metrics`, what is measured goes to the process's recorder, by the names of [`Metric`](crate::core::driver::Metric).
//! Install the recorder before a provider is built. Calls that are served from memory are counted apart for each thread and told
//! in batches of 256, with whatever else happens, and with each look at [`status`](TokenProvider::status), so that threads do not
//! wait for each other; a look before each scrape makes them exact. `TokenProvider::served` counts them too.
//!
//! A limiter group is called what [`Builder::group`] says, or `blocking-0`, `blocking-1` and so on, in the order in which they are
//! built. Keys and operations are numbered within their group, and each metric has its label.
//!
//! Names, fields and labels are stable, and none shows a secret.
//!
//! # From a shell
//!
//! With the feature `cli` this crate has a program, `storm-token`: `get` prints a token, `call` makes an authorised request, `inspect`
//! decodes a token, `status` and `doctor` tell what is the matter. Its processes share a token through a folder. Its settings, its
//! output and its exit statuses stand in `storm-token --help`.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `rustls` | yes | TLS by rustls, with the roots of `webpki-roots` |
//! | `native-tls` | no | TLS by the system's library; used where `rustls` is off |
//! | `json` | yes | `StormRequest::send_json`, and ureq's `read_json` |
//! | `gzip` | no | API answers may be compressed |
//! | `tracing` | yes | events and spans go to `tracing`, target `storm_auth` |
//! | `metrics` | no | what is measured goes to the `metrics` facade; a cached call is counted then, with some ten instructions more |
//! | `middleware` | no | `StormMiddleware`, for an agent of your own: requests to the configured API origins get the header, from the tokens of the [`StormClient`] that made it |
//! | `serde` | no | settings from a configuration file in any format of serde's (`Builder::from_config`, `env::builder_over`) |
//! | `cli` | no | the program `storm-token`; adds nothing here |
//!
//! # Platforms
//!
//! Where std has threads and sockets. On Linux, Android and FreeBSD a cached call reads coarse clocks, elsewhere `Instant` and
//! `SystemTime`. There is no unsafe code. The oldest Rust that it builds with is the `rust-version` of its manifest.
//!
//! # Panics
//!
//! None of ours; a panic in a callback of yours is contained.

pub mod env;

mod builder;
mod client;
mod clock;
mod driver;
mod error;
#[cfg(feature = "middleware")]
mod middleware;
mod observe;
mod provider;
mod source;
mod sync;
mod transport;

pub use builder::Builder;
pub use client::{StormClient, StormRequest};
pub use clock::Clock;
pub use driver::KeepWarm;
pub use error::Error;
#[cfg(feature = "middleware")]
pub use middleware::StormMiddleware;
pub use provider::TokenProvider;
pub use source::{FakeTokens, TokenSource};
pub use storm_auth_core::{
    self as core, AcquireError, Budget, Cause, ConfigError, Counters, Credentials, Environment, Event, Invalidated,
    KeyStatus, Policy, Scope, Stage, Status, Token, TokenId, Unix, scope,
};
#[cfg(feature = "serde")]
pub use storm_auth_core::{FileSettings, config_file};
