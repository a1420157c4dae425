//! The core alone: what a transition costs, what a key weighs, and how fast virtual time passes.
//!
//! `cargo bench -p storm-auth-tests --bench machine` times each kind of transition with 10 to 100,000 keys in one machine: of few keys, as
//! they are when they are called again and again, and of all in turn. Messages are read and written in it: the form, the answer.

#![allow(clippy::unwrap_used, reason = "a program of one page, for people")]

mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use http::Response;
use storm_auth_core::machine::{Acquire, Action, OpId, Output};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{Budget, Failure, FailureKind, HttpHosts, Key, KeyId, Machine, Now, Policy, Scope, TokenUrl};
use storm_auth_tests::fleet::{self, Plan};
use storm_auth_tests::sim::{self, Options, Scenario};
use support::adapter::{Adapter, Reqwest, Ureq};
use support::counting::{Counting, weighed};
use support::report::{Figure, Report, figure};
use support::server::{Server, grant};
use support::{bench, client, settings};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The kinds of transitions, in the order in which a key's life has them.
const KINDS: [&str; 7] = [
    "acquire: no token",
    "response",
    "acquire: held",
    "timeout: nothing due",
    "acquire: refresh due",
    "failure",
    "acquire: held again",
];

/// Those for which no message is read or written.
const SILENT: [usize; 3] = [2, 3, 6];

/// Nanoseconds of each kind.
type Costs = [f64; KINDS.len()];

const KEYS: [usize; 5] = [10, 100, 1_000, 10_000, 100_000];

/// So many keys stay in the processor's caches.
const FEW: usize = 10;

/// How often each kind is timed with each number of keys, at least.
const TIMES: usize = 50_000;

/// Millions of transitions a second. It is the pace of deciding: who reads or writes a message has a network before and behind it.
const PACE: f64 = 2.0;

/// Bytes of a key with its token.
const WEIGHT: isize = 4 * 1_024;

fn main() -> ExitCode {
    bench(|report| {
        transitions(report);
        memory(report);
        virtual_time(report);
    })
}

fn transitions(report: &mut Report) {
    let mut worlds = KEYS.map(World::of);
    let few = worlds.each_mut().map(|world| world.costs(FEW));
    let title = format!("Nanoseconds of a transition with its outputs, of the same {FEW} keys among so many");
    table(report, &title, &few, true);
    let all = worlds.each_mut().map(|world| world.costs(world.keys.len()));
    let title = "The same with all keys in turn, so that most of it is waiting for memory";
    table(report, title, &all, false);
}

fn table(report: &mut Report, title: &str, costs: &[Costs; KEYS.len()], has_bounds: bool) {
    let columns: Vec<&str> =
        ["keys"].into_iter().chain(KINDS).chain(["millions a second", "without messages"]).collect();
    let mut rows: Vec<Vec<Figure>> = (KEYS.iter().zip(costs))
        .map(|(keys, costs)| {
            let pace = |kinds: &[f64]| kinds.len() as f64 * 1e3 / kinds.iter().sum::<f64>();
            let (all, silent) = (pace(costs), pace(&SILENT.map(|kind| costs[kind])));
            let all = figure(format!("{all:.2}"));
            let silent = figure(format!("{silent:.2}")).bound_if(has_bounds, "at least 2", silent >= PACE);
            let costs = costs.iter().map(|cost| figure(format!("{cost:.0}")));
            [figure(keys)].into_iter().chain(costs).chain([all, silent]).collect()
        })
        .collect();
    // Between the least and the most keys, a logarithm grows fivefold.
    let logarithm = (KEYS[KEYS.len() - 1] as f64).ln() / (KEYS[0] as f64).ln();
    let (least, most) = (&costs[0], &costs[KEYS.len() - 1]);
    let growths = least.iter().zip(most).map(|(least, most)| {
        let growth = most / least;
        figure(format!("{growth:.1} ×")).bound_if(has_bounds, "as log", growth <= logarithm)
    });
    rows.push([figure("growth")].into_iter().chain(growths).chain([figure(""), figure("")]).collect());
    report.table(title, &columns, rows);
}

/// A machine all of whose keys have had a token.
struct World {
    machine: Machine,
    keys: Vec<KeyId>,
    answer: Response<ResponseBody>,
    now: Now,
}

impl World {
    fn of(keys: usize) -> Self {
        let mut policy = Policy::default();
        policy.budget = Budget::unlimited();
        let mut machine = Machine::new(policy, 7);
        let now = Now::from_millis(1_000_000, 1_700_000_000_000);
        let mut keys: Vec<_> = (0..keys).map(|number| machine.add_key(key(number), now)).collect();
        // In an order that is not that of their numbers.
        fastrand::Rng::with_seed(7).shuffle(&mut keys);
        drain(&mut machine);
        let mut world = Self { machine, keys, answer: answer(), now };
        world.life(world.keys.len());
        world
    }

    /// The medians over some lives of so many keys.
    fn costs(&mut self, keys: usize) -> Costs {
        let lives: Vec<_> = (0..(TIMES / keys).max(3)).map(|_| self.life(keys)).collect();
        std::array::from_fn(|kind| {
            let mut costs: Vec<_> = lives.iter().map(|life| life[kind].as_nanos() as f64 / keys as f64).collect();
            costs.sort_unstable_by(f64::total_cmp);
            costs[costs.len() / 2]
        })
    }

    /// One life of so many keys' tokens, and how long each kind took for all of them.
    fn life(&mut self, keys: usize) -> [Duration; KINDS.len()] {
        let Self { machine, keys: all, answer, now } = self;
        let keys = &all[..keys];
        *now = later(*now, 10_000);
        let (start, refresh, retry) = (*now, later(*now, 2_800), later(*now, 2_900));

        let (first, sends) = acquire(machine, keys, start);
        assert_eq!(sends.len(), keys.len());
        let response = timed(|| {
            for op in sends {
                machine.handle_response(op, answer, start);
                drain(machine);
            }
        });
        let (held, _) = acquire(machine, keys, start);
        let timeout = timed(|| {
            for _ in keys {
                machine.handle_timeout(start);
                drain(machine);
            }
        });
        let (refreshed, sends) = acquire(machine, keys, refresh);
        assert_eq!(sends.len(), keys.len());
        let failure = timed(|| {
            for op in sends {
                machine.handle_failure(op, Failure::new(FailureKind::Io, "broken"), refresh);
                drain(machine);
            }
        });
        let (again, _) = acquire(machine, keys, retry);
        [first, response, held, timeout, refreshed, failure, again]
    }
}

/// A call of every key, and what is to be sent for them.
fn acquire(machine: &mut Machine, keys: &[KeyId], now: Now) -> (Duration, Vec<OpId>) {
    let mut sends = Vec::with_capacity(keys.len());
    let took = timed(|| {
        for key in keys {
            let acquire = machine.acquire(*key, None, now);
            assert!(!matches!(acquire, Acquire::Failed(_)), "{acquire:?}");
            sends.extend(drain(machine));
        }
    });
    (took, sends)
}

/// Takes what there is to do and to know, as a driver does after each call; and the request, where there is one.
fn drain(machine: &mut Machine) -> Option<OpId> {
    let mut sent = None;
    while let Some(output) = machine.poll_output() {
        if let Output::Perform(Action::Send(send)) = output {
            sent = Some(send.op);
        }
    }
    while machine.poll_change().is_some() {}
    sent
}

fn timed(act: impl FnOnce()) -> Duration {
    let since = Instant::now();
    act();
    since.elapsed()
}

fn later(now: Now, seconds: u64) -> Now {
    Now::from_millis(now.mono.as_millis() + seconds * 1_000, now.unix.as_millis() + seconds * 1_000)
}

fn key(number: usize) -> Key {
    let url = TokenUrl::parse("https://identity.example/connect/token", &HttpHosts::default()).unwrap();
    Key::new(url, client(number), Scope::new("playground").unwrap())
}

fn answer() -> Response<ResponseBody> {
    let mut body = ResponseBody::new();
    body.push(grant().as_bytes()).unwrap();
    Response::builder().header("content-type", "application/json").body(body).unwrap()
}

fn memory(report: &mut Report) {
    let rows = vec![weight::<Reqwest>(), weight::<Ureq>()];
    report.table("A key in a process of 10,000, with its provider and its token of 1,024 bytes", &["", "bytes"], rows);
}

fn weight<A: Adapter>() -> Vec<Figure> {
    const KEYS: usize = 10_000;
    let server = Server::tokens();
    let first = A::new(settings(&server.url()).budget(Budget::unlimited()));
    // What is made once.
    A::wait(first.token()).unwrap();
    let (providers, weight) = weighed(|| {
        let holding = |number| {
            let tokens = first.for_client(number);
            A::wait(tokens.token()).unwrap();
            tokens
        };
        (1..=KEYS).map(holding).collect::<Vec<_>>()
    });
    // What a thread of theirs freed late would be taken from the next one's weight.
    std::mem::forget(providers);
    let bytes = weight / KEYS as isize;
    vec![figure(A::NAME), figure(bytes).bound("under 4 KiB", bytes < WEIGHT)]
}

fn virtual_time(report: &mut Report) {
    let simulated = pace(|seed| sim::run(&Scenario::drawn(seed), Options::default()).report.process_hours);
    let plan = Plan { hours: Duration::from_secs(6 * 3_600), ..Plan::new(20, Duration::from_secs(600)) };
    let hours = plan.processes as f64 * (plan.hours + plan.warmup).as_secs_f64() / 3_600.0;
    let fleet = pace(|seed| {
        fleet::run(&plan, seed);
        hours
    });
    let row = |name, pace| vec![figure(name), figure(format!("{pace:.0}"))];
    let rows = vec![row("the simulator, with its oracles", simulated), row("a fleet of 20 processes", fleet)];
    report.table("Virtual time on one core", &["", "process-hours a second"], rows);
}

/// Hours a second, by as many seeds as fit into some seconds.
fn pace(hours: impl Fn(u64) -> f64) -> f64 {
    let (since, mut sum, mut seed) = (Instant::now(), 0.0, 0);
    while since.elapsed() < Duration::from_secs(3) {
        sum += hours(seed);
        seed += 1;
    }
    sum / since.elapsed().as_secs_f64()
}
