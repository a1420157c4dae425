//! The machine through its public API, in virtual time: literal times, literal answers, and the requirement's number in the
//! name of each test.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

mod anew;
mod cache;
mod config;
mod credentials;
mod failures;
mod harness;
mod many_keys;
mod properties;
mod rejections;
mod secrets;
mod sharing;
mod throttle;
mod transitions;
