//! The cell of `storm-auth-core`, with loom's atomics and a modelled swap.

use std::sync::Arc;

use loom::{sync::Mutex, thread};

use self::{
    machine::Peek,
    time::{Moment, Now},
    token::Token,
};
use crate::explore;

#[path = "../../../storm-auth-core/src/driver/cell.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is public where it lives")]
mod real;

use real::{Cell, CoarseClocks};

mod sync {
    use std::{fmt, ops::Deref, sync::Arc};

    use loom::sync::Mutex;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// The swap as its users may rely on it: a load sees what the last store left, and keeps it alive.
    pub(super) struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

    impl<T> ArcSwapOption<T> {
        pub(super) fn empty() -> Self {
            Self(Mutex::new(None))
        }

        pub(super) fn load(&self) -> Loaded<T> {
            Loaded(self.0.lock().unwrap().clone())
        }

        pub(super) fn store(&self, value: Option<Arc<T>>) {
            // What was there is dropped after unlocking, as a reader would.
            let before = std::mem::replace(&mut *self.0.lock().unwrap(), value);
            drop(before);
        }
    }

    impl<T> fmt::Debug for ArcSwapOption<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("ArcSwapOption")
        }
    }

    pub(super) struct Loaded<T>(Option<Arc<T>>);

    impl<T> Deref for Loaded<T> {
        type Target = Option<Arc<T>>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }
}

pub(crate) mod machine {
    use super::{time::Moment, token::Token};

    pub(crate) struct Peek {
        pub(crate) token: Token,
        pub(crate) hard: Moment,
        pub(crate) look: Moment,
    }
}

pub(crate) mod time {
    pub(crate) use storm_auth_core::time::*;
}

pub(crate) mod token {
    use http::HeaderValue;

    /// A token that is a number.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Token(pub(crate) u64);

    impl Token {
        pub(crate) fn id(&self) -> u64 {
            self.0
        }

        pub(crate) fn another_lane(&self) -> Self {
            self.clone()
        }

        pub(crate) fn header(&self) -> HeaderValue {
            self.0.into()
        }
    }
}

const fn at(second: u64) -> Now {
    Now::from_millis(second * 1_000, second * 1_000)
}

fn peek(token: u64, look: u64) -> Option<Peek> {
    let [hard, look] = [100, look].map(|second| Moment::from(at(second)));
    Some(Peek { token: Token(token), hard, look })
}

/// What a driver keeps under its lock: what the machine would say, and how often it was asked.
struct Board {
    says: (u64, u64),
    asked: u32,
}

struct Driver {
    cell: Cell,
    board: Mutex<Board>,
}

impl Driver {
    /// A token `1` that is looked at again from `look` on.
    fn holding(look: u64) -> Arc<Self> {
        let cell = Cell::new(2);
        cell.publish(peek(1, look));
        Arc::new(Self { cell, board: Mutex::new(Board { says: (1, look), asked: 0 }) })
    }

    /// A call: from the cell, or by asking the board, which publishes what it says whether that is new or not.
    fn call(&self, lane: usize, now: Now) -> u64 {
        match self.cell.token(lane, now) {
            Some(token) => token.0,
            None => {
                let mut board = self.board.lock().unwrap();
                board.asked += 1;
                let (token, look) = board.says;
                self.cell.publish(peek(token, look));
                token
            }
        }
    }

    /// The machine says something else from now on.
    fn publish(&self, token: u64, look: u64) {
        let mut board = self.board.lock().unwrap();
        board.says = (token, look);
        self.cell.publish(peek(token, look));
    }

    fn asked(&self) -> u32 {
        self.board.lock().unwrap().asked
    }
}

/// Two calls at `now`, each on a thread of its own, beside what `meanwhile` does on a third.
fn beside<T>(driver: &Arc<Driver>, now: Now, meanwhile: impl FnOnce() -> T) -> (T, [u64; 2]) {
    let calls = [0, 1].map(|lane| {
        let driver = driver.clone();
        thread::spawn(move || driver.call(lane, now))
    });
    let done = meanwhile();
    (done, calls.map(|call| call.join().unwrap()))
}

#[test]
fn r24_of_those_who_come_together_one_asks_and_none_is_turned_away() {
    explore(2, || {
        let driver = Driver::holding(10);
        let cell = &driver.cell;
        // Nobody gives the claim back here, so there is one to be had.
        let other = {
            let driver = driver.clone();
            thread::spawn(move || driver.cell.token(1, at(10)).is_none())
        };
        let asking = [cell.token(0, at(10)).is_none(), other.join().unwrap()];
        assert_eq!(asking.iter().filter(|asks| **asks).count(), 1);
    });
}

/// The interleaving that lost a refresh in a prototype: a claim is taken while another caller gives its own back.
#[test]
fn r24_r51_a_claim_is_always_given_back_so_the_next_refresh_is_not_lost() {
    explore(2, || {
        let driver = Driver::holding(10);
        let ((), tokens) = beside(&driver, at(10), || ());
        assert_eq!(tokens, [1, 1]);
        let asked = driver.asked();
        assert!((1..=2).contains(&asked));
        // The machine said nothing new: somebody has to ask again.
        driver.call(0, at(10));
        assert_eq!(driver.asked(), asked + 1);
    });
}

#[test]
fn r24_r51_a_look_that_moves_meanwhile_is_kept() {
    explore(2, || {
        let driver = Driver::holding(10);
        let ((), tokens) = beside(&driver, at(10), || driver.publish(1, 50));
        assert_eq!(tokens, [1, 1]);
        let asked = driver.asked();
        driver.call(0, at(49));
        assert_eq!(driver.asked(), asked, "nobody has to ask before");
        driver.call(0, at(50));
        assert_eq!(driver.asked(), asked + 1, "and one has to then");
    });
}

/// Both clocks at a tick of this number.
#[derive(Clone, Copy)]
struct Tick(u64, Now);

impl CoarseClocks for Tick {
    fn tick(&self) -> u64 {
        self.0
    }

    fn coarse(&self) -> Now {
        self.1
    }
}

#[test]
fn r24_r51_a_look_that_comes_forward_within_a_tick_is_kept_by_the_next_one() {
    explore(2, || {
        let driver = Driver::holding(50);
        let others = [0, 1].map(|lane| {
            let driver = driver.clone();
            thread::spawn(move || driver.cell.token(lane, Tick(1, at(10))).is_some())
        });
        driver.publish(1, 5);
        let asking = others.into_iter().map(|other| other.join().unwrap()).filter(|served| !served).count();
        // A claim may have been given back by what was published behind it. Where nobody asked, the next tick's first reader does.
        let asks = driver.cell.token(0, Tick(2, at(10))).is_none();
        assert!(asks || asking > 0);
    });
}

#[test]
fn r38_a_rejected_token_is_not_served_again_within_its_tick() {
    explore(2, || {
        let driver = Driver::holding(50);
        let other = {
            let driver = driver.clone();
            thread::spawn(move || driver.cell.token(1, Tick(1, at(10))))
        };
        driver.publish(2, 50);
        assert_eq!(driver.cell.token(0, Tick(1, at(10))), Some(Token(2)));
        driver.cell.publish(None);
        assert_eq!(driver.cell.token(0, Tick(1, at(10))), None);
        other.join().unwrap();
    });
}

#[test]
fn r26_r51_a_new_token_is_seen_by_whoever_comes_after_it() {
    explore(2, || {
        let driver = Driver::holding(10);
        let (after, tokens) = beside(&driver, at(10), || {
            driver.publish(2, 50);
            driver.call(0, at(10))
        });
        assert_eq!(after, 2);
        assert!(tokens.iter().all(|token| [1, 2].contains(token)));
        let asked = driver.asked();
        assert_eq!(driver.call(1, at(49)), 2);
        assert_eq!(driver.asked(), asked);
        driver.call(1, at(50));
        assert_eq!(driver.asked(), asked + 1);
    });
}

#[test]
fn r38_a_rejected_token_is_served_to_nobody_who_comes_after_its_rejection() {
    explore(2, || {
        let driver = Driver::holding(50);
        let other = {
            let driver = driver.clone();
            thread::spawn(move || driver.cell.token(1, at(10)))
        };
        driver.cell.publish(None);
        assert_eq!(driver.cell.token(0, at(10)), None);
        let seen = other.join().unwrap();
        assert!(seen.is_none_or(|token| token.0 == 1));
    });
}

#[test]
fn r20_nothing_is_served_past_the_hard_expiry_whoever_publishes() {
    explore(2, || {
        let driver = Driver::holding(10);
        let other = {
            let driver = driver.clone();
            thread::spawn(move || driver.cell.token(1, at(100)))
        };
        driver.publish(1, 60);
        assert_eq!(driver.cell.token(0, at(100)), None);
        assert_eq!(other.join().unwrap(), None);
    });
}

/// A flight that ends may not start the next one: whoever reads the cell next takes it, also when a claim is on its way.
#[test]
fn r49_r51_what_an_ending_flight_could_not_start_is_taken_by_the_next_caller() {
    explore(2, || {
        let driver = Driver::holding(10);
        let ((), _) = beside(&driver, at(10), || {
            let mut board = driver.board.lock().unwrap();
            board.asked = 0;
            driver.cell.ask_at_once();
        });
        // Somebody has come since, or the next one does, even before the time to look.
        driver.call(0, at(5));
        assert!(driver.asked() > 0);
    });
}
