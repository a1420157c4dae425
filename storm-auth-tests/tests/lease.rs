//! R72 to R74, R25: the lease between two and three processes, in every order in which their steps can happen.
//!
//! A search through all states: real machines and a store in memory, of which one step is taken at a time. A step is an operation that
//! reaches the store, an answer that comes back, a token that is granted, a process that crashes and starts anew, time that passes
//! to the next deadline, or a pause of eleven seconds, by which every lease has lapsed. `STORM_LEASE_MORE=1` allows one more
//! crash, pause and deadline in each story.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]
#![allow(clippy::print_stdout, reason = "how far the search went is worth a line")]

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use http::Response;
use storm_auth_core::machine::{Acquire, Action, OpId, Output, StoreRequest, WaiterId};
use storm_auth_core::store::{Order, RecordName, StoreCommand, StoreFailure, StoreReply, TokenStore};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{Credentials, HttpHosts, Key, KeyId, Machine, Now, Policy, Scope, TokenUrl, scope};
use storm_auth_tests::memory_store::MemoryStore;

const START: u64 = 1_700_000_000_000;
const PAUSE: u64 = 11_000;

#[derive(Clone, Debug)]
struct Process {
    machine: Machine,
    key: KeyId,
    stores: VecDeque<StoreRequest>,
    /// The store has done it, and the answer is on its way.
    done: Option<(OpId, Result<StoreReply, StoreFailure>)>,
    /// A request is under way.
    sent: Option<OpId>,
    waiter: Option<WaiterId>,
    served: bool,
}

#[derive(Debug)]
struct World {
    millis: u64,
    store: MemoryStore,
    processes: Vec<Process>,
    /// What may still happen.
    crashes: u32,
    pauses: u32,
    deadlines: u32,
    /// What has happened.
    requests: u32,
    allowed: u32,
    newest: Option<Order>,
    lives: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Perform(usize),
    Hear(usize),
    Grant(usize),
    Crash(usize),
    Deadline,
    Pause,
}

impl Clone for World {
    fn clone(&self) -> Self {
        Self { store: self.store.copy(), processes: self.processes.clone(), ..*self }
    }
}

fn key() -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default()).unwrap();
    Key::new(url, Credentials::new("shop", "S3cret").unwrap(), Scope::new(scope::LAB).unwrap())
}

fn name() -> RecordName {
    storm_auth_core::store::StoreOp::for_key(&key(), "", StoreCommand::Read).record
}

impl World {
    fn new(processes: usize, [crashes, pauses, deadlines]: [u32; 3]) -> Self {
        let mut world = Self {
            millis: 0,
            store: MemoryStore::new(),
            processes: Vec::new(),
            crashes,
            pauses,
            deadlines,
            requests: 0,
            allowed: 1,
            newest: None,
            lives: 0,
        };
        for _ in 0..processes {
            let process = world.process();
            world.processes.push(process);
        }
        (0..processes).for_each(|process| world.take(process));
        world
    }

    fn now(&self) -> Now {
        Now::from_millis(5_000_000 + self.millis, START + self.millis)
    }

    /// A process that has just started, and whose caller wants a token.
    fn process(&mut self) -> Process {
        let now = self.now();
        self.lives += 1;
        let mut machine = Machine::new(Policy::default(), self.lives);
        machine.share();
        let key = machine.add_key(key(), now);
        let Acquire::Wait(waiter) = machine.acquire(key, Some(Duration::from_secs(3_600)), now) else { panic!() };
        let (stores, done, sent) = (VecDeque::new(), None, None);
        Process { machine, key, stores, done, sent, waiter: Some(waiter), served: false }
    }

    fn take(&mut self, process: usize) {
        let now = self.now();
        let taken = &mut self.processes[process];
        while let Some(output) = taken.machine.poll_output() {
            match output {
                Output::Perform(Action::Store(request)) => taken.stores.push_back(request),
                Output::Perform(Action::Send(send)) => {
                    assert!(taken.sent.replace(send.op).is_none(), "R25: two requests of one process");
                    self.requests += 1;
                }
                Output::Resolve(waiter, result) => {
                    assert_eq!(taken.waiter.take(), Some(waiter), "R25: resolved once");
                    assert!(result.is_ok(), "R75: {result:?}");
                    taken.served = true;
                }
                Output::Perform(Action::Credentials(_)) | Output::Event(_) => {}
            }
        }
        // Who goes on is told in the next steps; who is served stays so.
        if taken.served {
            assert!(taken.machine.peek(taken.key, now).is_some(), "R26: the token is held");
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut busy = false;
        for (number, process) in self.processes.iter().enumerate() {
            if process.done.is_some() {
                steps.push(Step::Hear(number));
            } else if !process.stores.is_empty() {
                steps.push(Step::Perform(number));
            }
            busy |= process.done.is_some() || !process.stores.is_empty();
            if process.sent.is_some() {
                steps.push(Step::Grant(number));
            }
            if self.crashes > 0 {
                steps.push(Step::Crash(number));
            }
        }
        // A store answers faster than a deadline comes, but for a pause, and a token before its request is given up.
        let near = self.next_deadline().is_some_and(|due| due < self.millis + 5_000);
        if !busy && near && self.deadlines > 0 && !self.all_served() {
            steps.push(Step::Deadline);
        }
        if self.pauses > 0 && !self.all_served() {
            steps.push(Step::Pause);
        }
        steps
    }

    fn next_deadline(&self) -> Option<u64> {
        let due = self.processes.iter().filter_map(|process| process.machine.poll_timeout());
        due.map(|due| (due.at.as_millis() - 5_000_000).max(self.millis)).min()
    }

    fn all_served(&self) -> bool {
        self.processes.iter().all(|process| process.served)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Perform(number) => {
                let request = self.processes[number].stores.pop_front().unwrap();
                self.store.set_time(self.now().unix);
                let result = self.store.perform(&request.store_op);
                self.processes[number].done = Some((request.op, result));
                let newest = self.store.record(name()).map(|record| record.order);
                assert!(newest >= self.newest, "R74: {newest:?} after {:?}", self.newest);
                self.newest = newest;
            }
            Step::Hear(number) => {
                let (now, process) = (self.now(), &mut self.processes[number]);
                let (op, result) = process.done.take().unwrap();
                process.machine.handle_store(op, result, now);
                self.take(number);
            }
            Step::Grant(number) => {
                let (now, process) = (self.now(), &mut self.processes[number]);
                let op = process.sent.take().unwrap();
                let body = format!(r#"{{"access_token":"t{number}-{}","expires_in":600}}"#, self.requests);
                let body = ResponseBody::try_from(body.as_bytes()).unwrap();
                process.machine.handle_response(op, &Response::new(body), now);
                self.take(number);
            }
            Step::Crash(number) => {
                self.crashes -= 1;
                self.allowed += 1;
                self.processes[number] = self.process();
                self.take(number);
            }
            Step::Deadline => {
                self.deadlines -= 1;
                self.pass_to(self.next_deadline().unwrap());
            }
            Step::Pause => {
                self.pauses -= 1;
                // Nobody's lease outlasts it, and no operation's patience: each process may go its own way.
                self.allowed += self.processes.len() as u32;
                self.pass_to(self.millis + PAUSE);
            }
        }
        assert!(self.requests <= self.allowed, "R72: {} requests, and {} are allowed", self.requests, self.allowed);
    }

    fn pass_to(&mut self, millis: u64) {
        self.millis = millis;
        let now = self.now();
        for number in 0..self.processes.len() {
            self.processes[number].machine.handle_timeout(now);
            self.take(number);
        }
    }

    fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        format!("{self:?}").hash(&mut hasher);
        hasher.finish()
    }
}

/// Goes through all states; returns how many there are.
fn search(processes: usize, left: [u32; 3]) -> usize {
    let start = World::new(processes, left.map(|left| left + more()));
    let (mut seen, mut ends, mut todo) = (HashSet::from([start.mark()]), 0, vec![(start, Vec::new())]);
    while let Some((world, path)) = todo.pop() {
        let steps = world.steps();
        ends += usize::from(steps.is_empty());
        for step in steps {
            let (mut next, mut path): (World, Vec<Step>) = (world.clone(), path.clone());
            path.push(step);
            let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next.step(step)));
            assert!(taken.is_ok(), "after {path:?}");
            if seen.insert(next.mark()) {
                todo.push((next, path));
            }
        }
        // Where nothing is left but deadlines, somebody has a token.
        if world.steps().is_empty() && world.deadlines > 0 {
            assert!(world.all_served(), "R25: {path:?} ends, and somebody waits");
        }
    }
    println!("{processes} processes: {} states, {ends} ends", seen.len());
    seen.len()
}

fn more() -> u32 {
    std::env::var("STORM_LEASE_MORE").ok().and_then(|more| more.parse().ok()).unwrap_or(0)
}

#[test]
fn r25_r72_r73_r74_two_processes_keep_the_lease_in_every_order() {
    assert!(search(2, [1, 1, 1]) > 1_000);
}

#[test]
fn r25_r72_r73_r74_three_processes_keep_the_lease_in_every_order() {
    assert!(search(3, [0, 0, 1]) > 1_000);
}
