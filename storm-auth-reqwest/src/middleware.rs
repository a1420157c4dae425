//! The token for those who send through a chain of `reqwest-middleware`.

use async_trait::async_trait;
use http::{Extensions, Uri};
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next, Result};

use crate::client::{StormClient, rejects};

/// Authorises the requests of a `reqwest-middleware` client, as [`StormClient`] does its own: a valid token and the application id,
/// on requests to the configured API origins and on no others, which pass as they are.
///
/// A request that sets the application id's header itself keeps it. When the API rejects the token, the request is sent once more
/// with another one, if its body can be cloned and another token can be had; the answer is the 401 otherwise. Where a redirect takes
/// the bearer is up to the client below: reqwest's default takes it from one that leads to another host.
///
/// Attach it behind what repeats requests, so that each attempt has a token that is valid then. Where no token can be had, the
/// chain's error is a middleware error that holds an [`Error`](crate::Error).
///
/// ```no_run
/// # use storm_auth_reqwest::{Environment, Stage, StormClient, env};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let storm = StormClient::builder()
///     .environment(Environment::norce("acme", "se", Stage::Playground))
///     .credentials(env::credentials()?)
///     .application_id(1042)
///     .build()?;
/// let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(storm.middleware()).build();
/// let response = client.get("https://acme.api-se.playground.norce.tech/commerce/product/1.1/Products").send().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StormMiddleware(StormClient);

impl StormClient {
    /// The same authorisation for the clients of `reqwest-middleware`. The requests go out on the client below, not on this one's.
    pub fn middleware(&self) -> StormMiddleware {
        StormMiddleware(self.clone())
    }
}

#[async_trait]
impl Middleware for StormMiddleware {
    async fn handle(&self, mut request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        let (api, tokens) = (self.0.api(), self.0.tokens());
        if !request.url().as_str().parse().is_ok_and(|uri: Uri| api.allows(&uri)) {
            return next.run(request, extensions).await;
        }
        let token = tokens.token().await.map_err(reqwest_middleware::Error::middleware)?;
        let spare = request.try_clone();
        api.authorize(request.headers_mut(), token.header(), None);
        let response = next.clone().run(request, extensions).await?;
        if !rejects(api, &response) {
            return Ok(response);
        }
        let Some((mut again, other)) = tokens.replay(token.id(), spare).await else {
            return Ok(response);
        };
        api.authorize(again.headers_mut(), other.header(), None);
        let response = next.run(again, extensions).await?;
        if rejects(api, &response) {
            tokens.invalidate(other.id());
        }
        Ok(response)
    }
}
