//! Where to ask: token URLs, API bases, and presets of both for Storm and for Norce Commerce.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use http::Uri;

use crate::credentials::scope;
use crate::error::{ConfigError, Field};

/// The stages of a Norce Commerce tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// `{slug}.api-{region}.playground.norce.tech`, scope `playground`.
    Playground,
    /// `{slug}.api-{region}.stage.norce.tech`, scope `stage`.
    Stage,
    /// `{slug}.api-{region}.norce.tech`, scope `prod`.
    Production,
}

/// A token URL, an API base and the scope that belongs to them, unchecked until the builder's `build`.
///
/// ```
/// use storm_auth_core::{Environment, Stage};
///
/// let playground = Environment::norce("acme", "se", Stage::Playground);
/// assert_eq!(playground.token_url(), "https://acme.api-se.playground.norce.tech/identity/1.0/connect/token");
/// assert_eq!(playground.api_url(), Some("https://acme.api-se.playground.norce.tech"));
/// assert_eq!(playground.scope(), "playground");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Environment {
    token_url: UncheckedUrl,
    api_url: Option<UncheckedUrl>,
    scope: String,
    /// The parts of a tenant's host name, kept to be checked before they are sent anywhere.
    labels: Vec<String>,
}

const STORM_TOKEN_URL: &str = "https://identity.storm.io/1.0/connect/token";

impl Environment {
    /// A Norce Commerce tenant: its slug, its region (`se` is the only one seen) and its stage.
    pub fn norce(slug: impl Into<String>, region: impl Into<String>, stage: Stage) -> Self {
        let (slug, region) = (slug.into(), region.into());
        let (label, scope) = match stage {
            Stage::Playground => (".playground", scope::PLAYGROUND),
            Stage::Stage => (".stage", scope::STAGE),
            Stage::Production => ("", scope::PROD),
        };
        let api_url = format!("https://{slug}.api-{region}{label}.norce.tech");
        Self {
            token_url: UncheckedUrl(format!("{api_url}/identity/1.0/connect/token")),
            api_url: Some(UncheckedUrl(api_url)),
            scope: scope.to_owned(),
            labels: vec![slug, region],
        }
    }

    /// Storm, the lab environment.
    pub fn storm_lab() -> Self {
        Self::custom(STORM_TOKEN_URL, "https://api.lab.storm.io", scope::LAB)
    }

    /// Storm, the QA environment. The service documents its scope and no host of its own, and the host decides the environment:
    /// so the API base has to be set with the builder's `api_url`.
    pub fn storm_qa() -> Self {
        Self { api_url: None, ..Self::custom(STORM_TOKEN_URL, "", scope::QA) }
    }

    /// Storm, production.
    pub fn storm_production() -> Self {
        Self::custom(STORM_TOKEN_URL, "https://api.storm.io", scope::PRODUCTION)
    }

    /// Any other token endpoint, API base and scope.
    pub fn custom(token_url: impl Into<String>, api_url: impl Into<String>, scope: impl Into<String>) -> Self {
        let (token_url, api_url) = (UncheckedUrl(token_url.into()), Some(UncheckedUrl(api_url.into())));
        Self { token_url, api_url, scope: scope.into(), labels: Vec::new() }
    }

    /// The URL that token requests go to.
    pub fn token_url(&self) -> &str {
        &self.token_url.0
    }

    /// The URL that API paths are appended to, where the environment has one.
    pub fn api_url(&self) -> Option<&str> {
        self.api_url.as_ref().map(|url| &*url.0)
    }

    /// The scope that authorises for this environment.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// A tenant's parts must be DNS labels, or they could move the secret to another host.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let is_label = |text: &String| {
            (1..=63).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !text.starts_with('-')
                && !text.ends_with('-')
        };
        match self.labels.iter().all(is_label) {
            true => Ok(()),
            false => Err(ConfigError::new(Field::Tenant, "not a DNS label; use letters, digits and inner hyphens")),
        }
    }
}

/// A URL as it was given. Nobody has looked yet whether somebody put a secret into it, so `Debug` leaves out where one could
/// stand: userinfo, query and fragment.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct UncheckedUrl(pub(crate) String);

impl fmt::Debug for UncheckedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.split(['?', '#']).next().unwrap_or_default();
        let (scheme, rest) = shown.split_once("://").unwrap_or(("", shown));
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rfind('@').map_or(0, |at| at + 1);
        write!(f, "{:?}", format_args!("{scheme}://{}", &rest[host..]))
    }
}

/// Hosts for which plain http is taken: loopback always, others only by name (R4).
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct HttpHosts(Vec<String>);

impl HttpHosts {
    /// Takes plain http for `host` too, so that the secret and the tokens cross that network readable.
    pub fn danger_allow(&mut self, host: impl Into<String>) {
        self.0.push(host.into().to_ascii_lowercase());
    }

    fn allow(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        host == "localhost"
            || bare.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
            || bare.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
            || self.0.iter().any(|allowed| allowed == bare)
    }
}

/// Scheme, host and port: what a bearer token is bound to (R45).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an absolute http or https URI; `None` for any other, and for one with userinfo.
    pub fn of(uri: &Uri) -> Option<Self> {
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        // A port that is written must be one: `http` takes `:` and `:99999` in an authority.
        let port = match authority.as_str()[authority.host().len()..].strip_prefix(':') {
            Some(text) => text.parse().ok()?,
            None if https => 443,
            None => 80,
        };
        Some(Self { https, host: authority.host().to_ascii_lowercase(), port })
    }
}

impl Origin {
    /// Whether it is plain http: then nothing that is sent there may take a way that the user did not name, like a proxy.
    pub fn is_plain_http(&self) -> bool {
        !self.https
    }
}

impl Origin {
    /// The scopes that the service documents for this host, token endpoint or API; none where the host is not one of the service's. The
    /// host decides the environment, and the scope only authorises it, so another scope is a hint and no error.
    ///
    /// ```
    /// use storm_auth_core::{HttpHosts, TokenUrl};
    ///
    /// let scopes = |url: &str| TokenUrl::parse(url, &HttpHosts::default()).map(|url| url.origin().documented_scopes());
    /// assert_eq!(scopes("https://acme.api-se.playground.norce.tech/identity/1.0/connect/token")?, ["playground"]);
    /// assert_eq!(scopes("https://identity.storm.io/1.0/connect/token")?, ["lab", "qa", "production"]);
    /// assert!(scopes("https://emulator.example/token")?.is_empty());
    /// # Ok::<(), storm_auth_core::ConfigError>(())
    /// ```
    pub fn documented_scopes(&self) -> &'static [&'static str] {
        let Some(tenant) = self.host.strip_suffix(".norce.tech") else {
            return match self.host.as_str() {
                "identity.storm.io" => &[scope::LAB, scope::QA, scope::PRODUCTION],
                "api.lab.storm.io" => &[scope::LAB],
                "api.storm.io" => &[scope::PRODUCTION],
                _ => &[],
            };
        };
        match tenant.split_once(".api-").map(|(_, rest)| rest.split_once('.')) {
            Some(None) => &[scope::PROD],
            Some(Some((_, "playground"))) => &[scope::PLAYGROUND],
            Some(Some((_, "stage"))) => &[scope::STAGE],
            _ => &[],
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, default_port) = if self.https { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == default_port { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// A token endpoint's URL, checked: https (or plain http where that was allowed), no userinfo, no fragment (R4).
///
/// ```
/// use storm_auth_core::{HttpHosts, TokenUrl};
///
/// let none = HttpHosts::default();
/// assert!(TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &none).is_ok());
/// assert!(TokenUrl::parse("http://127.0.0.1:8080/token", &none).is_ok());
/// assert!(TokenUrl::parse("http://identity.storm.io/1.0/connect/token", &none).is_err());
/// assert!(TokenUrl::parse("https://id:secret@identity.storm.io/", &none).is_err());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct TokenUrl {
    uri: Uri,
    origin: Origin,
}

/// Without its query.
impl fmt::Debug for TokenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenUrl({}{})", self.origin, self.uri.path())
    }
}

impl TokenUrl {
    /// Checks a token URL.
    pub fn parse(url: &str, http_hosts: &HttpHosts) -> Result<Self, ConfigError> {
        let (uri, origin) = parse_url(Field::TokenUrl, url, http_hosts)?;
        Ok(Self { uri, origin })
    }

    /// The URL.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Its scheme, host and port.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The spelling that takes part in a token's key: scheme and host in lower case, a default port left out.
    pub(crate) fn canonical(&self) -> String {
        format!("{}{}", self.origin, self.uri.path_and_query().map_or("/", |path| path.as_str()))
    }
}

/// The base URL of an API, checked like a token URL; it may not have a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiUrl {
    /// Without a trailing slash.
    base: String,
    origin: Origin,
}

impl ApiUrl {
    /// Checks an API's base URL.
    pub fn parse(url: &str, http_hosts: &HttpHosts) -> Result<Self, ConfigError> {
        let (uri, origin) = parse_url(Field::ApiUrl, url, http_hosts)?;
        if uri.query().is_some() {
            return Err(ConfigError::new(Field::ApiUrl, "a base URL has no query; give queries with each request"));
        }
        let base = format!("{origin}{}", uri.path()).trim_end_matches('/').to_owned();
        Ok(Self { base, origin })
    }

    /// Its scheme, host and port.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The base with a path (and query) appended. A path always stays below the base: `@host` or `//host` does not leave it.
    pub(crate) fn join(&self, path: &str) -> String {
        let slash = if path.starts_with('/') { "" } else { "/" };
        [&*self.base, slash, path].concat()
    }

    /// Whether a URL is this base, to the byte, with a path appended.
    pub(crate) fn is_base_of(&self, url: &str) -> bool {
        // The slash ends the host.
        url.strip_prefix(&*self.base).is_some_and(|path| path.starts_with('/'))
    }
}

fn parse_url(field: Field, url: &str, http_hosts: &HttpHosts) -> Result<(Uri, Origin), ConfigError> {
    if url.is_empty() {
        return Err(ConfigError::new(field, "empty; give a URL like https://host/path"));
    }
    if url.contains(char::is_whitespace) {
        return Err(ConfigError::new(field, "white space in it; remove it, or write %20 where it belongs to the path"));
    }
    // `Uri` drops a fragment silently, so it is looked for first.
    if url.contains('#') {
        return Err(ConfigError::new(field, "it has a fragment; remove everything from the # on"));
    }
    let uri: Uri = url.parse().map_err(|_| ConfigError::new(field, "not a URL; give one like https://host/path"))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(ConfigError::new(field, "it has userinfo before the host; credentials do not belong in a URL"));
    }
    let origin = Origin::of(&uri).ok_or_else(|| {
        ConfigError::new(
            field,
            "not an absolute http(s) URL with a host and, if any, a port up to 65535; give one like https://host/path",
        )
    })?;
    if !origin.https && !http_hosts.allow(&origin.host) {
        return Err(ConfigError::new(
            field,
            "plain http would show the secret to the network; use https, or allow this one host with danger_allow_http",
        ));
    }
    Ok((uri, origin))
}
