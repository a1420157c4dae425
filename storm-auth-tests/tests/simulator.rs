//! Many processes behind one address, in virtual time: R20–R22, R24–R29, R32, R34–R40, R43, R46–R48, R63, R79.
//!
//! `STORM_SIM_SEEDS=1000000 cargo test --release -p storm-auth-tests --test simulator deep -- --nocapture` tells a million stories.
//! A seed that fails prints the line that tells its story again.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a failing seed says how it is replayed")]

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use storm_auth_tests::emulator::Limiter;
use storm_auth_tests::sim::{self, Options, Report, Scenario};

/// Seeds whose stories once broke a promise, as this revision draws them: a gate that a suspend had shortened was waited out by
/// the clock that had slept; the judge rounded the shortest wait after a throttle up; and a caller of a token that a wall clock set back had
/// made valid again was told that the provider is closed; and a gate in the store was waited out anew with each reading, by a
/// wall clock that had been set back. What older revisions drew stands as a test of its own beside what was mended.
const KEPT: [u64; 5] = [2_124_471, 10_496_117, 280_395_668_850_823, 239_648_177_688_753, 261_097_922_960_020];

const TRACE: Options = Options { trace: true, tick: None, in_part: false };

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// A number that differs from run to run.
fn fresh() -> u64 {
    RandomState::new().build_hasher().finish() >> 16
}

/// Tells a seed's story; where an oracle objects, tells it again for people and returns what it says.
fn tell(seed: u64) -> Result<Report, String> {
    let scenario = Scenario::drawn(seed);
    let story = sim::run(&scenario, Options::default());
    let Some(wrong) = story.wrong else { return Ok(story.report) };
    let again = sim::run(&scenario, TRACE);
    let lines = variable("STORM_SIM_LINES").unwrap_or(100);
    let mut trace = again.trace[again.trace.len().saturating_sub(lines)..].join("\n");
    if lines > 0 {
        trace = format!("{scenario:?}\n{trace}\n");
    }
    if again.wrong.as_ref() != Some(&wrong) {
        trace.push_str("R63: told again, it was another story!\n");
    }
    Err(format!(
        "{trace}{wrong}\nSTORM_SIM_SEED={seed} cargo test -p storm-auth-tests --test simulator replay -- --nocapture"
    ))
}

/// What came of many stories.
#[derive(Default)]
struct Sum {
    report: Report,
    stories: u64,
    live: u64,
    wrong: Vec<String>,
}

/// Tells the stories of `seeds` from `base` on, on two threads, until one of them fails (or `STORM_SIM_FAILURES` of them).
fn tell_all(base: u64, seeds: u64, progress: bool) {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Sum::default());
    let most = variable("STORM_SIM_FAILURES").unwrap_or(1);
    let start = Instant::now();
    let say = |Sum { report, stories, live, .. }: &Sum| {
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        println!(
            "{stories} stories, {live} of them judged for R28; {:.0} process-hours, {:.0} a minute; {} calls, {} requests, {} of \
             them throttled, {} tokens, {} rejections",
            report.process_hours,
            report.process_hours / minutes,
            report.calls,
            report.requests,
            report.throttled,
            report.issued,
            report.rejected,
        );
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds || sum.lock().unwrap().wrong.len() >= most {
                        return;
                    }
                    let told = tell(base.wrapping_add(number));
                    let sum = &mut *sum.lock().unwrap();
                    match told {
                        Ok(report) => sum.add(report),
                        Err(wrong) => {
                            eprintln!("{wrong}");
                            sum.wrong.push(wrong);
                        }
                    }
                    if progress && sum.stories.is_multiple_of(10_000) {
                        say(sum);
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    say(&sum);
    assert!(sum.wrong.is_empty(), "{} stories failed, told above", sum.wrong.len());
}

impl Sum {
    fn add(&mut self, report: Report) {
        let sum = &mut self.report;
        sum.process_hours += report.process_hours;
        sum.calls += report.calls;
        sum.requests += report.requests;
        sum.throttled += report.throttled;
        sum.issued += report.issued;
        sum.rejected += report.rejected;
        self.stories += 1;
        self.live += u64::from(report.liveness_checked);
    }
}

#[test]
fn r20_r22_r24_r25_r26_r28_r29_r34_r36_r38_r79_no_kept_seed_breaks_a_promise() {
    for seed in KEPT {
        tell(seed).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

#[test]
fn r20_r22_r24_r25_r26_r28_r29_r34_r36_r38_r79_no_fixed_seed_breaks_a_promise() {
    tell_all(1, 200, false);
}

#[test]
fn r20_r22_r24_r25_r26_r28_r29_r34_r36_r38_r79_no_fresh_seed_breaks_a_promise() {
    let base = variable("STORM_SIM_BASE").unwrap_or_else(fresh);
    println!("fresh seeds from {base} on");
    tell_all(base, 100, false);
}

/// As many seeds as `STORM_SIM_SEEDS` says; none without it.
#[test]
fn deep() {
    let Some(seeds) = variable("STORM_SIM_SEEDS") else { return };
    let base = variable("STORM_SIM_BASE").unwrap_or_else(fresh);
    println!("{seeds} seeds from {base} on");
    tell_all(base, seeds, true);
}

/// The story of `STORM_SIM_SEED`, told for people.
#[test]
fn replay() {
    if let Some(seed) = variable("STORM_SIM_SEED") {
        println!("{:?}", tell(seed).unwrap_or_else(|wrong| panic!("{wrong}")));
    }
}

#[test]
fn r63_the_same_seed_tells_the_same_story() {
    for seed in 0..20 {
        let tell = || sim::run(&Scenario::drawn(seed), TRACE);
        let (one, other) = (tell(), tell());
        assert!(one.trace.len() > 20);
        assert!(one.trace == other.trace && one.report == other.report, "seed {seed}");
    }
}

/// A story whose clocks agree with each other: time that is told more often than asked for changes nothing.
#[test]
fn r63_ticking_in_small_steps_tells_the_story_of_jumping_to_the_next_deadline() {
    for seed in 0..6 {
        let scenario = Scenario::drawn(seed).steady();
        let jumping = sim::run(&scenario, TRACE);
        let ticking = sim::run(&scenario, Options { tick: Some(777), ..TRACE });
        assert_eq!(ticking.wrong, None, "seed {seed}");
        same(seed, &jumping.trace, &ticking.trace);
    }
}

/// Outputs that are taken one by one, each as an event of its own at the same moment, are the same outputs in the same order.
/// With one process, that is, and but for the order within a millisecond: an answer may come in the one in which they are taken.
#[test]
fn r63_outputs_taken_one_by_one_are_those_taken_at_once() {
    for seed in 0..60 {
        let scenario = Scenario::drawn(seed).steady().alone();
        let eager = sim::run(&scenario, TRACE);
        let in_part = sim::run(&scenario, Options { in_part: true, ..TRACE });
        assert_eq!(in_part.wrong, None, "seed {seed}");
        let outputs = |trace: &[String]| -> Vec<String> {
            let said = [" says: ", " sends ", " gets ", " fails: "];
            let mut outputs: Vec<_> =
                trace.iter().filter(|line| said.iter().any(|word| line.contains(word))).cloned().collect();
            let moment = |line: &String| line.find(" s ").map(|end| line[..end].to_owned());
            outputs.chunk_by_mut(|one, next| moment(one) == moment(next)).for_each(<[String]>::sort);
            outputs
        };
        same(seed, &outputs(&eager.trace), &outputs(&in_part.trace));
    }
}

#[track_caller]
fn same(seed: u64, one: &[String], other: &[String]) {
    let differs = one.iter().zip(other).position(|(one, other)| one != other);
    if let Some(line) = differs.or((one.len() != other.len()).then_some(one.len().min(other.len()))) {
        let around =
            |trace: &[String]| trace[line.saturating_sub(10).min(trace.len())..(line + 3).min(trace.len())].join("\n");
        panic!("seed {seed} tells two stories\n{}\n\n{}", around(one), around(other));
    }
}

/// Where nothing goes wrong and the address has room, a call finds a token after its first wait, and nobody is throttled.
#[test]
fn r24_in_a_calm_story_nobody_is_throttled() {
    for name in Limiter::NAMES {
        let scenario = Scenario::calm(7, 5, Limiter::named(name).unwrap());
        let story = sim::run(&scenario, TRACE);
        assert_eq!(story.wrong, None, "{name}");
        assert!(story.report.liveness_checked, "{name}");
        let counts = (story.report.throttled, story.report.calls - story.report.served, story.report.rejected);
        if name != "nginx-delay" {
            assert_eq!(counts, (0, 0, 0), "{name}");
        }
    }
}
