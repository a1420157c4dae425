//! R4: plain http is taken for loopback because it stays on this machine. A proxy that only the environment names would read the secret.

use std::process::Command;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Proxy};
use storm_auth_reqwest::{Credentials, Environment, TokenProvider};
use storm_auth_tests::emulator::{CLIENT_ID, CLIENT_SECRET, Emulator, SCOPE};

/// Where it is set, this process plays the scene of a test, with a proxy in its environment.
const SCENE: &str = "STORM_TEST_TOKEN_URL";
const NOBODY: &str = "http://127.0.0.1:1";

#[test]
fn r4_a_token_request_with_settings_of_ones_own_goes_past_the_proxy_of_the_environment_and_not_past_theirs() {
    let Ok(token_url) = std::env::var(SCENE) else {
        let emulator = Emulator::start();
        let test = std::thread::current().name().expect("a test has a name").to_owned();
        let child = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", &test])
            .env(SCENE, emulator.token_url())
            .envs(["http_proxy", "HTTP_PROXY", "ALL_PROXY"].map(|name| (name, NOBODY)))
            .output()
            .expect("it starts");
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return emulator.assert_token_requests(1);
    };
    let token = |settings: fn() -> ClientBuilder| {
        let tokens = TokenProvider::builder()
            .environment(Environment::custom(&token_url, NOBODY, SCOPE))
            .credentials(Credentials::new(CLIENT_ID, CLIENT_SECRET).expect("they are well-formed"))
            .token_client(settings)
            .build_tokens()
            .expect("the settings are complete");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(tokens.token_within(Duration::from_secs(60)))
    };
    token(|| Client::builder().user_agent("acme-shop/1.0")).expect("it went to the emulator");
    let error = token(|| Client::builder().proxy(Proxy::all(NOBODY).expect("a URL"))).expect_err("nobody is there");
    assert!(error.to_string().contains("no connection"), "{error}");
}
