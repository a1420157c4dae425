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
/// assert!(api.check("https://elsewhere.example/").is_err());
/// # Ok::<(), storm_auth_core::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Api {
    /// The first is the one that paths are appended to; never empty.
    urls: Vec<ApiUrl>,
    application_header: HeaderName,
    /// And as it is sent.
    application_id: Option<(u64, HeaderValue)>,
}

impl Api {
    pub(crate) fn new(urls: Vec<ApiUrl>, application_header: HeaderName, application_id: Option<u64>) -> Option<Self> {
        let application_id = application_id.map(|id| (id, HeaderValue::from(id)));
        (!urls.is_empty()).then_some(Self { urls, application_header, application_id })
    }

    /// The base URLs: the first is the one that paths are appended to, and there is always one.
    pub fn urls(&self) -> &[ApiUrl] {
        &self.urls
    }

    /// The application id that calls carry unless they have one of their own.
    pub fn application_id(&self) -> Option<u64> {
        self.application_id.as_ref().map(|(id, _)| *id)
    }

    /// The URL of a request: a path is appended to the API base; a whole URL is taken when its origin is a configured one,
    /// because the bearer goes nowhere else (R45).
    ///
    /// # Errors
    /// A URL of an origin that is not configured, or something that is neither a path nor a URL.
    pub fn target(&self, path_or_url: &str) -> Result<String, ConfigError> {
        let rest = path_or_url.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let is_url = rest.len() < path_or_url.len() && rest.starts_with("://");
        let target = if is_url { path_or_url.to_owned() } else { self.urls[0].join(path_or_url) };
        self.check(&target)?;
        Ok(target)
    }

    /// Whether a URL is taken as it is: for one that [`target`](Self::target) made and that others have had since.
    ///
    /// # Errors
    /// As [`target`](Self::target).
    pub fn check(&self, url: &str) -> Result<(), ConfigError> {
        // Nearly all are like this, and what follows takes longer than all else that is done for a call.
        if self.urls.iter().any(|api| api.is_base_of(url)) && is_plain(url) {
            return Ok(());
        }
        check_spelling(url)?;
        let uri: Uri = url
            .parse()
            .map_err(|_| ConfigError::new(Field::Target, "not a URL; give a path like /commerce/1.1/products"))?;
        match self.allows(&uri) {
            true => Ok(()),
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
    /// bearer was not for that host to judge. Hardly one does, so the URI is looked at last: to read one from a text takes long.
    pub fn rejects_token(&self, uri: impl TryInto<Uri>, status: StatusCode, headers: &HeaderMap) -> bool {
        rejects_token(status, headers) && uri.try_into().is_ok_and(|uri| self.allows(&uri))
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
        } else if let Some((_, id)) = &self.application_id {
            headers.entry(&self.application_header).or_insert_with(|| id.clone());
        }
    }
}

/// Whether there is nothing in a URL to look at closely: it has the characters of RFC 3986 (3.3 and 3.4) alone, no fragment, no
/// segment that begins like `.` or `%2e`, and a length that every client takes.
fn is_plain(url: &str) -> bool {
    const UNUSUAL: u8 = 1;
    const SLASH: u8 = 2;
    const DOT: u8 = 4;
    const KINDS: [u8; 256] = {
        let (mut kinds, mut byte) = ([UNUSUAL; 256], 0);
        while byte < kinds.len() {
            kinds[byte] = match byte as u8 {
                b'/' => SLASH,
                b'.' | b'%' => DOT,
                b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'$'..=b';' | b'=' | b'?' | b'@' | b'_' | b'~' => 0,
                _ => UNUSUAL,
            };
            byte += 1;
        }
        kinds
    };
    // Without a branch for each byte: this is the longest part of what is done for a call.
    let (mut odd, mut before) = (0, 0);
    for byte in url.bytes() {
        let kind = KINDS[usize::from(byte)];
        odd |= kind & UNUSUAL | (before & SLASH) << 1 & kind;
        before = kind;
    }
    url.len() <= 2_048 && odd == 0
}

/// HTTP clients differ in what they make of these, and some let a path climb out of the API's base. So they are refused: what
/// is sent is what was written.
fn check_spelling(url: &str) -> Result<(), ConfigError> {
    if url.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'\\') {
        return Err(ConfigError::new(
            Field::Target,
            "a space, a backslash or a non-ASCII character; percent-encode it",
        ));
    }
    let path = url.split(['?', '#']).next().unwrap_or_default();
    match path.split('/').any(|segment| is_dots(segment.as_bytes())) {
        true => Err(ConfigError::new(Field::Target, "a . or .. segment; write the path without it")),
        false => Ok(()),
    }
}

/// Whether a segment is `.` or `..`.
fn is_dots(segment: &[u8]) -> bool {
    after_dot(segment).is_some_and(|rest| rest.is_empty() || after_dot(rest).is_some_and(<[u8]>::is_empty))
}

/// What follows a dot, which may be percent-encoded.
fn after_dot(text: &[u8]) -> Option<&[u8]> {
    match text {
        [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => Some(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::HttpHosts;

    /// The short way, which has no other sign than what it costs; what is not plain is looked at closely.
    #[test]
    fn r45_what_everybody_spells_the_same_way_is_plain_and_nothing_else() {
        let base = ApiUrl::parse("https://api.example/base", &HttpHosts::default()).unwrap();
        for path in ["/orders/1042?top=3&x=a/b", "/a.b/c..d/e%20f", "/!$&'()*+,-.:;=@_~?AZaz09"] {
            let url = base.join(path);
            assert!(base.is_base_of(&url) && is_plain(&url), "{url}");
        }
        for url in
            ["https://api.example/bases/a", "https://api.example/base", "https://api.example.evil.example/base/a"]
        {
            assert!(!base.is_base_of(url), "{url}");
        }
        for path in [
            "/.", "/../a", "/%2e", "/a/.b", "/a b", "/a#b", "/a\\b", "/\"", "/<", "/[", "/^", "/`", "/{", "/\u{e5}",
            "/\n",
        ] {
            assert!(!is_plain(&base.join(path)), "{path:?}");
        }
        assert!(is_plain(&"a".repeat(2_048)) && !is_plain(&"a".repeat(2_049)));
    }
}
