//! How each kind of limiter answers what it refuses.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::Quota;
use crate::emulator::{fault::page, http_date};

/// The form of a refusal's `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// There is none.
    None,
    /// Seconds.
    Seconds,
    /// An HTTP date, beside a `Date`.
    Date,
}

/// nginx's page.
pub(super) fn nginx(status: StatusCode) -> Response<Bytes> {
    page(status)
}

pub(super) fn apim(status: StatusCode, seconds: u64) -> Response<Bytes> {
    let status_code = status.as_u16();
    let message = format!("Rate limit is exceeded. Try again in {seconds} seconds.");
    let body = format!(r#"{{ "statusCode": {status_code}, "message": "{message}" }}"#);
    answer(status, Some("application/json"), body)
}

pub(super) fn aspnet(status: StatusCode, Quota { limit, minutes }: Quota) -> Response<Bytes> {
    let body = format!("API calls quota exceeded! maximum admitted {limit} per {minutes}m.");
    answer(status, Some("text/plain"), body)
}

pub(super) fn bare(status: StatusCode) -> Response<Bytes> {
    answer(status, None, String::new())
}

pub(super) fn with_retry_after(
    mut refusal: Response<Bytes>,
    form: RetryAfter,
    seconds: u64,
    now_ms: u64,
) -> Response<Bytes> {
    let headers = refusal.headers_mut();
    let date = |unix: u64| HeaderValue::try_from(http_date(unix)).expect("an HTTP date is visible ASCII");
    match form {
        RetryAfter::None => {}
        RetryAfter::Seconds => drop(headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds))),
        RetryAfter::Date => {
            headers.insert(header::DATE, date(now_ms / 1_000));
            headers.insert(header::RETRY_AFTER, date((now_ms / 1_000).saturating_add(seconds)));
        }
    }
    refusal
}

fn answer(status: StatusCode, content_type: Option<&'static str>, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    response
}
