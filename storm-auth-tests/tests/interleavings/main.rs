//! Every interleaving, under loom: of the cell that a cached token is read from, and of the blocking driver's lock, waits,
//! flights and wake-ups.
//!
//! Both are the very files that run, built a second time with loom's primitives in place of the system's. What they turn to
//! besides (tokens, the clock, the transport, events) is modelled beside them.
//!
//! How far loom looks is bounded by preemptions, as its manual advises. `LOOM_MAX_PREEMPTIONS=4` looks further, for longer.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

mod cell;
mod driver;

// What the two files call by their own crates' names.
use cell::{machine, time, token};
use driver::{clock, observe, sync, transport};

/// Tries the interleavings of `story` that take no more preemptions than this, unless the environment says otherwise.
fn explore(preemptions: usize, story: impl Fn() + Send + Sync + 'static) {
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound = loom.preemption_bound.or(Some(preemptions));
    loom.check(story);
}
