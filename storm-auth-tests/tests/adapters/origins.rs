//! Where the bearer goes: to the configured origins, and nowhere else.

use std::fmt::Debug;

use http::{StatusCode, header};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};

use crate::{
    face::{Adapter, OverReqwest, OverUreq, Setup, block_on, get, request},
    peers::{Elsewhere, refusing},
};

both!(
    r45_a_call_elsewhere_is_refused_before_it_is_sent,
    r45_a_further_origin_can_be_configured,
    r45_a_redirect_of_the_api_is_an_answer,
    r45_a_path_stays_below_its_base,
);

fn r45_a_call_elsewhere_is_refused_before_it_is_sent<A: Adapter>() {
    let (emulator, elsewhere) = (Emulator::start(), Elsewhere::start());
    let api = emulator.api_url();
    let (host, other_host) = (api.trim_start_matches("http://").to_owned(), elsewhere.url().replace("http://", ""));
    let targets = [
        elsewhere.url(),
        format!("{}/p", elsewhere.url()),
        elsewhere.url().replace("http", "HTTP"),
        // Another scheme, another port, another name of the same machine.
        api.replace("http:", "https:"),
        "http://127.0.0.1/".to_owned(),
        api.replace("127.0.0.1", "localhost"),
        // What looks like the API and is not.
        format!("http://{host}@{other_host}/"),
        format!("http://user:{host}@{other_host}/"),
        format!("http://{other_host}#@{host}/"),
        format!("http://{other_host}\\@{host}/"),
        format!("http://{other_host}?@{host}/"),
        format!("ftp://{host}/"),
        format!("ws://{host}/"),
        format!("{api}0/"),
        format!("{api}.evil.example/"),
        format!("//{other_host}://"),
    ];
    for setup in [Setup::<A>::at(&emulator), Setup::at(&emulator).own_api_client()] {
        let storm = setup.client();
        for target in &targets {
            match A::call(&storm, get(target)) {
                Err(error) => assert!(error.is_configuration && !error.is_api, "{target}: {error:?}"),
                // Read as a path of the API, which is as good.
                Ok(_) => assert!(target.starts_with("//"), "{target}"),
            }
        }
    }
    elsewhere.assert_untouched();
    for sent in emulator.recorded(Endpoint::Api) {
        assert_eq!(sent.headers[header::HOST], host.as_str());
    }
}

fn r45_a_further_origin_can_be_configured<A: Adapter>() {
    let (emulator, other) = (Emulator::start(), Emulator::start());
    let storm = Setup::<A>::at(&emulator).set(|settings| settings.api_url(other.api_url())).client();
    // It is another issuer's, so it says 401; that it was asked is what counts.
    let answer = A::call(&storm, get(&format!("{}/p", other.api_url()))).unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(other.recorded(Endpoint::Api)[0].headers.contains_key(header::AUTHORIZATION));
    // A path goes to the first one.
    A::call(&storm, get("/q")).unwrap_err();
    assert_eq!((emulator.api_requests(), other.api_requests()), (0, 2));
}

/// `with` can put another request in a call's place, which is each HTTP crate's own.
fn assert_that_no_call_is_moved_elsewhere<E: Debug>(
    emulator: &Emulator,
    is_configuration: fn(&E) -> bool,
    move_to: impl Fn(String) -> Result<StatusCode, E>,
) {
    let error = move_to(refusing()).unwrap_err();
    assert!(is_configuration(&error), "{error:?}");
    assert_eq!((emulator.api_requests(), emulator.token_requests()), (0, 0));
    assert_eq!(move_to(format!("{}/q", emulator.api_url())).unwrap(), StatusCode::OK);
    assert_eq!(emulator.recorded(Endpoint::Api)[0].uri, "/q");
}

#[test]
fn r45_a_call_that_was_moved_elsewhere_is_refused_over_reqwest() {
    let emulator = Emulator::start();
    let storm = Setup::<OverReqwest>::at(&emulator).client();
    let client = reqwest::Client::new();
    assert_that_no_call_is_moved_elsewhere(&emulator, storm_auth_reqwest::Error::is_configuration, |url| {
        let moved = storm.get("/p").with(|_| client.get(url)).header("x-trace", "abc");
        block_on(moved.send()).map(|answer| answer.status())
    });
}

#[test]
fn r45_a_call_that_was_moved_elsewhere_is_refused_over_ureq() {
    let emulator = Emulator::start();
    let storm = Setup::<OverUreq>::at(&emulator).client();
    let agent = ureq::Agent::new_with_defaults();
    assert_that_no_call_is_moved_elsewhere(&emulator, storm_auth_blocking::Error::is_configuration, |url| {
        let other = http::Request::get(url).body(()).unwrap();
        let moved = storm.get("/p").with(|_| agent.configure_request(other)).header("x-trace", "abc");
        moved.call().map(|answer| answer.status())
    });
}

fn r45_a_redirect_of_the_api_is_an_answer<A: Adapter>() {
    let (emulator, elsewhere) = (Emulator::start(), Elsewhere::start());
    let storm = Setup::<A>::at(&emulator).client();
    for status in [301, 302, 303, 307, 308] {
        for method in [http::Method::GET, http::Method::POST] {
            emulator.fail_next(Endpoint::Api, 1, Fault::redirect(status, &elsewhere.url()));
            let answer = A::call(&storm, request(method, "/")).unwrap();
            assert_eq!(answer.status.as_u16(), status);
            assert_eq!(answer.headers[header::LOCATION], elsewhere.url().as_str());
        }
    }
    elsewhere.assert_untouched();
    assert_eq!((emulator.api_requests(), emulator.token_requests()), (10, 1));
}

fn r45_a_path_stays_below_its_base<A: Adapter>() {
    let (emulator, elsewhere) = (Emulator::start(), Elsewhere::start());
    let storm = Setup::<A>::at(&emulator).client();
    let other = elsewhere.url().replace("http://", "");
    for path in [
        format!("//{other}/"),
        format!("@{other}/"),
        format!(":80@{other}/"),
        format!("/\\{other}/"),
        format!("\\\\{other}\\"),
        format!(".{other}/"),
        format!("/../../{other}"),
        format!("?u={other}"),
        format!("/p?next=http://{other}/"),
        String::new(),
    ] {
        // Sent to the API, or not at all.
        let _ = A::call(&storm, get(&path));
    }
    elsewhere.assert_untouched();
    let host = emulator.api_url().replace("http://", "");
    assert!(emulator.recorded(Endpoint::Api).iter().all(|sent| sent.headers[header::HOST] == host.as_str()));
    assert!(emulator.api_requests() >= 5);
}
