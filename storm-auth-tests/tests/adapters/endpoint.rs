//! The token endpoint at its worst: endless, encoded, redirecting, silent, dripping, gone.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::header;
use storm_auth_core::{AcquireError, Budget, Cause, FailureKind, Settings};
use storm_auth_tests::emulator::{At, Clock, Emulator, Endpoint, Fault, Limiter};

use crate::{
    face::{Adapter, PATIENCE, Setup, TokenClient, pass, until},
    peers::{Elsewhere, Peer, granting, hear},
};

both!(
    r5_the_callers_settings_reach_the_token_client,
    r5_the_callers_settings_cannot_make_the_token_client_hasty,
    r8_a_chunked_answer_is_read,
    r10_an_endless_body_ends,
    r10_an_endless_page_beside_a_throttle_is_a_throttle,
    r10_an_encoded_body_fails,
    r16_a_reset_or_cut_answer_is_no_token,
    r18_r58_a_redirect_that_echoes_the_secret_does_not_show_it,
    r44_no_redirect_is_followed,
    r46_requests_on_the_wire_are_those_the_core_issued,
    r46_the_token_client_keeps_no_connection,
    r46_a_broken_request_is_not_repeated_behind_the_core,
    r47_silence_ends_the_callers_wait_and_not_the_request,
    r47_a_drip_ends_the_callers_wait_and_not_the_request,
    r47_a_silent_request_is_given_up_and_another_one_serves,
    r47_a_stalled_tls_handshake_ends_by_the_connect_patience,
);

/// A peer that answers each request by `talk`, as the token endpoint of a provider.
fn at_peer(peer: &Peer) -> impl FnOnce(Settings) -> Settings + use<> {
    let url = format!("{}/token", peer.url());
    move |settings| settings.token_url(url)
}

fn r5_the_callers_settings_reach_the_token_client<A: Adapter>() {
    let emulator = Emulator::start();
    let tokens = Setup::<A>::at(&emulator).token_client(TokenClient::Loose).tokens();
    A::token(&tokens).unwrap();
    let request = &emulator.recorded(Endpoint::Token)[0];
    assert_eq!(request.headers[header::USER_AGENT], "acme-shop/1.0");
    assert!(request.headers.get_all(header::ACCEPT_ENCODING).iter().all(|value| value == "identity"));
}

fn r5_the_callers_settings_cannot_make_the_token_client_hasty<A: Adapter>() {
    // The caller's timeouts are 200 ms. A limiter that holds requests would starve whoever gives up on them.
    let emulator = Emulator::start();
    for at in [Fault::Delay(Duration::from_millis(600)), Fault::Drip(Duration::from_millis(1))] {
        emulator.fail_next(Endpoint::Token, 1, at);
        let tokens = Setup::<A>::at(&emulator).token_client(TokenClient::Loose).tokens();
        A::token(&tokens).unwrap();
    }
    assert_eq!(emulator.token_requests(), 2);
}

fn r8_a_chunked_answer_is_read<A: Adapter>() {
    let emulator = Emulator::builder().chunked(true).start();
    A::token(&Setup::<A>::at(&emulator).tokens()).unwrap();

    let peer = Peer::start(|mut stream| {
        hear(&mut stream);
        // Chunks of a byte, in one write each, with an extension; a trailer; and no type.
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n");
        for byte in granting("abc").bytes() {
            let _ = write!(stream, "1;x=\"y\"\r\n{}\r\n", char::from(byte));
        }
        let _ = write!(stream, "0\r\nx-trailer: z\r\n\r\n");
    });
    let emulator = Emulator::start();
    let tokens = Setup::<A>::at(&emulator).set(at_peer(&peer)).tokens();
    assert_eq!(A::token(&tokens).unwrap().expose(), "abc");

    let peer = Peer::start(|mut stream| {
        hear(&mut stream);
        // An interim answer; then a body that ends with its connection.
        let _ =
            write!(stream, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{}", granting("def"));
    });
    let tokens = Setup::<A>::at(&emulator).set(at_peer(&peer)).tokens();
    assert_eq!(A::token(&tokens).unwrap().expose(), "def");
}

fn r10_an_endless_body_ends<A: Adapter>() {
    let emulator = Emulator::start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Oversize);
    let tokens = Setup::<A>::at(&emulator).tokens();
    let error = A::token(&tokens).unwrap_err();
    assert!(matches!(error.acquire, Some(AcquireError::Unavailable { .. })), "{error:?}");
    // The connection goes with it: nobody goes on reading.
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_open == 0));

    // Reading stops within a buffer past the limit: the peer gets rid of no more than what sockets hold.
    let sent = Arc::new(AtomicU64::new(0));
    let peer = Peer::start({
        let sent = sent.clone();
        move |mut stream| {
            hear(&mut stream);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n");
            while let Ok(more) = stream.write(&[b'A'; 16 * 1_024]) {
                sent.fetch_add(more as u64, Ordering::Relaxed);
            }
        }
    });
    let tokens = Setup::<A>::at(&emulator).set(at_peer(&peer)).tokens();
    A::token(&tokens).unwrap_err();
    drop(peer);
    assert!(sent.load(Ordering::Relaxed) < 32 * 1_024 * 1_024, "{sent:?}");
}

fn r10_an_endless_page_beside_a_throttle_is_a_throttle<A: Adapter>() {
    let peer = Peer::start(|mut stream| {
        hear(&mut stream);
        let _ = write!(stream, "HTTP/1.1 429 Too Many Requests\r\nretry-after: 100\r\n\r\n");
        while stream.write_all(&[b'<'; 16 * 1_024]).is_ok() {}
    });
    let emulator = Emulator::start();
    let tokens = Setup::<A>::at(&emulator).set(at_peer(&peer)).tokens();
    let error = A::token(&tokens).unwrap_err();
    assert!(error.is_rate_limited, "{error:?}");
    assert!(A::status(&tokens).gate_closed_until.is_some());
}

fn r10_an_encoded_body_fails<A: Adapter>() {
    let emulator = Emulator::start();
    for client in [TokenClient::Default, TokenClient::Loose] {
        emulator.fail_next(Endpoint::Token, 1, Fault::Encoded);
        let tokens = Setup::<A>::at(&emulator).token_client(client).tokens();
        let error = A::token(&tokens).unwrap_err();
        assert!(matches!(error.acquire, Some(AcquireError::Unavailable { .. })), "{error:?}");
        assert_eq!(A::counters(&tokens).requests, 1);
    }
}

fn r16_a_reset_or_cut_answer_is_no_token<A: Adapter>() {
    let emulator = Emulator::start();
    for fault in [Fault::Reset(At::Headers), Fault::Reset(At::Body), Fault::Outage] {
        emulator.fail_next(Endpoint::Token, 1, fault);
        let tokens = Setup::<A>::at(&emulator).tokens();
        let error = A::token(&tokens).unwrap_err();
        assert!(matches!(error.acquire, Some(AcquireError::Unavailable { .. })), "{error:?}");
    }
    // Cut in two, with its length told or in chunks: neither half is a token, though the first is a whole object.
    let bodies = ["content-length: 900\r\n\r\n", "transfer-encoding: chunked\r\n\r\n3f\r\n"];
    for head in bodies {
        let peer = Peer::start(move |mut stream| {
            hear(&mut stream);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}{:63}\r\n", granting("abc"));
        });
        let tokens = Setup::<A>::at(&emulator).set(at_peer(&peer)).tokens();
        let error = A::token(&tokens).unwrap_err();
        assert!(matches!(error.acquire, Some(AcquireError::Unavailable { cause: Cause::Failed(_), .. })), "{error:?}");
    }
}

fn r18_r58_a_redirect_that_echoes_the_secret_does_not_show_it<A: Adapter>() {
    let emulator = Emulator::start();
    let secret = emulator.client_secret();
    emulator.fail_next(
        Endpoint::Token,
        1,
        Fault::redirect(302, &format!("https://new.example/?client_secret={secret}")),
    );
    let error = A::token(&Setup::<A>::at(&emulator).tokens()).unwrap_err();
    assert!(error.text.contains("https://new.example/"), "{error:?}");
    assert!(!format!("{error:?}").contains(&secret) && !error.debug.contains(&secret), "{error:?}");
}

fn r44_no_redirect_is_followed<A: Adapter>() {
    let elsewhere = Elsewhere::start();
    let emulator = Emulator::start();
    for client in [TokenClient::Default, TokenClient::Loose] {
        for status in [300, 301, 302, 303, 307, 308] {
            emulator.fail_next(Endpoint::Token, 1, Fault::redirect(status, &elsewhere.url()));
            let tokens = Setup::<A>::at(&emulator).token_client(client).tokens();
            let error = A::token(&tokens).unwrap_err();
            assert!(error.is_configuration, "{error:?}");
            assert!(error.text.contains(&elsewhere.url()), "where the endpoint moved is told: {error:?}");
        }
    }
    // Nor one to itself.
    emulator.fail_next(Endpoint::Token, 1, Fault::redirect(307, &emulator.token_url()));
    A::token(&Setup::<A>::at(&emulator).tokens()).unwrap_err();
    assert_eq!(emulator.token_requests(), 13);
    elsewhere.assert_untouched();
}

fn r46_requests_on_the_wire_are_those_the_core_issued<A: Adapter>() {
    let emulator = Emulator::builder().limiter(Limiter::none()).start();
    let clock = A::movable_clock();
    let unlimited = |settings: Settings| settings.budget(Budget::unlimited());
    let tokens = Setup::<A>::at(&emulator).clock(&clock).set(unlimited).tokens();
    let faults = [
        Fault::status(429),
        Fault::Reset(At::Headers),
        Fault::html(503),
        Fault::Reset(At::Body),
        Fault::Encoded,
        Fault::redirect(307, "/"),
        Fault::json(400, r#"{"error":"invalid_client"}"#),
        Fault::Oversize,
        Fault::ExpiresIn("0".to_owned()),
    ];
    for fault in faults {
        emulator.fail_next(Endpoint::Token, 1, fault);
        let _ = A::token_within(&tokens, Duration::from_secs(5));
        // Past every gate and back-off.
        A::advance(&clock, Duration::from_secs(301));
        let _ = A::token_within(&tokens, Duration::from_secs(5));
        A::advance(&clock, Duration::from_secs(301));
    }
    until("rest", || A::status(&tokens).waiters == 0);
    A::close(&tokens, PATIENCE).unwrap();
    assert_eq!(emulator.token_requests(), A::counters(&tokens).requests);
    assert!(emulator.token_requests() >= 9);
    // Each on a connection of its own.
    assert_eq!(emulator.connections(Endpoint::Token), emulator.token_requests());
}

fn r46_the_token_client_keeps_no_connection<A: Adapter>() {
    // One that would like to keep it: the answer says neither close nor how long.
    let emulator = Emulator::start();
    for client in [TokenClient::Default, TokenClient::Loose] {
        let tokens = Setup::<A>::at(&emulator).token_client(client).tokens();
        for _ in 0..3 {
            let id = A::token(&tokens).unwrap().id();
            assert!(emulator.wait_for(PATIENCE, |counts| counts.token_open == 0), "an idle connection stays");
            A::invalidate(&tokens, id);
            if A::key_status(&tokens).unwrap().error.is_some() {
                break;
            }
        }
    }
    assert_eq!(emulator.connections(Endpoint::Token), emulator.token_requests());
}

fn r46_a_broken_request_is_not_repeated_behind_the_core<A: Adapter>() {
    // The server closes without a word, as one does that has just timed an idle connection out: HTTP clients like to repeat.
    let heard = Arc::new(AtomicU64::new(0));
    let peer = Peer::start({
        let heard = heard.clone();
        move |mut stream| {
            heard.fetch_add(u64::from(!hear(&mut stream).is_empty()), Ordering::Relaxed);
        }
    });
    let emulator = Emulator::start();
    for client in [TokenClient::Default, TokenClient::Loose] {
        let tokens = Setup::<A>::at(&emulator).token_client(client).set(at_peer(&peer)).tokens();
        A::token(&tokens).unwrap_err();
        assert_eq!(A::counters(&tokens).requests, 1);
    }
    drop(peer);
    assert_eq!(heard.load(Ordering::Relaxed), 2);
}

fn kept_for_later_callers<A: Adapter>(fault: Fault) {
    let emulator = Emulator::builder().clock(Clock::manual(1_700_000_000_000)).start();
    let drips = matches!(fault, Fault::Drip(_));
    emulator.fail_next(Endpoint::Token, 1, fault);
    let tokens = Setup::<A>::at(&emulator).tokens();
    for _ in 0..3 {
        let error = A::token_within(&tokens, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.acquire, Some(AcquireError::DeadlineExceeded));
    }
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests > 0));
    assert_eq!((emulator.token_requests(), A::counters(&tokens).requests), (1, 1));
    std::thread::scope(|scope| {
        let later = scope.spawn(|| A::token(&tokens));
        until("it waits", || A::status(&tokens).waiters == 1 || A::key_status(&tokens).unwrap().token_until.is_some());
        // A byte each second: as many seconds as the answer has bytes.
        for _ in 0..if drips { 2_000 } else { 1 } {
            emulator.clock().advance(Duration::from_secs(1));
            std::thread::yield_now();
        }
        until("the rest of the drip", || {
            emulator.clock().advance(Duration::from_secs(1));
            later.is_finished()
        });
        later.join().unwrap().unwrap();
    });
    assert_eq!((emulator.token_requests(), A::counters(&tokens).requests), (1, 1));
}

fn r47_silence_ends_the_callers_wait_and_not_the_request<A: Adapter>() {
    kept_for_later_callers::<A>(Fault::Delay(Duration::from_secs(1)));
}

fn r47_a_drip_ends_the_callers_wait_and_not_the_request<A: Adapter>() {
    kept_for_later_callers::<A>(Fault::Drip(Duration::from_secs(1)));
}

fn r47_a_silent_request_is_given_up_and_another_one_serves<A: Adapter>() {
    for at in [At::Headers, At::Body] {
        let emulator = Emulator::start();
        emulator.fail_next(Endpoint::Token, 1, Fault::Stall(at));
        let clock = A::movable_clock();
        let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
        let patient = Duration::from_secs(300);
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| A::token_within(&tokens, patient));
            assert!(emulator.wait_for(PATIENCE, |counts| counts.token_requests == 1));
            until("it waits", || A::status(&tokens).waiters == 1);
            pass::<A>(&clock, &tokens, Duration::from_secs(61));
            let error = caller.join().unwrap().unwrap_err();
            let Some(AcquireError::Unavailable { cause: Cause::Failed(failure), .. }) = error.acquire else {
                panic!("{error:?}")
            };
            assert_eq!(failure.kind, FailureKind::Timeout);
        });
        A::advance(&clock, Duration::from_secs(6));
        A::token(&tokens).unwrap();
        // What the first one costs is counted, and it is the only other one.
        let counters = A::counters(&tokens);
        assert_eq!((counters.requests, counters.timed_out, counters.granted), (2, 1, 1));
        assert_eq!(emulator.token_requests(), 2);
    }
}

/// In real time, since the connect patience is the HTTP client's to keep: five seconds.
fn r47_a_stalled_tls_handshake_ends_by_the_connect_patience<A: Adapter>() {
    // Connections are accepted by the system alone, and nobody answers a hello.
    let silent = Elsewhere::start();
    let emulator = Emulator::start();
    let url = silent.url().replace("http:", "https:");
    let tokens = Setup::<A>::at(&emulator).set(|settings| settings.token_url(url)).tokens();
    let error = A::token_within(&tokens, PATIENCE).unwrap_err();
    let Some(AcquireError::Unavailable { cause: Cause::Failed(failure), .. }) = &error.acquire else {
        panic!("{error:?}")
    };
    assert_eq!(failure.kind, FailureKind::Connect);
    assert_eq!(A::counters(&tokens).unconnected, 1);
}
