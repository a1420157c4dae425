//! No text shows a secret: neither what the adapters say, nor what they and their HTTP clients trace, log and print.
//!
//! Each adapter goes through everything that can go well or wrong in a process of its own, with a subscriber and a logger that
//! take all there is and print it. The process's output is then searched for any eight bytes in a row of the secret and the token.

#![allow(clippy::print_stdout, reason = "what is printed is what is searched")]
#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/face.rs"]
mod face;

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use face::{
    Adapter, Events, Failed, OverReqwest, OverUreq, PATIENCE, Payload, Setup, TokenClient, get, named_url, request,
};
use http::{HeaderMap, Method};
use storm_auth_core::{Budget, Credentials};
use storm_auth_tests::emulator::{At, Emulator, Endpoint, Fault, Limiter};

/// The scene that a child plays, by the name of its adapter.
const SCENE: &str = "STORM_AUTH_SECRETS_SCENE";

/// 317 and 491 characters, none of which is changed by an encoding, and no eight of which stand anywhere else.
fn canary(seed: u64, length: usize) -> String {
    let mut state = seed;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(letters[(state >> 58) as usize])
    };
    (0..length).map(|_| next()).collect()
}

fn secret() -> String {
    canary(1, 317)
}

fn token() -> String {
    canary(2, 491)
}

#[test]
fn r58_r59_nothing_shows_a_secret_over_reqwest() {
    // What reqwest and hyper say goes through `log` and `tracing`.
    assert_clean("reqwest", &["log reqwest::connect"]);
}

#[test]
fn r58_r59_nothing_shows_a_secret_over_ureq() {
    assert_clean("ureq", &["log ureq::run", "log ureq_proto"]);
}

/// How eight bytes may be written: as they are, in hexadecimal, together or in pairs, and as a list.
fn shapes(window: &[u8]) -> [Vec<u8>; 4] {
    let hex: Vec<String> = window.iter().map(|byte| format!("{byte:02x}")).collect();
    let pairs: Vec<String> = hex.chunks(2).map(<[String]>::concat).collect();
    let list: Vec<String> = window.iter().map(u8::to_string).collect();
    [window.to_vec(), hex.concat().into_bytes(), pairs.join(" ").into_bytes(), list.join(", ").into_bytes()]
}

fn assert_clean(scene: &str, heard: &[&str]) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_scene_for_the_other_tests", "--nocapture"])
        .env(SCENE, scene)
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{output}");
    // The ears are open.
    let ours = ["our event Granted", "our error", "trace storm_auth", "the caller's own panic", "the scene is over"];
    for sign in ours.iter().chain(heard) {
        assert!(output.contains(sign), "{sign:?} was not heard: {output}");
    }
    for (name, canary) in [("secret", secret()), ("token", token())] {
        let shapes: BTreeSet<Vec<u8>> = canary.as_bytes().windows(8).flat_map(shapes).collect();
        let lengths: BTreeSet<_> = shapes.iter().map(Vec::len).collect();
        for line in output.lines() {
            let shown = lengths.iter().any(|length| line.as_bytes().windows(*length).any(|part| shapes.contains(part)));
            assert!(!shown, "eight bytes of the {name} are shown: {line}");
        }
        // How long they are is not ours to tell either.
        for line in output.lines().filter(|line| line.starts_with("our ") || line.starts_with("trace storm_auth")) {
            let numbers: BTreeSet<_> = line.split(|character: char| !character.is_ascii_digit()).collect();
            assert!(!numbers.contains(canary.len().to_string().as_str()), "the length of the {name}: {line}");
        }
    }
}

#[test]
fn r59_over_ureq_a_logger_that_would_be_given_tokens_is_refused() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_scene_for_the_other_tests", "--nocapture"])
        .env(SCENE, "greedy")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

/// Does nothing by itself.
#[test]
fn a_scene_for_the_other_tests() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    tracing::subscriber::set_global_default(Ears).unwrap();
    log::set_logger(&Ears).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    match scene.as_str() {
        "reqwest" => play::<OverReqwest>(),
        "ureq" => play::<OverUreq>(),
        _ => {
            GREEDY.store(true, Ordering::Relaxed);
            let error = OverUreq::build_tokens(Setup::at(&Emulator::start())).unwrap_err();
            assert!(error.is_configuration && error.text.contains("ureq_proto"), "{error:?}");
        }
    }
    println!("the scene is over");
}

/// Whether the logger takes what ureq's protocol crate says at its finest level, which is whole heads and bodies. An adapter
/// over ureq refuses to be built then.
static GREEDY: AtomicBool = AtomicBool::new(false);

/// Takes everything, and prints it.
struct Ears;

impl log::Log for Ears {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let bytes = metadata.target().starts_with("ureq_proto") && metadata.level() == log::Level::Trace;
        !bytes || GREEDY.load(Ordering::Relaxed)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            println!("log {} {}", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

impl tracing::Subscriber for Ears {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut fields = Fields(format!("trace {} span {}", span.metadata().target(), span.metadata().name()));
        span.record(&mut fields);
        println!("{}", fields.0);
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut fields = Fields("trace record".to_owned());
        values.record(&mut fields);
        println!("{}", fields.0);
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(format!("trace {}", event.metadata().target()));
        event.record(&mut fields);
        println!("{}", fields.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

fn say(what: &str, value: &(impl fmt::Debug + ?Sized)) {
    println!("our {what} {value:?}");
    println!("our {what} {value:#?}");
}

fn say_error(error: &Failed) {
    println!("our error {}", error.text);
    say("error", error);
    if let Some(error) = &error.acquire {
        println!("our error {error}");
        say("error", error);
    }
}

/// Everything that can go well or wrong, with every handle and every outcome printed.
fn play<A: Adapter>() {
    let (secret, token) = (secret(), token());
    let emulator = Emulator::builder().client("shop", &secret, &["playground"]).limiter(Limiter::none()).start();
    let events = Events::default();
    events.act(|event| {
        println!("our event {event}");
        say("event", event);
    });
    let clock = A::movable_clock();
    let setup = || {
        let unlimited = |settings: storm_auth_core::Settings| settings.budget(Budget::unlimited());
        Setup::<A>::at(&emulator).set(unlimited).clock(&clock).events(&events)
    };
    say("settings", &setup().settings);
    say("builder", &A::builder(setup()));
    let storm = setup().client();
    let tokens = A::tokens(&storm);

    // A token, and calls with it.
    let granting = format!(r#"{{"access_token":"{token}","expires_in":600,"token_type":"Bearer","scope":"x"}}"#);
    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, granting.clone()));
    emulator.fail(Endpoint::Api, Fault::json(200, "{}"));
    let held = A::token(&tokens).unwrap();
    assert_eq!(held.expose(), token);
    say("token", &held);
    say("token id", &held.id());
    let mut headers = HeaderMap::new();
    A::authorize_call(&storm, &mut headers).unwrap();
    say("headers", &headers);
    say("header", &A::header(&tokens).unwrap());
    for call in [get("/a?b=c"), request(Method::POST, "/a").body(Payload::Bytes(vec![b'x'; 70_000]))] {
        say("answer", &A::call(&storm, call).unwrap());
    }
    say("client", &storm);
    say("tokens", &tokens);
    say("status", &A::status(&tokens));

    // Rejected: with a challenge that echoes it, with a body that goes once, with and without another token.
    let echo = format!(r#"Bearer error="invalid_token", error_description="{token}""#);
    emulator.fail_next(Endpoint::Api, 2, Fault::answer(401, &[("www-authenticate", &echo)], ""));
    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, granting.clone()));
    say("answer's status", &A::call(&storm, get("/a")).unwrap().status);
    A::advance(&clock, Duration::from_secs(120));
    let other = format!(r#"{{"access_token":"{}","expires_in":600}}"#, canary(3, 491));
    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, other.clone()));
    emulator.fail_next(Endpoint::Api, 1, Fault::answer(401, &[("www-authenticate", &echo)], ""));
    let once = request(Method::POST, "/a").body(Payload::Once(vec![b'x'; 70_000]));
    say("answer's status", &A::call(&storm, once).unwrap().status);

    // Everything that an endpoint or a proxy can answer.
    let answers = troubles(&secret, &token, "nothing").into_iter().zip(troubles(&secret, &token, &token));
    for (alone, beside_a_token) in answers {
        // To a key without a token, so that the caller is told; what an endpoint says of somebody else's token nobody can know.
        let fresh = setup().tokens();
        emulator.fail_next(Endpoint::Token, 1, alone);
        match A::token_within(&fresh, Duration::from_secs(5)) {
            Ok(token) => say("token", &token),
            Err(error) => say_error(&error),
        }
        say("status", &A::status(&fresh));
        // To a key whose token lives, which is echoed too.
        let refreshing = setup().tokens();
        emulator.fail_next(Endpoint::Token, 1, Fault::json(200, granting.clone()));
        emulator.fail_next(Endpoint::Token, 1, beside_a_token);
        A::token(&refreshing).unwrap();
        A::advance(&clock, Duration::from_secs(500));
        A::token(&refreshing).unwrap();
        A::close(&refreshing, PATIENCE).unwrap();
        say("status", &A::status(&refreshing));
    }

    // Nobody is there; a call that fails; a caller's own panics; a secret that is replaced.
    let named = |settings: storm_auth_core::Settings| settings.token_url(named_url(&emulator));
    let nowhere = "http://127.0.0.1:9/token";
    say_error(&A::token(&setup().set(|settings| settings.token_url(nowhere)).tokens()).unwrap_err());
    say_error(&A::call(&storm, get("https://elsewhere.example/")).unwrap_err());
    emulator.fail(Endpoint::Api, Fault::Reset(At::Headers));
    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, other));
    A::advance(&clock, Duration::from_secs(600));
    say_error(&A::call(&storm, get("/a")).unwrap_err());
    say_error(&A::token(&setup().set(named).token_client(TokenClient::Panicking).tokens()).unwrap_err());
    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, granting));
    let panicking = setup().events(&Events::panicking()).tokens();
    say("token", &A::token(&panicking).unwrap().id());
    A::set_credentials(&tokens, Credentials::new("shop", canary(4, 317)).unwrap()).unwrap();
    say("tokens", &A::for_credentials(&tokens, Credentials::new("erp", secret).unwrap()));
    let pasted = format!("{token}\n");
    say("error", &Credentials::new("shop", pasted).unwrap_err());
    A::close(&tokens, PATIENCE).unwrap();
}

/// Answers with the secret, the token of the answer itself, and a token that lives, wherever text can stand.
fn troubles(secret: &str, token: &str, live: &str) -> Vec<Fault> {
    let both = format!("{secret} {live}");
    let bodies = [
        (
            400,
            format!(
                r#"{{"error":"invalid_client","error_description":"{both}","error_uri":"https://{secret}/{live}"}}"#
            ),
        ),
        (400, format!(r#"{{"error":"{secret}","error_description":"{live}"}}"#)),
        (400, format!(r#"{{"error":"x","error_description":"a{}","error_uri":"{}"}}"#, &secret[9..], &secret[..40])),
        (200, format!(r#"{{"access_token":"{token}","expires_in":600,"token_type":"{secret}"}}"#)),
        (200, format!(r#"{{"access_token":"{token}é","expires_in":600}}"#)),
        (200, format!(r#"{{"access_token":"{token}","expires_in":"{token}","{secret}":1}}"#)),
        (200, format!(r#"{{"access_token":"{token}","expires_in":600,"scope":"{token} {secret}"}}"#)),
        (200, format!(r#"{{"access_token":"{token}","error":"x","error_description":"{token}"}}"#)),
        (200, format!(r#"{{"access_token":"{token}","access_token":"{token}"}}"#)),
        (200, format!(r#"{{"access_token":"{token}","expires_in":600}} trailing {both}"#)),
        (200, format!(r#"["{secret}","{token}"]"#)),
        (500, format!(r#"{{"error":"server_error","error_description":"{both}"}}"#)),
        (502, format!("<html><body>client_secret={secret} {token}</body></html>")),
    ];
    let mut faults: Vec<_> = bodies.into_iter().map(|(status, body)| Fault::json(status, body)).collect();
    faults.extend([
        Fault::answer(429, &[("retry-after", secret)], token.to_owned()),
        Fault::answer(503, &[("x-date", live)], secret.to_owned()),
        // Without an echo: ureq logs where it is sent to, whatever an endpoint writes there.
        Fault::redirect(301, "https://new.example/"),
        Fault::answer(401, &[("www-authenticate", &format!("Basic realm=\"{secret}\""))], token.to_owned()),
        Fault::Encoded,
        Fault::Oversize,
        Fault::Outage,
        Fault::Reset(At::Body),
        Fault::html(404),
    ]);
    faults
}
