//! The API client: a cached token, the application id, and one replay after a 401.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header::CONTENT_LENGTH};
use reqwest::{RequestBuilder, Response, redirect};
use storm_auth_core::driver::PerProcess;
use storm_auth_core::{Api, TokenId};

use crate::builder::Builder;
use crate::error::Error;
use crate::provider::TokenProvider;

/// Makes authorised API calls. Cheap to clone.
///
/// ```no_run
/// use storm_auth_reqwest::{Environment, Stage, StormClient, env};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let storm = StormClient::builder()
///     .environment(Environment::norce("acme", "se", Stage::Playground))
///     .credentials(env::credentials()?)
///     .application_id(1042)
///     .build()?;
/// let response = storm.get("/commerce/product/1.1/Products").send().await?;
/// println!("{}", response.status());        // an answer of any status is Ok
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StormClient(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    http: ApiClient,
    api: Api,
    tokens: TokenProvider,
}

impl StormClient {
    /// A builder; finish it with [`Builder::build`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// With a client of the caller's, or with the default one.
    pub(crate) fn new(http: Option<reqwest::Client>, api: Api, tokens: TokenProvider) -> Result<Self, reqwest::Error> {
        let http = match http {
            Some(theirs) => ApiClient::Theirs(theirs),
            None => ApiClient::Ours(PerProcess::new(api_client(&api)?, process::id())),
        };
        Ok(Self(Arc::new(Parts { http, api, tokens })))
    }

    /// The client to send with, which asks the system for the process.
    fn http(&self) -> reqwest::Client {
        match &self.0.http {
            // What could be built once can be built again; if not, the parent's is better than none.
            ApiClient::Ours(http) => {
                http.get(process::id(), |parents| api_client(&self.0.api).unwrap_or_else(|_| parents.clone()))
            }
            ApiClient::Theirs(http) => http.clone(),
        }
    }

    /// A client to build a request with.
    fn settings(&self) -> reqwest::Client {
        match &self.0.http {
            ApiClient::Ours(http) => http.latest(),
            ApiClient::Theirs(http) => http.clone(),
        }
    }

    #[cfg(any(feature = "reqwest-middleware", feature = "tower"))]
    pub(crate) fn api(&self) -> &Api {
        &self.0.api
    }

    /// The tokens behind the calls.
    pub fn tokens(&self) -> &TokenProvider {
        &self.0.tokens
    }

    /// A GET. `path` is appended to the API base; a whole URL is taken when its origin is a configured one.
    pub fn get(&self, path: impl AsRef<str>) -> StormRequest {
        self.request(Method::GET, path)
    }

    /// A POST; see [`get`](Self::get).
    pub fn post(&self, path: impl AsRef<str>) -> StormRequest {
        self.request(Method::POST, path)
    }

    /// A PUT; see [`get`](Self::get).
    pub fn put(&self, path: impl AsRef<str>) -> StormRequest {
        self.request(Method::PUT, path)
    }

    /// A PATCH; see [`get`](Self::get).
    pub fn patch(&self, path: impl AsRef<str>) -> StormRequest {
        self.request(Method::PATCH, path)
    }

    /// A DELETE; see [`get`](Self::get).
    pub fn delete(&self, path: impl AsRef<str>) -> StormRequest {
        self.request(Method::DELETE, path)
    }

    /// Any other method; see [`get`](Self::get).
    pub fn request(&self, method: Method, path: impl AsRef<str>) -> StormRequest {
        let target = self.0.api.target(path.as_ref()).map_err(Error::from);
        StormRequest { storm: self.clone(), method, target, inner: None, application_id: None }
    }

    /// Sets `Authorization` and the application id for a client of your own, which then has to mind where it sends them.
    ///
    /// # Errors
    /// As [`TokenProvider::token`].
    pub async fn authorize(&self, headers: &mut HeaderMap) -> Result<TokenId, Error> {
        let token = self.0.tokens.token().await?;
        self.0.api.authorize(headers, token.header(), None);
        Ok(token.id())
    }
}

#[derive(Debug)]
enum ApiClient {
    /// A forked child has one of its own: nobody there drives its parent's idle connections.
    Ours(PerProcess<reqwest::Client>),
    Theirs(reqwest::Client),
}

/// The default client of the API calls. It follows no redirect, since the bearer goes only where it was sent (R45).
/// Where one of the APIs is plain http it takes no proxy that the environment names, which would read the bearer.
fn api_client(api: &Api) -> Result<reqwest::Client, reqwest::Error> {
    let client = reqwest::Client::builder().redirect(redirect::Policy::none()).connect_timeout(Duration::from_secs(10));
    if api.has_plain_http() { client.no_proxy() } else { client }.build()
}

/// The connection broke before an answer came: as a rule one that was kept, and that the server closed in the same moment
/// (R56). Which it was nobody tells.
fn broke_off(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

pub(crate) fn rejects(api: &Api, response: &Response) -> bool {
    api.rejects_token(response.url().as_str(), response.status(), response.headers())
}

/// One API request, to be sent with [`send`](Self::send).
#[derive(Debug)]
#[must_use = "a request does nothing until it is sent"]
pub struct StormRequest {
    storm: StormClient,
    method: Method,
    target: Result<String, Error>,
    /// What was made of it, where something was.
    inner: Option<RequestBuilder>,
    application_id: Option<u64>,
}

impl StormRequest {
    /// Everything that reqwest's builder can set: headers, bodies, queries, multipart, a timeout.
    ///
    /// ```no_run
    /// # fn run(storm: &storm_auth_reqwest::StormClient) {
    /// storm.get("/commerce/product/1.1/Products").with(|request| request.query(&[("top", "3")]));
    /// # }
    /// ```
    pub fn with(mut self, set: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Self {
        if let Ok(target) = &self.target {
            let plain = || self.storm.settings().request(self.method.clone(), target);
            self.inner = Some(set(self.inner.unwrap_or_else(plain)));
        }
        self
    }

    /// A header.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.with(|request| request.header(name, value))
    }

    /// A JSON body.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Serialize + ?Sized>(self, body: &T) -> Self {
        self.with(|request| request.json(body))
    }

    /// A body of bytes or text.
    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        self.with(|request| request.body(body))
    }

    /// Query parameters, form-encoded.
    #[cfg(feature = "query")]
    pub fn query<T: serde::Serialize + ?Sized>(self, query: &T) -> Self {
        self.with(|request| request.query(query))
    }

    /// How long the API call may take. A token that has to be waited for has a deadline of its own.
    pub fn timeout(self, span: Duration) -> Self {
        self.with(|request| request.timeout(span))
    }

    /// The application id of this request alone.
    pub fn application_id(mut self, id: u64) -> Self {
        self.application_id = Some(id);
        self
    }

    /// Sends it with a valid token. When the API rejects the token, the request is sent once more with another one, if its
    /// body can be repeated and another token can be had; the answer is the 401 otherwise. An answer of any status is `Ok`.
    ///
    /// A request of a safe method (GET, HEAD, OPTIONS) whose connection breaks before an answer is sent once more, too: the
    /// server may have closed a kept connection in that moment. Others are not, since they may have been processed.
    ///
    /// # Errors
    /// A malformed request or target, no token, or an API call that brought no answer.
    pub async fn send(self) -> Result<Response, Error> {
        let Self { storm, method, target, inner, application_id } = self;
        let (http, Parts { api, tokens, .. }) = (storm.http(), &*storm.0);
        let target = target?;
        let untouched = inner.is_none();
        let build = |inner: Option<RequestBuilder>| {
            let mut request = inner.unwrap_or_else(|| http.request(method.clone(), &target)).build()?;
            // These have a body, be it empty, and servers want to know its length.
            if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) && request.body().is_none() {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
            }
            Ok::<_, reqwest::Error>(request)
        };
        let mut request = build(inner)?;
        // `with` may have moved it, and reqwest may spell it otherwise.
        if request.url().as_str() != target {
            api.check(request.url().as_str())?;
        }
        let token = tokens.token().await?;
        // To clone a request takes longer than all else that is done here, so one that can be built again is.
        let spare = if untouched { None } else { request.try_clone() };
        let repeat = || if untouched { build(None).ok() } else { spare.as_ref()?.try_clone() };
        let is_safe = request.method().is_safe();
        api.authorize(request.headers_mut(), token.header(), application_id);
        let response = match http.execute(request).await {
            Err(error) if is_safe && broke_off(&error) => {
                let mut once_more = repeat().ok_or(error)?;
                api.authorize(once_more.headers_mut(), token.header(), application_id);
                http.execute(once_more).await?
            }
            result => result?,
        };
        if !rejects(api, &response) {
            return Ok(response);
        }
        let Some((mut again, other)) = tokens.replay(token.id(), repeat()).await else {
            return Ok(response);
        };
        api.authorize(again.headers_mut(), other.header(), application_id);
        let response = http.execute(again).await?;
        if rejects(api, &response) {
            tokens.invalidate(other.id());
        }
        Ok(response)
    }
}
