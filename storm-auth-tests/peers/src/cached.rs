//! The cached call: its time on one thread and on several, and its allocations.

use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
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
    /// Nanoseconds per call, for each number of threads. Not a number, where so many threads never ran at the same time.
    pub nanos: Vec<f64>,
    /// Allocations per call.
    pub allocations: f64,
}

/// The numbers of threads that are measured: no more than there are processors.
pub fn threads() -> Vec<usize> {
    let processors = processors().count();
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
        let nanos = nanos_per_call(&spans(contender, threads, WARM_UP), WARM_UP);
        (SLICE.as_nanos() as f64 / nanos) as u64 + 1
    };
    let calls: Vec<u64> = contenders.iter().map(|contender| fill_a_slice(&**contender)).collect();
    let mut measured = vec![Vec::with_capacity(rounds); contenders.len()];
    for round in 0..rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            let spans = spans(&*contenders[at], threads, calls[at]);
            // On a busy machine the threads may run one after another, and share nothing then.
            if together(&spans) {
                measured[at].push(nanos_per_call(&spans, calls[at]));
            }
        }
    }
    measured.into_iter().map(median).collect()
}

/// What a call took on each thread, of so many calls on each.
fn nanos_per_call(spans: &[Range<Instant>], calls: u64) -> f64 {
    let nanos: u128 = spans.iter().map(|span| (span.end - span.start).as_nanos()).sum();
    nanos as f64 / (spans.len() as u64 * calls) as f64
}

/// When each thread began and ended. Each has a processor of its own, and none sleeps before the start: on a busy machine they would
/// hardly ever run at the same time else.
fn spans(contender: &dyn Contender, threads: usize, calls: u64) -> Vec<Range<Instant>> {
    let ready = AtomicUsize::new(0);
    let caller = |processor| {
        // Where it may not be, only the figures for several threads are in danger, and say so.
        let _ = sched_setaffinity(None, &processor);
        let _runtime = contender.enter();
        contender.run(WARM_UP);
        ready.fetch_add(1, Ordering::Relaxed);
        while ready.load(Ordering::Relaxed) < threads {
            spin_loop();
        }
        let start = Instant::now();
        contender.run(calls);
        start..Instant::now()
    };
    thread::scope(|scope| {
        let caller = &caller;
        let callers: Vec<_> =
            processors().take(threads).map(|processor| scope.spawn(move || caller(processor))).collect();
        callers.into_iter().map(|caller| caller.join().expect("a cached call does not panic")).collect()
    })
}

/// The processors that this process may run on, each as a set of its own.
fn processors() -> impl Iterator<Item = CpuSet> {
    let all = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(move |number| all.is_set(*number)).map(|number| {
        let mut one = CpuSet::new();
        one.set(number);
        one
    })
}

/// Whether all threads ran for most of the time that any of them ran.
fn together(spans: &[Range<Instant>]) -> bool {
    let starts = || spans.iter().map(|span| span.start);
    let ends = || spans.iter().map(|span| span.end);
    let (Some(first), Some(all), Some(one), Some(last)) = (starts().min(), starts().max(), ends().min(), ends().max())
    else {
        return false;
    };
    one.saturating_duration_since(all) * 3 >= (last - first) * 2
}

fn allocations_per_call(contender: &dyn Contender) -> f64 {
    let _runtime = contender.enter();
    contender.run(WARM_UP);
    allocations::during(|| contender.run(COUNTED)) as f64 / COUNTED as f64
}

/// Not a number, where there are no values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
