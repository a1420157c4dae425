//! `Retry-After` (RFC 9110 §10.2.3): how long an answer asks to be left alone.

use core::time::Duration;
use std::time::UNIX_EPOCH;

use http::{HeaderMap, HeaderValue, header};
use httpdate::HttpDate;

/// The longest wait that is believed (R32): a server that names more is asked again after an hour.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What [`retry_after`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RetryAfter {
    /// The wait, at most [`MAX_RETRY_AFTER`]; `None` when no field could be read. A date in the past and the digit `0` are
    /// `Some(Duration::ZERO)`: the server said something, but it names no wait, so the pace is left to the caller (R33, R35).
    pub wait: Option<Duration>,
    /// A field was there that says nothing (R31): to be told to whoever operates this.
    pub unreadable: bool,
}

/// Reads every `Retry-After` field of an answer: seconds as digits, or one of the three HTTP dates. Of several fields the
/// largest valid one counts (R31), and whatever it names saturates at [`MAX_RETRY_AFTER`] (R32).
///
/// A date is measured against the answer's own `Date`, so that a client whose clock is wrong waits rightly; without a `Date`
/// that can be read it is measured against `unix_now`, the time since 1970 that the caller has (R33).
///
/// ```
/// use std::time::Duration;
/// use http::{HeaderMap, HeaderValue, header};
/// use storm_auth_core::wire::retry_after::retry_after;
///
/// let mut headers = HeaderMap::new();
/// headers.append(header::RETRY_AFTER, HeaderValue::from_static("30"));
/// headers.append(header::RETRY_AFTER, HeaderValue::from_static("+90"));
/// let found = retry_after(&headers, Duration::ZERO);
/// assert_eq!(found.wait, Some(Duration::from_secs(30)));
/// assert!(found.unreadable);
/// ```
pub fn retry_after(headers: &HeaderMap, unix_now: Duration) -> RetryAfter {
    let sent = headers.get_all(header::DATE).iter().find_map(date).unwrap_or(unix_now);
    let mut found = RetryAfter::default();
    for field in headers.get_all(header::RETRY_AFTER) {
        let seconds = visible(field).and_then(digits).map(Duration::from_secs);
        match seconds.or_else(|| date(field).map(|at| at.saturating_sub(sent))) {
            Some(wait) => found.wait = found.wait.max(Some(wait.min(MAX_RETRY_AFTER))),
            None => found.unreadable = true,
        }
    }
    found
}

/// A number written with digits and nothing else; one past `u64` is `u64::MAX`. (`str::parse` would take a sign.)
pub(super) fn digits(text: &str) -> Option<u64> {
    let only_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    only_digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// An HTTP date as time since 1970.
fn date(field: &HeaderValue) -> Option<Duration> {
    let date: HttpDate = visible(field)?.parse().ok()?;
    std::time::SystemTime::from(date).duration_since(UNIX_EPOCH).ok()
}

/// A field's text without the white space around it, if all of it is ASCII.
fn visible(field: &HeaderValue) -> Option<&str> {
    Some(field.to_str().ok()?.trim_matches([' ', '\t']))
}
