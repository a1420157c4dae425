//! The token in a stack of tower's services, here over hyper, against an emulator of the service. A channel of tonic's is wrapped in
//! the same way, with `bound_to`, since its requests name no origin; `tests/tonic.rs` does so.
//!
//! ```text
//! cargo run -p storm-auth-reqwest --features tower --example tower_layer
//! ```

use std::error::Error;
use std::future::poll_fn;
use std::io::{self, Write as _};

use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use storm_auth_reqwest::{Credentials, Environment, StormClient};
use storm_auth_tests::emulator::Emulator;
use tower_layer::Layer;
use tower_service::Service;

type Body = Empty<&'static [u8]>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let emulator = Emulator::builder().try_start()?;
    let storm = StormClient::builder()
        .environment(Environment::custom(emulator.token_url(), emulator.api_url(), emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret())?)
        .application_id(emulator.application_id())
        .build()?;
    let http = Client::builder(TokioExecutor::new()).build_http::<Body>();
    // Without `replaying` any body will do, and a rejected request ends in its 401.
    let mut service = storm.layer().replaying().layer(http);

    let url = format!("{}/commerce/product/1.1/Products", emulator.api_url());
    let mut out = io::stdout();
    for _ in 0..3 {
        writeln!(out, "{}", get(&mut service, &url).await?)?;
    }
    writeln!(out, "token requests: {}", emulator.token_requests())?;
    emulator.revoke_all();
    writeln!(out, "revoked, and sent again: {}", get(&mut service, &url).await?)?;
    writeln!(out, "token requests: {}", emulator.token_requests())?;
    Ok(())
}

/// One request. What `tower::ServiceExt` has for it needs the rest of tower.
async fn get<S, A, E>(service: &mut S, url: &str) -> Result<StatusCode, E>
where
    S: Service<Request<Body>, Response = http::Response<A>, Error = E>,
    E: From<http::Error>,
{
    poll_fn(|context| service.poll_ready(context)).await?;
    Ok(service.call(Request::get(url).body(Body::new())?).await?.status())
}
