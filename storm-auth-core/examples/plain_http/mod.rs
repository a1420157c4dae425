//! Just enough HTTP/1.1 to talk to a server on loopback: one request per connection, no TLS. A program of yours has an HTTP
//! client already, and TLS with it; it needs nothing of this file.

use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use storm_auth_core::machine::TokenRequest;
use storm_auth_core::wire::response::{MAX_RESPONSE_BODY, ResponseBody};
use storm_auth_core::{Failure, FailureKind};

/// The longest answer of an API that is read.
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

/// The token endpoint's answer, as soon as `bytes` hold all of it or more than is read; `ended` says that no more will come.
pub(crate) fn token_answer(bytes: &[u8], ended: bool) -> Result<Option<Response<ResponseBody>>> {
    let answer = answer(bytes, ended, MAX_RESPONSE_BODY)?;
    Ok(answer.map(|answer| {
        answer.map(|bytes| {
            let mut body = ResponseBody::new();
            let _ = body.push(&bytes); // it remembers that it was too large, and the machine sees it
            body
        })
    }))
}

/// What came of a token request that broke.
pub(crate) fn failure(connected: bool, error: &Error) -> Failure {
    let kind = match error.kind() {
        _ if !connected => FailureKind::Connect,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => FailureKind::Timeout,
        _ => FailureKind::Io,
    };
    Failure::new(kind, error.to_string())
}

/// Connects, and waits no longer for it than a token request may.
pub(crate) fn connect(uri: &Uri) -> Result<TcpStream> {
    let mut last = Error::other("the name has no address");
    for address in peer(uri)?.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TokenRequest::CONNECT_PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends a request, and reads until `answer` has one.
pub(crate) fn talk<T>(
    stream: &mut TcpStream,
    head: &Parts,
    body: &[u8],
    patience: Duration,
    answer: impl Fn(&[u8], bool) -> Result<Option<T>>,
) -> Result<T> {
    // Each read may take so long. The machine itself gives up when the whole exchange does.
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(&self::head(head, body.len()))?;
    stream.write_all(body)?;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 8 * 1024]);
    loop {
        let read = match stream.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        bytes.extend_from_slice(&chunk[..read]);
        if let Some(answer) = answer(&bytes, read == 0)? {
            return Ok(answer);
        }
    }
}

/// One call of an API, on the thread that makes it.
pub(crate) fn call(request: Request<()>) -> Result<Response<Vec<u8>>> {
    let (head, ()) = request.into_parts();
    let mut stream = connect(&head.uri)?;
    talk(&mut stream, &head, &[], Duration::from_secs(30), |bytes, ended| match answer(bytes, ended, LONGEST)? {
        Some(answer) if answer.body().len() > LONGEST => Err(malformed("the answer is longer than 4 MiB")),
        answer => Ok(answer),
    })
}

/// The answer, as soon as `bytes` hold all of it; `ended` says that no more will come. Of a body that is longer than `longest` it has
/// no more than shows that it is.
fn answer(bytes: &[u8], ended: bool, longest: usize) -> Result<Option<Response<Vec<u8>>>> {
    let Some(length) = find(bytes, b"\r\n\r\n") else {
        return match bytes.len() {
            length if length > longest => Err(malformed("the answer has no end of its head")),
            _ if ended => Err(cut_off()),
            _ => Ok(None),
        };
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
        // Chunks of a byte are six as they are sent.
        _ if body.len() > 8 * longest => Some(body.to_vec()),
        (false, _) if body.len() > longest => Some(body.to_vec()),
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
