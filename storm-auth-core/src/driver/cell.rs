//! The cell that a cached token is read from: no lock and no allocation, and threads share no cache line that is written.

use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;

use super::sync::{ArcSwapOption, AtomicBool, AtomicU64, Ordering};
use crate::machine::Peek;
use crate::time::{Moment, Mono, Now, Unix};
use crate::token::Token;

/// How far a coarse clock may lag behind the fine one: a tick of the slowest kernel timer in use, 100 Hz, and some more.
const COARSE_LAG: Duration = Duration::from_millis(16);

/// The most lanes that a cell has. More threads share them.
const LANES: usize = 8;

/// What a [`Tick`](CoarseClocks::tick) that was never read is.
const NEVER: u64 = u64::MAX;

/// How a reader of a [`Cell`] reads its clocks. A [`Now`] stands for both where they were read already.
pub trait CoarseClocks {
    /// Something that differs between two calls when what [`coarse`](Self::coarse) says differs, and is cheaper to read: the
    /// cell asks for both clocks once for each tick. Zero where there is no such thing; they are read with each call then.
    fn tick(&self) -> u64;

    /// What both clocks said at the last tick.
    fn coarse(&self) -> Now;
}

impl CoarseClocks for Now {
    #[inline]
    fn tick(&self) -> u64 {
        0
    }

    #[inline]
    fn coarse(&self) -> Now {
        *self
    }
}

/// One key's published token. Readers get it in a few nanoseconds; the driver publishes under the lock of its board.
#[derive(Debug)]
pub struct Cell {
    lanes: usize,
    published: ArcSwapOption<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    /// The same token, as many of them with a reference count of their own as the cell has lanes. In place, and of a constant
    /// number, so that a reader finds its own in one step.
    lanes: [Token; LANES],
    /// From here on nobody reads it. Earlier than the machine's own by what a coarse clock may lag.
    hard: Moment,
    /// From here on one caller asks the machine, while all others are served. Never later than `hard`.
    look_mono: AtomicU64,
    look_unix: AtomicU64,
    claimed: AtomicBool,
    /// The last tick in which a reader found both clocks before `look`. Within it nobody else has to read them; what is
    /// published in it may wait for the next one.
    tick: AtomicU64,
}

impl Cell {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: lanes.clamp(1, LANES), published: ArcSwapOption::empty() }
    }

    /// The cached token as a ready header; `None` when this caller has to ask the board. `lane` is the calling thread's
    /// number, whatever its range.
    #[inline]
    pub fn header(&self, lane: usize, clocks: impl CoarseClocks) -> Option<HeaderValue> {
        self.serve(lane, clocks, |token| Some(token.header()), || None)
    }

    /// The cached token; `None` when this caller has to ask the board.
    #[inline]
    pub fn token(&self, lane: usize, clocks: impl CoarseClocks) -> Option<Token> {
        self.serve(lane, clocks, |token| Some(token.clone()), || None)
    }

    /// What `hit` makes of the cached token, or `miss` where this caller has to ask the board. A header is made where it is
    /// wanted this way: moving it twice takes as long as cloning it.
    #[inline(always)]
    pub fn serve<T>(
        &self,
        lane: usize,
        clocks: impl CoarseClocks,
        hit: impl FnOnce(&Token) -> T,
        miss: impl FnOnce() -> T,
    ) -> T {
        let published = self.published.load();
        if let Some(snapshot) = published.as_ref() {
            let tick = clocks.tick();
            if snapshot.tick.load(Ordering::Relaxed) == tick || snapshot.serves(tick, clocks.coarse()) {
                return hit(&snapshot.lanes[lane % LANES]);
            }
        }
        drop(published);
        miss()
    }

    /// Publishes what the machine says now. To be called under the board's lock, and after every `acquire` even when nothing
    /// changed, since it also takes a caller's claim back.
    pub(super) fn publish(&self, peek: Option<Peek>) {
        let Some(Peek { token, hard, look }) = peek else {
            self.published.store(None);
            return;
        };
        let hard = Moment { mono: hard.mono - COARSE_LAG, unix: hard.unix - COARSE_LAG };
        let look = look.min(hard);
        let published = self.published.load();
        match published.as_ref() {
            Some(snapshot) if snapshot.lanes[0].id() == token.id() && snapshot.hard == hard => {
                snapshot.look_mono.store(look.mono.as_millis(), Ordering::Relaxed);
                snapshot.look_unix.store(look.unix.as_millis(), Ordering::Relaxed);
                snapshot.give_back();
            }
            _ => self.published.store(Some(Arc::new(Snapshot {
                lanes: self.lanes_of(&token),
                hard,
                look_mono: AtomicU64::new(look.mono.as_millis()),
                look_unix: AtomicU64::new(look.unix.as_millis()),
                claimed: AtomicBool::new(false),
                tick: AtomicU64::new(NEVER),
            }))),
        }
    }

    fn lanes_of(&self, token: &Token) -> [Token; LANES] {
        let own: Vec<_> = (1..self.lanes).map(|_| token.another_lane()).chain([token.clone()]).collect();
        core::array::from_fn(|lane| own[lane % self.lanes].clone())
    }

    /// Lets the next reader ask the board, although the machine says nothing new.
    pub(super) fn ask_at_once(&self) {
        if let Some(snapshot) = self.published.load().as_ref() {
            snapshot.look_mono.store(0, Ordering::Relaxed);
            snapshot.give_back();
        }
    }
}

impl Snapshot {
    /// Whether this caller is served at `now`. If not, it asks the board.
    fn serves(&self, tick: u64, now: Now) -> bool {
        let look = Moment {
            mono: Mono::from_millis(self.look_mono.load(Ordering::Relaxed)),
            unix: Unix::from_millis(self.look_unix.load(Ordering::Relaxed)),
        };
        if look.reached(now) {
            return !self.hard.reached(now) && !self.claim();
        }
        if tick != 0 {
            self.tick.store(tick, Ordering::Relaxed);
        }
        true
    }

    /// Whether this caller is the one that asks.
    fn claim(&self) -> bool {
        !self.claimed.load(Ordering::Relaxed) && !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// Takes the claim back, once `look` is another one.
    fn give_back(&self) {
        self.tick.store(NEVER, Ordering::Relaxed);
        self.claimed.swap(false, Ordering::AcqRel);
    }
}
