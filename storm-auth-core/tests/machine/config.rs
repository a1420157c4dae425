//! R1 to R7: what is configured, and the bytes that are sent.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use proptest::prelude::*;
use storm_auth_core::{
    Budget, Credentials, Environment, Field, HttpHosts, Key, Origin, Policy, Scope, Settings, Stage, TokenUrl, scope,
};

use crate::harness::Lab;

fn text() -> impl Strategy<Value = String> {
    // Any UTF-8, the characters that forms treat specially more often; R3 takes no control characters, and no space around it.
    let special = proptest::sample::select(" &=+%;/?#\"\\~*'()é😀".chars().collect::<Vec<_>>());
    let inner = prop_oneof![special, any::<char>()].prop_filter("no control character", |c| !c.is_control());
    proptest::collection::vec(inner, 1..40)
        .prop_map(String::from_iter)
        .prop_filter("no white space around it", |text| text.trim() == text && !text.is_empty())
}

fn scopes() -> impl Strategy<Value = String> {
    proptest::collection::btree_set("[!#-\\[\\]-~]{1,12}", 1..5)
        .prop_map(|tokens| tokens.into_iter().collect::<Vec<_>>().join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, max_shrink_iters: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn r1_any_id_secret_and_scope_arrive_byte_for_byte(id in text(), secret in text(), scope in scopes()) {
        let mut lab = Lab::new();
        let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token?tenant=a%20b", &HttpHosts::default()).unwrap();
        let key = Key::new(url, Credentials::new(id.clone(), secret.clone()).unwrap(), Scope::new(&scope).unwrap());
        let key = lab.machine.add_key(key, lab.now());
        lab.wait(key);
        let send = lab.take_send(key);
        let request = &send.request;
        let sent: Vec<_> = form_urlencoded::parse(request.body().as_bytes()).into_owned().collect();
        let expected = [
            ("grant_type", "client_credentials"), ("client_id", &id), ("client_secret", &secret), ("scope", &scope),
        ];
        prop_assert_eq!(sent, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        prop_assert_eq!(request.method(), Method::POST);
        prop_assert_eq!(request.uri(), "https://identity.storm.io/1.0/connect/token?tenant=a%20b");
        let headers: BTreeMap<_, _> = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let expected: BTreeMap<_, &[u8]> = BTreeMap::from([
            ("accept", &b"application/json"[..]),
            ("accept-encoding", b"identity"),
            ("content-type", b"application/x-www-form-urlencoded"),
        ]);
        prop_assert_eq!(headers, expected);
    }

    #[test]
    fn r2_a_scope_is_taken_as_the_rfc_allows_it(scope in "[ -~é\t]{0,12}") {
        let tokens: Vec<&str> = scope.split(' ').collect();
        let allowed = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
        let distinct = tokens.iter().collect::<std::collections::BTreeSet<_>>().len() == tokens.len();
        let valid = distinct && tokens.iter().all(|token| !token.is_empty() && token.chars().all(allowed));
        match Scope::new(&scope) {
            Ok(taken) => {
                prop_assert!(valid, "{:?} was taken", scope);
                prop_assert_eq!(taken.as_str(), Some(&scope[..]));
            }
            Err(error) => {
                prop_assert!(!valid, "{:?} was refused", scope);
                prop_assert_eq!(error.field(), Field::Scope);
            }
        }
    }
}

#[test]
fn r2_the_known_scopes_are_constants_and_none_is_an_explicit_choice() {
    for known in [scope::LAB, scope::QA, scope::PRODUCTION, scope::PLAYGROUND, scope::STAGE, scope::PROD, "Staging"] {
        assert_eq!(Scope::new(known).unwrap().as_str(), Some(known));
    }
    let credentials = Credentials::new("shop", "S3cret").unwrap();
    let settings = Settings::new().token_url("https://id.example/token").credentials(credentials);
    assert_eq!(settings.clone().check().unwrap_err().field(), Field::Scope);
    let config = settings.scope(Scope::server_default()).check().unwrap();
    let mut lab = Lab::new();
    let key = lab.machine.add_key(config.key, lab.now());
    lab.wait(key);
    assert_eq!(
        lab.sends[0].request.body().as_bytes(),
        b"grant_type=client_credentials&client_id=shop&client_secret=S3cret"
    );
}

#[test]
fn r3_white_space_around_and_control_characters_name_the_field_and_not_the_value() {
    let bad = [
        "",
        " ",
        " canary-value",
        "canary-value ",
        "canary-value\n",
        "\tcanary-value",
        "canary\rvalue",
        "canary\0value",
        "canary\u{7f}value",
        "canary\u{85}value",
        "\u{a0}canary-value",
        "canary-value\u{2003}",
    ];
    for value in bad {
        for (field, result) in [
            (Field::ClientId, Credentials::new(value, "S3cret")),
            (Field::ClientSecret, Credentials::new("shop", value)),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.field(), field, "{value:?}");
            assert!(!format!("{error} {error:?}").contains("anary"), "{error}");
        }
    }
    assert!(Credentials::new("a b", "pass word").is_ok());
}

#[test]
fn r4_a_token_url_is_https_without_userinfo_and_fragment() {
    let mut hosts = HttpHosts::default();
    hosts.danger_allow("emulator");
    let taken = [
        "https://identity.storm.io/1.0/connect/token",
        "HTTPS://Identity.Storm.IO:8443/token?x=1",
        "http://127.0.0.1:8080/token",
        "http://127.255.0.9/token",
        "http://[::1]:8080/token",
        "http://localhost/token",
        "http://LOCALHOST:1/token",
        "http://emulator:9000/token",
        "http://EMULATOR/token",
    ];
    let refused = [
        "",
        "/token",
        "identity.storm.io/token",
        "ftp://identity.storm.io/token",
        "http://identity.storm.io/token",
        "http://128.0.0.1/token",
        "http://10.0.0.1/token",
        "http://[::2]/token",
        "http://localhost.example/token",
        "http://127.0.0.1.example/token",
        "http://emulator.example/token",
        "https://user@identity.storm.io/token",
        "https://user:pass@identity.storm.io/token",
        "https://@identity.storm.io/token",
        "https://identity.storm.io/token#f",
        "https://identity.storm.io/token#",
        "https://identity.storm.io:99999/token",
        "https:///token",
        "https://identity.storm.io/to ken",
    ];
    for url in taken {
        assert!(TokenUrl::parse(url, &hosts).is_ok(), "{url}");
    }
    for url in refused {
        let error = TokenUrl::parse(url, &hosts).expect_err(url);
        assert_eq!(error.field(), Field::TokenUrl);
    }
    // Named for nobody else.
    assert!(TokenUrl::parse("http://emulator/token", &HttpHosts::default()).is_err());
    // And through the settings too.
    let settings = |url: &str| {
        let credentials = Credentials::new("shop", "S3cret").unwrap();
        Settings::new().token_url(url).credentials(credentials).scope(Scope::new("lab").unwrap())
    };
    assert!(settings("http://emulator/token").check().is_err());
    assert!(settings("http://emulator/token").danger_allow_http("emulator").check().is_ok());
}

#[test]
fn r4_a_tenant_cannot_move_the_secret_to_another_host() {
    for slug in ["", "evil.example/", "a.b", "a@b", "a#", "-a", "a-", "ä", "a b"] {
        let error = Settings::new()
            .environment(Environment::norce(slug, "se", Stage::Production))
            .credentials(Credentials::new("shop", "S3cret").unwrap())
            .check()
            .expect_err(slug);
        assert_eq!(error.field(), Field::Tenant, "{slug:?}");
    }
}

#[test]
fn r6_the_application_id_is_a_header_and_no_part_of_the_key() {
    let config = |id, header: Option<&str>| {
        let settings = Settings::new()
            .environment(Environment::storm_lab())
            .credentials(Credentials::new("shop", "S3cret").unwrap())
            .application_id(id);
        match header {
            Some(name) => settings.application_header(name).check(),
            None => settings.check(),
        }
    };
    let mut lab = Lab::new();
    let keys: Vec<_> = [(1, None), (1042, None), (7, Some("application-id"))]
        .into_iter()
        .map(|(id, header)| lab.machine.add_key(config(id, header).unwrap().key, lab.now()))
        .collect();
    assert_eq!(keys, [keys[0]; 3]);

    let headers = |header: Option<&str>, per_request| {
        let mut headers = HeaderMap::new();
        let api = config(1042, header).unwrap().api.unwrap();
        api.authorize(&mut headers, HeaderValue::from_static("Bearer t"), per_request);
        headers
    };
    assert_eq!(headers(None, None)["applicationId"], "1042");
    assert_eq!(headers(None, Some(7))["ApplicationId"], "7");
    assert_eq!(headers(Some("application-id"), None)["application-id"], "1042");
    assert!(!headers(Some("application-id"), None).contains_key("applicationid"));
    assert_eq!(headers(None, None)[header::AUTHORIZATION], "Bearer t");
    assert_eq!(config(1, Some("not a header")).unwrap_err().field(), Field::ApplicationHeader);
}

#[test]
fn r6_an_application_id_from_the_environment_is_a_number() {
    let settings = |id: &'static str| {
        let variable = move |name: &str| {
            Some(match name {
                "STORM_TOKEN_URL" => "https://id.example/token".into(),
                "STORM_API_URL" => "https://api.example".into(),
                "STORM_CLIENT_ID" => "shop".into(),
                "STORM_CLIENT_SECRET" => "S3cret".into(),
                "STORM_SCOPE" => "lab".into(),
                "STORM_APPLICATION_ID" => id.into(),
                _ => return None,
            })
        };
        Settings::from_variables(variable, |_| unreachable!("no file is named"))
    };
    assert!(settings("1042").is_ok());
    for bad in ["", "+1", "-1", "1.0", "0x10", "99999999999999999999", " 1"] {
        assert_eq!(settings(bad).expect_err(bad).field(), Field::ApplicationId);
    }
}

#[test]
fn r7_the_request_is_plain_http_with_a_body_that_shows_nothing() {
    let (mut lab, key) = Lab::with_key();
    lab.wait(key);
    let send = lab.take_send(key);
    let shown = format!("{send:?} {:?}", send.request);
    assert!(shown.contains("[token request body]") && !shown.contains("S3cret"), "{shown}");
    let request: http::Request<storm_auth_core::wire::request::FormBody> = send.request;
    let sent: &[u8] = request.body().as_ref();
    assert_eq!(sent, b"grant_type=client_credentials&client_id=shop&client_secret=S3cret&scope=lab");
    // What an HTTP client is given is the same memory, which is wiped with its last holder, and no copy of it.
    let place = sent.as_ptr();
    let bytes = request.into_body().into_bytes();
    assert_eq!(bytes.as_ptr(), place);
}

#[test]
fn r3_a_secret_from_a_file_is_named_by_its_variable_and_an_empty_variable_counts_as_unset() {
    let read = |file: &'static str| {
        let variable = |name: &str| match name {
            "STORM_CLIENT_ID" => Some("shop".into()),
            "STORM_CLIENT_SECRET" => Some("".into()),
            "STORM_CLIENT_SECRET_FILE" => Some("secret".into()),
            _ => None,
        };
        Credentials::from_variables(variable, |_| Ok(file.as_bytes().to_vec()))
    };
    assert_eq!(read("\u{FEFF}S3cret\r\n").unwrap().secret().expose(), "S3cret");
    for bad in ["S3cret\n\n", " S3cret", ""] {
        assert_eq!(read(bad).expect_err(bad).field(), Field::ClientSecretFile, "{bad:?}");
    }
}

#[test]
fn r3_a_file_that_is_too_long_for_a_secret_is_refused_and_not_cut() {
    let read = |length| {
        let variable = |name: &str| match name {
            "STORM_CLIENT_ID" => Some("shop".into()),
            "STORM_CLIENT_SECRET_FILE" => Some("secret".into()),
            _ => None,
        };
        Credentials::from_variables(variable, |_| Ok(vec![b'x'; length]))
    };
    let error = read(65_537).expect_err("too long");
    assert_eq!(error.field(), Field::ClientSecretFile);
    let shown = error.to_string();
    assert!(shown.contains("STORM_CLIENT_SECRET_FILE") && shown.contains("name the file"), "{shown}");
    assert!(read(65_536).is_ok());
}

#[test]
fn r3_a_file_that_cannot_be_read_says_what_to_change() {
    for (kind, advice) in [
        (ErrorKind::NotFound, "there is no such file; check the path"),
        (ErrorKind::PermissionDenied, "this user may not read it; give it the right to"),
        (ErrorKind::IsADirectory, "it cannot be read; check that the path is that of a file"),
    ] {
        let variable = |name: &str| match name {
            "STORM_CLIENT_ID" => Some("shop".into()),
            "STORM_CLIENT_SECRET_FILE" => Some("Canary-7d1f".into()),
            _ => None,
        };
        let error = Credentials::from_variables(variable, |_| Err(kind.into())).unwrap_err();
        assert!(error.problem().starts_with(advice), "{error}");
        let shown = error.to_string();
        assert!(shown.ends_with(error.problem()) && !shown.contains("Canary"), "{shown}");
    }
}

#[test]
fn r43_a_file_for_a_second_secret_with_nothing_in_it_is_none() {
    let read = |next: &'static str| {
        let variable = |name: &str| match name {
            "STORM_CLIENT_ID" => Some("shop".into()),
            "STORM_CLIENT_SECRET" => Some("S3cret".into()),
            "STORM_CLIENT_SECRET_NEXT_FILE" => Some("next".into()),
            _ => None,
        };
        let credentials = Credentials::from_variables(variable, |_| Ok(next.into()));
        credentials.map(|both| both.next_secret().map(|next| next.expose().to_owned()))
    };
    assert_eq!(read("Successor\n").unwrap().as_deref(), Some("Successor"));
    assert_eq!(read("\n").unwrap(), None);
    assert_eq!(read(" ").unwrap_err().field(), Field::NextSecretFile);
}

#[test]
fn r3_one_line_ending_of_a_secret_file_is_no_part_of_it() {
    for (bytes, secret) in
        [("S3cret\n", "S3cret"), ("S3cret\r\n", "S3cret"), ("\u{FEFF}S3cret", "S3cret"), ("S3cret", "S3cret")]
    {
        let variable = |name: &str| match name {
            "STORM_CLIENT_ID" => Some("shop".into()),
            "STORM_CLIENT_SECRET_FILE" => Some("secret".into()),
            _ => None,
        };
        let credentials = Credentials::from_variables(variable, |_| Ok(bytes.into())).unwrap();
        assert_eq!(credentials.secret().expose(), secret, "{bytes:?}");
        assert_eq!(format!("{:?}", credentials.secret()), "[client secret]");
    }
}

#[test]
fn r18_what_was_put_into_a_url_by_mistake_is_not_shown() {
    let url = "https://id:hunter2@host.example/token?client_secret=hunter2#hunter2";
    let settings = Settings::new().environment(Environment::custom(url, url, "lab")).token_url(url).api_url(url);
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hunter2") && shown.contains("https://host.example/token"), "{shown}");
    let url = TokenUrl::parse("https://host.example/token?client_secret=hunter2", &HttpHosts::default()).unwrap();
    assert_eq!(format!("{url:?}"), "TokenUrl(https://host.example/token)");
}

#[test]
fn r45_a_target_is_sent_as_it_was_written_or_refused() {
    let settings = Settings::new()
        .environment(Environment::custom("https://id.example/token", "https://api.example/base", "lab"))
        .credentials(Credentials::new("shop", "S3cret").unwrap());
    let api = settings.check().unwrap().api.unwrap();
    assert_eq!(api.target("a/b?c=../d").unwrap(), "https://api.example/base/a/b?c=../d");
    assert_eq!(api.target("/...").unwrap(), "https://api.example/base/...");
    for bad in ["/../up", "/a/.", "/%2e%2E/up", "..", "/a b", "/\\up", "/\u{e5}", "https://api.example/base/../up"] {
        assert_eq!(api.target(bad).expect_err(bad).field(), Field::Target, "{bad}");
    }
}

#[test]
fn r39_only_an_answer_of_a_configured_origin_judges_the_token() {
    let settings = Settings::new()
        .environment(Environment::custom("https://id.example/token", "https://api.example", "lab"))
        .credentials(Credentials::new("shop", "S3cret").unwrap());
    let api = settings.check().unwrap().api.unwrap();
    let rejects = |uri: &str| api.rejects_token(uri, http::StatusCode::UNAUTHORIZED, &HeaderMap::new());
    assert!(rejects("https://api.example/a"));
    assert!(!rejects("https://elsewhere.example/a"));
}

#[test]
fn r2_presets_name_their_scope_and_only_hosts_that_are_documented() {
    let lab = Environment::storm_lab();
    assert_eq!((lab.scope(), lab.api_url()), ("lab", Some("https://api.lab.storm.io")));
    let qa = Environment::storm_qa();
    assert_eq!((qa.scope(), qa.api_url()), ("qa", None));
}

#[test]
fn r2_a_tenants_parts_are_dns_labels() {
    let check = |slug: &str| {
        let credentials = Credentials::new("shop", "S3cret").unwrap();
        Settings::new().environment(Environment::norce(slug, "se", Stage::Production)).credentials(credentials).check()
    };
    for good in ["a", "acme", "acme-2", &"a".repeat(63)] {
        assert!(check(good).is_ok(), "{good}");
    }
    for bad in ["", "-acme", "acme-", "ac.me", "ac_me", "acme/", "acm\u{e9}", &"a".repeat(64)] {
        assert_eq!(check(bad).expect_err(bad).field(), Field::Tenant, "{bad}");
    }
}

#[test]
fn r45_a_port_that_is_not_written_is_the_schemes() {
    let origin = |uri: &str| Origin::of(&uri.parse().unwrap()).unwrap();
    assert_eq!(origin("http://127.0.0.1/a"), origin("http://127.0.0.1:80/b"));
    assert_eq!(origin("https://api.example"), origin("https://API.example:443"));
    assert_ne!(origin("http://127.0.0.1:443"), origin("http://127.0.0.1"));
}

#[test]
fn a_configuration_error_reads_the_same_in_debug() {
    let error = Credentials::new("shop", "").expect_err("it is empty");
    assert_eq!(format!("{error:?}"), "client secret (STORM_CLIENT_SECRET): it is empty; set it");
}

#[test]
fn r30_a_refresh_time_outside_of_the_life_is_refused() {
    for bad in [0.0, -1.0, 1.1, f64::NAN, f64::INFINITY] {
        let (mut early, mut late) = (Policy::default(), Policy::default());
        early.refresh_early = bad;
        late.refresh_late = bad;
        for policy in [early, late] {
            let settings = Settings::new()
                .environment(Environment::storm_lab())
                .credentials(Credentials::new("shop", "S3cret").unwrap())
                .policy(policy);
            assert_eq!(settings.check().expect_err("a bad share").field(), Field::Refresh, "{bad}");
        }
    }
}

#[test]
fn r26_r29_a_deadline_and_a_budget_can_be_set_alone() {
    let settings = Settings::new()
        .environment(Environment::storm_lab())
        .credentials(Credentials::new("shop", "S3cret").unwrap())
        .budget(Budget::unlimited())
        .caller_deadline(Duration::from_secs(5));
    let policy = settings.check().unwrap().policy;
    assert_eq!((policy.budget, policy.caller_deadline), (Budget::unlimited(), Duration::from_secs(5)));
    assert_eq!(Budget::unlimited().to_string(), "unlimited");
    assert_eq!(Budget::default().to_string(), "3 requests a minute, and 20 more at once");
    assert_eq!(policy.refresh_early, 0.75);
}

#[test]
fn a_host_of_the_service_has_the_scopes_that_are_documented_for_it() {
    let scopes = |url: &str| Origin::of(&url.parse().unwrap()).unwrap().documented_scopes();
    for (url, expected) in [
        ("https://acme.api-se.norce.tech/identity/1.0/connect/token", &["prod"][..]),
        ("https://acme.api-se.stage.norce.tech", &["stage"]),
        ("https://ACME.api-se.Playground.norce.tech:8443", &["playground"]),
        ("https://identity.storm.io", &["lab", "qa", "production"]),
        ("https://api.lab.storm.io", &["lab"]),
        ("https://api.storm.io", &["production"]),
        ("https://acme.storm.io", &[]),
        ("https://norce.tech", &[]),
        ("https://docs.norce.tech", &[]),
        ("https://acme.api-se.other.norce.tech", &[]),
        ("https://acme.api-se.playground.norce.tech.evil.example", &[]),
    ] {
        assert_eq!(scopes(url), expected, "{url}");
    }
}
