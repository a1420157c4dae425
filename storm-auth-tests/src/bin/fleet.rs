//! How many processes live behind one address: simulates a fleet in virtual time, and prints what came of it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use lexopt::prelude::*;
use storm_auth_tests::emulator::Limiter;
use storm_auth_tests::fleet::{self, Figures, Fits, Outage, OutageKind, PEERS, Plan, Policy, Run, Shared};

const HELP: &str = "\
Simulates processes behind one address, each with a token of its own or all with a shared one, in virtual time.

Usage: fleet [options]

  --processes <n>       how many (default: 28)
  --ttl <span>          lifetime of the tokens (default: 600)
  --hours <n>           how long it is measured (default: 24)
  --warmup-hours <n>    how long it goes on before that (default: 2)
  --cold                measure from the start on, when all processes ask at once
  --seed <n>            the first seed (default: 1)
  --seeds <n>           how many (default: 5)
  --policy <names>      how processes decide: storm, a peer, several with commas between them, or all (default: storm)
  --refresh-early <share>
                        the share of a life after which storm refreshes where no throttle was felt (default: 0.75)
  --limiter <kind>      what stands before the token endpoint, as in the emulator: nginx, nginx-delay, nginx-503, nginx-date,
                        apim, aspnet, lump, none (default: nginx)
  --outage <every>:<length>[:<kind>]
                        the endpoint fails so often for so long, from a random time on. Kinds: status (502 behind the limiter,
                        the default), refused (no connection), silent (no answer)
  --restart-every <span>
                        each process restarts once in each such span, at a random time
  --store <none|shared> whether the processes share a store, which this library's policy alone can (default: none)
  --store-outage <every>:<length>
                        the shared store cannot be used so often for so long
  --pause <every>:<length>
                        each process stands still so often for so long, at random times
  --how-many            find the most processes for which nobody is without a token, up to 3000 where they share a store
  --promises            run the promises of this library, say which are kept, and fail if one is not that is not known to
                        be missed; with --seed, --seeds and one --policy only
  --json                print one JSON object: the first policy's figures, the others' in \"beside\"
  --svg <file>          draw token requests and the share of processes with a token, one row for each policy
  -h, --help            print this

A span is a number of seconds, or a number with s, m or h. Peers:
";

/// What is done with the plan.
enum Task {
    Measure,
    HowMany,
    Promises,
}

struct Order {
    task: Task,
    plan: Plan,
    policies: Vec<Policy>,
    seed: u64,
    seeds: u64,
    json: bool,
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let order = match arguments(lexopt::Parser::from_env()) {
        Ok(Some(order)) => order,
        Ok(None) => {
            let peers: String = PEERS.iter().map(|peer| format!("  {:<11} {}\n", peer.name, peer.about)).collect();
            return done(print(&format!("{HELP}{peers}")).map(|()| true));
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "fleet: {error}; --help tells what there is");
            return ExitCode::from(2);
        }
    };
    if let Some(Err(error)) = order.svg.as_deref().map(writable) {
        let _ = writeln!(io::stderr(), "fleet: --svg: {error}");
        return ExitCode::from(2);
    }
    done(match order.task {
        Task::Measure => measure(&order),
        Task::HowMany => how_many(&order),
        Task::Promises => promises(&order),
    })
}

fn done(outcome: io::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Who reads has had enough; the status is that of a program which a shell saw end so.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(141),
        Err(error) => {
            let _ = writeln!(io::stderr(), "fleet: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for, or `None` for the help.
fn arguments(mut parser: lexopt::Parser) -> Result<Option<Order>, lexopt::Error> {
    let mut order = Order {
        task: Task::Measure,
        plan: Plan::new(28, Duration::from_secs(600)),
        policies: vec![Policy::default()],
        seed: 1,
        seeds: 5,
        json: false,
        svg: None,
    };
    let (mut cold, mut shared, mut store_outage, mut refresh_early) = (false, false, None, None);
    let mut given = Vec::new();
    let plan = &mut order.plan;
    while let Some(argument) = parser.next()? {
        if let Long(name) = argument {
            given.push(name.to_owned());
        }
        match argument {
            Long("processes") => plan.processes = parser.value()?.parse_with(|text| number(text, 1, 100_000))? as usize,
            Long("ttl") => plan.lifetime = parser.value()?.parse_with(|text| span(text, 10, 86_400))?,
            Long("hours") => plan.hours = parser.value()?.parse_with(|text| hours(text, 0.01))?,
            Long("warmup-hours") => plan.warmup = parser.value()?.parse_with(|text| hours(text, 0.0))?,
            Long("cold") => cold = true,
            Long("seed") => order.seed = parser.value()?.parse()?,
            Long("seeds") => order.seeds = parser.value()?.parse_with(|text| number(text, 1, 10_000))?,
            Long("policy") => order.policies = parser.value()?.parse_with(policies)?,
            Long("refresh-early") => refresh_early = Some(parser.value()?.parse_with(share)?),
            Long("limiter") => {
                plan.limiter = parser.value()?.parse_with(|kind| {
                    Limiter::named(kind).ok_or_else(|| format!("one of {}", Limiter::NAMES.join(", ")))
                })?;
            }
            Long("outage") => plan.outage = Some(parser.value()?.parse_with(outage)?),
            Long("store") => {
                shared = parser.value()?.parse_with(|text| match text {
                    "none" => Ok(false),
                    "shared" => Ok(true),
                    _ => Err("none or shared"),
                })?;
            }
            Long("store-outage") => store_outage = Some(parser.value()?.parse_with(spans)?),
            Long("pause") => plan.pause = Some(parser.value()?.parse_with(spans)?),
            Long("restart-every") => {
                plan.restart_every = Some(parser.value()?.parse_with(|text| span(text, 60, 100 * 86_400))?);
            }
            Long("how-many") => order.task = Task::HowMany,
            Long("promises") => order.task = Task::Promises,
            Long("json") => order.json = true,
            Long("svg") => order.svg = Some(parser.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    if cold {
        order.plan.warmup = Duration::ZERO;
    }
    order.plan.store = shared.then_some(Shared { outage: store_outage });
    agree(&order, &given)?;
    if let Some(share) = refresh_early {
        for policy in &mut order.policies {
            if let Policy::Storm(policy) = policy {
                policy.refresh_early = share;
            }
        }
    }
    Ok(Some(order))
}

/// Refuses what would be without effect, or mean nothing, beside what else is given.
fn agree(order: &Order, given: &[String]) -> Result<(), String> {
    let has = |name| given.iter().any(|given| given == name);
    let stray = |all: &[&str]| given.iter().find(|name| all.contains(&name.as_str()));
    if has("how-many") && has("promises") {
        return Err("--how-many and --promises are two tasks: give one of them".to_owned());
    }
    if has("how-many")
        && let Some(stray) = stray(&["svg", "processes"])
    {
        return Err(format!("--how-many finds the number of processes and draws nothing: leave out --{stray}"));
    }
    let promises = ["promises", "seed", "seeds", "policy"];
    if has("promises")
        && let Some(stray) = given.iter().find(|name| !promises.contains(&name.as_str()))
    {
        return Err(format!(
            "--promises has plans of its own, and takes only --seed, --seeds and --policy: not --{stray}"
        ));
    }
    if has("promises") && order.policies.len() > 1 {
        return Err("--promises runs the plans with one policy: name one in --policy".to_owned());
    }
    if has("store-outage") && order.plan.store.is_none() {
        return Err("--store-outage needs a store that fails: add --store shared".to_owned());
    }
    let storm = order.policies.iter().any(|policy| matches!(policy, Policy::Storm(_)));
    if has("refresh-early") && !storm {
        return Err(
            "peers refresh at times of their own: leave out --refresh-early, or add storm to --policy".to_owned()
        );
    }
    if order.plan.store.is_some() && !storm {
        return Err("peers have no store: leave out --store, or add storm to --policy".to_owned());
    }
    if has("cold") && has("warmup-hours") {
        return Err("--cold measures without a warm-up: leave out --cold or --warmup-hours".to_owned());
    }
    let (plan, least) = (&order.plan, 2 * order.plan.lifetime);
    if has("how-many") && plan.warmup + plan.hours < least {
        let hours = (least - plan.warmup).as_secs_f64() / 3_600.0;
        return Err(format!(
            "--how-many with --ttl {} needs --hours {hours:.2} or more, so that it goes on for two lifetimes: most tokens would \
             never be refreshed",
            plan.lifetime.as_secs()
        ));
    }
    Ok(())
}

/// Refuses a file that cannot be written to, before hours are simulated for it; what it holds stays until then.
fn writable(path: &Path) -> io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).open(path).map(drop).map_err(|error| named(path, &error))
}

/// An error that tells the file.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let wanted = || format!("a whole number from {least} to {most}");
    text.parse().ok().filter(|number| (least..=most).contains(number)).ok_or_else(wanted)
}

/// A share of a life.
fn share(text: &str) -> Result<f64, &'static str> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or("a share of a life, more than 0 and at most 1")
}

fn hours(text: &str, least: f64) -> Result<Duration, String> {
    let hours = text.parse::<f64>().ok().filter(|hours| (least..=10_000.0).contains(hours));
    let wanted = || format!("a number of hours from {least} to 10000");
    hours.map(|hours| Duration::from_secs_f64(hours * 3_600.0)).ok_or_else(wanted)
}

/// A span between so many seconds.
fn span(text: &str, least: u64, most: u64) -> Result<Duration, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3_600),
        _ => (text, 1),
    };
    let seconds = digits.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    seconds
        .filter(|seconds| (least..=most).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("a span from {least} s to {most} s, like 600, 90s, 10m or 1h"))
}

fn policies(names: &str) -> Result<Vec<Policy>, String> {
    let known = || ["storm"].into_iter().chain(PEERS.iter().map(|peer| peer.name));
    let names = if names == "all" { known().collect() } else { names.split(',').collect::<Vec<_>>() };
    let policy = |name| {
        Policy::named(name).ok_or_else(|| format!("one or more of {}, or all", known().collect::<Vec<_>>().join(",")))
    };
    names.into_iter().map(policy).collect()
}

/// How often, and for how long.
fn spans(text: &str) -> Result<(Duration, Duration), String> {
    let (every, length) = text.split_once(':').ok_or("how often and for how long, like 1h:120s")?;
    let every = span(every, 1, 100 * 86_400)?;
    Ok((every, span(length, 1, every.as_secs())?))
}

fn outage(text: &str) -> Result<Outage, String> {
    let kinds = || OutageKind::NAMES.map(|(name, _)| name).join(", ");
    let mut parts = text.split(':');
    let (every, length, kind) = (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or("status"));
    let (Some(length), None) = (length, parts.next()) else {
        return Err("how often, how long and perhaps how, like 1h:120s or 1h:120s:silent".to_owned());
    };
    let every = span(every, 1, 100 * 86_400)?;
    let length = span(length, 1, every.as_secs())?;
    let kind = OutageKind::NAMES.iter().find(|(name, _)| *name == kind).map(|(_, kind)| *kind);
    Ok(Outage { every, length, kind: kind.ok_or_else(|| format!("a kind of outage: {}", kinds()))? })
}

/// How long nothing is said where nobody watches.
const SILENCE: Duration = Duration::from_secs(10);

/// A line on a terminal that says how far it has come; elsewhere one now and then, where it takes long.
struct Progress {
    of: u64,
    done: AtomicU64,
    said: Mutex<Instant>,
}

impl Progress {
    fn new(of: u64) -> Self {
        Self { of, done: AtomicU64::new(0), said: Mutex::new(Instant::now()) }
    }

    fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.say(&format!("{done} of {} runs", self.of));
    }

    fn say(&self, text: &str) {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if said.elapsed() >= SILENCE {
            *said = Instant::now();
            let _ = writeln!(io::stderr(), "fleet: {text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn measure(order: &Order) -> io::Result<bool> {
    let progress = Progress::new(order.seeds * order.policies.len() as u64);
    let plans: Vec<Plan> =
        order.policies.iter().map(|policy| Plan { policy: policy.clone(), ..order.plan.clone() }).collect();
    let runs: Vec<Run> =
        plans.iter().map(|plan| fleet::run_all(plan, order.seed, order.seeds, || progress.step())).collect();
    drop(progress);
    if let Some(path) = &order.svg {
        let rows: Vec<_> = plans.iter().zip(&runs).collect();
        let drawn = fleet::svg(&rows).map_err(io::Error::other)?;
        std::fs::write(path, drawn).map_err(|error| named(path, &error))?;
    }
    match order.json {
        false => {
            let rows: Vec<(&Plan, &Figures)> = plans.iter().zip(runs.iter().map(|run| &run.figures)).collect();
            print(&fleet::table(&rows))?;
        }
        true => {
            let mut objects = plans.iter().zip(&runs).map(|(plan, run)| fleet::object(plan, &run.figures));
            let mut first = objects.next().unwrap_or_default();
            if plans.len() > 1 {
                first["beside"] = objects.collect();
            }
            print(&format!("{first:#}\n"))?;
        }
    }
    Ok(true)
}

fn how_many(order: &Order) -> io::Result<bool> {
    let mut found = Vec::new();
    let progress = Progress::new(0);
    for policy in &order.policies {
        let plan = Plan { policy: policy.clone(), ..order.plan.clone() };
        let name = policy.name();
        let most = fleet::how_many(&plan, order.seed, order.seeds, |tried, done| {
            progress.say(&format!("{name}: trying {tried} processes, {done} of {} runs", order.seeds));
        });
        found.push((name, most));
    }
    drop(progress);
    match order.json {
        false => {
            let line = |(name, most): &(&str, Fits)| match most {
                Fits::Most(most) => format!("{name:<11} {most}\n"),
                Fits::MoreThan(most) => format!("{name:<11} more than {most}\n"),
                Fits::Any => format!("{name:<11} any number: nothing limits them\n"),
            };
            print(&found.iter().map(line).collect::<String>())?;
        }
        true => {
            let value = |most| match most {
                Fits::Most(most) => serde_json::json!(most),
                Fits::MoreThan(most) => serde_json::json!({ "more_than": most }),
                Fits::Any => serde_json::Value::Null,
            };
            let object: serde_json::Map<String, serde_json::Value> =
                found.iter().map(|(name, most)| ((*name).to_owned(), value(*most))).collect();
            print(&format!("{:#}\n", serde_json::json!({ "how_many": object })))?;
        }
    }
    Ok(true)
}

fn promises(order: &Order) -> io::Result<bool> {
    let mut kept = true;
    for mut promise in fleet::promises() {
        let progress = Progress::new(order.seeds);
        promise.plan.policy = order.policies[0].clone();
        let figures = fleet::run_all(&promise.plan, order.seed, order.seeds, || progress.step()).figures;
        drop(progress);
        let broken = promise.broken_by(&figures);
        let known = promise.known_by(&figures);
        kept &= broken.is_empty() || known.is_some();
        let last = figures.last_served_after_s().map_or("never".to_owned(), |after| format!("{after:.0} s"));
        print(&format!(
            "{}  {}\n        without {:.4} %, at most {:.0} s; {:.1} rejects/h; start at most {:.0} s, last served after {last}{}\n{}",
            match known {
                Some(_) => "MISSED",
                None if broken.is_empty() => "kept  ",
                None => "BROKEN",
            },
            promise.text,
            figures.without_token_percent(),
            figures.longest_without as f64 / 1_000.0,
            figures.rejects_per_hour(),
            figures.longest_start as f64 / 1_000.0,
            broken.iter().map(|what| format!("; {what}")).collect::<String>(),
            known.map_or(String::new(), |known| format!("        known: {}\n", known.why)),
        ))?;
    }
    Ok(kept)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
