//! What every driver of several threads needs beside the machine (feature `driver`): the lock-free [`Cell`] that a cached
//! token is read from, and the [`Board`] that waiting callers look at. Still pure: a driver owns the lock, the clock, the
//! threads and the sockets.
//!
//! A driver keeps one `Mutex<Board<W>>` for a limiter group, `W` being what wakes a caller of its kind. It
//!
//! 1. reads the [`Cell`]; on `None` it locks the board and calls [`Board::acquire`];
//! 2. takes [`Board::take_work`] before it unlocks, every time, and then wakes, performs the sends and the looks where credentials
//!    come from, and reports the events;
//! 3. reports what came of a send with [`Board::report`], and of a look with [`Board::report_credentials`], and does 2 again;
//! 4. where there is a store, lets one thread at a time perform [`Board::next_store`] and report with [`Board::report_store`], as
//!    long as there is one, when [`Work::store`] says so; and while a send that is [`leased`](TokenRequest::leased) is under way, lets
//!    one sleep as in 5;
//! 5. lets every waiting caller sleep until [`Board::poll_timeout`] at the longest, and call [`Board::elapse`] then. So no
//!    timer thread is needed. A thread that has performed anything looks again before it sleeps ([`Work::is_empty`]), since a
//!    callback may have taken what wakes it;
//! 6. where processes fork, says in which one it is with [`Board::in_process`] before anything else;
//! 7. performs [`Board::leave`] when its last user goes.

mod cell;
mod clock;
mod meter;
mod observe;
mod process;
mod settings;
mod sync;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use http::Response;

use crate::credentials::{Credentials, CredentialsFailure};
use crate::error::{AcquireError, Failure};
use crate::machine::{
    Acquire, Action, CredentialsRequest, Event, Key, KeyId, Machine, OpId, Output, StoreRequest, Timeout,
    TimeoutReason, TokenRequest, WaiterId,
};
use crate::store::{StoreCommand, StoreFailure, StoreOp, StoreReply};
use crate::time::{Mono, Now};
use crate::token::Token;
use crate::wire::response::ResponseBody;

pub use cell::{Cell, CoarseClocks};
pub use clock::{Clock, SystemClocks};
pub use meter::{Landing, Measurement, Metric, MetricKind, MetricUnit, Reading, Served};
pub use process::PerProcess;

use meter::Meter;

/// The machine of a limiter group, and the callers that wait for it.
#[derive(Debug)]
pub struct Board<W> {
    machine: Machine,
    lanes: usize,
    cells: BTreeMap<KeyId, Arc<Cell>>,
    waits: BTreeMap<WaiterId, Wait<W>>,
    /// Those who want to look again after anything happened.
    onlookers: Vec<W>,
    /// How many errands to the store were under way at the last look.
    errands: usize,
    /// What sleeps until the machine's deadline sleeps until this.
    due: Option<Mono>,
    /// Looks where credentials come from.
    looks: VecDeque<CredentialsRequest>,
    sends: VecDeque<TokenRequest>,
    /// Operations of the store, in their order.
    stores: VecDeque<StoreRequest>,
    /// Whether a thread is performing them, and which one.
    at_store: bool,
    performed: Option<StoreRequest>,
    wakes: Vec<W>,
    events: Vec<Event>,
    /// Where the driver wants to be told measurements.
    meter: Option<Meter>,
    /// The process that it was last used in.
    process: Option<u32>,
}

#[derive(Debug)]
enum Wait<W> {
    Pending(Option<W>),
    Done(Result<Token, AcquireError>),
}

/// What a driver has to do once it has unlocked the board.
#[derive(Debug)]
#[must_use = "wake, report and send, or callers wait for ever"]
#[non_exhaustive]
pub struct Work<W> {
    /// Wake these.
    pub wakes: Vec<W>,
    /// Report these.
    pub events: Vec<Event>,
    /// Perform these, each on its own, and report with [`Board::report`].
    pub sends: VecDeque<TokenRequest>,
    /// Perform these, each on its own, and report with [`Board::report_credentials`]: after the sends, none of which waits for one.
    pub looks: VecDeque<CredentialsRequest>,
    /// Hand these counts and spans on, where the board was [`measured`](Board::measured); none otherwise.
    pub measurements: Vec<Measurement>,
    /// Set these gauges, and then those of [`Board::next_gauges`] until there are none. One thread does it at a time, the others get
    /// none meanwhile: so no gauge ends on a value that is not its last one, and nobody waits for a slow recorder but its own thread.
    pub gauges: Vec<Measurement>,
    /// Whether a thread has to be started that performs [`Board::next_store`] until there is none.
    pub store: bool,
}

impl<W> Work<W> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { wakes, events, sends, looks, measurements, gauges, store } = self;
        let (nobody, nothing) = (wakes.is_empty(), sends.is_empty() && looks.is_empty() && !store);
        nobody && nothing && events.is_empty() && measurements.is_empty() && gauges.is_empty()
    }
}

/// Whether others wait for it: a token that was fetched, or a lease to be given back.
fn is_owed(op: &StoreOp) -> bool {
    matches!(op.command, StoreCommand::Publish { .. } | StoreCommand::Release { .. })
}

impl<W> Board<W> {
    /// A board over a machine. `lanes` is how many copies of a header the threads share: one per core, and no more than eight.
    pub fn new(machine: Machine, lanes: usize) -> Self {
        Self {
            machine,
            lanes,
            cells: BTreeMap::new(),
            waits: BTreeMap::new(),
            onlookers: Vec::new(),
            errands: 0,
            due: None,
            looks: VecDeque::new(),
            sends: VecDeque::new(),
            stores: VecDeque::new(),
            at_store: false,
            performed: None,
            wakes: Vec::new(),
            events: Vec::new(),
            meter: None,
            process: None,
        }
    }

    /// The same board, which gives out [measurements](Work::measurements) too.
    pub fn measured(mut self) -> Self {
        self.meter = Some(Meter::default());
        self
    }

    /// Says in which process this is. In another one than before, a forked child, the machine
    /// [starts anew](Machine::start_anew), and whoever waits or looks on here is left to the parent.
    ///
    /// The board has to be whole for that: no thread of the parent held its lock when it forked.
    pub fn in_process(&mut self, process: u32, now: Now) {
        if self.process.replace(process).is_some_and(|before| before != process) {
            // Not dropped: what wakes a caller may reach into the parent's threads and descriptors.
            core::mem::forget(core::mem::take(&mut self.waits));
            core::mem::forget(core::mem::take(&mut self.onlookers));
            core::mem::forget(core::mem::take(&mut self.wakes));
            self.looks.clear();
            self.sends.clear();
            self.stores.clear();
            (self.at_store, self.performed) = (false, None);
            self.events.clear();
            self.meter.iter_mut().for_each(Meter::start_anew);
            self.machine.start_anew(process, now);
            self.pump(now);
        }
    }

    /// Adds a key, or finds it; the cell is the one that its cached token is read from.
    pub fn add_key(&mut self, key: Key, now: Now) -> (KeyId, Arc<Cell>) {
        let id = self.machine.add_key(key, now);
        self.pump(now);
        (id, self.cells.entry(id).or_insert_with(|| Arc::new(Cell::new(self.lanes))).clone())
    }

    /// Asks for a token, as [`Machine::acquire`] does. A waiter has to be polled with [`poll_wait`](Self::poll_wait) until it
    /// is done, or cancelled.
    pub fn acquire(&mut self, key: KeyId, patience: Option<Duration>, now: Now) -> Acquire {
        let acquire = self.machine.acquire(key, patience, now);
        if let Acquire::Wait(waiter) = acquire {
            self.waits.insert(waiter, Wait::Pending(None));
        }
        if let Some(meter) = &mut self.meter {
            match &acquire {
                Acquire::Ready(_) => meter.call("ready"),
                Acquire::Failed(_) => meter.call("failed"),
                Acquire::Wait(waiter) => meter.waits(*waiter, now),
            }
        }
        self.pump(now);
        // Also when nothing changed: whoever claimed the cell has to give it back, or the next refresh is lost.
        self.publish(key, now);
        acquire
    }

    /// The result of a waiter, once; until it is there, `wake` is kept in place of the last one.
    pub fn poll_wait(&mut self, waiter: WaiterId, wake: W) -> Option<Result<Token, AcquireError>> {
        match self.waits.get_mut(&waiter) {
            Some(Wait::Pending(slot)) => {
                *slot = Some(wake);
                None
            }
            Some(Wait::Done(_)) => match self.waits.remove(&waiter) {
                Some(Wait::Done(result)) => Some(result),
                _ => None,
            },
            None => Some(Err(AcquireError::DeadlineExceeded)),
        }
    }

    /// The caller has gone.
    pub fn cancel(&mut self, waiter: WaiterId, now: Now) {
        self.waits.remove(&waiter);
        if let Some(meter) = &mut self.meter {
            meter.waited(waiter, "given_up", now);
        }
        self.machine.cancel(waiter, now);
        self.pump(now);
    }

    /// Any other command of the machine, and what follows from it.
    pub fn command<T>(&mut self, now: Now, command: impl FnOnce(&mut Machine) -> T) -> T {
        let result = command(&mut self.machine);
        self.pump(now);
        result
    }

    /// What came of a send, and what it is to the machine.
    pub fn report(&mut self, op: OpId, outcome: Result<Response<ResponseBody>, Failure>, now: Now) -> Landing {
        let (awaited, before) = (self.machine.awaits(op), self.machine.counters());
        let failure = outcome.as_ref().err().map(|failure| failure.kind);
        match outcome {
            Ok(response) => self.machine.handle_response(op, &response, now),
            Err(failure) => self.machine.handle_failure(op, failure, now),
        }
        let landing = match failure {
            _ if !awaited => Landing::Late,
            Some(kind) => kind.into(),
            None => Landing::between(&before, &self.machine.counters()),
        };
        if let Some(meter) = &mut self.meter {
            meter.landed(op, landing, now);
        }
        self.pump(now);
        landing
    }

    /// The next operation for the store. The thread that was started for them calls it until it is `None`, and reports each.
    pub fn next_store(&mut self) -> Option<StoreRequest> {
        let next = self.stores.pop_front();
        (self.at_store, self.performed) = (next.is_some(), next.clone());
        next
    }

    /// The thread that was to perform the store's operations has ended without being done, or could not be started.
    pub fn leave_store(&mut self) {
        (self.at_store, self.performed) = (false, None);
    }

    /// The last handle goes, and with it every key: what is owed to the store, in its order, a token that was fetched and the
    /// leases of requests that nobody will wait for. The driver performs it before it goes, since its threads may end with the
    /// process. Each may be performed twice: so what a thread has begun is among it. Empty where the store has just failed.
    pub fn leave(&mut self, now: Now) -> Vec<StoreOp> {
        for key in self.cells.keys().copied().collect::<Vec<_>>() {
            self.machine.remove_key(key, now);
        }
        self.pump(now);
        let left = core::mem::take(&mut self.stores);
        match self.machine.may_share(now) {
            true => {
                self.performed.take().into_iter().chain(left).map(|request| request.store_op).filter(is_owed).collect()
            }
            false => Vec::new(),
        }
    }

    /// What came of an operation of the store.
    pub fn report_store(&mut self, op: OpId, result: Result<StoreReply, StoreFailure>, now: Now) {
        if let (Some(meter), Some(StoreRequest { op: performed, store_op, .. })) = (&mut self.meter, &self.performed)
            && *performed == op
            && matches!(store_op.command, StoreCommand::Lease { .. })
            && self.machine.flies(op)
        {
            meter.leased(&result);
        }
        self.machine.handle_store(op, result, now);
        self.pump(now);
    }

    /// What was found where a key's credentials come from.
    pub fn report_credentials(&mut self, op: OpId, found: Result<Credentials, CredentialsFailure>, now: Now) {
        self.machine.handle_credentials(op, found, now);
        self.pump(now);
    }

    /// Whether a report for this operation is still awaited.
    pub fn awaits(&self, op: OpId) -> bool {
        self.machine.awaits(op)
    }

    /// Time has passed.
    pub fn elapse(&mut self, now: Now) {
        self.machine.handle_timeout(now);
        self.pump(now);
    }

    /// When [`elapse`](Self::elapse) is due.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        self.machine.poll_timeout()
    }

    /// The machine's getters.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Wakes `wake` once when anything has happened: for whoever waits for idleness, or keeps a key warm. It takes the place of
    /// one that would wake the `same`.
    pub fn look_on(&mut self, wake: W, same: impl Fn(&W, &W) -> bool) {
        self.onlookers.retain(|other| !same(other, &wake));
        self.onlookers.push(wake);
    }

    /// Takes the onlookers out, so that a driver that goes can wake them for the last time.
    pub fn dismiss(&mut self) -> Vec<W> {
        core::mem::take(&mut self.onlookers)
    }

    /// Takes everything there is to do. The driver does it after unlocking.
    pub fn take_work(&mut self) -> Work<W> {
        let (looks, sends) = (core::mem::take(&mut self.looks), core::mem::take(&mut self.sends));
        let store = !self.at_store && !self.stores.is_empty();
        self.at_store |= store;
        Work { looks, sends, store, ..self.take_wakes() }
    }

    /// The same without the looks and sends, for a place that may not start threads, like a `Drop`. They are taken by a caller: one that
    /// waits and is woken for it, or the next that reads its key's cell.
    pub fn take_wakes(&mut self) -> Work<W> {
        let stores = self.stores.iter().filter(|_| !self.at_store).map(|request| request.key);
        let looks = self.looks.iter().map(|look| look.key);
        let left: Vec<_> = self.sends.iter().map(|send| send.key).chain(looks).chain(stores).collect();
        if !left.is_empty() {
            self.wake_all();
        }
        for key in left {
            // Where nobody waits, the next caller comes here and takes them.
            if let Some(cell) = self.cells.get(&key) {
                cell.ask_at_once();
            }
        }
        Work {
            wakes: core::mem::take(&mut self.wakes),
            events: core::mem::take(&mut self.events),
            looks: VecDeque::new(),
            measurements: self.meter.as_mut().map(Meter::take).unwrap_or_default(),
            gauges: self.meter.as_mut().map(Meter::take_gauges).unwrap_or_default(),
            sends: VecDeque::new(),
            store: false,
        }
    }

    /// The gauges that have changed while [`Work::gauges`] were set. Only the thread that set them asks, until there are none.
    pub fn next_gauges(&mut self) -> Vec<Measurement> {
        self.meter.as_mut().map(Meter::next_gauges).unwrap_or_default()
    }

    fn pump(&mut self, now: Now) {
        let mut happened = false;
        while let Some(output) = self.machine.poll_output() {
            happened = true;
            match output {
                Output::Perform(Action::Send(send)) => self.sends.push_back(send),
                Output::Perform(Action::Store(request)) => self.stores.push_back(request),
                Output::Perform(Action::Credentials(look)) => self.looks.push_back(look),
                Output::Event(event) => {
                    if let Some(meter) = &mut self.meter {
                        meter.event(&event, now);
                    }
                    self.events.push(event);
                }
                Output::Resolve(waiter, result) => {
                    if let Some(meter) = &mut self.meter {
                        meter.waited(waiter, if result.is_ok() { "waited" } else { "failed" }, now);
                    }
                    // A waiter that has gone is no longer on the board.
                    if let Some(wait) = self.waits.get_mut(&waiter)
                        && let Wait::Pending(Some(wake)) = core::mem::replace(wait, Wait::Done(result))
                    {
                        self.wakes.push(wake);
                    }
                }
            }
        }
        while let Some(key) = self.machine.poll_change() {
            happened = true;
            self.publish(key, now);
            if !self.machine.knows(key) {
                self.cells.remove(&key);
            }
        }
        if let Some(meter) = &mut self.meter {
            let machine = &self.machine;
            meter.read(machine.counters(), |op| machine.awaits(op), machine.budget_left(now), now);
        }
        // A request that nobody performed before its patience ended, or before its key went, is not sent any more.
        self.sends.retain(|send| self.machine.awaits(send.op));
        self.looks.retain(|look| self.machine.awaits(look.op));
        // What has to be given back or told is done, however late.
        self.stores.retain(|request| is_owed(&request.store_op) || self.machine.awaits(request.op));
        // One that ends is told by no output.
        let errands = self.machine.errands();
        happened |= core::mem::replace(&mut self.errands, errands) != errands;
        if happened {
            self.wakes.append(&mut self.onlookers);
        }
        let due = self.machine.poll_timeout();
        let before = core::mem::replace(&mut self.due, due.map(|due| due.at));
        // Whoever sleeps would sleep through a deadline that has come forward, as when an answer closed the gate. A caller's own is
        // that caller's to keep.
        if due.is_some_and(|due| due.reason != TimeoutReason::Deadline && before.is_none_or(|before| due.at < before)) {
            self.wake_all();
        }
    }

    /// Lets everyone who waits look again.
    fn wake_all(&mut self) {
        self.wakes.extend(self.waits.values_mut().filter_map(|wait| match wait {
            Wait::Pending(wake) => wake.take(),
            Wait::Done(_) => None,
        }));
    }

    fn publish(&self, key: KeyId, now: Now) {
        if let Some(cell) = self.cells.get(&key) {
            cell.publish(self.machine.peek(key, now));
        }
    }
}
