//! The documented limit as a real nginx keeps it, in front of the emulator's token endpoint. Skipped where nginx is not
//! installed, unless `STORM_TESTS_SKIP_NOTHING` is set.

#![allow(clippy::unwrap_used, reason = "helpers of the test stand outside of its function")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod server;

use std::io::Read as _;
use std::time::{Duration, SystemTime};

use storm_auth_blocking::{Credentials, Scope, TokenProvider};
use storm_auth_tests::emulator::{CLIENT_ID, CLIENT_SECRET, Emulator, Limiter, SCOPE};

use crate::server::Nginx;

/// What a client sees of one token request: status, Retry-After, content type, and the length of the body when it is a 429.
fn ask(url: &str) -> (u16, bool, String, Option<usize>) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", CLIENT_ID),
        ("client_secret", CLIENT_SECRET),
        ("scope", SCOPE),
    ];
    let mut answer = agent.post(url).send_form(form).unwrap();
    let mut body = String::new();
    answer.body_mut().as_reader().read_to_string(&mut body).unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let status = answer.status().as_u16();
    (status, answer.headers().contains_key("retry-after"), kind, (status == 429).then_some(body.len()))
}

#[test]
fn r34_a_real_nginx_limits_as_the_emulator_does_and_its_429_closes_the_gate() {
    let behind = Emulator::builder().limiter(Limiter::none()).start();
    let Some(nginx) = Nginx::in_front_of(&behind) else { return };
    let emulator = Emulator::builder().limiter(Limiter::nginx()).start();

    let real: Vec<_> = (0..23).map(|_| ask(&nginx.token_url())).collect();
    let emulated: Vec<_> = (0..23).map(|_| ask(&emulator.token_url())).collect();
    assert_eq!(real, emulated);
    assert_eq!(real.iter().filter(|answer| answer.0 == 200).count(), 21);
    assert_eq!(behind.token_requests(), 21);

    let tokens = TokenProvider::builder()
        .token_url(nginx.token_url())
        .scope(Scope::new(SCOPE).unwrap())
        .credentials(Credentials::new(CLIENT_ID, CLIENT_SECRET).unwrap())
        .build_tokens()
        .unwrap();
    let asked = SystemTime::now();
    for requests_sent in [1, 1] {
        let error = tokens.token_within(Duration::from_secs(5)).unwrap_err();
        assert!(error.is_rate_limited(), "{error}");
        let wait = error.retry_at().unwrap().duration_since(asked).unwrap();
        assert!((14..=26).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(tokens.counters().requests, requests_sent);
    }
    assert_eq!(behind.token_requests(), 21);
}
