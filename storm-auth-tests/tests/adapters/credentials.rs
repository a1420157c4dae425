//! R37, R43, R52, R58: credentials that come from somewhere, and two secrets while one takes the other's place.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use storm_auth_core::{Credentials, Event, Field};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault, Limiter};

use crate::face::{Adapter, Events, OverReqwest, OverUreq, PATIENCE, Setup, credentials, until};

both!(
    r43_a_secret_file_that_is_rewritten_needs_no_restart,
    r43_a_secret_file_is_looked_for_when_it_is_built,
    r43_a_secret_that_its_source_changes_costs_one_request,
    r43_the_known_credentials_stay_in_use_while_their_source_fails,
    r52_a_source_that_panics_is_one_that_fails,
    r37_a_secret_that_is_corrected_where_it_comes_from_is_found_within_ten_seconds,
    r37_a_warm_key_finds_a_corrected_secret_by_itself,
    r43_the_next_secret_is_tried_at_once,
    r43_a_provider_that_shares_a_limiter_has_a_source_of_its_own,
    r58_nothing_shows_a_secret_that_is_changed,
);

/// A file with a secret, for one test.
struct SecretFile(PathBuf);

impl SecretFile {
    fn new(secret: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = Self(std::env::temp_dir().join(format!("storm-auth-secret-{}-{number}", std::process::id())));
        file.rewrite(secret);
        file
    }

    /// As orchestrators do: the new file takes the old one's place in one step.
    fn rewrite(&self, secret: &str) {
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{secret}\n")).unwrap();
        fs::rename(new, &self.0).unwrap();
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn emulator() -> Emulator {
    Emulator::builder().limiter(Limiter::none()).start()
}

/// A source that answers what lies in here.
#[derive(Clone)]
struct Vault {
    holds: Arc<Mutex<Result<Credentials, String>>>,
    asked: Arc<AtomicUsize>,
}

impl Vault {
    fn new(holds: Result<Credentials, String>) -> Self {
        Self { holds: Arc::new(Mutex::new(holds)), asked: Arc::default() }
    }

    fn put(&self, holds: Result<Credentials, String>) {
        *self.holds.lock().unwrap() = holds;
    }

    fn ask(&self) -> Result<Credentials, String> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.holds.lock().unwrap().clone()
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Past the life of the emulator's tokens, less what is kept back.
const A_LIFE: Duration = Duration::from_secs(595);

fn is_failure(event: &Event, says: &str) -> bool {
    matches!(event, Event::CredentialsFailed { detail, .. } if detail.contains(says))
}

fn r43_a_secret_file_that_is_rewritten_needs_no_restart<A: Adapter>() {
    let emulator = emulator();
    let file = SecretFile::new(&emulator.client_secret());
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).file(&emulator, file.path()).tokens();
    let first = A::token(&tokens).unwrap();
    emulator.rotate_secret(emulator.client_id(), "rotated-0123456789");
    file.rewrite("rotated-0123456789");
    assert_eq!(A::token(&tokens).unwrap().expose(), first.expose());
    A::advance(&clock, A_LIFE);
    // Where the refusal comes before what the file says, this call fails, and the next one does not.
    until("another token", || A::token(&tokens).is_ok_and(|token| token.expose() != first.expose()));
    assert_eq!(emulator.token_requests(), 3);
    assert_eq!(A::counters(&tokens).refused, 1);
}

/// `flights_on`, which only one adapter has: its runtime is asked for a thread to read the file, and has none.
#[test]
fn r43_r49_a_secret_file_that_nobody_can_read_again_holds_no_request_up() {
    let emulator = emulator();
    let file = SecretFile::new(&emulator.client_secret());
    // No address space has room for such a thread.
    let carrier =
        tokio::runtime::Builder::new_current_thread().thread_stack_size(1 << 48).enable_all().build().unwrap();
    let setup = Setup::at(&emulator).file(&emulator, file.path());
    let tokens = OverReqwest::builder(setup).flights_on(carrier.handle().clone()).build_tokens().unwrap();
    carrier.block_on(tokens.token()).unwrap();
    assert_eq!(emulator.token_requests(), 1);
}

fn r43_a_secret_file_is_looked_for_when_it_is_built<A: Adapter>() {
    let emulator = emulator();
    let missing = Setup::<A>::at(&emulator).file(&emulator, Path::new("/nowhere/storm-auth")).refused();
    assert!(missing.is_configuration, "{missing:?}");
    assert!(
        missing.text.contains(&Field::ClientSecretFile.to_string()) && !missing.text.contains("nowhere"),
        "{missing:?}"
    );
    let file = SecretFile::new(" padded");
    assert!(Setup::<A>::at(&emulator).file(&emulator, file.path()).refused().text.contains("white space"));
    assert_eq!(emulator.token_requests(), 0);
}

fn r43_a_secret_that_its_source_changes_costs_one_request<A: Adapter>() {
    let emulator = emulator();
    let vault = Vault::new(Ok(credentials(&emulator)));
    let (clock, events) = (A::movable_clock(), Events::default());
    let source = vault.clone();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).events(&events).source(move || source.ask()).tokens();
    A::token(&tokens).unwrap();
    until("it is asked beside the request", || vault.asked() == 1);
    emulator.rotate_secret(emulator.client_id(), "rotated");
    vault.put(Ok(credentials(&emulator)));
    A::advance(&clock, A_LIFE);
    until("another token", || A::token(&tokens).is_ok());
    until("it is told", || events.any(|event| matches!(event, Event::CredentialsReplaced { .. })));
    assert_eq!((emulator.token_requests(), A::counters(&tokens).refused), (3, 1));
    A::close(&tokens, PATIENCE).unwrap();
}

fn r43_the_known_credentials_stay_in_use_while_their_source_fails<A: Adapter>() {
    let emulator = emulator();
    let vault = Vault::new(Err("sealed".to_owned()));
    let (clock, events) = (A::movable_clock(), Events::default());
    let source = vault.clone();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).events(&events).source(move || source.ask()).tokens();
    A::token(&tokens).unwrap();
    until("the failure is told", || events.any(|event| is_failure(event, "sealed")));
    vault.put(Ok(Credentials::new("another", "S3cret").unwrap()));
    A::advance(&clock, A_LIFE);
    A::token(&tokens).unwrap();
    until("the other client is told", || events.any(|event| is_failure(event, "another client")));
    assert_eq!((emulator.token_requests(), A::counters(&tokens).refused), (2, 0));
}

fn r52_a_source_that_panics_is_one_that_fails<A: Adapter>() {
    let emulator = emulator();
    let (clock, events, asked) = (A::movable_clock(), Events::default(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let source = move || match count.fetch_add(1, Ordering::Relaxed) {
        0 => panic!("the source's own panic"),
        _ => Err("and now it fails".to_owned()),
    };
    let tokens = Setup::<A>::at(&emulator).clock(&clock).events(&events).source(source).tokens();
    A::token(&tokens).unwrap();
    until("the panic is told", || events.any(|event| is_failure(event, "panicked")));
    A::advance(&clock, A_LIFE);
    A::token(&tokens).unwrap();
    until("it is asked again", || events.any(|event| is_failure(event, "now it fails")));
    A::close(&tokens, PATIENCE).unwrap();
    assert_eq!((asked.load(Ordering::Relaxed), emulator.token_requests()), (2, 2));
}

fn r37_a_secret_that_is_corrected_where_it_comes_from_is_found_within_ten_seconds<A: Adapter>() {
    let emulator = emulator();
    let file = SecretFile::new("mistyped");
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).file(&emulator, file.path()).tokens();
    assert!(A::token(&tokens).unwrap_err().is_configuration);
    file.rewrite(&emulator.client_secret());
    A::advance(&clock, Duration::from_secs(10));
    until("the correction", || A::token(&tokens).is_ok());
    assert_eq!(emulator.token_requests(), 2);
}

fn r37_a_warm_key_finds_a_corrected_secret_by_itself<A: Adapter>() {
    let emulator = emulator();
    let file = SecretFile::new("mistyped");
    let clock = A::movable_clock();
    let tokens = Setup::<A>::at(&emulator).clock(&clock).file(&emulator, file.path()).tokens();
    assert!(A::token(&tokens).unwrap_err().is_configuration);
    file.rewrite(&emulator.client_secret());
    let warm = A::keep_warm(&tokens);
    crate::face::pass::<A>(&clock, &tokens, Duration::from_secs(10));
    until("a token that nobody called for", || A::key_status(&tokens).unwrap().token_until.is_some());
    assert_eq!(emulator.token_requests(), 2);
    drop(warm);
}

fn r43_the_next_secret_is_tried_at_once<A: Adapter>() {
    let emulator = emulator();
    let (clock, events) = (A::movable_clock(), Events::default());
    let two = credentials(&emulator).with_next("the-next-one").unwrap();
    let tokens =
        Setup::<A>::at(&emulator).clock(&clock).events(&events).set(|settings| settings.credentials(two)).tokens();
    emulator.rotate_secret(emulator.client_id(), "the-next-one");
    for token in A::tokens_at_once(&tokens, 20) {
        token.unwrap();
    }
    assert_eq!((emulator.token_requests(), A::counters(&tokens).refused), (2, 1));
    until("the change is told", || events.any(|event| matches!(event, Event::SecretSwapped { .. })));
    A::advance(&clock, A_LIFE);
    A::token(&tokens).unwrap();
    assert_eq!(emulator.token_requests(), 3);
}

fn r43_a_provider_that_shares_a_limiter_has_a_source_of_its_own<A: Adapter>() {
    let emulator = Emulator::builder().limiter(Limiter::none()).client("first", "S3cret", &["lab"]);
    let emulator = emulator.client("second", "its-secret", &["lab"]).start();
    let group = Setup::<A>::at(&emulator).tokens();
    let file = SecretFile::new("its-secret");
    let second = Setup::<A>::at(&emulator).share(&group);
    let second = Setup { file: Some(("second".to_owned(), file.path().to_owned())), ..second };
    let second = second.tokens();
    A::token(&group).unwrap();
    A::token(&second).unwrap();
    emulator.rotate_secret("second", "changed");
    file.rewrite("changed");
    A::invalidate(&second, A::token(&second).unwrap().id());
    until("another token", || A::token(&second).is_ok());
    assert_eq!(A::status(&group).keys.len(), 2);
    assert_eq!(emulator.token_requests(), 4);
}

fn r58_nothing_shows_a_secret_that_is_changed<A: Adapter>() {
    const SECRETS: [&str; 3] = ["canary-of-the-first-one", "successor/of+the=second", "TheThirdOneIsInTheVault"];
    let emulator = emulator();
    emulator.rotate_secret(emulator.client_id(), "none of them");
    let echo = SECRETS.join(", ");
    let body = format!(r#"{{"error":"invalid_client","error_description":"{echo}"}}"#);
    emulator.fail(Endpoint::Token, Fault::json(400, body));
    let two = Credentials::new(emulator.client_id(), SECRETS[0]).unwrap().with_next(SECRETS[1]).unwrap();
    let (clock, events) = (A::movable_clock(), Events::default());
    let vault = Vault::new(Err(format!("a vault that says {} and {}", SECRETS[0], SECRETS[1])));
    let source = vault.clone();
    let setup = Setup::<A>::at(&emulator).clock(&clock).events(&events).source(move || source.ask());
    let builder = A::builder(setup.set(|settings| settings.credentials(two.clone())));
    let mut texts = format!("{builder:?} {two:?}");
    let source = vault.clone();
    let setup = Setup::<A>::at(&emulator).clock(&clock).events(&events).source(move || source.ask());
    let tokens = setup.set(|settings| settings.credentials(two)).tokens();
    let error = A::token(&tokens).unwrap_err();
    until("the failure is told", || events.any(|event| is_failure(event, "[redacted]")));
    texts += &format!("{error:?} {tokens:?} {:?}", A::status(&tokens));
    texts += &events.seen().iter().map(|event| format!("{event} {event:?}")).collect::<String>();
    // The third one is not known yet; from here on it is.
    assert!(SECRETS[..2].iter().all(|secret| {
        secret.as_bytes().windows(8).all(|part| !texts.contains(std::str::from_utf8(part).unwrap()))
    }));
    vault.put(Ok(Credentials::new(emulator.client_id(), SECRETS[2]).unwrap()));
    A::advance(&clock, Duration::from_secs(10));
    until("the third one is refused", || A::token(&tokens).is_err() && A::counters(&tokens).refused == 3);
    let told = format!("{:?} {tokens:?} {:?}", A::token(&tokens).unwrap_err(), A::status(&tokens));
    assert!(SECRETS[2].as_bytes().windows(8).all(|part| !told.contains(std::str::from_utf8(part).unwrap())), "{told}");
}

// Settings from the environment, which a process has once

const SCENE: &str = "STORM_AUTH_CREDENTIALS_SCENE";

#[test]
fn r43_a_secret_file_that_the_environment_names_is_read_again_over_reqwest() {
    plays("reqwest");
}

#[test]
fn r43_a_secret_file_that_the_environment_names_is_read_again_over_ureq() {
    plays("ureq");
}

fn plays(adapter: &str) {
    let emulator = emulator();
    let file = SecretFile::new(&emulator.client_secret());
    let none = SecretFile::new("");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "credentials::a_scene_for_the_other_tests", "--nocapture"])
        .env(SCENE, adapter)
        .env("STORM_TOKEN_URL", emulator.token_url())
        .env("STORM_API_URL", emulator.api_url())
        .env("STORM_CLIENT_ID", emulator.client_id())
        .env("STORM_CLIENT_SECRET_FILE", file.path())
        .env("STORM_CLIENT_SECRET_NEXT_FILE", none.path())
        .env("STORM_SCOPE", emulator.scope())
        .env_remove("STORM_CLIENT_SECRET")
        .env_remove("STORM_CLIENT_SECRET_NEXT")
        .env_remove("STORM_APPLICATION_ID")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    assert!(emulator.wait_for(PATIENCE, |counts| counts.issued == 1), "it asks for no token");
    emulator.rotate_secret(emulator.client_id(), "rotated");
    file.rewrite("rotated");
    let output = child.wait_with_output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    // One is refused, unless the look beside the first request was so late that it found the new one.
    assert!((2..=3).contains(&emulator.token_requests()), "{}", emulator.token_requests());
}

/// Does nothing by itself.
#[test]
fn a_scene_for_the_other_tests() {
    match std::env::var(SCENE).as_deref() {
        Ok("reqwest") => from_the_environment::<OverReqwest>(),
        Ok(_) => from_the_environment::<OverUreq>(),
        Err(_) => {}
    }
}

fn from_the_environment<A: Adapter>() {
    let path = std::env::var_os("STORM_CLIENT_SECRET_FILE").unwrap();
    let clock = A::movable_clock();
    let tokens = A::tokens_from_env(&clock);
    A::token(&tokens).unwrap();
    until("the file is another one", || fs::read(&path).unwrap() == b"rotated\n");
    A::advance(&clock, A_LIFE);
    until("another token", || A::token(&tokens).is_ok());
}
