//! A cold start: many callers at once, and one request for all of them.
//!
//! `cargo bench -p storm-auth-tests --bench cold_start` tells how long after the answer the last of 1,000 callers had its token.

#![allow(clippy::unwrap_used, reason = "a program of one page, for people")]

mod support;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use support::adapter::{Adapter, Reqwest, Ureq};
use support::report::{Figure, figure, per_mille, span};
use support::server::{Server, grant};
use support::{bench, settings};

const CALLERS: usize = 1_000;

const ROUNDS: usize = 20;

/// From the answer to the last who is served.
const BOUND: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    bench(|report| {
        let columns = ["", "requests", "first served", "last served", "in the worst round"];
        let title =
            format!("{CALLERS} callers at once: from the answer until they are served, the median of {ROUNDS} rounds");
        report.table(&title, &columns, vec![row::<Reqwest>(), row::<Ureq>(), threads_alone()]);
    })
}

fn row<A: Adapter>() -> Vec<Figure> {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| round::<A>()).collect();
    let most_requests = rounds.iter().map(|(requests, _)| *requests).max().unwrap();
    let [first, last, worst] = told(rounds.iter().map(|(_, served)| served));
    vec![
        figure(A::NAME),
        figure(most_requests).bound("1", most_requests == 1),
        span(first),
        span(last).bound("at most 5 ms", last <= BOUND),
        span(worst),
    ]
}

/// What as many threads take that only sleep at a condition variable, and are woken at once: what is the system's own.
fn threads_alone() -> Vec<Figure> {
    let rounds: Vec<_> = (0..ROUNDS).map(|_| wake_threads()).collect();
    let [first, last, worst] = told(rounds.iter());
    vec![figure("threads alone"), figure(""), span(first), span(last), span(worst)]
}

/// The medians of the first and of the last who was served, and the worst of the last.
fn told<'r>(rounds: impl Iterator<Item = &'r Served>) -> [Duration; 3] {
    let (mut firsts, mut lasts): (Vec<_>, Vec<_>) = rounds.map(|served| (served.first, served.last)).unzip();
    firsts.sort_unstable();
    lasts.sort_unstable();
    [per_mille(&firsts, 500), per_mille(&lasts, 500), per_mille(&lasts, 1_000)]
}

/// How long after the answer.
struct Served {
    first: Duration,
    last: Duration,
}

impl Served {
    fn after(answered: Instant, served: &[Instant]) -> Self {
        let [first, last] = [served.iter().min(), served.iter().max()].map(|at| at.unwrap().duration_since(answered));
        Self { first, last }
    }
}

/// How many requests went out, and when the callers were served.
fn round<A: Adapter>() -> (u64, Served) {
    let (calling, answered) = (Arc::<AtomicUsize>::default(), Arc::<OnceLock<Instant>>::default());
    let server = Server::start({
        let (calling, answered) = (calling.clone(), answered.clone());
        move || {
            while calling.load(Ordering::SeqCst) < CALLERS {
                thread::sleep(Duration::from_millis(1));
            }
            // The last of them is on its way into the call.
            thread::sleep(Duration::from_millis(50));
            let grant = grant();
            answered.get_or_init(Instant::now);
            grant
        }
    });
    let adapter = A::new(settings(&server.url()));
    let served = A::all((0..CALLERS).map(|_| {
        let (adapter, calling) = (adapter.clone(), calling.clone());
        async move {
            calling.fetch_add(1, Ordering::SeqCst);
            adapter.token().await.unwrap();
            Instant::now()
        }
    }));
    (server.requests(), Served::after(*answered.get().unwrap(), &served))
}

fn wake_threads() -> Served {
    let bell = Arc::<(Mutex<bool>, Condvar)>::default();
    let threads: Vec<_> = (0..CALLERS)
        .map(|_| {
            let bell = bell.clone();
            thread::spawn(move || {
                let (rung, bell) = &*bell;
                drop(bell.wait_while(rung.lock().unwrap(), |rung| !*rung).unwrap());
                Instant::now()
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(50));
    let (rung, bell) = &*bell;
    let woken = Instant::now();
    *rung.lock().unwrap() = true;
    bell.notify_all();
    let served: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    Served::after(woken, &served)
}
