//! What an adapter measures, over the emulator: one story for both, which their own tests tell, since only they are built with the
//! feature. A recorder is the whole process's, for a flight is on a thread of its own; so there is one test in a process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use storm_auth_core::driver::Metric;
use storm_auth_core::store::TokenStore;
use storm_auth_core::{Credentials, Scope, Settings, Token, TokenId};
use storm_auth_tests::emulator::{Emulator, Endpoint, Fault};
use storm_auth_tests::memory_store::MemoryStore;

/// An adapter, as far as the story needs it.
pub(crate) trait Adapter: Clone + Send + Sync {
    fn build(settings: Settings, store: Option<Arc<dyn TokenStore>>) -> Self;
    fn token(&self) -> Option<Token>;
    fn token_within(&self, deadline: Duration) -> Option<Token>;
    fn advance(&self, span: Duration);
    fn invalidate(&self, token: TokenId);
    fn for_scope(&self, scope: Scope) -> Self;
    /// Any look at the machine, which tells what has not been told yet.
    fn look(&self);
    fn served(&self) -> u64;
}

/// What was measured, by `name{label=value}`; a histogram by how many spans it has.
#[derive(Clone, Default)]
struct Measured(Arc<Mutex<Board>>);

#[derive(Default)]
struct Board {
    values: BTreeMap<String, f64>,
    described: BTreeMap<String, Option<Unit>>,
    /// Bears no description.
    panics: bool,
}

struct Handle(Measured, String);

impl Measured {
    fn value(&self, name: &str) -> f64 {
        self.0.lock().unwrap().values.get(name).copied().unwrap_or_default()
    }

    /// Waits until it has this value, since another thread may be about to tell it.
    #[track_caller]
    fn has(&self, name: &str, value: f64) {
        self.comes_to(name, |told| told == value);
    }

    /// Waits until it has a value like this, which it returns.
    #[track_caller]
    fn comes_to(&self, name: &str, like_this: impl Fn(f64) -> bool) -> f64 {
        let start = Instant::now();
        loop {
            let value = self.value(name);
            if like_this(value) {
                return value;
            }
            let patience = Duration::from_secs(30);
            assert!(start.elapsed() < patience, "{name} stays at {value}: {:?}", self.0.lock().unwrap().values);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn handle(&self, key: &Key) -> Arc<Handle> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name =
            if labels.is_empty() { key.name().to_owned() } else { format!("{}{{{}}}", key.name(), labels.join(",")) };
        Arc::new(Handle(self.clone(), name))
    }

    fn describe(&self, name: &KeyName, unit: Option<Unit>) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!board.panics, "the recorder's own panic");
        board.described.insert(name.as_str().to_owned(), unit);
    }
}

impl Handle {
    fn set(&self, set: impl FnOnce(f64) -> f64) {
        let mut board = self.0.0.lock().unwrap();
        let value = board.values.entry(self.1.clone()).or_default();
        *value = set(*value);
    }
}

impl CounterFn for Handle {
    fn increment(&self, count: u64) {
        self.set(|value| value + count as f64);
    }

    fn absolute(&self, _: u64) {
        unreachable!("counters are added to");
    }
}

impl GaugeFn for Handle {
    fn increment(&self, _: f64) {
        unreachable!("gauges are set");
    }

    fn decrement(&self, _: f64) {
        unreachable!("gauges are set");
    }

    fn set(&self, to: f64) {
        self.set(|_| to);
    }
}

impl HistogramFn for Handle {
    fn record(&self, span: f64) {
        assert!((0.0..60.0).contains(&span), "{}: {span} s", self.1);
        self.set(|count| count + 1.0);
    }
}

impl Recorder for Measured {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&name, unit);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&name, unit);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe(&name, unit);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.handle(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.handle(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.handle(key))
    }
}

fn settings(emulator: &Emulator) -> Settings {
    Settings::new()
        .token_url(emulator.token_url())
        .scope(Scope::new(emulator.scope()).unwrap())
        .credentials(Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap())
}

/// R79: calls, requests and what came of them are counted, and each is counted once.
pub(crate) fn tell<A: Adapter>() {
    let measured = Measured::default();
    metrics::set_global_recorder(measured.clone()).map_err(|_| "another recorder is there").unwrap();
    let emulator = Emulator::start();
    // R52: a panic in a recorder is its own.
    measured.0.lock().unwrap().panics = true;
    drop(A::build(settings(&emulator), None));
    measured.0.clear_poison();
    measured.0.lock().unwrap().panics = false;

    let tokens = A::build(settings(&emulator).group("acme"), None);
    let described = measured.0.lock().unwrap().described.clone();
    assert_eq!(described.len(), Metric::ALL.len());
    for (name, unit) in [
        ("storm_auth_wait_seconds", Unit::Seconds),
        ("storm_auth_token_expiry_timestamp_seconds", Unit::Seconds),
        ("storm_auth_budget_left", Unit::Count),
        ("storm_auth_calls_total", Unit::Count),
    ] {
        assert_eq!(described[name], Some(unit), "{name}");
    }

    // The first call waits, the others are served from memory, by any number of threads.
    let first = tokens.token().unwrap();
    measured.has("storm_auth_calls_total{group=acme,state=waited}", 1.0);
    measured.has("storm_auth_wait_seconds{group=acme,state=waited}", 1.0);
    measured.has("storm_auth_token_requests_total{group=acme,reason=first}", 1.0);
    measured.has("storm_auth_token_outcomes_total{group=acme,outcome=granted}", 1.0);
    measured.has("storm_auth_token_request_seconds{group=acme,outcome=granted}", 1.0);
    measured.has("storm_auth_budget_left{group=acme}", 20.0);
    let expiry = first.expires_at().as_millis() as f64 / 1_000.0;
    measured.has("storm_auth_token_expiry_timestamp_seconds{group=acme,key=0}", expiry);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1_000).for_each(|_| drop(tokens.token().unwrap())));
        }
    });
    assert_eq!(tokens.served(), 4_000);
    tokens.look();
    measured.has("storm_auth_calls_total{group=acme,state=cached}", 4_000.0);

    // A token that the API rejected.
    tokens.invalidate(first.id());
    measured.has("storm_auth_events_total{group=acme,event=token_rejected}", 1.0);
    measured.has("storm_auth_token_expiry_timestamp_seconds{group=acme,key=0}", 0.0);
    tokens.token().unwrap();
    measured.has("storm_auth_token_requests_total{group=acme,reason=rejected}", 1.0);

    // A refresh in time, which one call asks for and is served.
    tokens.advance(Duration::from_secs(500));
    tokens.token().unwrap();
    measured.has("storm_auth_calls_total{group=acme,state=ready}", 1.0);
    measured.has("storm_auth_token_requests_total{group=acme,reason=refresh}", 1.0);
    measured.has("storm_auth_token_outcomes_total{group=acme,outcome=granted}", 3.0);

    // A refusal and a throttle, and a caller whom the closed gate turns away.
    emulator.fail_next(Endpoint::Token, 1, Fault::json(400, r#"{"error":"invalid_scope"}"#));
    assert!(tokens.for_scope(Scope::new("other").unwrap()).token().is_none());
    measured.has("storm_auth_token_outcomes_total{group=acme,outcome=refused}", 1.0);
    emulator.fail_next(Endpoint::Token, 1, Fault::answer(429, &[("retry-after", "120")], ""));
    let throttled = tokens.for_scope(Scope::new("third").unwrap());
    assert!(throttled.token_within(Duration::from_secs(5)).is_none());
    assert!(throttled.token_within(Duration::from_secs(5)).is_none());
    measured.has("storm_auth_token_outcomes_total{group=acme,outcome=throttled}", 1.0);
    measured.has("storm_auth_token_request_seconds{group=acme,outcome=throttled}", 1.0);
    measured.has("storm_auth_events_total{group=acme,event=gate_closed}", 1.0);
    measured.has("storm_auth_calls_total{group=acme,state=failed}", 3.0);
    measured.has("storm_auth_wait_seconds{group=acme,state=failed}", 2.0);
    measured.comes_to("storm_auth_gate_closed_until_timestamp_seconds{group=acme}", |until| until > 1_700_000_000.0);
    assert_eq!(emulator.token_requests(), 5);

    // Two processes that share a store, each a group of its own, whose gauges leave those of the first alone.
    let store: Arc<dyn TokenStore> = Arc::new(MemoryStore::new());
    let one = A::build(settings(&emulator).group("one"), Some(store.clone()));
    one.token().unwrap();
    measured.has("storm_auth_leases_total{group=one,outcome=mine}", 1.0);
    measured.has("storm_auth_store_records_total{group=one,result=hit}", 0.0);
    let misses = measured.comes_to("storm_auth_store_records_total{group=one,result=miss}", |misses| misses >= 1.0);
    until_published(&*store, &emulator);
    let another = A::build(settings(&emulator).group("another"), Some(store.clone()));
    another.token().unwrap();
    measured.has("storm_auth_store_records_total{group=another,result=hit}", 1.0);
    measured.has("storm_auth_store_records_total{group=one,result=miss}", misses);
    measured.has("storm_auth_leases_total{group=another,outcome=mine}", 0.0);
    measured.has("storm_auth_budget_left{group=one}", 20.0);
    let expiry = measured.comes_to("storm_auth_token_expiry_timestamp_seconds{group=one,key=0}", |expiry| expiry > 0.0);
    measured.has("storm_auth_token_expiry_timestamp_seconds{group=another,key=0}", expiry);
    assert_ne!(measured.value("storm_auth_token_expiry_timestamp_seconds{group=acme,key=0}"), expiry);
    measured.has("storm_auth_budget_left{group=acme}", 0.0);
    assert_eq!(emulator.token_requests(), 6);

    // R58: neither a name nor a label shows a secret.
    let names = measured.0.lock().unwrap().values.keys().cloned().collect::<Vec<_>>().join(" ");
    for secret in [first.expose(), &emulator.client_secret()] {
        assert!(!secret.as_bytes().windows(8).any(|part| names.as_bytes().windows(8).any(|shown| shown == part)));
    }
}

/// The token was resolved before it was published.
fn until_published(store: &dyn TokenStore, emulator: &Emulator) {
    use storm_auth_core::store::{StoreCommand, StoreOp};
    use storm_auth_core::{HttpHosts, Key, TokenUrl};

    let url = TokenUrl::parse(&emulator.token_url(), &HttpHosts::default()).unwrap();
    let credentials = Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap();
    let key = Key::new(url, credentials, Scope::new(emulator.scope()).unwrap());
    let read = StoreOp::for_key(&key, "", StoreCommand::Read);
    let start = Instant::now();
    while store.perform(&read).unwrap().record.is_none() {
        assert!(start.elapsed() < Duration::from_secs(30), "the token was never published");
        std::thread::sleep(Duration::from_millis(1));
    }
}
