//! The token endpoint's decisions: a request's bytes in, a grant or an error out.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

/// A client as the token endpoint knows it.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) secret: String,
    pub(super) scopes: Vec<String>,
    pub(super) enabled: bool,
    /// Whether it may use the client-credentials grant.
    pub(super) granted: bool,
}

/// What a good request is given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) client_id: String,
    pub(super) scopes: Vec<String>,
}

/// Decides like IdentityServer4: the request's form first, then the client, the grant, the scope.
pub(super) fn decide(
    method: &Method,
    headers: &HeaderMap,
    body: &[u8],
    clients: &BTreeMap<String, Client>,
) -> Result<Grant, &'static str> {
    if method != Method::POST || !is_form(headers) {
        return Err("invalid_request");
    }
    let form = form(body).ok_or("invalid_request")?;
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();

    let (id, secret) = (field("client_id"), field("client_secret"));
    let client = clients.get(id).filter(|client| client.enabled && client.secret == secret);
    let client = client.filter(|_| chars(id) <= 100 && chars(secret) <= 100).ok_or("invalid_client")?;

    match field("grant_type") {
        "client_credentials" if client.granted => {}
        "client_credentials" => return Err("unauthorized_client"),
        _ => return Err("unsupported_grant_type"),
    }

    let scope = field("scope");
    if chars(scope) > 300 {
        return Err("invalid_scope");
    }
    let mut scopes: Vec<String> = Vec::new();
    for asked in scope.split(' ').filter(|asked| !asked.is_empty()) {
        if !client.scopes.iter().any(|allowed| allowed == asked) {
            return Err("invalid_scope");
        }
        if !scopes.iter().any(|taken| taken == asked) {
            scopes.push(asked.to_owned());
        }
    }
    if scopes.is_empty() {
        scopes.clone_from(&client.scopes);
    }
    Ok(Grant { client_id: id.to_owned(), scopes })
}

/// The recorded response. `expires_in` is JSON already, so that a fault can make it anything.
pub(super) fn granted(token: &str, expires_in: &str, grant: &Grant) -> Response<Bytes> {
    let scope = serde_json::Value::from(grant.scopes.join(" "));
    let body =
        format!(r#"{{"access_token":"{token}","expires_in":{expires_in},"token_type":"Bearer","scope":{scope}}}"#);
    answer(StatusCode::OK, body)
}

/// Every protocol error is a 400 with the error's name alone.
pub(super) fn refused(error: &str) -> Response<Bytes> {
    answer(StatusCode::BAD_REQUEST, format!(r#"{{"error":"{error}"}}"#))
}

fn answer(status: StatusCode, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

fn is_form(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(Ok(value)), None) = (values.next().map(HeaderValue::to_str), values.next()) else { return false };
    let media_type = value.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The form's fields. One that stands twice makes the request no request, whatever its name.
fn form(body: &[u8]) -> Option<BTreeMap<String, String>> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_bytes(body).ok()?;
    let count = pairs.len();
    let form: BTreeMap<_, _> = pairs.into_iter().collect();
    (form.len() == count).then_some(form)
}

/// Length as .NET counts it, in UTF-16 code units.
fn chars(value: &str) -> usize {
    value.encode_utf16().count()
}
