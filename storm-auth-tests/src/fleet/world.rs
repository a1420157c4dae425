//! Time, and what happens in it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use storm_auth_core::Unix;
use storm_auth_core::machine::{OpId, StoreRequest};
use storm_auth_core::store::{StoreFailure, StoreReply, TokenStore};

use super::Run;
use super::course::{Course, Figures};
use super::holder::{Holder, Holding, News, Op, START, Wish, millis};
use super::plan::{OutageKind, Plan};
use crate::emulator::{Limiter, Verdict};
use crate::memory_store::MemoryStore;

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A process is called about once a second.
const PAUSE: u64 = 1_000;

/// The shortest and the longest way through the network, one way, in milliseconds.
const WAY: (u64, u64) = (10, 100);

/// The same to the store, which is near.
const STORE_WAY: (u64, u64) = (1, 4);

/// What happens. `life` is the process's life that it belongs to.
#[derive(Debug)]
enum Happening {
    /// A timer, or a call; whatever is due.
    Turn {
        process: usize,
        number: u64,
    },
    Arrive(Request),
    Serve(Request),
    Deliver {
        request: Request,
        news: News,
    },
    Start {
        process: usize,
    },
    Pause {
        process: usize,
        until: u64,
    },
    AtStore {
        process: usize,
        life: u32,
        request: Box<StoreRequest>,
    },
    FromStore {
        process: usize,
        life: u32,
        op: OpId,
        result: Box<Result<StoreReply, StoreFailure>>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Request {
    process: usize,
    life: u32,
    op: Op,
}

#[derive(Debug)]
struct Entry(u64, u64, Happening);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
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
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

#[derive(Debug)]
struct Process {
    life: u32,
    holder: Holder,
    /// It stands still until then.
    paused_until: u64,
    /// Its operations of the store are done one after the other: when the last is.
    store_free_at: u64,
    /// The turn that is set: its time and its number.
    turn: Option<u64>,
    turn_number: u64,
    /// The next call that may change something: from when on it may, and when it is made.
    call: Option<(u64, u64)>,
    called: u64,
    started: u64,
    had_token: bool,
    holding: Option<Holding>,
    /// Up to then its time has been counted.
    counted: u64,
    /// Since when it has been without a token.
    without_since: u64,
}

struct World<'a> {
    plan: &'a Plan,
    rng: fastrand::Rng,
    at: u64,
    measured_from: u64,
    end: u64,
    number: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    processes: Vec<Process>,
    limiter: Limiter,
    store: MemoryStore,
    outages: Vec<(u64, u64)>,
    store_outages: Vec<(u64, u64)>,
    /// When each issued token dies.
    issued: Vec<u64>,
    /// Processes that have had no token yet in their first life.
    unserved: usize,
    /// The time, over all processes, in which a call would have been given a dead token.
    stale: u64,
    figures: Figures,
    course: Course,
}

pub(super) fn run(plan: &Plan, seed: u64) -> Run {
    let mut world = World::new(plan, seed);
    while let Some(Reverse(Entry(at, _, happening))) = world.queue.pop() {
        if at >= world.end {
            break;
        }
        world.at = at;
        world.happen(happening);
    }
    world.at = world.end;
    (0..plan.processes).for_each(|process| world.count(process));
    world.figures.expired_handed_out = world.stale.div_ceil(PAUSE);
    world.figures.seeds = 1;
    world.figures.measured = world.end - world.measured_from;
    Run { figures: world.figures, course: world.course }
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, seed: u64) -> Self {
        let measured_from = millis(plan.warmup);
        let end = measured_from + millis(plan.hours);
        let mut rng = fastrand::Rng::with_seed(seed ^ 0xF1EE_7000_0000_0000);
        let mut world = Self {
            outages: match plan.outage {
                Some(outage) => outages(outage.every, outage.length, &mut rng, end),
                None => Vec::new(),
            },
            store: MemoryStore::new(),
            store_outages: match plan.store.and_then(|store| store.outage) {
                Some((every, length)) => outages(every, length, &mut rng, end),
                None => Vec::new(),
            },
            plan,
            at: 0,
            measured_from,
            end,
            number: 0,
            queue: BinaryHeap::new(),
            processes: Vec::new(),
            limiter: plan.limiter.clone(),
            issued: Vec::new(),
            unserved: plan.processes,
            stale: 0,
            figures: Figures::default(),
            course: Course::new(end),
            rng,
        };
        for process in 0..plan.processes {
            // All of them start at once, as they do after a deployment.
            let first = world.rng.u64(0..PAUSE);
            let holder = Holder::new(plan, world.rng.u64(..), 0);
            world.processes.push(Process {
                life: 0,
                holder,
                paused_until: 0,
                store_free_at: 0,
                turn: None,
                turn_number: 0,
                call: None,
                called: 0,
                started: first,
                had_token: false,
                holding: None,
                counted: first,
                without_since: first,
            });
            world.put(first, Happening::Start { process });
            if let Some((every, length)) = plan.pause.map(|(every, length)| (millis(every), millis(length))) {
                for from in (0..end).step_by(every.max(1) as usize) {
                    let at = from + world.rng.u64(0..every);
                    world.put(at, Happening::Pause { process, until: at + length });
                }
            }
            if let Some(every) = plan.restart_every.map(millis) {
                for from in (measured_from..end).step_by(every.max(1) as usize) {
                    let at = from + world.rng.u64(0..every);
                    world.put(at, Happening::Start { process });
                }
            }
        }
        world
    }

    fn put(&mut self, at: u64, happening: Happening) {
        self.number += 1;
        self.queue.push(Reverse(Entry(at, self.number, happening)));
    }

    fn way(&mut self) -> u64 {
        self.rng.u64(WAY.0..=WAY.1)
    }

    fn happen(&mut self, happening: Happening) {
        let of = match &happening {
            Happening::Turn { process, .. } | Happening::FromStore { process, .. } => Some(*process),
            Happening::Deliver { request, .. } => Some(request.process),
            _ => None,
        };
        if let Some(until) = of.map(|process| self.processes[process].paused_until).filter(|until| *until > self.at) {
            return self.put(until, happening);
        }
        match happening {
            Happening::Turn { process, number } if self.processes[process].turn_number == number => {
                self.take_turn(process);
            }
            Happening::Turn { .. } => {}
            Happening::Arrive(request) => self.arrive(request),
            Happening::Serve(request) => self.serve(request),
            Happening::Deliver { request, news } => {
                let Request { process, life, op } = request;
                if self.processes[process].life == life {
                    self.processes[process].holder.report(op, &news, self.at);
                    self.settle(process);
                }
            }
            Happening::Start { process } => self.start(process),
            Happening::Pause { process, until } => self.processes[process].paused_until = until,
            Happening::AtStore { process, life, request } => self.at_store(process, life, &request),
            Happening::FromStore { process, life, op, result } => {
                if self.processes[process].life == life {
                    self.processes[process].holder.report_store(op, *result, self.at);
                    self.settle(process);
                }
            }
        }
    }

    fn start(&mut self, process: usize) {
        self.count(process);
        let seed = self.rng.u64(..);
        let at = self.at;
        let one = &mut self.processes[process];
        one.life += 1;
        one.holder = Holder::new(self.plan, seed, at);
        (one.paused_until, one.store_free_at) = (0, at);
        (one.started, one.without_since, one.had_token, one.holding) = (at, at, false, None);
        one.call = Some((at, at));
        self.take_turn(process);
    }

    /// Does what is due: the machine is told the time, a caller asks.
    fn take_turn(&mut self, process: usize) {
        let at = self.at;
        let one = &mut self.processes[process];
        one.turn = None;
        if one.holder.timeout().is_some_and(|due| due <= at) {
            one.holder.elapse(at);
        }
        if one.call.is_some_and(|(_, call)| call <= at) {
            one.call = None;
            one.called = at;
            one.holder.call(at);
        }
        self.settle(process);
    }

    /// After whatever happened to a process: its requests go out, its time is counted, and its next turn is set.
    fn settle(&mut self, process: usize) {
        let at = self.at;
        while let Some(wish) = self.processes[process].holder.next_wish() {
            let life = self.processes[process].life;
            match wish {
                Wish::Send(op) => self.send(Request { process, life, op }),
                Wish::Store(request) => {
                    let there = self.rng.u64(STORE_WAY.0..=STORE_WAY.1);
                    let one = &mut self.processes[process];
                    let begins = one.store_free_at.max(at);
                    one.store_free_at = begins + 2 * there;
                    let request = Box::new(request);
                    self.put(begins + there, Happening::AtStore { process, life, request });
                }
            }
        }
        let holding = self.processes[process].holder.holding(at);
        if holding != self.processes[process].holding {
            self.count(process);
            self.take_token(process, holding);
        }
        let one = &mut self.processes[process];
        // Calls come at times of their own: the first one from `look` on comes within a second.
        let look = one.holder.look(at);
        if look != one.call.map(|(look, _)| look) {
            let pause = self.rng.u64(1..=PAUSE);
            one.call = look.map(|look| (look, if look > at { look + pause } else { (one.called + PAUSE).max(at + 1) }));
        }
        let timer = one.holder.timeout().map(|due| due.max(at));
        let turn = [timer, one.call.map(|(_, call)| call)].into_iter().flatten().min();
        if turn != one.turn {
            one.turn = turn;
            one.turn_number += 1;
            let number = one.turn_number;
            if let Some(turn) = turn {
                self.put(turn, Happening::Turn { process, number });
            }
        }
    }

    // What is counted

    /// Counts the time of a process since it was counted last.
    fn count(&mut self, process: usize) {
        let (from, to) = (self.processes[process].counted, self.at.min(self.end));
        let one = &mut self.processes[process];
        if from >= to {
            return;
        }
        one.counted = to;
        let dies_at = one.holding.map_or(0, |holding| self.issued[holding.serial]);
        let until = one.holding.map_or(0, |holding| holding.until);
        // Up to then it had a token that the server takes; and from then on, for a while, one that it does not.
        let good = until.min(dies_at).clamp(from, to);
        let stale = until.clamp(good, to);
        self.course.held(from, good, self.plan.processes);
        if good < to && one.holding.is_some() {
            one.without_since = one.without_since.max(until.min(dies_at));
        }
        let measured = |from: u64, to: u64| to.saturating_sub(from.max(self.measured_from));
        let figures = &mut self.figures;
        if !one.had_token {
            figures.starting += measured(from, to);
            return;
        }
        figures.holding += measured(from, to);
        figures.without += measured(good, to);
        self.stale += measured(good, stale);
        if measured(good, to) > 0 {
            figures.longest_without = figures.longest_without.max(measured(one.without_since, to));
        }
    }

    fn take_token(&mut self, process: usize, holding: Option<Holding>) {
        let at = self.at;
        let one = &mut self.processes[process];
        if let (Some(old), None) = (one.holding, holding) {
            one.without_since = one.without_since.max(old.until.min(self.issued[old.serial]));
        }
        one.holding = holding;
        if holding.is_none() || one.had_token {
            return;
        }
        one.had_token = true;
        let waited = at - one.started;
        if at >= self.measured_from {
            self.figures.starts += 1;
            self.figures.longest_start = self.figures.longest_start.max(waited);
        }
        if one.life == 1 {
            self.unserved -= 1;
            if self.unserved == 0 {
                self.figures.last_served_after = Some(at);
            }
        }
    }

    // The store

    fn at_store(&mut self, process: usize, life: u32, request: &StoreRequest) {
        let down = self.store_outages.iter().any(|(from, to)| (*from..*to).contains(&self.at));
        let result = match down {
            true => Err(StoreFailure::new("nobody listens")),
            false => {
                self.store.set_time(Unix::from_millis(START + self.at));
                self.store.perform(&request.store_op)
            }
        };
        let back = self.processes[process].store_free_at.saturating_sub(self.at).min(STORE_WAY.1);
        let (op, result) = (request.op, Box::new(result));
        self.put(self.at + back, Happening::FromStore { process, life, op, result });
    }

    // The network, the limiter and the server

    fn send(&mut self, request: Request) {
        self.course.sent(self.at);
        self.figures.token_requests += u64::from(self.at >= self.measured_from);
        let way = self.way();
        match self.outage() {
            Some(OutageKind::Refused) => self.answer(request, News::Refused),
            _ => self.put(self.at + way, Happening::Arrive(request)),
        }
    }

    fn arrive(&mut self, request: Request) {
        let verdict = self.limiter.admit(ADDRESS, START + self.at);
        if verdict != Verdict::Reject {
            self.course.let_pass(self.at);
        }
        match verdict {
            Verdict::Pass => self.serve(request),
            Verdict::Hold(span) => self.put(self.at + millis(span), Happening::Serve(request)),
            Verdict::Reject => {
                self.figures.rejects += u64::from(self.at >= self.measured_from);
                let refusal = self.limiter.refusal(ADDRESS, START + self.at);
                self.answer(request, News::Throttled(refusal));
            }
        }
    }

    fn serve(&mut self, request: Request) {
        match self.outage() {
            Some(OutageKind::Silent) => {}
            Some(OutageKind::Status) => self.answer(request, News::Sick),
            // It was under way when the listener went.
            Some(OutageKind::Refused) => self.answer(request, News::Refused),
            None => {
                let life = millis(self.plan.lifetime);
                let serial = self.issued.len();
                self.issued.push(self.at + life);
                self.figures.issued += u64::from(self.at >= self.measured_from);
                self.answer(request, News::Token { serial, life });
            }
        }
    }

    fn answer(&mut self, request: Request, news: News) {
        let way = self.way();
        self.put(self.at + way, Happening::Deliver { request, news });
    }

    /// How the endpoint fails at this moment.
    fn outage(&self) -> Option<OutageKind> {
        let outage = self.plan.outage?;
        let number = self.at / millis(outage.every).max(1);
        let (from, to) = *self.outages.get(number as usize)?;
        (from..to).contains(&self.at).then_some(outage.kind)
    }
}

/// One outage in each span, at the same time in each, from when to when: two that follow at once would be a longer one.
fn outages(every: Duration, length: Duration, rng: &mut fastrand::Rng, end: u64) -> Vec<(u64, u64)> {
    let (every, length) = (millis(every).max(1), millis(length));
    let first = rng.u64(0..=every.saturating_sub(length));
    (0..end.div_ceil(every))
        .map(|number| {
            let from = number * every + first;
            (from, from + length)
        })
        .collect()
}
