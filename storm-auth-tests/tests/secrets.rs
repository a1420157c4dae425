//! No text shows a secret: neither what the adapters say, nor what they and their HTTP clients trace, log and print.
//!
//! Each adapter goes through everything that can go well or wrong in a process of its own, with a subscriber and a logger that
//! take all there is and print it. The process's output is then searched for any eight bytes in a row of the secret and the token.

#![allow(clippy::print_stdout, reason = "what is printed is what is searched")]
#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/face.rs"]
mod face;
#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/peers.rs"]
mod peers;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::{self, Write as _},
    fs,
    io::ErrorKind,
    path::Path,
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;

use face::{
    Adapter, Events, Failed, OverReqwest, OverUreq, PATIENCE, Payload, Setup, TokenClient, get, named_url, pass,
    request, until,
};
use http::{HeaderMap, Method, Response};
use peers::{Scripted, Step, say as said};
use storm_auth_core::driver::{Board, PerProcess};
use storm_auth_core::machine::Output;
use storm_auth_core::store::{Seen, StoreFailure, TokenStore as _};
use storm_auth_core::wire::{challenge::bearer_error, response::ResponseBody, response::read_response};
use storm_auth_core::{
    Budget, Cause, Credentials, CredentialsFailure, Failure, FailureKind, FileSettings, HttpHosts, Machine, Now,
    Policy, Settings, Token,
};
use storm_auth_tests::emulator::{At, Emulator, Endpoint, Fault, Limiter};
use storm_auth_tests::memory_store::MemoryStore;
use tower_layer::Layer as _;

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

/// How eight bytes may be written: as they are, in hexadecimal, together or in pairs, percent-encoded, and as lists.
fn shapes(window: &[u8]) -> [Vec<u8>; 7] {
    let hex: Vec<String> = window.iter().map(|byte| format!("{byte:02x}")).collect();
    let pairs: Vec<String> = hex.chunks(2).map(<[String]>::concat).collect();
    let percent: String = hex.iter().map(|byte| format!("%{byte}")).collect();
    let list: Vec<String> = window.iter().map(u8::to_string).collect();
    let upper = percent.to_ascii_uppercase();
    let texts = [hex.concat(), pairs.join(" "), percent, upper, list.join(", "), hex.join(", ")];
    let [together, pairs, percent, upper, list, hex] = texts.map(String::into_bytes);
    [window.to_vec(), together, pairs, percent, upper, list, hex]
}

/// Everything that must not stand in a line: what eight bytes may look like, and eleven letters of what base64 makes of the whole,
/// wherever in its groups of three bytes it begins.
fn forbidden(canary: &str) -> BTreeMap<usize, HashSet<Vec<u8>>> {
    let mut forbidden: Vec<Vec<u8>> = canary.as_bytes().windows(8).flat_map(shapes).collect();
    for skipped in 0..3 {
        for engine in [&base64::engine::general_purpose::STANDARD, &base64::engine::general_purpose::URL_SAFE] {
            let encoded = engine.encode(&canary[skipped..]);
            forbidden.extend(encoded.trim_end_matches('=').as_bytes().windows(11).map(<[u8]>::to_vec));
        }
    }
    let mut by_length = BTreeMap::<usize, HashSet<Vec<u8>>>::new();
    for part in forbidden {
        by_length.entry(part.len()).or_default().insert(part);
    }
    by_length
}

#[test]
fn r58_every_shape_of_a_canary_is_found() {
    let forbidden = forbidden(&secret());
    let part = &secret()[100..130];
    let percent: String = part.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let hex: String = part.bytes().map(|byte| format!("{byte:02x}")).collect();
    let base64 = base64::engine::general_purpose::STANDARD.encode(format!("shop:{part}"));
    for shown in [part.to_owned(), percent, hex, base64, format!("{:?}", part.as_bytes())] {
        assert!(shows(&forbidden, &format!("x {shown} y")), "{shown}");
    }
    assert!(!shows(&forbidden, &format!("{} {}", &part[..7], token())));
}

fn shows(forbidden: &BTreeMap<usize, HashSet<Vec<u8>>>, line: &str) -> bool {
    forbidden.iter().any(|(length, parts)| line.as_bytes().windows(*length).any(|part| parts.contains(part)))
}

/// Public types that no scene shows, and why they need not be.
const HOLD_NO_TEXT: [(&str, &str); 35] = [
    ("Activity", "names"),
    ("BodyTooLarge", "empty"),
    ("Class", "names"),
    ("Diagnostic", "names"),
    ("Facts", "numbers, and words that are literals"),
    ("FailureKind", "names"),
    ("Field", "names"),
    ("KeyId", "a number"),
    ("Landing", "names"),
    ("Measurement", "numbers, and labels that are literals or a key's number"),
    ("Metric", "literals"),
    ("MetricKind", "names"),
    ("MetricUnit", "names"),
    ("Once", "empty"),
    ("Order", "a time and a number"),
    ("Owner", "a number"),
    ("Reading", "a number"),
    ("RecordFault", "names"),
    ("Lease", "names, and a span"),
    ("Malformed", "names; the member's is a literal"),
    ("Moment", "numbers"),
    ("Mono", "a number"),
    ("OpId", "a number"),
    ("Reason", "names"),
    ("RetryAfter", "a span"),
    ("Served", "numbers"),
    ("Severity", "names"),
    ("Stage", "names"),
    ("Timeout", "a number and a name"),
    ("TimeoutReason", "names"),
    ("TokenFault", "names"),
    ("TokenFuture", "a boxed future, which has no Debug"),
    ("Unix", "a number"),
    ("WaiterId", "a number"),
    ("Now", "numbers"),
];

/// The public types of a crate, as its sources name them.
fn public_types(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            public_types(&path, found);
        } else {
            let source = fs::read_to_string(&path).unwrap();
            let named = source.lines().filter_map(|line| {
                let rest = ["pub struct ", "pub enum ", "pub type ", "pub union "]
                    .iter()
                    .find_map(|kind| line.trim().strip_prefix(kind))?;
                rest.split(|character: char| !character.is_alphanumeric()).next()
            });
            found.extend(named.map(str::to_owned));
        }
    }
}

/// A type that is new has to be shown in a scene, or to be listed with a reason.
#[test]
fn r58_every_public_type_is_shown_in_a_scene() {
    let output = ["core", "reqwest", "ureq"].map(played).concat();
    let shown: BTreeSet<&str> = output
        .lines()
        .filter_map(|line| line.strip_prefix("our type "))
        .flat_map(|name| name.split(|character: char| !(character.is_alphanumeric() || character == '_')))
        .collect();
    let exempt = BTreeMap::from(HOLD_NO_TEXT);
    let mut all = BTreeSet::new();
    for (folder, least) in [("storm-auth-core", 50), ("storm-auth-reqwest", 8), ("storm-auth-blocking", 8)] {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(folder).join("src");
        let mut types = BTreeSet::new();
        public_types(&sources, &mut types);
        assert!(types.len() >= least, "{types:?}");
        let missing: Vec<_> =
            types.iter().filter(|name| !shown.contains(name.as_str()) && !exempt.contains_key(name.as_str())).collect();
        assert!(missing.is_empty(), "no scene shows these types of {folder}: {missing:?}");
        all.append(&mut types);
    }
    let gone: Vec<_> = exempt.keys().filter(|name| !all.contains(**name) || shown.contains(**name)).collect();
    assert!(gone.is_empty(), "these need no exemption: {gone:?}");
}

#[test]
fn r58_nothing_of_the_core_shows_a_secret() {
    assert_clean("core", &[]);
}

/// What a scene prints. It is played once for all tests.
fn played(scene: &str) -> &'static str {
    static CORE: LazyLock<String> = LazyLock::new(|| play_apart("core"));
    static REQWEST: LazyLock<String> = LazyLock::new(|| play_apart("reqwest"));
    static UREQ: LazyLock<String> = LazyLock::new(|| play_apart("ureq"));
    match scene {
        "core" => &CORE,
        "reqwest" => &REQWEST,
        _ => &UREQ,
    }
}

/// What a scene prints, played by a process of its own.
fn play_apart(scene: &str) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_scene_for_the_other_tests", "--nocapture"])
        .env(SCENE, scene)
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && output.contains("the scene is over"), "{output}");
    output
}

fn assert_clean(scene: &str, heard: &[&str]) {
    let output = played(scene);
    // The ears are open.
    let adapters = ["our event Granted", "our error", "trace storm_auth", "the caller's own panic"];
    for sign in adapters.iter().filter(|_| scene != "core").chain(heard) {
        assert!(output.contains(sign), "{sign:?} was not heard: {output}");
    }
    for (name, canary) in [("secret", secret()), ("token", token())] {
        let forbidden = forbidden(&canary);
        for line in output.lines() {
            assert!(!shows(&forbidden, line), "eight bytes of the {name} are shown: {line}");
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
        "core" => play_core(),
        "reqwest" => {
            play::<OverReqwest>();
            let emulator = Emulator::start();
            say("fake", &storm_auth_reqwest::FakeTokens::new([Ok(Token::fake(&token()))]));
            let request = Setup::<OverReqwest>::at(&emulator).client().get("/a").with(|call| call.bearer_auth(token()));
            say("request", &request);
            let with_secret = |settings: Settings| settings.credentials(Credentials::new("shop", secret()).unwrap());
            let storm = Setup::<OverReqwest>::at(&emulator).set(with_secret).client();
            say("middleware", &storm.middleware());
            say("layer", &storm.layer().replaying());
            say("service", &storm.layer().layer(Token::fake(&token())));
        }
        "ureq" => {
            play::<OverUreq>();
            let emulator = Emulator::start();
            say("fake", &storm_auth_blocking::FakeTokens::new([Ok(Token::fake(&token()))]));
            say("request", &Setup::<OverUreq>::at(&emulator).client().get("/a"));
            let with_secret = |settings: Settings| settings.credentials(Credentials::new("shop", secret()).unwrap());
            say("middleware", &Setup::<OverUreq>::at(&emulator).set(with_secret).client().middleware());
        }
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

fn say<T: fmt::Debug + ?Sized>(what: &str, value: &T) {
    println!("our type {}", std::any::type_name::<T>());
    println!("our {what} {value:?}");
    println!("our {what} {value:#?}");
}

fn say_error(error: &Failed) {
    println!("our error {}", error.text);
    println!("our type of the adapter's Error\nour error {}", error.debug);
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
    static NOW: AtomicBool = AtomicBool::new(true);
    say_error(&A::token(&setup().set(named).token_client(TokenClient::Panicking(&NOW)).tokens()).unwrap_err());
    emulator.fail_next(Endpoint::Token, 1, Fault::json(200, granting));
    let panicking = setup().events(&Events::panicking()).tokens();
    say("token", &A::token(&panicking).unwrap().id());
    A::set_credentials(&tokens, Credentials::new("shop", canary(4, 317)).unwrap()).unwrap();
    say("tokens", &A::for_credentials(&tokens, Credentials::new("erp", secret).unwrap()));
    let pasted = format!("{token}\n");
    say("error", &Credentials::new("shop", pasted).unwrap_err());
    let warm = A::keep_warm(&tokens);
    say("guard", &warm);
    say("clock", &clock);
    say("counters", &A::counters(&tokens));
    say("key's status", &A::key_status(&tokens));
    say("rejection", &A::invalidate(&tokens, held.id()));
    drop(warm);
    A::close(&tokens, PATIENCE).unwrap();
    say_error(&A::token(&tokens).unwrap_err());

    // No HTTP, or not for long, and silence; each repeats what it was sent.
    let secret = crate::secret();
    let broken = [
        format!("SSH-2.0 {secret} {token}\r\n"),
        format!("HTTP/1.1 400 {secret}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{secret} {token}: x\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\ncontent-length: {secret}\r\n\r\n{token}"),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{token}\r\n{secret}"),
        format!("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{{\"access_token\":\"{token}\",\"x\":\"{secret}"),
    ];
    for text in broken {
        let peer = Scripted::start([vec![Step::Hear, said(text), Step::Close]]);
        let url = format!("{}/token", peer.url());
        say_error(&A::token(&setup().set(|settings| settings.token_url(url)).tokens()).unwrap_err());
    }
    let silent = Scripted::start([vec![Step::Hear, said(format!("HTTP/1.1 200 OK\r\nx: {token}"))]]);
    let url = format!("{}/token", silent.url());
    let tokens = setup().set(|settings| settings.token_url(url)).tokens();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| A::token_within(&tokens, Duration::from_secs(600)));
        until("the request", || silent.heard() == 1);
        pass::<A>(&clock, &tokens, Duration::from_secs(61));
        say_error(&caller.join().unwrap().unwrap_err());
    });
}

/// What a driver of one's own meets: every part of the core that a secret or a token comes through.
fn play_core() {
    let (secret, token) = (secret(), token());
    let now = Now::from_millis(1_000_000, 1_700_000_000_000);
    let config = Settings::new()
        .environment(storm_auth_core::Environment::storm_lab())
        .credentials(Credentials::new("shop", secret.clone()).unwrap().with_next(format!("{secret}+")).unwrap())
        .check()
        .unwrap();
    say("config", &config);
    say("key", &config.key);
    say("credentials", config.key.credentials());
    say("secret", config.key.credentials().secret());
    say("url", config.key.token_url());
    say("scope", config.key.scope());
    say("api", &config.api);
    say("API's url", &storm_auth_core::ApiUrl::parse("https://api.storm.io/x", &HttpHosts::default()));
    say("origin", &storm_auth_core::ApiUrl::parse("https://api.storm.io/x", &HttpHosts::default()).unwrap().origin());
    say("hosts", &HttpHosts::default());
    say("environment", &storm_auth_core::Environment::storm_lab());
    say("policy", &Policy::default());
    say("budget", &Policy::default().budget);
    say("pasted", &Credentials::new("shop", format!("{secret}\n")));
    say("per process", &PerProcess::new(config.key.clone(), 1));

    // A configuration file with the secret wherever people may put it; and one that names its file.
    let misplaced = ["client_secret", "client_secret_file", "application_id", "budget", "caller_deadline"];
    for key in misplaced {
        let text = format!("environment = 'storm-lab'\n{key} = {secret:?}");
        let file: FileSettings = toml::from_str(&text).unwrap();
        say("file", &file);
        let variable = |name: &str| (name == "STORM_CLIENT_SECRET").then(|| format!("{secret}\n").into());
        for draft in [
            file.under_variables(|_| None, |_| Err(ErrorKind::NotFound.into())),
            file.under_variables(variable, |_| Ok(Vec::new())),
        ] {
            say("draft", &draft);
            say("found", &draft.found()[0]);
            say("source", &draft.found()[0].source);
            say("no settings", &draft.finish().err());
        }
    }
    say(
        "unreadable",
        &toml::from_str::<FileSettings>(&format!("norce = {{ tenant = {secret:?}, region = 7 }}"))
            .map(|file| file.settings(|_| Ok(Vec::new()))),
    );
    say("seen", &Seen::in_store(&config, &MemoryStore::new(), now));

    let answers = [
        (200, format!(r#"{{"access_token":"{token}","expires_in":600,"scope":"{secret}"}}"#)),
        (400, format!(r#"{{"error":"invalid_client","error_description":"{secret}"}}"#)),
        (502, format!("{secret} {token}")),
    ];
    for (status, text) in answers {
        let mut machine = Machine::new(config.policy.clone(), 7);
        machine.share();
        let store = MemoryStore::new();
        let key = machine.add_key(config.key.clone(), now);
        machine.renew_credentials(key, now);
        say("acquire", &machine.acquire(key, None, now));
        let mut body = ResponseBody::new();
        body.push(text.as_bytes()).unwrap();
        let response = Response::builder().status(status).header("retry-after", &secret).body(body).unwrap();
        say("body", response.body());
        let answer = read_response(&response, &[secret.as_bytes(), token.as_bytes()], Duration::from_secs(1));
        say("answer", &answer);
        say("outcome", &answer.outcome);
        match &answer.outcome {
            storm_auth_core::wire::response::Outcome::Granted(grant) => {
                say("grant", grant);
                say("access token", &grant.access_token);
            }
            storm_auth_core::wire::response::Outcome::Refused(refusal) => {
                say("refusal", refusal);
                say("OAuth error", &refusal.error);
            }
        }
        while let Some(output) = machine.poll_output() {
            say("output", &output);
            let Output::Perform(action) = output else { continue };
            say("action", &action);
            let send = match action {
                storm_auth_core::machine::Action::Send(send) => send,
                storm_auth_core::machine::Action::Store(request) => {
                    say("request", &request);
                    say("operation", &request.store_op);
                    say("command", &request.store_op.command);
                    say("sealing key", request.store_op.sealing_key());
                    let reply = store.perform(&request.store_op).unwrap();
                    say("reply", &reply);
                    if let Some(record) = &reply.record {
                        say("record", record);
                    }
                    say("failure", &StoreFailure::new("on purpose"));
                    machine.handle_store(request.op, Ok(reply), now);
                    continue;
                }
                storm_auth_core::machine::Action::Credentials(request) => {
                    say("look", &request);
                    let failure = CredentialsFailure::new(format!("a vault says {secret}"));
                    // As it is until the machine has it, it shows what its source says.
                    say("failure of a source", &CredentialsFailure::new("sealed"));
                    machine.handle_credentials(request.op, Err(failure), now);
                    continue;
                }
            };
            say("request", &send);
            say("form", send.request.body());
            machine.handle_response(send.op, &response, now);
        }
        say("peek", &machine.peek(key, now));
        say("acquire", &machine.acquire(key, None, now));
        say("machine", &machine);
        say("status", &machine.status(now));
        let failure = Failure::new(FailureKind::Io, "reset");
        say("failure", &failure);
        say("cause", &Cause::Failed(failure));
    }
    let mut board: Board<()> = Board::new(Machine::new(config.policy, 7), 4);
    let (key, cell) = board.add_key(config.key, now);
    let _ = board.acquire(key, None, now);
    let mut work = board.take_work();
    say("work", &work);
    let mut body = ResponseBody::new();
    body.push(format!(r#"{{"access_token":"{token}","expires_in":600}}"#).as_bytes()).unwrap();
    board.report(work.sends.pop_front().unwrap().op, Ok(Response::new(body)), now);
    assert_eq!(cell.token(0, now).unwrap().expose(), token);
    say("cell", &cell);
    say("board", &board);
    let mut headers = HeaderMap::new();
    let echo = format!(r#"Bearer error="invalid_token", error_description="{token}""#);
    headers.insert("www-authenticate", echo.parse().unwrap());
    say("challenge", &bearer_error(&headers));
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
