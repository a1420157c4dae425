use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

/// The emulator's time, in milliseconds since the Unix epoch. It only moves forward; clones are the same clock.
///
/// The limiter, a token's `nbf` and `exp`, the API's expiry check, the `Date` header and delays all read it.
///
/// ```
/// use std::time::Duration;
/// use storm_auth_tests::emulator::Clock;
///
/// let clock = Clock::manual(1_700_000_000_000);
/// clock.advance(Duration::from_secs(20));
/// assert_eq!(clock.now_ms(), 1_700_000_020_000);
/// ```
#[derive(Clone, Debug)]
pub struct Clock {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    base: Base,
    /// What `advance` added. A watch, so that whoever waits for a time sees it come.
    offset_ms: watch::Sender<u64>,
}

#[derive(Debug)]
enum Base {
    /// The wall clock when the clock was made, carried on by the monotonic one: a step of the wall clock is not felt.
    System {
        unix_ms: u64,
        since: Instant,
    },
    Manual {
        unix_ms: u64,
    },
}

impl Clock {
    /// Runs with real time, and can be moved ahead of it.
    pub fn system() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::new(Base::System { unix_ms: millis(unix), since: Instant::now() })
    }

    /// Stands still at `unix_ms` until it is moved. A request that is held or delayed is released by the
    /// [`advance`](Self::advance) that passes its time.
    pub fn manual(unix_ms: u64) -> Self {
        Self::new(Base::Manual { unix_ms })
    }

    /// Now, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        let base = match self.inner.base {
            Base::System { unix_ms, since } => unix_ms.saturating_add(millis(since.elapsed())),
            Base::Manual { unix_ms } => unix_ms,
        };
        base.saturating_add(*self.inner.offset_ms.borrow())
    }

    /// Moves the clock forward by `by`, cut to whole milliseconds.
    pub fn advance(&self, by: Duration) {
        self.inner.offset_ms.send_modify(|offset| *offset = offset.saturating_add(millis(by)));
    }

    fn new(base: Base) -> Self {
        Self { inner: Arc::new(Inner { base, offset_ms: watch::Sender::new(0) }) }
    }

    /// Moves `due_ms` on by `by`, and returns once the clock shows it.
    pub(super) async fn wait(&self, due_ms: &mut u64, by: Duration) {
        *due_ms = due_ms.saturating_add(millis(by));
        let due_ms = *due_ms;
        let mut moved = self.inner.offset_ms.subscribe();
        loop {
            moved.borrow_and_update();
            let left = due_ms.saturating_sub(self.now_ms());
            if left == 0 {
                return;
            }
            // The sender lives as long as `self`, so `changed` does not fail.
            match self.inner.base {
                Base::Manual { .. } => drop(moved.changed().await),
                Base::System { .. } => tokio::select! {
                    _ = moved.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(left)) => {}
                },
            }
        }
    }
}

impl Default for Clock {
    /// [`Clock::system`].
    fn default() -> Self {
        Self::system()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_still_until_it_is_moved() {
        let clock = Clock::manual(5_000);
        let same = clock.clone();
        assert_eq!(clock.now_ms(), 5_000);
        same.advance(Duration::from_micros(1_999));
        assert_eq!(clock.now_ms(), 5_001);
        clock.advance(Duration::MAX);
        assert_eq!(clock.now_ms(), u64::MAX);
    }

    #[test]
    fn a_system_clock_can_be_moved_ahead() {
        let clock = Clock::system();
        let before = clock.now_ms();
        clock.advance(Duration::from_secs(3_600));
        assert!(clock.now_ms() >= before + 3_600_000);
    }

    #[test]
    fn whoever_waits_is_released_by_the_move_that_passes_the_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for clock in [Clock::manual(0), Clock::system()] {
            runtime.block_on(async {
                let mut due_ms = clock.now_ms();
                let mut waiting = Box::pin(clock.wait(&mut due_ms, Duration::from_secs(380)));
                tokio::select! {
                    biased;
                    () = &mut waiting => panic!("too early"),
                    () = std::future::ready(()) => {}
                }
                clock.advance(Duration::from_secs(380));
                waiting.await;
            });
        }
    }
}
