//! R38, R39: the layer around a channel of tonic's, over HTTP/2 and a socket.

use std::convert::Infallible;
use std::future;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response};
use http_body_util::combinators::WithTrailers;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use storm_auth_reqwest::{Credentials, Environment, StormClient};
use storm_auth_tests::emulator::Emulator;
use tokio::net::TcpListener;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tower_layer::Layer;

/// The headers of each request that a server of gRPC's has had.
type Seen = Arc<Mutex<Vec<HeaderMap>>>;

/// A server that takes every token but the one of its first call, and answers with an empty message.
async fn server(seen: Seen) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("one connection");
        let answer = service_fn(move |request: Request<Incoming>| {
            let mut seen = seen.lock().expect("no panic");
            seen.push(request.headers().clone());
            future::ready(Ok::<_, Infallible>(reply(seen.len() == 1)))
        });
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), answer).await
    });
    url
}

type Trailers = future::Ready<Option<Result<HeaderMap, Infallible>>>;

/// A rejection is headers alone; another answer is a message, here the five bytes of its frame, and a status behind it.
fn reply(rejected: bool) -> Response<WithTrailers<Full<Bytes>, Trailers>> {
    let status =
        |code| HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))]);
    let (headers, body, trailers) = match rejected {
        true => (status("16"), &[][..], None),
        false => (HeaderMap::new(), &[0; 5][..], Some(Ok(status("0")))),
    };
    let mut response = Response::new(Full::from(body).with_trailers(future::ready(trailers)));
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Messages as bytes: what a generated client encodes them by is all the same to a channel.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[tokio::test]
async fn r38_a_channel_of_tonics_carries_the_token_and_drops_one_that_is_rejected() {
    let emulator = Emulator::start();
    let seen = Seen::default();
    let url = server(seen.clone()).await;
    let storm = StormClient::builder()
        .environment(Environment::custom(emulator.token_url(), &url, emulator.scope()))
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret()).expect("they are well-formed"))
        .application_id(emulator.application_id())
        .build()
        .expect("the settings are complete");
    let channel = Endpoint::from_shared(url.clone()).expect("a URL").connect_lazy();
    let mut client = Grpc::new(storm.layer().bound_to(&url).expect("it is the API").layer(channel));

    let mut codes = Vec::new();
    for _ in 0..3 {
        client.ready().await.expect("it is ready");
        let path = PathAndQuery::from_static("/norce.Products/List");
        let answer = client.unary(tonic::Request::new(Bytes::new()), path, Raw).await;
        codes.push(answer.map_or_else(|status| status.code(), |_| Code::Ok));
    }

    assert_eq!(codes, [Code::Unauthenticated, Code::Ok, Code::Ok]);
    emulator.assert_token_requests(2);
    let seen = seen.lock().expect("no panic");
    let bearers: Vec<_> = seen.iter().map(|headers| &headers[header::AUTHORIZATION]).collect();
    assert!(bearers[0] != bearers[1] && bearers[1] == bearers[2]);
    assert!(seen.iter().all(|headers| headers["ApplicationId"] == emulator.application_id().to_string()));
}
