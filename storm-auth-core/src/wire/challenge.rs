//! `WWW-Authenticate` (RFC 9110 §11.6.1, RFC 6750 §3): what an API's answer says about the token that it was shown.
//!
//! The parameters of a challenge are read by [`http_auth`]'s parser. It stops at the first thing that it does not know, so a
//! field is taken apart into its challenges here, and each is parsed alone: a malformed one hides none of the others.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_auth::ChallengeParser;

/// How much of one field is looked at. A challenge that stands past it is not found.
pub const MAX_FIELD: usize = 8 * 1024;
/// How many fields are looked at.
pub const MAX_FIELDS: usize = 32;

/// The `error` of a Bearer challenge (RFC 6750 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BearerError {
    /// `invalid_token`: expired, revoked or malformed. Another token may do.
    InvalidToken,
    /// `insufficient_scope`: the token is good, and not enough.
    InsufficientScope,
    /// `invalid_request`: the request is at fault, not the token.
    InvalidRequest,
    /// An error that RFC 6750 does not know. Its text is not kept: an API may echo the token in it.
    Other,
}

/// The Bearer error that an answer's `WWW-Authenticate` fields name, if any (R42).
///
/// Any bytes may stand there. A well-formed Bearer challenge is found among several challenges and fields, beside malformed ones
/// too; parameters of another scheme are not a Bearer error. A challenge is well formed when its parameters are, and `error` is
/// there once. Characters outside ASCII are taken inside quotes, and a value of another name may stand there without the quotes
/// that it needs, like a URL. Of several Bearer errors `invalid_token` counts before the
/// others, and then the first. At most [`MAX_FIELDS`] fields and [`MAX_FIELD`] bytes of each are looked at.
///
/// ```
/// use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
/// use storm_auth_core::wire::challenge::{BearerError, bearer_error};
///
/// let mut headers = HeaderMap::new();
/// headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Negotiate oYG2MIGzoAMKAQE="));
/// headers.append(
///     WWW_AUTHENTICATE,
///     HeaderValue::from_static(r#"Basic realm="api", Bearer error="invalid_token", error_description="it expired, sorry""#),
/// );
/// assert_eq!(bearer_error(&headers), Some(BearerError::InvalidToken));
/// ```
pub fn bearer_error(headers: &HeaderMap) -> Option<BearerError> {
    let mut found = None;
    for field in headers.get_all(header::WWW_AUTHENTICATE).iter().take(MAX_FIELDS) {
        for challenge in challenges(&text(field)) {
            match error_of(&challenge) {
                Some(BearerError::InvalidToken) => return Some(BearerError::InvalidToken),
                error => found = found.or(error),
            }
        }
    }
    found
}

/// Whether an API's answer rejects the token, so that another one is worth a try (R39, R41).
///
/// It does with a 401 that names `invalid_token`, an error unknown to RFC 6750, or no Bearer error at all: no challenge, one of
/// another scheme, or one that cannot be read. It does not with `insufficient_scope` or `invalid_request`, nor with any other
/// status: a service like this one answers 500 when the application id is missing.
///
/// ```
/// use http::{HeaderMap, StatusCode};
/// use storm_auth_core::wire::challenge::rejects_token;
///
/// assert!(rejects_token(StatusCode::UNAUTHORIZED, &HeaderMap::new()));
/// assert!(!rejects_token(StatusCode::FORBIDDEN, &HeaderMap::new()));
/// ```
pub fn rejects_token(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::UNAUTHORIZED && !blames_the_call(headers)
}

/// The same for a gRPC answer, whose status stands in its headers where there is no message: `UNAUTHENTICATED`, 16, rejects the
/// token as a 401 does, and a challenge beside it is heard. A status that comes in trailers, after a message, is not seen here.
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use storm_auth_core::wire::challenge::grpc_rejects_token;
///
/// let mut headers = HeaderMap::new();
/// headers.insert("grpc-status", HeaderValue::from_static("16"));
/// assert!(grpc_rejects_token(&headers));
/// headers.insert("grpc-status", HeaderValue::from_static("7")); // PERMISSION_DENIED
/// assert!(!grpc_rejects_token(&headers));
/// ```
pub fn grpc_rejects_token(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|status| status == "16") && !blames_the_call(headers)
}

/// Whether a challenge says that another token would not help.
fn blames_the_call(headers: &HeaderMap) -> bool {
    matches!(bearer_error(headers), Some(BearerError::InsufficientScope | BearerError::InvalidRequest))
}

/// A field as ASCII, no longer than [`MAX_FIELD`]; a character that the parser does not know becomes `?`.
fn text(field: &HeaderValue) -> String {
    let bytes = field.as_bytes();
    let seen = bytes.iter().take(MAX_FIELD).map(|byte| match byte {
        b'\t' | b' '..=b'~' => char::from(*byte),
        _ => '?',
    });
    let mut text: String = seen.collect();
    if bytes.len() > MAX_FIELD {
        // What was cut through would read as something that nobody wrote.
        text.truncate(elements(&text).last().map_or(0, |last| text.len() - last.len()));
    }
    text
}

/// The challenges of a field, each as `scheme` or `scheme name=value, name=value`. Challenges and parameters are separated by
/// the same comma, so a challenge begins with each element that is not `name=value`.
fn challenges(field: &str) -> Vec<String> {
    let mut challenges: Vec<String> = Vec::new();
    for element in elements(field) {
        let element = element.trim_matches([' ', '\t']);
        let name_end = element.find([' ', '\t', '=']).unwrap_or(element.len());
        let (name, rest) = element.split_at(name_end);
        let rest = rest.trim_start_matches([' ', '\t']);
        match challenges.last_mut() {
            _ if element.is_empty() => {}
            Some(challenge) if rest.starts_with('=') && !name.is_empty() => {
                let separator = if challenge.contains(' ') { ", " } else { " " };
                challenge.push_str(separator);
                challenge.push_str(&quoted(element));
            }
            _ if rest.is_empty() => challenges.push(name.to_owned()),
            _ => challenges.push(format!("{name} {}", quoted(rest))),
        }
    }
    challenges
}

/// A parameter whose value should be quoted and is not, like a URL, as it should be; any other is left as it is, `error` too.
fn quoted(parameter: &str) -> Cow<'_, str> {
    let blanks = [' ', '\t'];
    match parameter.split_once('=').map(|(name, value)| (name.trim_matches(blanks), value.trim_matches(blanks))) {
        Some((name, value)) if !name.eq_ignore_ascii_case("error") && !value.contains(['"', '\\', ' ', '\t']) => {
            // Nothing but the padding of a token68 is no value.
            if value.trim_matches('=').is_empty() { parameter.into() } else { format!("{name}=\"{value}\"").into() }
        }
        _ => parameter.into(),
    }
}

/// What stands between the commas of a field, those inside quotes aside.
fn elements(field: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    field.split(move |character| {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' => return !quoted,
            _ => {}
        }
        false
    })
}

/// The error of one challenge, if it is a well-formed Bearer challenge that has one.
fn error_of(challenge: &str) -> Option<BearerError> {
    let challenge = ChallengeParser::new(challenge).next()?.ok()?;
    if !challenge.scheme.eq_ignore_ascii_case("Bearer") {
        return None;
    }
    let mut errors = challenge.params.iter().filter(|(name, _)| name.eq_ignore_ascii_case("error"));
    let (_, error) = errors.next()?;
    if errors.next().is_some() {
        return None;
    }
    Some(match error.to_unescaped().as_str() {
        "invalid_token" => BearerError::InvalidToken,
        "insufficient_scope" => BearerError::InsufficientScope,
        "invalid_request" => BearerError::InvalidRequest,
        _ => BearerError::Other,
    })
}
