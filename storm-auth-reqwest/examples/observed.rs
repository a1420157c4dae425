//! What a process tells of its tokens: events and spans for `tracing`, here as lines on standard error, and what is measured for
//! `metrics`, here as Prometheus scrapes it. Against an emulator of the service.
//!
//! ```text
//! cargo run -p storm-auth-reqwest --features metrics --example observed
//! ```

use std::error::Error;
use std::io::{self, Write as _};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use storm_auth_reqwest::{Credentials, Environment, StormClient};
use storm_auth_tests::emulator::Emulator;
use tracing_subscriber::fmt::format::FmtSpan;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_span_events(FmtSpan::CLOSE).with_writer(io::stderr).init();
    write!(io::stdout(), "{}", calls().await?)?;
    Ok(())
}

/// Some calls, one of them after the token was revoked, and what was measured of them.
async fn calls() -> Result<String, Box<dyn Error>> {
    // Before anything is built that is to be measured.
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let emulator = Emulator::builder().try_start()?;
    let storm = StormClient::builder()
        .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret())?)
        .application_id(emulator.application_id())
        .group("acme")
        .build()?;
    for _ in 0..20 {
        storm.get("/commerce/product/1.1/Products").send().await?;
    }
    emulator.revoke_all();
    storm.get("/commerce/product/1.1/Products").send().await?;
    // A caller is served before anything is told of the request that served it; the last to be told is the event.
    let told = async {
        while !metrics.render().contains(r#"event="token_granted"} 2"#) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await?;
    // Cached calls are told in batches; a look before each scrape makes them exact.
    storm.tokens().status();
    Ok(metrics.render())
}

#[tokio::test]
async fn r79_what_was_measured_can_be_scraped() {
    let text = calls().await.expect("nothing fails but a token");
    for line in [
        r#"storm_auth_calls_total{group="acme",state="cached"} 20"#,
        r#"storm_auth_calls_total{group="acme",state="waited"} 2"#,
        r#"storm_auth_token_requests_total{group="acme",reason="rejected"} 1"#,
        r#"storm_auth_token_outcomes_total{group="acme",outcome="granted"} 2"#,
        r#"storm_auth_events_total{group="acme",event="token_rejected"} 1"#,
        r#"storm_auth_budget_left{group="acme"} 19"#,
    ] {
        assert!(text.lines().any(|told| told == line), "{line} is not in:\n{text}");
    }
}
