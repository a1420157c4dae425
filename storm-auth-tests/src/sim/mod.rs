//! A simulator: many processes with callers behind one address, a limiter, a server and an API, in virtual time, from one seed.
//!
//! Each process drives a real [`Machine`](storm_auth_core::Machine), plainly or through the
//! [`Board`](storm_auth_core::driver::Board) of the adapters, by clocks of its own that drift, are set and miss suspends. A
//! [`Scenario`] is drawn from a seed: how many take part, which limiter stands before the server, what the network does to
//! requests and answers, and what goes wrong when. Some time before the end everything heals.
//!
//! Oracles watch all of it. They see what goes into a machine and what comes out, and they have the server's records: no
//! oracle knows how a machine decides. What they hold against it stands in the order in which it can happen in their module.
//!
//! ```
//! use storm_auth_tests::sim::{self, Options, Scenario};
//!
//! let story = sim::run(&Scenario::drawn(7), Options::default());
//! assert_eq!(story.wrong, None);
//! assert!(story.report.process_hours > 0.0);
//! ```
//!
//! Everything follows from the scenario and the options: the same ones give the same story, byte for byte.

mod clock;
mod judge;
mod process;
mod scenario;
mod server;
mod shelf;
mod world;

pub use scenario::{Rates, Scenario, Secrets, StoreRates};

/// How a story is told. The defaults are the fast ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Keeps every line of what happened.
    pub trace: bool,
    /// Tells each machine the time this often, in milliseconds, besides when it asks for it.
    pub tick: Option<u64>,
    /// Takes one output at a time, each as an event of its own at the same moment, in place of all at once. Only for machines
    /// that are driven plainly.
    pub in_part: bool,
}

/// What came of a story.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What an oracle said first, if one did.
    pub wrong: Option<String>,
    /// What happened, a line each, where it was to be kept.
    pub trace: Vec<String>,
    /// What was counted.
    pub report: Report,
}

/// What was counted in a story, over all processes.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Simulated time, summed over the processes.
    pub process_hours: f64,
    /// Token requests that were sent.
    pub requests: u64,
    /// Those that the limiter let pass.
    pub passed: u64,
    /// Those that the limiter refused.
    pub throttled: u64,
    /// Tokens that the server issued.
    pub issued: u64,
    /// Times that a caller asked for a token.
    pub calls: u64,
    /// Calls that got one.
    pub served: u64,
    /// Tokens that the API rejected.
    pub rejected: u64,
    /// Records of other processes whose token was taken.
    pub adopted: u64,
    /// Whether it could be said by when each key has a token after the last fault, and was checked.
    pub liveness_checked: bool,
}

/// Tells a story to its end, or until an oracle finds something wrong. A panic of the machine is such a finding.
pub fn run(scenario: &Scenario, options: Options) -> Story {
    world::run(scenario, options)
}
