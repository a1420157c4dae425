//! The token request of RFC 6749 §4.4.2, with the client's credentials in the body (§2.3.1), as the service wants it.

use core::fmt;

use http::{HeaderValue, Method, Request, header};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::credentials::{Credentials, Scope};
use crate::environment::TokenUrl;

/// The form body of a token request: it holds the secret, so it is redacted in `Debug` and wiped on drop (R7).
#[derive(Clone)]
pub struct FormBody(Zeroizing<Vec<u8>>);

impl FormBody {
    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FormBody {
    /// The same bytes for an HTTP client, still wiped when the last holder goes.
    pub fn into_bytes(self) -> bytes::Bytes {
        bytes::Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for FormBody {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FormBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token request body]")
    }
}

/// The POST that asks for a token (R1): the form holds grant_type, client_id, client_secret and, unless the server's default
/// was chosen, scope. No credential stands in the URL or in a header.
///
/// ```
/// use storm_auth_core::wire::request::token_request;
/// use storm_auth_core::{Credentials, HttpHosts, Scope, TokenUrl, scope};
///
/// let url = TokenUrl::parse("https://identity.storm.io/1.0/connect/token", &HttpHosts::default())?;
/// let request = token_request(&url, &Credentials::new("shop", "a+b c")?, &Scope::new(scope::LAB)?);
/// assert_eq!(
///     request.body().as_bytes(),
///     b"grant_type=client_credentials&client_id=shop&client_secret=a%2Bb+c&scope=lab"
/// );
/// # Ok::<(), storm_auth_core::ConfigError>(())
/// ```
pub fn token_request(url: &TokenUrl, credentials: &Credentials, scope: &Scope) -> Request<FormBody> {
    let secret = credentials.secret().expose();
    let fields = [
        Some(("grant_type", "client_credentials")),
        Some(("client_id", credentials.client_id())),
        Some(("client_secret", secret)),
        scope.as_str().map(|scope| ("scope", scope)),
    ];
    // A byte becomes three at the most, so the buffer never grows, and no copy of the secret stays where it was outgrown.
    let room: usize = fields.iter().flatten().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    let mut encoder = form_urlencoded::Serializer::new(String::with_capacity(room));
    (fields.iter().flatten().collect::<Vec<_>>())
        .serialize(serde_urlencoded::Serializer::new(&mut encoder))
        .expect("pairs of strings have a form encoding");
    let body = Zeroizing::new(encoder.finish().into_bytes());
    let mut request = Request::new(FormBody(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.uri().clone();
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::HttpHosts;

    #[test]
    fn r60_a_form_never_outgrows_its_buffer_and_leaves_a_copy_behind() {
        let url = TokenUrl::parse("https://id.example/token", &HttpHosts::default()).expect("it is sound");
        // Every byte of it becomes three.
        let credentials = Credentials::new("shop", "&".repeat(100)).expect("it is sound");
        let request = token_request(&url, &credentials, &Scope::new("lab").expect("it is sound"));
        // The names, three times the values, and two separators for each.
        assert_eq!(request.body().0.capacity(), 66 + 23 + 315 + 16);
    }
}
