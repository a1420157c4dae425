//! The stores on real parts: files, processes that are killed and stopped, and Redis: a server, its replica, its sentinels, a cluster.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

mod cluster;
mod failover;
#[cfg(unix)]
mod files;
mod jobs;
mod redis;
mod sealed;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use storm_auth_core::store::{Order, Owner, Record, StoreCommand, StoreOp};
use storm_auth_core::{Credentials, HttpHosts, Key, Scope, TokenUrl, Unix, scope};
use storm_auth_store::FileStore;
use storm_auth_tests::store_conformance;

/// What a process of these tests does, and where.
const PART: &str = "STORM_AUTH_STORES_PART";
const FOLDER: &str = "STORM_AUTH_STORES_FOLDER";
const URL: &str = "STORM_AUTH_STORES_URL";

fn op(command: StoreCommand) -> StoreOp {
    let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default()).unwrap();
    let key = Key::new(url, Credentials::new("shop", "S3cret").unwrap(), Scope::new(scope::LAB).unwrap());
    StoreOp::for_key(&key, "", command)
}

fn lease(owner: u128, ttl: u64) -> StoreOp {
    op(StoreCommand::Lease { owner: Owner(owner), ttl: Duration::from_millis(ttl) })
}

fn publish(owner: Option<u128>, sent: u64) -> StoreOp {
    let order = Order { sent: Unix::from_millis(sent), id: 1 };
    let expires_at = Unix::from(SystemTime::now()) + Duration::from_secs(600);
    let record = Record { order, expires_at, body: vec![b'x'; 2_000].into() };
    op(StoreCommand::Publish { owner: owner.map(Owner), record })
}

/// A folder of one test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("storm-auth-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        Self(folder)
    }

    fn store(&self) -> FileStore {
        FileStore::new(&self.0).unwrap()
    }

    /// A file of the key that these tests use, by what it ends with.
    fn file(&self, ending: &str) -> PathBuf {
        self.0.join(format!("{}.{ending}", op(StoreCommand::Read).record))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Another process, which plays a part.
fn process(part: &str, folder: &Path) -> Command {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "a_part_for_the_other_tests", "--nocapture"]);
    process.env(PART, part).env(FOLDER, folder).stdout(Stdio::piped()).stderr(Stdio::inherit());
    process
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(30), "never: {what}");
        thread::yield_now();
    }
}

/// One that was killed when this is dropped.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does nothing by itself.
#[test]
fn a_part_for_the_other_tests() {
    let Ok(part) = std::env::var(PART) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    match part.as_str() {
        #[cfg(unix)]
        "writes" | "holds" | "umask" | "full" | "forks" | "chmod" | "mount" => files::play(&part, &folder),
        "TLS" | "TLS refused" | "TLS before HTTPS" | "TLS after HTTPS" => redis::play(&part, &folder),
        _ => jobs::play(&part, &folder),
    }
}

#[test]
fn r71_r72_r74_r76_files_keep_to_the_protocol() {
    let folder = Folder::new("conformance");
    store_conformance::check(|| Box::new(folder.store()));
}
