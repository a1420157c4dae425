//! The Redis store against a real server, which the tests start on a free port when it is installed.
//!
//! Without one they say so; where `STORM_TESTS_SKIP_NOTHING` is set, as in CI, they fail.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use storm_auth_core::Unix;
use storm_auth_core::store::{Lease, Owner, StoreCommand, TokenStore};
use storm_auth_store::{RedisCertificates, RedisStore};
use storm_auth_tests::store_conformance;

use crate::{Folder, URL, Victim, lease, op, process, publish};

/// A server of this test's own, which ends with it.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    settings: Vec<String>,
}

impl Server {
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        Self::start_with(|| settings.iter().map(ToString::to_string).collect())
    }

    /// With settings that may name ports of their own, which are drawn anew with each try.
    fn start_with(settings: impl Fn() -> Vec<String>) -> Option<Self> {
        Self::start_at(free_port, settings)
    }

    /// At a port that is drawn anew with each try. A file among the settings comes first.
    pub(crate) fn start_at(port: impl Fn() -> u16, settings: impl Fn() -> Vec<String>) -> Option<Self> {
        // Between being free and being taken another one may take a port.
        for _ in 0..20 {
            let (port, settings) = (port(), settings());
            if let Some(child) = installed("redis-server", launch(port, &settings))? {
                return Some(Self { child, port, settings });
            }
        }
        panic!("redis-server does not start");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn store(&self) -> RedisStore {
        RedisStore::new(&self.url()).unwrap()
    }

    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Comes back with nothing that it had.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.child = launch(self.port, &self.settings).unwrap().expect("its port is still free");
    }

    /// Makes a user who may do what the store's docs name, and `more`; the URL by which it logs in.
    pub(crate) fn user(&self, more: &str) -> String {
        let rights = "~storm-auth:* +eval +evalsha +script|load +time +get +getrange +set +del";
        assert_eq!(self.say(&[&format!("ACL SETUSER shop on >pa55word {rights} {more}")]), ["+OK"]);
        self.url().replace("//", "//shop:pa55word@")
    }

    /// Stands still from `STOP` on, until `CONT`.
    #[cfg(unix)]
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// What it answers to these lines, with a line to each.
    pub(crate) fn say(&self, lines: &[&str]) -> Vec<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "{}\r\n", lines.join("\r\n")).unwrap();
        BufReader::new(stream).lines().take(lines.len()).map(Result::unwrap).collect()
    }

    /// What it answers to this line, where that is a text of its own length.
    pub(crate) fn tell(&self, line: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "{line}\r\n").unwrap();
        let mut answer = BufReader::new(stream);
        let mut length = String::new();
        answer.read_line(&mut length).unwrap();
        let length = length.trim_end().strip_prefix('$').unwrap_or_else(|| panic!("{line}: {length}")).parse().unwrap();
        let mut text = vec![0; length];
        answer.read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What came of starting a program, or nothing, said aloud, where it is missing.
fn installed<T>(program: &str, started: std::io::Result<T>) -> Option<T> {
    let error = match started {
        Ok(started) => return Some(started),
        Err(error) => error,
    };
    assert!(std::env::var_os("STORM_TESTS_SKIP_NOTHING").is_none(), "{program} is missing: {error}");
    #[allow(clippy::print_stderr, reason = "a test that did not run has to say so")]
    {
        eprintln!("SKIPPED: {program} is not installed");
    }
    None
}

fn launch(port: u16, settings: &[String]) -> std::io::Result<Option<Child>> {
    let folder = std::env::temp_dir();
    let (files, settings): (Vec<_>, Vec<_>) = settings.iter().partition(|setting| setting.ends_with(".conf"));
    let mut child = Command::new("redis-server")
        .args(files)
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
        if answers(port).is_ok_and(|answers| answers) {
            return Ok(Some(child));
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// It listens before it has loaded, and may end a connection then: that it is missing is known from its start alone.
fn answers(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    // A port that nobody listens on yet may be drawn for this end of the connection as well.
    if stream.local_addr()? == stream.peer_addr()? {
        return Ok(false);
    }
    stream.write_all(b"PING\r\n")?;
    Ok(stream.read(&mut [0; 1])? == 1)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that speaks TLS beside its plain port, by a certificate for 127.0.0.1 alone from an authority of this test's own.
pub(crate) struct TlsServer {
    pub(crate) server: Server,
    folder: Folder,
}

impl TlsServer {
    pub(crate) fn start(name: &str, settings: &[&str]) -> Option<Self> {
        let folder = Folder::new(name);
        certify(&folder.0)?;
        let others: Vec<_> = settings.iter().map(ToString::to_string).collect();
        let server = Server::start_with(|| [tls(&folder), others.clone()].concat())?;
        Some(Self { server, folder })
    }

    /// For another one that speaks TLS by the same certificate, at a port of its own.
    pub(crate) fn settings(&self) -> Vec<String> {
        tls(&self.folder)
    }

    pub(crate) fn port(&self) -> &str {
        tls_port(&self.server)
    }

    pub(crate) fn url(&self) -> String {
        self.url_of(&self.server)
    }

    pub(crate) fn url_of(&self, server: &Server) -> String {
        format!("rediss://127.0.0.1:{}", tls_port(server))
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.folder.0.join(file)).unwrap()
    }

    pub(crate) fn certificates(&self) -> RedisCertificates {
        RedisCertificates::new()
            .authorities(self.read("ca.pem"))
            .client(self.read("server.pem"), self.read("server.key"))
    }

    /// A process for which the system trusts the authority.
    fn process(&self, part: &str) -> Command {
        let mut process = process(part, &self.folder.0);
        process.env("SSL_CERT_FILE", self.folder.0.join("ca.pem")).env(URL, self.url());
        process
    }
}

/// What a server that speaks TLS is told, with a port that is free.
fn tls(folder: &Folder) -> Vec<String> {
    let path = |file: &str| folder.0.join(file).to_str().unwrap().to_owned();
    let (certificate, key, authority) = (path("server.pem"), path("server.key"), path("ca.pem"));
    let port = free_port();
    let settings = format!(
        "--tls-port {port} --tls-auth-clients no --tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {authority}"
    );
    settings.split(' ').map(str::to_owned).collect()
}

fn tls_port(server: &Server) -> &str {
    let name = server.settings.iter().position(|setting| setting == "--tls-port");
    &server.settings[name.expect("it speaks TLS") + 1]
}

/// Makes an authority, and a server's certificate by it.
fn certify(folder: &Path) -> Option<()> {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("extensions"), "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for order in [
        format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"),
        format!("req {key} -subj /CN=server -keyout server.key -out server.csr"),
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.pem"
            .to_owned(),
    ] {
        let made = Command::new("openssl").args(order.split(' ')).current_dir(folder).output();
        let made = installed("openssl", made)?;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    Some(())
}

/// The parts of other processes: here the variable SSL_CERT_FILE names the authority.
pub(crate) fn play(part: &str, folder: &Path) {
    let url = std::env::var(URL).unwrap();
    match part {
        "TLS" => {
            store_conformance::check(|| Box::new(RedisStore::new(&url).unwrap()));
            // The same server by a name that its certificate does not have.
            let other = RedisStore::new(&url.replace("127.0.0.1", ":pa55word@localhost")).unwrap();
            let failure = other.perform(&op(StoreCommand::Read)).unwrap_err();
            assert!(failure.detail.contains("not valid for name \"localhost\""), "{failure}");
            assert!(!failure.detail.contains("pa55word"), "{failure}");
        }
        "TLS refused" => {
            let store = RedisStore::new(&url).unwrap();
            // The end of the connection may overtake what the server says about it.
            let told = (0..100).any(|_| {
                let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
                failure.detail.contains("tls-auth-clients")
            });
            assert!(told);
        }
        // Both HTTP clients, with the one that shares through Redis before them or after: whoever comes first chooses for the process,
        // if anybody does.
        "TLS before HTTPS" | "TLS after HTTPS" => {
            let store = RedisStore::new(&url).unwrap();
            let share = || store.perform(&publish(None, 1)).unwrap().record.unwrap();
            if part == "TLS before HTTPS" {
                share();
            }
            let https = https(folder);
            fetch_with_reqwest(&https.1);
            fetch_with_ureq(&https.1, folder);
            share();
        }
        _ => unreachable!(),
    }
}

/// A server that answers any request over TLS, and its URL.
fn https(folder: &Path) -> (Victim, String) {
    let mut server = Command::new("openssl");
    server.args("s_server -www -accept 127.0.0.1:0 -cert server.pem -key server.key".split(' ')).current_dir(folder);
    let mut server = Victim(server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let said = BufReader::new(server.0.stdout.take().unwrap());
    let accepts = said.lines().map(Result::unwrap).find_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned));
    (server, format!("https://{}/", accepts.expect("it says where it listens")))
}

fn fetch_with_reqwest(url: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async { reqwest::Client::new().get(url).send().await });
    assert!(answer.unwrap().status().is_success());
}

fn fetch_with_ureq(url: &str, folder: &Path) {
    use ureq::tls::{Certificate, RootCerts, TlsConfig};

    let authority = Certificate::from_pem(&fs::read(folder.join("ca.pem")).unwrap()).unwrap();
    let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(vec![authority]))).build();
    let agent = ureq::Agent::config_builder().tls_config(tls).build().new_agent();
    assert!(agent.get(url).call().unwrap().status().is_success());
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
    for scheme in ["redis", "rediss"] {
        let store = RedisStore::new(&format!("{scheme}://{}", silent.local_addr().unwrap())).unwrap();
        // It accepts, and says nothing. The failure itself is what is asserted; a wait without an end would hang here.
        let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
        assert!(failure.detail.contains("did not answer in time") && !failure.detail.contains("os error"), "{failure}");
    }
}

/// What stands for a server that takes its time for each answer; it ends with its test's process.
fn slow(pause: Duration) -> RedisStore {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 4_096];
        while let Ok(length @ 1..) = stream.read(&mut asked) {
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            thread::sleep(pause);
            let answer = match asked.matches("SETINFO").count() {
                0 if asked.contains(":gate") => "$1\r\n0\r\n".to_owned(),
                0 => "*3\r\n$-1\r\n$4\r\nfree\r\n$1\r\n0\r\n".to_owned(),
                greetings => "+OK\r\n".repeat(greetings),
            };
            if stream.write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
    });
    RedisStore::new(&format!("redis://127.0.0.1:{port}")).unwrap()
}

#[test]
fn r75_the_patience_is_for_a_whole_operation_and_not_for_each_of_its_answers() {
    let prompt = slow(Duration::ZERO);
    for _ in 0..2 {
        assert_eq!(prompt.perform(&op(StoreCommand::Read)).unwrap().lease, Lease::Free);
    }
    // Each of the three answers comes within the patience, and two of them do not.
    let failure = slow(Duration::from_millis(450)).perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.contains("did not answer in time"), "{failure}");
}

#[cfg(unix)]
#[test]
fn r75_a_server_that_is_stopped_under_a_kept_connection_is_told_not_to_have_answered() {
    let Some(server) = Server::start(&[]) else { return };
    let store = server.store();
    store.perform(&op(StoreCommand::Read)).unwrap();
    server.signal("STOP");
    // With the kept connection, and with a new one, which the system accepts in the server's place.
    for _ in 0..2 {
        let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
        assert!(failure.detail.contains("did not answer in time") && !failure.detail.contains("os error"), "{failure}");
    }
    server.signal("CONT");
    store.perform(&op(StoreCommand::Read)).unwrap();
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

/// Whatever a store does is done.
pub(crate) fn works(store: &RedisStore) {
    assert_eq!(store.perform(&lease(1, 10_000)).unwrap().lease, Lease::Mine);
    assert!(store.perform(&publish(Some(1), 1)).unwrap().record.is_some());
    let rest = Duration::from_secs(10);
    let release = StoreCommand::Release { owner: Owner(1), rest, failures: 1 };
    store.perform(&lease(1, 10_000)).unwrap();
    assert!(matches!(store.perform(&op(release)).unwrap().lease, Lease::Resting(_)));
    let until = Unix::from(std::time::SystemTime::now()) + rest;
    assert_eq!(store.perform(&op(StoreCommand::CloseGate { until })).unwrap().gate, Some(until));
}

#[test]
fn a_user_who_may_do_what_the_docs_name_is_enough() {
    let Some(server) = Server::start(&[]) else { return };
    works(&RedisStore::new(&server.user("")).unwrap());
}

#[test]
fn r72_r74_r75_over_tls_redis_keeps_to_the_protocol_by_what_the_system_trusts() {
    let Some(server) = TlsServer::start("tls", &[]) else { return };
    assert!(server.process("TLS").status().unwrap().success());
}

#[test]
fn r75_tls_to_redis_works_beside_both_http_clients_whoever_comes_first() {
    let Some(server) = TlsServer::start("beside", &[]) else { return };
    for part in ["TLS before HTTPS", "TLS after HTTPS"] {
        assert!(server.process(part).status().unwrap().success(), "{part}");
    }
}

#[test]
fn r58_r75_a_certificate_that_is_not_trusted_is_told_with_what_to_change() {
    let Some(server) = TlsServer::start("untrusted", &["--requirepass", "r1ght-pa55word"]) else { return };
    let store = RedisStore::new(&format!("rediss://:r1ght-pa55word@127.0.0.1:{}", server.port())).unwrap();
    let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.contains("SSL_CERT_FILE"), "{failure}");
    for shown in [format!("{store:?}"), failure.to_string(), format!("{failure:?}")] {
        assert!(!shown.contains("pa55word"), "{shown}");
    }
}

#[test]
fn r75_a_port_without_tls_is_told_where_the_url_asks_for_it() {
    let Some(server) = Server::start(&[]) else { return };
    let store = RedisStore::new(&format!("rediss://127.0.0.1:{}", server.port)).unwrap();
    let failure = store.perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.contains("whether both ends speak TLS"), "{failure}");
}

#[test]
fn r75_a_server_that_wants_a_certificate_of_the_clients_is_told_with_what_to_change() {
    let Some(server) = TlsServer::start("mutual", &["--tls-auth-clients", "yes"]) else { return };
    assert!(server.process("TLS refused").status().unwrap().success());
}

#[test]
fn r72_a_server_that_wants_a_certificate_gets_one_and_is_trusted_by_another() {
    let Some(server) = TlsServer::start("certified", &["--tls-auth-clients", "yes"]) else { return };
    let store = || RedisStore::new(&server.url()).unwrap();
    works(&store().certificates(&server.certificates()).unwrap());
    // The system trusts no such authority.
    let shows = RedisCertificates::new().client(server.read("server.pem"), server.read("server.key"));
    let failure = store().certificates(&shows).unwrap().perform(&op(StoreCommand::Read)).unwrap_err();
    assert!(failure.detail.contains("hand it to RedisStore::certificates"), "{failure}");
}

#[test]
fn r58_certificates_that_are_none_are_refused_and_a_key_is_not_shown() {
    let folder = Folder::new("none");
    let Some(()) = certify(&folder.0) else { return };
    let read = |file: &str| fs::read(folder.0.join(file)).unwrap();
    let (pem, key) = (read("server.pem"), read("server.key"));
    let right = RedisCertificates::new().client(pem.clone(), key.clone());
    let secret = String::from_utf8(key.clone()).unwrap().lines().nth(1).unwrap().to_owned();
    let none = "there is no certificate";
    for (url, certificates, words) in [
        ("redis://it", &right, "name a rediss:// URL"),
        ("rediss://it", &RedisCertificates::new().authorities(*b"ca.pem"), none),
        ("rediss://it", &RedisCertificates::new().client(key.clone(), pem.clone()), none),
        ("rediss://it", &RedisCertificates::new().client(pem.clone(), pem), "the certificate's own key"),
    ] {
        let error = RedisStore::new(url).unwrap().certificates(certificates).expect_err(words);
        let shown = format!("{error} {error:?} {certificates:?}");
        assert!(shown.contains(words) && !shown.contains(&secret) && !shown.contains(&format!("{key:?}")), "{shown}");
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
