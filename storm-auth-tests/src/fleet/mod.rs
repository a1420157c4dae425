//! How many processes live behind one address, in virtual time: hours of a fleet in a second, from one seed.
//!
//! Every process of a [`Plan`] holds a token, by a real [`Machine`](storm_auth_core::Machine), which may share it through a store,
//! or as one of its [`PEERS`] does, and is called about once a second. All of them stand behind one [`Limiter`] in its exact arithmetic. [`run`]
//! tells one seed of it and counts by the server's records; what it counted is in [`Figures`] that can be summed over seeds, and
//! its [`Course`] over time is what [`svg`] draws.
//!
//! ```
//! use std::time::Duration;
//! use storm_auth_tests::fleet::{self, Plan};
//!
//! let plan = Plan { hours: Duration::from_secs(2 * 3600), ..Plan::new(10, Duration::from_secs(600)) };
//! let figures = fleet::run(&plan, 7).figures;
//! assert_eq!((figures.without_token_percent(), figures.expired_handed_out), (0.0, 0));
//! ```
//!
//! Unlike the [simulator](crate::sim), which looks for broken promises where anything may go wrong, this one measures: the
//! network only takes its time, and what goes wrong is what the plan says.

mod course;
mod holder;
mod peer;
mod plan;
mod plot;
mod promises;
mod report;
mod world;

pub use course::{Course, Figures};
pub use peer::{PEERS, Peer};
pub use plan::{Outage, OutageKind, Plan, Policy, Shared};
pub use plot::svg;
pub use promises::{Known, Promise, promises};
pub use report::{object, table};

use crate::emulator::Limiter;

/// What came of one seed.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What was counted.
    pub figures: Figures,
    /// How it went over time.
    pub course: Course,
}

/// Tells the story of `plan` with this seed.
pub fn run(plan: &Plan, seed: u64) -> Run {
    world::run(plan, seed)
}

/// Tells the stories of the seeds from `first` on, on all cores, and sums their figures; the course is that of the first.
/// `told` is called after each.
pub fn run_all(plan: &Plan, first: u64, seeds: u64, told: impl Fn() + Sync) -> Run {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    let next = AtomicU64::new(0);
    let runs = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(seeds as usize);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds {
                        return;
                    }
                    let run = run(plan, first.wrapping_add(number));
                    runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((number, run));
                    told();
                }
            });
        }
    });
    let mut runs = runs.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    runs.sort_by_key(|(number, _)| *number);
    let mut runs = runs.into_iter().map(|(_, run)| run);
    let mut sum = runs.next().unwrap_or_default();
    runs.for_each(|run| sum.figures.add(&run.figures));
    sum
}

/// How many processes fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fits {
    /// So many, and no more.
    Most(usize),
    /// More than so many: all that were tried.
    MoreThan(usize),
    /// Nothing limits them.
    Any,
}

/// The most processes with a shared store that are tried.
const MOST_SHARING: usize = 3_000;

/// The most processes for which nobody is without a token for 0.0005 % of the time, so 0.000 % as it is printed, whatever the
/// plan's own number; found by bisection, so where more fit than fewer did, one of the two bounds is told. `told` is called with
/// each number before it is tried, and with how many of its seeds are done.
pub fn how_many(plan: &Plan, first: u64, seeds: u64, told: impl Fn(usize, u64)) -> Fits {
    let at_once = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let fits = |processes| {
        let plan = Plan { processes, ..plan.clone() };
        let most_holding = (processes as u64 * seeds) as f64 * plan.hours.as_millis() as f64;
        let (mut sum, mut done) = (Figures::default(), 0);
        while done < seeds {
            told(processes, done);
            let some = at_once.min(seeds - done);
            sum.add(&run_all(&plan, first.wrapping_add(done), some, || ()).figures);
            done += some;
            // The other seeds cannot make up for it.
            if 100.0 * sum.without as f64 / most_holding >= promises::NONE {
                return false;
            }
        }
        sum.without_token_percent() < promises::NONE
    };
    if matches!(plan.limiter.kind(), crate::emulator::LimiterKind::None) {
        return Fits::Any;
    }
    // Nobody gets more through the documented limiter than a request per 20 s; those that share a token need one for all.
    let alone = (plan.lifetime.as_secs() / 20) as usize + 2;
    let highest = if plan.shares() { MOST_SHARING.max(alone) } else { alone };
    if plan.shares() && fits(highest) {
        return Fits::MoreThan(highest);
    }
    let (mut least, mut most) = (0, alone);
    while most < highest && fits(most) {
        (least, most) = (most, (4 * most).min(highest));
    }
    while most - least > 1 {
        let middle = (least + most) / 2;
        if fits(middle) { least = middle } else { most = middle }
    }
    // What is the bound has not been tried without a store.
    if least + 1 == highest && !plan.shares() && fits(highest) { Fits::MoreThan(highest) } else { Fits::Most(least) }
}

/// The limiter that a plan has without saying so.
fn documented() -> Limiter {
    Limiter::nginx()
}
