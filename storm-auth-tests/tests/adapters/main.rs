//! What both adapters promise, over real sockets: one suite, and each test runs over reqwest and over ureq.
//!
//! A test is a function over an [`Adapter`](face::Adapter), named after its requirement, and listed in its module's `both!`. What
//! only one adapter has (futures, runtimes) stands in a module of its own.
//!
//! Nothing here rests on how long something takes. Where a time has to pass, a clock is moved; where something has to
//! happen, its condition is awaited. [`PATIENCE`](face::PATIENCE) is reached by a hang alone.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

/// Makes two tests of each function: one over reqwest, one over ureq.
macro_rules! both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn over_reqwest() {
                super::$name::<crate::face::OverReqwest>();
            }

            #[test]
            fn over_ureq() {
                super::$name::<crate::face::OverUreq>();
            }
        }
    )+};
}

mod callers;
mod calls;
mod cold_start;
mod configured;
mod credentials;
mod endpoint;
mod face;
mod futures;
mod integrations;
mod origins;
mod peers;
mod rejections;
mod sharing;
mod trouble;
mod wire;
