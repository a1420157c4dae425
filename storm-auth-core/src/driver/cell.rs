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

/// One key's published token. Readers get it in a few nanoseconds; the driver publishes under the lock of its board.
#[derive(Debug)]
pub struct Cell {
    lanes: usize,
    published: ArcSwapOption<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    /// The same token, each with a reference count of its own. A power of two of them, never none.
    lanes: Box<[Token]>,
    /// From here on nobody reads it. Earlier than the machine's own by what a coarse clock may lag.
    hard: Moment,
    /// From here on one caller asks the machine, while all others are served.
    look_mono: AtomicU64,
    look_unix: AtomicU64,
    claimed: AtomicBool,
}

impl Cell {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: lanes.clamp(1, 64).next_power_of_two(), published: ArcSwapOption::empty() }
    }

    /// The cached token as a ready header; `None` when this caller has to ask the board. `lane` is the calling thread's
    /// number, whatever its range; the clocks may be coarse ones.
    pub fn header(&self, lane: usize, now: Now) -> Option<HeaderValue> {
        self.read(lane, now, Token::header)
    }

    /// The cached token; `None` when this caller has to ask the board.
    pub fn token(&self, lane: usize, now: Now) -> Option<Token> {
        self.read(lane, now, Token::clone)
    }

    fn read<T>(&self, lane: usize, now: Now, clone: impl FnOnce(&Token) -> T) -> Option<T> {
        let published = self.published.load();
        let snapshot = published.as_ref()?;
        if snapshot.hard.reached(now) || (snapshot.look().reached(now) && snapshot.claim()) {
            return None;
        }
        Some(clone(&snapshot.lanes[lane & (snapshot.lanes.len() - 1)]))
    }

    /// Publishes what the machine says now. To be called under the board's lock, and after every `acquire` even when nothing
    /// changed, since it also takes a caller's claim back.
    pub(super) fn publish(&self, peek: Option<Peek>) {
        let Some(Peek { token, hard, look }) = peek else {
            self.published.store(None);
            return;
        };
        let hard = Moment { mono: hard.mono - COARSE_LAG, unix: hard.unix - COARSE_LAG };
        let published = self.published.load();
        match published.as_ref() {
            Some(snapshot) if snapshot.lanes[0].id() == token.id() && snapshot.hard == hard => {
                snapshot.look_mono.store(look.mono.as_millis(), Ordering::Relaxed);
                snapshot.look_unix.store(look.unix.as_millis(), Ordering::Relaxed);
                snapshot.claimed.swap(false, Ordering::AcqRel);
            }
            _ => self.published.store(Some(Arc::new(Snapshot {
                lanes: (1..self.lanes).map(|_| token.another_lane()).chain([token.clone()]).collect(),
                hard,
                look_mono: AtomicU64::new(look.mono.as_millis()),
                look_unix: AtomicU64::new(look.unix.as_millis()),
                claimed: AtomicBool::new(false),
            }))),
        }
    }

    /// Lets the next reader ask the board, although the machine says nothing new.
    pub(super) fn ask_at_once(&self) {
        if let Some(snapshot) = self.published.load().as_ref() {
            snapshot.look_mono.store(0, Ordering::Relaxed);
            snapshot.claimed.swap(false, Ordering::AcqRel);
        }
    }
}

impl Snapshot {
    fn look(&self) -> Moment {
        Moment {
            mono: Mono::from_millis(self.look_mono.load(Ordering::Relaxed)),
            unix: Unix::from_millis(self.look_unix.load(Ordering::Relaxed)),
        }
    }

    /// Whether this caller is the one that asks.
    fn claim(&self) -> bool {
        !self.claimed.load(Ordering::Relaxed) && !self.claimed.swap(true, Ordering::AcqRel)
    }
}
