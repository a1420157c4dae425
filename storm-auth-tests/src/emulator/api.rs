//! The API's decisions: whether a request's token is good, and what it is told otherwise.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request};

use super::{
    civil,
    jwt::{Claims, Key, Unverified},
};

/// What the API knows about tokens.
pub(super) struct Rules<'a> {
    pub(super) key: Option<&'a Key>,
    pub(super) issuer: &'a str,
    pub(super) leeway_ms: u64,
    pub(super) now_ms: u64,
    pub(super) is_revoked: &'a dyn Fn(u64) -> bool,
}

/// A 401 in the words of ASP.NET's bearer authentication. `None` is a request that brought no token.
pub(super) type Challenge = Option<String>;

/// Lets the request through, or says what its 401 says.
pub(super) fn authenticate(headers: &HeaderMap, rules: &Rules<'_>) -> Result<(), Challenge> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(None)?;
    if values.next().is_some() {
        return Err(Some(String::new()));
    }
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(None)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(None);
    }
    let (serial, claims) =
        rules.key.ok_or(Unverified::Signature).and_then(|key| key.verify(token)).map_err(|why| match why {
            Unverified::Malformed => Some(String::new()),
            Unverified::Signature => Some("The signature is invalid".to_owned()),
        })?;
    check(serial, &claims, rules).map_err(Some)
}

fn check(serial: u64, claims: &Claims, rules: &Rules<'_>) -> Result<(), String> {
    let Rules { now_ms, leeway_ms, .. } = *rules;
    if now_ms.saturating_add(leeway_ms) < claims.nbf.saturating_mul(1_000) {
        return Err(format!("The token is not valid before '{}'", civil(claims.nbf)));
    }
    // RFC 7519 §4.1.4: not accepted on or after it.
    if now_ms >= claims.exp.saturating_mul(1_000).saturating_add(leeway_ms) {
        return Err(format!("The token expired at '{}'", civil(claims.exp)));
    }
    if claims.iss != rules.issuer {
        return Err(format!("The issuer '{}' is invalid", claims.iss));
    }
    if (rules.is_revoked)(serial) {
        return Err(String::new());
    }
    Ok(())
}

/// A 401 with its challenge and no body.
pub(super) fn unauthorized(challenge: &Challenge) -> Response<Bytes> {
    let challenge = match challenge.as_deref() {
        None => "Bearer".to_owned(),
        Some("") => "Bearer error=\"invalid_token\"".to_owned(),
        Some(why) => format!("Bearer error=\"invalid_token\", error_description=\"{why}\""),
    };
    let mut response = empty(StatusCode::UNAUTHORIZED);
    let challenge = HeaderValue::try_from(challenge).unwrap_or(HeaderValue::from_static("Bearer"));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// What an authenticated request gets: an echo, or the 500 of one without a decimal `ApplicationId`.
pub(super) fn echo(request: &request::Parts, body_length: u64, count: u64) -> Response<Bytes> {
    let Some(application_id) = application_id(&request.headers) else {
        return empty(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let body = serde_json::json!({
        "method": request.method.as_str(),
        "path": request.uri.path(),
        "query": request.uri.query(),
        "applicationId": application_id,
        "bodyLength": body_length,
        "count": count,
    });
    let mut response = Response::new(Bytes::from(body.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}

/// Both spellings that the service's interfaces use.
fn application_id(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get("applicationid").or_else(|| headers.get("application-id"))?.to_str().ok()?;
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok())?
}

fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response
}
