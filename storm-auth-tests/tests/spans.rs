//! What `tracing` is told, by names and fields that are documented: the span of a token request, and events.
//!
//! It is a process of its own, in which every thread has a subscriber: `tracing` remembers of each place in the code whether anybody
//! listens, and may miss one that comes while another thread, which has none, is the first to get there.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/face.rs"]
mod face;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use storm_auth_core::{Event, Scope, Unix};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};
use tracing::{
    Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use face::{Adapter, Events, OverReqwest, OverUreq, PATIENCE, Setup, block_on, settings, until};

#[test]
fn each_token_request_has_a_span_over_reqwest() {
    each_token_request_has_a_span_with_what_came_of_it::<OverReqwest>();
}

#[test]
fn each_token_request_has_a_span_over_ureq() {
    each_token_request_has_a_span_with_what_came_of_it::<OverUreq>();
}

#[test]
fn a_token_request_on_a_runtime_of_the_callers_has_a_span_over_reqwest() {
    let emulator = Emulator::start();
    let (ears, ()) = Ears::hear(|| {
        let runtime = block_on(async { tokio::runtime::Handle::current() });
        let builder = storm_auth_reqwest::Builder::from(settings(&emulator)).group("acme").flights_on(runtime);
        block_on(builder.build_tokens().unwrap().token()).unwrap();
    });
    assert_eq!(
        ears.spans(),
        [fields(&[
            ("group", "acme"),
            ("key", "0"),
            ("op", "0"),
            ("reason", "first"),
            ("outcome", "granted"),
            ("status", "200")
        ])]
    );
}

#[test]
fn each_event_has_its_name_and_facts_over_reqwest() {
    each_event_has_its_name_and_facts::<OverReqwest>();
}

#[test]
fn each_event_has_its_name_and_facts_over_ureq() {
    each_event_has_its_name_and_facts::<OverUreq>();
}

#[test]
fn r58_neither_spans_nor_events_show_a_secret_over_reqwest() {
    r58_neither_spans_nor_events_show_a_secret::<OverReqwest>();
}

#[test]
fn r58_neither_spans_nor_events_show_a_secret_over_ureq() {
    r58_neither_spans_nor_events_show_a_secret::<OverUreq>();
}

#[test]
fn limiter_groups_are_told_apart_over_reqwest() {
    limiter_groups_are_told_apart::<OverReqwest>("reqwest-");
}

#[test]
fn limiter_groups_are_told_apart_over_ureq() {
    limiter_groups_are_told_apart::<OverUreq>("blocking-");
}

#[test]
fn r52_a_panic_in_a_subscriber_is_its_own_over_reqwest() {
    r52_a_panic_in_a_subscriber_is_its_own::<OverReqwest>();
}

#[test]
fn r52_a_panic_in_a_subscriber_is_its_own_over_ureq() {
    r52_a_panic_in_a_subscriber_is_its_own::<OverUreq>();
}

#[test]
fn r52_a_panic_in_a_subscriber_is_its_own_on_a_runtime_of_the_callers_over_reqwest() {
    for place in PLACES {
        let emulator = Emulator::start();
        tracing::subscriber::with_default(Panics(place), || {
            let runtime = block_on(async { tokio::runtime::Handle::current() });
            let builder = storm_auth_reqwest::Builder::from(settings(&emulator)).flights_on(runtime);
            block_on(builder.build_tokens().unwrap().token()).unwrap();
        });
        assert_eq!(emulator.token_requests(), 1, "{place}");
    }
}

type Fields = BTreeMap<&'static str, String>;

/// Remembers the spans and events of this crate's, as long as it is the subscriber.
#[derive(Clone, Default)]
struct Ears(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    spans: Vec<(&'static str, Fields)>,
    /// Handles of spans that have not gone yet.
    held: usize,
    events: Vec<Fields>,
}

impl Ears {
    fn hear<T>(act: impl FnOnce() -> T) -> (Self, T) {
        let ears = Self::default();
        let result = tracing::subscriber::with_default(ears.clone(), act);
        (ears, result)
    }

    /// The spans of token requests, once they are over.
    fn spans(&self) -> Vec<Fields> {
        until("the end of the spans", || self.0.lock().unwrap().held == 0);
        let heard = self.0.lock().unwrap();
        assert!(heard.spans.iter().all(|(name, _)| *name == "storm_auth.token_request"), "{:?}", heard.spans);
        heard.spans.iter().map(|(_, fields)| fields.clone()).collect()
    }
}

struct Fill<'a>(&'a mut Fields);

impl Visit for Fill<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl Subscriber for Ears {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "storm_auth"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::new();
        span.record(&mut Fill(&mut fields));
        assert!(span.is_root(), "a request is nobody's child");
        let mut heard = self.0.lock().unwrap();
        heard.held += 1;
        heard.spans.push((span.metadata().name(), fields));
        Id::from_u64(heard.spans.len() as u64)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut heard = self.0.lock().unwrap();
        values.record(&mut Fill(&mut heard.spans[id.into_u64() as usize - 1].1));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::new();
        event.record(&mut Fill(&mut fields));
        self.0.lock().unwrap().events.push(fields);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn clone_span(&self, id: &Id) -> Id {
        self.0.lock().unwrap().held += 1;
        id.clone()
    }

    fn try_close(&self, _: Id) -> bool {
        self.0.lock().unwrap().held -= 1;
        false
    }
}

fn fields(expected: &[(&'static str, &str)]) -> Fields {
    expected.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

fn each_token_request_has_a_span_with_what_came_of_it<A: Adapter>() {
    let emulator = Emulator::start();
    let (ears, tokens) = Ears::hear(|| {
        let tokens = Setup::<A>::at(&emulator).set(|settings| settings.group("acme")).tokens();
        let token = A::token(&tokens).unwrap();
        A::invalidate(&tokens, token.id());
        A::token(&tokens).unwrap();
        emulator.fail_next(Endpoint::Token, 1, Fault::json(400, r#"{"error":"invalid_scope"}"#));
        A::token(&A::for_scope(&tokens, Scope::new("other").unwrap())).unwrap_err();
        emulator.fail_next(Endpoint::Token, 1, Fault::status(429));
        A::token_within(&A::for_scope(&tokens, Scope::new("third").unwrap()), PATIENCE / 30).unwrap_err();
        tokens
    });
    assert_eq!(
        ears.spans(),
        [
            fields(&[
                ("group", "acme"),
                ("key", "0"),
                ("op", "0"),
                ("reason", "first"),
                ("outcome", "granted"),
                ("status", "200")
            ]),
            fields(&[
                ("group", "acme"),
                ("key", "0"),
                ("op", "1"),
                ("reason", "rejected"),
                ("outcome", "granted"),
                ("status", "200")
            ]),
            fields(&[
                ("group", "acme"),
                ("key", "1"),
                ("op", "2"),
                ("reason", "first"),
                ("outcome", "refused"),
                ("status", "400")
            ]),
            fields(&[
                ("group", "acme"),
                ("key", "2"),
                ("op", "3"),
                ("reason", "first"),
                ("outcome", "throttled"),
                ("status", "429")
            ]),
        ]
    );
    drop(tokens);

    let nowhere = "http://127.0.0.1:9/token";
    let (ears, _) = Ears::hear(|| {
        A::token(&Setup::<A>::at(&emulator).set(|settings| settings.group("acme").token_url(nowhere)).tokens())
            .unwrap_err()
    });
    assert_eq!(
        ears.spans(),
        [fields(&[("group", "acme"), ("key", "0"), ("op", "0"), ("reason", "first"), ("outcome", "connect")])]
    );
}

fn each_event_has_its_name_and_facts<A: Adapter>() {
    let emulator = Emulator::start();
    let events = Events::default();
    let (ears, ()) = Ears::hear(|| {
        let tokens = Setup::<A>::at(&emulator).set(|settings| settings.group("acme")).events(&events).tokens();
        let token = A::token(&tokens).unwrap();
        A::invalidate(&tokens, token.id());
        emulator.fail_next(Endpoint::Token, 1, Fault::json(400, r#"{"error":"invalid_scope"}"#));
        A::token(&tokens).unwrap_err();
        until("the last one", || events.any(|event| matches!(event, Event::Refused { .. })));
    });
    let seen = events.seen();
    until("all of them", || ears.0.lock().unwrap().events.len() >= seen.len());
    let heard = ears.0.lock().unwrap();
    // Two threads tell them, so their order is not ours to know.
    for event in &seen {
        let text = event.to_string();
        let fields = heard.events.iter().find(|fields| fields["message"] == text).unwrap();
        assert_eq!(fields["event"], event.name());
        assert_eq!(fields["group"], "acme");
        let facts = event.facts();
        let fact = |name: &str| fields.get(name).cloned();
        assert_eq!(fact("key"), facts.key.map(|key| key.index().to_string()), "{event}");
        assert_eq!(fact("op"), facts.op.map(|op| op.index().to_string()), "{event}");
        assert_eq!(fact("reason").as_deref(), facts.reason, "{event}");
        assert_eq!(fact("cause").as_deref(), facts.cause, "{event}");
        for (name, at) in
            [("expires_at", facts.expires_at), ("refresh_at", facts.refresh_at), ("retry_at", facts.retry_at)]
        {
            assert_eq!(fact(name), at.as_ref().map(Unix::to_string), "{event}");
        }
    }
    let mut names: Vec<_> = heard.events.iter().map(|fields| &*fields["event"]).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["config_refused", "key_added", "token_granted", "token_rejected", "token_requested", "token_requested"]
    );
}

fn r58_neither_spans_nor_events_show_a_secret<A: Adapter>() {
    let emulator = Emulator::start();
    let (ears, token) = Ears::hear(|| {
        let tokens = Setup::<A>::at(&emulator).tokens();
        let token = A::token(&tokens).unwrap();
        A::close(&tokens, PATIENCE).unwrap();
        token
    });
    ears.spans();
    let heard = ears.0.lock().unwrap();
    let all = format!("{:?} {:?}", heard.spans, heard.events);
    assert!(!heard.events.is_empty());
    for secret in [token.expose(), &emulator.client_secret()] {
        assert!(
            !secret.as_bytes().windows(8).any(|part| all.as_bytes().windows(8).any(|shown| shown == part)),
            "{all}"
        );
    }
}

fn limiter_groups_are_told_apart<A: Adapter>(unnamed: &str) {
    let emulator = Emulator::start();
    let (ears, tokens) = Ears::hear(|| {
        let named = Setup::<A>::at(&emulator).set(|settings| settings.group("acme"));
        let tokens = [named.tokens(), Setup::<A>::at(&emulator).tokens(), Setup::<A>::at(&emulator).tokens()];
        tokens.iter().for_each(|tokens| drop(A::token(tokens).unwrap()));
        // What is derived from a provider is of its group.
        A::token(&A::for_scope(&tokens[1], Scope::new("other").unwrap())).unwrap_err();
        tokens
    });
    let groups: Vec<_> = ears.spans().into_iter().map(|fields| fields["group"].clone()).collect();
    assert_eq!(groups[0], "acme");
    assert!(groups[1].starts_with(unnamed) && groups[2].starts_with(unnamed), "{groups:?}");
    assert_ne!(groups[1], groups[2]);
    assert_eq!(groups[3], groups[1]);
    drop(tokens);
}

/// Where a subscriber is told something.
const PLACES: [&str; 7] = ["new_span", "enter", "exit", "record", "event", "clone_span", "try_close"];

/// Wants to hear everything, and does not bear this.
struct Panics(&'static str);

impl Panics {
    fn hear(&self, place: &str) {
        assert_ne!(self.0, place, "the caller's own panic");
    }
}

impl Subscriber for Panics {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "storm_auth"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.hear("new_span");
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {
        self.hear("record");
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.hear("event");
    }

    fn enter(&self, _: &Id) {
        self.hear("enter");
    }

    fn exit(&self, _: &Id) {
        self.hear("exit");
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.hear("clone_span");
        id.clone()
    }

    fn try_close(&self, _: Id) -> bool {
        self.hear("try_close");
        false
    }
}

fn r52_a_panic_in_a_subscriber_is_its_own<A: Adapter>() {
    for place in PLACES {
        let emulator = Emulator::start();
        tracing::subscriber::with_default(Panics(place), || {
            let tokens = Setup::<A>::at(&emulator).tokens();
            let token = A::token(&tokens).unwrap();
            A::invalidate(&tokens, token.id());
            A::token(&tokens).unwrap();
        });
        assert_eq!(emulator.token_requests(), 2, "{place}");
    }
}
