//! The token in an agent of one's own, against an emulator of the service.
//!
//! ```text
//! cargo run -p storm-auth-blocking --features middleware --example ureq_middleware
//! ```

use std::error::Error;
use std::io::{self, Write as _};

use storm_auth_blocking::{Credentials, Environment, StormClient};
use storm_auth_tests::emulator::Emulator;

fn main() -> Result<(), Box<dyn Error>> {
    let emulator = Emulator::builder().try_start()?;
    let storm = StormClient::builder()
        .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret())?)
        .application_id(emulator.application_id())
        .build()?;
    // With answers of any status, so that a 401 keeps the challenge that says what it is about.
    let config = ureq::Agent::config_builder().http_status_as_error(false).middleware(storm.middleware()).build();
    let agent = ureq::Agent::new_with_config(config);

    let url = format!("{}/commerce/product/1.1/Products", emulator.api_url());
    let mut out = io::stdout();
    for _ in 0..3 {
        writeln!(out, "{}", agent.get(&url).call()?.status())?;
    }
    writeln!(out, "token requests: {}", emulator.token_requests())?;
    emulator.revoke_all();
    // A middleware sends a request once: the caller of this one gets the 401, and the next one another token.
    writeln!(out, "revoked: {}", agent.get(&url).call()?.status())?;
    writeln!(out, "and then: {}", agent.get(&url).call()?.status())?;
    writeln!(out, "token requests: {}", emulator.token_requests())?;
    Ok(())
}
