//! What an API call is authorised with, and which origins may see it.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header::AUTHORIZATION};

use crate::environment::{ApiUrl, Origin};
use crate::error::{ConfigError, Field};
use crate::wire::challenge::rejects_token;

/// The API side of a configuration: base, origins that may get the bearer, and the application id's header.
///
/// ```
/// use storm_auth_core::{Credentials, Environment, Settings};
///
/// let api = Settings::new()
///     .environment(Environment::storm_lab())
///     .credentials(Credentials::new("shop", "S3cret")?)
///     .check()?
///     .api
///     .expect("the preset has an API base");
/// assert_eq!(api.target("/commerce/1.1/products?top=3")?, "https://api.lab.storm.io/commerce/1.1/products?top=3");
/// assert_eq!(api.target("search?next=https://a.example")?, "https://api.lab.storm.io/search?next=https://a.example");
/// assert!(api.target("https://elsewhere.example/").is_err());
/// # Ok::<(), storm_auth_core::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Api {
    /// The first is the one that paths are appended to; never empty.
    urls: Vec<ApiUrl>,
    application_header: HeaderName,
    application_id: Option<u64>,
}

impl Api {
    pub(crate) fn new(urls: Vec<ApiUrl>, application_header: HeaderName, application_id: Option<u64>) -> Option<Self> {
        (!urls.is_empty()).then_some(Self { urls, application_header, application_id })
    }

    /// The URL of a request: a path is appended to the API base; a whole URL is taken when its origin is a configured one,
    /// because the bearer goes nowhere else (R45).
    ///
    /// # Errors
    /// A URL of an origin that is not configured, or something that is neither a path nor a URL.
    pub fn target(&self, path_or_url: &str) -> Result<String, ConfigError> {
        let is_url = path_or_url.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        });
        let target = if is_url { path_or_url.to_owned() } else { self.urls[0].join(path_or_url) };
        check_target(&target)?;
        let uri: Uri = target
            .parse()
            .map_err(|_| ConfigError::new(Field::Target, "not a URL; give a path like /commerce/1.1/products"))?;
        match self.allows(&uri) {
            true => Ok(target),
            false => Err(ConfigError::new(
                Field::Target,
                "not a configured API; the bearer goes only to those, so name this one with api_url beside the base",
            )),
        }
    }

    /// Whether the bearer may go to this URI: scheme, host and port of a configured API (R45).
    pub fn allows(&self, uri: &Uri) -> bool {
        Origin::of(uri).is_some_and(|origin| self.urls.iter().any(|url| *url.origin() == origin))
    }

    /// Whether an answer from this URI rejects the bearer that was sent (R39). One that a redirect led elsewhere does not: the
    /// bearer was not for that host to judge.
    pub fn rejects_token(&self, uri: &Uri, status: StatusCode, headers: &HeaderMap) -> bool {
        rejects_token(status, headers) && self.allows(uri)
    }

    /// Whether a configured API is plain http: then no proxy that the user did not name may see what is sent there.
    pub fn has_plain_http(&self) -> bool {
        self.urls.iter().any(|url| url.origin().is_plain_http())
    }

    /// Sets `Authorization` and the application id's header, replacing what stands there. `application_id` is this request's
    /// own, where it has one; a header that the caller set by hand counts too.
    pub fn authorize(&self, headers: &mut HeaderMap, bearer: HeaderValue, application_id: Option<u64>) {
        headers.insert(AUTHORIZATION, bearer);
        if let Some(id) = application_id {
            headers.insert(&self.application_header, HeaderValue::from(id));
        } else if let (Some(id), false) = (self.application_id, headers.contains_key(&self.application_header)) {
            headers.insert(&self.application_header, HeaderValue::from(id));
        }
    }
}

/// HTTP clients differ in what they make of these, and some let a path climb out of the API's base. So they are refused: what
/// is sent is what was written.
fn check_target(target: &str) -> Result<(), ConfigError> {
    if target.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'\\') {
        return Err(ConfigError::new(
            Field::Target,
            "a space, a backslash or a non-ASCII character; percent-encode it",
        ));
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let is_dots = |segment: &str| matches!(&*segment.to_ascii_lowercase().replace("%2e", "."), "." | "..");
    match path.split('/').any(is_dots) {
        true => Err(ConfigError::new(Field::Target, "a . or .. segment; write the path without it")),
        false => Ok(()),
    }
}
