//! Drives the machine: its lock, its waiting callers, and its flights.
//!
//! A flight runs on a short-lived thread of its own, so that a caller's deadline is never the request's, and a caller that
//! gives up cannot cancel it. Nothing here needs or minds an async runtime around the caller.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::time::{Duration, Instant};

use storm_auth_core::driver::{Board, Cell, Landing, PerProcess, Work};
use storm_auth_core::machine::{Acquire, CredentialsRequest, OpId, Timeout, TokenRequest, WaiterId};
use storm_auth_core::store::{StoreFailure, TokenStore};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, Credentials, CredentialsFailure, Event, Failure, FailureKind, Key, KeyId, Machine, Mono, Now, Token,
};

use crate::clock::Clock;
use crate::observe::{self, Meter, Observer, Span};
use crate::sync::thread::{self, Thread};
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering, PoisonError, Weak};
use crate::transport::Transport;

/// Told each event, after the lock was given back.
pub(crate) type OnEvent = dyn Fn(&Event) + Send + Sync;

/// Where a key's credentials come from.
pub(crate) type Source = dyn Fn() -> Result<Credentials, Box<dyn StdError + Send + Sync>> + Send + Sync;

pub(crate) struct Driver {
    board: Mutex<Board<Sleeper>>,
    /// Never locked together with the board.
    sources: Mutex<BTreeMap<KeyId, Arc<Source>>>,
    clock: Clock,
    transport: PerProcess<Arc<Transport>>,
    store: Option<Arc<dyn TokenStore>>,
    on_event: Option<Arc<OnEvent>>,
    /// The limiter group's name.
    group: Arc<str>,
    meter: Meter,
}

/// Who sleeps until something happens on the board.
#[derive(Debug)]
pub(crate) enum Sleeper {
    /// The callers that wait for one key. They are woken all at once, which costs a small part of waking one after the other.
    Calls(Arc<Condvar>),
    /// A thread of our own, which does not keep the driver alive while it sleeps.
    Watch(Thread),
}

impl Sleeper {
    fn wake(&self) {
        match self {
            Self::Calls(bell) => bell.notify_all(),
            Self::Watch(thread) => thread.unpark(),
        }
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Calls(one), Self::Calls(other)) => Arc::ptr_eq(one, other),
            (Self::Watch(one), Self::Watch(other)) => one.id() == other.id(),
            _ => false,
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("clock", &self.clock).finish_non_exhaustive()
    }
}

impl Driver {
    pub(crate) fn new(
        machine: Machine,
        clock: Clock,
        transport: Transport,
        store: Option<Arc<dyn TokenStore>>,
        on_event: Option<Arc<OnEvent>>,
        group: String,
    ) -> Arc<Self> {
        let lanes = std::thread::available_parallelism().map_or(1, usize::from);
        let board = Mutex::new(Meter::measure(Board::new(machine, lanes)));
        let transport = PerProcess::new(Arc::new(transport), process::id());
        let group = Arc::<str>::from(group);
        let (sources, meter) = (Mutex::new(BTreeMap::new()), Meter::new(group.clone()));
        Arc::new(Self { board, sources, clock, transport, store, on_event, group, meter })
    }

    pub(crate) fn add_key(self: &Arc<Self>, key: Key) -> (KeyId, Arc<Cell>) {
        self.with_board(|board, now| board.add_key(key, now))
    }

    /// The key's credentials come from there.
    pub(crate) fn renew(self: &Arc<Self>, key: KeyId, source: Arc<Source>) {
        self.sources().insert(key, source);
        self.command(|machine, now| machine.renew_credentials(key, now));
    }

    fn sources(&self) -> MutexGuard<'_, BTreeMap<KeyId, Arc<Source>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// A command of the machine, and what follows from it.
    pub(crate) fn command<T>(self: &Arc<Self>, command: impl FnOnce(&mut Machine, Now) -> T) -> T {
        self.with_board(|board, now| board.command(now, |machine| command(machine, now)))
    }

    /// Asks the machine for a token and waits for it, at the bell of the key's callers; the deadline is the machine's to keep.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        key: KeyId,
        bell: &Arc<Condvar>,
        patience: Option<Duration>,
    ) -> Result<Token, AcquireError> {
        match self.with_board(|board, now| board.acquire(key, patience, now)) {
            Acquire::Ready(token) => Ok(token),
            Acquire::Failed(error) => Err(error),
            Acquire::Wait(waiter) => {
                let waiting = Waiting { driver: self, waiter };
                let result = self.watch(bell, None, |board, sleeper| board.poll_wait(waiter, sleeper));
                if result.is_some() {
                    mem::forget(waiting);
                }
                result.unwrap_or(Err(AcquireError::DeadlineExceeded))
            }
        }
    }

    /// Starts nothing more, and waits until nothing is under way.
    pub(crate) fn shut_down(self: &Arc<Self>, patience: Duration) -> Result<(), AcquireError> {
        self.command(|machine, now| machine.shut_down(now));
        let deadline = Instant::now().checked_add(patience);
        let idle = self.watch(&Arc::new(Condvar::new()), deadline, |board, sleeper| {
            let idle = board.machine().is_idle();
            if !idle {
                board.look_on(sleeper, Sleeper::same);
            }
            idle.then_some(())
        });
        idle.ok_or(AcquireError::StillBusy)
    }

    /// Looks at the board until `look` finds something there; sleeps until its bell rings or the machine's next deadline, which
    /// it then reports. So every waiting caller is a timer, and none other is needed. `None` once `deadline` has passed.
    fn watch<T>(
        self: &Arc<Self>,
        bell: &Arc<Condvar>,
        deadline: Option<Instant>,
        mut look: impl FnMut(&mut Board<Sleeper>, Sleeper) -> Option<T>,
    ) -> Option<T> {
        let mut board = self.lock();
        loop {
            // What is there needs no clock: a thousand may be woken at once, and each holds up the next.
            if let Some(found) = look(&mut board, Sleeper::Calls(bell.clone())) {
                return Some(found);
            }
            let (now, timeout) = self.turn(&mut board, |board, now| {
                board.elapse(now);
                (now, board.poll_timeout())
            });
            let work = board.take_work();
            if !work.is_empty() {
                drop(board);
                self.perform(work);
                board = self.lock();
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            board = match timeout.map(|Timeout { at, .. }| until(at, now)).into_iter().chain(left).min() {
                Some(span) => bell.wait_timeout(board, span).unwrap_or_else(PoisonError::into_inner).0,
                None => bell.wait(board).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Keeps the machine's deadlines from a thread of its own, for as long as `goes_on` says.
    fn watch_over(
        self: &Arc<Self>,
        name: &str,
        goes_on: impl Fn(&Board<Sleeper>) -> bool + Send + 'static,
    ) -> Option<Thread> {
        let driver = Arc::downgrade(self);
        let watch = move || {
            while let Some(driver) = driver.upgrade() {
                let mut board = driver.lock();
                let (now, timeout) = driver.turn(&mut board, |board, now| {
                    board.elapse(now);
                    let goes_on = goes_on(board);
                    if goes_on {
                        board.look_on(Sleeper::Watch(thread::current()), Sleeper::same);
                    }
                    (now, goes_on.then(|| board.poll_timeout()))
                });
                let work = board.take_work();
                drop(board);
                if !work.is_empty() {
                    // A subscriber, a recorder or a callback may sleep here too, and so take what wakes this thread.
                    driver.perform(work);
                    continue;
                }
                drop(driver);
                match timeout {
                    None => return,
                    Some(Some(Timeout { at, .. })) => thread::park_timeout(until(at, now)),
                    Some(None) => thread::park(),
                }
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(watch).ok()?;
        Some(thread.thread().clone())
    }

    /// Everything that touches the board: the lock is given back before anything else is done.
    fn with_board<T>(self: &Arc<Self>, act: impl FnOnce(&mut Board<Sleeper>, Now) -> T) -> T {
        let (result, work) = {
            let mut board = self.lock();
            let result = self.turn(&mut board, act);
            (result, board.take_work())
        };
        self.perform(work);
        result
    }

    /// One act on the board, at the time that it is. What follows from it is still to be taken.
    fn turn<T>(&self, board: &mut Board<Sleeper>, act: impl FnOnce(&mut Board<Sleeper>, Now) -> T) -> T {
        // Read under the lock, so that the machine never sees time go back.
        let now = self.clock.now();
        board.in_process(process::id(), now);
        act(board, now)
    }

    fn lock(&self) -> MutexGuard<'_, Board<Sleeper>> {
        // The board is consistent between its methods, and a panic in one of them is a bug that poisoning would only spread.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(self: &Arc<Self>, mut work: Work<Sleeper>) {
        work.wakes.dedup_by(|one, other| one.same(other));
        work.wakes.iter().for_each(Sleeper::wake);
        for send in work.sends {
            if send.leased {
                let op = send.op;
                // Without a thread the lease is renewed by whoever waits, or lapses.
                self.watch_over("storm-auth-lease", move |board| board.awaits(op));
            }
            self.launch(send);
        }
        work.looks.into_iter().for_each(|look| self.look(look));
        if work.store {
            self.go_to_store();
        }
        self.meter.tell(&work.measurements);
        let mut gauges = work.gauges;
        while !gauges.is_empty() {
            self.meter.tell(&gauges);
            gauges = self.lock().next_gauges();
        }
        for event in &work.events {
            // A panic in a subscriber or a callback is its own: the panic hook has told it, and nothing here depends on it.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| {
                observe::observe(event, &self.group);
                if let Some(on_event) = &self.on_event {
                    on_event(event);
                }
            }));
        }
    }

    fn launch(self: &Arc<Self>, send: TokenRequest) {
        let span = Span::of(&send, &self.group);
        let flight = Flight { driver: Arc::downgrade(self), op: Some(send.op), span: span.clone() };
        // A child has one of its own, since to end its requests it must not touch its parent's.
        let transport = self.transport.get(process::id(), |parents| Arc::new(parents.another()));
        let observer = Observer::current();
        let fly = move || {
            observer.carry(|| {
                span.enter(|| {
                    let outcome = transport.send(send);
                    flight.land(outcome);
                });
            });
        };
        // When no thread can be had, the closure is dropped, and the flight with it: it reports that it was aborted.
        let _ = thread::Builder::new().name("storm-auth-flight".into()).spawn(fly);
    }
}

impl Driver {
    /// Lets a thread look where a key's credentials come from.
    fn look(self: &Arc<Self>, request: CredentialsRequest) {
        let look = Look { driver: Arc::downgrade(self), op: Some(request.op), begun: false };
        let Some(source) = self.sources().get(&request.key).cloned() else { return };
        let observer = Observer::current();
        let go = move || observer.carry(|| look.at(&*source));
        // When no thread can be had, the closure is dropped, and the look with it.
        let _ = thread::Builder::new().name("storm-auth-source".into()).spawn(go);
    }

    /// Lets a thread perform the store's operations, one after the other.
    fn go_to_store(self: &Arc<Self>) {
        let Some(store) = self.store.clone() else { return };
        let errand = Errand { driver: Arc::downgrade(self), started: false };
        let observer = Observer::current();
        let go = move || observer.carry(|| errand.run(&*store));
        // When no thread can be had, the closure is dropped, and the errand with it.
        let _ = thread::Builder::new().name("storm-auth-store".into()).spawn(go);
    }
}

/// What providers and guards have of the driver, beside its threads and flights.
#[derive(Debug)]
pub(crate) struct Handle(pub(crate) Arc<Driver>);

impl Handle {
    /// Keeps a key warm from a thread of its own, until the guard goes.
    pub(crate) fn keep_warm(self: &Arc<Self>, key: KeyId) -> KeepWarm {
        self.0.command(|machine, now| machine.keep_warm(key, now));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // Without a thread nothing keeps it warm, but the first call in its refresh time still refreshes it.
        let thread = self.0.watch_over("storm-auth-warm", move |_| !stopped.load(Ordering::Acquire));
        KeepWarm { handle: self.clone(), key, stop, thread, process: process::id() }
    }
}

impl Drop for Handle {
    /// The last one goes, as a process may do that ends: what is owed to the store is performed here and now.
    fn drop(&mut self) {
        let Some(store) = &self.0.store else { return };
        for op in self.0.with_board(|board, now| board.leave(now)) {
            let performed = panic::catch_unwind(AssertUnwindSafe(|| store.perform(&op)));
            if !matches!(performed, Ok(Ok(_))) {
                return;
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // In a child that sent nothing there is nothing to end.
        if let Some(transport) = self.transport.own(process::id()) {
            transport.cancel();
        }
        self.lock().dismiss().iter().for_each(Sleeper::wake);
        // The calls since the last time that anything happened.
        self.meter.tell_served();
    }
}

/// A request under way. However it ends, it is reported: by its outcome, or, when its thread panicked, as aborted.
struct Flight {
    driver: Weak<Driver>,
    op: Option<OpId>,
    span: Span,
}

impl Flight {
    fn land(mut self, outcome: Result<http::Response<ResponseBody>, Failure>) {
        let status = outcome.as_ref().ok().map(http::Response::status);
        let landing = match (self.op.take(), self.driver.upgrade()) {
            (Some(op), Some(driver)) => driver.with_board(|board, now| board.report(op, outcome, now)),
            _ => Landing::Late, // the last handle has gone meanwhile
        };
        self.span.land(landing, status);
    }
}

impl Drop for Flight {
    /// Never starts a flight itself, since this may be the end of a thread: a caller that is woken does.
    fn drop(&mut self) {
        if let (Some(op), Some(driver)) = (self.op.take(), self.driver.upgrade()) {
            let (landing, work) = {
                let mut board = driver.lock();
                let now = driver.clock.now();
                (board.report(op, Err(Failure::new(FailureKind::Aborted, "")), now), board.take_wakes())
            };
            driver.perform(work);
            self.span.land(landing, None);
        }
    }
}

/// Somebody looks where credentials come from. However it ends, it is reported.
struct Look {
    driver: Weak<Driver>,
    op: Option<OpId>,
    begun: bool,
}

impl Look {
    fn at(mut self, source: &Source) {
        self.begun = true;
        let found = source().map_err(|error| CredentialsFailure::new(error.to_string()));
        if let (Some(op), Some(driver)) = (self.op.take(), self.driver.upgrade()) {
            driver.with_board(|board, now| board.report_credentials(op, found, now));
        }
    }
}

impl Drop for Look {
    /// Starts no thread either.
    fn drop(&mut self) {
        if let (Some(op), Some(driver)) = (self.op.take(), self.driver.upgrade()) {
            let why = match self.begun {
                true => CredentialsFailure::panicked(),
                false => CredentialsFailure::not_looked(),
            };
            let work = {
                let mut board = driver.lock();
                let now = driver.clock.now();
                board.report_credentials(op, Err(why), now);
                board.take_wakes()
            };
            driver.perform(work);
        }
    }
}

/// The way to the store. If it ends too early, the board knows that nobody is there any more.
struct Errand {
    driver: Weak<Driver>,
    started: bool,
}

impl Errand {
    fn run(mut self, store: &dyn TokenStore) {
        self.started = true;
        while let Some(driver) = self.driver.upgrade() {
            let Some(request) = driver.with_board(|board, _| board.next_store()) else {
                // From here on another one may be on its way.
                self.driver = Weak::new();
                return;
            };
            drop(driver);
            let result = store.perform(&request.store_op);
            if let Some(driver) = self.driver.upgrade() {
                driver.with_board(|board, now| board.report_store(request.op, result, now));
            }
        }
    }
}

impl Drop for Errand {
    /// Starts no thread either: where something is left to do, a caller that is woken sees to it.
    fn drop(&mut self) {
        if let Some(driver) = self.driver.upgrade() {
            let work = {
                let mut board = driver.lock();
                let now = driver.clock.now();
                // Without a thread there is no store, or those who wait would try again and again to have one.
                while !self.started
                    && let Some(request) = board.next_store()
                {
                    board.report_store(request.op, Err(StoreFailure::new("no thread could be had for it")), now);
                }
                board.leave_store();
                board.take_wakes()
            };
            driver.perform(work);
        }
    }
}

/// A caller that waits. When it goes away without its result, as in a panic, others stay served.
struct Waiting<'a> {
    driver: &'a Arc<Driver>,
    waiter: WaiterId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.driver.with_board(|board, now| board.cancel(self.waiter, now));
    }
}

/// Refreshes a token in time without being called, for as long as this guard lives. It costs one sleeping thread, which a
/// forked child has not: there the guard does nothing, and another one is needed.
#[derive(Debug)]
#[must_use = "the token is kept warm only while this guard lives"]
pub struct KeepWarm {
    handle: Arc<Handle>,
    key: KeyId,
    stop: Arc<AtomicBool>,
    thread: Option<Thread>,
    process: u32,
}

impl Drop for KeepWarm {
    fn drop(&mut self) {
        if self.process != process::id() {
            return; // the parent's: nothing is kept warm for it here
        }
        self.stop.store(true, Ordering::Release);
        self.handle.0.command(|machine, now| machine.keep_cold(self.key, now));
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

/// The span to sleep until `at`: a millisecond more than the clock's reading says, or a timer fires a tick early and spins; and
/// no more than a day, since a system's clocks overflow.
fn until(at: Mono, now: Now) -> Duration {
    (at.since(now.mono) + Duration::from_millis(1)).min(Duration::from_secs(86_400))
}
