//! The token for those who send with an agent of their own.

use http::{Request, Response, StatusCode};
use ureq::middleware::{Middleware, MiddlewareNext};
use ureq::{Body, Error, ResponseExt, SendBody};

use crate::client::StormClient;

/// Authorises the requests of an agent of your own: a valid token and the application id, on requests to the configured API origins
/// and on no others, which pass as they are.
///
/// A request that sets the application id's header itself keeps it. When the API rejects the token, its use ends, so that the next
/// call has another one; this call's answer is the 401, since ureq lets a middleware send a request only once. A [`StormClient`] sends
/// it again. Where a redirect takes the bearer is up to the agent: ureq's default leaves it out of every redirect.
///
/// Let the agent hand out answers of any status (`http_status_as_error(false)`). A 401 that ureq makes an error of has lost its
/// challenge, and counts as a rejected token whatever the API said in it. Where no token can be had, the agent's error is
/// `ureq::Error::Other`, and holds an [`Error`](crate::Error).
///
/// ```no_run
/// # use storm_auth_blocking::{Environment, Stage, StormClient, env};
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let storm = StormClient::builder()
///     .environment(Environment::norce("acme", "se", Stage::Playground))
///     .credentials(env::credentials()?)
///     .application_id(1042)
///     .build()?;
/// let config = ureq::Agent::config_builder().http_status_as_error(false).middleware(storm.middleware()).build();
/// let agent = ureq::Agent::new_with_config(config);
/// let response = agent.get("https://acme.api-se.playground.norce.tech/commerce/product/1.1/Products").call()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StormMiddleware(StormClient);

impl StormClient {
    /// The same authorisation for an agent of your own. The requests go out by that agent, not by this client's.
    pub fn middleware(&self) -> StormMiddleware {
        StormMiddleware(self.clone())
    }
}

impl Middleware for StormMiddleware {
    fn handle(&self, mut request: Request<SendBody<'_>>, next: MiddlewareNext<'_>) -> Result<Response<Body>, Error> {
        let (api, tokens) = (self.0.api(), self.0.tokens());
        if !api.allows(request.uri()) {
            return next.handle(request);
        }
        let token = tokens.token().map_err(|error| Error::Other(error.into()))?;
        api.authorize(request.headers_mut(), token.header(), None);
        let result = next.handle(request);
        let rejected = match &result {
            Ok(response) => api.rejects_token(response.get_uri(), response.status(), response.headers()),
            Err(Error::StatusCode(status)) => *status == StatusCode::UNAUTHORIZED.as_u16(),
            Err(_) => false,
        };
        if rejected {
            tokens.replay(token.id(), None::<()>);
        }
        result
    }
}
