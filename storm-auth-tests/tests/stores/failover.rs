//! R74, R75: a primary that dies, a replica that does not take over at once, and the one address by which both are reached, or the
//! sentinels that know which is which.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use storm_auth_blocking::core::Event;
use storm_auth_blocking::{Clock, Credentials, Scope, TokenProvider};
use storm_auth_core::store::{Lease, StoreCommand, StoreFailure, StoreOp, StoreReply, TokenStore};
use storm_auth_store::RedisStore;
use storm_auth_tests::emulator::Emulator;
use storm_auth_tests::store_conformance;

use crate::redis::{Server, TlsServer, free_port, works};
use crate::{Folder, lease, op, publish, until};

/// An address that leads to one server after the other, as a name does or a balancer.
struct Address {
    port: u16,
    way: Arc<Way>,
}

#[derive(Default)]
struct Way {
    to: AtomicU16,
    closed: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Address {
    fn of(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(Way { to: AtomicU16::new(server.port), ..Way::default() });
        let address = Self { port, way: Arc::clone(&way) };
        thread::spawn(move || {
            for client in listener.incoming().map(Result::unwrap) {
                if way.closed.load(Ordering::SeqCst) {
                    return;
                }
                // Where nobody listens, the connection ends at once.
                let _ = way.forward(client);
            }
        });
        address
    }

    /// Where new connections lead from now on. Those that there are stay.
    fn lead_to(&self, server: &Server) {
        self.way.to.store(server.port, Ordering::SeqCst);
    }

    fn store(&self) -> RedisStore {
        RedisStore::new(&format!("redis://127.0.0.1:{}", self.port)).unwrap()
    }
}

impl Way {
    fn forward(&self, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(("127.0.0.1", self.to.load(Ordering::SeqCst)))?;
        let mut connections = self.connections.lock().unwrap();
        for (mut from, mut to) in
            [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)]
        {
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            });
        }
        connections.extend([client, server]);
        Ok(())
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        self.way.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        for connection in self.way.connections.lock().unwrap().iter() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// A primary and its replica, each with a folder for what a replica loads.
struct Pair {
    primary: Server,
    replica: Server,
    _folders: [Folder; 2],
}

impl Pair {
    fn start(name: &str) -> Option<Self> {
        let folders = ["primary", "replica"].map(|part| Folder::new(&format!("{name}-{part}")));
        let [one, other] = folders.each_ref().map(|folder| {
            std::fs::create_dir(&folder.0).unwrap();
            folder.0.to_str().unwrap()
        });
        let at_once = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"];
        let primary = Server::start(&[&at_once[..], &["--dir", one]].concat())?;
        let port = primary.port.to_string();
        let replica = Server::start(&[&at_once[..], &["--dir", other, "--replicaof", "127.0.0.1", &port]].concat())?;
        Some(Self { primary, replica, _folders: folders })
    }

    /// Everything that the primary has, its replica has.
    fn wait_for_replication(&self) {
        // Counted from a write of the connection's own.
        assert_eq!(self.primary.say(&["SET last 1", "WAIT 1 30000"]), ["+OK", ":1"]);
    }
}

fn promote(server: &Server) {
    assert_eq!(server.say(&["REPLICAOF NO ONE"]), ["+OK"]);
}

/// When the record was sent that the store has.
fn sent(store: &RedisStore) -> u64 {
    store.perform(&op(StoreCommand::Read)).unwrap().record.unwrap().order.sent.as_millis()
}

fn publishes(store: &RedisStore, owner: Option<u128>, at: u64) -> u64 {
    store.perform(&publish(owner, at)).unwrap().record.unwrap().order.sent.as_millis()
}

#[test]
fn r74_r75_a_replica_is_read_and_written_to_only_once_it_is_promoted_and_the_order_stands() {
    let Some(mut pair) = Pair::start("order") else { return };
    let address = Address::of(&pair.primary);
    let store = address.store();
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
    assert_eq!(publishes(&store, Some(1), 5), 5);
    pair.wait_for_replication();

    pair.primary.stop();
    address.lead_to(&pair.replica);
    assert_eq!(sent(&store), 5);
    for write in [lease(1, 10_000), publish(None, 6)] {
        let failure = store.perform(&write).unwrap_err();
        assert!(
            failure.detail.contains("read only replica") && failure.detail.contains("name the primary"),
            "{failure}"
        );
    }
    assert_eq!(sent(&store), 5);

    promote(&pair.replica);
    assert_eq!(publishes(&store, None, 4), 5, "an older one takes no newer one's place");
    assert_eq!(store.perform(&lease(2, 10_000)).unwrap().lease, Lease::Mine);
    assert_eq!(publishes(&store, Some(1), 6), 5, "nor does one of a holder that lost its lease");
    assert_eq!(publishes(&store, Some(2), 7), 7);
}

#[test]
fn r75_a_connection_to_a_primary_that_was_demoted_is_left_for_the_new_one() {
    let Some(pair) = Pair::start("demoted") else { return };
    let address = Address::of(&pair.primary);
    let store = address.store();
    assert_eq!(publishes(&store, None, 1), 1);
    pair.wait_for_replication();
    // The old one lives on and keeps its connections, as after a failover that somebody asked for.
    promote(&pair.replica);
    assert_eq!(pair.primary.say(&[&format!("REPLICAOF 127.0.0.1 {}", pair.replica.port)]), ["+OK"]);
    address.lead_to(&pair.replica);
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
    assert_eq!(publishes(&store, Some(1), 2), 2);
    assert_eq!(sent(&pair.replica.store()), 2);
}

/// A store that knows whether it is being used.
#[derive(Debug)]
struct Watched {
    store: RedisStore,
    used: Arc<AtomicUsize>,
}

impl TokenStore for Watched {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        self.used.fetch_add(1, Ordering::SeqCst);
        let done = self.store.perform(op);
        self.used.fetch_sub(1, Ordering::SeqCst);
        done
    }
}

/// A process of a fleet.
struct Process {
    tokens: TokenProvider,
    used: Arc<AtomicUsize>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Process {
    fn start(address: &Address, emulator: &Emulator, clock: &Clock) -> Self {
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let (seen, used) = (Arc::clone(&events), Arc::default());
        let store = Watched { store: address.store(), used: Arc::clone(&used) };
        let tokens = TokenProvider::builder()
            .token_url(emulator.token_url())
            .credentials(Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap())
            .scope(Scope::new(emulator.scope()).unwrap())
            .clock(clock.clone())
            .store(store)
            .on_event(move |event| seen.lock().unwrap().push(event.clone()))
            .build_tokens()
            .unwrap();
        Self { tokens, used, events }
    }

    fn token(&self) -> String {
        self.tokens.token().unwrap().expose().to_owned()
    }

    /// The token that it holds the lease for is on the server, and it does nothing more there.
    fn wait_until_published(&self, server: &Server) {
        until("it is published", || server.say(&["KEYS *:lease"]) == ["*0"] && self.used.load(Ordering::SeqCst) == 0);
    }

    fn events(&self, fits: impl Fn(&Event) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|event| fits(event)).count()
    }
}

#[test]
fn r72_r75_a_fleet_goes_on_alone_while_its_replica_is_read_only_and_shares_again_once_it_is_promoted() {
    let Some(mut pair) = Pair::start("fleet") else { return };
    let lifetime = Duration::from_secs(600);
    let emulator = Emulator::builder().lifetime(lifetime).start();
    let (address, clock) = (Address::of(&pair.primary), Clock::movable());
    let one = Process::start(&address, &emulator, &clock);
    let first = one.token();
    one.wait_until_published(&pair.primary);
    pair.wait_for_replication();

    // Who comes now finds the token where it was copied to.
    pair.primary.stop();
    address.lead_to(&pair.replica);
    let other = Process::start(&address, &emulator, &clock);
    assert!(other.token() == first);
    assert_eq!(emulator.token_requests(), 1);

    // Nobody can take the lease, so each requests a token of its own, which it cannot publish either, and says once why.
    clock.advance(lifetime);
    assert!(one.token() != other.token());
    assert_eq!(emulator.token_requests(), 3);
    let refused =
        |event: &Event| matches!(event, Event::StoreFailed { detail, .. } if detail.contains("read only replica"));
    for process in [&one, &other] {
        until("both were refused", || process.tokens.counters().store_failures == 2);
        assert_eq!(process.events(refused), 1);
    }

    promote(&pair.replica);
    clock.advance(lifetime);
    let shared = one.token();
    one.wait_until_published(&pair.replica);
    assert!(other.token() == shared);
    assert_eq!(emulator.token_requests(), 4);
    // Who has only read since does not know yet that it could write.
    for (process, times) in [(&one, 1), (&other, 0)] {
        until("it says so", || process.events(|event| matches!(event, Event::StoreRecovered)) == times);
        assert_eq!(process.events(refused), 1);
    }
}

/// Who watches a primary, and lets its replica take over.
struct Sentinel {
    server: Server,
    _folder: Folder,
}

impl Sentinel {
    fn of(primary: &Server, name: &str) -> Option<Self> {
        Self::start(primary.port, name, Vec::new)
    }

    fn start(primary: u16, name: &str, settings: impl Fn() -> Vec<String>) -> Option<Self> {
        let folder = Folder::new(name);
        std::fs::create_dir(&folder.0).unwrap();
        let file = folder.0.join("sentinel.conf");
        let settings = || {
            // It writes there what it knows.
            let watches = format!("sentinel monitor shop-primary 127.0.0.1 {primary} 1\n");
            let hurries =
                "sentinel down-after-milliseconds shop-primary 300\nsentinel failover-timeout shop-primary 2000\n";
            std::fs::write(&file, watches + hurries).unwrap();
            [file.to_str().unwrap().to_owned(), "--sentinel".to_owned()].into_iter().chain(settings()).collect()
        };
        let server = Server::start_at(free_port, settings)?;
        Some(Self { server, _folder: folder })
    }

    fn names(&self, server: &Server) -> bool {
        // The length of its address, that, the length of its port, and that.
        let lines = ["SENTINEL GET-MASTER-ADDR-BY-NAME shop-primary", "PING", "PING", "PING", "PING"];
        self.server.say(&lines)[4] == server.port.to_string()
    }
}

/// A store whose primary is known to servers at these ports.
fn watched(ports: &[u16]) -> RedisStore {
    let urls = ports.iter().map(|port| format!("redis://127.0.0.1:{port}"));
    RedisStore::new("redis://shop-primary").unwrap().sentinels(urls).unwrap()
}

#[test]
fn r72_r73_r74_r76_a_primary_that_a_sentinel_names_keeps_to_the_protocol() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(sentinel) = Sentinel::of(&server, "named") else { return };
    store_conformance::check(|| Box::new(watched(&[sentinel.server.port])));
}

#[test]
fn r74_r75_whom_the_sentinels_promote_is_found_and_the_order_stands() {
    let Some(mut pair) = Pair::start("promoted") else { return };
    let Some(sentinel) = Sentinel::of(&pair.primary, "promoting") else { return };
    let store = watched(&[sentinel.server.port]);
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
    assert_eq!(publishes(&store, Some(1), 5), 5);
    pair.wait_for_replication();
    until("it knows of the replica", || sentinel.server.say(&["SENTINEL REPLICAS shop-primary"]) == ["*1"]);

    pair.primary.stop();
    until("the replica takes over", || sentinel.names(&pair.replica));
    until("it is written to", || store.perform(&lease(2, 10_000)).is_ok_and(|reply| reply.lease == Lease::Mine));
    assert_eq!(publishes(&store, None, 4), 5, "an older one takes no newer one's place");
    assert_eq!(publishes(&store, Some(2), 6), 6);
    assert_eq!(sent(&pair.replica.store()), 6);
}

#[test]
fn a_primary_that_sentinels_name_wants_one_right_more() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(sentinel) = Sentinel::of(&server, "rights") else { return };
    server.user("+role");
    let store = RedisStore::new("redis://shop:pa55word@shop-primary").unwrap();
    works(&store.sentinels([sentinel.server.url()]).unwrap());
}

#[test]
fn r75_a_sentinel_that_is_silent_or_gone_leaves_time_for_the_next_one() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(sentinel) = Sentinel::of(&server, "next") else { return };
    // It accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = watched(&[free_port(), silent.local_addr().unwrap().port(), sentinel.server.port]);
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
}

#[test]
fn r72_a_primary_and_its_sentinel_may_speak_tls_by_certificates_of_ones_own() {
    let Some(primary) = TlsServer::start("tls-primary", &["--tls-auth-clients", "yes"]) else { return };
    let settings = || [primary.settings(), vec!["--tls-replication".to_owned(), "yes".to_owned()]].concat();
    let Some(sentinel) = Sentinel::start(primary.port().parse().unwrap(), "tls-sentinel", settings) else { return };
    let url = primary.url_of(&sentinel.server);
    let store = || RedisStore::new("rediss://shop-primary").unwrap();
    works(&store().sentinels([&url]).unwrap().certificates(&primary.certificates()).unwrap());
    let other_order = store().certificates(&primary.certificates()).unwrap().sentinels([&url]).unwrap();
    other_order.perform(&op(StoreCommand::Read)).unwrap();
}

/// What stands for a sentinel that names this server, whatever it has become.
fn behind_the_times(server: &Server) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, port) = (listener.local_addr().unwrap().port(), server.port.to_string());
    thread::spawn(move || {
        for mut client in listener.incoming().map(Result::unwrap) {
            let mut asked = [0; 4_096];
            while let Ok(length @ 1..) = client.read(&mut asked) {
                let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
                let answer = match asked.matches("SETINFO").count() {
                    0 => format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len()),
                    greetings => "+OK\r\n".repeat(greetings),
                };
                if client.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    own
}

#[test]
fn r75_a_replica_that_a_sentinel_names_is_neither_read_nor_written_to() {
    let Some(pair) = Pair::start("stale") else { return };
    let stale = behind_the_times(&pair.replica);
    let failure = watched(&[stale]).perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.contains("names a server that is no primary"), "{failure}");
    // Another sentinel may know better.
    let Some(sentinel) = Sentinel::of(&pair.primary, "better") else { return };
    watched(&[stale, sentinel.server.port]).perform(&op(StoreCommand::Read)).unwrap();
}

#[test]
fn r75_a_name_that_no_sentinel_knows_is_told_with_what_to_change() {
    let Some(server) = Server::start(&[]) else { return };
    let Some(sentinel) = Sentinel::of(&server, "unknown") else { return };
    let store = RedisStore::new("redis://:pa55word@shop-primery").unwrap();
    let store = store.sentinels([sentinel.server.url()]).unwrap();
    let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.contains("by the name shop-primery; correct the name"), "{failure}");
    assert!(!format!("{store:?} {failure} {failure:?}").contains("pa55word"), "{failure}");
}

#[test]
fn sentinels_that_cannot_be_asked_are_refused_when_the_store_is_made() {
    let store = || RedisStore::new("redis://shop-primary").unwrap();
    for (made, words) in [
        (store().sentinels([""; 0]), "no sentinel is named"),
        (store().sentinels(["redis://:pa55word@host:port"]), "cannot be read"),
        (RedisStore::new("unix:///run/redis").unwrap().sentinels(["redis://it"]), "names a path"),
    ] {
        let error = made.expect_err(words).to_string();
        assert!(error.contains(words) && !error.contains("pa55word"), "{error}");
    }
}
