//! Whether a token store keeps to the protocol of [`storm_auth_core::store`].
//!
//! ```
//! use storm_auth_tests::{memory_store::MemoryStore, store_conformance};
//!
//! let store = MemoryStore::new();
//! store.set_time(std::time::SystemTime::now().into());
//! store_conformance::check(|| Box::new(store.clone()));
//! ```

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use storm_auth_core::store::{Lease, Order, Owner, Record, StoreCommand, StoreOp, StoreReply, TokenStore};
use storm_auth_core::{Credentials, HttpHosts, Key, Scope, TokenUrl, Unix, scope};

const TTL: Duration = Duration::from_secs(10);
const ONE: Owner = Owner(1);
const OTHER: Owner = Owner(2);

/// Runs the whole suite against a store. `open` gives another handle of the same store each time, as another process would have.
///
/// What it writes has names of its own, so the store may be in use. It takes some milliseconds, most of them for a rest to pass.
///
/// # Panics
/// The store does something else than the protocol says; the message tells what.
pub fn check(open: impl Fn() -> Box<dyn TokenStore>) {
    Desk::new(&open).an_empty_store_has_nothing();
    Desk::new(&open).a_lease_is_one_owners_until_it_is_released();
    Desk::new(&open).a_lease_that_rests_is_nobodys();
    Desk::new(&open).a_record_is_read_by_all_and_ends_the_lease();
    Desk::new(&open).an_older_record_takes_no_newer_ones_place();
    Desk::new(&open).who_does_not_hold_the_lease_publishes_nothing_while_another_does();
    Desk::new(&open).who_works_alone_publishes_by_the_order();
    Desk::new(&open).only_the_owner_releases();
    Desk::new(&open).a_gate_stays_closed_for_the_longest_time_and_no_longer_than_an_hour();
    Desk::new(&open).keys_do_not_mind_each_other();
    Desk::new(&open).of_many_that_want_the_lease_at_once_one_gets_it(&open);
}

/// A key that nobody has used before, and two handles.
struct Desk {
    key: Key,
    egress: String,
    here: Box<dyn TokenStore>,
    there: Box<dyn TokenStore>,
}

impl Desk {
    fn new(open: &impl Fn() -> Box<dyn TokenStore>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let name = format!("conformance {} {since} {number}", process::id());
        Self { key: key(&name), egress: name, here: open(), there: open() }
    }

    fn op(&self, command: StoreCommand) -> StoreOp {
        StoreOp::for_key(&self.key, &self.egress, command)
    }

    fn here(&self, command: StoreCommand) -> StoreReply {
        self.here.perform(&self.op(command)).expect("the store can be used")
    }

    fn there(&self, command: StoreCommand) -> StoreReply {
        self.there.perform(&self.op(command)).expect("the store can be used")
    }

    fn an_empty_store_has_nothing(&self) {
        for reply in [self.here(StoreCommand::Read), self.there(StoreCommand::Read)] {
            assert!(reply.record.is_none(), "there is a record that nobody wrote");
            assert_eq!((reply.gate, reply.lease, reply.failures), (None, Lease::Free, 0));
        }
    }

    fn a_lease_is_one_owners_until_it_is_released(&self) {
        assert_eq!(self.here(lease(ONE)).lease, Lease::Mine, "nobody has the lease");
        assert_eq!(self.there(lease(OTHER)).lease, Lease::Taken, "somebody has the lease");
        assert_eq!(self.there(StoreCommand::Read).lease, Lease::Taken, "a reader sees that somebody has it");
        assert_eq!(self.here(lease(ONE)).lease, Lease::Mine, "its owner renews it");
        assert_eq!(self.here(release(ONE, Duration::ZERO, 0)).lease, Lease::Free, "it was released");
        assert_eq!(self.there(lease(OTHER)).lease, Lease::Mine, "and is to be had");
        assert_eq!(self.here(lease(ONE)).lease, Lease::Taken);
        self.there(release(OTHER, Duration::ZERO, 0));
    }

    fn a_lease_that_rests_is_nobodys(&self) {
        self.here(lease(ONE));
        let reply = self.here(release(ONE, Duration::from_secs(60), 3));
        assert!(matches!(reply.lease, Lease::Resting(rest) if rest <= Duration::from_secs(60)), "{reply:?}");
        assert_eq!(reply.failures, 3);
        for owner in [ONE, OTHER] {
            let reply = self.there(lease(owner));
            assert!(matches!(reply.lease, Lease::Resting(rest) if rest > Duration::from_secs(50)), "{reply:?}");
            assert_eq!(reply.failures, 3, "whoever comes next knows how often it failed");
        }
        // A record ends it.
        let reply = self.there(publish(None, &record(1, "t", 600)));
        assert_eq!((reply.lease, reply.failures), (Lease::Free, 0), "a token came, so nothing rests");
        // One that rests for no time is to be had, and what failed is known.
        self.here(lease(ONE));
        self.here(release(ONE, Duration::ZERO, 2));
        let reply = self.there(lease(OTHER));
        assert_eq!((reply.lease, reply.failures), (Lease::Mine, 2));
        self.there(release(OTHER, Duration::ZERO, 0));
    }

    fn a_record_is_read_by_all_and_ends_the_lease(&self) {
        let token = record(7, "token", 600);
        self.here(lease(ONE));
        let reply = self.here(publish(Some(ONE), &token));
        assert_eq!(reply.lease, Lease::Free, "the lease has ended");
        for reply in [reply, self.here(StoreCommand::Read), self.there(StoreCommand::Read)] {
            same(reply.record.as_ref(), &token);
        }
        // Bytes are kept as they are, and so is a long one.
        let bytes: Vec<u8> = (0..20_000_u32).map(|at| (at * 7) as u8).collect();
        let long = Record { body: bytes.into(), ..record(8, "", 600) };
        self.there(publish(None, &long));
        same(self.here(StoreCommand::Read).record.as_ref(), &long);
    }

    fn an_older_record_takes_no_newer_ones_place(&self) {
        let newer = record(500, "newer", 600);
        self.here(publish(None, &newer));
        for (sent, id) in [(499, u64::MAX), (500, 0)] {
            let mut older = record(sent, "older", 3_600);
            older.order.id = id;
            self.there(lease(OTHER));
            same(self.there(publish(Some(OTHER), &older)).record.as_ref(), &newer);
            assert_eq!(self.here(StoreCommand::Read).lease, Lease::Free, "its lease has ended all the same");
        }
        let mut same_time = record(500, "same time", 600);
        same_time.order.id = newer.order.id + 1;
        same(self.there(publish(None, &same_time)).record.as_ref(), &same_time);
    }

    fn who_does_not_hold_the_lease_publishes_nothing_while_another_does(&self) {
        self.there(lease(OTHER));
        let reply = self.here(publish(Some(ONE), &record(1, "lost its lease", 600)));
        assert!(reply.record.is_none(), "who lost the lease publishes nothing");
        assert_eq!(reply.lease, Lease::Taken, "and does not end the other's");
        self.there(release(OTHER, Duration::ZERO, 0));
        // Nobody holds it any more: then the order decides.
        let token = record(1, "nobody holds it", 600);
        same(self.here(publish(Some(ONE), &token)).record.as_ref(), &token);
    }

    fn who_works_alone_publishes_by_the_order(&self) {
        self.there(lease(OTHER));
        let token = record(1, "alone", 600);
        let reply = self.here(publish(None, &token));
        same(reply.record.as_ref(), &token);
        assert_eq!(reply.lease, Lease::Taken, "the lease is still another's");
        self.there(release(OTHER, Duration::ZERO, 0));
    }

    fn only_the_owner_releases(&self) {
        self.here(lease(ONE));
        assert_eq!(self.there(release(OTHER, Duration::from_secs(60), 9)).lease, Lease::Taken);
        assert_eq!(self.here(lease(ONE)).lease, Lease::Mine);
        let reply = self.here(release(ONE, Duration::ZERO, 0));
        assert_eq!((reply.lease, reply.failures), (Lease::Free, 0));
    }

    fn a_gate_stays_closed_for_the_longest_time_and_no_longer_than_an_hour(&self) {
        let now = || {
            let now = Unix::from(SystemTime::now());
            // A store with a clock of its own has it far from here.
            let far = self.here(close_gate(Unix::from_millis(1))).gate;
            assert_eq!(far, None, "a gate that was closed until long ago is open");
            now
        };
        let until = now() + Duration::from_secs(60);
        let closed = self.here(close_gate(until)).gate;
        assert!(closed == Some(until) || closed.is_some_and(|closed| closed < until), "{closed:?}");
        let shorter = self.there(close_gate(Unix::from_millis(until.as_millis() - 30_000))).gate;
        assert_eq!(shorter, closed, "a shorter closure changes nothing");
        assert_eq!(self.there(StoreCommand::Read).gate, closed, "all read it");
        let most = self.there(close_gate(Unix::from_millis(u64::MAX))).gate.expect("it is closed");
        assert!(most.since(until) <= Duration::from_secs(3_600), "an hour is the most: {most}");
        // Another address, or another endpoint, has another gate.
        let elsewhere = StoreOp::for_key(&self.key, "another egress", StoreCommand::Read);
        assert_eq!(self.here.perform(&elsewhere).expect("the store can be used").gate, None);
    }

    fn keys_do_not_mind_each_other(&self) {
        let other = key(&format!("{} b", self.egress));
        let there = |command| {
            let op = StoreOp::for_key(&other, &self.egress, command);
            self.there.perform(&op).expect("the store can be used")
        };
        self.here(lease(ONE));
        assert_eq!(there(lease(OTHER)).lease, Lease::Mine);
        self.here(publish(Some(ONE), &record(1, "one", 600)));
        assert!(there(StoreCommand::Read).record.is_none());
        assert_eq!(there(release(OTHER, Duration::ZERO, 0)).lease, Lease::Free);
    }

    fn of_many_that_want_the_lease_at_once_one_gets_it(&self, open: &impl Fn() -> Box<dyn TokenStore>) {
        for round in 0..20 {
            let stores: Vec<_> = (0..8).map(|_| open()).collect();
            let start = std::sync::Barrier::new(stores.len());
            let winners: Vec<_> = std::thread::scope(|scope| {
                let wants: Vec<_> = (stores.iter().zip(100..))
                    .map(|(store, owner)| {
                        let (op, start) = (self.op(lease(Owner(owner))), &start);
                        scope.spawn(move || {
                            start.wait();
                            (owner, store.perform(&op).expect("the store can be used").lease)
                        })
                    })
                    .collect();
                wants.into_iter().map(|want| want.join().expect("it does not panic")).collect()
            });
            let mine: Vec<_> = winners.iter().filter(|(_, lease)| *lease == Lease::Mine).collect();
            let [(owner, _)] = mine[..] else { panic!("round {round}: one of them has the lease: {winners:?}") };
            assert!(winners.iter().all(|(_, lease)| matches!(lease, Lease::Mine | Lease::Taken)), "{winners:?}");
            let winner = &stores[usize::try_from(owner - 100).expect("it is small")];
            winner.perform(&self.op(release(Owner(*owner), Duration::ZERO, 0))).expect("the store can be used");
        }
    }
}

fn key(client: &str) -> Key {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default());
    let credentials = Credentials::new(client, "S3cret").expect("it has no odd characters");
    Key::new(
        url.expect("the documented URL is one"),
        credentials,
        Scope::new(scope::LAB).expect("a known scope is one"),
    )
}

fn lease(owner: Owner) -> StoreCommand {
    StoreCommand::Lease { owner, ttl: TTL }
}

fn release(owner: Owner, rest: Duration, failures: u32) -> StoreCommand {
    StoreCommand::Release { owner, rest, failures }
}

fn publish(owner: Option<Owner>, record: &Record) -> StoreCommand {
    StoreCommand::Publish { owner, record: record.clone() }
}

fn close_gate(until: Unix) -> StoreCommand {
    StoreCommand::CloseGate { until }
}

/// A record that was sent for so many milliseconds after now, and lives for so many seconds from now.
fn record(sent: u64, body: &str, lives: u64) -> Record {
    let now = Unix::from(SystemTime::now());
    // By the second, so that the records of one test are of one base.
    let base = Unix::from_millis(now.as_millis() / 100_000_000 * 100_000_000);
    Record {
        order: Order { sent: base + Duration::from_millis(sent), id: 5 },
        expires_at: now + Duration::from_secs(lives),
        body: body.as_bytes().to_vec().into(),
    }
}

#[track_caller]
fn same(found: Option<&Record>, record: &Record) {
    let found = found.expect("the record is there");
    assert_eq!((found.order, found.expires_at), (record.order, record.expires_at));
    assert_eq!(found.body[..], record.body[..], "its bytes are as they were written");
}
