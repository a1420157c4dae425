//! The emulator against its specification: the limiter's recorded vectors, the error table, the API's checks, every fault.
//!
//! The client is a plain socket, so that what stands on the wire is seen and nothing is retried behind the test's back.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpStream},
    time::Duration,
};

use storm_auth_tests::emulator::{
    At, Builder, CLIENT_ID, CLIENT_SECRET, Clock, Emulator, Endpoint, Fault, KeySize, Limiter, Verdict,
};

/// 2023-11-14 22:13:20 UTC.
const START: u64 = 1_700_000_000_000;
/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

// The limiter, in virtual time.

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Asks `count` times at `at_ms` and says how many passed, were held, were refused.
fn ask(limiter: &mut Limiter, count: usize, at_ms: u64) -> (usize, usize) {
    let passed = (0..count).filter(|_| limiter.admit(HERE, at_ms) == Verdict::Pass).count();
    (passed, count - passed)
}

/// A limiter whose burst was spent at 0.
fn saturated() -> Limiter {
    let mut limiter = Limiter::nginx();
    assert_eq!(ask(&mut limiter, 21, 0), (21, 0));
    limiter
}

#[test]
fn nginx_lets_21_pass_at_once() {
    assert_eq!(ask(&mut Limiter::nginx(), 23, 0), (21, 2));
}

#[test]
fn nginx_then_lets_one_pass_every_20_s_to_the_millisecond() {
    let mut limiter = saturated();
    let asked = [19_980, 19_999, 20_000, 20_001, 39_999, 40_000].map(|at| limiter.admit(HERE, at));
    use Verdict::{Pass, Reject};
    assert_eq!(asked, [Reject, Reject, Pass, Reject, Reject, Pass]);
}

#[test]
fn nginx_gives_the_burst_back_after_420_s_and_not_a_millisecond_earlier() {
    assert_eq!(ask(&mut saturated(), 22, 420_000), (21, 1));
    assert_eq!(ask(&mut saturated(), 22, 419_999), (20, 2));
}

#[test]
fn nginx_never_refuses_one_every_20_s() {
    let mut limiter = saturated();
    for n in 1..=2_000 {
        assert_eq!(limiter.admit(HERE, n * 20_000), Verdict::Pass, "request {n}");
    }
}

#[test]
fn nginx_refuses_the_81st_of_one_every_15_s() {
    let mut limiter = Limiter::nginx();
    let first = (0..200).find(|n| limiter.admit(HERE, n * 15_000) == Verdict::Reject);
    assert_eq!(first, Some(81));
}

#[test]
fn nginx_without_nodelay_holds_longer_and_longer() {
    let mut limiter = Limiter::nginx_delay();
    let held = [0, 0, 2_010, 4_010, 6_010, 8_020].map(|at| match limiter.admit(HERE, at) {
        Verdict::Pass => 0,
        Verdict::Hold(time) => time.as_millis(),
        Verdict::Reject => panic!("refused at {at}"),
    });
    assert_eq!(held, [0, 20_000, 38_000, 56_000, 74_000, 92_000]);
}

#[test]
fn nginx_without_nodelay_holds_up_to_400_s_and_then_refuses() {
    let mut limiter = Limiter::nginx_delay();
    for k in 0..=20 {
        let expected = if k == 0 { Verdict::Pass } else { Verdict::Hold(Duration::from_secs(k * 20)) };
        assert_eq!(limiter.admit(HERE, 0), expected);
    }
    assert_eq!(limiter.admit(HERE, 0), Verdict::Reject);
}

#[test]
fn no_limiter_lets_everything_pass() {
    assert_eq!(ask(&mut Limiter::none(), 10_000, 0), (10_000, 0));
}

// The limiter, on the socket.

#[test]
fn the_22nd_request_gets_nginx_s_page_on_a_connection_that_stays_open() {
    let emulator = manual().start();
    let mut socket = Socket::connect(&emulator.token_url());
    for _ in 0..21 {
        assert_eq!(socket.token(GOOD).status, 200);
    }
    let refused = socket.token(GOOD);
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("content-type"), Some("text/html"));
    assert_eq!(refused.body.len(), 169);
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(refused.header("connection"), None);

    emulator.clock().advance(Duration::from_millis(19_999));
    assert_eq!(socket.token(GOOD).status, 429);
    emulator.clock().advance(Duration::from_millis(1));
    assert_eq!(socket.token(GOOD).status, 200);

    let counts = emulator.counts();
    assert_eq!((counts.token_requests, counts.admitted, counts.throttled, counts.issued), (24, 22, 2, 22));
    assert_eq!(emulator.connections(Endpoint::Token), 1);
}

#[test]
fn a_request_that_ends_in_400_costs_a_slot() {
    let emulator = manual().start();
    for _ in 0..21 {
        assert_eq!(token(&emulator, "grant_type=password").status, 400);
    }
    assert_eq!(token(&emulator, GOOD).status, 429);
    assert_eq!(emulator.counts().refused, 21);
}

#[test]
fn the_status_of_a_refusal_can_be_nginx_s_default() {
    let emulator = manual().reject_status(503).start();
    for _ in 0..21 {
        token(&emulator, "");
    }
    let refused = token(&emulator, GOOD);
    assert_eq!((refused.status, refused.header("retry-after")), (503, None));
}

#[test]
fn each_kind_of_limiter_refuses_in_its_own_words() {
    for (name, passes, status, retry_after, kind, length) in [
        ("nginx-503", 21, 503, None, Some("text/html"), 197),
        ("nginx-date", 21, 429, Some("Tue, 14 Nov 2023 22:13:40 GMT"), Some("text/html"), 169),
        ("apim", 15, 429, Some("300"), Some("application/json"), 85),
        ("aspnet", 21, 429, Some("420"), Some("text/plain"), 53),
        ("lump", 21, 429, None, None, 0),
    ] {
        let emulator = manual().limiter(Limiter::named(name).unwrap()).start();
        let mut socket = Socket::connect(&emulator.token_url());
        for _ in 0..passes {
            assert_eq!(socket.token(GOOD).status, 200, "{name}");
        }
        let refused = socket.token(GOOD);
        assert_eq!((refused.status, refused.body.len()), (status, length), "{name}");
        assert_eq!((refused.header("retry-after"), refused.header("content-type")), (retry_after, kind), "{name}");
        assert_eq!(emulator.counts().throttled, 1);
    }
}

#[test]
fn a_held_request_is_released_by_the_clock() {
    let emulator = manual().limiter(Limiter::nginx_delay()).start();
    assert_eq!(token(&emulator, GOOD).status, 200);
    let mut held = Socket::connect(&emulator.token_url());
    held.send_token(GOOD);
    assert!(emulator.wait_for(PATIENCE, |counts| counts.held == 1));
    emulator.clock().advance(Duration::from_millis(19_999));
    assert_eq!((emulator.in_flight(Endpoint::Token), emulator.issued()), (1, 1));
    emulator.clock().advance(Duration::from_millis(1));
    assert_eq!(held.receive().status, 200);
    assert_eq!(emulator.issued(), 2);
}

#[test]
fn a_held_request_whose_client_gave_up_has_spent_its_slot() {
    let emulator = manual().limiter(Limiter::nginx_delay()).start();
    assert_eq!(token(&emulator, GOOD).status, 200);
    for _ in 0..2 {
        let held = emulator.counts().held;
        let mut socket = Socket::connect(&emulator.token_url());
        socket.send_token(GOOD);
        assert!(emulator.wait_for(PATIENCE, |counts| counts.held == held + 1));
        drop(socket);
        emulator.clock().advance(Duration::from_secs(2));
    }
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_in_flight == 0 && counts.token_open == 0));
    assert_eq!(emulator.issued(), 1);
    let verdicts: Vec<_> = emulator.recorded(Endpoint::Token).iter().map(|request| request.verdict).collect();
    let hold = |seconds| Verdict::Hold(Duration::from_secs(seconds));
    assert_eq!(verdicts, [Verdict::Pass, hold(20), hold(38)]);
}

// The token endpoint.

#[test]
fn a_good_request_gets_the_recorded_response() {
    let emulator = manual().key_size(KeySize::Rsa4096).lifetime(Duration::from_secs(3_600)).start();
    let response = token(&emulator, GOOD);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("application/json; charset=UTF-8"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("date"), Some("Tue, 14 Nov 2023 22:13:20 GMT"));
    let access_token = response.access_token();
    assert_eq!(access_token.rsplit('.').next().map(str::len), Some(683));
    assert!((1_000..1_100).contains(&access_token.len()), "{}", access_token.len());
    assert_eq!(
        response.text(),
        format!(r#"{{"access_token":"{access_token}","expires_in":3600,"token_type":"Bearer","scope":"playground"}}"#)
    );
}

#[test]
fn the_error_table() {
    let emulator = manual()
        .limiter(Limiter::none())
        .client("shop", "s3cret", &["lab", "qa"])
        .client_without_grant("web", "w")
        .client("off", "o", &["lab"])
        .client(&"i".repeat(101), "s", &["lab"])
        .client("long", &"s".repeat(101), &["lab"])
        .start();
    emulator.set_enabled("off", false);
    let long_scope =
        format!("grant_type=client_credentials&client_id=shop&client_secret=s3cret&scope={}", "lab ".repeat(76));
    let long_id = format!("grant_type=client_credentials&client_id={}&client_secret=s", "i".repeat(101));
    let long_secret = format!("grant_type=client_credentials&client_id=long&client_secret={}", "s".repeat(101));
    for (form, error) in [
        ("grant_type=client_credentials&client_id=nobody&client_secret=s3cret&scope=lab", "invalid_client"),
        ("grant_type=client_credentials&client_id=shop&client_secret=wrong&scope=lab", "invalid_client"),
        ("grant_type=client_credentials&client_id=shop&scope=lab", "invalid_client"),
        ("grant_type=client_credentials&client_id=off&client_secret=o&scope=lab", "invalid_client"),
        (&long_id, "invalid_client"),
        (&long_secret, "invalid_client"),
        ("", "invalid_client"),
        ("client_id=shop&client_secret=s3cret&scope=lab", "unsupported_grant_type"),
        ("grant_type=password&client_id=shop&client_secret=s3cret&scope=lab", "unsupported_grant_type"),
        ("grant_type=client_credentials&client_id=web&client_secret=w&scope=lab", "unauthorized_client"),
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret&scope=prod", "invalid_scope"),
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret&scope=lab+prod", "invalid_scope"),
        (&long_scope, "invalid_scope"),
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret&scope=lab&scope=qa", "invalid_request"),
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret&client_secret=s3cret", "invalid_request"),
    ] {
        let response = token(&emulator, form);
        assert_eq!((response.status, response.text()), (400, format!(r#"{{"error":"{error}"}}"#)), "{form}");
        assert_eq!(response.header("cache-control"), Some("no-store"));
    }
    for (form, scope) in [
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret&scope=qa", "qa"),
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret&scope=qa+lab", "qa lab"),
        ("grant_type=client_credentials&client_id=shop&client_secret=%733cret&scope=lab%20lab", "lab"),
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret", "lab qa"),
        ("grant_type=client_credentials&client_id=shop&client_secret=s3cret&scope=", "lab qa"),
    ] {
        let response = token(&emulator, form);
        assert_eq!((response.status, response.json()["scope"].as_str()), (200, Some(scope)), "{form}");
    }
    assert_eq!((emulator.counts().refused, emulator.issued()), (15, 5));
}

#[test]
fn only_a_posted_form_is_a_token_request() {
    let emulator = manual().limiter(Limiter::none()).start();
    let mut socket = Socket::connect(&emulator.token_url());
    let path = "/identity/1.0/connect/token";
    for (method, content_type) in [
        ("GET", FORM),
        ("PUT", FORM),
        ("POST", "application/json"),
        ("POST", "application/x-www-form-urlencoded-not"),
        ("POST", ""),
    ] {
        socket.send(method, path, &[("content-type", content_type)], GOOD);
        let response = socket.receive();
        assert_eq!(
            (response.status, response.text().as_str()),
            (400, r#"{"error":"invalid_request"}"#),
            "{method} {content_type}"
        );
    }
    for content_type in ["Application/X-WWW-Form-Urlencoded", "application/x-www-form-urlencoded; charset=utf-8"] {
        socket.send("POST", path, &[("content-type", content_type)], GOOD);
        assert_eq!(socket.receive().status, 200, "{content_type}");
    }
    socket.send("POST", "/connect/token", &[("content-type", FORM)], GOOD);
    assert_eq!(socket.receive().status, 404);
    socket.send("POST", path, &[("content-type", FORM)], &"a".repeat(65_537));
    assert_eq!(socket.receive().status, 413);
    assert_eq!(emulator.token_requests(), 9);
}

#[test]
fn no_two_tokens_are_the_same_and_all_are_good() {
    let emulator = manual().start();
    let tokens: Vec<_> = (0..5).map(|_| token(&emulator, GOOD).access_token()).collect();
    for (n, one) in tokens.iter().enumerate() {
        assert!(!tokens[..n].contains(one));
        assert_eq!(api(&emulator, Some(one)).status, 200);
    }
}

#[test]
fn a_response_can_come_in_chunks() {
    let emulator = manual().chunked(true).start();
    let response = token(&emulator, GOOD);
    assert_eq!((response.status, response.header("transfer-encoding")), (200, Some("chunked")));
    assert_eq!(response.header("content-length"), None);
    assert!(response.text().contains(r#""expires_in":600"#));
}

#[test]
fn a_rotated_secret_is_the_only_good_one() {
    let emulator = manual().start();
    let old = token(&emulator, GOOD).access_token();
    emulator.rotate_secret(CLIENT_ID, "another");
    assert_eq!(emulator.client_secret(), "another");
    assert_eq!(token(&emulator, GOOD).text(), r#"{"error":"invalid_client"}"#);
    let rotated = GOOD.replace(CLIENT_SECRET, "another");
    assert_eq!(token(&emulator, &rotated).status, 200);
    assert_eq!(api(&emulator, Some(&old)).status, 200);
}

#[test]
fn requests_are_recorded_as_they_came() {
    let emulator = manual().start();
    emulator.clock().advance(Duration::from_millis(1_234));
    token(&emulator, GOOD);
    let [request] = &emulator.recorded(Endpoint::Token)[..] else { panic!("one request was sent") };
    assert_eq!((request.method.as_str(), request.uri.path()), ("POST", "/identity/1.0/connect/token"));
    assert_eq!(request.headers["content-type"], FORM);
    assert_eq!((&request.body[..], request.body_length), (GOOD.as_bytes(), GOOD.len() as u64));
    assert_eq!((request.at_ms, request.verdict), (START + 1_234, Verdict::Pass));
}

#[test]
fn a_count_that_is_another_one_is_told_with_what_came_and_without_secrets() {
    let emulator = manual().start();
    emulator.assert_token_requests(0);
    token(&emulator, GOOD);
    emulator.clock().advance(Duration::from_millis(1_500));
    token(&emulator, "grant_type=client_credentials&client_id=erp&client_secret=0ther");
    emulator.assert_token_requests(2);
    let told = |claim: &dyn Fn(&Emulator)| {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(&emulator))).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    };
    assert_eq!(
        told(&|emulator| emulator.assert_token_requests(1)),
        "1 token requests were expected, and 2 came\n\
         1. at 0 ms: POST /identity/1.0/connect/token, client_id \"storm-auth\", scope \"playground\"\n\
         2. at 1500 ms: POST /identity/1.0/connect/token, client_id \"erp\""
    );
    assert!(told(&|emulator| emulator.assert_api_requests(1)).starts_with("1 API requests were expected, and 0 came"));
}

#[test]
fn debug_shows_no_credentials() {
    let emulator = manual().start();
    let access_token = token(&emulator, GOOD).access_token();
    api(&emulator, Some(&access_token));
    let shown = format!(
        "{:?} {emulator:?} {:?} {:?}",
        Emulator::builder().client("shop", CLIENT_SECRET, &["lab"]),
        emulator.recorded(Endpoint::Token),
        emulator.recorded(Endpoint::Api),
    );
    assert!(!shown.contains(CLIENT_SECRET) && !shown.contains(&access_token[..40]), "{shown}");
}

// The API.

#[test]
fn the_api_echoes_an_authenticated_request() {
    let emulator = manual().start();
    let bearer = format!("Bearer {}", token(&emulator, GOOD).access_token());
    let mut socket = Socket::connect(&emulator.api_url());
    let path = "/commerce/product/1.1/products?top=2";
    for (count, header) in [(1, "ApplicationId"), (2, "applicationid"), (3, "application-id")] {
        socket.send("POST", path, &[("authorization", &bearer), (header, "1042")], "hello");
        let response = socket.receive();
        assert_eq!((response.status, response.header("content-type")), (200, Some("application/json; charset=utf-8")));
        assert_eq!(
            response.json(),
            serde_json::json!({
                "method": "POST", "path": "/commerce/product/1.1/products", "query": "top=2",
                "applicationId": 1042, "bodyLength": 5, "count": count,
            })
        );
    }
}

#[test]
fn a_request_without_an_application_id_gets_500() {
    let emulator = manual().start();
    let bearer = format!("Bearer {}", token(&emulator, GOOD).access_token());
    let mut socket = Socket::connect(&emulator.api_url());
    for headers in [&[("authorization", bearer.as_str())][..], &[("authorization", &bearer), ("applicationid", "+1")]] {
        socket.send("GET", "/", headers, "");
        assert_eq!(socket.receive().status, 500);
    }
    assert_eq!(emulator.counts().authenticated, 2);
}

#[test]
fn a_request_without_a_token_is_challenged_without_an_error() {
    let emulator = manual().start();
    let mut socket = Socket::connect(&emulator.api_url());
    for headers in [&[("applicationid", "1")][..], &[("authorization", "Bearer ")], &[("authorization", "Basic YTpi")]]
    {
        socket.send("GET", "/", headers, "");
        let response = socket.receive();
        assert_eq!((response.status, response.body.len()), (401, 0));
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!((emulator.counts().unauthenticated, emulator.api_requests()), (3, 3));
}

#[test]
fn a_token_expires_to_the_millisecond() {
    let emulator = manual().start();
    let access_token = token(&emulator, GOOD).access_token();
    emulator.clock().advance(Duration::from_millis(599_999));
    assert_eq!(api(&emulator, Some(&access_token)).status, 200);
    emulator.clock().advance(Duration::from_millis(1));
    let response = api(&emulator, Some(&access_token));
    assert_eq!((response.status, response.body.len()), (401, 0));
    let expected = r#"Bearer error="invalid_token", error_description="The token expired at '11/14/2023 22:23:20'""#;
    assert_eq!(response.header("www-authenticate"), Some(expected));
}

#[test]
fn leeway_is_at_most_300_s() {
    let emulator = manual().leeway(Duration::from_secs(301)).start();
    let access_token = token(&emulator, GOOD).access_token();
    emulator.clock().advance(Duration::from_millis(899_999));
    assert_eq!(api(&emulator, Some(&access_token)).status, 200);
    emulator.clock().advance(Duration::from_millis(1));
    assert_eq!(api(&emulator, Some(&access_token)).status, 401);
}

#[test]
fn a_token_lives_at_least_as_long_as_it_was_said_to() {
    let emulator = manual().lifetime(Duration::from_secs(2)).start();
    emulator.clock().advance(Duration::from_millis(999));
    let access_token = token(&emulator, GOOD).access_token();
    emulator.clock().advance(Duration::from_millis(1_999));
    assert_eq!(api(&emulator, Some(&access_token)).status, 200);
    emulator.set_lifetime(Duration::ZERO);
    assert!(token(&emulator, GOOD).text().contains(r#""expires_in":0,"#));
}

#[test]
fn revoked_and_foreign_tokens_are_invalid() {
    let (emulator, other) = (manual().start(), manual().start());
    let [one, two, three] = [(); 3].map(|()| token(&emulator, GOOD).access_token());
    let invalid = |token: &str, why: &str| {
        let response = api(&emulator, Some(token));
        assert_eq!(response.status, 401);
        let challenge = response.header("www-authenticate").unwrap();
        assert!(challenge.starts_with(r#"Bearer error="invalid_token""#) && challenge.contains(why), "{challenge}");
    };

    assert!(emulator.revoke(&one));
    invalid(&one, "");
    assert_eq!(api(&emulator, Some(&two)).status, 200);
    emulator.revoke_all();
    invalid(&two, "");
    invalid(&three, "");
    let fresh = token(&emulator, GOOD).access_token();
    assert_eq!(api(&emulator, Some(&fresh)).status, 200);

    // A token of another issuer, though the process's key signed it; one whose signature is another's; no token at all.
    let foreign = token(&other, GOOD).access_token();
    assert!(!emulator.revoke(&foreign));
    invalid(&foreign, "The issuer");
    let (signed, _) = fresh.rsplit_once('.').unwrap();
    let (_, signature) = three.rsplit_once('.').unwrap();
    invalid(&format!("{signed}.{signature}"), "The signature is invalid");
    assert!(!emulator.revoke("opaque"));
    invalid("opaque", "");
}

// Faults.

#[test]
fn an_answer_stands_until_it_is_healed_and_counted_ones_come_first() {
    let emulator = manual().start();
    emulator.fail(Endpoint::Token, Fault::status(500));
    emulator.fail_next(Endpoint::Token, 2, Fault::html(502));
    emulator.fail_next(Endpoint::Token, 1, Fault::answer(503, &[("retry-after", "7")], "later"));
    assert_eq!(token(&emulator, GOOD).status, 502);
    let page = token(&emulator, GOOD);
    assert_eq!((page.status, page.header("content-type")), (502, Some("text/html")));
    assert!(page.text().contains("<h1>502 Bad Gateway</h1>"));
    let later = token(&emulator, GOOD);
    assert_eq!((later.status, later.header("retry-after"), later.text().as_str()), (503, Some("7"), "later"));
    assert_eq!((token(&emulator, GOOD).status, token(&emulator, GOOD).status), (500, 500));
    emulator.heal(Endpoint::Token);
    assert_eq!(token(&emulator, GOOD).status, 200);
    assert_eq!((emulator.token_requests(), emulator.issued()), (6, 1));
}

#[test]
fn a_request_that_the_limiter_refuses_meets_no_fault() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 22, Fault::status(500));
    for _ in 0..21 {
        assert_eq!(token(&emulator, GOOD).status, 500);
    }
    assert_eq!(token(&emulator, GOOD).status, 429);
    emulator.clock().advance(Duration::from_secs(40));
    assert_eq!((token(&emulator, GOOD).status, token(&emulator, GOOD).status), (500, 200));
}

#[test]
fn a_request_that_was_counted_has_its_fault_though_its_body_never_comes() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 1, Fault::status(500));
    let mut socket = Socket::connect(&emulator.token_url());
    socket.stream.write_all(b"POST /1.0/connect/token HTTP/1.1\r\nHost: it\r\nContent-Length: 9\r\n\r\n").unwrap();
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests == 1));
    assert_eq!(token(&emulator, GOOD).status, 200);
}

#[test]
fn redirects_challenges_and_odd_bodies() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 1, Fault::redirect(307, "http://127.0.0.1:1/elsewhere"));
    let moved = token(&emulator, GOOD);
    assert_eq!((moved.status, moved.header("location")), (307, Some("http://127.0.0.1:1/elsewhere")));

    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, "[1,2"));
    assert_eq!(token(&emulator, GOOD).text(), "[1,2");

    emulator.fail_next(Endpoint::Token, 1, Fault::ExpiresIn(r#""3599.5""#.into()));
    let odd = token(&emulator, GOOD);
    assert_eq!(odd.json()["expires_in"], "3599.5");

    emulator.fail_next(Endpoint::Token, 1, Fault::Encoded);
    assert_eq!(token(&emulator, GOOD).header("content-encoding"), Some("gzip"));

    emulator.fail_next(Endpoint::Api, 1, Fault::unauthorized(r#"Bearer error="insufficient_scope""#));
    let bearer = odd.access_token();
    let refused = api(&emulator, Some(&bearer));
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, Some(r#"Bearer error="insufficient_scope""#))
    );
    assert_eq!(api(&emulator, Some(&bearer)).status, 200);
}

#[test]
fn a_delayed_token_is_old_when_it_arrives_and_a_later_fault_strikes_later() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Delay(Duration::from_secs(500)));
    let mut delayed = Socket::connect(&emulator.token_url());
    delayed.send_token(GOOD);
    assert!(emulator.wait_for(PATIENCE, |counts| counts.issued == 1));
    emulator.clock().advance(Duration::from_secs(500));
    let access_token = delayed.receive().access_token();
    emulator.clock().advance(Duration::from_secs(100));
    assert_eq!(api(&emulator, Some(&access_token)).status, 401);

    emulator.fail_next(Endpoint::Token, 1, Fault::status(500).after(Duration::from_secs(5)));
    delayed.send_token(GOOD);
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests == 2));
    emulator.clock().advance(Duration::from_millis(4_999));
    assert_eq!(emulator.in_flight(Endpoint::Token), 1);
    emulator.clock().advance(Duration::from_millis(1));
    assert_eq!(delayed.receive().status, 500);
}

#[test]
fn a_stalled_response_stays_away_while_others_are_answered() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Stall(At::Headers));
    let mut silent = Socket::connect(&emulator.token_url());
    silent.send_token(GOOD);
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests == 1));
    // The stalled request took its fault before the emulator's only thread could read another one.
    while emulator.recorded(Endpoint::Token).is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(token(&emulator, GOOD).status, 200);
    emulator.clock().advance(Duration::from_secs(100_000));
    assert_eq!(silent.next(), Next::Silence);
    assert_eq!((emulator.in_flight(Endpoint::Token), emulator.issued()), (1, 1));
}

#[test]
fn a_body_can_stall_or_break_off_half_way() {
    let emulator = manual().limiter(Limiter::none()).start();
    for (fault, end) in [(Fault::Stall(At::Body), Next::Silence), (Fault::Reset(At::Body), Next::Reset)] {
        for (form, status) in [("grant_type=nothing", 400), (GOOD, 200)] {
            emulator.fail_next(Endpoint::Token, 1, fault.clone());
            let mut socket = Socket::connect(&emulator.token_url());
            socket.send_token(form);
            let (head, announced) = socket.head();
            assert_eq!(head.status, status);
            socket.take(announced.unwrap() / 2);
            assert_eq!(if end == Next::Silence { socket.next() } else { socket.end() }, end);
        }
    }
    // An empty body stalls too.
    emulator.fail_next(Endpoint::Api, 1, Fault::Stall(At::Body));
    let mut socket = Socket::connect(&emulator.api_url());
    socket.send("GET", "/", &[], "");
    assert_eq!(socket.head().0.status, 401);
    assert_eq!(socket.next(), Next::Silence);
}

#[test]
fn a_reset_is_a_reset_and_no_end_of_file() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Reset(At::Headers));
    let mut socket = Socket::connect(&emulator.token_url());
    socket.send_token(GOOD);
    assert_eq!(socket.end(), Next::Reset);
    assert_eq!((emulator.token_requests(), emulator.issued()), (1, 0));
    assert_eq!(token(&emulator, GOOD).status, 200);
}

#[test]
fn an_outage_takes_no_request_and_ends_standing_connections() {
    let emulator = manual().start();
    let mut standing = Socket::connect(&emulator.token_url());
    assert_eq!(standing.token(GOOD).status, 200);
    emulator.fail(Endpoint::Token, Fault::Outage);
    standing.send_token(GOOD);
    assert_eq!(standing.end(), Next::Reset);
    let seen = emulator.token_requests();
    for _ in 0..3 {
        let mut socket = Socket::connect(&emulator.token_url());
        assert_eq!(socket.end(), Next::Reset);
    }
    assert_eq!(emulator.token_requests(), seen);
    assert_eq!(api(&emulator, None).status, 401);
    emulator.heal(Endpoint::Token);
    assert_eq!(token(&emulator, GOOD).status, 200);
}

#[test]
fn an_oversize_body_does_not_end() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Oversize);
    let mut socket = Socket::connect(&emulator.token_url());
    socket.send_token(GOOD);
    assert_eq!(socket.head().0.status, 200);
    socket.take(4 * 1_024 * 1_024);
}

#[test]
fn a_dripping_body_comes_a_byte_at_a_time() {
    let emulator = manual().start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Drip(Duration::from_secs(1)));
    let mut socket = Socket::connect(&emulator.token_url());
    socket.send_token("grant_type=nothing");
    let (head, announced) = socket.head();
    assert_eq!((head.status, announced), (400, Some(26)));
    for _ in 0..25 {
        socket.take(1);
        assert_eq!(socket.buffer, b"");
        emulator.clock().advance(Duration::from_secs(1));
    }
    socket.take(1);
}

// Its life.

#[test]
fn a_dropped_emulator_refuses_connections_and_closes_those_it_had() {
    let emulator = Emulator::builder().client("leaver", "x", &["lab"]).start();
    let (token_url, api_url) = (emulator.token_url(), emulator.api_url());
    emulator.fail(Endpoint::Token, Fault::Stall(At::Headers));
    let mut stalled = Socket::connect(&token_url);
    stalled.send_token("");
    let idle = Socket::connect(&api_url);
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests == 1));
    drop(emulator);
    assert_ne!(stalled.next(), Next::Silence);
    drop(idle);
    for url in [token_url, api_url] {
        assert_eq!(TcpStream::connect(address(&url)).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn it_runs_from_inside_a_runtime_and_many_run_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let emulators: Vec<_> = (0..8).map(|_| manual().start()).collect();
        for emulator in &emulators {
            assert_eq!(token(emulator, GOOD).status, 200);
        }
    });
}

#[test]
fn whoever_waits_in_a_runtime_does_not_block_it() {
    fn shared_between_threads<T: Send + Sync>(_: &T) {}
    let emulator = manual().start();
    shared_between_threads(&emulator);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let url = emulator.token_url();
        let client = std::thread::spawn(move || Socket::connect(&url).token(GOOD).status);
        emulator.when(|counts| counts.issued == 1).await;
        assert_eq!(client.join().unwrap(), 200);
    });
    assert!(!emulator.wait_for(Duration::from_millis(1), |counts| counts.issued == 2));
}

#[test]
fn the_program_prints_what_a_client_needs() {
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_emulator"));
    let arguments =
        "--port 0 --api-port=0 --key-bits 2048 --ttl 60 --limiter none --client-secret it's --scope lab --scope qa";
    let mut child = program().args(arguments.split(' ')).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut printed = |name: &str| {
        let line = lines.next().unwrap().unwrap();
        line.strip_prefix(&format!("export {name}=")).unwrap_or_else(|| panic!("{line}")).trim_matches('\'').to_owned()
    };
    let token_url = printed("STORM_TOKEN_URL");
    assert!(printed("STORM_API_URL").starts_with("http://127.0.0.1:"));
    assert_eq!(printed("STORM_CLIENT_ID"), "storm-auth");
    assert_eq!(printed("STORM_CLIENT_SECRET"), r"it'\''s");
    assert_eq!(printed("STORM_SCOPE"), "lab qa");
    assert_eq!(printed("STORM_APPLICATION_ID"), "1042");
    let response =
        Socket::connect(&token_url).token(&GOOD.replace(CLIENT_SECRET, "it%27s").replace("playground", "qa"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((response.status, response.json()["expires_in"].as_u64()), (200, Some(60)));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("--port={}", taken.local_addr().unwrap().port());
    for (wrong, message) in [
        ("--limiter=bucket", "nginx-delay"),
        ("--port=99999", "99999"),
        ("--what", "--what"),
        (taken.as_str(), "give other ports with --port and --api-port"),
    ] {
        let output = program().arg(wrong).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(String::from_utf8_lossy(&output.stderr).contains(message), "{output:?}");
    }
    assert!(String::from_utf8_lossy(&program().arg("--help").output().unwrap().stdout).contains("--ttl <seconds>"));
}

#[test]
fn a_taken_port_is_an_error() {
    let emulator = manual().start();
    let port = address(&emulator.api_url()).rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(Emulator::builder().token_port(port).try_start().unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn the_system_clock_runs_and_can_be_moved() {
    let emulator = Emulator::start();
    let access_token = token(&emulator, GOOD).access_token();
    assert_eq!(api(&emulator, Some(&access_token)).status, 200);
    emulator.clock().advance(Duration::from_secs(601));
    assert_eq!(api(&emulator, Some(&access_token)).status, 401);
}

#[test]
fn another_http_client_agrees() {
    let emulator = Emulator::start();
    let mut response = ureq::post(emulator.token_url()).content_type(FORM).send(GOOD).unwrap();
    let body: serde_json::Value = serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap();
    let bearer = format!("Bearer {}", body["access_token"].as_str().unwrap());
    let url = format!("{}/commerce/order/1.1/orders", emulator.api_url());
    let response = ureq::get(url).header("authorization", bearer).header("ApplicationId", "1042").call().unwrap();
    assert_eq!(response.status(), 200);
}

// The client.

const FORM: &str = "application/x-www-form-urlencoded";
const GOOD: &str = "grant_type=client_credentials&client_id=storm-auth&client_secret=emulated-secret&scope=playground";

fn manual() -> Builder {
    Emulator::builder().clock(Clock::manual(START))
}

/// One token request on a connection of its own.
fn token(emulator: &Emulator, form: &str) -> Response {
    Socket::connect(&emulator.token_url()).token(form)
}

/// One API request on a connection of its own.
fn api(emulator: &Emulator, token: Option<&str>) -> Response {
    let mut socket = Socket::connect(&emulator.api_url());
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("ApplicationId", "1042")];
    headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
    socket.send("GET", "/commerce/product/1.1/products", &headers, "");
    socket.receive()
}

fn address(url: &str) -> &str {
    url.trim_start_matches("http://").split('/').next().unwrap()
}

struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn access_token(&self) -> String {
        self.json()["access_token"].as_str().unwrap().to_owned()
    }
}

/// What a read finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Silence,
    Data,
    End,
    Reset,
}

struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Socket {
    fn connect(url: &str) -> Self {
        let stream = TcpStream::connect(address(url)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    fn token(&mut self, form: &str) -> Response {
        self.send_token(form);
        self.receive()
    }

    fn send_token(&mut self, form: &str) {
        self.send("POST", "/identity/1.0/connect/token", &[("content-type", FORM)], form);
    }

    fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: emulator\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        request.push_str("\r\n");
        request.push_str(body);
        // A peer that resets shows it when it is read from.
        let _ = self.stream.write_all(request.as_bytes());
    }

    /// A whole response.
    fn receive(&mut self) -> Response {
        let (mut head, length) = self.head();
        match length {
            Some(length) => {
                self.fill(length);
                head.body = self.buffer.drain(..length).collect();
            }
            None => loop {
                let line = self.line();
                let size = usize::from_str_radix(&line, 16).unwrap();
                self.fill(size + 2);
                head.body.extend(self.buffer.drain(..size));
                self.buffer.drain(..2);
                if size == 0 {
                    break;
                }
            },
        }
        head
    }

    /// A response's head, and its content length.
    fn head(&mut self) -> (Response, Option<usize>) {
        let status = self.line().split(' ').nth(1).unwrap().parse().unwrap();
        let mut head = Response { status, headers: Vec::new(), body: Vec::new() };
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { break };
            head.headers.push((name.to_owned(), value.to_owned()));
        }
        let length = head.header("content-length").map(|length| length.parse().unwrap());
        (head, length)
    }

    /// Takes `length` bytes of a body.
    fn take(&mut self, length: usize) {
        self.fill(length);
        self.buffer.drain(..length);
    }

    /// What comes after what was taken. Silence can only be told in real time: 50 ms of it.
    fn next(&mut self) -> Next {
        self.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let next = self.read(&mut [0]);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match next {
            Ok(0) => Next::End,
            Ok(_) => Next::Data,
            Err(_) if !self.buffer.is_empty() => Next::Data,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Next::Reset,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Next::Silence,
            Err(error) => panic!("{error}"),
        }
    }

    /// How the connection ends, with all the time it needs.
    fn end(&mut self) -> Next {
        match self.read(&mut [0]) {
            Ok(0) => Next::End,
            Ok(_) => Next::Data,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Next::Reset,
            Err(error) => panic!("{error}"),
        }
    }

    fn line(&mut self) -> String {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8(self.buffer[..searched + end].to_vec()).unwrap();
                self.buffer.drain(..searched + end + 2);
                return line;
            }
            searched = self.buffer.len().saturating_sub(1);
            let wanted = self.buffer.len() + 1;
            self.fill(wanted);
        }
    }

    /// Reads once, also when a signal comes between: that of the child process which another test waits for.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn fill(&mut self, length: usize) {
        let mut chunk = [0; 16 * 1_024];
        while self.buffer.len() < length {
            let count = self.read(&mut chunk).unwrap();
            assert!(count > 0, "the connection ended");
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }
}
