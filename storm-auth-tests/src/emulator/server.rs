//! The sockets: accepting, reading, and the order in which limiter, fault and endpoint get at a request.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
};

use super::{
    Arrival, At, Endpoint, Fault, Recorded, Shared, Verdict, api,
    body::Body,
    fault::{mark_sensitive, page},
    jwt::Key,
    token,
};

/// Connections that one endpoint serves at a time; further ones wait in the listener's queue.
const CONNECTIONS: usize = 4_096;
/// What is kept of a request's body. A token request may not be longer.
const BODY: usize = 64 * 1_024;

/// Serves both endpoints until `stop` is told or dropped.
pub(super) async fn serve(shared: Arc<Shared>, token: TcpListener, api: TcpListener, stop: oneshot::Receiver<()>) {
    if Key::ready(shared.key_size).is_none() {
        let size = shared.key_size;
        tokio::task::spawn_blocking(move || Key::make(size));
    }
    tokio::select! {
        () = accept(token, Endpoint::Token, &shared) => {}
        () = accept(api, Endpoint::Api, &shared) => {}
        _ = stop => {}
    }
}

async fn accept(listener: TcpListener, endpoint: Endpoint, shared: &Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(stream, peer, endpoint, Arc::clone(shared), permit));
            }
            // The process is out of file descriptors, most likely: some will be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    endpoint: Endpoint,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
) {
    let _open = shared.opened(endpoint);
    if shared.side(endpoint, |side| side.faults.take_outage()) {
        return reset(&stream);
    }
    // Without it, only latency is lost.
    let _ = stream.set_nodelay(true);
    let abort = Arc::new(Notify::new());
    let service = service_fn(|request| -> Pin<Box<dyn Future<Output = _> + Send>> {
        let (shared, abort) = (Arc::clone(&shared), Arc::clone(&abort));
        Box::pin(async move { Ok::<_, Infallible>(respond(request, peer.ip(), endpoint, &shared, &abort).await) })
    });
    let mut http = http1::Builder::new().max_buf_size(BODY).serve_connection(TokioIo::new(stream), service);
    let aborted = tokio::select! {
        biased;
        _ = &mut http => false,
        () = abort.notified() => true,
    };
    if aborted {
        reset(http.into_parts().io.inner());
    }
}

/// Makes the close that follows a reset: what is unsent is thrown away, and the peer gets a RST.
fn reset(stream: &TcpStream) {
    // If the socket is gone already there is nothing to reset.
    let _ = stream.set_zero_linger();
}

async fn respond(
    request: Request<Incoming>,
    peer: IpAddr,
    endpoint: Endpoint,
    shared: &Shared,
    abort: &Arc<Notify>,
) -> Response<Body> {
    let at_ms = shared.clock.now_ms();
    let (request, body) = request.into_parts();
    // Counted when the head is there, decided before the body is: as nginx does it.
    let Arrival { in_flight: _in_flight, verdict, refusal, mut fault } = shared.arrived(endpoint, peer, at_ms);
    let Some((body, length)) = read(body).await else {
        // The client is gone; nobody will see this.
        return finish(page(StatusCode::BAD_REQUEST), shared);
    };
    record(&request, &body, length, endpoint, verdict, at_ms, shared);
    // Waits add up from the request's arrival, so that with a manual clock only the clock decides when they end.
    let mut due_ms = at_ms;
    if let Some(refusal) = refusal {
        return finish(refusal, shared);
    }
    if let Verdict::Hold(time) = verdict {
        shared.clock.wait(&mut due_ms, time).await;
    }
    while let Some(Fault::After(time, then)) = fault {
        shared.clock.wait(&mut due_ms, time).await;
        fault = Some(*then);
    }
    let call = Call { request: &request, body: &body, length, endpoint, shared };
    match fault {
        None => finish(call.process("").await, shared),
        Some(Fault::Answer(response)) => finish(*response, shared),
        Some(Fault::Delay(time)) => {
            let response = call.process("").await;
            shared.clock.wait(&mut due_ms, time).await;
            finish(response, shared)
        }
        Some(Fault::Drip(every)) => {
            let response = dated(call.process("").await, shared);
            response.map(|bytes| Body::drip(bytes, every, shared.clock.clone()))
        }
        Some(Fault::Stall(At::Body)) => dated(call.process("").await, shared).map(|bytes| Body::half(bytes, None)),
        Some(Fault::Reset(At::Body)) => {
            dated(call.process("").await, shared).map(|bytes| Body::half(bytes, Some(Arc::clone(abort))))
        }
        Some(Fault::Encoded) => {
            let mut response = call.process("").await;
            response.headers_mut().insert(header::CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
            finish(response, shared)
        }
        Some(Fault::ExpiresIn(raw)) => finish(call.process(&raw).await, shared),
        Some(Fault::Oversize) => {
            let response = token::granted("", "1", &token::Grant { client_id: String::new(), scopes: Vec::new() });
            dated(response, shared)
                .map(|_| Body::endless(br#"{"expires_in":600,"token_type":"Bearer","access_token":""#))
        }
        Some(Fault::Stall(At::Headers)) => std::future::pending().await,
        Some(Fault::Reset(At::Headers) | Fault::Outage) => {
            abort.notify_one();
            std::future::pending().await
        }
        Some(Fault::After(..)) => unreachable!("the loop above took it apart"),
    }
}

/// A request that nothing keeps from its endpoint.
struct Call<'a> {
    request: &'a request::Parts,
    body: &'a [u8],
    length: u64,
    endpoint: Endpoint,
    shared: &'a Shared,
}

impl Call<'_> {
    /// The endpoint's true answer, but for `expires_in` where it is not empty.
    async fn process(&self, expires_in: &str) -> Response<Bytes> {
        match self.endpoint {
            Endpoint::Token => self.token(expires_in).await,
            Endpoint::Api => self.api(),
        }
    }

    async fn token(&self, expires_in: &str) -> Response<Bytes> {
        let request = self.request;
        if request.uri.path() != super::TOKEN_PATH {
            return page(StatusCode::NOT_FOUND);
        }
        if self.length > BODY as u64 {
            return page(StatusCode::PAYLOAD_TOO_LARGE);
        }
        match self.shared.decide(&request.method, &request.headers, self.body) {
            Err(error) => token::refused(error),
            Ok(grant) => {
                let key = self.key().await;
                let (token, lifetime) = self.shared.issue(key, &grant);
                let lifetime = lifetime.as_secs().to_string();
                token::granted(&token, if expires_in.is_empty() { &lifetime } else { expires_in }, &grant)
            }
        }
    }

    async fn key(&self) -> &'static Key {
        let size = self.shared.key_size;
        match Key::ready(size) {
            Some(key) => key,
            None => tokio::task::spawn_blocking(move || Key::make(size))
                .await
                .expect("making a key neither panics nor is cancelled"),
        }
    }

    fn api(&self) -> Response<Bytes> {
        match self.shared.authenticate(&self.request.headers) {
            Ok(count) => api::echo(self.request, self.length, count),
            Err(challenge) => api::unauthorized(&challenge),
        }
    }
}

/// The first part of a body and the length of all of it; `None` when the client broke off.
async fn read(mut body: Incoming) -> Option<(Bytes, u64)> {
    let (mut kept, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            length += data.len() as u64;
            kept.extend_from_slice(&data[..data.len().min(BODY - kept.len())]);
        }
    }
    Some((Bytes::from(kept), length))
}

fn record(
    request: &request::Parts,
    body: &Bytes,
    length: u64,
    endpoint: Endpoint,
    verdict: Verdict,
    at_ms: u64,
    shared: &Shared,
) {
    let mut headers = request.headers.clone();
    mark_sensitive(&mut headers);
    let method = request.method.clone();
    let uri = request.uri.clone();
    shared.record(endpoint, Recorded { method, uri, headers, body: body.clone(), body_length: length, at_ms, verdict });
}

fn finish(response: Response<Bytes>, shared: &Shared) -> Response<Body> {
    dated(response, shared).map(|bytes| Body::whole(bytes, shared.chunked))
}

/// Adds what a server adds to every response; its date is the emulator's.
fn dated(mut response: Response<Bytes>, shared: &Shared) -> Response<Bytes> {
    let headers = response.headers_mut();
    if let Ok(date) = http::HeaderValue::try_from(super::http_date(shared.clock.now_ms() / 1_000)) {
        headers.entry(header::DATE).or_insert(date);
    }
    headers.entry(header::SERVER).or_insert(http::HeaderValue::from_static("nginx/1.22.1"));
    response
}
