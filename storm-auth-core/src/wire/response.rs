//! The token endpoint's answer: RFC 6749 §5.1 and §5.2, and what stands in front of such endpoints besides.
//!
//! [`read_response`] sorts every answer into one [`Outcome`]. It takes the forms that servers really send, refuses those that
//! would be guesses, and lets no text through that shows a secret.

use core::cell::OnceCell;
use core::fmt;
use core::time::Duration;

use http::{HeaderMap, Response, StatusCode, header};
use serde::de::{self, Deserializer, IgnoredAny, MapAccess};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::retry_after::{RetryAfter, digits, retry_after};

/// The longest answer that is read: 64 KiB (R10). A real one has about 1,100 bytes.
pub const MAX_RESPONSE_BODY: usize = 64 * 1024;
/// The longest access token that is taken: 16 KiB (R13).
pub const MAX_ACCESS_TOKEN: usize = 16 * 1024;
/// The longest lifetime that is believed: 24 hours (R15).
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The lifetime of a token whose answer names none that can be read: five minutes (R15).
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);

/// What a driver collects the token endpoint's answer into. It is bounded, shows nothing in `Debug`, and is wiped when it is
/// dropped; so is each buffer that it outgrew.
///
/// When [`push`](Self::push) says that an answer is too large, stop reading and hand over what there is: the status and the
/// headers still count, and an endless page beside a 429 is a 429.
///
/// ```
/// use storm_auth_core::wire::response::ResponseBody;
///
/// let mut body = ResponseBody::new();
/// body.push(br#"{"access_token":"#)?;
/// body.push(br#""t0ken"}"#)?;
/// assert_eq!(body.as_bytes(), br#"{"access_token":"t0ken"}"#);
/// assert_eq!(format!("{body:?}"), "ResponseBody([redacted])");
/// # Ok::<(), storm_auth_core::wire::response::BodyTooLarge>(())
/// ```
#[derive(Default)]
pub struct ResponseBody {
    bytes: Zeroizing<Vec<u8>>,
    too_large: bool,
}

impl ResponseBody {
    /// An empty body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends what was read. A body that would pass [`MAX_RESPONSE_BODY`] is wiped and refused, now and from now on.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), BodyTooLarge> {
        let length = self.bytes.len().saturating_add(chunk.len());
        if self.too_large || length > MAX_RESPONSE_BODY {
            *self = Self { bytes: Zeroizing::default(), too_large: true };
            return Err(BodyTooLarge);
        }
        if length > self.bytes.capacity() {
            // By hand: when a `Vec` grows by itself, the old allocation is freed as it was.
            let room = length.next_power_of_two().max(4096);
            let mut grown = Zeroizing::new(Vec::with_capacity(room));
            grown.extend_from_slice(&self.bytes);
            self.bytes = grown;
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// What was read; nothing if it was too large.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes were read, and 0 if there were too many.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether more came than is read.
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }
}

impl TryFrom<&[u8]> for ResponseBody {
    type Error = BodyTooLarge;

    fn try_from(bytes: &[u8]) -> Result<Self, BodyTooLarge> {
        let mut body = Self::new();
        body.push(bytes)?;
        Ok(body)
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseBody([redacted])")
    }
}

/// An answer that is longer than [`MAX_RESPONSE_BODY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyTooLarge;

impl fmt::Display for BodyTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token endpoint's answer is longer than 64 KiB")
    }
}

impl std::error::Error for BodyTooLarge {}

/// All that an answer says.
#[derive(Debug)]
pub struct Answer {
    /// A token, or why there is none.
    pub outcome: Outcome,
    /// How long the server asks to be left alone, beside any outcome; at most an hour. Zero is a field that names no wait. See
    /// [`retry_after`].
    pub retry_after: Option<Duration>,
    /// What was odd and tolerated.
    pub diagnostics: Vec<Diagnostic>,
}

/// Whether there is a token.
#[derive(Debug)]
pub enum Outcome {
    /// There is.
    Granted(Grant),
    /// There is none.
    Refused(Refusal),
}

/// A token and what is known about it.
#[derive(Debug)]
pub struct Grant {
    /// The token.
    pub access_token: AccessToken,
    /// How long it lives, counted from when the request was sent; at most [`MAX_LIFETIME`]. Zero is a token for the callers who
    /// already wait, and for nobody else (R15).
    pub lifetime: Duration,
    /// The scope that was granted, where the answer names it; it may differ from the requested one (R19). Characters that a
    /// scope cannot have are left out, and whole scope tokens after the first 1,024 bytes.
    pub scope: Option<String>,
}

/// An access token: 1 to [`MAX_ACCESS_TOKEN`] bytes, each 0x21 to 0x7E (R13), so it can stand in a header. It is opaque, shows
/// neither text nor length in `Debug`, cannot be compared or serialized, and is wiped when it is dropped.
pub struct AccessToken(Zeroizing<Box<[u8]>>);

impl AccessToken {
    pub(crate) fn new(token: &[u8]) -> Result<Self, TokenFault> {
        match token.len() {
            0 => Err(TokenFault::Empty),
            length if length > MAX_ACCESS_TOKEN => Err(TokenFault::TooLong),
            _ if !token.iter().all(u8::is_ascii_graphic) => Err(TokenFault::Character),
            _ => Ok(Self(Zeroizing::new(Box::from(token)))),
        }
    }

    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken([redacted])")
    }
}

/// Why there is no token. `Display` is one line for people: what the server said, and what to check where checking helps.
///
/// All text in it comes from the server; it is filtered, cleared of secrets and cut (R18).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// What to do about it.
    pub class: Class,
    /// The HTTP status.
    pub status: u16,
    /// The OAuth error, where the body has one; behind a 429 or 503 too.
    pub error: Option<OAuthError>,
    /// Whether that error is `invalid_client`, the client's id or secret, whatever of its text may be shown.
    pub invalid_client: bool,
    /// What is wrong with the body: always set for a 2xx without an OAuth error. With other statuses the status decides, and this
    /// is set only where it may hide an OAuth error: a body that is too large, encoded, or repeats a member. A proxy's HTML page
    /// is no problem worth a name.
    pub problem: Option<Malformed>,
    /// Where a 3xx points, without userinfo, query and fragment, at most 256 bytes. Nothing is ever sent there.
    pub location: Option<String>,
}

/// What a refusal asks for (R17).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// 429 or 503: too many requests from this address, or the server needs quiet. Wait.
    Throttled,
    /// It will not change by itself: the credentials, the scope or the URL are wrong. Tell somebody.
    Configuration,
    /// It may well work the next time.
    Transient,
}

/// An OAuth error (RFC 6749 §5.2), safe to show: the characters are those that the RFC allows, the secret and the live tokens
/// are replaced by `[redacted]`, and what is left is cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OAuthError {
    /// The error code, at most 64 bytes. Empty if none of its characters may be shown.
    pub error: String,
    /// `error_description`, at most 256 bytes.
    pub description: Option<String>,
    /// `error_uri`, at most 256 bytes.
    pub uri: Option<String>,
}

/// What makes an answer unreadable. It carries nothing of the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Malformed {
    /// Longer than [`MAX_RESPONSE_BODY`].
    TooLarge,
    /// The answer has a Content-Encoding, though none was asked for.
    Encoded,
    /// There is no body.
    Empty,
    /// Not UTF-8.
    NotUtf8,
    /// Not JSON, or something stands behind it.
    NotJson,
    /// JSON, but an array, a scalar or null.
    NotAnObject,
    /// A member that must be unique comes twice.
    DuplicateMember(&'static str),
    /// The access token cannot be used.
    AccessToken(TokenFault),
    /// The token is not a Bearer token.
    TokenType,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("the answer is longer than 64 KiB"),
            Self::Encoded => f.write_str("the answer has a content encoding that was not asked for"),
            Self::Empty => f.write_str("the answer is empty"),
            Self::NotUtf8 => f.write_str("the answer is not UTF-8"),
            Self::NotJson => f.write_str("the answer is not JSON"),
            Self::NotAnObject => f.write_str("the answer is not a JSON object"),
            Self::DuplicateMember(name) => write!(f, "the answer has two members named {name}"),
            Self::AccessToken(fault) => write!(f, "the access_token {fault}"),
            Self::TokenType => f.write_str("the token_type is not Bearer"),
        }
    }
}

/// What is wrong with an access token (R13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TokenFault {
    /// There is none.
    Absent,
    /// It is not a string.
    NotAString,
    /// It is an empty string.
    Empty,
    /// It is longer than [`MAX_ACCESS_TOKEN`].
    TooLong,
    /// It has a byte outside 0x21 to 0x7E.
    Character,
}

impl fmt::Display for TokenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "is absent",
            Self::NotAString => "is not a string",
            Self::Empty => "is empty",
            Self::TooLong => "is longer than 16 KiB",
            Self::Character => "has a character that cannot stand in a header",
        })
    }
}

/// Something odd that was tolerated. It carries nothing of the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Diagnostic {
    /// No token_type; Bearer is assumed.
    TokenTypeMissing,
    /// expires_in is absent or null; [`DEFAULT_LIFETIME`] is assumed.
    ExpiresInMissing,
    /// expires_in is neither a number nor digits in a string; [`DEFAULT_LIFETIME`] is assumed.
    ExpiresInUnusable,
    /// expires_in is above [`MAX_LIFETIME`], which is taken instead.
    LifetimeCapped,
    /// The granted scope is not a string.
    ScopeUnreadable,
    /// A Retry-After field says nothing.
    RetryAfterUnreadable,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenTypeMissing => "the answer has no token_type; Bearer is assumed",
            Self::ExpiresInMissing => "the answer has no expires_in; 300 s are assumed",
            Self::ExpiresInUnusable => "the answer's expires_in is not a number; 300 s are assumed",
            Self::LifetimeCapped => "the answer's expires_in is above 24 h; 24 h are taken",
            Self::ScopeUnreadable => "the answer's scope is not a string",
            Self::RetryAfterUnreadable => "a Retry-After field cannot be read",
        })
    }
}

/// Reads a token endpoint's answer.
///
/// `secrets` are cleared from all text that is kept: give the client secret and the live tokens. `unix_now` is the time since
/// 1970; it matters only for a Retry-After date in an answer without a Date.
///
/// A JSON object with a string `error` is an OAuth error whatever the status, even beside an access_token. Otherwise the status
/// decides, and a 2xx without a usable token is malformed (R16). The Content-Type is not looked at, and members that are not
/// known here may hold anything, nested to any depth (R8, R9).
///
/// ```
/// use std::time::Duration;
/// use http::Response;
/// use storm_auth_core::wire::response::{Class, Outcome, ResponseBody, read_response};
///
/// let body = br#"{"access_token":"t0ken","expires_in":3600,"token_type":"Bearer","scope":"lab"}"#;
/// let response = Response::new(ResponseBody::try_from(&body[..])?);
/// let answer = read_response(&response, &[b"S3cret"], Duration::ZERO);
/// let Outcome::Granted(grant) = answer.outcome else { panic!() };
/// assert_eq!(grant.access_token.as_bytes(), b"t0ken");
/// assert_eq!(grant.lifetime, Duration::from_secs(3600));
///
/// let body = br#"{"error":"invalid_client"}"#;
/// let response = Response::builder().status(400).body(ResponseBody::try_from(&body[..])?)?;
/// let answer = read_response(&response, &[b"S3cret"], Duration::ZERO);
/// let Outcome::Refused(refusal) = answer.outcome else { panic!() };
/// assert_eq!(refusal.class, Class::Configuration);
/// assert_eq!(refusal.to_string(), "invalid_client (HTTP 400): check the client id and the client secret");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_response(response: &Response<ResponseBody>, secrets: &[&[u8]], unix_now: Duration) -> Answer {
    let RetryAfter { wait, unreadable } = retry_after(response.headers(), unix_now);
    let mut diagnostics = Vec::new();
    if unreadable {
        diagnostics.push(Diagnostic::RetryAfterUnreadable);
    }
    let members = Members::read(response);
    // An answer may repeat its token in a text. One that is shorter than a real one ever was says nothing about the text.
    let token = members.as_ref().ok().and_then(|members| members.text(Member::AccessToken));
    let token = token.as_ref().map(|token| token.as_bytes()).filter(|token| token.len() >= WINDOW);
    let veil = Veil::over(secrets.iter().copied().chain(token));

    let problem = match &members {
        Ok(members) if members.text(Member::Error).is_some() => None,
        Ok(members) if response.status().is_success() => match grant(members, &veil, &mut diagnostics) {
            Ok(grant) => return Answer { outcome: Outcome::Granted(grant), retry_after: wait, diagnostics },
            Err(problem) => Some(problem),
        },
        Err(problem) if response.status().is_success() || problem.may_hide_an_error() => Some(problem.clone()),
        _ => None,
    };
    let refusal = refusal(response, members.ok(), problem, &veil);
    Answer { outcome: Outcome::Refused(refusal), retry_after: wait, diagnostics }
}

fn grant(members: &Members<'_>, veil: &Veil<'_>, diagnostics: &mut Vec<Diagnostic>) -> Result<Grant, Malformed> {
    let access_token = access_token(members).map_err(Malformed::AccessToken)?;
    match members.raw(Member::TokenType) {
        None => diagnostics.push(Diagnostic::TokenTypeMissing),
        Some(raw) => {
            let bearer = text(raw).is_some_and(|kind| kind.eq_ignore_ascii_case("Bearer"));
            bearer.then_some(()).ok_or(Malformed::TokenType)?;
        }
    }
    let (lifetime, odd) = lifetime(members.raw(Member::ExpiresIn));
    diagnostics.extend(odd);
    let scope = members.text(Member::Scope);
    if scope.is_none() && members.raw(Member::Scope).is_some_and(|raw| raw != "null") {
        diagnostics.push(Diagnostic::ScopeUnreadable);
    }
    let scope = scope.map(|scope| {
        let mut scope = veil.clear(&scope, is_nqschar);
        if scope.len() > SCOPE {
            // At a space: half a scope token would be another scope.
            scope.truncate(scope[..=SCOPE].rfind(' ').unwrap_or(0));
        }
        scope
    });
    Ok(Grant { access_token, lifetime, scope: scope.filter(|scope| !scope.is_empty()) })
}

fn access_token(members: &Members<'_>) -> Result<AccessToken, TokenFault> {
    let raw = members.raw(Member::AccessToken).ok_or(TokenFault::Absent)?;
    AccessToken::new(text(raw).ok_or(TokenFault::NotAString)?.as_bytes())
}

/// R15, from `expires_in` as it stands in the answer.
fn lifetime(raw: Option<&str>) -> (Duration, Option<Diagnostic>) {
    let Some(raw) = raw.filter(|raw| *raw != "null") else {
        return (DEFAULT_LIFETIME, Some(Diagnostic::ExpiresInMissing));
    };
    match whole_seconds(raw).map(Duration::from_secs) {
        None => (DEFAULT_LIFETIME, Some(Diagnostic::ExpiresInUnusable)),
        Some(lifetime) if lifetime > MAX_LIFETIME => (MAX_LIFETIME, Some(Diagnostic::LifetimeCapped)),
        Some(lifetime) => (lifetime, None),
    }
}

/// A JSON number, or digits in a JSON string, rounded down; 0 for what is below.
fn whole_seconds(raw: &str) -> Option<u64> {
    match raw.as_bytes().first()? {
        b'"' => digits(&text(raw)?),
        b'-' => Some(0),
        b'0'..=b'9' => Some(floor(raw)),
        _ => None,
    }
}

/// The whole part of a JSON number that is not negative; `u64::MAX` for one past it. Taken from its digits, since a float rounds
/// 3599.9… up.
fn floor(number: &str) -> u64 {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // One past i64 moves the point out of sight, as any does that is longer than the number.
    let exponent = exponent.parse().unwrap_or(if exponent.starts_with('-') { i64::MIN } else { i64::MAX });
    let point = exponent.saturating_add_unsigned(whole.len() as u64).max(0);
    // More zeros than a u64 has digits.
    let digits = whole.bytes().chain(fraction.bytes()).chain([b'0'; 20]);
    (digits.take(usize::try_from(point).unwrap_or(usize::MAX)))
        .fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

fn refusal(
    response: &Response<ResponseBody>,
    members: Option<Members<'_>>,
    problem: Option<Malformed>,
    veil: &Veil<'_>,
) -> Refusal {
    let status = response.status();
    let code = members.as_ref().and_then(|members| members.text(Member::Error));
    let optional = |member, allowed: fn(u8) -> bool| {
        let text = members.as_ref().and_then(|members| members.text(member))?;
        Some(cut(veil.clear(&text, allowed), 256)).filter(|text| !text.is_empty())
    };
    Refusal {
        class: class(status, code.as_ref().map(|code| code.as_str())),
        status: status.as_u16(),
        invalid_client: code.as_ref().is_some_and(|code| code.as_str() == "invalid_client"),
        error: code.map(|code| OAuthError {
            error: cut(veil.clear(&code, is_nqschar), 64),
            description: optional(Member::ErrorDescription, is_nqschar),
            uri: optional(Member::ErrorUri, is_nqchar),
        }),
        problem,
        location: if status.is_redirection() { location(response.headers(), veil) } else { None },
    }
}

/// R17.
fn class(status: StatusCode, error: Option<&str>) -> Class {
    const FINAL: [&str; 5] =
        ["invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type", "invalid_request"];
    match (status.as_u16(), error) {
        (429 | 503, _) => Class::Throttled,
        (500.., _) => Class::Transient,
        (_, Some(error)) if FINAL.contains(&error) => Class::Configuration,
        (400..=499, Some(_)) => Class::Configuration,
        (_, Some(_)) => Class::Transient,
        (300..=399 | 400 | 401 | 404 | 405, None) => Class::Configuration,
        (_, None) => Class::Transient,
    }
}

/// Where a redirect points, without what may be secret in it.
fn location(headers: &HeaderMap, veil: &Veil<'_>) -> Option<String> {
    let shown: String = headers
        .get(header::LOCATION)?
        .as_bytes()
        .iter()
        .copied()
        .filter(|byte| is_nqchar(*byte))
        .map(char::from)
        .collect();
    let shown = shown.split(['?', '#']).next()?;
    // Userinfo ends at the last `@` of the authority, which is what follows the scheme and the slashes.
    let scheme = shown.find(':').filter(|colon| !shown[..*colon].contains(['/', '@'])).map_or(0, |colon| colon + 1);
    let (scheme, rest) = shown.split_at(scheme);
    let path = rest.trim_start_matches('/');
    let slashes = &rest[..rest.len() - path.len()];
    let authority = &path[..path.find('/').unwrap_or(path.len())];
    let host = authority.rfind('@').map_or(0, |at| at + 1);
    let shown = veil.clear(&format!("{scheme}{slashes}{}", &path[host..]), is_nqchar);
    Some(cut(shown, 256)).filter(|location| !location.is_empty())
}

fn cut(mut ascii: String, length: usize) -> String {
    ascii.truncate(length);
    ascii
}

impl Malformed {
    fn may_hide_an_error(&self) -> bool {
        matches!(self, Self::TooLarge | Self::Encoded | Self::DuplicateMember(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { class, status, error, problem, location, .. } = self;
        let throttled = if *status == 429 { "rate limited" } else { "told to wait" };
        match (class, error, location) {
            (Class::Throttled, Some(error), _) => write!(f, "{throttled} (HTTP {status}, {error})")?,
            (Class::Throttled, None, _) => write!(f, "{throttled} (HTTP {status})")?,
            (_, Some(error), _) => write!(f, "{error} (HTTP {status})")?,
            (_, None, Some(location)) => write!(f, "the token endpoint moved (HTTP {status}) to {location}")?,
            (_, None, None) => write!(f, "the token endpoint answered HTTP {status} and no token")?,
        }
        if let Some(problem) = problem {
            write!(f, ": {problem}")?;
        }
        if let Some(check) = self.what_to_check() {
            write!(f, ": check {check}")?;
        }
        if let Some(description) = error.as_ref().and_then(|error| error.description.as_ref()) {
            write!(f, " (the server says: {description})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    fn what_to_check(&self) -> Option<&'static str> {
        if self.class != Class::Configuration {
            return None;
        }
        Some(match (self.error.as_ref().map(|error| error.error.as_str()), self.status) {
            (Some("invalid_client"), _) => "the client id and the client secret",
            (Some("unauthorized_client"), _) => "whether the client may use the client_credentials grant",
            (Some("invalid_scope"), _) => "the scope",
            (Some("unsupported_grant_type" | "invalid_request"), _) => "the token URL",
            (Some(_), _) => "the client's registration",
            (None, 300..=399 | 404 | 405) => "the token URL",
            (None, _) => "the token URL, the client id, the client secret and the scope",
        })
    }
}

impl fmt::Display for OAuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.error.is_empty() { "an error without a name" } else { &self.error })
    }
}

/// The members that are read; each may come once (R12).
#[derive(Clone, Copy)]
enum Member {
    AccessToken,
    TokenType,
    ExpiresIn,
    Scope,
    Error,
    ErrorDescription,
    ErrorUri,
}

const NAMES: [&str; 7] =
    ["access_token", "token_type", "expires_in", "scope", "error", "error_description", "error_uri"];

/// The known members as they stand in the body. They are kept as text because the parser would copy a string with escapes into
/// a buffer that nobody wipes, and would fail the whole answer for `1e400`; and all names are read so, because it would fail the
/// answer for half a surrogate pair in one.
#[derive(Default)]
struct Members<'a> {
    raw: [Option<&'a str>; NAMES.len()],
    repeated: Option<&'static str>,
}

impl<'a> Members<'a> {
    fn read(response: &'a Response<ResponseBody>) -> Result<Self, Malformed> {
        let body = response.body();
        if body.is_too_large() {
            return Err(Malformed::TooLarge);
        }
        if is_encoded(response.headers()) {
            return Err(Malformed::Encoded);
        }
        let text = core::str::from_utf8(body.as_bytes()).map_err(|_| Malformed::NotUtf8)?;
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        if text.trim_ascii().is_empty() {
            return Err(Malformed::Empty);
        }
        if !text.trim_ascii_start().starts_with('{') {
            // Asking for an object would put a string that is none into the error.
            let json = serde_json::from_str::<IgnoredAny>(text);
            return Err(json.map_or(Malformed::NotJson, |_| Malformed::NotAnObject));
        }
        let mut parser = serde_json::Deserializer::from_str(text);
        let members = parser.deserialize_map(MembersVisitor).and_then(|members| parser.end().map(|()| members));
        match members {
            Ok(Self { repeated: Some(name), .. }) => Err(Malformed::DuplicateMember(name)),
            Ok(members) => Ok(members),
            Err(_) => Err(Malformed::NotJson),
        }
    }

    fn raw(&self, member: Member) -> Option<&'a str> {
        self.raw[member as usize]
    }

    /// The member's text, if it is a string.
    fn text(&self, member: Member) -> Option<Zeroizing<String>> {
        self.raw(member).and_then(text)
    }
}

struct MembersVisitor;

impl<'de> de::Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Members::default();
        while let Some(name) = map.next_key::<&'de RawValue>()? {
            let name = text(name.get());
            match NAMES.iter().position(|known| name.as_ref().is_some_and(|name| name.as_str() == *known)) {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(member) => {
                    let value = map.next_value::<&'de RawValue>()?;
                    if members.raw[member].replace(value.get()).is_some() {
                        members.repeated = Some(NAMES[member]);
                    }
                }
            }
        }
        Ok(members)
    }
}

/// Whether the body is compressed or otherwise not what it stands for.
fn is_encoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter().flat_map(|field| {
        let field = field.as_bytes();
        field.split(|byte| *byte == b',').map(|coding| coding.trim_ascii())
    });
    codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// What a JSON string that the parser has passed stands for, or `None` if it is not a string. The buffer never grows, so there
/// is one copy to wipe.
fn text(raw: &str) -> Option<Zeroizing<String>> {
    let mut rest = raw.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = Zeroizing::new(String::with_capacity(rest.len()));
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let mut after = escape.chars();
        let character = match after.next()? {
            'b' => '\u{8}',
            'f' => '\u{C}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (character, behind) = code_point(after.as_str())?;
                after = behind.chars();
                character
            }
            itself => itself,
        };
        text.push(character);
        rest = after.as_str();
    }
    text.push_str(rest);
    Some(text)
}

/// The character of `\u` and four digits, of which the `\u` is already read, and what stands behind. Each half of a surrogate pair
/// becomes U+FFFD: no text that is taken or shown has a character outside of ASCII.
fn code_point(escape: &str) -> Option<(char, &str)> {
    let (digits, behind) = escape.split_at_checked(4)?;
    let unit = u32::from_str_radix(digits, 16).ok()?;
    Some((char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER), behind))
}

/// How much of a granted scope is kept. The service refuses requests for more than 300 characters.
const SCOPE: usize = 1024;

/// What RFC 6749 allows in `error`, `error_description` and, with the space, in `scope` (NQSCHAR).
fn is_nqschar(byte: u8) -> bool {
    byte == b' ' || is_nqchar(byte)
}

/// What RFC 6749 allows in `error_uri` (NQCHAR).
fn is_nqchar(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E)
}

/// A driver's own text, in the characters and the length that a server's would be shown in, without the secrets.
pub(crate) fn clear_text(text: &str, secrets: &[&[u8]]) -> String {
    cut(Veil::over(secrets.iter().copied()).clear(text, is_nqschar), 256)
}

/// Lies over every text of the server that is shown, so that no 8 consecutive bytes of a secret can be seen through it (R18,
/// R58), nor the whole of a shorter one.
///
/// A secret is known again as it is, form-encoded as it was sent, percent-encoded in any other way, and without those of its
/// characters that a text cannot show. Looking costs the same whatever the secrets: a search per byte of the text.
struct Veil<'s> {
    secrets: Vec<&'s [u8]>,
    /// Woven for the first text: most answers have none, and a token is long.
    spellings: OnceCell<Spellings>,
}

/// How secrets may be spelled in a text.
struct Spellings {
    /// All runs of [`WINDOW`] bytes, sorted.
    windows: Zeroizing<Vec<u64>>,
    /// The secrets that have no such run.
    short: Vec<Zeroizing<Vec<u8>>>,
}

/// How many bytes of a secret are too many.
const WINDOW: usize = 8;
/// How much of a secret must remain among the characters that a text can show for the rest to count as the secret. Fewer would
/// blot out every vowel for the sake of a secret that cannot be told from them.
const REMNANT: usize = 4;

impl<'s> Veil<'s> {
    fn over(secrets: impl Iterator<Item = &'s [u8]>) -> Self {
        Self { secrets: secrets.filter(|secret| !secret.is_empty()).collect(), spellings: OnceCell::new() }
    }

    /// The text's allowed characters, without the secrets.
    fn clear(&self, text: &str, allowed: fn(u8) -> bool) -> String {
        let text = filtered(text.as_bytes(), allowed);
        if text.is_empty() {
            return String::new();
        }
        let spellings = self.spellings.get_or_init(|| Spellings::of(&self.secrets));
        let hidden = spellings.hidden(&text);
        let mut shown = String::with_capacity(text.len());
        for (at, byte) in text.iter().enumerate() {
            match hidden[at] {
                false => shown.push(char::from(*byte)),
                true if at == 0 || !hidden[at - 1] => shown.push_str("[redacted]"),
                true => {}
            }
        }
        // A secret may be spelled like the mark, or like the mark and its neighbours.
        if spellings.hidden(shown.as_bytes()).contains(&true) {
            return String::new();
        }
        shown
    }
}

impl Spellings {
    fn of(secrets: &[&[u8]]) -> Self {
        let mut spellings: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        for &secret in secrets {
            spellings.push(Zeroizing::new(secret.to_vec()));
            let mut encoded = Zeroizing::new(Vec::with_capacity(secret.len() * 3));
            encoded.extend(form_urlencoded::byte_serialize(secret).flat_map(str::bytes));
            if encoded.as_slice() != secret {
                spellings.push(encoded);
            }
            for allowed in [is_nqschar, is_nqchar] {
                let remnant = filtered(secret, allowed);
                if (REMNANT..secret.len()).contains(&remnant.len()) {
                    spellings.push(remnant);
                }
            }
        }
        let (long, short): (Vec<_>, Vec<_>) = spellings.into_iter().partition(|spelling| spelling.len() >= WINDOW);
        let mut windows = Zeroizing::new(Vec::with_capacity(long.iter().map(|spelling| spelling.len()).sum()));
        windows.extend(long.iter().flat_map(|spelling| spelling.windows(WINDOW)).map(number));
        windows.sort_unstable();
        Self { windows, short }
    }

    /// Which bytes of a text belong to a secret.
    fn hidden(&self, text: &[u8]) -> Vec<bool> {
        let mut hidden = vec![false; text.len()];
        for reading in [Reading::plain(text), Reading::decoded(text, false), Reading::decoded(text, true)] {
            let long = reading.bytes.windows(WINDOW).enumerate();
            for (at, _) in long.filter(|(_, window)| self.windows.binary_search(&number(window)).is_ok()) {
                hidden[reading.starts[at]..reading.starts[at + WINDOW]].fill(true);
            }
            for short in &self.short {
                let same = reading.bytes.windows(short.len()).enumerate();
                for (at, _) in same.filter(|(_, window)| *window == short.as_slice()) {
                    hidden[reading.starts[at]..reading.starts[at + short.len()]].fill(true);
                }
            }
        }
        hidden
    }
}

/// A text as it stands or percent-decoded, and where in the text each byte begins; one more for where the last one ends.
struct Reading {
    bytes: Zeroizing<Vec<u8>>,
    starts: Vec<usize>,
}

impl Reading {
    fn plain(text: &[u8]) -> Self {
        Self { bytes: Zeroizing::new(text.to_vec()), starts: (0..=text.len()).collect() }
    }

    fn decoded(text: &[u8], plus_is_space: bool) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
        let mut starts = Vec::with_capacity(text.len() + 1);
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            starts.push(at);
            let escaped = text.get(at + 1..at + 3).filter(|_| *byte == b'%').and_then(hex);
            bytes.push(match byte {
                b'+' if plus_is_space => b' ',
                byte => escaped.unwrap_or(*byte),
            });
            at += if escaped.is_some() { 3 } else { 1 };
        }
        starts.push(at);
        Self { bytes, starts }
    }
}

fn hex(digits: &[u8]) -> Option<u8> {
    let mut value = 0;
    for digit in digits {
        value = value * 16 + char::from(*digit).to_digit(16)?;
    }
    u8::try_from(value).ok()
}

fn filtered(text: &[u8], allowed: fn(u8) -> bool) -> Zeroizing<Vec<u8>> {
    let mut rest = Zeroizing::new(Vec::with_capacity(text.len()));
    rest.extend(text.iter().copied().filter(|byte| allowed(*byte)));
    rest
}

fn number(window: &[u8]) -> u64 {
    window.iter().fold(0, |number, byte| (number << 8) + u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r60_a_body_grows_by_hand_and_only_when_it_has_to() {
        let mut body = ResponseBody::new();
        body.push(&[1; 100]).expect("it is short");
        assert_eq!(body.bytes.capacity(), 4_096);
        let place = body.bytes.as_ptr();
        body.push(&[2; 3_996]).expect("it is short");
        assert_eq!((body.len(), body.bytes.as_ptr()), (4_096, place), "it fits exactly");
        body.push(&[3; 4_097]).expect("it is short");
        assert_eq!(body.bytes.capacity(), 16_384);
    }
}
