//! Drives the machine: its lock, its waiting callers, and its flights.
//!
//! A flight runs on a short-lived thread with a runtime of its own. A caller's runtime would not do: one that is dropped takes
//! the request with it, and one that is kept but not driven holds it, while callers on other runtimes wait. A dropped caller
//! cannot cancel a flight, and a caller's deadline is never the request's.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::pin::{Pin, pin};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use storm_auth_core::driver::{Board, Cell, Landing, PerProcess, Work};
use storm_auth_core::machine::{Acquire, CredentialsRequest, OpId, Timeout, TokenRequest, WaiterId};
use storm_auth_core::store::{StoreFailure, TokenStore};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{
    AcquireError, ConfigError, Credentials, CredentialsFailure, Event, Failure, FailureKind, Key, KeyId, Machine, Mono,
    Now, Token,
};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::observe::{self, Meter, Observer, Span};
use crate::transport::Transport;

/// Told each event, after the lock was given back.
pub(crate) type OnEvent = dyn Fn(&Event) + Send + Sync;

/// Where flights run.
#[derive(Debug)]
pub(crate) enum Runway {
    OwnThreads,
    Runtime(tokio::runtime::Handle),
}

/// Where a key's credentials come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// Somewhere in the file system: on a thread that may block.
    Blocking(Arc<dyn Fn() -> Result<Credentials, ConfigError> + Send + Sync>),
    Async(Arc<dyn Fn() -> Asking + Send + Sync>),
}

/// What a source of the caller's does.
pub(crate) type Asking = Pin<Box<dyn Future<Output = Result<Credentials, Box<dyn StdError + Send + Sync>>> + Send>>;

pub(crate) struct Driver {
    board: Mutex<Board<Waker>>,
    /// Never locked together with the board.
    sources: Mutex<BTreeMap<KeyId, Source>>,
    clock: Clock,
    transport: Transport,
    runway: Runway,
    store: Option<Arc<dyn TokenStore>>,
    on_event: Option<Arc<OnEvent>>,
    /// The limiter group's name.
    group: Arc<str>,
    meter: Meter,
    /// Closed when the driver goes: flights end then, with their sockets. A child has one of its own, since its parent's is
    /// linked to what lay on the stacks of its parent's flights.
    hang_up: PerProcess<Arc<watch::Sender<()>>>,
    /// The process that made it, in which alone the runtime of the runway runs.
    process: u32,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("clock", &self.clock).field("runway", &self.runway).finish_non_exhaustive()
    }
}

impl Driver {
    pub(crate) fn new(
        machine: Machine,
        clock: Clock,
        transport: Transport,
        runway: Runway,
        store: Option<Arc<dyn TokenStore>>,
        on_event: Option<Arc<OnEvent>>,
        group: String,
    ) -> Arc<Self> {
        let lanes = thread::available_parallelism().map_or(1, usize::from);
        let board = Mutex::new(Meter::measure(Board::new(machine, lanes)));
        let process = process::id();
        let hang_up = PerProcess::new(Arc::new(watch::Sender::new(())), process);
        let group = Arc::<str>::from(group);
        let (sources, meter) = (Mutex::new(BTreeMap::new()), Meter::new(group.clone()));
        Arc::new(Self { board, sources, clock, transport, runway, store, on_event, group, meter, hang_up, process })
    }

    fn hang_up(&self) -> Arc<watch::Sender<()>> {
        self.hang_up.get(process::id(), |_| Arc::new(watch::Sender::new(())))
    }

    fn while_here(&self) -> WhileHere {
        WhileHere(self.hang_up().subscribe())
    }

    pub(crate) fn add_key(self: &Arc<Self>, key: Key) -> (KeyId, Arc<Cell>) {
        self.with_board(|board, now| board.add_key(key, now))
    }

    /// The key's credentials come from there.
    pub(crate) fn renew(self: &Arc<Self>, key: KeyId, source: Source) {
        self.sources().insert(key, source);
        self.command(|machine, now| machine.renew_credentials(key, now));
    }

    fn sources(&self) -> MutexGuard<'_, BTreeMap<KeyId, Source>> {
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

    /// Asks the machine for a token and waits for it; the deadline is the machine's to keep.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        key: KeyId,
        patience: Option<Duration>,
    ) -> Result<Token, AcquireError> {
        match self.with_board(|board, now| board.acquire(key, patience, now)) {
            Acquire::Ready(token) => Ok(token),
            Acquire::Failed(error) => Err(error),
            Acquire::Wait(waiter) => {
                let waiting = Waiting { driver: self, waiter };
                self.watch(|board, waker| board.poll_wait(waiting.waiter, waker)).await
            }
        }
    }

    /// Starts nothing more, and waits until nothing is under way.
    pub(crate) async fn shut_down(self: &Arc<Self>, patience: Duration) -> Result<(), AcquireError> {
        self.command(|machine, now| machine.shut_down(now));
        let idle = self.watch(|board, waker| {
            let idle = board.machine().is_idle();
            if !idle {
                board.look_on(waker, Waker::will_wake);
            }
            idle.then_some(())
        });
        tokio::time::timeout(patience, idle).await.map_err(|_| AcquireError::StillBusy)
    }

    /// Looks at the board until `look` finds something there; sleeps until it is woken or the machine's next deadline, which
    /// it then reports. So every waiting caller is a timer, and none other is needed.
    async fn watch<T>(self: &Arc<Self>, mut look: impl FnMut(&mut Board<Waker>, Waker) -> Option<T>) -> T {
        let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
        poll_fn(|context| {
            loop {
                let (found, timeout, now) = self.with_board(|board, now| {
                    board.elapse(now);
                    (look(board, context.waker().clone()), board.poll_timeout(), now)
                });
                match (found, timeout) {
                    (Some(found), _) => return Poll::Ready(found),
                    (None, None) => return Poll::Pending,
                    (None, Some(Timeout { at, .. })) => sleep.as_mut().reset(Instant::now() + until(at, now)),
                }
                if sleep.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Keeps the machine's deadlines from a thread of its own, for as long as `goes_on` says.
    fn watch_over(
        self: &Arc<Self>,
        name: &str,
        goes_on: impl Fn(&Board<Waker>) -> bool + Send + 'static,
    ) -> Option<Thread> {
        let driver = Arc::downgrade(self);
        let watch = move || {
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            while let Some(driver) = driver.upgrade() {
                let mut board = driver.lock();
                let (now, timeout) = driver.turn(&mut board, |board, now| {
                    board.elapse(now);
                    let goes_on = goes_on(board);
                    if goes_on {
                        board.look_on(waker.clone(), Waker::will_wake);
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
    fn with_board<T>(self: &Arc<Self>, act: impl FnOnce(&mut Board<Waker>, Now) -> T) -> T {
        let (result, work) = {
            let mut board = self.lock();
            let result = self.turn(&mut board, act);
            (result, board.take_work())
        };
        self.perform(work);
        result
    }

    /// One act on the board, at the time that it is. What follows from it is still to be taken.
    fn turn<T>(&self, board: &mut Board<Waker>, act: impl FnOnce(&mut Board<Waker>, Now) -> T) -> T {
        // Read under the lock, so that the machine never sees time go back.
        let now = self.clock.now();
        board.in_process(process::id(), now);
        act(board, now)
    }

    fn lock(&self) -> MutexGuard<'_, Board<Waker>> {
        // The board is consistent between its methods, and a panic in one of them is a bug that poisoning would only spread.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(self: &Arc<Self>, work: Work<Waker>) {
        work.wakes.into_iter().for_each(Waker::wake);
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
        let (transport, here) = (self.transport.clone(), self.while_here());
        let request = async move {
            let gone = || Err(Failure::new(FailureKind::Aborted, "the provider is gone"));
            here.run(transport.send(send)).await.unwrap_or_else(gone)
        };
        match &self.runway {
            Runway::Runtime(runtime) if self.process == process::id() => {
                runtime.spawn(span.around(async move { flight.land(request.await) }));
            }
            _ => {
                let observer = Observer::current();
                let fly = move || {
                    let exchange = || {
                        let aborted = |error: io::Error| Err(Failure::new(FailureKind::Aborted, error.to_string()));
                        flight.land(run_alone(request).unwrap_or_else(aborted));
                    };
                    observer.carry(|| span.enter(exchange));
                };
                // When no thread can be had, the closure is dropped, and the flight with it: it reports that it was aborted.
                let _ = thread::Builder::new().name("storm-auth-flight".into()).spawn(fly);
            }
        }
    }
}

impl Driver {
    /// Looks where a key's credentials come from: where flights run, or the store's operations are performed.
    fn look(self: &Arc<Self>, request: CredentialsRequest) {
        let mut look = Look { driver: Arc::downgrade(self), op: Some(request.op), begun: false };
        let Some(source) = self.sources().get(&request.key).cloned() else { return };
        let runtime = match &self.runway {
            Runway::Runtime(runtime) if self.process == process::id() => Some(runtime),
            _ => None,
        };
        let here = self.while_here();
        let asking = |ask: Arc<dyn Fn() -> Asking + Send + Sync>, mut look: Look| async move {
            look.begun = true;
            if let Some(found) = here.run(async { ask().await }).await {
                look.end(found);
            }
        };
        let observer = Observer::current();
        let go: Box<dyn FnOnce() + Send> = match (source, runtime) {
            (Source::Async(ask), Some(runtime)) => return drop(runtime.spawn(asking(ask, look))),
            (Source::Async(ask), None) => {
                let asking = asking(ask, look);
                // Without a runtime the future is dropped, and the look with it.
                Box::new(move || observer.carry(|| drop(run_alone(asking))))
            }
            (Source::Blocking(read), _) => Box::new(move || {
                observer.carry(|| {
                    look.begun = true;
                    look.end(read());
                });
            }),
        };
        match runtime {
            Some(runtime) => go_on(runtime, go),
            // When no thread can be had, the closure is dropped, and the look with it.
            None => drop(thread::Builder::new().name("storm-auth-source".into()).spawn(go)),
        }
    }

    /// Lets a thread perform the store's operations, one after the other.
    fn go_to_store(self: &Arc<Self>) {
        let Some(store) = self.store.clone() else { return };
        let errand = Errand { driver: Arc::downgrade(self), started: false };
        let observer = Observer::current();
        let go = move || observer.carry(|| errand.run(&*store));
        match &self.runway {
            Runway::Runtime(runtime) if self.process == process::id() => go_on(runtime, go),
            // When no thread can be had, the closure is dropped, and the errand with it.
            _ => drop(thread::Builder::new().name("storm-auth-store".into()).spawn(go)),
        }
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
        // So that a child closes its own, and leaves its parent's alone.
        drop(self.hang_up());
        self.lock().dismiss().into_iter().for_each(Waker::wake);
        // The calls since the last time that anything happened.
        self.meter.tell_served();
    }
}

/// What ends when the driver goes.
struct WhileHere(watch::Receiver<()>);

impl WhileHere {
    /// What the future comes to; `None` when the driver has gone before.
    async fn run<F: Future>(mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut hung_up = pin!(self.0.changed());
        poll_fn(|context| match hung_up.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => future.as_mut().poll(context).map(Some),
        })
        .await
    }
}

/// Runs a future on this thread, with a runtime of its own.
fn run_alone<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = runtime.block_on(future);
    // A name resolution that still runs is not waited for.
    runtime.shutdown_background();
    Ok(output)
}

/// Lets a thread of the runtime do it. When none can be had, tokio panics and keeps it for the first one that can, or drops it with the
/// runtime.
fn go_on(runtime: &tokio::runtime::Handle, go: impl FnOnce() + Send + 'static) {
    let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(runtime.spawn_blocking(go))));
}

/// A request under way. However it ends, it is reported: by its outcome, or, when its thread panicked or its runtime went
/// away, as aborted.
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
    /// Never starts a flight itself, since this may be the end of a runtime or of a thread: a caller that is woken does.
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
    fn end<E: ToString>(mut self, found: Result<Credentials, E>) {
        let found = found.map_err(|error| CredentialsFailure::new(error.to_string()));
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
                true => CredentialsFailure::unanswered(),
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

/// A caller that waits. When it goes away, others stay served.
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

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The span to sleep until `at`: a millisecond more than the clock's reading says, or a timer fires a tick early and spins; and
/// no more than a day, since a system's clocks overflow.
fn until(at: Mono, now: Now) -> Duration {
    (at.since(now.mono) + Duration::from_millis(1)).min(Duration::from_secs(86_400))
}
