//! A shop's integration and its tests, to copy into a project of yours: the code under test first, and how it is tested at the end.
//!
//! ```text
//! cargo test -p storm-auth-tests --example shop   # the tests
//! cargo run -p storm-auth-tests --example shop    # the integration, against an emulator
//! ```

use std::error::Error as StdError;
use std::io::Write as _;

use serde::Deserialize;
use storm_auth_reqwest::{Error, StormClient, TokenSource};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};

/// What the warehouse says about a product.
#[derive(Deserialize, PartialEq, Eq, Debug)]
struct Stock {
    #[serde(rename = "onHand")]
    on_hand: u32,
}

/// Asks the API, with the client that does the rest: token, application id, one replay after a 401.
struct Warehouse {
    storm: StormClient,
}

impl Warehouse {
    async fn stock(&self, product: u32) -> Result<Stock, Error> {
        let answer = self.storm.get(format!("/commerce/product/1.1/Stock/{product}")).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// What a person at the counter is told.
    async fn told(&self, product: u32) -> String {
        match self.stock(product).await {
            Ok(Stock { on_hand: 0 }) => "sold out".to_owned(),
            Ok(Stock { on_hand }) => format!("{on_hand} on hand"),
            Err(error) if error.is_rate_limited() => "ask again in a minute".to_owned(),
            Err(error) if error.is_configuration() => "ask your administrator".to_owned(),
            Err(_) => "not known".to_owned(),
        }
    }
}

/// What needs a token alone, like the metadata of a gRPC call, takes a [`TokenSource`].
async fn metadata(tokens: &dyn TokenSource) -> Result<(&'static str, String), Error> {
    let token = tokens.token().await?;
    Ok(("authorization", format!("Bearer {}", token.expose())))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn StdError>> {
    let emulator = Emulator::builder().try_start()?;
    emulator.fail(Endpoint::Api, Fault::json(200, r#"{"onHand":7}"#));
    let storm = StormClient::builder()
        .token_url(emulator.token_url())
        .api_url(emulator.api_url())
        .scope(storm_auth_reqwest::Scope::new(emulator.scope())?)
        .credentials(storm_auth_reqwest::Credentials::new(emulator.client_id(), emulator.client_secret())?)
        .application_id(emulator.application_id())
        .build()?;
    let (name, _) = metadata(storm.tokens()).await?;
    let told = Warehouse { storm }.told(17).await;
    Ok(writeln!(std::io::stdout(), "product 17: {told}; the header {name} is ready for other calls")?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use storm_auth_reqwest::core::machine::Activity;
    use storm_auth_reqwest::{AcquireError, Builder, Clock, Credentials, Environment, FakeTokens, Token};
    use storm_auth_tests::emulator::{self, Limiter};

    use super::*;

    /// A warehouse, the server that it talks to, and both clocks.
    struct Desk {
        emulator: Emulator,
        warehouse: Warehouse,
        clock: Clock,
    }

    impl Desk {
        /// The server's clock stands still until it is moved.
        fn open() -> Self {
            let emulator = Emulator::builder()
                .lifetime(Duration::from_secs(600))
                .limiter(Limiter::nginx())
                .clock(emulator::Clock::manual(1_700_000_000_000))
                .start();
            let clock = Clock::movable();
            let storm = builder(&emulator).clock(clock.clone()).build().unwrap();
            Self { emulator, warehouse: Warehouse { storm }, clock }
        }

        /// Lets a time pass for the server and for the client. A refresh that goes on behind the calls takes real time, and comes to
        /// its end first.
        fn pass(&self, span: Duration) {
            let tokens = self.warehouse.storm.tokens();
            while tokens.key_status().is_some_and(|status| status.activity == Activity::Requesting) {
                std::thread::yield_now();
            }
            self.emulator.clock().advance(span);
            self.clock.advance(span);
        }

        /// The API answers so from now on. Without it, it echoes the request.
        fn in_stock(&self, on_hand: u32) {
            self.emulator.fail(Endpoint::Api, Fault::json(200, format!(r#"{{"onHand":{on_hand}}}"#)));
        }
    }

    fn builder(emulator: &Emulator) -> Builder {
        StormClient::builder()
            .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
            .credentials(Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap())
            .application_id(emulator.application_id())
    }

    #[tokio::test]
    async fn what_the_api_says_is_told() {
        let desk = Desk::open();
        for (on_hand, told) in [(7, "7 on hand"), (0, "sold out")] {
            desk.in_stock(on_hand);
            assert_eq!(desk.warehouse.told(17).await, told);
        }
        let asked = &desk.emulator.recorded(Endpoint::Api)[0];
        assert_eq!(asked.uri.path(), "/commerce/product/1.1/Stock/17");
        assert_eq!(asked.headers["applicationid"], "1042");
    }

    #[tokio::test]
    async fn a_hundred_calls_cost_one_token() {
        let desk = Desk::open();
        desk.in_stock(7);
        for product in 0..100 {
            desk.warehouse.stock(product).await.unwrap();
        }
        desk.emulator.assert_token_requests(1);
        desk.emulator.assert_api_requests(100);
    }

    #[tokio::test]
    async fn a_revoked_token_is_not_felt() {
        let desk = Desk::open();
        // The echo of the API: it checks the token, as the scripted answers do not.
        assert!(desk.warehouse.storm.get("/").send().await.unwrap().status().is_success());
        desk.emulator.revoke_all();
        assert!(desk.warehouse.storm.get("/").send().await.unwrap().status().is_success());
        desk.emulator.assert_token_requests(2);
        desk.emulator.assert_api_requests(3);
    }

    #[tokio::test]
    async fn hours_go_by_and_an_outage_with_them() {
        let desk = Desk::open();
        desk.in_stock(7);
        for minute in 0..8 * 60 {
            // Two minutes without a token endpoint: less than the quarter of a life that is left when a token is refreshed.
            if minute == 61 {
                desk.emulator.fail(Endpoint::Token, Fault::Outage);
            }
            if minute == 63 {
                desk.emulator.heal(Endpoint::Token);
            }
            assert_eq!(desk.warehouse.told(17).await, "7 on hand", "after {minute} minutes");
            desk.pass(Duration::from_secs(60));
        }
        desk.emulator.assert_api_requests(8 * 60);
    }

    #[tokio::test]
    async fn a_throttle_is_told_and_is_over_when_it_says() {
        let desk = Desk::open();
        desk.in_stock(7);
        desk.emulator.fail_next(Endpoint::Token, 1, Fault::answer(429, &[("retry-after", "100")], ""));
        assert_eq!(desk.warehouse.told(17).await, "ask again in a minute");
        assert_eq!(desk.warehouse.told(17).await, "ask again in a minute");
        desk.emulator.assert_token_requests(1);
        desk.pass(Duration::from_secs(103));
        assert_eq!(desk.warehouse.told(17).await, "7 on hand");
        desk.emulator.assert_token_requests(2);
    }

    #[tokio::test]
    async fn a_wrong_secret_is_told_once_and_mended_in_place() {
        let desk = Desk::open();
        desk.in_stock(7);
        let id = desk.emulator.client_id();
        desk.emulator.rotate_secret(id, "another");
        for _ in 0..10 {
            assert_eq!(desk.warehouse.told(17).await, "ask your administrator");
        }
        desk.emulator.assert_token_requests(1);
        desk.warehouse.storm.tokens().set_credentials(Credentials::new(id, "another").unwrap()).unwrap();
        assert_eq!(desk.warehouse.told(17).await, "7 on hand");
    }

    /// No socket at all, for what takes a `TokenSource`.
    #[tokio::test]
    async fn the_header_has_the_token_or_the_error_goes_up() {
        let tokens = FakeTokens::new([Ok(Token::fake("first")), Err(AcquireError::DeadlineExceeded)]);
        assert_eq!(metadata(&tokens).await.unwrap(), ("authorization", "Bearer first".to_owned()));
        metadata(&tokens).await.unwrap_err();
    }
}
