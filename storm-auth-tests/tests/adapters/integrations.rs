//! The same authorisation in other people's stacks: a chain of `reqwest-middleware`, a service of tower's kind, an agent of ureq's.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    error::Error as StdError,
    future::{Ready, ready},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use storm_auth_core::Event;
use storm_auth_reqwest::tower::{Cloned, Repeat, StormLayer};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    face::{Events, OverReqwest, OverUreq, Setup, block_on},
    peers::{Elsewhere, Peer, answer, hear},
};

type BoxError = Box<dyn StdError + Send + Sync>;
type Sending = dyn Fn(Request<Vec<u8>>) -> Result<StatusCode, BoxError>;

/// One way to send a request.
struct Way {
    name: &'static str,
    /// Whether it sends a request again whose token was rejected.
    replays: bool,
    send: Box<Sending>,
}

impl Way {
    fn get(&self, url: &str) -> Result<StatusCode, BoxError> {
        (self.send)(Request::get(url).body(Vec::new()).unwrap())
    }
}

/// All ways to the emulator, each with tokens of its own. A reconnect is none of theirs, so each connects anew.
fn ways(emulator: &Emulator, events: &Events) -> Vec<Way> {
    let over_reqwest = || Setup::<OverReqwest>::at(emulator).events(events).client();
    let chain = || {
        let below = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        reqwest_middleware::ClientBuilder::new(below).with(over_reqwest().middleware()).build()
    };
    let (buffered, streamed) = (chain(), chain());
    let agent = |status_as_error| {
        let storm = Setup::<OverUreq>::at(emulator).events(events).client();
        let config = ureq::Agent::config_builder().max_idle_connections(0).http_status_as_error(status_as_error);
        config.middleware(storm.middleware()).build().new_agent()
    };
    let (quiet, strict) = (agent(false), agent(true));
    vec![
        Way {
            name: "reqwest-middleware",
            replays: true,
            send: Box::new(move |request| {
                let request = reqwest::Request::try_from(request)?;
                Ok(block_on(buffered.execute(request)).map(|answer| answer.status())?)
            }),
        },
        Way {
            name: "reqwest-middleware, a body that can be read once",
            replays: false,
            send: Box::new(move |request| {
                let request = request.map(|body| reqwest::Body::wrap(Full::new(Bytes::from(body))));
                Ok(block_on(streamed.execute(request.try_into()?)).map(|answer| answer.status())?)
            }),
        },
        Way { name: "tower", replays: false, send: serve(over_reqwest().layer()) },
        Way { name: "tower, replaying", replays: true, send: serve(over_reqwest().layer().replaying()) },
        Way {
            name: "ureq",
            replays: false,
            send: Box::new(move |request| Ok(quiet.run(request).map(|answer| answer.status())?)),
        },
        Way {
            name: "ureq, which makes an error of a status",
            replays: false,
            send: Box::new(move |request| match strict.run(request) {
                Err(ureq::Error::StatusCode(status)) => Ok(StatusCode::from_u16(status)?),
                result => Ok(result?.status()),
            }),
        },
    ]
}

/// A service over hyper behind a layer of ours.
fn serve<R>(layer: StormLayer<R>) -> Box<Sending>
where
    R: Repeat<Full<Bytes>> + Clone + Send + Sync + 'static,
{
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http::<Full<Bytes>>();
    let service = layer.layer(client);
    Box::new(move |request| {
        let mut service = service.clone();
        block_on(async move {
            std::future::poll_fn(|context| Service::<Request<Full<Bytes>>>::poll_ready(&mut service, context)).await?;
            Ok(service.call(request.map(|body| Full::new(Bytes::from(body)))).await?.status())
        })
    })
}

fn each(test: impl Fn(&Emulator, &Events, Way)) {
    for number in 0..6 {
        let (emulator, events) = (Emulator::start(), Events::default());
        let way = ways(&emulator, &events).swap_remove(number);
        test(&emulator, &events, way);
    }
}

#[test]
fn r6_r45_requests_to_the_api_carry_the_token_and_the_application_id_and_others_do_not() {
    each(|emulator, _, way| {
        let elsewhere = Arc::new(Mutex::new(Vec::new()));
        let peer = Peer::start({
            let elsewhere = elsewhere.clone();
            move |mut stream| {
                elsewhere.lock().unwrap().push(String::from_utf8(hear(&mut stream)).unwrap().to_lowercase());
                answer(&mut stream, "200 OK", "connection: close\r\n", "{}");
            }
        });
        for url in [emulator.api_url(), format!("{}/p?q=1", emulator.api_url()), peer.url().to_owned()] {
            assert_eq!(way.get(&url).unwrap(), StatusCode::OK, "{}: {url}", way.name);
        }
        let own = Request::get(format!("{}/own", emulator.api_url())).header("ApplicationId", "7");
        (way.send)(own.body(Vec::new()).unwrap()).unwrap();

        let seen = emulator.recorded(Endpoint::Api);
        let ids: Vec<_> = seen.iter().map(|sent| sent.headers["ApplicationId"].to_str().unwrap()).collect();
        assert_eq!(ids, ["1042", "1042", "7"], "{}", way.name);
        let bearers: BTreeSet<_> = seen.iter().map(|sent| sent.headers[header::AUTHORIZATION].as_bytes()).collect();
        assert_eq!((bearers.len(), emulator.token_requests()), (1, 1), "{}", way.name);
        let heard = elsewhere.lock().unwrap();
        assert_eq!(heard.len(), 1, "{}", way.name);
        assert!(
            !heard[0].contains("authorization:") && !heard[0].contains("applicationid:"),
            "{}: {heard:?}",
            way.name
        );
    });
}

#[test]
fn r38_r39_a_rejected_token_is_replaced_and_the_request_sent_again_where_its_body_can_be() {
    each(|emulator, events, way| {
        way.get(&emulator.api_url()).unwrap();
        emulator.revoke_all();
        let body: Vec<u8> = (0..=255).cycle().take(40_000).collect();
        let post = || Request::post(format!("{}/p?a=1", emulator.api_url())).header("x-trace", "abc");
        let status = (way.send)(post().body(body.clone()).unwrap()).unwrap();
        let expected = if way.replays { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        assert_eq!(status, expected, "{}", way.name);
        let abandoned = |event: &Event| matches!(event, Event::ReplayAbandoned { error: None, .. });
        assert_eq!(events.any(abandoned), !way.replays, "{}: {:?}", way.name, events.seen());
        // The next call has another token, whoever could not be sent again.
        assert_eq!((way.send)(post().body(body.clone()).unwrap()).unwrap(), StatusCode::OK, "{}", way.name);
        assert_eq!((emulator.token_requests(), emulator.api_requests()), (2, if way.replays { 4 } else { 3 }));

        let seen = emulator.recorded(Endpoint::Api);
        assert_ne!(seen[1].headers[header::AUTHORIZATION], seen[2].headers[header::AUTHORIZATION], "{}", way.name);
        for sent in &seen[1..] {
            assert_eq!(sent.uri.to_string(), "/p?a=1");
            assert_eq!(sent.headers["x-trace"], "abc");
            assert!(sent.body == body, "{}: the body is not the same byte for byte", way.name);
        }
    });
}

#[test]
fn r39_nothing_is_sent_a_third_time() {
    each(|emulator, _, way| {
        emulator.fail(Endpoint::Api, Fault::unauthorized(r#"Bearer error="invalid_token""#));
        assert_eq!(way.get(&emulator.api_url()).unwrap(), StatusCode::UNAUTHORIZED, "{}", way.name);
        assert_eq!(emulator.api_requests(), if way.replays { 2 } else { 1 }, "{}", way.name);
    });
}

#[test]
fn r39_without_another_token_the_caller_gets_the_401_and_then_the_reason() {
    each(|emulator, events, way| {
        way.get(&emulator.api_url()).unwrap();
        emulator.revoke_all();
        emulator.fail(Endpoint::Token, Fault::json(400, r#"{"error":"unauthorized_client"}"#));
        assert_eq!(way.get(&emulator.api_url()).unwrap(), StatusCode::UNAUTHORIZED, "{}", way.name);
        assert!(events.any(|event| matches!(event, Event::ReplayAbandoned { .. })), "{}", way.name);
        let error = way.get(&emulator.api_url()).unwrap_err();
        assert!(is_configuration(&*error), "{}: {error:?}", way.name);
        assert!(error.to_string().contains("unauthorized_client"), "{}: {error}", way.name);
        assert_eq!(emulator.api_requests(), 2, "{}", way.name);
    });
}

/// Whether an error is one of the adapters', or has one in it, about the configuration.
fn is_configuration(error: &(dyn StdError + 'static)) -> bool {
    if let Some(reqwest_middleware::Error::Middleware(inner)) = error.downcast_ref() {
        return inner.downcast_ref().is_some_and(storm_auth_reqwest::Error::is_configuration);
    }
    if let Some(ureq::Error::Other(inner)) = error.downcast_ref() {
        return inner.downcast_ref().is_some_and(storm_auth_blocking::Error::is_configuration);
    }
    error.downcast_ref().is_some_and(storm_auth_reqwest::Error::is_configuration)
}

#[test]
fn r41_an_answer_that_blames_the_call_costs_no_token() {
    each(|emulator, _, way| {
        let mut faults = vec![Fault::status(403), Fault::status(500)];
        // What ureq makes an error of has lost its challenge.
        if !way.name.starts_with("ureq, which") {
            faults.push(Fault::unauthorized(r#"Bearer error="insufficient_scope""#));
            faults.push(Fault::unauthorized(r#"Bearer realm="x", error="invalid_request""#));
        }
        let sent = faults.len() as u64;
        for fault in faults {
            emulator.fail_next(Endpoint::Api, 1, fault);
            assert_ne!(way.get(&emulator.api_url()).unwrap(), StatusCode::OK, "{}", way.name);
        }
        assert_eq!((emulator.token_requests(), emulator.api_requests()), (1, sent), "{}", way.name);
    });
}

#[test]
fn r45_a_redirect_elsewhere_is_not_followed_with_the_bearer() {
    each(|emulator, _, way| {
        let heard = Arc::new(Mutex::new(String::new()));
        let peer = Peer::start({
            let heard = heard.clone();
            move |mut stream| {
                *heard.lock().unwrap() = String::from_utf8(hear(&mut stream)).unwrap().to_lowercase();
                answer(&mut stream, "401 Unauthorized", "connection: close\r\n", "");
            }
        });
        // Another host by its name.
        let location = peer.url().replace("127.0.0.1", "localhost");
        emulator.fail_next(Endpoint::Api, 1, Fault::redirect(302, &location));
        let status = way.get(&emulator.api_url()).unwrap();
        assert!([StatusCode::FOUND, StatusCode::UNAUTHORIZED].contains(&status), "{}: {status}", way.name);
        assert!(!heard.lock().unwrap().contains("authorization:"), "{}", way.name);
        // And what the other host says of a token that it was not shown is nothing; but for ureq's error, which does not tell whose it is.
        if !way.name.starts_with("ureq, which") {
            assert_eq!(way.get(&emulator.api_url()).unwrap(), StatusCode::OK, "{}", way.name);
            assert_eq!(emulator.token_requests(), 1, "{}", way.name);
        }
    });
}

/// A service that is called without a socket: it counts what it is asked, and answers by a script of gRPC statuses.
#[derive(Clone)]
struct Channel(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    statuses: Vec<&'static str>,
    bearers: Vec<Vec<u8>>,
    /// Calls that were not preceded by readiness.
    rash: usize,
    ready: bool,
}

impl Channel {
    /// It answers these in turn, and then 0.
    fn saying(statuses: &[&'static str]) -> Self {
        Self(Arc::new(Mutex::new(Seen { statuses: statuses.iter().rev().copied().collect(), ..Seen::default() })))
    }
}

impl Service<Request<String>> for Channel {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.lock().unwrap().ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let mut seen = self.0.lock().unwrap();
        seen.rash += usize::from(!std::mem::take(&mut seen.ready));
        seen.bearers
            .push(request.headers().get(header::AUTHORIZATION).map_or(Vec::new(), |value| value.as_bytes().into()));
        let status = seen.statuses.pop().unwrap_or("0");
        ready(Ok(Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", status)
            .body(())
            .unwrap()))
    }
}

async fn ask<R>(service: &mut storm_auth_reqwest::tower::StormService<Channel, R>) -> Result<String, BoxError>
where
    R: Repeat<String> + Clone + Send + Sync + 'static,
{
    std::future::poll_fn(|context| service.poll_ready(context)).await?;
    let call = Request::post("/norce.Products/List").body("message".to_owned()).unwrap();
    Ok(service.call(call).await?.headers()["grpc-status"].to_str().unwrap().to_owned())
}

fn layer(emulator: &Emulator) -> StormLayer {
    let layer = Setup::<OverReqwest>::at(emulator).client().layer();
    layer.bound_to(&emulator.api_url()).unwrap()
}

#[test]
fn r38_r39_a_grpc_status_of_16_rejects_the_token() {
    let emulator = Emulator::start();
    let channel = Channel::saying(&["0", "16", "0", "16", "0"]);
    let mut once = layer(&emulator).layer(channel.clone());
    for expected in ["0", "16", "0"] {
        assert_eq!(block_on(ask(&mut once)).unwrap(), expected);
    }
    let mut replaying = Layer::<Channel>::layer(&layer(&emulator).replaying(), channel.clone());
    assert_eq!(block_on(ask::<Cloned>(&mut replaying)).unwrap(), "0");
    let seen = channel.0.lock().unwrap();
    assert_eq!((seen.bearers.len(), seen.rash), (5, 0));
    let tokens: BTreeSet<_> = seen.bearers.iter().collect();
    assert_eq!((tokens.len(), emulator.token_requests()), (4, 4));
    assert_eq!(seen.bearers[0], seen.bearers[1]);
}

#[test]
fn r41_another_grpc_status_costs_no_token() {
    let emulator = Emulator::start();
    let mut service = layer(&emulator).layer(Channel::saying(&["7", "13", "14"]));
    for expected in ["7", "13", "14", "0"] {
        assert_eq!(block_on(ask(&mut service)).unwrap(), expected);
    }
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn r45_a_service_is_bound_to_a_configured_origin_or_its_requests_have_to_name_one() {
    let emulator = Emulator::start();
    let free = Setup::<OverReqwest>::at(&emulator).client().layer();
    let error = free.clone().bound_to(&Elsewhere::start().url()).unwrap_err();
    assert!(error.is_configuration(), "{error}");
    let channel = Channel::saying(&[]);
    let error = block_on(ask(&mut free.layer(channel.clone()))).unwrap_err();
    assert!(is_configuration(&*error) && error.to_string().contains("origin"), "{error}");
    assert_eq!((channel.0.lock().unwrap().bearers.len(), emulator.token_requests()), (0, 0));
}
