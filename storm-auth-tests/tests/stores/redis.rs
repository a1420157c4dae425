//! The Redis store against a real server, which the tests start on a free port when it is installed.
//!
//! Without one they say so; where `STORM_TESTS_SKIP_NOTHING` is set, as in CI, they fail.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_core::Unix;
use storm_auth_core::store::{Lease, Owner, StoreCommand, TokenStore};
use storm_auth_store::RedisStore;
use storm_auth_tests::store_conformance;

use crate::{lease, op, publish};

/// A server of this test's own, which ends with it.
struct Server {
    child: Child,
    port: u16,
    settings: Vec<String>,
}

impl Server {
    fn start(settings: &[&str]) -> Option<Self> {
        let settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
        // Between being free and being taken another one may take a port.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            match launch(port, &settings) {
                Ok(Some(child)) => return Some(Self { child, port, settings }),
                Ok(None) => {}
                Err(error) => {
                    assert!(std::env::var_os("STORM_TESTS_SKIP_NOTHING").is_none(), "redis-server is missing: {error}");
                    #[allow(clippy::print_stderr, reason = "a test that did not run has to say so")]
                    {
                        eprintln!("SKIPPED: redis-server is not installed");
                    }
                    return None;
                }
            }
        }
        panic!("redis-server does not start");
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn store(&self) -> RedisStore {
        RedisStore::new(&self.url()).unwrap()
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Comes back with nothing that it had.
    fn restart(&mut self) {
        self.stop();
        self.child = launch(self.port, &self.settings).unwrap().expect("its port is still free");
    }
}

fn launch(port: u16, settings: &[String]) -> std::io::Result<Option<Child>> {
    let folder = std::env::temp_dir();
    let mut child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
        .arg("--dir")
        .arg(folder)
        .args(settings)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    for _ in 0..500 {
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            // It listens before it has loaded.
            let mut answer = [0; 1];
            stream.write_all(b"PING\r\n")?;
            if stream.read(&mut answer)? == 1 {
                return Ok(Some(child));
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn r72_r73_r74_r76_redis_keeps_to_the_protocol() {
    let Some(server) = Server::start(&[]) else { return };
    store_conformance::check(|| Box::new(server.store()));
}

#[test]
fn r73_a_lease_lapses_under_a_holder_that_sleeps_and_who_lost_it_publishes_nothing() {
    let Some(server) = Server::start(&[]) else { return };
    let (sleeper, other) = (server.store(), server.store());
    assert_eq!(sleeper.perform(&lease(1, 30)).unwrap().lease, Lease::Mine);
    let since = Instant::now();
    while other.perform(&lease(2, 10_000)).unwrap().lease != Lease::Mine {
        assert!(since.elapsed() < Duration::from_secs(30), "the lease never lapses");
        thread::sleep(Duration::from_millis(5));
    }
    let reply = sleeper.perform(&publish(Some(1), 1)).unwrap();
    assert!(reply.record.is_none());
    assert_eq!(reply.lease, Lease::Taken);
    assert_eq!(
        sleeper
            .perform(&op(StoreCommand::Release { owner: Owner(1), rest: Duration::ZERO, failures: 0 }))
            .unwrap()
            .lease,
        Lease::Taken
    );
    assert_eq!(other.perform(&publish(Some(2), 2)).unwrap().record.unwrap().order.sent, Unix::from_millis(2));
}

#[test]
fn r75_a_server_that_restarts_empty_is_used_again_at_once() {
    let Some(mut server) = Server::start(&[]) else { return };
    let store = server.store();
    store.perform(&publish(None, 1)).unwrap();
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
    server.stop();
    let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.starts_with(&format!("Redis at 127.0.0.1:{}: ", server.port)), "{failure}");
    server.restart();
    let reply = store.perform(&op(StoreCommand::Read)).unwrap();
    assert!(reply.record.is_none());
    assert_eq!(reply.lease, Lease::Free);
    // A holder whose lease was lost with the data still publishes, by the order.
    assert!(store.perform(&publish(Some(1), 2)).unwrap().record.is_some());
}

#[test]
fn r75_a_connection_that_broke_while_nobody_used_it_costs_nothing() {
    let Some(mut server) = Server::start(&[]) else { return };
    let store = server.store();
    store.perform(&op(StoreCommand::Read)).unwrap();
    server.restart();
    store.perform(&op(StoreCommand::Read)).unwrap();
}

#[test]
fn r75_a_server_that_never_answers_is_given_up_within_its_patience() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = RedisStore::new(&format!("redis://{}", silent.local_addr().unwrap())).unwrap();
    // It accepts, and says nothing. The failure itself is what is asserted; a wait without an end would hang here.
    assert!(store.perform(&op(StoreCommand::Read)).is_err());
}

#[test]
fn r58_r75_a_wrong_password_is_told_and_no_password_is_shown() {
    let Some(server) = Server::start(&["--requirepass", "r1ght-pa55word"]) else { return };
    let right = RedisStore::new(&format!("redis://:r1ght-pa55word@127.0.0.1:{}", server.port)).unwrap();
    right.perform(&op(StoreCommand::Read)).unwrap();
    let wrong = RedisStore::new(&format!("redis://:wr0ng-pa55word@127.0.0.1:{}", server.port)).unwrap();
    let failure = wrong.perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.to_lowercase().contains("auth"), "{failure}");
    for shown in [format!("{right:?} {wrong:?}"), failure.to_string(), format!("{failure:?}")] {
        assert!(!shown.contains("pa55word"), "{shown}");
    }
}

#[test]
fn r70_what_lies_there_and_is_no_record_is_a_miss_and_is_written_over() {
    let Some(server) = Server::start(&[]) else { return };
    let store = server.store();
    let key = format!("storm-auth:{{{}}}:token", op(StoreCommand::Read).record);
    for foreign in ["zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", "storm-auth 2 ffff"] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        write!(stream, "SET \"{key}\" \"{foreign}\"\r\n").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
        assert!(store.perform(&op(StoreCommand::Read)).unwrap().record.is_none(), "{foreign}");
        assert!(store.perform(&publish(None, 1)).unwrap().record.is_some(), "{foreign}");
    }
}

#[test]
fn a_url_that_is_none_is_refused_without_being_shown() {
    for url in ["", "http://:pa55word@host", "redis//:pa55word@host", "redis://:pa55word@host:port"] {
        let error = RedisStore::new(url).expect_err(url).to_string();
        assert!(error.contains("redis://") && !error.contains("pa55word"), "{error}");
    }
}
