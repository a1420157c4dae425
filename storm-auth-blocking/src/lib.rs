#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
//! OAuth2 client-credentials tokens and authorised API calls for Norce Commerce (Storm), over ureq: no async
//! runtime, neither needed nor minded.
pub mod env;

mod builder;
mod client;
mod clock;
mod driver;
mod error;
mod observe;
mod provider;
mod source;
mod transport;

pub use builder::Builder;
pub use client::{StormClient, StormRequest};
pub use clock::Clock;
pub use driver::KeepWarm;
pub use error::Error;
pub use provider::TokenProvider;
pub use source::{FakeTokens, TokenSource};
pub use storm_auth_core::{
    self as core, AcquireError, Budget, Cause, ConfigError, Counters, Credentials, Environment, Event, Invalidated,
    KeyStatus, Policy, Scope, Stage, Status, Token, TokenId, scope,
};
