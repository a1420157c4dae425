//! The token in a chain of `reqwest-middleware`, against an emulator of the service.
//!
//! ```text
//! cargo run -p storm-auth-reqwest --features reqwest-middleware --example reqwest_middleware
//! ```

use std::error::Error;
use std::io::{self, Write as _};

use storm_auth_reqwest::{Credentials, Environment, StormClient};
use storm_auth_tests::emulator::Emulator;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let emulator = Emulator::builder().try_start()?;
    let storm = StormClient::builder()
        .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret())?)
        .application_id(emulator.application_id())
        .build()?;
    // Behind what repeats or traces requests, so that each attempt has a token that is valid then.
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(storm.middleware()).build();

    let url = format!("{}/commerce/product/1.1/Products", emulator.api_url());
    let mut out = io::stdout();
    for _ in 0..3 {
        writeln!(out, "{}", client.get(&url).send().await?.status())?;
    }
    writeln!(out, "token requests: {}", emulator.token_requests())?;
    emulator.revoke_all();
    writeln!(out, "revoked, and sent again: {}", client.get(&url).send().await?.status())?;
    writeln!(out, "token requests: {}", emulator.token_requests())?;
    Ok(())
}
