//! References: what a cached call costs when nothing but the call itself is done. Each holds one token for ever.

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use http::HeaderValue;
use rustix::time::{ClockId, clock_gettime};

use super::{Contender, Error, Setup, bearer};
use crate::endpoint::TOKEN_LENGTH;

fn token() -> Result<HeaderValue, Error> {
    bearer(&format!("{:0>TOKEN_LENGTH$}", 1))
}

/// The same header with a reference count of its own.
fn copy(header: &HeaderValue) -> Result<HeaderValue, Error> {
    let mut copy = HeaderValue::from_bytes(header.as_bytes())?;
    copy.set_sensitive(header.is_sensitive());
    Ok(copy)
}

/// A clock that is read coarsely, in seconds.
fn coarse(clock: ClockId) -> i64 {
    clock_gettime(clock).tv_sec
}

fn end(clock: ClockId, setup: &Setup) -> i64 {
    coarse(clock).saturating_add_unsigned(setup.lifetime.as_secs())
}

fn expired() -> Error {
    "the token has expired".into()
}

/// A swapped pointer, a precise clock, and a clone.
pub struct Swapped(ArcSwap<(HeaderValue, Instant)>);

impl Swapped {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        Ok(Box::new(Self(ArcSwap::from_pointee((token()?, Instant::now() + setup.lifetime)))))
    }
}

impl Contender for Swapped {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        let held = self.0.load();
        if Instant::now() < held.1 { Ok(held.0.clone()) } else { Err(expired()) }
    }
}

/// A copy for each thread, which is made again when the generation has changed, and one coarse clock.
pub struct PerThread {
    generation: AtomicU64,
    current: Mutex<HeaderValue>,
    end: i64,
}

struct Copy {
    generation: u64,
    header: HeaderValue,
}

thread_local! {
    static COPY: RefCell<Option<Copy>> = const { RefCell::new(None) };
}

impl PerThread {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        Ok(Box::new(Self {
            generation: AtomicU64::new(1),
            current: Mutex::new(token()?),
            end: end(ClockId::MonotonicCoarse, setup),
        }))
    }

    #[cold]
    fn renew(&self, generation: u64) -> Result<Copy, Error> {
        Ok(Copy { generation, header: copy(&*self.current.lock().map_err(|_| "a caller panicked")?)? })
    }
}

impl Contender for PerThread {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        if coarse(ClockId::MonotonicCoarse) >= self.end {
            return Err(expired());
        }
        let generation = self.generation.load(Ordering::Acquire);
        COPY.with_borrow_mut(|held| match held {
            Some(held) if held.generation == generation => Ok(held.header.clone()),
            _ => Ok(held.insert(self.renew(generation)?).header.clone()),
        })
    }
}

const LANES: usize = 16;

/// Sixteen copies behind one swapped pointer, which threads take in turn, and both coarse clocks.
pub struct Lanes(ArcSwap<Snapshot>);

struct Snapshot {
    lanes: Vec<HeaderValue>,
    monotonic_end: i64,
    wall_end: i64,
}

impl Lanes {
    pub fn start(setup: &Setup) -> Result<Box<dyn Contender>, Error> {
        let token = token()?;
        let lanes = (0..LANES).map(|_| copy(&token)).collect::<Result<_, _>>()?;
        Ok(Box::new(Self(ArcSwap::from_pointee(Snapshot {
            lanes,
            monotonic_end: end(ClockId::MonotonicCoarse, setup),
            wall_end: end(ClockId::RealtimeCoarse, setup),
        }))))
    }
}

impl Contender for Lanes {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        let snapshot = self.0.load();
        if coarse(ClockId::MonotonicCoarse) >= snapshot.monotonic_end
            || coarse(ClockId::RealtimeCoarse) >= snapshot.wall_end
        {
            return Err(expired());
        }
        Ok(snapshot.lanes[lane() % LANES].clone())
    }
}

/// The calling thread's number.
fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static LANE: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    LANE.with(|lane| *lane)
}

/// A header that all threads clone.
pub struct Shared(HeaderValue);

impl Shared {
    pub fn start(_: &Setup) -> Result<Box<dyn Contender>, Error> {
        Ok(Box::new(Self(token()?)))
    }
}

impl Contender for Shared {
    #[inline(always)]
    fn header(&self) -> Result<HeaderValue, Error> {
        Ok(self.0.clone())
    }
}
