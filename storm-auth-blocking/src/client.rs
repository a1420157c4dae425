//! The API client: a cached token, the application id, and one replay after a 401.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header::CONTENT_TYPE};
use storm_auth_core::driver::PerProcess;
use storm_auth_core::{Api, ConfigError, Field, TokenId};
use ureq::typestate::HttpCrateScope;
use ureq::{AsSendBody, Body, ResponseExt, config::ConfigBuilder};

use crate::builder::Builder;
use crate::error::Error;
use crate::provider::TokenProvider;
use crate::transport::Transport;

/// Makes authorised API calls. Cheap to clone.
///
/// ```no_run
/// use storm_auth_blocking::{Environment, Stage, StormClient, env};
///
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let storm = StormClient::builder()
///     .environment(Environment::norce("acme", "se", Stage::Playground))
///     .credentials(env::credentials()?)
///     .application_id(1042)
///     .build()?;
/// let response = storm.get("/commerce/product/1.1/Products").call()?;
/// println!("{}", response.status());        // an answer of any status is Ok
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StormClient(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    agent: ApiAgent,
    api: Api,
    tokens: TokenProvider,
}

impl StormClient {
    /// A builder; finish it with [`Builder::build`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// With an agent of the caller's, or with the default one.
    pub(crate) fn new(agent: Option<ureq::Agent>, api: Api, tokens: TokenProvider) -> Self {
        let agent = match agent {
            Some(theirs) => ApiAgent::Theirs(theirs),
            None => ApiAgent::Ours(PerProcess::new(api_agent(&api), process::id())),
        };
        Self(Arc::new(Parts { agent, api, tokens }))
    }

    /// The agent to send with, which asks the system for the process.
    fn agent(&self) -> ureq::Agent {
        match &self.0.agent {
            ApiAgent::Ours(agent) => agent.get(process::id(), |_| api_agent(&self.0.api)),
            ApiAgent::Theirs(agent) => agent.clone(),
        }
    }

    /// An agent to build a request with.
    fn settings(&self) -> ureq::Agent {
        match &self.0.agent {
            ApiAgent::Ours(agent) => agent.latest(),
            ApiAgent::Theirs(agent) => agent.clone(),
        }
    }

    #[cfg(feature = "middleware")]
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
        let inner = self.0.api.target(path.as_ref()).and_then(|url| uri(&url)).map(|uri| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = uri;
            request
        });
        StormRequest { storm: self.clone(), inner, application_id: None }
    }

    /// Sets `Authorization` and the application id for a client of your own, which then has to mind where it sends them.
    ///
    /// # Errors
    /// As [`TokenProvider::token`].
    pub fn authorize(&self, headers: &mut HeaderMap) -> Result<TokenId, Error> {
        let token = self.0.tokens.token()?;
        self.0.api.authorize(headers, token.header(), None);
        Ok(token.id())
    }
}

#[derive(Debug)]
enum ApiAgent {
    /// A forked child has one of its own: over its parent's idle connections it would read its parent's answers.
    Ours(PerProcess<ureq::Agent>),
    Theirs(ureq::Agent),
}

/// The default agent of the API calls. It follows no redirect, since the bearer goes only where it was sent (R45).
/// Where one of the APIs is plain http it takes no proxy that the environment names, which would read the bearer.
fn api_agent(api: &Api) -> ureq::Agent {
    let config = ureq::Agent::config_builder().max_redirects(0).timeout_connect(Some(Duration::from_secs(10)));
    let config = config.http_status_as_error(false); // or `exchange` sets it for each request
    if api.has_plain_http() { config.proxy(None) } else { config }.build().new_agent()
}

/// The connection broke before an answer came: as a rule one that was kept, and that the server closed in the same moment
/// (R56). Which it was nobody tells.
fn broke_off(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};

    matches!(error, ureq::Error::Io(error)
        if [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind()))
}

fn uri(url: &str) -> Result<Uri, ConfigError> {
    url.parse().map_err(|_| ConfigError::malformed(Field::Target))
}

/// One API request, to be sent with [`call`](Self::call) or one of the `send` methods.
#[derive(Debug)]
#[must_use = "a request does nothing until it is sent"]
pub struct StormRequest {
    storm: StormClient,
    inner: Result<Request<()>, ConfigError>,
    application_id: Option<u64>,
}

impl StormRequest {
    /// A header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.inner = self.inner.and_then(|mut request| {
            let name: HeaderName = name.parse().map_err(|_| ConfigError::malformed(Field::Header))?;
            let value = HeaderValue::from_str(value).map_err(|_| ConfigError::malformed(Field::Header))?;
            request.headers_mut().append(name, value);
            Ok(request)
        });
        self
    }

    /// A query parameter, form-encoded.
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.inner = self.inner.and_then(|mut request| {
            let pair =
                serde_urlencoded::to_string([(name, value)]).map_err(|_| ConfigError::malformed(Field::Target))?;
            let mark = if request.uri().query().is_some() { '&' } else { '?' };
            *request.uri_mut() = uri(&format!("{}{mark}{pair}", request.uri()))?;
            Ok(request)
        });
        self
    }

    /// Everything that ureq can set for one request: timeouts, sizes, a proxy.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn run(storm: &storm_auth_blocking::StormClient) {
    /// storm.get("/commerce/product/1.1/Products").with(|config| config.timeout_global(Some(Duration::from_secs(5))));
    /// # }
    /// ```
    pub fn with(
        self,
        set: impl FnOnce(ConfigBuilder<HttpCrateScope<()>>) -> ConfigBuilder<HttpCrateScope<()>>,
    ) -> Self {
        let Self { storm, inner, application_id } = self.configure(set);
        // It may have put another one in its place.
        let inner = inner.and_then(|request| storm.0.api.check(&request.uri().to_string()).map(|()| request));
        Self { storm, inner, application_id }
    }

    fn configure(
        mut self,
        set: impl FnOnce(ConfigBuilder<HttpCrateScope<()>>) -> ConfigBuilder<HttpCrateScope<()>>,
    ) -> Self {
        self.inner = self.inner.map(|request| set(self.storm.settings().configure_request(request)).build());
        self
    }

    /// How long the API call may take. A token that has to be waited for has a deadline of its own.
    pub fn timeout(self, span: Duration) -> Self {
        // ureq adds it to an `Instant`, which panics past the clock's end.
        let span = span.min(Transport::LONGEST);
        self.configure(|config| config.timeout_global(Some(span)))
    }

    /// The application id of this request alone.
    pub fn application_id(mut self, id: u64) -> Self {
        self.application_id = Some(id);
        self
    }

    /// Sends it without a body, with a valid token. When the API rejects the token, the request is sent once more with
    /// another one, if that can be had; the answer is the 401 otherwise. An answer of any status is `Ok`.
    ///
    /// A request of a safe method (GET, HEAD, OPTIONS) whose connection breaks before an answer is sent once more, too: the
    /// server may have closed a kept connection in that moment. Others are not, since they may have been processed.
    ///
    /// # Errors
    /// A malformed request or target, no token, or an API call that brought no answer.
    pub fn call(self) -> Result<Response<Body>, Error> {
        match self.inner.as_ref().map(Request::method) {
            // These have a body, be it empty.
            Ok(&Method::POST | &Method::PUT | &Method::PATCH) => self.send([]),
            _ => self.exchange(|agent, request| agent.run(request), true),
        }
    }

    /// Sends it with a body of bytes or text; see [`call`](Self::call).
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn send(self, body: impl AsRef<[u8]>) -> Result<Response<Body>, Error> {
        self.exchange(|agent, request| agent.run(request.map(|()| body.as_ref())), true)
    }

    /// Sends it with a JSON body; see [`call`](Self::call).
    ///
    /// # Errors
    /// As [`call`](Self::call); a value that has no JSON is a malformed request.
    #[cfg(feature = "json")]
    pub fn send_json(mut self, body: &(impl serde::Serialize + ?Sized)) -> Result<Response<Body>, Error> {
        let body = serde_json::to_vec(body).map_err(|_| ConfigError::malformed(Field::Body))?;
        self.default_content_type("application/json");
        self.send(body)
    }

    /// Sends it with form fields; see [`call`](Self::call).
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn send_form(mut self, fields: &[(&str, &str)]) -> Result<Response<Body>, Error> {
        let body = serde_urlencoded::to_string(fields).map_err(|_| ConfigError::malformed(Field::Body))?;
        self.default_content_type("application/x-www-form-urlencoded");
        self.send(body)
    }

    /// Sends it with a body that can be read only once, like a file or a reader. A rejected token then ends in the 401.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn send_once(self, body: impl AsSendBody) -> Result<Response<Body>, Error> {
        let mut body = Some(body);
        self.exchange(
            |agent, request| match body.take() {
                Some(body) => agent.run(request.map(|()| body)),
                None => unreachable!("a body that cannot be repeated is sent once"),
            },
            false,
        )
    }

    fn default_content_type(&mut self, value: &'static str) {
        if let Ok(request) = &mut self.inner {
            request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(value));
        }
    }

    /// One authorised request, or two when the first token is rejected and the body can be repeated.
    fn exchange(
        self,
        mut run: impl FnMut(&ureq::Agent, Request<()>) -> Result<Response<Body>, ureq::Error>,
        repeatable: bool,
    ) -> Result<Response<Body>, Error> {
        let Self { storm, inner, application_id } = self;
        let (agent, Parts { api, tokens, .. }) = (storm.agent(), &*storm.0);
        let mut request = inner?;
        // Whatever is set, an answer of any status is an answer. To configure a request copies all settings into it.
        if agent.config().http_status_as_error() || !request.extensions().is_empty() {
            request = agent.configure_request(request).http_status_as_error(false).build();
        }
        let token = tokens.token()?;
        let spare = repeatable.then(|| request.clone());
        api.authorize(request.headers_mut(), token.header(), application_id);
        let response = match (run(&agent, request), &spare) {
            (Err(error), Some(spare)) if broke_off(&error) && spare.method().is_safe() => {
                let mut once_more = spare.clone();
                api.authorize(once_more.headers_mut(), token.header(), application_id);
                run(&agent, once_more)?
            }
            (result, _) => result?,
        };
        if !api.rejects_token(response.get_uri(), response.status(), response.headers()) {
            return Ok(response);
        }
        let Some((mut again, other)) = tokens.replay(token.id(), spare) else {
            return Ok(response);
        };
        api.authorize(again.headers_mut(), other.header(), application_id);
        let response = run(&agent, again)?;
        if api.rejects_token(response.get_uri(), response.status(), response.headers()) {
            tokens.invalidate(other.id());
        }
        Ok(response)
    }
}
