use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

/// How many `fail_next` calls may be outstanding for one endpoint; further ones are dropped.
const QUEUED: usize = 1_024;

/// One of the emulator's two endpoints, each on a socket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The token endpoint.
    Token,
    /// The API.
    Api,
}

/// Where in the response [`Fault::Stall`] and [`Fault::Reset`] strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Before the first byte of the response. The request is not processed: no token is issued.
    Headers,
    /// After the headers and half of the body. The request was processed.
    Body,
}

/// What goes wrong with a request.
///
/// At the token endpoint the limiter stands before the fault, as a proxy stands before a sick server: a request that
/// it refuses meets no fault, and one that fails has spent its slot. Only an [`Outage`](Self::Outage) is the proxy's
/// own. Times are on the emulator's [`Clock`](super::Clock).
///
/// ```
/// use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};
///
/// let emulator = Emulator::start();
/// emulator.fail(Endpoint::Token, Fault::json(200, r#"{"access_token":"","expires_in":600}"#));
/// emulator.fail_next(Endpoint::Api, 1, Fault::unauthorized("Bearer error=\"invalid_token\""));
/// emulator.heal(Endpoint::Token);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// This response in place of the true one. The constructors of this type make the usual ones.
    Answer(Box<Response<Bytes>>),
    /// The true response, made at once and sent this much later: a token that is old when it arrives.
    Delay(Duration),
    /// Another fault, this much later. The request is processed after the wait.
    After(Duration, Box<Fault>),
    /// Silence on a connection that stays open.
    Stall(At),
    /// The true response, whose body comes a byte at a time with this much between them.
    Drip(Duration),
    /// The connection is reset (a TCP RST).
    Reset(At),
    /// A token response whose body never ends.
    Oversize,
    /// The true response, called gzip by its `Content-Encoding`.
    Encoded,
    /// The true token response with these bytes for the value of `expires_in`. The API ignores it.
    ExpiresIn(String),
    /// Nothing is there: connections are reset as soon as they are accepted, and those that stand at their next request.
    Outage,
}

impl Fault {
    /// This status with these headers and this body.
    ///
    /// # Panics
    /// When the status, a header's name or a header's value is not one of HTTP's.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let mut response = Response::new(body.into());
        *response.status_mut() = StatusCode::from_u16(status).expect("a status is between 100 and 999");
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).expect("a header name is a token");
            let value = HeaderValue::try_from(*value).expect("a header value holds no control characters");
            response.headers_mut().append(name, value);
        }
        Self::Answer(Box::new(response))
    }

    /// This status with no body.
    ///
    /// # Panics
    /// As [`answer`](Self::answer).
    pub fn status(status: u16) -> Self {
        Self::answer(status, &[], Bytes::new())
    }

    /// This status with this body, called JSON whether it is or not.
    ///
    /// # Panics
    /// As [`answer`](Self::answer).
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::answer(
            status,
            &[("content-type", "application/json; charset=UTF-8"), ("cache-control", "no-store")],
            body,
        )
    }

    /// This status with a proxy's HTML page.
    ///
    /// # Panics
    /// As [`answer`](Self::answer).
    pub fn html(status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("a status is between 100 and 999");
        Self::Answer(Box::new(page(status)))
    }

    /// A redirect with this status to `location`.
    ///
    /// # Panics
    /// As [`answer`](Self::answer).
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::answer(status, &[("location", location)], Bytes::new())
    }

    /// A 401 with this `WWW-Authenticate`.
    ///
    /// # Panics
    /// As [`answer`](Self::answer).
    pub fn unauthorized(challenge: &str) -> Self {
        Self::answer(401, &[("www-authenticate", challenge)], Bytes::new())
    }

    /// This fault, `by` later.
    pub fn after(self, by: Duration) -> Self {
        Self::After(by, Box::new(self))
    }
}

impl From<Response<Bytes>> for Fault {
    fn from(response: Response<Bytes>) -> Self {
        Self::Answer(Box::new(response))
    }
}

/// The page that nginx 1.22.1 sends for an error of its own: 169 bytes for 429.
pub(super) fn page(status: StatusCode) -> Response<Bytes> {
    let reason = match status {
        StatusCode::SERVICE_UNAVAILABLE => "Service Temporarily Unavailable",
        status => status.canonical_reason().unwrap_or("Unknown"),
    };
    let title = format!("{} {reason}", status.as_str());
    let body = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n"
    );
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

/// What is set to go wrong at one endpoint: counted faults first, then the standing one.
#[derive(Debug, Default)]
pub(super) struct Faults {
    next: VecDeque<(u64, Fault)>,
    standing: Option<Fault>,
}

impl Faults {
    pub(super) fn stand(&mut self, fault: Fault) {
        self.standing = Some(fault);
    }

    pub(super) fn queue(&mut self, requests: u64, fault: Fault) {
        if requests > 0 && self.next.len() < QUEUED {
            self.next.push_back((requests, fault));
        }
    }

    pub(super) fn heal(&mut self) {
        *self = Self::default();
    }

    pub(super) fn take(&mut self) -> Option<Fault> {
        let Some((left, fault)) = self.next.front_mut() else { return self.standing.clone() };
        *left -= 1;
        if *left > 0 {
            return Some(fault.clone());
        }
        self.next.pop_front().map(|(_, fault)| fault)
    }

    /// Takes the fault that is due if it strikes a connection before its first request.
    pub(super) fn take_outage(&mut self) -> bool {
        let due = self.next.front().map(|(_, fault)| fault).or(self.standing.as_ref());
        matches!(due, Some(Fault::Outage)) && self.take().is_some()
    }
}

/// Marks the header values that carry credentials, so that `Debug` does not show them.
pub(super) fn mark_sensitive(headers: &mut HeaderMap) {
    for name in [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE] {
        if let header::Entry::Occupied(mut entry) = headers.entry(name) {
            entry.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
}
