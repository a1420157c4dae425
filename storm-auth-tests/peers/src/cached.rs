//! The cached call: its time on one thread and on several, and its allocations.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_reqwest::Budget;

use crate::allocations;
use crate::contender::{Candidate, Contender, Error, Setup};
use crate::endpoint::Endpoint;

/// How long one contender is measured before it is the next one's turn: less than what a scheduler gives a thread at once, so that
/// on a busy machine too most slices are whole.
const SLICE: Duration = Duration::from_millis(1);

/// Calls before a thread's clock is started: its caches are warm then, and what is set up once per thread is.
const WARM_UP: u64 = 1_000;

const COUNTED: u64 = 1_000;

/// A contender's cached call.
pub struct Cached {
    pub name: &'static str,
    /// Nanoseconds per call, for each number of threads.
    pub nanos: Vec<f64>,
    /// Allocations per call.
    pub allocations: f64,
}

/// The numbers of threads that are measured: no more than there are processors.
pub fn threads() -> Vec<usize> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    [1, 2, 4].into_iter().filter(|threads| *threads <= processors).collect()
}

/// Medians over `rounds`. Each round has a slice of every contender, and begins with another one.
pub fn measure(candidates: &[&'static Candidate], rounds: usize) -> Result<Vec<Cached>, Error> {
    let lifetime = Duration::from_secs(3_600);
    let endpoint = Endpoint::start(lifetime, Duration::ZERO);
    let setup = Setup { url: endpoint.url(), lifetime, budget: Budget::default() };
    let contenders =
        candidates.iter().map(|candidate| candidate.start_with_token(&setup)).collect::<Result<Vec<_>, _>>()?;

    let nanos = threads().into_iter().map(|threads| medians(&contenders, threads, rounds)).collect::<Vec<_>>();
    let row = |(at, candidate): (usize, &&'static Candidate)| Cached {
        name: candidate.name,
        nanos: nanos.iter().map(|medians| medians[at]).collect(),
        allocations: allocations_per_call(&*contenders[at]),
    };
    Ok(candidates.iter().enumerate().map(row).collect())
}

fn medians(contenders: &[Box<dyn Contender>], threads: usize, rounds: usize) -> Vec<f64> {
    let fill_a_slice = |contender: &dyn Contender| {
        let nanos = slice(contender, threads, WARM_UP);
        (SLICE.as_nanos() as f64 / nanos) as u64 + 1
    };
    let calls: Vec<u64> = contenders.iter().map(|contender| fill_a_slice(&**contender)).collect();
    let mut measured = vec![Vec::with_capacity(rounds); contenders.len()];
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            measured[at].push(slice(&*contenders[at], threads, calls[at]));
        }
    }
    measured.into_iter().map(median).collect()
}

/// Nanoseconds per call, of threads that all start at once and make so many calls each.
fn slice(contender: &dyn Contender, threads: usize, calls: u64) -> f64 {
    let barrier = Barrier::new(threads);
    let caller = || {
        let _runtime = contender.enter();
        contender.run(WARM_UP);
        barrier.wait();
        let since = Instant::now();
        contender.run(calls);
        since.elapsed().as_nanos()
    };
    let nanos: u128 = thread::scope(|scope| {
        let callers: Vec<_> = (0..threads).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().map(|caller| caller.join().expect("a cached call does not panic")).sum()
    });
    nanos as f64 / (threads as u64 * calls) as f64
}

fn allocations_per_call(contender: &dyn Contender) -> f64 {
    let _runtime = contender.enter();
    contender.run(WARM_UP);
    allocations::during(|| contender.run(COUNTED)) as f64 / COUNTED as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
