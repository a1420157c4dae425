//! What the fuzz targets do with their bytes. It builds on stable, so that the corpora are replayed without a fuzzer.

#![allow(clippy::unwrap_used, reason = "a panic is what is looked for")]

// The model of the model test judges the machine here too.
#[path = "../../tests/model/reference.rs"]
mod reference;
#[path = "../../tests/model/stage.rs"]
mod stage;

use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::Value;
use storm_auth_core::FailureKind;
use storm_auth_core::wire::challenge::{BearerError, MAX_FIELDS, bearer_error, rejects_token};
use storm_auth_core::wire::response::{
    Class, MAX_ACCESS_TOKEN, MAX_LIFETIME, MAX_RESPONSE_BODY, Malformed, Outcome, ResponseBody, read_response,
};
use storm_auth_core::wire::retry_after::{self as wait, MAX_RETRY_AFTER};

use stage::{CLIENTS, Command, Found, Setting, Stage, Wire};

const SECRET: &str = "C4nary-s3cret-0123456789";

/// An answer of a token endpoint: a body; or a status, fields, an empty line and a body, one line each.
pub fn response(data: &[u8]) {
    let mut response = Response::new(ResponseBody::new());
    let mut body = data;
    if let Some(end) = data.windows(2).position(|bytes| bytes == b"\n\n") {
        let mut lines = data[..end].split(|byte| *byte == b'\n');
        let status = lines.next().and_then(|line| StatusCode::from_bytes(line).ok());
        if let Some(status) = status {
            body = &data[end + 2..];
            *response.status_mut() = status;
            add_fields(response.headers_mut(), lines);
        }
    }
    let is_too_large = response.body_mut().push(body).is_err();
    assert_eq!(is_too_large, body.len() > MAX_RESPONSE_BODY);
    let status = response.status().as_u16();
    let answer = read_response(&response, &[SECRET.as_bytes()], Duration::from_secs(1_700_000_000));
    assert!(answer.retry_after.is_none_or(|wait| wait <= MAX_RETRY_AFTER));

    // What a plain parser makes of it, where it can: it knows neither 1e400 nor half a surrogate pair, and keeps the last of two.
    let plain: Option<Value> = serde_json::from_slice(body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body)).ok();
    let member = |name: &str| plain.as_ref().and_then(|plain| plain.get(name)).and_then(Value::as_str);
    match &answer.outcome {
        Outcome::Granted(grant) => {
            let token = grant.access_token.as_bytes();
            assert!((200..300).contains(&status));
            assert!((1..=MAX_ACCESS_TOKEN).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic));
            assert!(grant.lifetime <= MAX_LIFETIME);
            if plain.is_some() {
                assert_eq!(member("access_token").map(str::as_bytes), Some(token));
                assert_eq!(member("error"), None);
            }
            let scope = grant.scope.as_deref().unwrap_or("x");
            assert!((1..=1_024).contains(&scope.len()));
            assert_shows_nothing(scope, token);
        }
        Outcome::Refused(refusal) => {
            assert_eq!(refusal.class == Class::Throttled, matches!(status, 429 | 503));
            assert!(status < 500 || refusal.class != Class::Configuration);
            assert_eq!(refusal.status, status);
            let hidden = matches!(
                refusal.problem,
                Some(Malformed::TooLarge | Malformed::Encoded | Malformed::DuplicateMember(_))
            );
            if plain.is_some() && !hidden {
                assert_eq!(refusal.error.is_some(), member("error").is_some());
            }
            assert!((200..300).contains(&status) || refusal.problem.is_none() || hidden);
            let error = refusal.error.as_ref();
            let texts = [
                (error.map(|error| &error.error), 64),
                (error.and_then(|error| error.description.as_ref()), 256),
                (error.and_then(|error| error.uri.as_ref()), 256),
                (refusal.location.as_ref(), 256),
            ];
            for (text, longest) in texts.into_iter().filter_map(|(text, longest)| Some((text?, longest))) {
                assert!(text.len() <= longest && text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text}");
                assert!(!text.contains(['"', '\\']), "{text}");
                assert_shows_nothing(text, member("access_token").unwrap_or_default().as_bytes());
            }
            assert!(!refusal.to_string().is_empty());
        }
    }
    assert_shows_nothing(&format!("{answer:?}"), b"");
}

/// Not eight bytes of the secret or the token in a row.
fn assert_shows_nothing(text: &str, token: &[u8]) {
    for part in SECRET.as_bytes().windows(8).chain(token.windows(8)) {
        assert!(!text.as_bytes().windows(8).any(|bytes| bytes == part), "{text}");
    }
}

/// Retry-After fields, one a line; a line may name the field, and so be a Date.
pub fn retry_after(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        let is_named = add_fields(&mut headers, std::iter::once(line));
        if let (false, Ok(value)) = (is_named, HeaderValue::from_bytes(line)) {
            headers.append(RETRY_AFTER, value);
        }
    }
    let found = wait::retry_after(&headers, Duration::from_secs(784_111_777));

    let dated = headers.get_all(DATE).iter().find_map(date).unwrap_or(784_111_777);
    let (mut longest, mut unreadable) = (None, false);
    for field in headers.get_all(RETRY_AFTER) {
        let bytes = field.as_bytes();
        let start = bytes.iter().position(|byte| !b" \t".contains(byte)).unwrap_or(bytes.len());
        let end = bytes.iter().rposition(|byte| !b" \t".contains(byte)).map_or(start, |last| last + 1);
        let seconds = match &bytes[start..end] {
            [] => None,
            digits if digits.iter().all(u8::is_ascii_digit) => Some(
                digits.iter().fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add((digit - b'0').into())),
            ),
            _ => date(field).map(|at| at.saturating_sub(dated)),
        };
        longest = longest.max(seconds.map(|seconds| Duration::from_secs(seconds.min(3_600))));
        unreadable |= seconds.is_none();
    }
    assert_eq!((found.wait, found.unreadable), (longest, unreadable));
}

fn date(field: &HeaderValue) -> Option<u64> {
    let text = field.to_str().ok()?.trim_matches([' ', '\t']);
    let at = httpdate::parse_http_date(text).ok()?;
    at.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// WWW-Authenticate fields, one a line.
pub fn challenge(data: &[u8]) {
    let fields = data.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    let fields: Vec<_> = fields.take(MAX_FIELDS - 1).collect();
    let all = |fields: &[HeaderValue]| {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(WWW_AUTHENTICATE, field.clone());
        }
        headers
    };
    let headers = all(&fields);
    let error = bearer_error(&headers);

    // Nothing is found that is not written there; a quoted string may have backslashes in between.
    let text: Vec<u8> = data.iter().filter(|byte| **byte != b'\\').map(u8::to_ascii_lowercase).collect();
    let has = |word: &[u8]| text.windows(word.len()).any(|bytes| bytes == word);
    let named: &[u8] = match error {
        None => b"",
        Some(BearerError::InvalidToken) => b"invalid_token",
        Some(BearerError::InsufficientScope) => b"insufficient_scope",
        Some(BearerError::InvalidRequest) => b"invalid_request",
        Some(_) => b"error",
    };
    assert!(error.is_none() || has(b"bearer") && has(b"error") && has(named), "{error:?}");
    let is_other = matches!(error, Some(BearerError::InsufficientScope | BearerError::InvalidRequest));
    assert_eq!(rejects_token(StatusCode::UNAUTHORIZED, &headers), !is_other);
    for status in [StatusCode::FORBIDDEN, StatusCode::INTERNAL_SERVER_ERROR] {
        assert!(!rejects_token(status, &headers));
    }

    // One field hides nothing of another; and what is found alone is found among others, unless invalid_token is.
    let well_formed = HeaderValue::from_static(r#"Bearer realm="a, b", error="invalid_token""#);
    for at in [0, fields.len()] {
        let mut more = fields.clone();
        more.insert(at, well_formed.clone());
        assert_eq!(bearer_error(&all(&more)), Some(BearerError::InvalidToken));
    }
    let alone: Vec<_> = fields.iter().filter_map(|field| bearer_error(&all(std::slice::from_ref(field)))).collect();
    let invalid = alone.iter().find(|error| **error == BearerError::InvalidToken);
    assert_eq!(error, invalid.or(alone.first()).copied());
}

/// The lines that are one of the fields that are read; whether all were.
fn add_fields<'l>(headers: &mut HeaderMap, lines: impl Iterator<Item = &'l [u8]>) -> bool {
    const NAMES: [HeaderName; 5] = [RETRY_AFTER, DATE, LOCATION, CONTENT_ENCODING, CONTENT_TYPE];
    let mut all = true;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
        let name = NAMES.into_iter().find(|name| line[..colon].eq_ignore_ascii_case(name.as_str().as_bytes()));
        match (name, line.get(colon + 1..).map(HeaderValue::from_bytes)) {
            (Some(name), Some(Ok(value))) => {
                headers.append(name, value);
            }
            _ => all = false,
        }
    }
    all
}

/// A setting and commands for a machine and its model, in letters, each with the digits that it takes: `a00` is an acquire of
/// the first key without a deadline of its own. [`LETTERS`] has the commands.
pub fn machine(data: &[u8]) {
    let mut data = Letters(data.iter());
    let budgets = [Some((3, 20)), Some((3, 1)), Some((3, 0)), Some((60, 2)), None];
    let setting =
        Setting { budget: data.pick(&budgets), stale: data.pick(&[0, 60, 900]), seed: data.number(10) as u64 };
    let mut stage = Stage::new(setting);
    for _ in 0..MOST_COMMANDS {
        let Some(command) = data.command() else { break };
        stage.play(&command);
    }
    stage.come_to_rest();
}

/// As many as a long story has; without a limit, an input's time would be that of the model, which goes through all it has seen.
const MOST_COMMANDS: usize = 300;

/// Acquire, cancel, reject, reject one seen, a Foreign token, secret, Other client, key, drop, warm, cold, shut (Z), answer,
/// late, time, sleep, forward, back.
const LETTERS: &[u8; 18] = b"acrRFsOkdwxZ=lT.fb";

struct Letters<'d>(std::slice::Iter<'d, u8>);

impl Letters<'_> {
    fn number(&mut self, below: usize) -> usize {
        self.0.next().map_or(0, |byte| usize::from(byte.wrapping_sub(b'0')) % below)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.number(from.len())]
    }

    fn span(&mut self) -> u64 {
        self.pick(&[
            1, 999, 1_000, 5_000, 15_000, 19_999, 20_000, 20_500, 25_000, 60_000, 120_000, 300_000, 420_000, 450_000,
            588_000, 3_600_000,
        ])
    }

    fn retry_after(&mut self) -> Option<u64> {
        self.pick(&[None, None, Some(0), Some(1), Some(7), Some(30), Some(3_600), Some(99_999)])
    }

    fn lifetime(&mut self) -> u64 {
        self.pick(&[600, 3_600, 0, 1, 2, 20, 60, 120, 500, 86_400, 1_000_000])
    }

    fn next(&mut self) -> Option<u8> {
        self.pick(&[Some(1), Some(2), Some(0), None])
    }

    fn found(&mut self) -> Found {
        match self.number(4) {
            0 | 1 => Found::Secrets { secret: self.number(3) as u8, next: self.next() },
            2 => Found::AnotherClients,
            _ => Found::Nothing,
        }
    }

    fn wire(&mut self) -> Wire {
        const KINDS: [FailureKind; 4] =
            [FailureKind::Connect, FailureKind::Timeout, FailureKind::Io, FailureKind::Aborted];
        match self.number(5) {
            0 => Wire::Token { lifetime: self.lifetime(), retry_after: self.retry_after() },
            1 => Wire::Error {
                status: self.pick(&[429, 503, 400, 401, 403, 404, 418, 500, 301]),
                error: self.pick(&[None, Some("invalid_client"), Some("invalid_scope"), Some("odd")]),
                retry_after: self.retry_after(),
            },
            2 => Wire::Fail { kind: self.pick(&KINDS) },
            3 => Wire::SameToken { lifetime: self.lifetime() },
            _ => Wire::Unusable,
        }
    }

    fn command(&mut self) -> Option<Command> {
        let letter = *self.0.next()?;
        let letter = LETTERS.iter().position(|known| *known == letter).unwrap_or(letter.into()) % LETTERS.len();
        let key = CLIENTS.len();
        Some(match LETTERS[letter] {
            b'a' => {
                let key = self.number(key);
                let patience = match self.number(4) {
                    0 => None,
                    1 => Some(u64::MAX),
                    2 => Some(0),
                    _ => Some(self.span()),
                };
                Command::Acquire { key, patience }
            }
            b'c' => Command::Cancel { waiter: self.number(8) },
            b'r' => Command::RejectCurrent { key: self.number(key) },
            b'R' => Command::RejectSeen { token: self.number(20) },
            b'F' => Command::RejectForeign,
            b's' => Command::SetSecret { key: self.number(key), secret: self.number(3) as u8, next: None },
            b'2' => Command::SetSecret { key: self.number(key), secret: self.number(3) as u8, next: self.next() },
            b'n' => Command::Renew { key: self.number(key) },
            b'y' => Command::ComeBack { look: self.number(4), with: self.found() },
            b'Y' => Command::ComeBackLate { look: self.number(8) },
            b'O' => Command::SetOtherClient { key: self.number(key) },
            b'k' => Command::AddKey { client: self.number(key), secret: self.number(3) as u8, next: None },
            b'd' => Command::RemoveKey { key: self.number(key) },
            b'w' => Command::KeepWarm { key: self.number(key) },
            b'x' => Command::KeepCold { key: self.number(key) },
            b'Z' => Command::ShutDown,
            b'=' => Command::Answer { request: self.number(4), with: self.wire() },
            b'l' => Command::AnswerLate { request: self.number(8), with: self.wire() },
            b'T' => Command::Advance { span: self.span() },
            b'.' => Command::Sleep { span: self.span() },
            b'f' => Command::WallForward { span: self.span() },
            _ => Command::WallBack { span: self.span() },
        })
    }
}
