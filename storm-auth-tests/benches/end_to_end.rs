//! An authorised API call beside one that a bare reqwest or ureq makes.
//!
//! `cargo bench -p storm-auth-tests --bench end_to_end` calls a server on loopback in three ways, in turns, on one core: through
//! storm-auth; with a bare client, which is given the same two headers ready-made; and with another bare client, which tells what
//! the run itself cannot tell apart. Where valgrind is installed it counts the instructions of a call, too.

#![allow(clippy::unwrap_used, reason = "a program of one page, for people")]

mod support;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::{HeaderValue, header::AUTHORIZATION};
use rustix::time::{ClockId, clock_gettime};
use storm_auth_core::Settings;
use support::report::{Figure, Report, figure, per_mille};
use support::server::Server;
use support::{TOKEN_LENGTH, arguments, bench, callgrind, settings};
use tokio::runtime::{self, Runtime};

/// Calls of which the CPU time is taken at once, and how often.
const BATCH: u64 = 50;
const BATCHES: usize = 400;

/// Callers at once, how long they call, and how often.
const CALLERS: usize = 8;
const SPELL: Duration = Duration::from_millis(200);
const SPELLS: usize = 40;

/// Calls under callgrind.
const COUNTED: u64 = 500;

/// Microseconds of CPU time that an authorised call may add.
const BOUND: f64 = 1.0;

const APPLICATION_ID: u64 = 1042;

const PATH: &str = "/commerce/product/1.1/Products";

/// Who makes a call: storm-auth, or one of two bare clients with connections of their own.
#[derive(Clone, Copy)]
enum Way {
    Storm,
    Bare(usize),
}

fn main() -> ExitCode {
    let arguments = arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["calls", over, way, tokens, api, number] => {
            let (way, number) = (if way == "storm" { Way::Storm } else { Way::Bare(0) }, number.parse().unwrap());
            let settings = settings(tokens).api_url(api).application_id(APPLICATION_ID);
            match over {
                "reqwest" => OverReqwest::new(&settings, api).calls(way, number),
                _ => OverUreq::new(&settings, api).calls(way, number),
            }
            ExitCode::SUCCESS
        }
        _ => bench(measure),
    }
}

fn measure(report: &mut Report) {
    stay_on_one_core();
    let (tokens, api) = (Server::tokens(), Server::start(|| r#"{"products":[]}"#.to_owned()));
    let settings = settings(&tokens.url()).api_url(api.url()).application_id(APPLICATION_ID);
    let (reqwest, ureq) = (OverReqwest::new(&settings, &api.url()), OverUreq::new(&settings, &api.url()));

    let columns = ["", "a bare call", "added by storm-auth", "by a bare call to another"];
    let rows = vec![cpu_time("reqwest", &reqwest), cpu_time("ureq", &ureq)];
    report.table("CPU time of the calling thread", &columns, rows);

    if callgrind::is_there() {
        let row = |over| {
            let count = |way| callgrind::per_call(&["calls", over, way, &tokens.url(), &api.url()], COUNTED);
            let (storm, bare) = (count("storm"), count("bare"));
            vec![figure(over), figure(format!("{bare:.0}")), figure(format!("{:.0}", storm - bare))]
        };
        let rows = vec![row("reqwest"), row("ureq")];
        report.table(
            "Instructions of a call, the kernel's left out",
            &["", "a bare call", "added by storm-auth"],
            rows,
        );
    }

    let columns = ["", "bare, a second", "storm-auth against bare", "noise: bare against bare"];
    let title = format!("Requests a second of {CALLERS} callers; the noise is where the median is in 19 of 20 runs");
    let rows = vec![pace("reqwest", &reqwest), pace("ureq", &ureq)];
    report.table(&title, &columns, rows);
}

/// Or else it is in the figures on which cores the scheduler has put the two ends of each connection.
fn stay_on_one_core() {
    #[cfg(target_os = "linux")]
    {
        let mut one = rustix::thread::CpuSet::new();
        one.set(rustix::thread::sched_getcpu());
        rustix::thread::sched_setaffinity(None, &one).unwrap();
    }
}

/// One kind of client, with and without storm-auth.
trait Over {
    /// So many calls in one thread, one after the other.
    fn calls(&self, way: Way, number: u64);

    /// As many calls as some callers can make for so long.
    fn calls_for(&self, way: Way, span: Duration) -> u64;
}

fn cpu_time(name: &str, over: &impl Over) -> Vec<Figure> {
    let micros = |way: Way| {
        let before = thread_time();
        over.calls(way, BATCH);
        (thread_time() - before).as_secs_f64() * 1e6 / BATCH as f64
    };
    let (mut bare, mut added, mut noise) = (Vec::new(), Vec::new(), Vec::new());
    for [storm, once, again] in in_turns(BATCHES, micros) {
        bare.push(once);
        added.push(storm - (once + again) / 2.0);
        noise.push(again - once);
    }
    let (bare, added, noise) = (sorted(bare), sorted(added), sorted(noise));
    let median = per_mille(&added, 500);
    vec![
        figure(name),
        figure(format!("{:.1} µs", per_mille(&bare, 500))),
        figure(format!("{median:+.2} µs")).bound("under 1 µs", median < BOUND),
        figure(format!("{:+.2} µs", per_mille(&noise, 500))),
    ]
}

fn pace(name: &str, over: &impl Over) -> Vec<Figure> {
    let (mut bare, mut ratio, mut noise) = (Vec::new(), Vec::new(), Vec::new());
    for [storm, once, again] in in_turns(SPELLS, |way| over.calls_for(way, SPELL) as f64 / SPELL.as_secs_f64()) {
        bare.push(once);
        ratio.push(storm / ((once + again) / 2.0));
        noise.push(again / once);
    }
    let (bare, ratio, noise) = (sorted(bare), sorted(ratio), sorted(noise));
    // By the binomial distribution, the true median lies this near the middle in 19 of 20 runs.
    let off = (980.0 / (SPELLS as f64).sqrt()) as usize;
    let median = per_mille(&ratio, 500);
    let (least, most) = (per_mille(&noise, 500 - off), per_mille(&noise, 500 + off));
    vec![
        figure(name),
        figure(format!("{:.0}", per_mille(&bare, 500))),
        figure(format!("{median:.3} ×")).bound("within the noise", (least..=most).contains(&median)),
        figure(format!("{least:.3} to {most:.3} ×")),
    ]
}

/// Measures all ways again and again, each of them as often in each place of the order.
fn in_turns(times: usize, measure: impl Fn(Way) -> f64) -> impl Iterator<Item = [f64; 3]> {
    const WAYS: [Way; 3] = [Way::Storm, Way::Bare(0), Way::Bare(1)];
    for way in WAYS {
        // The first calls open connections.
        measure(way);
    }
    (0..times).map(move |turn| {
        let mut measured = [0.0; WAYS.len()];
        for place in 0..WAYS.len() {
            let way = (turn + place) % WAYS.len();
            measured[way] = measure(WAYS[way]);
        }
        measured
    })
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What a program that holds a token by other means would send.
fn bearer() -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {:0>TOKEN_LENGTH$}", 0)).unwrap()
}

#[derive(Clone)]
struct OverReqwest {
    storm: storm_auth_reqwest::StormClient,
    bare: [reqwest::Client; 2],
    bearer: HeaderValue,
    url: String,
    /// One thread, the calling one, so that all that is done for a call is in its time.
    runtime: Arc<Runtime>,
}

impl OverReqwest {
    fn new(settings: &Settings, api: &str) -> Self {
        Self {
            storm: storm_auth_reqwest::Builder::from(settings.clone()).build().unwrap(),
            bare: [(); 2].map(|()| {
                let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
                client.build().unwrap()
            }),
            bearer: bearer(),
            url: format!("{api}{PATH}"),
            runtime: Arc::new(runtime::Builder::new_current_thread().enable_all().build().unwrap()),
        }
    }

    async fn call(&self, way: Way) {
        let response = match way {
            Way::Storm => self.storm.get(PATH).send().await.unwrap(),
            Way::Bare(which) => {
                let request = self.bare[which].get(&self.url).header(AUTHORIZATION, self.bearer.clone());
                request.header("ApplicationId", APPLICATION_ID).send().await.unwrap()
            }
        };
        response.bytes().await.unwrap();
    }
}

impl Over for OverReqwest {
    fn calls(&self, way: Way, number: u64) {
        self.runtime.block_on(async {
            for _ in 0..number {
                self.call(way).await;
            }
        });
    }

    fn calls_for(&self, way: Way, span: Duration) -> u64 {
        let until = Instant::now() + span;
        let callers = [(); CALLERS].map(|()| {
            let this = self.clone();
            self.runtime.spawn(async move {
                let mut calls = 0;
                while Instant::now() < until {
                    this.call(way).await;
                    calls += 1;
                }
                calls
            })
        });
        callers.into_iter().map(|caller| self.runtime.block_on(caller).unwrap()).sum()
    }
}

struct OverUreq {
    storm: storm_auth_blocking::StormClient,
    bare: [ureq::Agent; 2],
    bearer: HeaderValue,
    url: String,
}

impl OverUreq {
    fn new(settings: &Settings, api: &str) -> Self {
        let config = ureq::Agent::config_builder().max_redirects(0).proxy(None);
        let config = config.timeout_connect(Some(Duration::from_secs(10))).build();
        Self {
            storm: storm_auth_blocking::Builder::from(settings.clone()).build().unwrap(),
            bare: [(); 2].map(|()| config.new_agent()),
            bearer: bearer(),
            url: format!("{api}{PATH}"),
        }
    }

    fn call(&self, way: Way) {
        let mut response = match way {
            Way::Storm => self.storm.get(PATH).call().unwrap(),
            Way::Bare(which) => {
                let request = self.bare[which].get(&self.url).header(AUTHORIZATION, self.bearer.clone());
                request.header("ApplicationId", HeaderValue::from(APPLICATION_ID)).call().unwrap()
            }
        };
        response.body_mut().read_to_vec().unwrap();
    }
}

impl Over for OverUreq {
    fn calls(&self, way: Way, number: u64) {
        (0..number).for_each(|_| self.call(way));
    }

    fn calls_for(&self, way: Way, span: Duration) -> u64 {
        let (until, calls) = (Instant::now() + span, AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    while Instant::now() < until {
                        self.call(way);
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        calls.into_inner()
    }
}
