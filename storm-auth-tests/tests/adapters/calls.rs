//! End to end: what an API call looks like on the wire, and what its caller gets.

use std::time::Duration;

use http::{HeaderMap, Method, header};
use storm_auth_core::{Credentials, Event, KeyStatus, Scope, Settings, machine::Activity};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault, Limiter, SCOPE};

use crate::face::{
    Adapter, Call, Events, OverUreq, PATIENCE, Payload, Setup, arrived, credentials, get, pass, request, until,
};

both!(
    r1_the_token_request_on_the_wire,
    r4_plain_http_is_taken_for_loopback_and_for_hosts_named_on_purpose,
    r6_the_application_id_of_the_client_and_of_a_request,
    r6_applications_share_one_token,
    r19_another_scope_than_the_one_asked_for_is_seen,
    every_method_with_its_body,
    queries_and_headers_arrive,
    r41_an_answer_of_any_status_is_an_answer,
    r57_every_header_that_carries_a_token_is_sensitive,
    a_token_source_is_a_provider,
    r52_nothing_is_sent_before_it_is_asked_for,
    r47_closing_ends_what_is_not_begun_and_keeps_what_is_held,
    r47_closing_waits_for_a_request_under_way,
    r30_a_key_that_is_kept_warm_is_refreshed_without_a_call,
    r25_providers_derived_from_one_share_its_budget_and_its_keys,
    r34_a_tenant_on_another_host_can_share_the_limiter,
    r79_status_and_counters_tell_what_happened,
    malformed_requests_fail_before_anything_is_sent,
);

fn r1_the_token_request_on_the_wire<A: Adapter>() {
    let secret = "S3cret with space+plus&amp=%/~\"é\u{1f600}x";
    let emulator = Emulator::builder().client("shop é&=", secret, &[SCOPE]).start();
    let tokens = Setup::<A>::at(&emulator).tokens();
    A::token(&tokens).unwrap();

    let recorded = emulator.recorded(Endpoint::Token);
    let [request] = &recorded[..] else { panic!("{} requests", recorded.len()) };
    let form: Vec<(String, String)> = serde_urlencoded::from_bytes(&request.body).unwrap();
    let expected =
        [("grant_type", "client_credentials"), ("client_id", "shop é&="), ("client_secret", secret), ("scope", SCOPE)];
    let mut form: Vec<_> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    form.sort_by_key(|(name, _)| expected.iter().position(|(expected, _)| expected == name));
    assert_eq!(form, expected);
    assert_eq!(request.method, Method::POST);
    assert_eq!(request.uri.query(), None);
    assert_eq!(request.headers[header::ACCEPT], "application/json");
    assert!(request.headers.get_all(header::ACCEPT_ENCODING).iter().all(|value| value == "identity"));
    assert_eq!(request.headers.get(header::AUTHORIZATION), None);
}

fn r4_plain_http_is_taken_for_loopback_and_for_hosts_named_on_purpose<A: Adapter>() {
    let emulator = Emulator::start();
    let named = emulator.token_url().replace("127.0.0.1", "emulator.example");
    let setup = Setup::<A>::at(&emulator).set(|settings| settings.token_url(&named));
    let error = A::build_tokens(setup).unwrap_err();
    assert!(error.is_configuration && error.text.contains("danger_allow_http"), "{error:?}");

    let setup =
        Setup::<A>::at(&emulator).set(|settings| settings.token_url(&named).danger_allow_http("emulator.example"));
    A::build_tokens(setup).unwrap();
    for host in ["localhost", "127.1.2.3"] {
        let url = emulator.token_url().replace("127.0.0.1", host);
        A::build_tokens(Setup::<A>::at(&emulator).set(|settings| settings.token_url(url))).unwrap();
    }
    assert_eq!(emulator.connections(Endpoint::Token), 0);
}

fn r6_the_application_id_of_the_client_and_of_a_request<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    A::call(&storm, get("/")).unwrap();
    A::call(&storm, get("/").application_id(7)).unwrap();
    // A header that the caller sets itself counts too, unless the request has an id.
    A::call(&storm, get("/").header("applicationId", "8")).unwrap();
    A::call(&storm, get("/").header("applicationId", "8").application_id(9)).unwrap();
    let renamed = Setup::<A>::at(&emulator).set(|settings| settings.application_header("application-id")).client();
    A::call(&renamed, get("/").application_id(u64::MAX)).unwrap();

    let ids: Vec<_> = (emulator.recorded(Endpoint::Api).iter())
        .map(|request| {
            let values = |name| request.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
            (values("ApplicationId").collect::<Vec<_>>(), values("application-id").collect::<Vec<_>>())
        })
        .collect();
    let expected = |old: &[&str], new: &[&str]| {
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        (owned(old), owned(new))
    };
    assert_eq!(
        ids,
        [
            expected(&["1042"], &[]),
            expected(&["7"], &[]),
            expected(&["8"], &[]),
            expected(&["9"], &[]),
            expected(&[], &["18446744073709551615"]),
        ]
    );
}

fn r6_applications_share_one_token<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    for id in 0..20 {
        assert_eq!(A::call(&storm, get("/").application_id(id)).unwrap().status, 200);
    }
    assert_eq!(emulator.token_requests(), 1);
}

fn r19_another_scope_than_the_one_asked_for_is_seen<A: Adapter>() {
    let emulator = Emulator::start();
    let body = r#"{"access_token":"abc","expires_in":600,"token_type":"Bearer","scope":"stage prod"}"#;
    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, body));
    let events = Events::default();
    let tokens = Setup::<A>::at(&emulator).events(&events).tokens();
    let token = A::token(&tokens).unwrap();
    assert_eq!(token.granted_scope(), Some("stage prod"));
    assert_eq!(A::key_status(&tokens).unwrap().scope.as_deref(), Some(SCOPE));
    let told =
        |event: &Event| matches!(event, Event::Granted { other_scope: Some(scope), .. } if scope == "stage prod");
    until("an event", || events.any(told));
}

fn every_method_with_its_body<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    let bytes: Vec<u8> = (0..=255).collect();
    let calls = [
        (get("/a"), &b""[..]),
        (request(Method::DELETE, "/a"), b""),
        (request(Method::POST, "/a"), b""),
        (request(Method::POST, "/a").body(Payload::Bytes(bytes.clone())), &bytes),
        (request(Method::POST, "/a").body(Payload::Once(bytes.clone())), &bytes),
        (request(Method::PUT, "/a").body(Payload::Bytes(bytes.clone())), &bytes),
        (request(Method::PATCH, "/a").body(Payload::Json([("n".to_owned(), 1)].into())), br#"{"n":1}"#),
        (request(Method::OPTIONS, "/a"), b""),
    ];
    for (call, _) in &calls {
        let answer = A::call(&storm, call.clone()).unwrap();
        let echo: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status.as_u16(), echo["method"].as_str()), (200, Some(call.method.as_str())), "{call:?}");
    }
    let seen = emulator.recorded(Endpoint::Api);
    for (request, (call, body)) in seen.iter().zip(&calls) {
        assert_eq!((&request.method, &request.body[..]), (&call.method, *body), "{call:?}");
        assert_eq!(request.headers.get_all(header::AUTHORIZATION).iter().count(), 1);
    }
    assert_eq!(seen[6].headers[header::CONTENT_TYPE], "application/json");
    // A server may wait for a body that is not told to be empty.
    assert_eq!(seen[2].headers[header::CONTENT_LENGTH], "0");
    assert_eq!(seen.len(), calls.len());
}

fn queries_and_headers_arrive<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    let call =
        get("/p?a=1").query("q", "å & ä=1+2").query("q", "").header("x-trace", "abc").header("accept", "text/csv");
    A::call(&storm, call).unwrap();
    // A base with a path, a target without a slash, and a whole URL of the base.
    let based = Setup::<A>::new(
        Settings::new()
            .token_url(emulator.token_url())
            .api_url(format!("{}/commerce/", emulator.api_url()))
            .scope(Scope::server_default())
            .credentials(credentials(&emulator))
            .application_id(1),
    )
    .client();
    for target in ["p", "/p", &format!("{}/p", emulator.api_url())] {
        A::call(&based, get(target)).unwrap();
    }
    let seen = emulator.recorded(Endpoint::Api);
    let query: Vec<(String, String)> = serde_urlencoded::from_str(seen[0].uri.query().unwrap()).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(query, [pair("a", "1"), pair("q", "å & ä=1+2"), pair("q", "")]);
    assert_eq!(seen[0].headers["x-trace"], "abc");
    let accepted: Vec<_> = seen[0].headers.get_all(header::ACCEPT).iter().collect();
    assert_eq!(accepted, ["text/csv"]);
    let paths: Vec<_> = seen[1..].iter().map(|request| request.uri.path()).collect();
    assert_eq!(paths, ["/commerce/p", "/commerce/p", "/p"]);
    // No scope was sent, and all that the client may have were granted.
    let form = String::from_utf8(emulator.recorded(Endpoint::Token)[1].body.to_vec()).unwrap();
    assert!(!form.contains("scope"), "{form}");
}

fn r41_an_answer_of_any_status_is_an_answer<A: Adapter>() {
    let emulator = Emulator::start();
    for setup in [Setup::<A>::at(&emulator), Setup::at(&emulator).own_api_client()] {
        let storm = setup.client();
        for status in [204, 304, 400, 402, 403, 404, 409, 429, 500, 502, 503] {
            emulator.fail_next(Endpoint::Api, 1, Fault::answer(status, &[("x-why", "so")], ""));
            let answer = A::call(&storm, get("/")).unwrap();
            assert_eq!((answer.status.as_u16(), answer.headers["x-why"].to_str().unwrap()), (status, "so"));
        }
        // The live service's 500 without an application id.
        let nameless = get("/").header("applicationId", "none");
        assert_eq!(A::call(&storm, nameless).unwrap().status, 500);
    }
    // None of them costs a token or is sent again.
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (2, 24));
}

/// Also where ureq was told otherwise for this call, or to time it.
#[test]
fn r41_an_answer_of_any_status_is_an_answer_whatever_ureq_is_told() {
    let emulator = Emulator::start();
    emulator.fail(Endpoint::Api, Fault::status(404));
    for setup in [Setup::<OverUreq>::at(&emulator), Setup::at(&emulator).own_api_client()] {
        let storm = setup.client();
        let told = storm.get("/").with(|config| config.http_status_as_error(true));
        for call in [told, storm.get("/").timeout(PATIENCE)] {
            assert_eq!(call.call().unwrap().status(), 404);
        }
    }
}

fn r57_every_header_that_carries_a_token_is_sensitive<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    let tokens = A::tokens(&storm);
    let (mut for_tokens, mut for_calls) = (HeaderMap::new(), HeaderMap::new());
    for_calls.insert(header::AUTHORIZATION, "Basic xyz".parse().unwrap());
    let id = A::authorize(&tokens, &mut for_tokens).unwrap();
    assert_eq!(A::authorize_call(&storm, &mut for_calls).unwrap(), id);
    let header = A::header(&tokens).unwrap();
    assert!(header.is_sensitive() && A::token(&tokens).unwrap().header().is_sensitive());
    for headers in [&for_tokens, &for_calls] {
        let values: Vec<_> = headers.get_all(header::AUTHORIZATION).iter().collect();
        assert_eq!(values, [&header]);
        assert!(values[0].is_sensitive());
    }
    assert_eq!(for_calls["applicationid"], "1042");
    assert_eq!(header, format!("Bearer {}", A::token(&tokens).unwrap().expose()).as_str());
}

fn a_token_source_is_a_provider<A: Adapter>() {
    let emulator = Emulator::start();
    let tokens = Setup::<A>::at(&emulator).tokens();
    assert_eq!(A::source_token(&tokens).unwrap().id(), A::token(&tokens).unwrap().id());
    assert_eq!(emulator.token_requests(), 1);
}

fn r52_nothing_is_sent_before_it_is_asked_for<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    let tokens = A::tokens(&storm);
    let _derived = A::for_scope(&tokens, Scope::server_default());
    A::status(&tokens);
    A::close(&tokens, Duration::ZERO).unwrap();
    assert_eq!(emulator.connections(Endpoint::Token) + emulator.connections(Endpoint::Api), 0);
    let error = A::call(&storm, get("/")).unwrap_err();
    assert!(error.is_token && error.text.contains("closed"), "{error:?}");
    assert_eq!(emulator.connections(Endpoint::Token) + emulator.connections(Endpoint::Api), 0);
}

fn r47_closing_ends_what_is_not_begun_and_keeps_what_is_held<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    A::ready(&tokens, PATIENCE).unwrap();
    A::close(&tokens, PATIENCE).unwrap();
    // Its refresh time comes, and no refresh.
    A::advance(&clock, Duration::from_secs(500));
    A::token(&tokens).unwrap();
    A::advance(&clock, Duration::from_secs(100));
    let error = A::token(&tokens).unwrap_err();
    assert!(error.is_token && error.text.contains("build a new one"), "{error:?}");
    assert_eq!(emulator.token_requests(), 1);
}

fn r47_closing_waits_for_a_request_under_way<A: Adapter>() {
    let emulator = Emulator::builder().clock(manual()).start();
    emulator.fail_next(Endpoint::Token, 1, Fault::Delay(Duration::from_secs(1)));
    let tokens = Setup::<A>::at(&emulator).tokens();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| A::token(&tokens));
        arrived(&emulator);
        let hurried = A::close(&tokens, Duration::from_millis(10)).unwrap_err();
        assert!(hurried.is_token, "{hurried:?}");
        let closing = scope.spawn(|| A::close(&tokens, PATIENCE));
        emulator.clock().advance(Duration::from_secs(1));
        closing.join().unwrap().unwrap();
        // Its request was not wasted.
        caller.join().unwrap().unwrap();
    });
    A::token(&tokens).unwrap();
    assert_eq!(emulator.token_requests(), 1);
}

fn r30_a_key_that_is_kept_warm_is_refreshed_without_a_call<A: Adapter>() {
    let emulator = Emulator::builder().limiter(Limiter::none()).start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let warm = A::keep_warm(&tokens);
    assert!(emulator.wait_for(PATIENCE, |counts| counts.issued == 1));
    until("the first token", || A::key_status(&tokens).unwrap().token_until.is_some());
    for issued in 2..5 {
        pass::<A>(&clock, &tokens, Duration::from_secs(451));
        assert!(emulator.wait_for(PATIENCE, |counts| counts.issued == issued), "no call, and no refresh {issued}");
        let idle = |status: KeyStatus| status.activity == Activity::Idle;
        until("the refreshed token", || A::key_status(&tokens).is_some_and(idle));
    }
    drop(warm);
    pass::<A>(&clock, &tokens, Duration::from_secs(451));
    pass::<A>(&clock, &tokens, Duration::from_secs(451));
    A::close(&tokens, PATIENCE).unwrap();
    assert_eq!(emulator.token_requests(), 4);
}

fn r25_providers_derived_from_one_share_its_budget_and_its_keys<A: Adapter>() {
    let emulator =
        Emulator::builder().client("shop", "one", &["lab", "qa"]).client("erp", "two", &["lab", "qa"]).start();
    let shop = Setup::<A>::at(&emulator).set(|settings| settings.scope(Scope::new("lab").unwrap())).tokens();
    let erp = A::for_credentials(&shop, Credentials::new("erp", "two").unwrap());
    let qa = A::for_scope(&shop, Scope::new("qa").unwrap());
    let again = A::for_credentials(&erp, Credentials::new("shop", "one").unwrap());
    let both = A::for_scope(&shop, Scope::new("lab qa").unwrap());
    let reversed = A::for_scope(&erp, Scope::new("qa lab").unwrap());
    let reversed = A::for_credentials(&reversed, Credentials::new("shop", "one").unwrap());

    let ids: Vec<_> = [&shop, &erp, &qa, &again, &both, &reversed].map(|tokens| A::token(tokens).unwrap().id()).into();
    assert_eq!(ids[0], ids[3]);
    assert_eq!(ids[4], ids[5]);
    assert_eq!(emulator.token_requests(), 4);
    assert_eq!(A::counters(&shop), A::counters(&erp));
    let status = A::status(&qa);
    assert_eq!((status.keys.len(), status.budget_left), (5, 17));
}

fn r34_a_tenant_on_another_host_can_share_the_limiter<A: Adapter>() {
    let (one, other) = (Emulator::start(), Emulator::start());
    one.fail_next(Endpoint::Token, 1, Fault::status(429));
    let first = Setup::<A>::at(&one).tokens();
    let second = Setup::<A>::at(&other).share(&first).tokens();
    let alone = Setup::<A>::at(&other).tokens();
    let hurried = Duration::from_secs(5);
    assert!(A::token_within(&first, hurried).unwrap_err().is_rate_limited);
    let error = A::token_within(&second, hurried).unwrap_err();
    assert!(error.is_rate_limited && error.retry_at.is_some(), "{error:?}");
    assert_eq!(other.token_requests(), 0);
    A::token(&alone).unwrap();
}

fn r79_status_and_counters_tell_what_happened<A: Adapter>() {
    let emulator = Emulator::start();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).tokens();
    let status = A::key_status(&tokens).unwrap();
    assert_eq!((status.client_id.as_str(), status.token_until, status.activity), ("storm-auth", None, Activity::Idle));

    let token = A::token(&tokens).unwrap();
    let status = A::key_status(&tokens).unwrap();
    let until = status.token_until.unwrap();
    // Two clocks that are read one after the other may differ by a tick.
    assert!(until.as_millis().abs_diff(token.expires_at().as_millis()) < 1_000, "{until} {}", token.expires_at());
    assert!(status.refresh_at.unwrap() < until);
    assert_eq!(A::status(&tokens).budget_left, 20);

    A::invalidate(&tokens, token.id());
    assert_eq!(A::key_status(&tokens).unwrap().token_until, None);
    emulator.fail_next(Endpoint::Token, 1, Fault::html(502));
    A::token(&tokens).unwrap_err();
    // The suite's seed draws 3.8 s of the five that this may last.
    let status = A::key_status(&tokens).unwrap();
    assert_eq!(status.activity, Activity::BackingOff);
    assert!(status.error.is_some());
    A::advance(&clock, Duration::from_secs(10));
    emulator.fail_next(Endpoint::Token, 1, Fault::status(429));
    assert!(A::token_within(&tokens, Duration::from_secs(5)).unwrap_err().is_rate_limited);
    assert!(A::status(&tokens).gate_closed_until.is_some());
    A::advance(&clock, Duration::from_secs(60));
    A::token(&tokens).unwrap();

    let counted = A::counters(&tokens);
    let counts = [counted.requests, counted.granted, counted.unusable, counted.throttled, counted.rejected];
    assert_eq!(counts, [4, 2, 1, 1, 1]);
    assert_eq!(emulator.token_requests(), counted.requests);
    assert!(counted.gated > Duration::from_secs(14), "{counted:?}");
}

fn malformed_requests_fail_before_anything_is_sent<A: Adapter>() {
    let emulator = Emulator::start();
    let storm = Setup::<A>::at(&emulator).client();
    let malformed: [Call; 4] = [
        get("/").header("two words", "x"),
        get("/").header("x", "line\nbreak"),
        get("/with space"),
        get("http://[::bad/"),
    ];
    for call in malformed {
        let error = A::call(&storm, call.clone()).unwrap_err();
        assert!(error.is_configuration && !error.is_api && !error.is_token, "{call:?}: {error:?}");
    }
    assert_eq!(emulator.connections(Endpoint::Token) + emulator.connections(Endpoint::Api), 0);
}

fn manual() -> storm_auth_tests::emulator::Clock {
    storm_auth_tests::emulator::Clock::manual(1_700_000_000_000)
}
