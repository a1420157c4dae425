//! Time and everything that happens in it, in one order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use core::time::Duration;
use storm_auth_core::machine::{Acquire, Action, OpId, Output, StoreRequest, TokenRequest, WaiterId};
use storm_auth_core::store::{StoreCommand, StoreFailure, StoreReply};
use storm_auth_core::{CredentialsFailure, Failure, FailureKind, Invalidated, Token};

use super::clock::Clock;
use super::judge::{Judge, Ruling};
use super::process::{Alive, Caller, Engine, Process, Report as Input, credentials, key, secret, secret_text};
use super::scenario::{Fault, MINUTE, SECOND, Scenario, Secrets, StoreMood};
use super::server::{Answer, Meaning, Mood, Server, Told, serial};
use super::shelf::{Luck, Shelf};
use super::{Options, Report, Story};
use crate::emulator::{Limiter, LimiterKind, Verdict};

/// The true time at which every story begins, in milliseconds since the Unix epoch: the limiter and the server go by it.
const START: u64 = 1_700_000_000_000;

/// Timeouts of one machine without time passing. More of them is a livelock.
const TIMEOUTS_AT_ONCE: u32 = 1_000;

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What happens, and to whom. `life` is the process's life that it belongs to.
#[derive(Clone, Debug)]
enum Happening {
    Timer { process: usize, life: u32, number: u64 },
    Tick { process: usize },
    Drain { process: usize, life: u32 },
    Call { process: usize, life: u32, caller: usize },
    Cancel { process: usize, life: u32, caller: usize, waiter: WaiterId },
    Arrive(Request),
    Serve(Request),
    Deliver { process: usize, life: u32, key: usize, op: OpId, news: News },
    Rejected { process: usize, life: u32, caller: usize, token: Token, serial: usize },
    AtStore { process: usize, life: u32, back: u64, luck: Luck, request: Rc<StoreRequest> },
    FromStore { process: usize, life: u32, op: OpId, result: Rc<Result<StoreReply, StoreFailure>> },
    Found { process: usize, life: u32, key: usize, op: OpId, secret: Option<u64> },
    Fault(Fault),
    TellSecret { process: usize, client: usize, secret: Option<u64> },
    Start { process: usize },
    Healed,
    Judgement,
}

#[derive(Clone, Debug)]
enum News {
    Answer(Rc<Answer>),
    Failure(FailureKind),
}

/// A token request on its way to the server. Its fate is drawn when it is sent, so that no other request changes it.
#[derive(Clone, Debug)]
struct Request {
    process: usize,
    life: u32,
    key: usize,
    op: OpId,
    secret: Option<u64>,
    patience: u64,
    sent: u64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug)]
struct Fate {
    lost: bool,
    reset: bool,
    twice: bool,
    late: u64,
    back: u64,
    status: Option<(u16, u64)>,
    garbage: Option<u8>,
    told: Told,
    retry_after: u64,
    /// How long after its patience the driver reports the silence; `None`: it never does.
    gives_up: Option<u64>,
}

/// An event's place in time: the true time, then machines' timers before anything else, in the order of the processes, so that
/// ticks change no order.
type Place = (u64, u8, u64);

struct Entry(Place, Happening);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

struct World<'a> {
    scenario: &'a Scenario,
    options: Options,
    at: u64,
    end: u64,
    number: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    processes: Vec<Process>,
    limiter: Limiter,
    server: Server,
    shelf: Option<Shelf>,
    /// When a key of a process last got a token, by process and key.
    last_token: Vec<Vec<u64>>,
    healed: bool,
    judged_at: u64,
    trace: Vec<String>,
    report: Report,
    process_millis: u64,
}

pub(super) fn run(scenario: &Scenario, options: Options) -> Story {
    let mut world = World::new(scenario, options);
    let wrong = match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(Ok(())) => None,
        Ok(Err(wrong)) => Some(wrong),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
            Some(format!("a panic: {text}"))
        }
    };
    world.report.issued = world.server.issued.len() as u64;
    world.report.process_hours = world.process_millis as f64 / 3_600_000.0;
    Story { wrong, trace: world.trace, report: world.report }
}

macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.options.trace {
            let line = format!($($text)*);
            $world.write(&line);
        }
    };
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, options: Options) -> Self {
        let mut world = Self {
            scenario,
            options,
            at: START,
            end: START + scenario.faults_until + 24 * 60 * MINUTE,
            number: 0,
            queue: BinaryHeap::new(),
            processes: Vec::new(),
            limiter: scenario.limiter.clone(),
            server: Server {
                lifetime: scenario.lifetime,
                mood: Mood::Well,
                secrets: vec![0; scenario.keys],
                issued: Vec::new(),
                rejecting_until: 0,
            },
            shelf: scenario.store.map(Shelf::new),
            last_token: vec![vec![0; scenario.keys]; scenario.processes],
            healed: false,
            judged_at: 0,
            trace: Vec::new(),
            report: Report::default(),
            process_millis: 0,
        };
        for process in 0..scenario.processes {
            let mut rng = world.stream(1, process as u64, 0);
            let drift = |rng: &mut fastrand::Rng| match scenario.drift {
                0 => 0,
                most => rng.i64(-most..=most),
            };
            let wrong_by = if scenario.drift == 0 { 0 } else { rng.i64(-300_000..=300_000) };
            let unix = START.saturating_add_signed(wrong_by);
            let clock = Clock::new(START, 5_000_000, unix, drift(&mut rng), drift(&mut rng));
            world.processes.push(Process {
                clock,
                life: 0,
                alive: None,
                suspended_until: 0,
                secrets: vec![0; scenario.keys],
                warm: scenario.warm,
            });
            let started = START + if rng.bool() { 0 } else { rng.u64(0..=scenario.faults_until / 2) };
            world.after(started - START, Happening::Start { process });
            if let Some(tick) = options.tick {
                world.after(tick, Happening::Tick { process });
            }
        }
        for (at, fault) in &scenario.faults {
            world.after(*at, Happening::Fault(*fault));
        }
        world.after(scenario.faults_until, Happening::Healed);
        world
    }

    /// A source of chance for one purpose, which no other purpose disturbs.
    fn stream(&self, purpose: u64, a: u64, b: u64) -> fastrand::Rng {
        let mixed = [purpose, a, b].iter().fold(self.scenario.seed, |mixed, part| {
            (mixed ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15)).rotate_left(23).wrapping_mul(0xD6E8_FEB8_6659_FD93)
        });
        fastrand::Rng::with_seed(mixed)
    }

    fn after(&mut self, span: u64, happening: Happening) {
        self.put(self.at + span, happening);
    }

    fn put(&mut self, at: u64, happening: Happening) {
        self.number += 1;
        let place = match &happening {
            Happening::Timer { process, .. } | Happening::Tick { process } => (at, 0, *process as u64),
            _ => (at, 1, self.number),
        };
        self.queue.push(Reverse(Entry(place, happening)));
    }

    fn write(&mut self, line: &str) {
        let since = self.at - START;
        self.trace.push(format!("{:>9}.{:03} s  {line}", since / 1_000, since % 1_000));
    }

    fn run(&mut self) -> Ruling {
        while let Some(Reverse(Entry((at, ..), happening))) = self.queue.pop() {
            if at > self.end {
                break;
            }
            self.at = at;
            self.happen(happening)?;
        }
        self.at = self.end;
        for process in 0..self.processes.len() {
            self.bury(process)?;
        }
        Ok(())
    }

    /// Puts what happens to a suspended process off until it wakes.
    fn sleeps(&mut self, process: usize, happening: &Happening) -> bool {
        let until = self.processes[process].suspended_until;
        if until <= self.at {
            return false;
        }
        self.put(until, happening.clone());
        true
    }

    /// Whether this life of the process still goes on.
    fn lives(&self, process: usize, life: u32) -> bool {
        let process = &self.processes[process];
        process.life == life && process.alive.is_some()
    }

    fn happen(&mut self, happening: Happening) -> Ruling {
        let of = match &happening {
            Happening::Timer { process, life, .. }
            | Happening::Drain { process, life }
            | Happening::Call { process, life, .. }
            | Happening::Cancel { process, life, .. }
            | Happening::Deliver { process, life, .. }
            | Happening::Rejected { process, life, .. }
            | Happening::FromStore { process, life, .. }
            | Happening::Found { process, life, .. } => Some((*process, Some(*life))),
            Happening::TellSecret { process, .. }
            | Happening::Start { process }
            | Happening::Fault(
                Fault::Close { process, .. } | Fault::Misconfigure { process, .. } | Fault::Warm { process, .. },
            ) => Some((*process, None)),
            _ => None,
        };
        if let Some((process, life)) = of
            && (life.is_some_and(|life| !self.lives(process, life)) || self.sleeps(process, &happening))
        {
            return Ok(());
        }
        match happening {
            Happening::Timer { process, number, .. } => self.timer(process, number),
            Happening::Tick { process } => {
                if let Some(tick) = self.options.tick {
                    self.after(tick, Happening::Tick { process });
                }
                if self.processes[process].alive.is_none() || self.processes[process].suspended_until > self.at {
                    return Ok(());
                }
                self.tell_time(process)
            }
            Happening::Drain { process, .. } => self.take(process),
            Happening::Call { process, caller, .. } => self.call(process, caller),
            Happening::Cancel { process, caller, waiter, .. } => self.cancel(process, caller, waiter),
            Happening::Arrive(request) => self.arrive(request),
            Happening::Serve(request) => {
                self.serve(request);
                Ok(())
            }
            Happening::Deliver { process, key, op, news, .. } => self.deliver(process, key, op, &news),
            Happening::Rejected { process, caller, token, serial, .. } => {
                self.rejected(process, caller, &token, serial)
            }
            Happening::AtStore { process, life, back, luck, request } => {
                self.at_store(process, life, back, luck, &request);
                Ok(())
            }
            Happening::FromStore { process, op, result, .. } => self.hear_of_store(process, op, &result),
            Happening::Found { process, key, op, secret, .. } => self.found(process, key, op, secret),
            Happening::Fault(fault) => self.fault(fault),
            Happening::TellSecret { process, client, secret } => self.tell_secret(process, client, secret),
            Happening::Start { process } => self.start(process),
            Happening::Healed => {
                self.heal();
                Ok(())
            }
            Happening::Judgement => self.judgement(),
        }
    }

    // Processes

    fn start(&mut self, process: usize) -> Ruling {
        if self.processes[process].alive.is_some() {
            return Ok(());
        }
        self.processes[process].life += 1;
        let life = self.processes[process].life;
        let mut rng = self.stream(2, process as u64, u64::from(life));
        let mut engine = Engine::new(self.scenario, rng.u64(..));
        let now = self.processes[process].clock.now(self.at);
        let secrets = self.processes[process].secrets.clone();
        let known = self.scenario.secrets;
        let keys: Vec<_> = secrets
            .iter()
            .enumerate()
            .map(|(client, secret)| engine.add_key(key(client, *secret, known), now))
            .collect();
        if known == Secrets::Found {
            keys.iter().for_each(|key| engine.command(now, |machine| machine.renew_credentials(*key, now)));
        }
        let keys_count = self.scenario.keys;
        let caller = |number: usize| Caller {
            key: number % keys_count,
            waiting: None,
            replaying: None,
            rng: self.stream(3, process as u64, (u64::from(life) << 32) + number as u64),
        };
        let callers: Vec<_> = (0..self.scenario.callers.max(keys_count)).map(caller).collect();
        let count = callers.len();
        let judge = Judge::new(self.scenario, &secrets, self.options.in_part);
        self.processes[process].alive = Some(Alive {
            engine,
            keys,
            callers,
            by_waiter: Default::default(),
            judge,
            timer: None,
            timer_number: 0,
            at_once: (0, 0),
            sends: 0,
            looks: 0,
            errands: 0,
            store_free_at: 0,
        });
        trace!(self, "p{process} starts");
        for caller in 0..count {
            let pause = if rng.bool() { 0 } else { rng.u64(0..=self.scenario.pause) };
            self.after(pause, Happening::Call { process, life, caller });
        }
        if self.processes[process].warm {
            for key in 0..keys_count {
                self.warm(process, key, true)?;
            }
        }
        self.take(process)
    }

    /// The process ends: what it counted must be right.
    fn bury(&mut self, process: usize) -> Ruling {
        let Some(mut alive) = self.processes[process].alive.take() else { return Ok(()) };
        if !self.options.in_part {
            alive.judge.counted(alive.engine.counters()).map_err(|wrong| format!("p{process}: {wrong}"))?;
        }
        alive.by_waiter.clear();
        Ok(())
    }

    /// Reads the process's clocks, lets `input` happen, and takes what comes out.
    fn touch(
        &mut self,
        process: usize,
        input: impl FnOnce(&mut Alive, storm_auth_core::Now, &Server) -> Ruling,
    ) -> Ruling {
        let now = self.processes[process].clock.now(self.at);
        let Some(alive) = &mut self.processes[process].alive else { return Ok(()) };
        alive.judge.look(now);
        input(alive, now, &self.server).map_err(|wrong| format!("p{process}: {wrong}"))?;
        self.take(process)
    }

    fn timer(&mut self, process: usize, number: u64) -> Ruling {
        let Some(alive) = &mut self.processes[process].alive else { return Ok(()) };
        if alive.timer_number != number {
            return Ok(());
        }
        alive.timer = None;
        alive.at_once = if alive.at_once.0 == self.at { (self.at, alive.at_once.1 + 1) } else { (self.at, 1) };
        if alive.at_once.1 > TIMEOUTS_AT_ONCE {
            return Err(format!("p{process}: a livelock: {:?}", alive.engine.timeout()));
        }
        self.tell_time(process)
    }

    fn tell_time(&mut self, process: usize) -> Ruling {
        self.touch(process, |alive, now, _| {
            alive.judge.elapse(now);
            alive.engine.elapse(now);
            Ok(())
        })
    }

    /// Takes what comes out of a machine, all of it or a part, and sets its timer.
    fn take(&mut self, process: usize) -> Ruling {
        let now = self.processes[process].clock.now(self.at);
        loop {
            let Some(alive) = &mut self.processes[process].alive else { return Ok(()) };
            let Some(output) = alive.engine.poll_output() else {
                alive.judge.settled(now).map_err(|wrong| format!("p{process}: {wrong}"))?;
                break;
            };
            self.output(process, output).map_err(|wrong| format!("p{process}: {wrong}"))?;
            if self.options.in_part {
                let life = self.processes[process].life;
                self.after(0, Happening::Drain { process, life });
                return Ok(());
            }
        }
        let Process { alive: Some(alive), clock, life, .. } = &mut self.processes[process] else { return Ok(()) };
        let due = alive.engine.timeout().map(|mono| clock.when(mono).max(self.at));
        if due != alive.timer {
            alive.timer = due;
            alive.timer_number += 1;
            let (life, number) = (*life, alive.timer_number);
            if let Some(due) = due {
                self.put(due, Happening::Timer { process, life, number });
            }
        }
        Ok(())
    }

    fn output(&mut self, process: usize, output: Output) -> Ruling {
        trace!(self, "p{process} {}", told(&output));
        let now = self.processes[process].clock.now(self.at);
        let Some(alive) = &mut self.processes[process].alive else { return Ok(()) };
        match output {
            Output::Event(event) => alive.judge.event(&event, now),
            Output::Perform(Action::Store(request)) => {
                let key = alive.keys.iter().position(|key| *key == request.key).ok_or("an operation for no key")?;
                let published = alive.judge.ask_store(key, &request, now);
                if let (StoreCommand::Publish { record, .. }, Some(published)) = (&request.store_op.command, published)
                    && let Some(shelf) = &mut self.shelf
                {
                    shelf.published.insert(record.order, published);
                }
                self.go_to_store(process, request);
                Ok(())
            }
            Output::Perform(Action::Credentials(request)) => {
                let key = alive.keys.iter().position(|key| *key == request.key).ok_or("a look for no key")?;
                alive.judge.seek(key)?;
                alive.looks += 1;
                let looks = alive.looks;
                self.look(process, key, request.op, looks);
                Ok(())
            }
            Output::Perform(Action::Send(send)) => {
                let key = alive.keys.iter().position(|key| *key == send.key).ok_or("a request for no key")?;
                let secret = secret(send.request.body().as_bytes());
                alive.judge.send(key, &send, secret.unwrap_or(u64::MAX), now)?;
                alive.sends += 1;
                let sends = alive.sends;
                self.launch(process, key, &send, secret, sends);
                Ok(())
            }
            Output::Resolve(waiter, result) => {
                let token = alive.judge.resolved(waiter, &result, &self.server.issued, now)?;
                if let Some(caller) = alive.by_waiter.remove(&waiter) {
                    alive.callers[caller].waiting = None;
                    self.came(process, caller, result.ok().zip(token))?;
                }
                Ok(())
            }
        }
    }

    // Callers

    fn call(&mut self, process: usize, caller: usize) -> Ruling {
        let (healed, restless) = (self.healed, self.scenario.restless);
        let life = self.processes[process].life;
        let now = self.processes[process].clock.now(self.at);
        let Some(alive) = &mut self.processes[process].alive else { return Ok(()) };
        if alive.callers[caller].waiting.is_some() {
            return Ok(());
        }
        self.report.calls += 1;
        alive.judge.look(now);
        let Caller { key, rng, .. } = &mut alive.callers[caller];
        let key = *key;
        let patience = match rng.u8(0..6) {
            _ if healed => Some(60 * SECOND),
            _ if !restless => None,
            0 => Some(rng.u64(0..10)),
            1 => Some(rng.u64(0..5 * SECOND)),
            2 => Some(rng.u64(0..120 * SECOND)),
            3 => Some(rng.u64(0..2_000 * SECOND)),
            _ => None,
        };
        let cancel_in = (!healed && restless && rng.u8(0..4) == 0).then(|| rng.u64(0..40 * SECOND));
        let deadline = now.mono + Duration::from_millis(patience.unwrap_or(30 * SECOND));
        alive.judge.ask(key, now);
        let answer = alive.engine.acquire(alive.keys[key], patience.map(Duration::from_millis), now);
        let ruling = alive.judge.answered(key, deadline.as_millis(), &answer, &self.server.issued, now);
        if let Acquire::Wait(waiter) = answer {
            alive.callers[caller].waiting = Some(waiter);
            alive.by_waiter.insert(waiter, caller);
        }
        trace!(self, "p{process} caller {caller} asks for key {key} within {patience:?} ms: {}", told_answer(&answer));
        let token = ruling.map_err(|wrong| format!("p{process}: {wrong}"))?;
        match answer {
            Acquire::Ready(ready) => self.came(process, caller, Some(ready).zip(token))?,
            Acquire::Failed(_) => self.came(process, caller, None)?,
            Acquire::Wait(waiter) => {
                if let Some(span) = cancel_in {
                    self.after(span, Happening::Cancel { process, life, caller, waiter });
                }
            }
        }
        self.take(process)
    }

    fn cancel(&mut self, process: usize, caller: usize, waiter: WaiterId) -> Ruling {
        let life = self.processes[process].life;
        let Some(alive) = &mut self.processes[process].alive else { return Ok(()) };
        if alive.callers[caller].waiting != Some(waiter) {
            return Ok(());
        }
        alive.callers[caller].waiting = None;
        alive.callers[caller].replaying = None;
        alive.by_waiter.remove(&waiter);
        let pause = alive.callers[caller].rng.u64(1..=self.scenario.pause);
        trace!(self, "p{process} caller {caller} goes");
        self.after(pause, Happening::Call { process, life, caller });
        self.touch(process, |alive, now, _| {
            alive.judge.cancel(waiter);
            alive.engine.cancel(waiter, now);
            Ok(())
        })
    }

    /// A caller got a token, or none. It uses it, and comes again later.
    fn came(&mut self, process: usize, caller: usize, token: Option<(Token, usize)>) -> Ruling {
        let life = self.processes[process].life;
        let pause = if self.healed { self.scenario.pause.min(60 * SECOND) } else { self.scenario.pause };
        let Some(alive) = &mut self.processes[process].alive else { return Ok(()) };
        let Caller { key, rng, replaying, .. } = &mut alive.callers[caller];
        let (key, replayed) = (*key, replaying.take());
        let pause = rng.u64(1..=pause);
        let way = rng.u64(self.scenario.latency.0..=self.scenario.latency.1);
        let Some((token, serial)) = token else {
            self.after(pause, Happening::Call { process, life, caller });
            return Ok(());
        };
        self.report.served += 1;
        self.last_token[process][key] = self.at;
        if replayed == Some(serial) {
            return Err(format!("R39: p{process} is to send its call again with the same token {serial}"));
        }
        match self.server.takes(serial, self.at + way / 2) {
            false if replayed.is_none() => {
                self.after(way, Happening::Rejected { process, life, caller, token, serial });
            }
            // A second 401 goes to the caller, who reports it too.
            false => {
                self.after(way, Happening::Rejected { process, life, caller: usize::MAX, token, serial });
                self.after(way + pause, Happening::Call { process, life, caller });
            }
            true => self.after(pause, Happening::Call { process, life, caller }),
        }
        self.truly_alive(process, serial)
    }

    /// R20, once more by the true time: where the clocks are fit for it, a token that is handed out is alive at the server.
    fn truly_alive(&self, process: usize, serial: usize) -> Ruling {
        let token = &self.server.issued[serial];
        let exact = self.scenario.drift == 0 && self.scenario.stale == 0;
        // A clock that was set lies about the age of another process's token.
        let shared = self.shelf.is_some();
        let slept = self.scenario.faults.iter().any(|(_, fault)| match fault {
            Fault::Suspend { .. } => true,
            Fault::StepWall { .. } => shared,
            _ => false,
        });
        match exact && !slept && token.honest && token.dies_at <= self.at {
            true => Err(format!("R20: p{process} hands out token {serial}, dead since {}", token.dies_at)),
            false => Ok(()),
        }
    }

    /// The API answered 401.
    fn rejected(&mut self, process: usize, caller: usize, token: &Token, serial: usize) -> Ruling {
        self.report.rejected += 1;
        let client = self.server.issued[serial].client;
        trace!(self, "p{process} caller {caller} got a 401 for token {serial}");
        self.touch(process, |alive, now, _| {
            alive.judge.elapse(now);
            let current = alive.judge.valid(client, now) == Some(serial);
            let became = alive.engine.command(now, |machine| machine.invalidate(token.id(), now));
            alive.judge.reject(client, serial);
            match became {
                Invalidated::NotCurrent if current => return Err(format!("R38: {serial} is the current token")),
                Invalidated::HeldOff => alive.judge.hold_off(client, now),
                Invalidated::Dropped | Invalidated::NotCurrent => {}
            }
            Ok(())
        })?;
        if caller != usize::MAX
            && let Some(alive) = &mut self.processes[process].alive
        {
            alive.callers[caller].replaying = Some(serial);
            return self.call(process, caller);
        }
        Ok(())
    }

    // The network

    fn launch(&mut self, process: usize, key: usize, send: &TokenRequest, secret: Option<u64>, number: u64) {
        self.report.requests += 1;
        let life = self.processes[process].life;
        let mut rng = self.stream(4, (process as u64) << 32 | u64::from(life), number);
        let rng = &mut rng;
        let calm = self.healed;
        let rates = self.scenario.rates;
        let meets = |rng: &mut fastrand::Rng, rate: u32| rng.u32(0..1_000) < rate && !calm;
        let (least, most) = self.scenario.latency;
        let (out, back) = (rng.u64(least..=most), rng.u64(least..=most));
        let patience = send.patience.as_millis() as u64;
        let deliver = |kind| Happening::Deliver { process, life, key, op: send.op, news: News::Failure(kind) };
        if meets(rng, rates.connect) || self.server.mood == Mood::Down {
            let span = if rng.bool() { 5 * SECOND } else { out };
            return self.after(span, deliver(FailureKind::Connect));
        }
        if meets(rng, rates.abort) {
            // Its request may have gone out by then, or not.
            let span = rng.u64(0..=2 * most);
            self.after(span, deliver(FailureKind::Aborted));
            if rng.bool() {
                return;
            }
        }
        let fate = Fate {
            lost: meets(rng, rates.loss),
            reset: meets(rng, rates.reset),
            twice: meets(rng, rates.twice),
            late: if meets(rng, rates.late) { rng.u64(0..500 * SECOND) } else { 0 },
            back,
            status: meets(rng, rates.status).then(|| {
                let codes = [400, 401, 403, 404, 301, 307, 408, 418, 429, 500, 501, 502, 503, 504];
                let waits = [0, 0, 0, 1, 15, 60, 4_000];
                (codes[rng.usize(0..codes.len())], waits[rng.usize(0..waits.len())])
            }),
            garbage: meets(rng, rates.garbage).then(|| rng.u8(..)),
            told: match meets(rng, rates.lifetime) {
                false if rng.u8(0..16) == 0 => Told::Text,
                false => Told::Truth,
                true => {
                    let short = Told::Short(rng.u64(2..120));
                    [Told::Zero, Told::OneSecond, short, short, Told::Huge, Told::Missing][rng.usize(0..6)]
                }
            },
            retry_after: if meets(rng, rates.retry_after) { rng.u64(1..=120) } else { 0 },
            gives_up: rng.bool().then(|| rng.u64(0..2 * SECOND)),
        };
        let (op, sent) = (send.op, self.at);
        let request = Request { process, life, key, op, secret, patience, sent, fate };
        // Half of the requests that are lost never arrive.
        if fate.lost && rng.bool() {
            return self.silence(&request);
        }
        self.after(out, Happening::Arrive(request));
    }

    /// Somebody looks where the secret lies: as a rule in no time, and with luck it can be read.
    fn look(&mut self, process: usize, key: usize, op: OpId, number: u64) {
        let life = self.processes[process].life;
        let mut rng = self.stream(7, (process as u64) << 32 | u64::from(life), number);
        let span = if rng.u8(0..8) == 0 { rng.u64(1..20 * SECOND) } else { rng.u64(1..20) };
        let unreadable = rng.u8(0..16) == 0 && !self.healed;
        let secret = (!unreadable).then_some(self.processes[process].secrets[key]);
        self.after(span, Happening::Found { process, life, key, op, secret });
    }

    fn found(&mut self, process: usize, key: usize, op: OpId, secret: Option<u64>) -> Ruling {
        trace!(self, "p{process} finds secret {secret:?} of client {key}");
        self.touch(process, |alive, now, _| {
            alive.judge.found(key, secret);
            let found = secret.map(|secret| credentials(key, secret, Secrets::Found));
            alive.engine.report_credentials(op, found.ok_or_else(|| CredentialsFailure::new("unreadable")), now);
            alive.judge.elapse(now);
            Ok(())
        })
    }

    // The store

    /// A process performs its operations one after the other.
    fn go_to_store(&mut self, process: usize, request: StoreRequest) {
        let Some(rates) = self.scenario.store else { return };
        let (at, calm, life) = (self.at, self.healed, self.processes[process].life);
        let Some(alive) = &mut self.processes[process].alive else { return };
        alive.errands += 1;
        let (errands, begins) = (alive.errands, alive.store_free_at.max(at));
        let mut rng = self.stream(6, (process as u64) << 32 | u64::from(life), errands);
        let meets = |rng: &mut fastrand::Rng, rate: u32| rng.u32(0..1_000) < rate && !calm;
        let (least, most) = rates.latency;
        let (there, back) = (rng.u64(least..=most), rng.u64(least..=most));
        let luck = Luck {
            fails: meets(&mut rng, rates.fails),
            hangs: meets(&mut rng, rates.hangs),
            lags: meets(&mut rng, rates.lags),
            lies: meets(&mut rng, rates.lies).then(|| rng.u8(0..9)),
            draw: rng.u64(..),
        };
        let back = if luck.hangs { rng.u64(SECOND..3 * SECOND) } else { back };
        if let Some(alive) = &mut self.processes[process].alive {
            alive.store_free_at = begins + there + back;
        }
        self.put(begins + there, Happening::AtStore { process, life, back, luck, request: Rc::new(request) });
    }

    fn at_store(&mut self, process: usize, life: u32, back: u64, luck: Luck, request: &StoreRequest) {
        let Some(shelf) = &mut self.shelf else { return };
        let (result, in_time) = shelf.perform(&request.store_op, luck, self.at);
        trace!(self, "the store does {:?} of p{process}: {result:?}", request.op);
        let back = if in_time { back } else { back.max(3 * SECOND) };
        self.after(back, Happening::FromStore { process, life, op: request.op, result: Rc::new(result) });
    }

    fn hear_of_store(&mut self, process: usize, op: OpId, result: &Result<StoreReply, StoreFailure>) -> Ruling {
        trace!(self, "p{process} hears of {op:?} from the store");
        let record = result.as_ref().ok().and_then(|reply| reply.record.as_ref());
        let published =
            record.zip(self.shelf.as_ref()).and_then(|(record, shelf)| shelf.published.get(&record.order).copied());
        self.touch(process, |alive, now, _| {
            alive.judge.deliver_store(op, result, published, now);
            alive.engine.report_store(op, result.clone(), now);
            alive.judge.elapse(now);
            Ok(())
        })
    }

    /// Nobody answers; the driver may say so when the patience is over.
    fn silence(&mut self, request: &Request) {
        let &Request { process, life, key, op, patience, sent, fate, .. } = request;
        if let Some(span) = fate.gives_up {
            let news = News::Failure(FailureKind::Timeout);
            let at = (sent + patience + span).max(self.at);
            self.put(at, Happening::Deliver { process, life, key, op, news });
        }
    }

    fn arrive(&mut self, request: Request) -> Ruling {
        let verdict = self.limiter.admit(ADDRESS, self.at);
        trace!(self, "p{} {:?} arrives: {verdict:?}", request.process, request.op);
        self.report.passed += u64::from(verdict != Verdict::Reject);
        match verdict {
            Verdict::Pass => self.serve(request),
            Verdict::Hold(span) => self.after(span.as_millis() as u64, Happening::Serve(request)),
            Verdict::Reject => {
                self.report.throttled += 1;
                let refusal = self.limiter.refusal(ADDRESS, self.at);
                let retry_after = match (refusal.headers().get("retry-after"), self.limiter.kind()) {
                    (None, _) => 0,
                    // A date is a whole number of seconds from the one beside it, as digits are.
                    (Some(_), LimiterKind::Nginx(_)) => {
                        (self.limiter.wait(ADDRESS, self.at).as_millis() as u64).div_ceil(SECOND) * SECOND
                    }
                    (Some(field), _) => {
                        field.to_str().ok().and_then(|digits| digits.parse().ok()).unwrap_or(0) * SECOND
                    }
                };
                let answer = Answer { meaning: Meaning::Throttled, retry_after, response: refusal };
                self.answer(&request, answer);
                if self.scenario.never_throttled() {
                    return Err("R29: the limiter refuses a lone process that keeps its budget".to_owned());
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, request: Request) {
        let fate = request.fate;
        let answer = match self.server.mood {
            Mood::Down | Mood::Silent => return self.silence(&request),
            Mood::Sick(status, seconds) => Server::status(status, seconds),
            Mood::Garbled => Server::garbage(request.key as u8),
            Mood::Well => match (fate.status, fate.garbage) {
                (Some((status, seconds)), _) => Server::status(status, seconds),
                (None, Some(which)) => Server::garbage(which),
                (None, None) if request.secret != Some(self.server.secrets[request.key]) => self.server.refuse(),
                (None, None) => {
                    let mut answer = self.server.issue(request.key, fate.told, self.at);
                    if fate.retry_after > 0 {
                        answer.retry_after = fate.retry_after * SECOND;
                        answer.response.headers_mut().insert("retry-after", fate.retry_after.into());
                    }
                    answer
                }
            },
        };
        self.answer(&request, answer);
    }

    fn answer(&mut self, request: &Request, answer: Answer) {
        let &Request { process, life, key, op, fate, .. } = request;
        trace!(self, "p{process} {op:?} is answered {:?}, {} ms", answer.meaning, answer.retry_after);
        if fate.lost {
            return self.silence(request);
        }
        let span = fate.back + fate.late;
        if fate.reset {
            let news = News::Failure(FailureKind::Io);
            return self.after(span, Happening::Deliver { process, life, key, op, news });
        }
        let news = News::Answer(Rc::new(answer));
        self.after(span, Happening::Deliver { process, life, key, op, news: news.clone() });
        if fate.twice {
            self.after(span + fate.back, Happening::Deliver { process, life, key, op, news });
        }
        if span > request.patience {
            self.silence(request);
        }
    }

    fn deliver(&mut self, process: usize, key: usize, op: OpId, news: &News) -> Ruling {
        match news {
            News::Answer(answer) => trace!(self, "p{process} is told of {op:?}: {:?}", answer.meaning),
            News::Failure(kind) => trace!(self, "p{process} is told of {op:?}: {kind:?}"),
        }
        self.touch(process, |alive, now, _| {
            match news {
                News::Answer(answer) => {
                    alive.judge.deliver(key, op, answer, now);
                    alive.engine.report(op, Input::Response(&answer.response), now);
                }
                News::Failure(kind) => {
                    // A driver's description that shows what it must not.
                    let detail = secret_text(alive.judge.sent_secret(key));
                    alive.judge.deliver_failure(key, op, *kind);
                    alive.engine.report(op, Input::Failure(Failure::new(*kind, detail)), now);
                }
            }
            // The machine looks at the time after each report.
            alive.judge.elapse(now);
            Ok(())
        })
    }

    // What goes wrong, and the end of it

    fn fault(&mut self, fault: Fault) -> Ruling {
        trace!(self, "{fault:?}");
        match fault {
            Fault::Mood(mood) => self.server.mood = mood,
            Fault::Lifetime(lifetime) => self.server.lifetime = lifetime,
            Fault::Revoke { client } => {
                self.server
                    .issued
                    .iter_mut()
                    .filter(|token| token.client == client)
                    .for_each(|token| token.revoked = true);
            }
            Fault::RejectAll { span } => self.server.rejecting_until = self.at + span,
            Fault::Rotate { client, told_within } => {
                let secret = self.server.secrets[client] + 1;
                self.server.secrets[client] = secret;
                for process in 0..self.processes.len() {
                    let mut rng = self.stream(5, process as u64, secret);
                    let span = rng.u64(0..told_within);
                    self.after(span, Happening::TellSecret { process, client, secret: None });
                }
            }
            // Slept through until everything was well again.
            Fault::Misconfigure { .. } if self.healed => {}
            Fault::Misconfigure { process, client, span } => {
                self.after(span, Happening::TellSecret { process, client, secret: None });
                return self.tell_secret(process, client, Some(999_999));
            }
            Fault::Crash { process, down } => {
                self.after(down, Happening::Start { process });
                return self.bury(process);
            }
            Fault::Close { process, down } => {
                let life = self.processes[process].life;
                self.touch(process, |alive, now, _| {
                    alive.judge.close();
                    alive.engine.command(now, |machine| machine.shut_down(now));
                    Ok(())
                })?;
                if self.lives(process, life) {
                    // It goes on for a while, and then it is gone.
                    self.after(down / 2, Happening::Fault(Fault::Crash { process, down: down / 2 }));
                }
            }
            Fault::StepWall { process, by } => {
                let at = self.at;
                let process = &mut self.processes[process];
                process.clock.step_wall(at, by);
                process.alive.iter_mut().for_each(|alive| alive.judge.moved_clock(by > 0));
            }
            Fault::Suspend { process, span } => {
                let at = self.at;
                let process = &mut self.processes[process];
                if process.suspended_until > at {
                    return Ok(());
                }
                process.clock.sleep(at, at + span);
                process.suspended_until = at + span;
                if let Some(alive) = &mut process.alive {
                    alive.judge.moved_clock(true);
                }
            }
            Fault::Store(mood) => self.shelf.iter_mut().for_each(|shelf| shelf.mood = mood),
            Fault::StoreLoses => self.shelf.iter().for_each(Shelf::lose_everything),
            Fault::Warm { process, on } => {
                self.processes[process].warm = on;
                for key in 0..self.scenario.keys {
                    self.warm(process, key, on)?;
                }
            }
        }
        Ok(())
    }

    fn warm(&mut self, process: usize, key: usize, on: bool) -> Ruling {
        self.touch(process, |alive, now, _| {
            let id = alive.keys[key];
            alive.judge.warm(key, on);
            match on {
                true => {
                    alive.judge.elapse(now);
                    alive.engine.command(now, |machine| machine.keep_warm(id, now));
                }
                false => alive.engine.command(now, |machine| machine.keep_cold(id, now)),
            }
            Ok(())
        })
    }

    /// `None` is the secret that the server has now.
    fn tell_secret(&mut self, process: usize, client: usize, secret: Option<u64>) -> Ruling {
        let secret = secret.unwrap_or(self.server.secrets[client]);
        self.processes[process].secrets[client] = secret;
        trace!(self, "p{process} is told secret {secret} of client {client}");
        let known = self.scenario.secrets;
        if known == Secrets::Found {
            // It lies there until somebody looks.
            return Ok(());
        }
        self.touch(process, |alive, now, _| {
            let id = alive.keys[client];
            alive.judge.told_secret(client, secret);
            let credentials = credentials(client, secret, known);
            let told = alive.engine.command(now, |machine| machine.set_credentials(id, credentials, now));
            told.map_err(|error| format!("R43: {error}"))
        })
    }

    /// The last fault is over: everybody is up and has the right secret. From here the time runs by which each key has a token.
    fn heal(&mut self) {
        self.healed = true;
        self.server.mood = Mood::Well;
        self.server.rejecting_until = 0;
        self.shelf.iter_mut().for_each(|shelf| shelf.mood = StoreMood::Well);
        let held_back = (self.processes.iter())
            .filter_map(|process| {
                let alive = process.alive.as_ref()?;
                Some(alive.judge.held_back_until(process.clock.now(self.at)).as_millis() as u64)
            })
            .max()
            .unwrap_or(0);
        // What answers say that are under way already, or will.
        let under_way = self.queue.iter().map(|Reverse(Entry(_, happening))| match happening {
            Happening::Deliver { news: News::Answer(answer), .. } => answer.retry_after,
            Happening::Arrive(request) | Happening::Serve(request) => {
                let status = request.fate.status.map_or(0, |(_, seconds)| seconds.min(3_600));
                status.max(request.fate.retry_after) * SECOND
            }
            _ => 0,
        });
        let held_back = held_back.max(under_way.max().unwrap_or(0));
        let holders = (self.scenario.processes * self.scenario.keys) as u64;
        let turns = holders * 20 * SECOND * 3 / 2;
        let limiter = match self.limiter.kind() {
            LimiterKind::None => 0,
            LimiterKind::Nginx(nginx) if nginx.nodelay => 420 * SECOND,
            // What was sent last before is held for 400 s, and a request that is given up costs its slot all the same.
            LimiterKind::Nginx(_) => 2_000 * SECOND,
            LimiterKind::Window(_) => 600 * SECOND,
            LimiterKind::AspNet(_) => 2 * 3_600 * SECOND,
            LimiterKind::Lump(_) => 480 * SECOND,
        };
        // A refused configuration is probed every 300 s, any other failure backs off for 120 s at the most.
        let bound = held_back + 300 * SECOND + turns + limiter + 120 * SECOND + 2 * self.scenario.pause;
        // A lease may rest for 300 s, somebody who comes to no end is followed for 240 s, and a store is left alone for a minute.
        let bound = bound + if self.shelf.is_some() { 3_600 * SECOND + 600 * SECOND } else { 0 };
        self.judged_at = self.at + bound + 4 * self.scenario.latency.1;
        self.put(self.judged_at, Happening::Judgement);
        self.end = self.judged_at + 20 * MINUTE;
        let started = self.at;
        self.process_millis = self.scenario.processes as u64 * (self.end - START);
        trace!(self, "healed; every key has a token by {} s", (self.judged_at - started) / 1_000);
    }

    /// R28: each key that is called has got a token since the last fault.
    fn judgement(&mut self) -> Ruling {
        let holders = (self.scenario.processes * self.scenario.keys) as u64;
        let limited =
            self.processes.iter().all(|process| process.alive.as_ref().is_none_or(|alive| alive.judge.is_limited()));
        // Two thirds of what the address may have in the long run.
        let fits = holders * 30 * SECOND <= self.server.lifetime * 3 / 4;
        let fits = fits && (limited || holders < 10);
        let slow = matches!(self.scenario.budget, Some((rate, _)) if rate < 3);
        // It holds twenty. Where more want to be held, and each gives its first requests up, luck decides.
        let held_up = matches!(self.limiter.kind(), LimiterKind::Nginx(nginx) if !nginx.nodelay) && holders > 20;
        if !fits || slow || held_up {
            return Ok(());
        }
        self.report.liveness_checked = true;
        for (process, keys) in self.last_token.iter().enumerate() {
            for (key, at) in keys.iter().enumerate() {
                if self.processes[process].alive.is_some() && *at < START + self.scenario.faults_until {
                    return Err(format!("R28: p{process} has got no token for key {key} since the last fault"));
                }
            }
        }
        Ok(())
    }
}

/// An output as a trace shows it.
fn told(output: &Output) -> String {
    match output {
        Output::Perform(Action::Store(request)) => format!("asks the store: {:?}", request.store_op.command),
        Output::Perform(Action::Credentials(request)) => format!("looks for key {}'s secret", request.key.index()),
        Output::Perform(Action::Send(send)) => format!("sends {:?} for key {}", send.op, send.key.index()),
        Output::Resolve(waiter, Ok(token)) => format!("{waiter:?} gets {}", named(token)),
        Output::Resolve(waiter, Err(error)) => format!("{waiter:?} fails: {error}"),
        Output::Event(event) => format!("says: {event}"),
    }
}

fn told_answer(answer: &Acquire) -> String {
    match answer {
        Acquire::Ready(token) => named(token),
        Acquire::Wait(waiter) => format!("{waiter:?}"),
        Acquire::Failed(error) => format!("{error}"),
    }
}

fn named(token: &Token) -> String {
    serial(token.expose()).map_or_else(|| "a foreign token".to_owned(), |serial| format!("token {serial}"))
}
