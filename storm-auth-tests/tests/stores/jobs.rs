//! R44, R72: jobs that live for a moment share a token through a folder.

use std::path::Path;
use std::time::{Duration, Instant};

use storm_auth_blocking::core::machine::Activity;
use storm_auth_blocking::{Clock, Credentials, Scope, TokenProvider};
use storm_auth_store::{FileStore, Sealed};
use storm_auth_tests::emulator::Emulator;

use crate::{Folder, URL, process};

const SECRET: &str = "STORM_AUTH_STORES_SECRET";

/// One job: it starts at so many seconds, wants a token, works until nothing is under way behind it, unless it is in a hurry, closes unless it is left open, and ends.
pub(crate) fn play(part: &str, folder: &Path) {
    let (part, closes) = part.strip_suffix(" left open").map_or((part, true), |part| (part, false));
    let (part, hurries) = part.strip_suffix(" in a hurry").map_or((part, !closes), |part| (part, true));
    let clock = Clock::movable();
    clock.advance(Duration::from_secs(part.parse().unwrap()));
    let tokens = TokenProvider::builder()
        .token_url(std::env::var(URL).unwrap())
        .credentials(Credentials::new("shop", std::env::var(SECRET).unwrap()).unwrap())
        .scope(Scope::new("lab").unwrap())
        .clock(clock)
        .store(Sealed::new(FileStore::new(folder).unwrap()))
        .build_tokens()
        .unwrap();
    tokens.token().unwrap();
    while !hurries && tokens.status().keys.iter().any(|key| key.activity != Activity::Idle) {
        std::thread::yield_now();
    }
    if closes {
        tokens.close(Duration::from_secs(10)).unwrap();
    }
}

fn job(at: &str, folder: &Folder, emulator: &Emulator) -> std::process::Child {
    let mut job = process(at, &folder.0);
    job.env(URL, emulator.token_url()).env(SECRET, emulator.client_secret());
    job.spawn().unwrap()
}

fn emulator() -> Emulator {
    Emulator::builder().lifetime(Duration::from_secs(600)).client("shop", "S3cret&1", &["lab"]).start()
}

#[test]
fn r44_r72_jobs_that_start_every_five_seconds_send_one_request_per_lifetime() {
    let (folder, emulator, since) = (Folder::new("jobs"), emulator(), Instant::now());
    for at in (0..1_800).step_by(5) {
        assert!(job(&at.to_string(), &folder, &emulator).wait().unwrap().success(), "the job at {at} s");
        // A refresh is due at 75 % of a life of 600 s. What this test takes itself passes on the jobs' clocks too.
        let (least, most) = (1 + at / 450, 1 + (at + since.elapsed().as_secs() + 1) / 450);
        let requests = emulator.token_requests();
        assert!((least..=most).contains(&requests), "{requests} at {at} s");
    }
}

#[test]
fn r44_r72_jobs_that_end_at_once_start_no_refresh_that_they_do_not_finish() {
    let (folder, emulator, since) = (Folder::new("hurry"), emulator(), Instant::now());
    for at in (0..1_800).step_by(20) {
        assert!(job(&format!("{at} in a hurry"), &folder, &emulator).wait().unwrap().success(), "the job at {at} s");
        let most = 1 + (at + since.elapsed().as_secs() + 1) / 450;
        assert!(emulator.token_requests() <= most, "at {at} s");
        assert_eq!(emulator.token_requests(), emulator.issued(), "each brought its token");
    }
    // Whoever ends before its request went out starts none: the next one is due when the token has ended.
    assert!(emulator.token_requests() >= 3);
}

#[test]
fn r71_r72_a_job_that_does_not_close_leaves_its_token_for_the_next() {
    let (folder, emulator) = (Folder::new("open"), emulator());
    for at in 0..20 {
        assert!(job(&format!("{at} left open"), &folder, &emulator).wait().unwrap().success(), "the job at {at} s");
        assert_eq!(emulator.token_requests(), 1, "the job at {at} s");
    }
}

#[test]
fn r72_jobs_that_start_at_once_send_one_request() {
    let (folder, emulator) = (Folder::new("at-once"), emulator());
    let jobs: Vec<_> = (0..12).map(|_| job("0", &folder, &emulator)).collect();
    for mut job in jobs {
        assert!(job.wait().unwrap().success());
    }
    assert_eq!(emulator.token_requests(), 1);
}
