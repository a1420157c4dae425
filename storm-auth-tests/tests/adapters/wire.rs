//! Bytes that no server should send: a scripted peer says them, and each ends in a token or in an error of its type, at the cost
//! of one request, with nothing left behind.

use std::{fmt, time::Duration};

use http::Method;
use storm_auth_core::{AcquireError, Cause, Credentials, FailureKind, Scope, Settings};
use storm_auth_tests::emulator::Emulator;

use crate::{
    face::{Adapter, Failed, Payload, Setup, get, pass, request, until},
    peers::{Elsewhere, Scripted, Step, granting, say},
};

both!(
    r16_what_a_peer_says_ends_in_a_token_or_an_error_of_its_type,
    r46_r47_silence_at_any_point_ends_by_the_patience_and_leaves_nothing,
    r47_patience_doubles_while_requests_stay_silent_and_falls_back_after_an_answer,
    r10_what_never_ends_is_cut,
    r45_no_redirect_of_the_api_takes_the_bearer_along,
    r56_a_get_may_be_repeated_and_a_post_is_not,
);

/// What may come of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Token,
    /// The connection or the protocol broke.
    Broken,
    /// An answer without a usable token.
    Unusable,
    Configuration,
    Throttled,
}

use End::{Broken, Configuration, Throttled, Token, Unusable};

fn end(result: &Result<storm_auth_core::Token, Failed>) -> End {
    match result {
        Ok(_) => Token,
        Err(error) => match &error.acquire {
            Some(AcquireError::Unavailable { cause: Cause::Failed(failure), .. }) => {
                assert_eq!(failure.kind, FailureKind::Io, "{error:?}");
                Broken
            }
            Some(AcquireError::Unavailable { .. }) => Unusable,
            Some(AcquireError::Configuration { .. }) => Configuration,
            Some(AcquireError::RateLimited { .. }) => Throttled,
            _ => panic!("{error:?}"),
        },
    }
}

fn settings(peer: &Scripted) -> Settings {
    Settings::new()
        .token_url(format!("{}/token", peer.url()))
        .api_url(peer.url())
        .scope(Scope::server_default())
        .credentials(Credentials::new("shop", "S3cret").unwrap())
}

/// One token request of a new provider. Whatever came of it, its counters add up, and its connection is closed.
fn ask<A: Adapter>(what: &impl fmt::Debug, script: Vec<Step>) -> End {
    let peer = Scripted::start([script]);
    let tokens = Setup::<A>::new(settings(&peer)).tokens();
    // A throttled one does not wait.
    let result = A::token_within(&tokens, Duration::from_secs(15));
    let end = end(&result);
    let counters = A::counters(&tokens);
    let ends = [counters.granted, counters.broken, counters.unusable, counters.refused, counters.throttled];
    let expected = [Token, Broken, Unusable, Configuration, Throttled].map(|each| u64::from(each == end));
    assert_eq!(ends, expected, "{what:?}: {result:?} {counters:?}");
    assert_eq!((counters.requests, A::status(&tokens).waiters), (1, 0), "{what:?}: {counters:?}");
    until("the connection is closed", || peer.over() == 1);
    assert_eq!(peer.connections(), 1, "{what:?}");
    end
}

/// Hears a request and says this, and then waits until the other side has closed.
fn told(text: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Hear, say(text)]
}

/// The same, and closes.
fn told_and_closed(text: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Hear, say(text), Step::Close]
}

fn r16_what_a_peer_says_ends_in_a_token_or_an_error_of_its_type<A: Adapter>() {
    let token = granting("abc");
    let length = token.len();
    let ok = |head: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\n{token}");
    let whole = |head: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{head}\r\n{token}");
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    let chunk = format!("{length:x}\r\n{token}\r\n");
    let many = |count: usize| (0..count).map(|at| format!("x-{at}: y\r\n")).collect::<String>();
    let repeated = |text: &str, count: usize| text.repeat(count);
    let mut wrong = Vec::new();
    let mut check = |what: String, script: Vec<Step>, may: &[End]| {
        let end = ask::<A>(&what, script);
        if !may.contains(&end) {
            wrong.push(format!("{end:?} and none of {may:?}: {what}"));
        }
    };
    let cut = |text: &str| text.chars().take(160).collect::<String>();

    // Lengths that lie or contradict each other.
    check("too long".into(), told_and_closed(ok(&format!("content-length: {}\r\n", length + 9))), &[Broken]);
    check("too short".into(), told(ok(&format!("content-length: {}\r\n", length - 9))), &[Unusable]);
    check("none".into(), told(ok("content-length: 0\r\n")), &[Unusable]);
    for lie in ["-1", "+10", "1 0", "0x10", "", "99999999999999999999", "ten", "1,2"] {
        let text = ok(&format!("content-length: {lie}\r\n"));
        check(text.clone(), told_and_closed(text), &[Broken]);
    }
    let two = |one: usize, other: usize| ok(&format!("content-length: {one}\r\ncontent-length: {other}\r\n"));
    check("two lengths".into(), told_and_closed(two(length, length - 1)), &[Broken]);
    check("two lengths".into(), told_and_closed(two(length - 1, length)), &[Broken]);
    check("the same length twice".into(), told(two(length, length)), &[Token, Broken]);
    let beside = format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n");
    check("a length beside chunks".into(), told(beside), &[Token, Broken]);

    // Chunks.
    check("chunks".into(), told(chunked(&format!("{chunk}0\r\n\r\n"))), &[Token]);
    check("a trailer".into(), told(chunked(&format!("{chunk}0\r\nx: y\r\n\r\n"))), &[Token]);
    for bad in ["xyz\r\n", "-1\r\n", "\r\n", "ffffffffffffffffff\r\n", "5 5\r\nabcde\r\n", "1\r\nabc\r\n0\r\n\r\n"] {
        check(format!("chunk {bad:?}"), told_and_closed(chunked(bad)), &[Broken]);
    }
    check("a trailer that is cut".into(), told_and_closed(chunked(&format!("{chunk}0\r\nx: "))), &[Token, Broken]);
    check(
        "trailers that are cut".into(),
        told_and_closed(chunked(&format!("{chunk}0\r\nx: y\r\nx: "))),
        &[Token, Broken],
    );
    check("no end behind the last chunk".into(), told_and_closed(chunked(&format!("{chunk}0\r\n"))), &[Token, Broken]);
    check("no last chunk".into(), told_and_closed(chunked(&chunk)), &[Broken]);
    check("no chunk".into(), told_and_closed(chunked("")), &[Broken]);
    let odd = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n{chunk}0\r\n\r\n");
    check(odd.clone(), told_and_closed(odd), &[Token, Broken, Unusable]);

    // Encodings that nobody asked for.
    for coding in ["gzip", "br", "deflate", "zstd", "x-gzip", "gzip, identity", "nonsense"] {
        let bytes = [whole(&format!("content-encoding: {coding}\r\n")).as_bytes(), b""].concat();
        check(format!("{coding} that is none"), told(bytes), &[Unusable]);
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: {}\r\n\r\n", GZIPPED.len());
        check(format!("{coding} of gzip's bytes"), told([head.as_bytes(), GZIPPED].concat()), &[Unusable]);
    }
    check("identity".into(), told(whole("content-encoding: identity\r\n")), &[Token]);

    // Heads.
    for line in ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.0 200 OK", "HTTP/1.1 200 \u{e5}", "HTTP/1.1 201 Created"] {
        let text = whole("").replacen("HTTP/1.1 200 OK", line, 1);
        check(line.into(), told(text), if line.is_ascii() { &[Token] } else { &[Token, Broken] });
    }
    check("1.0 to its end".into(), told_and_closed(ok("").replacen("1.1", "1.0", 1)), &[Token]);
    check("1.1 to its end".into(), told_and_closed(ok("")), &[Token]);
    check("half-closed".into(), vec![Step::Hear, say(ok("")), Step::HalfClose], &[Token]);
    let twice =
        "content-type: text/html\r\ncontent-type: application/json\r\ndate: x\r\ndate: y\r\nset-cookie: a=b\r\n";
    check("headers twice".into(), told(whole(&repeated(twice, 3))), &[Token]);
    check("sixty headers".into(), told(whole(&many(60))), &[Token]);
    for head in [many(5_000), format!("x: {}\r\n", "y".repeat(1 << 20)), repeated("x: y\r\n", 50_000)] {
        check(format!("{} bytes of head", head.len()), told(whole(&head)), &[Broken]);
    }
    for head in ["no colon\r\n", ": nameless\r\n", "two words: x\r\n", "x: \0\r\n", "x\r\n y: z\r\n", "\u{e5}: x\r\n"] {
        check(format!("{head:?}"), told_and_closed(whole(head)), &[Broken]);
    }
    check("a folded line".into(), told_and_closed(whole("x: y\r\n z\r\n")), &[Token, Broken]);
    check("bare line feeds".into(), told_and_closed(whole("").replace("\r\n", "\n")), &[Token, Broken]);
    check("an empty line first".into(), told_and_closed(format!("\r\n{}", whole(""))), &[Token, Broken]);

    // Interim answers.
    // A 100 has no headers; who sends some need not be understood.
    let odd = format!("HTTP/1.1 100 Continue\r\nx: y\r\n\r\n{}", whole(""));
    check("100 with a header".into(), told(odd), &[Token, Broken]);
    for interim in ["100 Continue", "102 Processing\r\nx: y", "103 Early Hints\r\nx: y", "110 Unheard-Of", "199 x"] {
        let text = format!("HTTP/1.1 {interim}\r\n\r\n");
        check(interim.into(), told([text.clone(), whole("")].concat()), &[Token]);
        check(format!("{interim}, forty of them"), told([repeated(&text, 40), whole("")].concat()), &[Token]);
        check(format!("{interim} and no more"), told_and_closed(text), &[Broken]);
    }
    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    check("101".into(), told_and_closed([switch.to_owned(), whole("")].concat()), &[Broken, Unusable, Token]);

    // What is no HTTP.
    let garbage: [&[u8]; 12] = [
        b"",
        b"\r\n",
        b"\0",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"{\"access_token\":\"abc\"}",
    ];
    for bytes in garbage {
        check(format!("{:?}", String::from_utf8_lossy(bytes)), told_and_closed(bytes), &[Broken]);
        check(
            format!("{:?}, half-closed", String::from_utf8_lossy(bytes)),
            vec![Step::Hear, say(bytes), Step::HalfClose],
            &[Broken],
        );
    }
    check("a status of its own".into(), told(whole("").replacen("200", "999", 1)), &[Unusable, Broken, Configuration]);

    // Broken off.
    for at in [0, 8, 20, 45, 80] {
        check(format!("cut after {at}"), told_and_closed(&whole("")[..at]), &[Broken]);
        check(format!("reset after {at}"), vec![Step::Glance, say(&whole("")[..at]), Step::Close], &[Broken]);
    }
    check("reset at once".into(), vec![Step::Close], &[Broken]);

    // Pages, and answers to a request that was not read.
    let page =
        |status: &str| format!("HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>");
    check("a page".into(), told(page("200 OK")), &[Unusable]);
    check("a login page".into(), told(page("302 Found\r\nlocation: http://127.0.0.1:1/login")), &[Configuration]);
    check("no content".into(), told("HTTP/1.1 204 No Content\r\n\r\n"), &[Unusable]);
    check("not modified".into(), told("HTTP/1.1 304 Not Modified\r\n\r\n"), &[Configuration]);
    check("a page beside a 500".into(), told(page("500 Oops")), &[Unusable]);
    check("a throttle".into(), told(page("429 Too Many Requests")), &[Throttled]);
    check("two tokens".into(), told([whole(""), whole("")].concat()), &[Token]);
    check("early".into(), vec![say(page("503 Busy")), Step::Hear], &[Throttled, Broken]);
    let wrong: Vec<_> = wrong.iter().map(|text| cut(text)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `{"access_token":"abc","expires_in":3600}`, gzipped.
const GZIPPED: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0x56, 0x4a, 0x4c, 0x4e, 0x4e, 0x2d, 0x2e, 0x8e,
    0x2f, 0xc9, 0xcf, 0x4e, 0xcd, 0x53, 0xb2, 0x52, 0x4a, 0x4c, 0x4a, 0x56, 0xd2, 0x51, 0x4a, 0xad, 0x28, 0xc8, 0x2c,
    0x4a, 0x2d, 0x8e, 0xcf, 0x04, 0x0a, 0x19, 0x9b, 0x19, 0x18, 0xd4, 0x02, 0x00, 0x2f, 0x8d, 0x8d, 0x51, 0x28, 0x00,
    0x00, 0x00,
];

/// Waits for the one request of a stalled peer, and lets its patience pass.
fn give_up<A: Adapter>(clock: &A::Clock, tokens: &A::Tokens, there: impl Fn() -> bool, patience: u64) {
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| A::token_within(tokens, Duration::from_secs(600)));
        until("the request is there", there);
        until("it waits", || A::status(tokens).waiters == 1);
        pass::<A>(clock, tokens, Duration::from_secs(patience - 2));
        assert!(!caller.is_finished(), "{:?}", A::counters(tokens));
        pass::<A>(clock, tokens, Duration::from_secs(3));
        let error = caller.join().unwrap().unwrap_err();
        let Some(AcquireError::Unavailable { cause: Cause::Failed(failure), .. }) = &error.acquire else {
            panic!("{error:?}")
        };
        assert_eq!((failure.kind, failure.detail.as_str()), (FailureKind::Timeout, &*format!("{patience} s")));
    });
}

fn r46_r47_silence_at_any_point_ends_by_the_patience_and_leaves_nothing<A: Adapter>() {
    let stalls = [
        vec![Step::Glance],
        vec![Step::Hear],
        told("HTTP/1.1"),
        told("HTTP/1.1 200 OK\r\ncontent-le"),
        told("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"),
        told("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
        told("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"),
        told("HTTP/1.1 103 Early Hints\r\n\r\n"),
        // The end of a body without a length is the connection's, which does not come.
        told(format!("HTTP/1.1 200 OK\r\n\r\n{}", granting("abc"))),
    ];
    for script in stalls {
        let peer = Scripted::start([script, told_and_closed(format!("HTTP/1.1 200 OK\r\n\r\n{}", granting("def")))]);
        let clock = A::movable_clock();
        let tokens = Setup::<A>::new(settings(&peer)).clock(&clock).tokens();
        give_up::<A>(&clock, &tokens, || peer.connections() == 1, 60);
        let counters = A::counters(&tokens);
        assert_eq!((counters.requests, counters.timed_out), (1, 1), "{counters:?}");
        // What was given up is cut when the provider goes, if not before.
        drop(tokens);
        until("its connection is closed", || peer.over() == 1);
    }
}

fn r47_patience_doubles_while_requests_stay_silent_and_falls_back_after_an_answer<A: Adapter>() {
    let clock = A::movable_clock();
    let emulator = Emulator::start();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let stall = storm_auth_tests::emulator::Fault::Stall(storm_auth_tests::emulator::At::Headers);
    let token = storm_auth_tests::emulator::Endpoint::Token;
    let mut requests = 0;
    for spans in [&[60, 120, 240, 420, 420][..], &[60, 120]] {
        for patience in spans {
            emulator.fail_next(token, 1, stall.clone());
            requests += 1;
            give_up::<A>(&clock, &tokens, || emulator.token_requests() == requests, *patience);
            A::advance(&clock, Duration::from_secs(600));
        }
        // Any answer will do.
        emulator.fail_next(token, 1, storm_auth_tests::emulator::Fault::html(502));
        A::token(&tokens).unwrap_err();
        requests += 1;
        A::advance(&clock, Duration::from_secs(600));
    }
    A::token(&tokens).unwrap();
    let counters = A::counters(&tokens);
    assert_eq!((counters.requests, counters.timed_out, counters.granted), (requests + 1, 7, 1));
    assert_eq!(emulator.token_requests(), requests + 1);
}

fn r10_what_never_ends_is_cut<A: Adapter>() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let endless: [(&str, String, String); 8] = [
        ("a status line", "HTTP/1.1 200 ".into(), "x".repeat(4_096)),
        ("a header", "HTTP/1.1 200 OK\r\nx: ".into(), "y".repeat(4_096)),
        ("headers", "HTTP/1.1 200 OK\r\n".into(), "x: y\r\n".repeat(500)),
        ("chunks", chunked.into(), "400\r\n".to_owned() + &" ".repeat(1_024) + "\r\n"),
        ("chunks of a byte", chunked.into(), "1\r\n \r\n".repeat(500)),
        ("one chunk", format!("{chunked}ffffffffff\r\n"), " ".repeat(4_096)),
        ("garbage", String::new(), "\0".repeat(4_096)),
        ("a body", "HTTP/1.1 200 OK\r\n\r\n".into(), "{".repeat(4_096)),
    ];
    for (what, begin, more) in endless {
        let end = ask::<A>(&what, vec![Step::Hear, say(begin), Step::SayForEver(more.into_bytes())]);
        assert!(matches!(end, Broken | Unusable), "{what}: {end:?}");
    }
    // These may be read until the patience ends, in no memory.
    let unbounded: [(&str, String, String); 5] = [
        ("a chunk's size", chunked.into(), "0".repeat(4_096)),
        ("a chunk's extension", format!("{chunked}1;"), "x".repeat(4_096)),
        ("a trailer", format!("{chunked}0\r\nx: "), "y".repeat(4_096)),
        ("trailers", format!("{chunked}0\r\n"), "x: y\r\n".repeat(500)),
        ("interim answers", String::new(), "HTTP/1.1 100 Continue\r\n\r\n".repeat(100)),
    ];
    for (what, begin, more) in unbounded {
        let script = vec![Step::Hear, say(begin), Step::SayForEver(more.into_bytes()), Step::Close];
        let peer = Scripted::start([script]);
        let clock = A::movable_clock();
        let tokens = Setup::<A>::new(settings(&peer)).clock(&clock).tokens();
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| A::token_within(&tokens, Duration::from_secs(600)));
            until("the request is there", || peer.heard() == 1);
            pass::<A>(&clock, &tokens, Duration::from_secs(61));
            let error = caller.join().unwrap().unwrap_err();
            assert!(matches!(error.acquire, Some(AcquireError::Unavailable { .. })), "{what}: {error:?}");
        });
        drop(tokens);
        // ureq goes on with what it has not been told the end of, to the end of the request's patience, which is a minute: a shut down
        // socket still brings what is sent.
        peer.hush();
        let start = std::time::Instant::now();
        while peer.over() != 1 {
            assert!(start.elapsed() < Duration::from_secs(120), "the connection is not closed, after {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn r45_no_redirect_of_the_api_takes_the_bearer_along<A: Adapter>() {
    let elsewhere = Elsewhere::start();
    for status in [301, 302, 303, 307, 308] {
        for location in [elsewhere.url(), elsewhere.url().replace("http://", "//"), "/same-origin".to_owned()] {
            for method in [Method::GET, Method::POST] {
                let grant = granting("abc");
                let peer = Scripted::start([
                    told_and_closed(format!("HTTP/1.1 200 OK\r\n\r\n{grant}")),
                    told_and_closed(format!(
                        "HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
                    )),
                ]);
                let storm = Setup::<A>::new(settings(&peer)).client();
                let answer = A::call(&storm, request(method, "/p").body(Payload::Bytes(b"x".to_vec()))).unwrap();
                assert_eq!((answer.status.as_u16(), peer.heard()), (status, 2), "{location}");
            }
        }
    }
    elsewhere.assert_untouched();
}

/// The server closes a connection it has kept, in the moment in which the next request comes. Whether it was processed nobody can
/// tell: a GET may be sent again, once, and a POST may not.
fn r56_a_get_may_be_repeated_and_a_post_is_not<A: Adapter>() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let grant = told_and_closed(format!("HTTP/1.1 200 OK\r\n\r\n{}", granting("abc")));
    let dies_in_mid_call = vec![Step::Hear, say(answer), Step::Hear, Step::Close];
    let post = || request(Method::POST, "/p").body(Payload::Bytes(b"order".to_vec()));
    for call in [post(), get("/p")] {
        loop {
            let peer = Scripted::start([grant.clone(), dies_in_mid_call.clone(), told(answer)]);
            let storm = Setup::<A>::new(settings(&peer)).client();
            A::call(&storm, get("/p")).unwrap();
            let result = A::call(&storm, call.clone());
            if result.is_ok() && peer.heard() == 3 {
                // The pool had not got the connection back yet, and the call went over a new one.
                continue;
            }
            if call.method == Method::POST {
                let error = result.unwrap_err();
                assert!(error.is_api && !error.is_token, "{error:?}");
                assert_eq!(peer.heard(), 3);
            } else {
                assert_eq!((result.unwrap().status.as_u16(), peer.heard()), (200, 4));
            }
            // Neither costs a token.
            assert_eq!(A::counters(&A::tokens(&storm)).requests, 1);
            break;
        }
    }
    // Once, and not again and again.
    let peer = Scripted::start([grant.clone(), vec![Step::Hear, Step::Close]]);
    let storm = Setup::<A>::new(settings(&peer)).client();
    let error = A::call(&storm, get("/p")).unwrap_err();
    assert!(error.is_api && peer.heard() == 3, "{error:?}");
    // Closed while it was idle, and seen to be: nothing of the call was sent over it, so a POST goes out as well.
    for call in [post(), get("/p")] {
        let peer = Scripted::start([grant.clone(), told_and_closed(answer), told(answer)]);
        let storm = Setup::<A>::new(settings(&peer)).client();
        A::call(&storm, get("/p")).unwrap();
        until("it is closed", || peer.over() == 2);
        let result = A::call(&storm, call.clone());
        match result {
            Ok(_) => assert_eq!(peer.heard(), 3),
            // The bytes had gone before the close was seen.
            Err(error) => assert!(call.method == Method::POST && error.is_api && peer.heard() == 2, "{error:?}"),
        }
    }
}
