//! Just enough HTTP/1.1 to talk to a server on loopback: one request per connection, no TLS. A program of yours has an HTTP
//! client already, and TLS with it; it needs nothing of this file.

use std::io::{Error, ErrorKind, Result};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode, Uri, header};

/// The longest answer that is read.
const LONGEST: usize = 4 * 1024 * 1024;

/// Where to connect to, for an URI that this can talk to.
pub(crate) fn peer(uri: &Uri) -> Result<(&str, u16)> {
    if uri.scheme_str() != Some("http") {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this example speaks plain http only; use the emulator or http on loopback",
        ));
    }
    let host = uri.host().unwrap_or_default();
    Ok((host.trim_start_matches('[').trim_end_matches(']'), uri.port_u16().unwrap_or(80)))
}

/// The head of a request, up to and with its empty line. The body goes behind it as it is, so that the secret in it is not copied.
pub(crate) fn head(request: &Parts, body_length: usize) -> Vec<u8> {
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let host = request.uri.authority().map_or("", |authority| authority.as_str());
    let mut head = format!(
        "{} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {body_length}\r\n",
        request.method
    )
    .into_bytes();
    for (name, value) in &request.headers {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

/// The answer, as soon as `bytes` hold all of it; `ended` says that no more will come.
pub(crate) fn answer(bytes: &[u8], ended: bool) -> Result<Option<Response<Vec<u8>>>> {
    if bytes.len() > LONGEST {
        return Err(malformed("the answer is longer than 4 MiB"));
    }
    let Some(length) = find(bytes, b"\r\n\r\n") else {
        return if ended { Err(cut_off()) } else { Ok(None) };
    };
    let (head, body) = (&bytes[..length], &bytes[length + 4..]);
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut response = Response::new(());
    *response.status_mut() = lines.next().and_then(status).ok_or_else(|| malformed("the answer is not HTTP/1"))?;
    for line in lines {
        let field = line.iter().position(|byte| *byte == b':').and_then(|colon| {
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
            Some((HeaderName::from_bytes(&line[..colon]).ok()?, value))
        });
        let (name, value) = field.ok_or_else(|| malformed("the answer has a malformed header"))?;
        response.headers_mut().append(name, value);
    }

    let chunked = (response.headers().get(header::TRANSFER_ENCODING))
        .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    let content_length = match response.headers().get(header::CONTENT_LENGTH).map(HeaderValue::to_str) {
        None => None,
        Some(text) => Some(text.ok().and_then(|text| text.parse().ok()).ok_or_else(|| malformed("no content length"))?),
    };
    let body = match (chunked, content_length) {
        // An answer of many chunks is not decoded again and again while it comes.
        (true, _) if !ended && !body.ends_with(b"\r\n0\r\n\r\n") => None,
        (true, _) => unchunked(body)?,
        (false, Some(length)) => body.get(..length).map(<[u8]>::to_vec),
        (false, None) => ended.then(|| body.to_vec()),
    };
    match body {
        Some(body) => Ok(Some(response.map(|_| body))),
        None if ended => Err(cut_off()),
        None => Ok(None),
    }
}

/// `HTTP/1.1 200 OK`
fn status(line: &[u8]) -> Option<StatusCode> {
    let mut words = line.split(|byte| *byte == b' ');
    words.next().filter(|version| version.starts_with(b"HTTP/1."))?;
    StatusCode::from_bytes(words.next()?).ok()
}

/// Chunks put together: each is its length in hexadecimal, a line's end, that many bytes, a line's end. An empty one is the last.
fn unchunked(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = find(rest, b"\r\n") else { return Ok(None) };
        let length = str::from_utf8(&rest[..end]).ok().and_then(|line| line.split(';').next());
        let length = length.and_then(|digits| usize::from_str_radix(digits.trim(), 16).ok());
        let length = length.ok_or_else(|| malformed("the answer has a malformed chunk"))?;
        rest = &rest[end + 2..];
        if length == 0 {
            return Ok(Some(body));
        }
        let Some((chunk, behind)) = rest.split_at_checked(length) else { return Ok(None) };
        body.extend_from_slice(chunk);
        rest = behind.get(2..).unwrap_or_default();
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

fn cut_off() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "the connection ended before the answer did")
}
