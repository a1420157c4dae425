#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
//! Stores through which processes share their tokens, for `storm-auth-reqwest`, `storm-auth-blocking`, and whoever drives
//! `storm-auth-core` in a runtime of their own.
//!
//! The token endpoint's limit is per address, so past some twenty processes behind one address, and for programs that live for a
//! second, the only way is to share: one process requests the token, all others find it in the store.
//!
//! | store | for | feature |
//! |---|---|---|
//! | [`FileStore`] | the processes of one user on one machine | |
//! | `RedisStore` | many machines, over one Redis server, with sentinels or without, or over a cluster | `redis`, `redis-tls`, `redis-cluster` |
//! | `Sealed` | either of them, encrypted | `sealed` |
//!
//! One line in the builder of either adapter shares:
//!
//! ```no_run
//! use storm_auth_blocking::{Environment, Stage, StormClient, env};
//! use storm_auth_store::FileStore;
//!
//! let storm = StormClient::builder()
//!     .environment(Environment::norce("acme", "se", Stage::Playground))
//!     .credentials(env::credentials()?)
//!     .store(FileStore::for_user()?)
//!     .build()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What they promise
//!
//! - One token request per lifetime goes out for all processes; two where the one that was asking died.
//! - A store that is down, slow or wrong is done without: the process works alone, within its budget, says so once, and shares again
//!   as soon as it can. What is read is checked, so a record that is torn, foreign or false is as if there were none.
//! - A process that was killed while it held the lease costs the others nothing with files, and ten seconds with Redis.
//! - A throttle that one process felt closes the gate of all that share the store and the address. Processes of one store that leave by
//!   different addresses say so with the builder's `egress`.
//!
//! # What they need
//!
//! - A program that ends calls `close()` with a deadline, or drops its last provider: what it fetched is there for the next one then, and
//!   its lease is free. After an exit without either, the next one waits for ten seconds where the store is Redis.
//! - Clocks that agree within some seconds: files go by the system's clock, Redis by the server's; neither by one that was given to a
//!   builder.
//! - One place for all: [`FileStore::for_user`] prefers `$XDG_RUNTIME_DIR`, which a login shell has and a cron job may not have; where
//!   both share, name the folder to [`FileStore::new`].
//! - One form for all in a place: those who seal cannot read what others write, nor can others read theirs.
//!
//! # What they show
//!
//! A record is found by a hash of the token URL, the client id, the scopes and the client secret, so that nobody who reads the store
//! learns one of these from it. It holds the token, its scope and lifetime, and a tag that only holders of the client secret can make:
//! nobody else can put a token in its place. Who can read the store can read the token, unless it is sealed: then only holders of the
//! client secret can, and all that others see is when it was requested and when it ends.
//!
//! All of this rests on the client secret being one that cannot be guessed. What is protected from whom stands on the page of
//! [threats](storm_auth_core::guide::threats).
//!
//! # A store of one's own
//!
//! It is one method, [`TokenStore::perform`](storm_auth_core::store::TokenStore): the [cookbook](storm_auth_core::guide::cookbook) has a
//! whole one over a blob service, and `storm_auth_tests::store_conformance` shows whether one keeps to the protocol.
//!
//! # Threads, cancellation and forks
//!
//! None of these stores starts a thread. An operation blocks the thread that asks for it, half a second to a second at the most (in a
//! cluster whose node stands still, two) but for what the system itself does not end (a name look-up, a disk that hangs). The adapters
//! have a thread for it, and wait for a second. It cannot be cancelled, and may be repeated. A child that was forked has no lease and no
//! connection of its parent's.
//!
//! # Errors
//!
//! [`StoreError`] is a store that cannot be used as it was configured. What goes wrong later is no error of a call: the process goes on
//! without the store, and an event says so with what to change. The page of [errors](storm_auth_core::guide::errors) has the texts.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `redis` | no | `RedisStore`, for many machines |
//! | `redis-tls` | no | the same over TLS, by what the system trusts or by certificates of one's own |
//! | `redis-cluster` | no | `RedisStore::cluster`; sentinels need no more than `redis` |
//! | `sealed` | no | `Sealed`, around any store |
//!
//! # Platforms
//!
//! [`FileStore`] asks for file locks that end with their process, and for renames that replace. On Unix it checks owners and modes; on
//! Windows the rights of the user's own folder are what the system grants. Network file systems that keep neither are no place for it.
//! There is no unsafe code. The oldest Rust that it builds with is the `rust-version` of its manifest.
//!
//! # Panics
//!
//! None.

mod file;
mod folder;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sealed")]
mod sealed;

use core::fmt;

pub use file::FileStore;
#[cfg(feature = "redis-tls")]
pub use redis::RedisCertificates;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
#[cfg(feature = "sealed")]
pub use sealed::Sealed;

/// A store that cannot be used as it was configured; the text says what to change.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreError(String);

impl StoreError {
    fn new(problem: String) -> Self {
        Self(problem)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token store: {}", self.0)
    }
}

/// The same text, since that is what a `main` that returns it shows.
impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for StoreError {}
