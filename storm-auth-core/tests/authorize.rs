//! What an API call is sent to and with: R6, R39, R45, R57.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use proptest::prelude::*;
use proptest::{collection::vec, sample::select};
use storm_auth_core::{Api, Credentials, Environment, Field, Settings, Token};

fn settings() -> Settings {
    Settings::new().environment(Environment::storm_lab()).credentials(Credentials::new("shop", "S3cret").unwrap())
}

fn api(settings: Settings) -> Api {
    settings.check().unwrap().api.unwrap()
}

fn uri(text: &str) -> Uri {
    text.parse().unwrap()
}

#[test]
fn r45_a_path_is_appended_to_the_base_and_a_url_is_taken_from_a_configured_origin_only() {
    let api = api(settings().api_url("https://api.example/base").api_url("https://second.example:8443"));
    let origins: Vec<_> = api.urls().iter().map(|url| url.origin().to_string()).collect();
    assert_eq!(origins, ["https://api.example", "https://second.example:8443"]);
    for (given, target) in [
        ("/orders?top=3", "https://api.example/base/orders?top=3"),
        ("orders", "https://api.example/base/orders"),
        ("orders?next=https://elsewhere.example/", "https://api.example/base/orders?next=https://elsewhere.example/"),
        ("https://api.example/other", "https://api.example/other"),
        ("https://second.example:8443/orders", "https://second.example:8443/orders"),
        ("HTTPS://API.EXAMPLE:443/orders", "HTTPS://API.EXAMPLE:443/orders"),
        ("://orders", "https://api.example/base/://orders"),
    ] {
        assert_eq!(api.target(given).unwrap(), target, "{given}");
    }
    for given in [
        "https://elsewhere.example/",
        "https://second.example/",
        "http://api.example/",
        "https://api.example:444/",
        "https://api.example.evil.example/",
        "ftp://api.example/",
        "https://api.example@elsewhere.example/",
        "https://user:password@api.example/",
        "/orders/../../admin",
        "/orders/%2E%2e/admin",
        "/./orders",
        "/two words",
        "/back\\slash",
        "/å",
        "https://[::1/",
    ] {
        assert_eq!(api.target(given).unwrap_err().field(), Field::Target, "{given}");
    }
    // Dots are a segment only as a whole, and only in the path.
    assert!(api.target("/a..b/...?x=/../y#/../").is_ok());
}

#[test]
fn r45_a_target_that_is_too_long_for_a_uri_is_refused() {
    let api = api(settings().api_url("https://api.example"));
    for length in [2_048, 2_049, 65_534] {
        let target = format!("https://api.example/{}", "a".repeat(length - 20));
        assert_eq!(api.target(&target).unwrap().len(), length);
    }
    assert_eq!(api.target(&"a".repeat(65_535 - 20)).unwrap_err().field(), Field::Target);
}

/// What is taken, said at length: each character, each segment, and then the origin.
fn is_taken(api: &Api, url: &str) -> bool {
    let path = url.split(['?', '#']).next().unwrap();
    url.chars().all(|character| character.is_ascii_graphic() && character != '\\')
        && path.split('/').all(|segment| !matches!(&*segment.to_ascii_lowercase().replace("%2e", "."), "." | ".."))
        && url.parse().is_ok_and(|uri| api.allows(&uri))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, max_shrink_iters: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn r45_a_target_is_taken_as_each_of_its_parts_is(
        start in select(vec![
            "", "https://api.example", "https://api.example/base", "HTTPS://API.example:443", "https://second.example:8443",
            "http://api.example", "https://elsewhere.example", "https://", "https:", "//", "1+-.x://", "_://",
        ]),
        middle in vec(select("/ / /. /.. /%2e /%2E%2e . %2e %2E %2f %25 % ? # : @ ; , & = + ~ a Z 0 å \\ | ^ [ ] { } < > ` \" ' \u{7f}".split(' ').collect::<Vec<_>>()), 0..10),
        end in prop_oneof![Just(String::new()), "[ -~]{0,3}", any::<String>()],
    ) {
        let api = api(settings().api_url("https://api.example/base/").api_url("https://second.example:8443"));
        let given = format!("{start}{}{end}", middle.concat());
        let is_url = given.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        });
        let slash = if given.starts_with('/') { "" } else { "/" };
        let url = if is_url { given.clone() } else { format!("https://api.example/base{slash}{given}") };
        let taken = is_taken(&api, &url);
        prop_assert_eq!(api.check(&url).is_ok(), taken);
        prop_assert_eq!(api.target(&given).ok(), taken.then_some(url));
        prop_assert_eq!(api.check(&given).is_ok(), is_taken(&api, &given));
    }
}

#[test]
fn r45_the_origin_is_scheme_host_and_port() {
    let api = api(settings().api_url("https://api.example"));
    for (allowed, there) in [
        ("https://api.example/", true),
        ("https://API.example:443/x", true),
        ("https://api.example:8443/", false),
        ("http://api.example/", false),
        ("https://api.example./", false),
        ("/relative", false),
    ]
    .map(|(text, there)| (uri(text), there))
    {
        assert_eq!(api.allows(&allowed), there, "{allowed}");
    }
    assert!(!api.has_plain_http());
    let [base, local] = ["https://api.example", "http://127.0.0.1:8080"];
    for urls in [[base, local], [local, base]] {
        assert!(self::api(settings().api_url(urls[0]).api_url(urls[1])).has_plain_http());
    }
}

#[test]
fn r39_only_an_answer_from_a_configured_origin_rejects_a_token() {
    let api = api(settings().api_url("https://api.example"));
    let headers = HeaderMap::new();
    let (here, elsewhere) = (uri("https://api.example/x"), uri("https://elsewhere.example/x"));
    assert!(api.rejects_token(&here, StatusCode::UNAUTHORIZED, &headers));
    assert!(!api.rejects_token(&elsewhere, StatusCode::UNAUTHORIZED, &headers));
    assert!(!api.rejects_token(&here, StatusCode::FORBIDDEN, &headers));
}

#[test]
fn r6_r57_the_application_id_is_the_requests_own_or_the_callers_or_the_clients() {
    let bearer = Token::fake("t0ken").header();
    let authorized = |api: &Api, by_hand: Option<&'static str>, own: Option<u64>| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic left-over"));
        if let Some(value) = by_hand {
            headers.insert("applicationid", HeaderValue::from_static(value));
        }
        api.authorize(&mut headers, bearer.clone(), own);
        assert_eq!(headers.get_all(header::AUTHORIZATION).iter().collect::<Vec<_>>(), ["Bearer t0ken"]);
        assert!(headers[header::AUTHORIZATION].is_sensitive());
        headers.get("applicationid").map(|id| id.to_str().unwrap().to_owned())
    };
    let with = api(settings().application_id(1042));
    assert_eq!(with.application_id(), Some(1042));
    assert_eq!(authorized(&with, None, None).as_deref(), Some("1042"));
    assert_eq!(authorized(&with, None, Some(7)).as_deref(), Some("7"));
    assert_eq!(authorized(&with, Some("9"), None).as_deref(), Some("9"));
    assert_eq!(authorized(&with, Some("9"), Some(7)).as_deref(), Some("7"));
    let without = api(settings());
    assert_eq!(without.application_id(), None);
    assert_eq!(authorized(&without, None, None), None);
    assert_eq!(authorized(&without, None, Some(7)).as_deref(), Some("7"));
}

#[test]
fn r6_the_application_ids_header_can_be_spelled_otherwise() {
    let api = api(settings().application_id(1042).application_header("application-id"));
    let mut headers = HeaderMap::new();
    api.authorize(&mut headers, Token::fake("t0ken").header(), None);
    assert_eq!(headers["application-id"], "1042");
    assert!(!headers.contains_key("applicationid"));
    let error = settings().application_header("no header").check().unwrap_err();
    assert_eq!(error.field(), Field::ApplicationHeader);
}
