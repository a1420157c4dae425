//! The token for services over `http`: hyper's clients, tonic's channels, and what an axum handler forwards to.

use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use storm_auth_core::ConfigError;
use storm_auth_core::wire::challenge::{grpc_rejects_token, rejects_token};
use tower_layer::Layer;
use tower_service::Service;

use crate::client::StormClient;
use crate::error::Error;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Authorises the requests of any service over `http`, as [`StormClient`] does its own: a valid token and the application id, on
/// requests to the configured API origins and on no others, which pass as they are.
///
/// A request that sets the application id's header itself keeps it. An answer that rejects the token (a 401, or the gRPC status
/// `UNAUTHENTICATED` in an answer's headers) ends the token's use, so that the next call has another one. With
/// [`replaying`](Self::replaying) the request is sent once more then. A gRPC status that comes after a message, in trailers, is not
/// looked at; a server that checks a token answers without a message.
///
/// What is judged is the URI of the request. One that names no origin, like those of tonic's clients, is refused, unless
/// [`bound_to`](Self::bound_to) says where the service sends it. A service that follows redirects belongs around this layer: then
/// each of its steps is judged.
///
/// The service has to be `Clone`, since the token may have to be waited for. Its error is boxed; where no token could be had, it
/// holds an [`Error`].
///
/// ```no_run
/// # use storm_auth_reqwest::{Environment, Stage, StormClient, env};
/// use tower_layer::Layer;
///
/// # fn run<Channel>(channel: Channel) -> Result<(), Box<dyn std::error::Error>> {
/// let storm = StormClient::builder()
///     .environment(Environment::norce("acme", "se", Stage::Playground))
///     .credentials(env::credentials()?)
///     .build()?;
/// let channel = storm.layer().bound_to("https://acme.api-se.playground.norce.tech")?.layer(channel);   // for a client of tonic's
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StormLayer<R = Once> {
    storm: StormClient,
    bound: bool,
    repeat: R,
}

/// What [`StormLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct StormService<S, R = Once> {
    inner: S,
    layer: StormLayer<R>,
}

/// Whether a request whose token was rejected is sent again: what comes of its body the second time.
pub trait Repeat<B> {
    /// The same body once more; `None` where there is no such thing.
    fn repeat(&self, body: &B) -> Option<B>;
}

/// Nothing is sent again: for bodies that are streams, like those of hyper, tonic and axum.
#[derive(Clone, Copy, Debug)]
pub struct Once;

/// The body is cloned: for those that hold their bytes, like `Full`, `Empty` and `String`.
#[derive(Clone, Copy, Debug)]
pub struct Cloned;

impl<B> Repeat<B> for Once {
    fn repeat(&self, _: &B) -> Option<B> {
        None
    }
}

impl<B: Clone> Repeat<B> for Cloned {
    fn repeat(&self, body: &B) -> Option<B> {
        Some(body.clone())
    }
}

impl StormClient {
    /// The same authorisation for services of `tower`'s kind. The requests go out by the service, not on this client.
    pub fn layer(&self) -> StormLayer {
        StormLayer { storm: self.clone(), bound: false, repeat: Once }
    }
}

impl<R> StormLayer<R> {
    /// The service sends every request to this origin, whatever the request's URI leaves out: as a channel of tonic's does.
    ///
    /// # Errors
    /// [`Error::is_configuration`]: it is not a configured API's.
    pub fn bound_to(self, origin: &str) -> Result<Self, Error> {
        self.storm.api().check(origin)?;
        Ok(Self { bound: true, ..self })
    }

    /// Sends a request whose token was rejected once more, with another one, if that can be had. The body is cloned for it before
    /// the request is sent, so it has to be one whose clone has the same bytes, and costs little.
    pub fn replaying(self) -> StormLayer<Cloned> {
        StormLayer { storm: self.storm, bound: self.bound, repeat: Cloned }
    }

    /// Whether the bearer may go along.
    fn admits<B>(&self, request: &Request<B>) -> Result<bool, ConfigError> {
        match request.uri().authority() {
            Some(_) => Ok(self.storm.api().allows(request.uri())),
            None if self.bound => Ok(true),
            None => Err(ConfigError::without_origin()),
        }
    }
}

impl<S, R: Clone> Layer<S> for StormLayer<R> {
    type Service = StormService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        StormService { inner, layer: self.clone() }
    }
}

impl<S, R, B, A> Service<Request<B>> for StormService<S, R>
where
    S: Service<Request<B>, Response = Response<A>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    R: Repeat<B> + Clone + Send + Sync + 'static,
    B: Send + 'static,
    A: Send + 'static,
{
    type Response = Response<A>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready is the one to call; its clone may not be.
        let another = self.inner.clone();
        let inner = mem::replace(&mut self.inner, another);
        let layer = self.layer.clone();
        Box::pin(async move { layer.exchange(inner, request).await })
    }
}

impl<R> StormLayer<R> {
    /// One authorised request, or two when the first token is rejected and the body can be repeated.
    async fn exchange<S, B, A>(self, mut inner: S, mut request: Request<B>) -> Result<Response<A>, BoxError>
    where
        S: Service<Request<B>, Response = Response<A>>,
        S::Error: Into<BoxError>,
        R: Repeat<B>,
    {
        if !self.admits(&request).map_err(Error::from)? {
            return inner.call(request).await.map_err(Into::into);
        }
        let (api, tokens) = (self.storm.api(), self.storm.tokens());
        let token = tokens.token().await?;
        let spare;
        (request, spare) = self.spare(request);
        api.authorize(request.headers_mut(), token.header(), None);
        let response = inner.call(request).await.map_err(Into::into)?;
        if !rejects(&response) {
            return Ok(response);
        }
        let Some((mut again, other)) = tokens.replay(token.id(), spare).await else {
            return Ok(response);
        };
        api.authorize(again.headers_mut(), other.header(), None);
        poll_fn(|context| inner.poll_ready(context)).await.map_err(Into::into)?;
        let response = inner.call(again).await.map_err(Into::into)?;
        if rejects(&response) {
            tokens.invalidate(other.id());
        }
        Ok(response)
    }

    /// A request, and the same to be sent again.
    fn spare<B>(&self, request: Request<B>) -> (Request<B>, Option<Request<B>>)
    where
        R: Repeat<B>,
    {
        let (head, body) = request.into_parts();
        let spare = self.repeat.repeat(&body).map(|body| Request::from_parts(head.clone(), body));
        (Request::from_parts(head, body), spare)
    }
}

fn rejects<A>(response: &Response<A>) -> bool {
    rejects_token(response.status(), response.headers()) || grpc_rejects_token(response.headers())
}
