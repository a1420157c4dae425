//! The states that a key goes through, on long random walks of the machine, against the table in its docs and against the diagrams.

use std::collections::{BTreeMap, BTreeSet};

use storm_auth_core::machine::{Acquire, Activity, WaiterId};
use storm_auth_core::store::{Lease, Record, StoreCommand, StoreFailure, StoreReply};
use storm_auth_core::{Credentials, FailureKind, KeyId, Policy};

use crate::harness::{Lab, failure, granted, json, millis, oauth_error, retry_after, secs, status};
use crate::sharing::published;

type State = &'static str;
type Change = (String, String);

const CLIENTS: [&str; 3] = ["shop", "erp", "crm"];

/// A walk: a machine, what happens to it at random, and the state that each key was last seen in.
struct Walk {
    lab: Lab,
    shares: bool,
    keys: Vec<KeyId>,
    waiters: Vec<WaiterId>,
    states: BTreeMap<KeyId, State>,
    rng: fastrand::Rng,
    number: u64,
    /// Each change, and what had happened when it was first seen.
    seen: BTreeMap<Change, String>,
}

impl Walk {
    fn new(seed: u64, shares: bool) -> Self {
        let mut lab = Lab::seeded(Policy::default(), seed);
        if shares {
            lab.machine.share();
        }
        let keys = CLIENTS.map(|client| lab.key(client)).to_vec();
        let states = keys.iter().map(|key| (*key, "Idle")).collect();
        let rng = fastrand::Rng::with_seed(seed);
        Self { lab, shares, keys, waiters: Vec::new(), states, rng, number: 0, seen: BTreeMap::new() }
    }

    /// The state of a key. That it asks the store is two of them, told apart by what was asked for last.
    fn state(&self, key: KeyId) -> State {
        match self.lab.status(key).activity {
            Activity::Idle => "Idle",
            Activity::Queued => "Queued",
            Activity::Requesting => "Requesting",
            Activity::BackingOff => "BackingOff",
            Activity::Following => "Following",
            Activity::AskingStore => {
                let asked = self.lab.stores.iter().rev().filter(|request| request.key == key);
                let mut commands = asked.map(|request| &request.store_op.command);
                commands
                    .find_map(|command| match command {
                        StoreCommand::Read => Some("Reading"),
                        StoreCommand::Lease { .. } => Some("Leasing"),
                        _ => None,
                    })
                    .expect("the store was asked")
            }
            other => panic!("the table and this test do not know {other:?}"),
        }
    }

    /// Notes what has changed since the last look.
    fn look(&mut self, after: &str) {
        for key in self.keys.clone() {
            let state = self.state(key);
            let before = self.states.insert(key, state).expect("the key is known");
            if before != state {
                let at = self.lab.elapsed();
                self.seen
                    .entry((before.to_owned(), state.to_owned()))
                    .or_insert_with(|| format!("{after}, at {at} ms"));
            }
        }
        self.lab.take_results();
    }

    /// One of these, of which some come more often than others.
    fn choose<T: Clone>(&mut self, of: &[(u32, T)]) -> T {
        let mut left = self.rng.u32(0..of.iter().map(|(weight, _)| weight).sum());
        for (weight, choice) in of {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return choice.clone(),
            }
        }
        unreachable!("the weights were summed")
    }

    fn step(&mut self) {
        let key = self.keys[self.rng.usize(..self.keys.len())];
        let step = self.choose(&[
            (12, "a call"),
            (3, "a call goes"),
            (14, "an answer of the endpoint"),
            (if self.shares { 30 } else { 0 }, "an answer of the store"),
            (5, "the API rejects the token"),
            (1, "other credentials"),
            (1, "kept warm"),
            (1, "no longer kept warm"),
            (14, "time passes"),
            (2, "time passes, and nobody tells the machine"),
            (1, "the wall clock is set"),
        ]);
        match step {
            "a call" => {
                let patience = self.choose(&[(4, 30_000), (1, 0), (2, 500), (2, 200_000)]);
                if let Acquire::Wait(waiter) = self.lab.acquire_within(key, millis(patience)) {
                    self.waiters.push(waiter);
                }
            }
            "a call goes" => {
                if !self.waiters.is_empty() {
                    let waiter = self.waiters.swap_remove(self.rng.usize(..self.waiters.len()));
                    self.lab.cancel(waiter);
                }
            }
            "an answer of the endpoint" => self.answer(),
            "an answer of the store" => self.answer_of_the_store(),
            "the API rejects the token" => {
                if let Some(peek) = self.lab.machine.peek(key, self.lab.now()) {
                    self.lab.machine.invalidate(peek.token.id(), self.lab.now());
                    self.lab.drain();
                }
            }
            "other credentials" => {
                self.number += 1;
                let client = self.lab.status(key).client_id;
                let credentials = Credentials::new(client, format!("secret-{}", self.number)).unwrap();
                self.lab.machine.set_credentials(key, credentials, self.lab.now()).unwrap();
                self.lab.drain();
            }
            "kept warm" => {
                self.lab.machine.keep_warm(key, self.lab.now());
                self.lab.drain();
            }
            "no longer kept warm" => {
                self.lab.machine.keep_cold(key, self.lab.now());
                self.lab.drain();
            }
            "time passes" => {
                let span = self.choose(&[(3, 20), (3, 300), (3, 3_000), (2, 30_000), (1, 400_000)]);
                self.pass(span);
            }
            "time passes, and nobody tells the machine" => {
                let span = self.choose(&[(3, 3_000), (1, 90_000)]);
                self.lab.advance(millis(span));
            }
            _ => {
                let span = self.choose(&[(2, 2), (2, 20), (1, 100)]);
                self.lab.wall_forward(secs(span));
                self.look(step);
                if self.rng.bool() {
                    self.lab.wall_back(secs(span));
                }
            }
        }
        self.look(step);
    }

    /// From one timeout to the next, as in a driver.
    fn pass(&mut self, span: u64) {
        let end = self.lab.elapsed() + self.rng.u64(0..=span);
        while let Some(timeout) = self.lab.machine.poll_timeout()
            && timeout.at <= self.lab.mono(end)
        {
            self.lab.advance(timeout.at.since(self.lab.now().mono));
            self.look("time passes");
            self.lab.tick();
            self.look("a timeout");
        }
        self.lab.advance_to(end);
    }

    fn answer(&mut self) {
        if self.lab.sends.is_empty() {
            return;
        }
        let op = self.lab.sends.remove(self.rng.usize(..self.lab.sends.len())).unwrap().op;
        self.number += 1;
        let lifetime = self.choose(&[(1, 0), (2, 20), (6, 600)]);
        let token = granted(&format!("t{}", self.number), lifetime);
        let answers = [(8, 0), (3, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6), (1, 7)];
        let response = match self.choose(&answers) {
            0 => token,
            1 => status(429),
            2 => retry_after(status(429), "5"),
            3 => retry_after(token, "30"),
            4 => oauth_error(400, "invalid_client"),
            5 => json(502, "no"),
            kind => {
                let kind = if kind == 6 { FailureKind::Connect } else { FailureKind::Aborted };
                self.lab.machine.handle_failure(op, failure(kind), self.lab.now());
                return self.lab.drain();
            }
        };
        self.lab.answer_op(op, response);
    }

    fn answer_of_the_store(&mut self) {
        if self.lab.stores.is_empty() {
            return;
        }
        let request = self.lab.stores.remove(self.rng.usize(..self.lab.stores.len())).unwrap();
        let asked_for_lease = matches!(request.store_op.command, StoreCommand::Lease { .. });
        let free = if asked_for_lease { Lease::Mine } else { Lease::Free };
        let lease =
            self.choose(&[(8, free), (3, Lease::Taken), (1, Lease::Lapsed), (1, Lease::Resting(millis(4_000)))]);
        let record = self.rng.u32(..5) == 0;
        let record = record.then(|| self.of_another(request.key)).flatten();
        let closed = self.rng.u32(..20) == 0;
        let gate = closed.then(|| self.lab.now().unix + secs(5));
        let result = match self.rng.u32(..12) {
            0 => Err(StoreFailure::new("it burns")),
            _ => Ok(StoreReply { record, gate, lease, failures: 0 }),
        };
        self.lab.machine.handle_store(request.op, result, self.lab.now());
        self.lab.drain();
    }

    /// The record of a token that another process has just requested; of the first client alone, and of its first secret.
    fn of_another(&mut self, key: KeyId) -> Option<Record> {
        self.number += 1;
        let (mut other, others) = Lab::sharing(self.number);
        other.advance_to(self.lab.elapsed());
        let lifetime = self.choose(&[(1, 1), (3, 600)]);
        (key == self.keys[0]).then(|| published(&mut other, others, &format!("theirs-{}", self.number), lifetime))
    }

    /// How it ends: the machine is closed, or goes on in a forked child.
    fn end(&mut self) {
        match self.rng.bool() {
            true => self.lab.machine.shut_down(self.lab.now()),
            false => self.lab.machine.start_anew(17, self.lab.now()),
        }
        self.lab.drain();
        self.look("closed, or in a forked child");
    }
}

/// Enough of them for each change to be seen in several.
const WALKS: u64 = 200;

/// What random walks have seen: with a store, and without one.
fn walked() -> BTreeMap<Change, String> {
    let mut seen = BTreeMap::new();
    for seed in 0..WALKS {
        let mut walk = Walk::new(seed, seed % 4 != 0);
        (0..400).for_each(|_| walk.step());
        walk.end();
        for (change, after) in walk.seen {
            seen.entry(change).or_insert_with(|| format!("walk {seed}: {after}"));
        }
    }
    seen
}

/// The table in the docs of the machine.
fn table() -> BTreeSet<Change> {
    let docs = include_str!("../../src/machine/mod.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
    let cells = docs.map(|row| row.split(" | ").collect::<Vec<_>>()).filter(|cells| cells[0] != "from");
    cells.map(|cells| (cells[0].to_owned(), cells[1].to_owned())).collect()
}

/// What is drawn under `How it decides`, without the indentation.
fn drawings(docs: &str) -> Vec<Vec<String>> {
    let (_, docs) = docs.split_once("# How it decides").expect("it has the section");
    let (docs, _) = docs.split_once("\n# ").or_else(|| docs.split_once("\n## ")).expect("another section follows");
    let drawn = docs.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("text\n"));
    drawn
        .map(|drawing| {
            let lines: Vec<_> = drawing.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
            let indentation = |line: &&str| line.len() - line.trim_start_matches(' ').len();
            let least = lines.iter().map(indentation).min().unwrap_or(0);
            lines.iter().map(|line| line[least..].to_owned()).collect()
        })
        .collect()
}

#[test]
fn every_change_of_a_state_stands_in_the_table_and_every_row_of_it_happens() {
    let (table, walked) = (table(), walked());
    let unlisted: Vec<_> = walked.iter().filter(|(change, _)| !table.contains(*change)).collect();
    let unseen: Vec<_> = table.iter().filter(|change| !walked.contains_key(*change)).collect();
    assert!(
        unlisted.is_empty() && unseen.is_empty(),
        "the table in machine/mod.rs has not {unlisted:#?}\nand has {unseen:#?}, which were never seen"
    );
}

#[test]
fn the_diagrams_have_the_states_of_the_table() {
    let docs = include_str!("../../src/lib.rs").lines().filter_map(|line| line.strip_prefix("//!"));
    let docs: Vec<_> = docs.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let drawn = drawings(&docs.join("\n"));
    assert_eq!(drawn, drawings(include_str!("../../../README.md")), "the drawings of lib.rs and README.md");

    let table = table();
    let states: BTreeSet<_> = table.iter().flat_map(|(from, to)| [from.as_str(), to.as_str()]).collect();
    let words = drawn.iter().flatten().flat_map(|line| line.split(|letter: char| !letter.is_alphanumeric()));
    let named = words.filter(|word| word.starts_with(char::is_uppercase) && word.contains(char::is_lowercase));
    assert_eq!(named.collect::<BTreeSet<_>>(), states, "the states that are drawn, and those of the table");

    // Arrows within a line, from one state to the next.
    let mut arrows = 0;
    for line in drawn[1].iter() {
        let parts: Vec<_> = line.split(" ──▶ ").collect();
        for ends in parts.windows(2) {
            let word = |part: &str| part.split([' ', ',']).next().unwrap_or_default().to_owned();
            let change = (ends[0].split(' ').next_back().unwrap_or_default().to_owned(), word(ends[1]));
            if states.contains(change.0.as_str()) {
                arrows += 1;
                assert!(table.contains(&change), "drawn, and not in the table: {change:?}");
            }
        }
    }
    assert_eq!(arrows, 6);
}
